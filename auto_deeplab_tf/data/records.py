"""Prepared records: sharded TFRecord files with an index, so any example can be read on its own.

A folder of records holds, for each split, `SPLIT-00000.tfrecord`, ... and `SPLIT.index.npz`, and
one `records.json` with the settings, the statistics of the labels and the SHA-256 of every other
file. A record is a tf.train.Example: `image` (PNG or JPEG bytes), `label` (8-bit gray PNG of class
ids), `image_id`.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from auto_deeplab_tf.data import catalog, examples, image_files
from auto_deeplab_tf.data.origin import RawExample

# Part of every fingerprint: raise it whenever records made by older code must not be used any more.
VERSION = 2
_SHARD_BYTES = 128 * 2**20
# A TFRecord frames its payload: length (8 bytes) and its checksum (4) before, checksum (4) after.
_RECORD_OVERHEAD = 16
MANIFEST = "records.json"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """An example in the form of the records.

    Attributes:
        image: PNG or JPEG file.
        label: uint8 [height, width], class ids.
        channel_sums: int64 [3, channels]: pixels, sum and sum of squares of each channel of the
            image at its own size; None where the data set says mean and deviation.
    """

    image: bytes
    label: np.ndarray
    channel_sums: np.ndarray | None


class SplitWriter:
    """Writes the records of one split, and gathers its index and the statistics of its labels."""

    def __init__(
        self, directory: Path, split: str, info: catalog.Dataset, image_size: tuple[int, int] | None
    ):
        self._directory = directory
        self._split = split
        self._info = info
        self._image_size = image_size
        self._shards: list[Path] = []
        self._writer: tf.io.TFRecordWriter | None = None
        self._offset = 0
        self._rows: list[tuple[str, str, int, int, int, int]] = []
        self._class_pixels = np.zeros(info.num_classes, np.int64)
        self._present_pixels = np.zeros(info.num_classes, np.int64)
        self._ignored_pixels = 0
        self._channel_sums = np.zeros((3, info.channels), np.int64)

    def add(self, example: RawExample) -> None:
        """Appends one example, brought to the size of the records.

        Raises:
            ValueError: where the image cannot be decoded, the label map is of another size, or
                holds a strange id.
        """
        try:
            prepared = prepare(example, self._info, self._image_size)
        except (ValueError, OSError) as error:
            raise ValueError(
                f"{self._info.name} {self._split}, {example.image_id}: {error}"
            ) from error
        label = prepared.label
        self._count(label)
        if prepared.channel_sums is not None:
            self._channel_sums += prepared.channel_sums
        record = tf.train.Example(
            features=tf.train.Features(
                feature={
                    "image_id": _bytes_feature(example.image_id.encode()),
                    "image": _bytes_feature(prepared.image),
                    "label": _bytes_feature(image_files.encode_png(label)),
                }
            )
        ).SerializeToString()
        if self._writer is None or self._offset + len(record) > _SHARD_BYTES:
            self._writer = self._next_shard()
        self._writer.write(record)
        self._rows.append(
            (example.image_id, example.group, len(self._shards) - 1, self._offset, *label.shape)
        )
        self._offset += len(record) + _RECORD_OVERHEAD

    def close(self) -> dict[str, Any]:
        """Writes the index, ordered by image id; returns what the manifest says of the split."""
        if self._writer is not None:
            self._writer.close()
        if not self._rows:
            raise ValueError(f"{self._info.name}: split {self._split} has no images")
        rows = sorted(self._rows)
        ids, groups, shards, offsets, heights, widths = zip(*rows, strict=True)
        if len(set(ids)) != len(ids):
            twice = next(a for a, b in zip(ids, ids[1:], strict=False) if a == b)
            raise ValueError(
                f"{self._info.name}: image id {twice} occurs twice in split {self._split}"
            )
        index = self._directory / f"{self._split}.index.npz"
        np.savez(
            index,
            ids=np.array(ids),
            groups=np.array(groups),
            shards=np.array(shards, np.int32),
            offsets=np.array(offsets, np.int64),
            sizes=np.array([heights, widths], np.int32).T,
        )
        return {
            "num_examples": len(rows),
            "files": {path.name: _describe(path) for path in [*self._shards, index]},
            "shards": [path.name for path in self._shards],
            "index": index.name,
            "class_pixels": self._class_pixels.tolist(),
            "present_pixels": self._present_pixels.tolist(),
            "ignored_pixels": self._ignored_pixels,
            "channel_sums": self._channel_sums.tolist(),
        }

    def _next_shard(self) -> tf.io.TFRecordWriter:
        if self._writer is not None:
            self._writer.close()
        self._shards.append(self._directory / f"{self._split}-{len(self._shards):05d}.tfrecord")
        self._offset = 0
        return tf.io.TFRecordWriter(str(self._shards[-1]))

    def _count(self, label: np.ndarray) -> None:
        pixels = np.bincount(label.ravel(), minlength=256)
        classes = pixels[: self._info.num_classes]
        self._class_pixels += classes
        self._present_pixels += np.where(classes > 0, label.size, 0)
        self._ignored_pixels += int(pixels[self._info.ignore_label])


def prepare(
    example: RawExample, info: catalog.Dataset, image_size: tuple[int, int] | None
) -> Prepared:
    """Checks an example and brings it to the form of the records.

    An image that keeps its size keeps its bytes, where TensorFlow reads them as they are.

    Raises:
        ValueError, OSError: where it breaks a rule.
    """
    examined = examples.examine(example, info)
    image, label = examined.image, examined.label
    if examined.problems or image is None or label is None:
        raise examined.problems[0].error
    sums = None if info.mean else channel_sums(image)
    resized = image_size is not None and image_size != label.shape
    if image_size is not None and resized:
        image, label = resize_image(image, image_size), resize_label(label, image_size)
    if examined.as_it_is and not resized:
        encoded = example.image
    elif resized and info.image_format == "jpeg":
        encoded = image_files.encode_jpeg(image)
    else:
        encoded = image_files.encode_png(image)
    return Prepared(encoded, label, sums)


def channel_sums(image: np.ndarray) -> np.ndarray:
    """int64 [3, channels]: pixels, sum and sum of squares; exact, so their order is no matter."""
    pixels = image.reshape(-1, image.shape[2]).astype(np.int64)
    return np.stack([np.full(image.shape[2], len(pixels)), pixels.sum(0), (pixels**2).sum(0)])


def channel_statistics(sums: np.ndarray, bits: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, standard deviation) of each channel on the scale 0..255, from `channel_sums`."""
    count, total, squares = np.asarray(sums, np.float64)
    scale = 257.0 if bits == 16 else 1.0
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    # A channel that is the same everywhere has no deviation to divide by.
    deviation = np.where(deviation > 0, deviation, scale)
    return tuple((mean / scale).tolist()), tuple((deviation / scale).tolist())


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes [h, w, c] of any dtype, which it keeps: by area where it shrinks on both axes, else
    bilinearly with antialiasing."""
    shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    if shrinks:
        resized = tf.image.resize(image, size, method="area")
    else:
        resized = tf.image.resize(image, size, method="bilinear", antialias=True)
    array = resized.numpy()
    if np.issubdtype(image.dtype, np.integer):
        array = np.clip(np.rint(array), 0, np.iinfo(image.dtype).max)
    return array.astype(image.dtype)


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes [h, w]: each pixel takes the label under its centre."""
    rows = ((np.arange(size[0]) + 0.5) * label.shape[0] / size[0]).astype(np.int64)
    columns = ((np.arange(size[1]) + 0.5) * label.shape[1] / size[1]).astype(np.int64)
    return label[rows[:, None], columns[None, :]]


