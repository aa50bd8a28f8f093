"""The data sets: one module each, with a description and a function that lists the user's files.

A module holds `DATASET`, a `dataset.Dataset` (but for a set that its user describes), and
`find(data_dir) -> dataset.RawDataset`. Adding a set is that module and its name in `_NAMES`.
"""

import dataclasses
import importlib
import os
from pathlib import Path
from types import ModuleType

from auto_deeplab_tf.config.options import MAX_IMAGE_PIXELS
from auto_deeplab_tf.data.dataset import Dataset, RawDataset
from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.files import check_local

_NAMES = (
    *("scenes", "camvid", "cityscapes", "cityscapes_coarse"),
    *("voc2012", "coco", "ade20k", "folder"),
)
_DESCRIBED_BY_USER = "folder"


def names() -> tuple[str, ...]:
    """Returns the names of all data sets."""
    return _NAMES


def describe(name: str) -> Dataset:
    """Returns the description of a data set other than `folder`, which its user describes.

    Raises:
        UserError: for a name that is not known.
    """
    return _module(name).DATASET


def has_files_described(name: str) -> bool:
    """Tells whether a set has files, and a description without them."""
    return name != _DESCRIBED_BY_USER and _module(name).DATASET.needs_data_dir


def find(
    name: str,
    data_dir: str | os.PathLike | None = None,
    dataset_config: str | os.PathLike | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
) -> RawDataset:
    """Lists the files of a data set.

    Args:
        name: a name of `names`.
        data_dir: folder of the user's files; None for a set that is generated.
        dataset_config: the JSON file that describes `folder`; None for dataset.json in data_dir.
        max_image_pixels: largest height times width of an image file that is read.

    Raises:
        UserError: for a name that is not known, or options that the set does not take.
        MissingFileError: where the data are not there.
    """
    check_local("data_dir", data_dir)
    check_local("dataset_config", dataset_config)
    module = _module(name)
    generated = name != _DESCRIBED_BY_USER and not module.DATASET.needs_data_dir
    if not generated and data_dir is None:
        raise UserError(f"dataset={name} needs data_dir, the folder that holds its files")
    if generated and data_dir is not None:
        raise UserError(
            f"dataset={name} takes no data_dir: it is generated. Received: {str(data_dir)!r}"
        )
    options = {}
    if dataset_config is not None:
        if name != _DESCRIBED_BY_USER:
            raise UserError(
                f"dataset_config describes dataset=folder only. Received: dataset={name}"
            )
        options["dataset_config"] = Path(dataset_config).expanduser()
    folder = None if data_dir is None else Path(data_dir).expanduser()
    raw = module.find(folder, **options)
    info = dataclasses.replace(raw.info, max_image_pixels=max_image_pixels)
    return dataclasses.replace(raw, info=info)


def _module(name: str) -> ModuleType:
    if name not in _NAMES:
        raise UserError(f"dataset must be one of {', '.join(_NAMES)}. Received: {name!r}")
    return importlib.import_module(f"{__name__}.{name}")
