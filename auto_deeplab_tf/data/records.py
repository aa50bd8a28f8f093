"""Prepared records: sharded TFRecord files with an index, so any example can be read on its own.

A folder of records holds, for each split, `SPLIT-00000.tfrecord`, ... and `SPLIT.index.npz`, and
one `records.json` with the settings, the statistics of the labels and the SHA-256 of every other
file. A record is a tf.train.Example: `image` (PNG or JPEG bytes, RGB), `label` (8-bit gray PNG of
class ids), `image_id`.
"""

import concurrent.futures
import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from auto_deeplab_tf.data import catalog

# Part of every fingerprint: raise it whenever records made by older code must not be used any more.
VERSION = 1
_SHARD_BYTES = 128 * 2**20
# A TFRecord frames its payload: length (8 bytes) and its checksum (4) before, checksum (4) after.
_RECORD_OVERHEAD = 16
_JPEG_QUALITY = 95
MANIFEST = "records.json"


@dataclasses.dataclass(frozen=True)
class RawExample:
    """An example as its data set stores it: encoded files, `label` of label ids."""

    image_id: str
    group: str
    image: bytes
    label: bytes


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

    def add(self, example: RawExample) -> None:
        """Appends one example, brought to the size of the records.

        Raises:
            ValueError: where the image cannot be decoded, the label map is of another size, or
                holds a strange id.
        """
        try:
            image_bytes, label = prepare(example, self._info, self._image_size)
        except (ValueError, OSError) as error:
            raise ValueError(
                f"{self._info.name} {self._split}, {example.image_id}: {error}"
            ) from error
        self._count(label)
        record = tf.train.Example(
            features=tf.train.Features(
                feature={
                    "image_id": _bytes_feature(example.image_id.encode()),
                    "image": _bytes_feature(image_bytes),
                    "label": _bytes_feature(_encode_png(label)),
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
) -> tuple[bytes, np.ndarray]:
    """Checks an example and brings it to the form of the records.

    Returns:
        (encoded image, class ids uint8 [height, width]). An image that keeps its size keeps its
        bytes.

    Raises:
        ValueError, OSError: where it breaks a rule.
    """
    try:
        image = decode(example.image).convert("RGB")
    except OSError as error:
        raise OSError(f"image cannot be read ({error})") from error
    try:
        label_image = decode(example.label)
    except OSError as error:
        raise OSError(f"label map cannot be read ({error})") from error
    if label_image.mode not in ("L", "P"):
        raise ValueError(
            f"a label map must be an 8-bit image of one channel; found mode {label_image.mode}"
        )
    label = info.class_ids(np.asarray(label_image))
    if label.shape != (image.height, image.width):
        raise ValueError(
            f"image and label map must have the same size; found {image.height}x{image.width} "
            f"and {label.shape[0]}x{label.shape[1]}"
        )
    if info.image_size is not None and info.image_size != label.shape:
        raise ValueError(
            f"images of {info.name} are {info.image_size[0]}x{info.image_size[1]}; "
            f"found {label.shape[0]}x{label.shape[1]}"
        )
    if image_size is None or image_size == label.shape:
        return example.image, label
    resized = resize_image(np.asarray(image), image_size)
    encoded = _encode_jpeg(resized) if info.image_format == "jpeg" else _encode_png(resized)
    return encoded, resize_label(label, image_size)


def decode(data: bytes) -> Image.Image:
    """Decodes an image file completely: `Image.open` alone leaves a truncated file for later."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes uint8 [h, w, 3]: by area where it shrinks on both axes, else bilinearly with
    antialiasing."""
    shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    if shrinks:
        resized = tf.image.resize(image, size, method="area")
    else:
        resized = tf.image.resize(image, size, method="bilinear", antialias=True)
    return np.clip(np.rint(resized.numpy()), 0, 255).astype(np.uint8)


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
    for split, examples in splits.items():
        writer = SplitWriter(directory, split, info, image_size)
        for example in examples:
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


def _encode_png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def _encode_jpeg(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
