"""What a data set is, before and after its files are listed; `sets` has one module per data set.

Class ids (train ids) are contiguous, 0 to C - 1; 255 is ignored by losses and metrics. Stored label
ids are those of the data set's own files.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from auto_deeplab_tf.config.options import MAX_IMAGE_PIXELS
from auto_deeplab_tf.errors import MissingFileError, UserError

IGNORE_LABEL = 255
# The files that all commands take; what has another suffix is left out, and named.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
LABEL_SUFFIXES = (".png", ".tif", ".tiff")
# What file managers of Windows write into folders; what those of macOS write begins with a point.
_SYSTEM_FILES = ("thumbs.db", "desktop.ini")
# ImageNet's statistics, as they are used with photographs of all kinds: the same for COCO, VOC and
# ADE20K, so that a network trained on one can start on another unchanged.
PHOTOGRAPHS_MEAN = (123.675, 116.28, 103.53)
PHOTOGRAPHS_STD = (58.395, 57.12, 57.375)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is hidden, or the system's own: it is no data."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The description of a data set.

    Attributes:
        name: the name that the option `dataset` takes.
        class_names: one name per class id.
        colors: one (red, green, blue) per class id.
        label_ids: class id of each stored label id, `ignore_label` where it is not a class. A label
            id that is not a key is an error in the data. Where the label maps are colours, the ids
            are `packed_color`s.
        splits: the splits that the set can have; a copy may hold some of them only.
        mean: mean of each channel over the training images, 0..255; empty where it is measured when
            the records are prepared (`Source.info` then has it).
        std: standard deviation of each channel, likewise.
        image_size: (height, width) of every image, None where they differ.
        needs_data_dir: whether the user has to bring the files.
        frames_per_block: where the images are frames of drives, how many successive ones stay in
            the same half of the set; None where they are single images.
        image_format: how an image is encoded when its prepared record holds it at another size:
            "png" or "jpeg".
        ignore_label: the class id that losses and metrics leave out.
        channels: channels of an image: 1 (gray), 3 (RGB) or 4 (RGB and one more).
        image_bits: 8, or 16 where the files hold 0..65535 (the pipeline divides by 257).
        color_labels: whether a label map is an RGB image whose colours tell the classes.
        unlabelled_splits: splits that are published without label maps.
        max_image_pixels: largest height times width of an image file that is read.
    """

    name: str
    class_names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    label_ids: Mapping[int, int]
    splits: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int] | None = None
    needs_data_dir: bool = True
    frames_per_block: int | None = None
    image_format: str = "png"
    ignore_label: int = IGNORE_LABEL
    channels: int = 3
    image_bits: int = 8
    color_labels: bool = False
    unlabelled_splits: tuple[str, ...] = ()
    max_image_pixels: int = MAX_IMAGE_PIXELS

    @property
    def num_classes(self) -> int:
        """Number of classes; the ignored label is not one."""
        return len(self.class_names)

    @property
    def palette(self) -> np.ndarray:
        """uint8 [num_classes, 3]: the colour of each class id."""
        return np.array(self.colors, np.uint8)

    def class_ids(self, label: np.ndarray) -> np.ndarray:
        """Maps stored label ids to class ids.

        Args:
            label: integers of any shape, label ids as the data set stores them.

        Returns:
            uint8 of the same shape: class ids, `ignore_label` where a pixel has no class.

        Raises:
            ValueError: for a label id that the data set does not have.
        """
        label = np.asarray(label)
        ids = np.array(sorted(self.label_ids), np.int64)
        place = np.searchsorted(ids, label).clip(max=len(ids) - 1) if self.color_labels else label
        if not self.color_labels:
            # Through a table: on 8 and 16 bit this is many times faster than the search.
            table = np.full(ids[-1] + 2, len(ids), np.int64)
            table[ids] = np.arange(len(ids))
            place = table[np.where((label < 0) | (label > ids[-1]), ids[-1] + 1, label)]
        known = place < len(ids)
        place = np.where(known, place, 0)
        known &= ids[place] == label
        if not known.all():
            strange = np.unique(label[~known]).tolist()
            found = ", ".join(self._label_text(i) for i in strange[:5])
            if len(strange) > 5:
                found += (
                    f" and {len(strange) - 5} more (so many come from resizing a mask with "
                    "interpolation, or from a lossy format: make it anew from its source)"
                )
            raise UserError(f"label ids of {self.name} are {self._known_labels()}; found {found}")
        return np.array([self.label_ids[int(i)] for i in ids], np.uint8)[place]

    def stored_labels(self, class_ids: np.ndarray) -> np.ndarray:
        """Maps class ids back to what the data set's own label maps hold.

        Args:
            class_ids: integers [H, W], 0..num_classes - 1.

        Returns:
            uint8 or uint16 [H, W] of label ids, of each class the smallest; uint8 [H, W, 3] where
            the label maps are colours.
        """
        first = {class_id: i for i, class_id in sorted(self.label_ids.items(), reverse=True)}
        table = np.array([first[class_id] for class_id in range(self.num_classes)])
        if self.color_labels:
            colors = np.stack([table >> 16, table >> 8 & 255, table & 255], axis=-1)
            return colors.astype(np.uint8)[class_ids]
        return table.astype(np.uint8 if table.max() < 256 else np.uint16)[class_ids]

    def _known_labels(self) -> str:
        if not self.color_labels:
            return _ranges(self.label_ids)
        return ", ".join(self._label_text(i) for i in sorted(self.label_ids)[:8]) + (
            ", ..." if len(self.label_ids) > 8 else ""
        )

    def _label_text(self, label_id: int) -> str:
        if not self.color_labels:
            return str(label_id)
        return f"({label_id >> 16}, {label_id >> 8 & 255}, {label_id & 255})"


