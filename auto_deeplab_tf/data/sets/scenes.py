"""The embedded default data: generated street scenes, labelled with Cityscapes label ids.

`auto_deeplab_tf.data.scenes` draws them. The cities of `val` do not occur in `train`.
"""

from pathlib import Path

from auto_deeplab_tf.data import image_files, scenes
from auto_deeplab_tf.data.dataset import IGNORE_LABEL, Dataset, RawDataset, RawExample
from auto_deeplab_tf.data.sets import cityscapes

# The generated scenes hold Cityscapes label ids; their classes are this subset, in this order.
# Traffic lights and signs are one class, as in CamVid: each alone is too rare in a few hundred
# small images to be measured.
_CLASSES = (
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
_COLORS = {name: color for name, _, _, color in cityscapes.LABEL_TABLE}
_CLASS_OF = {member: i for i, (_, members) in enumerate(_CLASSES) for member in members}

DATASET = Dataset(
    name="scenes",
    class_names=tuple(name for name, _ in _CLASSES),
    colors=tuple(_COLORS[name] for name, _ in _CLASSES),
    label_ids={
        label_id: _CLASS_OF.get(name, IGNORE_LABEL)
        for name, label_id, _, _ in cityscapes.LABEL_TABLE
    },
    splits=("train", "val"),
    mean=(93.3, 92.2, 92.1),
    std=(46.5, 45.0, 48.0),
    image_size=scenes.IMAGE_SIZE,
    needs_data_dir=False,
)

_CITIES = {
    "train": (
        *("arnfeld", "belmar", "corvin", "dunwick"),
        *("elsburg", "fenholt", "garmouth", "hallin"),
    ),
    "val": ("ingrath", "jarrow", "kestrel"),
}
IMAGES_PER_CITY = {"train": 42, "val": 24}
# Part of the fingerprint of the records: raise it when the same id gives another scene.
_VERSION = 1


def find(data_dir: Path | None = None) -> RawDataset:
    """Lists the scenes, which are drawn when they are read; `data_dir` is None."""
    return RawDataset(
        info=DATASET,
        splits=DATASET.splits,
        ids=image_ids,
        read=_read,
        settings={"version": _VERSION, "images": IMAGES_PER_CITY, "cities": _CITIES},
    )


def image_ids(split: str) -> list[str]:
    """Returns the ids of a split's images in the form of Cityscapes: CITY_SEQUENCE_FRAME."""
    cities, count = _CITIES[split], IMAGES_PER_CITY[split]
    return [f"{city}_{i:06d}_000019" for city in cities for i in range(count)]


def _read(split: str, image_id: str) -> RawExample:
    image, label = (image_files.encode_png(array) for array in scenes.render(image_id))
    return RawExample(image_id, image_id.split("_")[0], image, label)
