"""Cityscapes through TFDS's own builder, from the two official zip files.

TFDS unpacks the zips and stores label ids at full size; both are removed again once the records
(train ids, at the size that was asked for) are prepared. Meanwhile the cache directory holds the
images twice, which is about 25 GB.
"""

import dataclasses
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from auto_deeplab_tf.data import catalog
from auto_deeplab_tf.data.origin import Defect, Origin, RawExample
from auto_deeplab_tf.errors import MissingFileError, UserError


@dataclasses.dataclass(frozen=True)
class Archive:
    """One zip file of cityscapes-dataset.com: FOLDER/SPLIT/CITY/ID_SUFFIX."""

    name: str
    folder: str
    suffix: str

    def member(self, split: str, image_id: str) -> str:
        city = image_id.split("_")[0]
        return f"{self.folder}/{split}/{city}/{image_id}{self.suffix}"


IMAGES = Archive("leftImg8bit_trainvaltest.zip", "leftImg8bit", "_leftImg8bit.png")
LABELS = Archive("gtFine_trainvaltest.zip", "gtFine", "_gtFine_labelIds.png")


def find(data_dir: Path) -> Origin:
    """Looks into the zip files' directories, so that what TFDS would stumble over is named first.

    Raises:
        FileNotFoundError: where a zip is missing.
        ValueError: for a zip that is cut.
    """
    # The builder lists these folders of both zips, that of the test split too.
    ids, defects = members(data_dir, IMAGES, LABELS, ("train", "val", "test"))
    return Origin(
        info=catalog.get("cityscapes"),
        splits={"train": "train", "val": "validation"},
        builder="tensorflow_datasets.datasets.cityscapes.cityscapes_dataset_builder:Builder",
        builder_options={"config": "semantic_segmentation"},
        manual_dir=data_dir,
        image_key="image_left",
        label_key="segmentation_label",
        group_of=city_of,
        read=lambda split: read(data_dir, IMAGES, LABELS, split, ids[split]),
        files={name: data_dir / name for name in (IMAGES.name, LABELS.name)},
        defects=tuple(defects),
    )


def city_of(image_id: str) -> str:
    return image_id.split("_")[0]


def members(
    data_dir: Path, images: Archive, labels: Archive, splits: Sequence[str]
) -> tuple[dict[str, list[str]], list[Defect]]:
    """Ids in each split that have an image and a label map, and what has only one of them."""
    if not data_dir.is_dir():
        raise MissingFileError(f"--data_dir={data_dir} is not a directory")
    image_ids, defects = _members(data_dir, images, splits, images.name, labels.name)
    label_ids, _ = _members(data_dir, labels, splits, images.name, labels.name)
    for split in splits:
        for archive, here, there in (
            (images, image_ids[split], label_ids[split]),
            (labels, label_ids[split], image_ids[split]),
        ):
            other = labels if archive is images else images
            for image_id in sorted(set(here) - set(there)):
                kind = "missing mask" if other is labels else "missing image"
                name = other.member(split, image_id)
                text = (
                    f"{data_dir / other.name} has no {name}, the partner of one in {archive.name}"
                )
                fatal = other is labels
                defects.append(Defect(kind, name, text, fatal=fatal, missing=True))
    both = {split: sorted(set(image_ids[split]) & set(label_ids[split])) for split in splits}
    return both, defects


def read(
    data_dir: Path, images: Archive, labels: Archive, split: str, ids: Sequence[str]
) -> Iterator[RawExample]:
    """Reads examples straight from the zip files."""
    with (
        zipfile.ZipFile(data_dir / images.name) as image_zip,
        zipfile.ZipFile(data_dir / labels.name) as label_zip,
    ):
        for image_id in ids:
            image, label = images.member(split, image_id), labels.member(split, image_id)
            yield RawExample(
                image_id,
                city_of(image_id),
                _content(image_zip, image),
                _content(label_zip, label),
                f"{images.name}:{image}",
                f"{labels.name}:{label}",
            )


def _content(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of a zip; what is damaged is left to whoever decodes it, so that it can be named."""
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError):
        return b""


def _members(
    data_dir: Path, archive: Archive, splits: Sequence[str], *needed: str
) -> tuple[Mapping[str, list[str]], list[Defect]]:
    """Ids in each split of a zip file, and what does not belong there."""
    path = data_dir / archive.name
    if not path.is_file():
        raise MissingFileError(
            f"--data_dir={data_dir} has no {archive.name}: put {' and '.join(needed)} of "
            "cityscapes-dataset.com there"
        )
    try:
        with zipfile.ZipFile(path) as file:
            names = [PurePosixPath(name) for name in file.namelist() if not name.endswith("/")]
    except (zipfile.BadZipFile, EOFError) as error:
        raise UserError(
            f"{path} is not a complete zip file ({error}): download it again"
        ) from error
    ids: dict[str, list[str]] = {split: [] for split in splits}
    defects = []
    for name in names:
        if len(name.parts) != 4 or name.parts[0] != archive.folder or name.parts[1] not in ids:
            continue
        if name.name.endswith(archive.suffix):
            ids[name.parts[1]].append(name.name.removesuffix(archive.suffix))
        elif archive.folder == IMAGES.folder:
            text = f"{path}: {name} does not belong there (expected *{archive.suffix})"
            defects.append(Defect("stray file", str(name), text))
    for split, found in ids.items():
        if not found:
            pattern = f"{archive.folder}/{split}/CITY/*{archive.suffix}"
            raise UserError(f"{path} has no images in {pattern}")
    return ids, defects
