"""Cityscapes through TFDS's own builder, from the two official zip files.

TFDS unpacks the zips and stores label ids at full size; both are removed again once the records
(train ids, at the size that was asked for) are prepared. Meanwhile the cache directory holds the
images twice, which is about 25 GB.
"""

import zipfile
from pathlib import Path, PurePosixPath

from auto_deeplab_tf.data.origin import Origin

_IMAGES = ("leftImg8bit_trainvaltest.zip", "leftImg8bit", "_leftImg8bit.png")
_LABELS = ("gtFine_trainvaltest.zip", "gtFine", "_gtFine_labelIds.png")
_SPLITS = {"train": "train", "val": "validation"}


def find(data_dir: Path) -> Origin:
    """Looks into the zip files' directories, so that what TFDS would stumble over is named first.

    Raises:
        FileNotFoundError: where a zip, or the label map of an image, is missing.
        ValueError: for a zip that is cut, an empty split, or a file that does not belong.
    """
    if not data_dir.is_dir():
        raise FileNotFoundError(f"--data_dir={data_dir} is not a directory")
    images = _members(data_dir, *_IMAGES)
    labels = _members(data_dir, *_LABELS)
    for split, ids in images.items():
        missing = sorted(ids - labels[split])
        if missing:
            raise FileNotFoundError(
                f"{data_dir / _LABELS[0]} has no label map for {len(missing)} images of {split}, "
                f"the first is {missing[0]}"
            )
    files = {name: data_dir / name for name in (_IMAGES[0], _LABELS[0])}
    return Origin(
        splits=_SPLITS,
        builder="tensorflow_datasets.datasets.cityscapes.cityscapes_dataset_builder:Builder",
        builder_options={"config": "semantic_segmentation"},
        manual_dir=data_dir,
        image_key="image_left",
        label_key="segmentation_label",
        group_of=lambda image_id: image_id.split("_")[0],
        files=files,
    )


def _members(data_dir: Path, archive: str, folder: str, suffix: str) -> dict[str, set[str]]:
    """Ids in each split of a zip file."""
    path = data_dir / archive
    if not path.is_file():
        raise FileNotFoundError(
            f"--data_dir={data_dir} has no {archive}: put {_IMAGES[0]} and {_LABELS[0]} of "
            "cityscapes-dataset.com there"
        )
    try:
        with zipfile.ZipFile(path) as file:
            names = [PurePosixPath(name) for name in file.namelist() if not name.endswith("/")]
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(
            f"{path} is not a complete zip file ({error}): download it again"
        ) from error
    # The builder lists these folders of both zips, that of the test split too.
    ids: dict[str, set[str]] = {split: set() for split in ("train", "val", "test")}
    for name in names:
        if len(name.parts) != 4 or name.parts[0] != folder or name.parts[1] not in ids:
            continue
        if name.name.endswith(suffix):
            ids[name.parts[1]].add(name.name.removesuffix(suffix))
        elif folder == _IMAGES[1]:
            raise ValueError(f"{path}: {name} does not belong there (expected *{suffix})")
    for split, members in ids.items():
        if not members:
            raise ValueError(f"{path} has no images in {folder}/{split}/CITY/*{suffix}")
    return ids