def write(
    directory: Path,
    info: catalog.Dataset,
    splits: Mapping[str, Iterable[RawExample]],
    *,
    image_size: tuple[int, int] | None,
    fingerprint: str,
) -> None:
    """Writes a folder of records."""
    manifest: dict[str, Any] = {
        "version": VERSION,
        "dataset": info.name,
        "image_size": image_size,
        "fingerprint": fingerprint,
        "splits": {},
    }
    for split, members in splits.items():
        writer = SplitWriter(directory, split, info, image_size)
        for example in members:
            writer.add(example)
        manifest["splits"][split] = writer.close()
    manifest["digest"] = _manifest_digest(manifest)
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def read_manifest(directory: Path) -> dict[str, Any]:
    """Reads and checks `records.json`."""
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        sound = manifest.get("digest") == _manifest_digest(manifest)
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError):
        sound = False
    if not sound:
        raise damaged(path)
    return manifest


def verify(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Compares the SHA-256 of files with what the manifest says.

    Raises:
        ValueError: for a file that is missing, cut or changed.
    """
    paths = [directory / name for name in files]
    for path in paths:
        if not path.exists():
            raise damaged(path)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for path, found in zip(paths, pool.map(_describe, paths), strict=True):
            if found != dict(files[path.name]):
                raise damaged(path)


def damaged(path: Path) -> ValueError:
    return ValueError(
        f"{path} is damaged: delete the folder {path.parent} to have the records prepared again"
    )


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _bytes_feature(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
