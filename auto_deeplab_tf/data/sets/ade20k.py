"""ADE20K SceneParsing (ADEChallengeData2016): 150 classes, label id 0 ignored.

    DATA_DIR/images/{training,validation}/ADE_train_00000001.jpg
    DATA_DIR/annotations/{training,validation}/ADE_train_00000001.png

DATA_DIR may also be the parent of that folder.
"""

from pathlib import Path

from auto_deeplab_tf.data.dataset import (
    IGNORE_LABEL,
    PHOTOGRAPHS_MEAN,
    PHOTOGRAPHS_STD,
    Dataset,
    Defect,
    RawDataset,
    voc_colors,
)
from auto_deeplab_tf.data.sets import pairs

# In the order of the label ids 1..150. Source: data/ade20k_constants.py of
# github.com/google-research/deeplab2 at 64bc1c1a6505b6cd1779b65f9127180840b8a4fa.
_NAMES = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk,
person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf,
house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub,
railing, cushion, base, box, column, signboard, chest-of-drawers, counter, sand, sink,
skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool-table, pillow,
screen-door, stairway, river, bridge, bookcase, blind, coffee-table, toilet, flower, book, hill,
bench, countertop, stove, palm, kitchen-island, computer, swivel-chair, boat, bar,
arcade-machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth,
television, airplane, dirt-track, apparel, pole, land, bannister, escalator, ottoman, bottle,
buffet, poster, stage, van, ship, fountain, conveyer-belt, canopy, washer, plaything,
swimming-pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food,
step, tank, trade-name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket,
sculpture, hood, sconce, vase, traffic-light, tray, ashcan, fan, pier, crt-screen, plate,
monitor, bulletin-board, shower, radiator, glass, clock, flag
"""
_CLASSES = tuple(" ".join(name.split()) for name in _NAMES.split(","))

DATASET = Dataset(
    name="ade20k",
    class_names=_CLASSES,
    # The set's own colours give two classes the same one.
    colors=voc_colors(range(1, len(_CLASSES) + 1)),
    label_ids={0: IGNORE_LABEL, **{i + 1: i for i in range(len(_CLASSES))}},
    splits=("train", "val"),
    unlabelled_splits=("test",),
    mean=PHOTOGRAPHS_MEAN,
    std=PHOTOGRAPHS_STD,
)

_FOLDERS = {"train": "training", "val": "validation"}


def find(data_dir: Path) -> RawDataset:
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
            splits[split], _, found = pairs.of_folders(images, labels)
            defects += found
    return pairs.raw_dataset(DATASET, root, splits, defects)
