"""Prepared records: sharded TFRecord files with an index, so any example can be read on its own.

A folder of records holds, for each split, `SPLIT-00000.tfrecord`, ... and `SPLIT.index.npz`, and
one `records.json` with the settings, the statistics of the labels and the SHA-256 of every other
file. A record is a tf.train.Example: `image` (PNG or JPEG bytes), `label` (8-bit gray PNG of class
ids), `image_id`. `shards` writes such a folder, `source` reads it.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.files import AnyPath, write_text
from auto_deeplab_tf.untrusted import read_json

# Part of every fingerprint: raise it whenever records made by older code must not be used any more.
VERSION = 4
MANIFEST = "records.json"
_CHUNK_BYTES = 2**20
# A TFRecord frames its payload: length (8 bytes) and its checksum (4) before, checksum (4) after.
RECORD_OVERHEAD = 16


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the examples of a data set are brought into records.

    Attributes:
        image_size: (height, width) of every example; None to keep them as they are.
        max_image_side: pixels that the longer side of every example is brought to, the other one
            in proportion.
        image_format: "jpeg" or "png" for every image; None to keep the files as they are, and to
            write images whose size changes in the format that the data set's description names.

    Raises:
        UserError: for settings that exclude each other or lie outside their range.
    """

    image_size: tuple[int, int] | None = None
    max_image_side: int | None = None
    image_format: str | None = None

    def __post_init__(self) -> None:
        size = self.image_size
        if size is not None:
            if len(size) != 2 or min(size) < 1:
                raise UserError(f"image_size must be two positive numbers, HxW. Received: {size!r}")
            object.__setattr__(self, "image_size", (int(size[0]), int(size[1])))
        if self.max_image_side is not None:
            if self.max_image_side < 1:
                raise UserError(
                    f"max_image_side must be 1 or more. Received: {self.max_image_side}"
                )
            if size is not None:
                raise UserError("image_size and max_image_side both set the size: give one of them")
        if self.image_format not in (None, "jpeg", "png"):
            raise UserError(f"image_format must be jpeg or png. Received: {self.image_format!r}")

    def size_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) that an example of a given size is brought to."""
        if self.image_size is not None:
            return self.image_size
        if self.max_image_side is None:
            return (size[0], size[1])
        # In whole numbers, rounded half up: the same on every machine.
        side, longer = self.max_image_side, max(size)
        height, width = (max(1, (2 * n * side + longer) // (2 * longer)) for n in size)
        return height, width

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        size = None if self.image_size is None else list(self.image_size)
        return {**dataclasses.asdict(self), "image_size": size}

    @property
    def name(self) -> str:
        """A short text for the name of a folder."""
        size = "full"
        if self.image_size is not None:
            size = f"{self.image_size[0]}x{self.image_size[1]}"
        elif self.max_image_side is not None:
            size = f"max{self.max_image_side}"
        return size if self.image_format is None else f"{size}-{self.image_format}"


def channel_sums(image: np.ndarray) -> np.ndarray:
    """Returns the sums that `channel_statistics` needs; exact, so their order does not matter.

    Args:
        image: uint8 or uint16 [height, width, channels].

    Returns:
        int64 [3, channels]: number of pixels, sum, sum of squares.
    """
    pixels = image.reshape(-1, image.shape[2]).astype(np.int64)
    return np.stack([np.full(image.shape[2], len(pixels)), pixels.sum(0), (pixels**2).sum(0)])


def channel_statistics(sums: np.ndarray, bits: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns (mean, standard deviation) of each channel on the scale 0..255.

    Args:
        sums: [3, channels], `channel_sums` added up over the images.
        bits: 8 or 16, of the images.
    """
    count, total, squares = np.asarray(sums, np.float64)
    scale = 257.0 if bits == 16 else 1.0
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    # A channel that is the same everywhere has no deviation to divide by.
    deviation = np.where(deviation > 0, deviation, scale)
    return tuple((mean / scale).tolist()), tuple((deviation / scale).tolist())


def write_manifest(directory: AnyPath, manifest: dict[str, Any]) -> None:
    """Writes `records.json`, which is what makes a folder one of records: last of all."""
    manifest = {**manifest, "version": VERSION}
    manifest["digest"] = _manifest_digest(manifest)
    write_text(directory / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def read_manifest(directory: AnyPath) -> dict[str, Any]:
    """Reads and checks `records.json`."""
    path = directory / MANIFEST
    try:
        manifest = read_json(path)
        sound = manifest["digest"] == _manifest_digest(manifest)
        sound = sound and all(map(_is_sound, manifest["splits"].values()))
        sound = sound and {"dataset", "fingerprint"} <= set(manifest)
        sound = sound and isinstance(manifest.get("settings", {}), dict)
    except (UserError, AttributeError, LookupError, TypeError):
        sound = False
    if not sound:
        raise damaged(path)
    return manifest


def _is_sound(entry: Mapping[str, Any]) -> bool:
    """Whether what a manifest says of a split is of the right kind, and names files of its folder.

    Raises:
        LookupError, TypeError, AttributeError: for some that are not.
    """
    files, counts = entry["files"], [entry["num_examples"], entry["ignored_pixels"]]
    counts += [*entry["class_pixels"], *entry["present_pixels"], *sum(entry["channel_sums"], [])]
    counts += [file["bytes"] for file in files.values()]
    return (
        all(name == os.path.basename(name) and name not in ("", ".", "..") for name in files)
        and {entry["index"], *entry["shards"]} <= set(files)
        and all(type(count) is int and 0 <= count < 2**63 for count in counts)
    )


def check_lengths(path: AnyPath, offsets: np.ndarray) -> None:
    """Compares the length that each record of a file declares with the room that it has there.

    TensorFlow allocates that length before it reads the record. Files behind a URL are not looked
    into: it would take a request for each record.

    Args:
        path: a file of records, without gaps.
        offsets: int64 [n], where the records begin, in any order.

    Raises:
        UserError: where they differ.
    """
    if not offsets.size or not isinstance(path, Path):
        return
    starts = np.sort(offsets)
    size = path.stat().st_size
    rooms = np.diff(starts, append=size) - RECORD_OVERHEAD
    if rooms.min() < 0:
        raise damaged(path)
    content = np.memmap(path, np.uint8, "r")
    # Each record begins with its length, 8 bytes.
    lengths = content[starts[:, None] + np.arange(8)].view("<i8")[:, 0]
    if (lengths != rooms).any():
        raise damaged(path)


def verify(directory: AnyPath, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Compares the SHA-256 of files with what the manifest says.

    Raises:
        UserError: for a file that is missing, cut or changed.
    """
    verify_sizes(directory, files)
    paths = [directory / name for name in files]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for path, found in zip(paths, pool.map(describe_file, paths), strict=True):
            if found != dict(files[path.name]):
                raise damaged(path)


def verify_sizes(directory: AnyPath, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Compares the sizes of files with what the manifest says.

    Raises:
        UserError: for a file that is missing or cut.
    """
    for name, expected in files.items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != expected["bytes"]:
            raise damaged(path)


def damaged(path: AnyPath) -> UserError:
    """Returns the error for a file of records that was cut or changed."""
    return UserError(
        f"{path} is damaged: delete the folder {path.parent} to have the records prepared again"
    )


def describe_file(path: AnyPath) -> dict[str, Any]:
    """Returns the size in bytes and the SHA-256 of a file, as the manifest holds them."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
