"""Cityscapes, read from the two official zip files: 19 classes."""

import dataclasses
import functools
import hashlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from auto_deeplab_tf.data.dataset import IGNORE_LABEL, Dataset, Defect, RawDataset, RawExample
from auto_deeplab_tf.errors import MissingFileError, UserError

# The set's own table: (name, label id, train id, colour).
# Source: cityscapesscripts/helpers/labels.py, github.com/mcordts/cityscapesScripts at
# 0bcc4a72549590fd80d71d8465be3a0c4b1c06e8. Label id -1 (license plate) is never drawn in the
# archives' labelIds images.
# Ten times what an image of the set takes without compression.
_MAX_MEMBER_BYTES = 2**26
LABEL_TABLE = (
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
LABEL_IDS = {name: label_id for name, label_id, _, _ in LABEL_TABLE}
_CLASSES = [row for row in LABEL_TABLE if row[2] != IGNORE_LABEL]

DATASET = Dataset(
    name="cityscapes",
    class_names=tuple(name for name, _, _, _ in _CLASSES),
    colors=tuple(color for _, _, _, color in _CLASSES),
    label_ids={label_id: train_id for _, label_id, train_id, _ in LABEL_TABLE},
    splits=("train", "val"),
    unlabelled_splits=("test",),
    # Over the 2,975 training images, as published with PyTorch Cityscapes code.
    mean=(73.16, 82.91, 72.39),
    std=(47.68, 48.49, 47.74),
    image_size=(1024, 2048),
    # A prepared PNG of 512x1024 is four times the size of a JPEG of quality 95 and five times as
    # slow to decode.
    image_format="jpeg",
)


@dataclasses.dataclass(frozen=True)
class Archive:
    """One zip file of cityscapes-dataset.com: FOLDER/SPLIT/CITY/ID_SUFFIX."""

    name: str
    folder: str
    suffix: str

    def member(self, split: str, image_id: str) -> str:
        """The file of an image id in the archive."""
        return f"{self.folder}/{split}/{_city(image_id)}/{image_id}{self.suffix}"


IMAGES = Archive("leftImg8bit_trainvaltest.zip", "leftImg8bit", "_leftImg8bit.png")
LABELS = Archive("gtFine_trainvaltest.zip", "gtFine", "_gtFine_labelIds.png")


@dataclasses.dataclass(frozen=True)
class Part:
    """One folder of images in one zip file, and its label maps in another."""

    images: Archive
    labels: Archive
    folder: str


FINE_TRAIN, FINE_VAL = (Part(IMAGES, LABELS, split) for split in ("train", "val"))


def find(data_dir: Path) -> RawDataset:
    """Looks into the zip files' directories.

    Raises:
        MissingFileError: where a zip is missing.
        UserError: for a zip that is cut.
    """
    return from_parts(DATASET, data_dir, {"train": [FINE_TRAIN], "val": [FINE_VAL]})


def from_parts(info: Dataset, data_dir: Path, splits: Mapping[str, Sequence[Part]]) -> RawDataset:
    """Lists the examples of splits that are made of folders in zip files.

    Raises:
        MissingFileError: where a zip is missing.
        UserError: for a zip that is cut, or has no images of a split.
    """
    if not data_dir.is_dir():
        raise MissingFileError(f"data_dir={data_dir} is not a directory")
    part_of: dict[str, dict[str, Part]] = {}
    defects: list[Defect] = []
    names: dict[str, None] = {}
    for split, parts in splits.items():
        part_of[split] = {}
        for part in parts:
            image_ids, found = _members(data_dir, part, part.images)
            label_ids, _ = _members(data_dir, part, part.labels)
            defects += found + _unpaired(data_dir, part, set(image_ids), set(label_ids))
            part_of[split] |= {i: part for i in sorted({*image_ids} & {*label_ids})}
            names |= dict.fromkeys((part.images.name, part.labels.name))

    # One open file a zip: reading from several threads is allowed, and its directory is large.
    opened = functools.cache(lambda name: zipfile.ZipFile(data_dir / name))

    def read(split: str, image_id: str) -> RawExample:
        part = part_of[split][image_id]
        archives = (part.images, part.labels)
        members = [archive.member(part.folder, image_id) for archive in archives]
        image, label = (
            _content(opened(archive.name), member)
            for archive, member in zip(archives, members, strict=True)
        )
        paths = [f"{a.name}:{member}" for a, member in zip(archives, members, strict=True)]
        return RawExample(image_id, _city(image_id), image, label, *paths)

    return RawDataset(
        info=info,
        root=data_dir,
        splits=tuple(splits),
        ids=lambda split: tuple(part_of[split]),
        read=read,
        files={name: data_dir / name for name in names},
        settings={"contents": {name: _checksums(data_dir / name) for name in names}},
        defects=tuple(defects),
    )


def _city(image_id: str) -> str:
    return image_id.split("_")[0]


def _unpaired(data_dir: Path, part: Part, image_ids: set[str], label_ids: set[str]) -> list[Defect]:
    """What has only one of image and label map; a label map alone is no obstacle."""
    defects = []
    for kind, there, missing, ids in (
        ("missing mask", part.images, part.labels, image_ids - label_ids),
        ("missing image", part.labels, part.images, label_ids - image_ids),
    ):
        for image_id in sorted(ids):
            name = missing.member(part.folder, image_id)
            text = f"{data_dir / missing.name} has no {name}, the partner of one in {there.name}"
            fatal = missing is part.labels
            defects.append(Defect(kind, name, text, fatal=fatal, missing=True))
    return defects


def _checksums(path: Path) -> str:
    """Digest of the names, sizes and CRC-32s that the zip's directory holds of its files."""
    with zipfile.ZipFile(path) as file:
        rows = [(info.filename, info.file_size, info.CRC) for info in file.infolist()]
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def _content(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of a zip; what is damaged is left to whoever decodes it, so that it can be named."""
    if archive.getinfo(name).file_size > _MAX_MEMBER_BYTES:
        return b""  # a file of a few kB can declare gigabytes
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        return b""


def _members(data_dir: Path, part: Part, archive: Archive) -> tuple[list[str], list[Defect]]:
    """Ids in a folder of a zip file, and what does not belong there."""
    path = data_dir / archive.name
    if not path.is_file():
        raise MissingFileError(
            f"data_dir={data_dir} has no {archive.name}: put {part.images.name} and "
            f"{part.labels.name} of cityscapes-dataset.com there"
        )
    try:
        with zipfile.ZipFile(path) as file:
            names = [PurePosixPath(name) for name in file.namelist() if not name.endswith("/")]
    except (zipfile.BadZipFile, EOFError) as error:
        raise UserError(
            f"{path} is not a complete zip file ({error}): download it again"
        ) from error
    ids, defects = [], []
    for name in names:
        if len(name.parts) != 4 or name.parts[:2] != (archive.folder, part.folder):
            continue
        if name.name.endswith(archive.suffix):
            ids.append(name.name.removesuffix(archive.suffix))
        elif archive is part.images:
            text = f"{path}: {name} does not belong there (expected *{archive.suffix})"
            defects.append(Defect("stray file", str(name), text, fatal=False))
    if not ids:
        pattern = f"{archive.folder}/{part.folder}/CITY/*{archive.suffix}"
        raise UserError(f"{path} has no images in {pattern}")
    return ids, defects
