"""CamVid in the layout of the SegNet tutorial: 480x360, 11 classes, void 11.

    DATA_DIR/{train,val,test}/STEM.png or .jpg
    DATA_DIR/{train,val,test}annot/STEM.png

DATA_DIR may also be the parent of that folder. An image and its label map share their stem. The
lists (train.txt, ...) are not read: they name folders of the machine that they were made on.
"""

from pathlib import Path

from auto_deeplab_tf.data.dataset import IGNORE_LABEL, Dataset, Defect, RawDataset
from auto_deeplab_tf.data.sets import pairs
from auto_deeplab_tf.errors import MissingFileError

# Mean and deviation are those of the train split.
DATASET = Dataset(
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
)  # fmt: skip


def find(data_dir: Path) -> RawDataset:
    """Lists the files of every split that is there.

    Raises:
        FileNotFoundError: where the folder or a split's label folder is missing.
    """
    root = _root(data_dir)
    splits: dict[str, pairs.Pairs] = {}
    defects: list[Defect] = []
    for split in DATASET.splits:
        if (root / split).is_dir():
            splits[split], _, found = pairs.of_folders(root / split, root / f"{split}annot")
            defects += found
    return pairs.raw_dataset(
        DATASET,
        root,
        splits,
        defects,
        group_of=lambda image_id: image_id.split("_")[0],  # 0016E5_08550 -> drive 0016E5
    )


def _root(data_dir: Path) -> Path:
    """The folder that holds the splits: `data_dir`, or a folder in it."""
    if not data_dir.is_dir():
        raise MissingFileError(f"data_dir={data_dir} is not a directory")
    if any((data_dir / split).is_dir() for split in DATASET.splits):
        return data_dir
    inner = [
        folder
        for folder in sorted(data_dir.iterdir())
        if folder.is_dir() and any((folder / split).is_dir() for split in DATASET.splits)
    ]
    if len(inner) != 1:
        found = f"{len(inner)} folders that hold one" if inner else "none"
        raise MissingFileError(
            f"data_dir={data_dir} must hold train/, val/ or test/ of CamVid, or one folder that "
            f"does. Found: {found}"
        )
    return inner[0]
