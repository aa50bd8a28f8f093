"""Where a data set's examples come from: the interface between its files and the records."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """The files (or the settings of a generator) of one data set, listed but not yet read.

    Attributes:
        splits: name of each split that is there -> its name in the TFDS builder.
        builder: the TFDS builder of the set, "module:class". Its features hold `image_id`.
        builder_options: further arguments of the builder.
        manual_dir: the folder that the builder finds the user's files in.
        image_key: feature of the builder that holds the image.
        label_key: feature that holds the map of label ids.
        group_of: the drive or city of an example id. Halves of the set are balanced over groups.
        files: the files that the examples are read from, by the names to record them under.
        settings: whatever else the examples depend on; JSON values.
    """

    splits: Mapping[str, str]
    builder: str
    image_key: str
    label_key: str
    group_of: Callable[[str], str]
    builder_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    manual_dir: Path | None = None
    files: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def listing(self) -> list[tuple[str, int, int]]:
        """Name, size in bytes and time of change (nanoseconds) of every file, sorted by name."""
        stats = [(name, path.stat()) for name, path in sorted(self.files.items())]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def code_digest(*paths: Path) -> str:
    """A digest of source files, so that records of older code are not taken for new ones."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
