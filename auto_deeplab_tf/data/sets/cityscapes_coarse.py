"""Cityscapes with the extra coarse set: training on the fine and the coarse labels together.

Read straight from the four official zip files. `train` holds the 2,975 fine images and the 19,998
of train_extra with their coarse labels; `val` is the fine one, so scores compare with `cityscapes`.
"""

import dataclasses
from pathlib import Path

from auto_deeplab_tf.data.dataset import RawDataset
from auto_deeplab_tf.data.sets import cityscapes

DATASET = dataclasses.replace(cityscapes.DATASET, name="cityscapes_coarse")
_EXTRA = cityscapes.Part(
    cityscapes.Archive("leftImg8bit_trainextra.zip", "leftImg8bit", "_leftImg8bit.png"),
    cityscapes.Archive("gtCoarse.zip", "gtCoarse", "_gtCoarse_labelIds.png"),
    "train_extra",
)


def find(data_dir: Path) -> RawDataset:
    """Looks into the zip files' directories.

    Raises:
        MissingFileError: where a zip is missing.
        UserError: for a zip that is cut.
    """
    splits = {"train": [cityscapes.FINE_TRAIN, _EXTRA], "val": [cityscapes.FINE_VAL]}
    return cityscapes.from_parts(DATASET, data_dir, splits)
