"""Small sets whose files lie, and are named and encoded, as those of the public sets."""

import json

import numpy as np
from PIL import Image

from auto_deeplab_tf.data.dataset import voc_colors

PALETTE = [value for color in voc_colors(range(256)) for value in color]


def image(rng, size):
    return Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))


def palette_mask(label):
    """A palette image, as VOC's are: the indices are the label ids."""
    mask = Image.fromarray(label).convert("P")
    mask.putdata(label.ravel().tolist())
    mask.putpalette(PALETTE)
    return mask


def voc_label(rng, size):
    label = rng.integers(0, 21, size, dtype=np.uint8)
    label[0] = 255
    return label


def write_voc(folder, train, val, extra=(), seed=0):
    """VOCdevkit/VOC2012 with images of `train`, `val` and `extra`; returns stem -> label ids."""
    root = folder / "VOCdevkit" / "VOC2012"
    rng = np.random.default_rng(seed)
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    labels = {}
    for i, stem in enumerate((*train, *val, *extra)):
        size = (20 + i, 31 - i)
        image(rng, size).save(root / "JPEGImages" / f"{stem}.jpg")
        labels[stem] = voc_label(rng, size)
        if stem not in extra:
            palette_mask(labels[stem]).save(root / "SegmentationClass" / f"{stem}.png")
    for split, stems in (("train", train), ("val", val)):
        path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        path.write_text("".join(f"{stem}\n" for stem in stems))
    return labels


def write_ade20k(folder, counts, seed=0):
    root = folder / "ADEChallengeData2016"
    rng = np.random.default_rng(seed)
    labels = {}
    for (split, short), count in zip(
        (("training", "train"), ("validation", "val")), counts, strict=True
    ):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i in range(1, count + 1):
            stem, size = f"ADE_{short}_{i:08d}", (17 + i, 40 - 3 * i)
            labels[stem] = rng.integers(0, 151, size, dtype=np.uint8)
            image(rng, size).save(root / "images" / split / f"{stem}.jpg")
            Image.fromarray(labels[stem]).save(root / "annotations" / split / f"{stem}.png")
    return labels


def write_coco(folder, split, images, annotations):
    """`images`: (id, (height, width)); `annotations`: as in COCO's file."""
    rng = np.random.default_rng(0)
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / f"{split}2017").mkdir()
    entries = []
    for image_id, size in images:
        name = f"{image_id:012d}.jpg"
        image(rng, size).save(folder / f"{split}2017" / name)
        entries.append({"id": image_id, "file_name": name, "height": size[0], "width": size[1]})
    names = {1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus"}
    names |= {7: "train", 9: "boat", 10: "traffic light", 16: "bird", 17: "cat", 18: "dog"}
    names |= {19: "horse", 20: "sheep", 21: "cow", 44: "bottle", 62: "chair", 63: "couch"}
    names |= {64: "potted plant", 67: "dining table", 72: "tv"}
    content = {
        "images": entries,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in names.items()],
    }
    (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
