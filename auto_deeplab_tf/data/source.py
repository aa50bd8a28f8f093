"""Opens a split of a data set: prepared once under the cache directory, then random access."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from auto_deeplab_tf import config
from auto_deeplab_tf.config.options import MAX_IMAGE_PIXELS
from auto_deeplab_tf.data import preparation, records, sets
from auto_deeplab_tf.data.dataset import Dataset, RawDataset, absent_classes_note
from auto_deeplab_tf.data.index import Index
from auto_deeplab_tf.errors import FieldError, MissingFileError, UserError
from auto_deeplab_tf.files import AnyPath, as_path

# Up to this much is read whole when a split is opened, which takes about a second.
_CHECKED_AT_OPENING_BYTES = 2**30
_PNG = b"\x89PNG\r\n\x1a\n"
_SIZE_RULE = "an image has another size than its index has"
# The operations of `Source.example` that refuse what a record holds.
_READING_OPS = (
    "ParseSingleExample",
    "ParseExample",
    "DecodeImage",
    "DecodePng",
    "ExtractJpegShape",
    "EnsureShape",
)


class Source:
    """The examples of one split, ordered by image id.

    Attributes:
        info: Description of the data set.
        split: Name of the split.
        ids: Image id of each example, a sequence of texts.
        groups: Drive or city of each example, likewise.
        shards: int32 [num_examples], the number of the file that holds each example.
        image_size: (height, width) of the examples, None where they differ.
        max_image_size: The largest height and the largest width.
        class_pixels: int64 [num_classes], pixels of each class in the split.
        present_pixels: int64 [num_classes], pixels of the images where the class occurs;
            class_pixels / present_pixels is what median-frequency weights are made of.
        ignored_pixels: Pixels that are ignored.
        directory: Folder of the records.
        fingerprint: Digest of the source files and of the settings of the records.
        notes: What the user should know of the set: what was concluded from its files, and classes
            without a pixel in this split.
    """

    def __init__(self, directory: AnyPath, split: str, info: Dataset, notes: Sequence[str] = ()):
        """Opens records, after comparing the sizes and checksums of their files.

        Where the shards are many, a byte that changed in them is noticed when its record is read.

        Raises:
            UserError: Where a file was cut or changed, or the split is not there.
        """
        manifest = records.read_manifest(directory)
        if split not in manifest["splits"]:
            raise UserError(
                f"split of {info.name} must be one of {', '.join(manifest['splits'])} (the "
                f"splits that were found). Received: {split!r}"
            )
        entry = manifest["splits"][split]
        self._files: dict[str, dict[str, Any]] = entry["files"]
        if sum(file["bytes"] for file in self._files.values()) <= _CHECKED_AT_OPENING_BYTES:
            records.verify(directory, self._files)
        else:
            records.verify(directory, {entry["index"]: self._files[entry["index"]]})
            records.verify_sizes(directory, self._files)
        index = _read_index(directory, entry, info)
        self.ids, self.groups, self.shards = index.ids, index.groups, index.shards
        sizes = index.sizes
        try:
            self.info = _measured(info, manifest["splits"].get("train", entry))
        except ValueError:
            raise records.damaged(directory / records.MANIFEST) from None
        self.split = split
        self.directory = directory
        self.fingerprint: str = manifest["fingerprint"]
        self.max_image_size: tuple[int, int] = (int(sizes[:, 0].max()), int(sizes[:, 1].max()))
        self.image_size = self.max_image_size if (sizes == sizes[0]).all() else None
        self.class_pixels = np.array(entry["class_pixels"], np.int64)
        self.present_pixels = np.array(entry["present_pixels"], np.int64)
        self.ignored_pixels: int = entry["ignored_pixels"]
        absent = absent_classes_note(info, split, self.class_pixels.tolist())
        self.notes = (*notes, absent) if absent else tuple(notes)
        with tf.device("CPU:0"):  # where tf.data runs, also on a machine with a GPU
            self._paths = tf.constant([str(directory / name) for name in entry["shards"]])
            self._shards = tf.constant(index.shards)
            self._offsets = tf.constant(index.offsets)
            self._sizes = tf.constant(index.sizes)

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return len(self.ids)

    @property
    def num_bytes(self) -> int:
        """Size of the files of the split."""
        return sum(file["bytes"] for file in self._files.values())

    def verify(self) -> None:
        """Compares the SHA-256 of every file of the split.

        Raises:
            UserError: Naming the file that was cut or changed.
        """
        records.verify(self.directory, self._files)

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
        features = {name: self._of_its_size(file, index) for name, file in features.items()}
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

    def _of_its_size(self, file: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        """Returns an encoded image whose header has the size that the index has.

        A decoder allocates what the header declares.
        """
        head = tf.strings.join([tf.strings.substr(file, 0, 24), "\0" * 24])
        size = tf.cond(
            tf.strings.substr(head, 0, len(_PNG)) == _PNG,
            # Width and height, each 4 bytes, the highest first.
            lambda: tf.io.decode_raw(tf.strings.substr(head, 16, 8), tf.int32, False)[::-1],
            lambda: tf.io.extract_jpeg_shape(file)[:2],
        )
        same = tf.debugging.Assert(
            tf.reduce_all(size == tf.gather(self._sizes, index)), [_SIZE_RULE]
        )
        with tf.control_dependencies([] if same is None else [same]):
            return tf.identity(file)


def open_split(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
    image_size: tuple[int, int] | None = None,
    max_image_side: int | None = None,
    image_format: str | None = None,
    dataset_config: str | os.PathLike | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
) -> Source:
    """Opens a split of a data set; the first time, prepares its records.

    Records lie in a folder of `cache_dir` named after a fingerprint of the source files (names,
    sizes, contents), of the settings and of the code. The folder appears complete or not at all; a
    preparation that was stopped is resumed.

    Args:
        name: A name of `sets.names()`.
        split: A split of that data set.
        data_dir: Folder of the user's files, on this machine; never written to. None for a set
            that needs none.
        cache_dir: Folder for prepared records, also a URL; None for
            `$XDG_CACHE_HOME/auto_deeplab_tf`, or `~/.cache/auto_deeplab_tf`. It may also be such a
            folder of records itself.
        image_size: (height, width) to bring every example to; None to keep them as they are.
        max_image_side: Pixels to bring the longer side of every example to.
        image_format: "jpeg" or "png" for the images; None as `records.Settings` says.
        dataset_config: The JSON file that describes `folder`; None for dataset.json in data_dir.
        max_image_pixels: Largest height times width of an image file that is read.

    Raises:
        UserError: For a name, split, size or data that breaks a rule.
        MissingFileError: Where the data are not there.
    """
    settings = records.Settings(image_size, max_image_side, image_format)
    raw = _listed(name, data_dir, dataset_config, max_image_pixels, cache_dir)
    _check_split(raw, split)
    directory = preparation.prepared(raw, _cache_dir(cache_dir), settings)
    return Source(directory, split, raw.info, raw.notes)


def describe(options: config.DatasetConfig) -> Dataset:
    """Returns the description of the data set that a command's options name."""
    return _find(options).info


