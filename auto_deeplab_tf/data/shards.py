"""Writes a folder of records on all cores, shard by shard, so that it can be resumed.

A shard that is finished has its own SHA-256 and its rows of the index beside it, in
`SPLIT-00000.json`: it is not written again. Which examples a shard holds follows from their number,
so records whose writing was stopped and resumed are the same bytes as others.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from auto_deeplab_tf.data import image_files, parallel, records
from auto_deeplab_tf.data.dataset import Dataset, RawDataset, RawExample
from auto_deeplab_tf.data.index import Index, Texts
from auto_deeplab_tf.data.resizing import resize_image, resize_label
from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.files import AnyPath

# What a stop costs is at most one shard's work; a folder holds at most this many files a split.
_MIN_EXAMPLES_PER_SHARD = 32
_MAX_SHARDS = 256


@dataclasses.dataclass(frozen=True)
class _Encoded:
    """A record, and what the index and the statistics take from it."""

    record: bytes
    image_id: str
    group: str
    size: tuple[int, int]
    pixels: np.ndarray  # int64 [256], pixels of each class id
    channel_sums: np.ndarray | None


@dataclasses.dataclass
class _Shard:
    """A finished shard; `rows` are (image id, group, offset, height, width)."""

    fingerprint: str
    file: dict[str, Any]
    rows: list[tuple[str, str, int, int, int]]
    class_pixels: list[int]
    present_pixels: list[int]
    ignored_pixels: int
    channel_sums: list[list[int]]


def write(
    directory: AnyPath,
    raw: RawDataset,
    settings: records.Settings,
    *,
    fingerprint: str,
    report: Callable[[int], None] = lambda examples: None,
) -> None:
    """Writes a folder of records, or the shards that are missing in one.

    Args:
        directory: the folder; it exists. Shards in it of this fingerprint are kept if undamaged.
        raw: the data set.
        settings: the form of the records.
        fingerprint: of everything that the records depend on.
        report: called with the number of examples that are done, as they get done.

    Raises:
        UserError: where an example breaks a rule, a split is empty, or an id occurs twice.
        OSError: where the records cannot be written; or `tf.errors.OpError`.
    """
    entries = {}
    for split in raw.splits:
        shards = _write_missing(directory, raw, split, settings, fingerprint, report)
        entries[split] = _finish_split(directory, split, shards, raw.info)
    records.write_manifest(
        directory,
        {
            "dataset": raw.info.name,
            "settings": settings.as_json(),
            "fingerprint": fingerprint,
            "splits": entries,
        },
    )
    clear(directory)


def clear(directory: AnyPath) -> None:
    """Removes what only an unfinished folder needs."""
    for path in (*directory.glob("*-*.json"), *directory.glob("*.part*")):
        path.unlink()


def spans(num_examples: int) -> list[range]:
    """Returns which examples each shard holds."""
    size = max(_MIN_EXAMPLES_PER_SHARD, -(-num_examples // _MAX_SHARDS))
    return [range(start, min(start + size, num_examples)) for start in range(0, num_examples, size)]


def _write_missing(
    directory: AnyPath,
    raw: RawDataset,
    split: str,
    settings: records.Settings,
    fingerprint: str,
    report: Callable[[int], None],
) -> list[_Shard]:
    """Writes the shards of a split that are not there yet; returns all of them."""
    ids = raw.ids(split)
    shard_spans = spans(len(ids))
    paths = [directory / f"{split}-{i:05d}.tfrecord" for i in range(len(shard_spans))]
    found = [_finished(path, fingerprint) for path in paths]
    missing = [span for span, shard in zip(shard_spans, found, strict=True) if shard is None]
    report(len(ids) - sum(map(len, missing)))
    encode = functools.partial(_encode, raw=raw, split=split, settings=settings)
    wanted = (ids[i] for span in missing for i in span)
    with contextlib.closing(parallel.ordered_map(encode, wanted)) as encoded:
        return [
            shard
            or _write_shard(
                path, itertools.islice(encoded, len(span)), raw.info, fingerprint, report
            )
            for path, span, shard in zip(paths, shard_spans, found, strict=True)
        ]


def _encode(
    image_id: str, *, raw: RawDataset, split: str, settings: records.Settings
) -> _Encoded | None:
    """Reads an example and brings it to the form of the records; called from several threads.

    None where the data set leaves the example out.
    """
    example = raw.read(split, image_id)
    if example is None:
        return None
    try:
        return _encode_example(example, raw.info, settings)
    except (UserError, OSError) as error:
        raise UserError(f"{raw.info.name} {split}, {image_id}: {error}") from error


def _encode_example(example: RawExample, info: Dataset, settings: records.Settings) -> _Encoded:
    """Checks, resizes and encodes an example.

    An image that keeps its size keeps its bytes, where TensorFlow reads them as they are and the
    settings name no other format.
    """
    examined = image_files.examine(example, info)
    image, label = examined.image, examined.label
    if examined.problems or image is None or label is None:
        raise examined.problems[0].error
    # Mean and deviation are those of the images at their own size.
    channel_sums = None if info.mean else records.channel_sums(image)
    size = settings.size_of(label.shape)
    resized = size != label.shape
    if resized:
        image, label = resize_image(image, size), resize_label(label, size)
    image_format = settings.image_format or (info.image_format if resized else None)
    own_format = "jpeg" if example.image.startswith(b"\xff\xd8") else "png"
    if examined.as_it_is and not resized and image_format in (None, own_format):
        encoded = example.image
    elif image_format == "jpeg":
        encoded = image_files.encode_jpeg(image)
    else:
        encoded = image_files.encode_png(image)
    record = tf.train.Example(
        features=tf.train.Features(
            feature={
                "image_id": _bytes_feature(example.image_id.encode()),
                "image": _bytes_feature(encoded),
                "label": _bytes_feature(image_files.encode_png(label)),
            }
        )
    ).SerializeToString(deterministic=True)  # else its keys come in another order each time
    pixels = np.bincount(label.ravel(), minlength=256)
    return _Encoded(record, example.image_id, example.group, size, pixels, channel_sums)


def _write_shard(
    path: AnyPath,
    encoded: Iterator[_Encoded | None],
    info: Dataset,
    fingerprint: str,
    report: Callable[[int], None],
) -> _Shard:
    """Writes one shard and, last, the file that says that it is finished."""
    rows, offset = [], 0
    class_pixels = np.zeros(info.num_classes, np.int64)
    present_pixels = np.zeros(info.num_classes, np.int64)
    ignored_pixels = 0
    channel_sums = np.zeros((3, info.channels), np.int64)
    part = path.with_suffix(".part")
    try:
        with tf.io.TFRecordWriter(str(part)) as writer:
            for item in encoded:
                report(1)
                if item is None:
                    continue
                writer.write(item.record)
                rows.append((item.image_id, item.group, offset, *item.size))
                offset += len(item.record) + records.RECORD_OVERHEAD
                classes = item.pixels[: info.num_classes]
                class_pixels += classes
                present_pixels += np.where(classes > 0, item.size[0] * item.size[1], 0)
                ignored_pixels += int(item.pixels[info.ignore_label])
                if item.channel_sums is not None:
                    channel_sums += item.channel_sums
        _sync(part)
        shard = _Shard(
            fingerprint=fingerprint,
            file=records.describe_file(part),
            rows=rows,
            class_pixels=class_pixels.tolist(),
            present_pixels=present_pixels.tolist(),
            ignored_pixels=ignored_pixels,
            channel_sums=channel_sums.tolist(),
        )
        part.replace(path)
        part.write_bytes(json.dumps(dataclasses.asdict(shard)).encode())
        _sync(part)
        part.replace(path.with_suffix(".json"))
    except BaseException:
        part.unlink(missing_ok=True)  # where the disk is full, it may be what fills it
        raise
    return shard


def _finished(path: AnyPath, fingerprint: str) -> _Shard | None:
    """A shard that an earlier writing finished, if it is there and whole."""
    try:
        shard = _Shard(**json.loads(path.with_suffix(".json").read_bytes()))
        whole = shard.fingerprint == fingerprint and records.describe_file(path) == shard.file
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return shard if whole else None


def _finish_split(
    directory: AnyPath, split: str, shards: list[_Shard], info: Dataset
) -> dict[str, Any]:
    """Writes the index, ordered by image id; returns what the manifest says of the split."""
    rows = [row for shard in shards for row in shard.rows]
    if not rows:
        raise UserError(f"{info.name}: split {split} has no images")
    ids, groups, offsets, heights, widths = zip(*rows, strict=True)
    encoded = np.array([image_id.encode() for image_id in ids])
    order = np.argsort(encoded, kind="stable")
    encoded = encoded[order]
    twice = np.flatnonzero(encoded[1:] == encoded[:-1])
    if twice.size:
        raise UserError(
            f"{info.name}: image id {encoded[twice[0]].decode()} occurs twice in split {split}"
        )
    path = directory / f"{split}.index.npz"
    numbers = np.repeat(np.arange(len(shards)), [len(shard.rows) for shard in shards])
    Index(
        ids=Texts(encoded),
        groups=Texts.of([groups[i] for i in order]),
        shards=numbers[order],
        offsets=np.array(offsets)[order],
        sizes=np.array([heights, widths]).T[order],
    ).save(path)
    names = [f"{split}-{i:05d}.tfrecord" for i in range(len(shards))]
    files = {name: shard.file for name, shard in zip(names, shards, strict=True)}
    return {
        "num_examples": len(rows),
        "files": {**files, path.name: records.describe_file(path)},
        "shards": names,
        "index": path.name,
        "class_pixels": _sum(shard.class_pixels for shard in shards),
        "present_pixels": _sum(shard.present_pixels for shard in shards),
        "ignored_pixels": sum(shard.ignored_pixels for shard in shards),
        "channel_sums": _sum(shard.channel_sums for shard in shards),
    }


def _sum(values: Iterable[list]) -> list:
    return np.sum([np.array(value, np.int64) for value in values], axis=0).tolist()


def _sync(path: AnyPath) -> None:
    """Has the system write a file to the disk before its name says that it is whole."""
    if not isinstance(path, Path):
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _bytes_feature(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
