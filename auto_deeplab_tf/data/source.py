"""Opens a split of a data set: prepared once under the cache directory, then random access."""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import importlib
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from auto_deeplab_tf import config
from auto_deeplab_tf.data import catalog, records
from auto_deeplab_tf.data.origin import Origin

# The module of each data set that finds its files: `find(data_dir) -> Origin`.
_ORIGINS = {
    name: f"auto_deeplab_tf.data.{name}"
    for name in (
        *("scenes", "camvid", "cityscapes", "cityscapes_coarse"),
        *("voc2012", "coco", "ade20k", "folder"),
    )
}


def names() -> tuple[str, ...]:
    """The names that `--dataset` takes."""
    return tuple(_ORIGINS)


class Source:
    """The examples of one split, ordered by image id.

    Attributes:
        info: description of the data set.
        split: name of the split.
        ids: image id of each example.
        groups: drive or city of each example.
        image_size: (height, width) of the examples, None where they differ.
        max_image_size: the largest height and the largest width.
        class_pixels: int64 [num_classes], pixels of each class in the split.
        present_pixels: int64 [num_classes], pixels of the images where the class occurs;
            class_pixels / present_pixels is what median-frequency weights are made of.
        ignored_pixels: pixels that are ignored.
        directory: folder of the records.
        fingerprint: digest of the source files and of the settings of the records.
    """

    def __init__(self, directory: Path, split: str, info: catalog.Dataset):
        """Opens records, after comparing their checksums.

        Raises:
            ValueError: where a file was cut or changed, or the split is not there.
        """
        manifest = records.read_manifest(directory)
        if split not in manifest["splits"]:
            raise ValueError(
                f"--split of {info.name} must be one of {', '.join(manifest['splits'])} (the "
                f"splits that were found). Received: {split!r}"
            )
        entry = manifest["splits"][split]
        records.verify(directory, entry["files"])
        with np.load(directory / entry["index"]) as index:
            self._ids = index["ids"]
            self._groups = index["groups"]
            shards, offsets, sizes = index["shards"], index["offsets"], index["sizes"]
        self.info = _measured(info, manifest["splits"].get("train", entry))
        self.split = split
        self.directory = directory
        self.fingerprint: str = manifest["fingerprint"]
        self.max_image_size: tuple[int, int] = (int(sizes[:, 0].max()), int(sizes[:, 1].max()))
        self.image_size = self.max_image_size if (sizes == sizes[0]).all() else None
        self.class_pixels = np.array(entry["class_pixels"], np.int64)
        self.present_pixels = np.array(entry["present_pixels"], np.int64)
        self.ignored_pixels: int = entry["ignored_pixels"]
        with tf.device("CPU:0"):  # where tf.data runs, also on a machine with a GPU
            self._paths = tf.constant([str(directory / name) for name in entry["shards"]])
            self._shards = tf.constant(shards)
            self._offsets = tf.constant(offsets)

    @property
    def num_examples(self) -> int:
        return len(self._ids)

    @functools.cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(self._ids.tolist())

    @functools.cached_property
    def groups(self) -> tuple[str, ...]:
        return tuple(self._groups.tolist())

    @property
    def class_frequencies(self) -> np.ndarray:
        """float64 [num_classes]: share of each class among all pixels, the ignored included."""
        return self.class_pixels / (self.class_pixels.sum() + self.ignored_pixels)

    def example(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Reads one example, in graph operations only.

        The record's own checksum is compared each time it is read: a record that changed after the
        split was opened raises `tf.errors.DataLossError`.

        Args:
            index: int64 [], 0 .. num_examples - 1.

        Returns:
            (image, label): [height, width, channels], 0..255: uint8, or float32 where the data set
            has 16 bits; and uint8 [height, width], class ids, 255 ignored.
        """
        # TFRecordDatasetV2 is TFRecordDataset with a start in each file, which the Python class
        # does not offer. One such read takes 0.2 ms; skipping to it with FixedLengthRecordDataset
        # took 3 ms, and checks nothing.
        dataset = tf.raw_ops.TFRecordDatasetV2(
            filenames=[tf.gather(self._paths, tf.gather(self._shards, index))],
            compression_type="",
            buffer_size=tf.constant(128 * 1024, tf.int64),
            byte_offsets=[tf.gather(self._offsets, index)],
        )
        dataset = tf.data.experimental.from_variant(dataset, tf.TensorSpec([], tf.string))
        features = tf.io.parse_single_example(
            dataset.take(1).get_single_element(),
            {
                "image": tf.io.FixedLenFeature([], tf.string),
                "label": tf.io.FixedLenFeature([], tf.string),
            },
        )
        channels = self.info.channels
        if self.info.image_bits == 16:
            image = tf.io.decode_png(features["image"], channels=channels, dtype=tf.uint16)
            image = tf.cast(image, tf.float32) / 257.0
        else:
            image = tf.io.decode_image(
                features["image"], channels=channels, expand_animations=False
            )
        label = tf.io.decode_png(features["label"], channels=1)[:, :, 0]
        height, width = self.image_size or (None, None)
        return tf.ensure_shape(image, [height, width, channels]), tf.ensure_shape(
            label, [height, width]
        )


def open_split(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
    image_size: tuple[int, int] | None = None,
    dataset_config: str | os.PathLike | None = None,
) -> Source:
    """Opens a split of a data set; the first time, prepares its records.

    Records lie in a folder of `cache_dir` named after a fingerprint of the source files (names,
    sizes, times of change), of the settings and of the code. The folder appears complete or not at
    all.

    Args:
        name: a name of the catalog.
        split: a split of that data set.
        data_dir: folder of the user's files; never written to. None for a set that needs none.
        cache_dir: folder for prepared records; None for `$XDG_CACHE_HOME/auto_deeplab_tf`, or
            `~/.cache/auto_deeplab_tf`.
        image_size: (height, width) to bring every example to; None to keep them as they are.
        dataset_config: the JSON file that describes `folder`; None for dataset.json in data_dir.

    Raises:
        ValueError: for a name, split, size or data that breaks a rule.
        FileNotFoundError: where the data are not there.
    """
    if image_size is not None and (len(image_size) != 2 or min(image_size) < 1):
        raise ValueError(
            f"--image_size must be two positive numbers, HxW. Received: {image_size!r}"
        )
    image_size = None if image_size is None else (int(image_size[0]), int(image_size[1]))
    origin = find_origin(name, data_dir, dataset_config)
    _check_split(origin, split)
    origin.raise_defects()
    directory = _prepared(origin.info, origin, _cache_dir(cache_dir), image_size)
    return Source(directory, split, origin.info)


def find_origin(
    name: str,
    data_dir: str | os.PathLike | None = None,
    dataset_config: str | os.PathLike | None = None,
) -> Origin:
    """Lists the files of a data set; `Origin.info` describes it.

    Raises:
        ValueError: for a name that is not known, or flags that the set does not take.
        FileNotFoundError: where the data are not there.
    """
    if name not in _ORIGINS:
        raise ValueError(f"--dataset must be one of {', '.join(_ORIGINS)}. Received: {name!r}")
    generated = name in catalog.names() and not catalog.get(name).needs_data_dir
    if not generated and data_dir is None:
        raise ValueError(f"--dataset={name} needs --data_dir, the folder that holds its files")
    if generated and data_dir is not None:
        raise ValueError(
            f"--dataset={name} takes no --data_dir: it is generated. Received: {str(data_dir)!r}"
        )
    options = {}
    if dataset_config is not None:
        if name != "folder":
            raise ValueError(
                f"--dataset_config describes --dataset=folder only. Received: --dataset={name}"
            )
        options["dataset_config"] = Path(dataset_config)
    module = importlib.import_module(_ORIGINS[name])
    return module.find(None if data_dir is None else Path(data_dir), **options)


def describe(options: config.DatasetConfig) -> catalog.Dataset:
    """The description of the data set that a command's flags name."""
    return find_origin(options.dataset, options.data_dir, options.dataset_config).info


def open_for(options: config.DatasetConfig, split: str) -> Source:
    """Opens a split of the data set that a command's flags name, as `open_split` does."""
    return open_split(
        options.dataset,
        split,
        data_dir=options.data_dir,
        cache_dir=options.cache_dir,
        image_size=options.image_size,
        dataset_config=options.dataset_config,
    )


def _check_split(origin: Origin, split: str) -> None:
    info = origin.info
    if split in info.unlabelled_splits:
        raise ValueError(
            f"--split={split}: {info.name} is published without labels for it, so nothing can be "
            "scored; predict segments its images"
        )
    if split not in info.splits:
        raise ValueError(
            f"--split of {info.name} must be one of {', '.join(info.splits)}. Received: {split!r}"
        )
    if split not in origin.splits:
        raise FileNotFoundError(
            f"{origin.manual_dir} has no split {split}; it has {', '.join(origin.splits)}"
        )


def _measured(info: catalog.Dataset, entry: Mapping[str, Any]) -> catalog.Dataset:
    """The description with mean and deviation, measured where it has none."""
    if info.mean:
        return info
    mean, std = records.channel_statistics(np.array(entry["channel_sums"]), info.image_bits)
    return dataclasses.replace(info, mean=mean, std=std)


def _cache_dir(cache_dir: str | os.PathLike | None) -> Path:
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "auto_deeplab_tf"


def _fingerprint(info: catalog.Dataset, origin: Origin, image_size: tuple[int, int] | None) -> str:
    content = {
        "records": records.VERSION,
        "dataset": info.name,
        "label_ids": sorted(info.label_ids.items()),
        "image_format": info.image_format,
        "channels": [info.channels, info.image_bits],
        "measured": not info.mean,
        "image_size": image_size,
        "splits": list(origin.splits),
        "settings": dict(origin.settings),
        "files": origin.listing(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _prepared(
    info: catalog.Dataset, origin: Origin, cache: Path, image_size: tuple[int, int] | None
) -> Path:
    """Returns the folder of the records, after making it if it is not there."""
    fingerprint = _fingerprint(info, origin, image_size)
    size = "full" if image_size is None else f"{image_size[0]}x{image_size[1]}"
    directory = cache / f"{info.name}-{size}-{fingerprint[:16]}"
    if directory.exists():
        return directory
    cache.mkdir(parents=True, exist_ok=True)
    with _lock(cache / f"{directory.name}.lock"):
        if directory.exists():  # another process made it while this one waited
            return directory
        splits = ", ".join(origin.splits)
        print(f"Preparing {info.name} ({splits}), once, in {directory}", file=sys.stderr)
        unfinished = cache / f"{directory.name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)  # left by a killed process
        try:
            _prepare(unfinished, info, origin, image_size, fingerprint)
            unfinished.rename(directory)
        except tf.errors.OpError as error:
            raise OSError(f"preparing {info.name} under {cache} failed: {error.message}") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return directory


def _prepare(
    directory: Path,
    info: catalog.Dataset,
    origin: Origin,
    image_size: tuple[int, int] | None,
    fingerprint: str,
) -> None:
    """Builds the set with TFDS beside the records, and writes the records from it."""
    raw = directory / "tfds"
    raw.mkdir(parents=True)
    builder = _build(origin, raw)
    splits = {split: _raw_examples(builder, origin, name) for split, name in origin.splits.items()}
    records.write(directory, info, splits, image_size=image_size, fingerprint=fingerprint)
    shutil.rmtree(raw)


def _build(origin: Origin, directory: Path):
    """Builds the set with TFDS, without the network and with nothing printed to stdout."""
    import tensorflow_datasets as tfds  # takes seconds; not needed where the records are there

    tfds.disable_progress_bar()
    module, _, name = origin.builder.partition(":")
    builder_class = getattr(importlib.import_module(module), name)
    builder = builder_class(data_dir=directory, **origin.builder_options)
    options = tfds.download.DownloadConfig(manual_dir=origin.manual_dir)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it announces a download
            builder.download_and_prepare(download_config=options)
    except OSError:
        raise
    except Exception as error:  # whatever the builder, or an archive that it unpacks, answers
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the files in {origin.manual_dir} could not be read: {reason}") from error
    return builder


def _raw_examples(builder, origin: Origin, tfds_split: str) -> Iterator[records.RawExample]:
    import tensorflow_datasets as tfds

    # Encoded images come through as they are: decoding a palette image with TensorFlow would turn
    # ids into luminance.
    skip = {key: tfds.decode.SkipDecoding() for key in (origin.image_key, origin.label_key)}
    for example in tfds.as_numpy(
        builder.as_dataset(split=tfds_split, decoders=skip, shuffle_files=False)
    ):
        image_id = example["image_id"].decode()
        yield records.RawExample(
            image_id,
            origin.group_of(image_id),
            example[origin.image_key],
            example[origin.label_key],
        )


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds a lock file; the system frees it when the process dies, however it dies."""
    while True:
        file = path.open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
        # Its last holder may have deleted it while this process waited: then the lock is on a file
        # that is gone.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                break
        file.close()
    try:
        yield
    finally:
        path.unlink()
        file.close()