def open_for(options: config.DatasetConfig, split: str) -> Source:
    """Opens a split of the data set that a command's options name, as `open_split` does.

    Of the split that is learnt from, `Source.notes` are written to stderr.
    """
    raw = _find(options)
    _check_split(raw, split)
    source = Source(_prepare(raw, options), split, raw.info, raw.notes)
    for note in source.notes if split == "train" else ():
        print(note, file=sys.stderr)
    return source


def open_all(options: config.DatasetConfig) -> dict[str, Source]:
    """Opens every split that the files have of the data set that a command's options name."""
    raw = _find(options)
    directory = _prepare(raw, options)
    return {split: Source(directory, split, raw.info, raw.notes) for split in raw.splits}


def _find(options: config.DatasetConfig) -> RawDataset:
    return _listed(
        options.dataset,
        options.data_dir,
        options.dataset_config,
        options.max_image_pixels,
        options.cache_dir,
    )


def _listed(
    name: str, data_dir: Any, dataset_config: Any, max_image_pixels: int, cache_dir: Any
) -> RawDataset:
    """Lists the files of a set; without a folder of them, records that are named stand for them."""
    if data_dir is None and cache_dir is not None and sets.has_files_described(name):
        directory = _cache_dir(cache_dir)
        if (directory / records.MANIFEST).exists():
            info = dataclasses.replace(sets.describe(name), max_image_pixels=max_image_pixels)
            return preparation.of_records(info, directory)
    return sets.find(name, data_dir, dataset_config, max_image_pixels)


