"""Cityscapes with the extra coarse set: training on the fine and the coarse labels together.

Read straight from the four official zip files. `train` holds the 2,975 fine images and the 19,998
of train_extra with their coarse labels; `val` is the fine one, so scores compare with `cityscapes`.
"""

from collections.abc import Iterator
from pathlib import Path

from auto_deeplab_tf.data import catalog, cityscapes
from auto_deeplab_tf.data.origin import Origin, RawExample

EXTRA_IMAGES = cityscapes.Archive("leftImg8bit_trainextra.zip", "leftImg8bit", "_leftImg8bit.png")
EXTRA_LABELS = cityscapes.Archive("gtCoarse.zip", "gtCoarse", "_gtCoarse_labelIds.png")
_ARCHIVES = (cityscapes.IMAGES, cityscapes.LABELS, EXTRA_IMAGES, EXTRA_LABELS)


def find(data_dir: Path) -> Origin:
    """Looks into the zip files' directories.

    Raises:
        FileNotFoundError: where a zip is missing.
        ValueError: for a zip that is cut.
    """
    fine, defects = cityscapes.members(data_dir, *_ARCHIVES[:2], ("train", "val"))
    extra, extra_defects = cityscapes.members(data_dir, *_ARCHIVES[2:], ("train_extra",))

    def read(split: str) -> Iterator[RawExample]:
        yield from cityscapes.read(data_dir, *_ARCHIVES[:2], split, fine[split])
        if split == "train":
            yield from cityscapes.read(
                data_dir, *_ARCHIVES[2:], "train_extra", extra["train_extra"]
            )

    return Origin(
        info=catalog.get("cityscapes_coarse"),
        splits={"train": "train", "val": "val"},
        builder="auto_deeplab_tf.data.builders.cityscapes_coarse:CityscapesCoarse",
        manual_dir=data_dir,
        image_key="image",
        label_key="segmentation_label",
        group_of=cityscapes.city_of,
        read=read,
        files={archive.name: data_dir / archive.name for archive in _ARCHIVES},
        defects=(*defects, *extra_defects),
    )
