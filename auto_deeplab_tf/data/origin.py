"""Where a data set's examples come from: the interface between its files and the records."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from auto_deeplab_tf.data import catalog


@dataclasses.dataclass(frozen=True)
class RawExample:
    """An example as its data set stores it: encoded files, `label` of label ids.

    `image_path` and `label_path` name the files in messages, where there are such files.
    """

    image_id: str
    group: str
    image: bytes
    label: bytes
    image_path: str = ""
    label_path: str = ""


@dataclasses.dataclass(frozen=True)
class Defect:
    """Something wrong with one file.

    Attributes:
        kind: a short name, such as "missing mask".
        path: the file.
        text: what is wrong, naming the file.
        fatal: whether nothing can be prepared before it is mended.
        missing: whether a file is not there.
    """

    kind: str
    path: str
    text: str
    fatal: bool = True
    missing: bool = False

    def error(self) -> Exception:
        return FileNotFoundError(self.text) if self.missing else ValueError(self.text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """The files (or the settings of a generator) of one data set, listed but not yet read.

    Attributes:
        info: the description of the set.
        splits: name of each split that is there -> its name in the TFDS builder.
        builder: the TFDS builder of the set, "module:class". Its features hold `image_id`.
        builder_options: further arguments of the builder.
        manual_dir: the folder that the builder finds the user's files in.
        image_key: feature of the builder that holds the image.
        label_key: feature that holds the map of label ids.
        group_of: the drive or city of an example id. Halves of the set are balanced over groups.
        files: the files that the examples are read from, by the names to record them under.
        read: yields the examples of a split, straight from the files.
        settings: whatever else the examples depend on; JSON values.
        defects: what is wrong with the listing of the files.
    """

    info: catalog.Dataset
    splits: Mapping[str, str]
    builder: str
    image_key: str
    label_key: str
    group_of: Callable[[str], str]
    read: Callable[[str], Iterator[RawExample]]
    builder_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    manual_dir: Path | None = None
    files: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    defects: tuple[Defect, ...] = ()

    def raise_defects(self) -> None:
        """Raises the first defect that keeps the set from being prepared."""
        for defect in self.defects:
            if defect.fatal:
                raise defect.error()

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