def _prepare(raw: RawDataset, options: config.DatasetConfig) -> AnyPath:
    settings = records.Settings(options.image_size, options.max_image_side, options.image_format)
    return preparation.prepared(raw, _cache_dir(options.cache_dir), settings)


@contextlib.contextmanager
def damage_named(*sources: Source) -> Iterator[None]:
    """Turns a record that cannot be read into an error that names its file, or else its folder.

    In the batches of a tf.data service, TensorFlow wraps that error in another.

    Raises:
        UserError: Naming the shard that was changed, or the folder of a record that never was one.
    """
    try:
        yield
    except (
        tf.errors.DataLossError,
        tf.errors.InvalidArgumentError,
        tf.errors.UnknownError,
        UnicodeDecodeError,
    ) as error:
        # Where TensorFlow's message repeats bytes of a record, Python cannot decode it.
        text = type(error).__name__ + str(getattr(error, "object", error))
        if "DataLossError" in text:
            for source in sources:
                source.verify()
        elif not any(name in text for name in (_SIZE_RULE, *_READING_OPS)):
            raise
        folders = " or ".join(sorted({str(source.directory) for source in sources}))
        raise UserError(
            f"a record in {folders} cannot be read as an example of its data set: delete the "
            "folder to have the records prepared again"
        ) from error


def _read_index(directory: AnyPath, entry: Mapping[str, Any], info: Dataset) -> Index:
    """The index of a split, which fits its files, its numbers and the limit of pixels."""
    path = directory / entry["index"]
    try:
        index = Index.load(path)
    except ValueError:
        raise records.damaged(path) from None
    sizes, shards = index.sizes.astype(np.int64), entry["shards"]
    numbers = [entry[key] for key in ("class_pixels", "present_pixels")]
    if {len(row) for row in numbers} != {info.num_classes}:
        raise records.damaged(directory / records.MANIFEST)
    if len(index.ids) != entry["num_examples"] or index.shards.max() >= len(shards):
        raise records.damaged(path)
    largest = int(sizes.prod(axis=1).max())
    if largest > info.max_image_pixels:
        raise UserError(
            f"{path} has an image of {largest} pixels, more than max_image_pixels="
            f"{info.max_image_pixels}: raise it if the memory allows"
        )
    for number, name in enumerate(shards):
        records.check_lengths(directory / name, index.offsets[index.shards == number])
    return index


def _check_split(raw: RawDataset, split: str) -> None:
    info = raw.info
    if split in info.unlabelled_splits:
        raise UserError(
            f"split={split}: {info.name} is published without labels for it, so nothing can be "
            "scored; predict segments its images"
        )
    if split not in info.splits:
        raise UserError(
            f"split of {info.name} must be one of {', '.join(info.splits)}. Received: {split!r}"
        )
    if split not in raw.splits:
        raise MissingFileError(f"{raw.root} has no split {split}; it has {', '.join(raw.splits)}")


def _measured(info: Dataset, entry: Mapping[str, Any]) -> Dataset:
    """The description with mean and deviation, measured where it has none."""
    if info.mean:
        return info
    sums = np.array(entry["channel_sums"])
    if sums.shape != (3, info.channels) or sums[0].min() < 1:
        raise ValueError("no statistics of the channels")
    mean, std = records.channel_statistics(sums, info.image_bits)
    return dataclasses.replace(info, mean=mean, std=std)


def _cache_dir(cache_dir: str | os.PathLike | None) -> AnyPath:
    if cache_dir is not None:
        return as_path(os.path.expanduser(cache_dir))
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = Path(base).expanduser() / "auto_deeplab_tf"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FieldError(
            f"cache_dir must name a folder for the prepared records: the default, {path}, cannot "
            f"be made ({error.strerror})"
        ) from None
    return path