def packed_color(color: Sequence[int]) -> int:
    """Returns the label id of a colour (red, green, blue): red * 65536 + green * 256 + blue."""
    red, green, blue = color
    return (red << 16) + (green << 8) + blue


def voc_colors(ids: Iterable[int]) -> tuple[tuple[int, int, int], ...]:
    """Returns colours of the PASCAL VOC colour map: id 0 is black, no two of 0..255 are alike.

    The bits of the id are assigned to red, green and blue in turn, as their highest bits first.
    """
    colors = []
    for i in ids:
        color = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                color[channel] |= (i >> (3 * bit + channel) & 1) << (7 - bit)
        colors.append((color[0], color[1], color[2]))
    return tuple(colors)


@dataclasses.dataclass(frozen=True)
class RawExample:
    """An example as its data set stores it.

    Attributes:
        image_id: its id, unique in its split.
        group: its city or drive; "" where the set has no groups.
        image: the encoded image file; empty where the file cannot be read.
        label: the encoded label map of label ids; likewise.
        image_path: the image's file, for messages.
        label_path: the label map's file, for messages.
    """

    image_id: str
    group: str
    image: bytes
    label: bytes
    image_path: str = ""
    label_path: str = ""


@dataclasses.dataclass(frozen=True)
class Defect:
    """A problem of one file that the listing of the files shows.

    Attributes:
        kind: a short name, such as "missing mask".
        path: the file.
        text: what is wrong, naming the file.
        fatal: whether it has to be fixed before records can be prepared.
        missing: whether a file is missing.
    """

    kind: str
    path: str
    text: str
    fatal: bool = True
    missing: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawDataset:
    """The files of one data set, listed but not yet read.

    Attributes:
        info: the description of the set.
        splits: the names of the splits that are there.
        ids: returns the image ids of a split, always in the same order.
        read: reads the example of a split and an id, from several threads at a time; None where
            the set leaves this image out.
        root: the folder of the files, for messages; None for a generated set.
        files: the files that the examples are read from, by their names below `root`.
        settings: whatever else the examples depend on, as JSON values.
        defects: problems of the listing.
        notes: what was concluded from the files, for the user to know.
        records_fingerprint: of the records that stand for the files, which are not there.
    """

    info: Dataset
    splits: tuple[str, ...]
    ids: Callable[[str], Sequence[str]]
    read: Callable[[str, str], RawExample | None]
    root: Path | None = None
    files: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    defects: tuple[Defect, ...] = ()
    notes: tuple[str, ...] = ()
    records_fingerprint: str | None = None

    def raise_defects(self) -> None:
        """Raises the first defect that keeps the set from being prepared.

        Raises:
            UserError: naming the file.
            MissingFileError: where a file is missing.
        """
        for defect in self.defects:
            if defect.fatal:
                raise (MissingFileError if defect.missing else UserError)(defect.text)


def absent_classes_note(info: Dataset, split: str, class_pixels: Sequence[int]) -> str | None:
    """Returns a line that names the classes without one pixel; None where there are none.

    Args:
        info: description of the set.
        split: name of the split.
        class_pixels: pixels of each class in the split.
    """
    absent = [name for name, count in zip(info.class_names, class_pixels, strict=True) if not count]
    if not absent:
        return None
    shown = ", ".join(absent[:8]) + (", ..." if len(absent) > 8 else "")
    what = f"class {shown} has" if len(absent) == 1 else f"{len(absent)} classes ({shown}) have"
    return (
        f"{split} of {info.name}: {what} not one pixel, so nothing is learnt of it, and its IoU is "
        "no score: compare the ids of the label maps with those of the classes"
    )


def in_memory(info: Dataset, splits: Mapping[str, Sequence[RawExample]]) -> RawDataset:
    """Returns a data set of examples that are in memory."""
    by_id = {split: {e.image_id: e for e in examples} for split, examples in splits.items()}
    return RawDataset(
        info=info,
        splits=tuple(splits),
        ids=lambda split: [example.image_id for example in splits[split]],
        read=lambda split, image_id: by_id[split][image_id],
    )


def _ranges(ids: Iterable[int]) -> str:
    """Writes ids as ranges: 0..11, 255."""
    ids = sorted(ids)
    starts = [i for i in ids if i - 1 not in ids]
    ends = [i for i in ids if i + 1 not in ids]
    return ", ".join(f"{a}..{b}" if a < b else str(a) for a, b in zip(starts, ends, strict=True))
