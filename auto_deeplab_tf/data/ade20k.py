"""ADE20K SceneParsing (ADEChallengeData2016): 150 classes, label id 0 ignored.

    DATA_DIR/images/{training,validation}/ADE_train_00000001.jpg
    DATA_DIR/annotations/{training,validation}/ADE_train_00000001.png

DATA_DIR may also be the parent of that folder.
"""

from pathlib import Path

from auto_deeplab_tf.data import catalog, pairs
from auto_deeplab_tf.data.origin import Defect, Origin

_FOLDERS = {"train": "training", "val": "validation"}


def find(data_dir: Path) -> Origin:
    """Lists the files of every split that is there.

    Raises:
        FileNotFoundError: where the folder, or a split's folder of label maps, is missing.
    """
    root = pairs.root_of(data_dir, "images/training", "ADEChallengeData2016")
    splits: dict[str, pairs.Pairs] = {}
    defects: list[Defect] = []
    for split, folder in _FOLDERS.items():
        images, labels = root / "images" / folder, root / "annotations" / folder
        if images.is_dir():
            splits[split], found = pairs.of_folders(images, labels, (".jpg", ".jpeg", ".png"))
            defects += found
    return pairs.origin(
        catalog.get("ade20k"),
        root,
        splits,
        defects,
        builder="auto_deeplab_tf.data.builders.ade20k:Ade20k",
        group_of=lambda image_id: "",
    )
