"""What is known of each data set: classes, colours, statistics, how label ids become class ids.

Class ids (train ids) are contiguous, 0 to C - 1; 255 is ignored by losses and metrics. Stored label
ids are those of the data set's own files.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from auto_deeplab_tf.data.label_tables import ADE20K_NAMES, VOC_NAMES, voc_colors
from auto_deeplab_tf.errors import UserError

IGNORE_LABEL = 255
# ImageNet's, as they are used with photographs of all kinds: the same for COCO and VOC, so that a
# network goes from one to the other unchanged.
_PHOTOGRAPHS_MEAN = (123.675, 116.28, 103.53)
_PHOTOGRAPHS_STD = (58.395, 57.12, 57.375)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One data set.

    Attributes:
        name: the name that `--dataset` takes.
        class_names: one name per class id.
        colors: one (red, green, blue) per class id.
        label_ids: class id of each stored label id, `ignore_label` where it is not a class. A label
            id that is not a key is an error in the data. Where the label maps are colours, the ids
            are `packed_color`s.
        splits: the splits that the set can have; a copy may hold some of them only.
        mean: mean of each channel over the training images, 0..255; empty where it is measured when
            the records are prepared (`Source.info` then has it).
        std: standard deviation of each channel, likewise.
        class_frequencies: share of each class among all pixels of the training images, ignored ones
            included in the total; None where it is not known before the data are read
            (`Source.class_frequencies` counts them).
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
    """

    name: str
    class_names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    label_ids: Mapping[int, int]
    splits: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_frequencies: tuple[float, ...] | None = None
    image_size: tuple[int, int] | None = None
    needs_data_dir: bool = True
    frames_per_block: int | None = None
    image_format: str = "png"
    ignore_label: int = IGNORE_LABEL
    channels: int = 3
    image_bits: int = 8
    color_labels: bool = False
    unlabelled_splits: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
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
            strange = np.unique(label[~known])[:5].tolist()
            raise UserError(
                f"label ids of {self.name} are {self._known_labels()}; "
                f"found {', '.join(self._label_text(i) for i in strange)}"
            )
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
    """The label id of a colour (red, green, blue): red * 65536 + green * 256 + blue."""
    red, green, blue = color
    return (red << 16) + (green << 8) + blue


def names() -> tuple[str, ...]:
    """The names that `get` takes: the sets that are described here rather than by their user."""
    return tuple(_DATASETS)


def get(name: str) -> Dataset:
    """Returns the description of a data set.

    Raises:
        ValueError: for a name that is not in the catalog.
    """
    if name not in _DATASETS:
        raise UserError(f"--dataset must be one of {', '.join(_DATASETS)}. Received: {name!r}")
    return _DATASETS[name]


def _ranges(ids) -> str:
    """Writes sorted ids as ranges: 0..11, 255."""
    ids = sorted(ids)
    starts = [i for i in ids if i - 1 not in ids]
    ends = [i for i in ids if i + 1 not in ids]
    return ", ".join(f"{a}..{b}" if a < b else str(a) for a, b in zip(starts, ends, strict=True))


# Cityscapes' own table: (name, label id, train id, colour).
# Source: cityscapesscripts/helpers/labels.py, github.com/mcordts/cityscapesScripts at
# 0bcc4a72549590fd80d71d8465be3a0c4b1c06e8. Label id -1 (license plate) is never drawn in the
# archives' labelIds images.
CITYSCAPES_LABELS = (
    ("unlabeled", 0, 255, (0, 0, 0)),
    ("ego vehicle", 1, 255, (0, 0, 0)),
    ("rectification border", 2, 255, (0, 0, 0)),
    ("out of roi", 3, 255, (0, 0, 0)),
    ("static", 4, 255, (0, 0, 0)),
    ("dynamic", 5, 255, (111, 74, 0)),
    ("ground", 6, 255, (81, 0, 81)),
    ("road", 7, 0, (128, 64, 128)),
    ("sidewalk", 8, 1, (244, 35, 232)),
    ("parking", 9, 255, (250, 170, 160)),
    ("rail track", 10, 255, (230, 150, 140)),
    ("building", 11, 2, (70, 70, 70)),
    ("wall", 12, 3, (102, 102, 156)),
    ("fence", 13, 4, (190, 153, 153)),
    ("guard rail", 14, 255, (180, 165, 180)),
    ("bridge", 15, 255, (150, 100, 100)),
    ("tunnel", 16, 255, (150, 120, 90)),
    ("pole", 17, 5, (153, 153, 153)),
    ("polegroup", 18, 255, (153, 153, 153)),
    ("traffic light", 19, 6, (250, 170, 30)),
    ("traffic sign", 20, 7, (220, 220, 0)),
    ("vegetation", 21, 8, (107, 142, 35)),
    ("terrain", 22, 9, (152, 251, 152)),
    ("sky", 23, 10, (70, 130, 180)),
    ("person", 24, 11, (220, 20, 60)),
    ("rider", 25, 12, (255, 0, 0)),
    ("car", 26, 13, (0, 0, 142)),
    ("truck", 27, 14, (0, 0, 70)),
    ("bus", 28, 15, (0, 60, 100)),
    ("caravan", 29, 255, (0, 0, 90)),
    ("trailer", 30, 255, (0, 0, 110)),
    ("train", 31, 16, (0, 80, 100)),
    ("motorcycle", 32, 17, (0, 0, 230)),
    ("bicycle", 33, 18, (119, 11, 32)),
)
CITYSCAPES_LABEL_IDS = {name: label_id for name, label_id, _, _ in CITYSCAPES_LABELS}


def _cityscapes() -> Dataset:
    classes = [row for row in CITYSCAPES_LABELS if row[2] != IGNORE_LABEL]
    return Dataset(
        name="cityscapes",
        class_names=tuple(name for name, _, _, _ in classes),
        colors=tuple(color for _, _, _, color in classes),
        label_ids={label_id: train_id for _, label_id, train_id, _ in CITYSCAPES_LABELS},
        splits=("train", "val"),
        unlabelled_splits=("test",),
        # Over the 2,975 training images, as published with PyTorch Cityscapes code.
        mean=(73.16, 82.91, 72.39),
        std=(47.68, 48.49, 47.74),
        image_size=(1024, 2048),
        # A prepared PNG of 512x1024 is four times the size of a JPEG of quality 95 and five times
        # as slow to decode.
        image_format="jpeg",
    )


# The generated scenes hold Cityscapes label ids; their classes are this subset, in this order.
# Traffic lights and signs are one class, as in CamVid: each alone is too rare in a few hundred
# small images to be measured.
_SCENES_CLASSES = (
    ("road", ("road",)),
    ("sidewalk", ("sidewalk",)),
    ("building", ("building",)),
    ("fence", ("fence",)),
    ("pole", ("pole",)),
    ("traffic sign", ("traffic sign", "traffic light")),
    ("vegetation", ("vegetation",)),
    ("terrain", ("terrain",)),
    ("sky", ("sky",)),
    ("person", ("person",)),
    ("car", ("car",)),
)


def _scenes() -> Dataset:
    color = {name: color for name, _, _, color in CITYSCAPES_LABELS}
    class_of = {member: i for i, (_, members) in enumerate(_SCENES_CLASSES) for member in members}
    return Dataset(
        name="scenes",
        class_names=tuple(name for name, _ in _SCENES_CLASSES),
        colors=tuple(color[name] for name, _ in _SCENES_CLASSES),
        label_ids={
            label_id: class_of.get(name, IGNORE_LABEL) for name, label_id, _, _ in CITYSCAPES_LABELS
        },
        splits=("train", "val"),
        mean=(93.3, 92.2, 92.1),
        std=(46.5, 45.0, 48.0),
        image_size=(128, 256),
        needs_data_dir=False,
    )


def _camvid() -> Dataset:
    """The 11-class, 480x360 version of the SegNet tutorial; statistics over its train split."""
    # Pixels of each class in train, void last.
    pixels = (
        10682767, 14750079, 623349, 20076880, 2845085, 6166762, 743859, 714595, 3719877, 405385,
        184967, 2503995,
    )  # fmt: skip
    return Dataset(
        name="camvid",
        class_names=(
            "Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car",
            "Pedestrian", "Bicyclist",
        ),
        colors=(
            (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222),
            (128, 128, 0), (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
        ),
        label_ids={**{i: i for i in range(11)}, 11: IGNORE_LABEL},
        splits=("train", "val", "test"),
        mean=(105.0, 108.4, 110.3),
        std=(78.3, 79.5, 78.3),
        frames_per_block=10,
        class_frequencies=tuple(n / sum(pixels) for n in pixels[:-1]),
    )  # fmt: skip


def _voc(name: str) -> Dataset:
    """VOC's 21 classes; COCO is mapped to them by `coco`."""
    return Dataset(
        name=name,
        class_names=VOC_NAMES,
        colors=voc_colors(range(len(VOC_NAMES))),
        label_ids={**{i: i for i in range(len(VOC_NAMES))}, 255: IGNORE_LABEL},
        splits=("train", "val"),
        unlabelled_splits=("test",),
        mean=_PHOTOGRAPHS_MEAN,
        std=_PHOTOGRAPHS_STD,
    )


def _ade20k() -> Dataset:
    """SceneParsing: label id 0 is everything that is none of the 150 classes."""
    return Dataset(
        name="ade20k",
        class_names=ADE20K_NAMES,
        # The set's own colours give two classes the same one.
        colors=voc_colors(range(1, len(ADE20K_NAMES) + 1)),
        label_ids={0: IGNORE_LABEL, **{i + 1: i for i in range(len(ADE20K_NAMES))}},
        splits=("train", "val"),
        unlabelled_splits=("test",),
        mean=_PHOTOGRAPHS_MEAN,
        std=_PHOTOGRAPHS_STD,
    )


def _cityscapes_coarse() -> Dataset:
    """Cityscapes with its 19,998 coarsely labelled images beside the 2,975 training images."""
    return dataclasses.replace(_cityscapes(), name="cityscapes_coarse")


_DATASETS = {
    dataset.name: dataset
    for dataset in (
        *(_scenes(), _camvid(), _cityscapes(), _cityscapes_coarse()),
        *(_voc("voc2012"), _voc("coco"), _ade20k()),
    )
}
