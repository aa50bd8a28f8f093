"""COCO instances as label maps of VOC's 21 classes: the set that the VOC rows pretrain on.

    DATA_DIR/annotations/instances_{train,val}2017.json
    DATA_DIR/{train,val}2017/000000000009.jpg

Images with fewer than 1,000 labelled pixels are left out. An instance of another category is
background. A crowd is of its class like a single instance. A pixel that instances of different
classes claim is ignored: the annotations do not say which is in front. Polygons are filled by
Pillow, which counts the outline in; pycocotools would differ by a pixel along some edges.
"""

import collections
import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from auto_deeplab_tf.data import image_files
from auto_deeplab_tf.data.dataset import IGNORE_LABEL, RawDataset, RawExample
from auto_deeplab_tf.data.sets import pairs, voc2012
from auto_deeplab_tf.errors import MissingFileError, UserError

DATASET = dataclasses.replace(voc2012.DATASET, name="coco")
MIN_LABELLED_PIXELS = 1000
# COCO's names of VOC's classes, where they differ.
_COCO_OF_VOC = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}


def find(data_dir: Path) -> RawDataset:
    """Lists the annotation files and the images; the annotations are read when they are needed.

    Raises:
        FileNotFoundError: where there are no annotations, or none of the images.
    """
    root = pairs.root_of(data_dir, "annotations", "coco")
    splits: tuple[str, ...] = ()
    files: dict[str, Path] = {}
    for split in DATASET.splits:
        annotations = root / "annotations" / f"instances_{split}2017.json"
        if annotations.is_file():
            images = pairs.existing(root, f"{split}2017")
            splits += (split,)
            listed = pairs.listing(images, (".jpg",)).files.values()
            files |= {str(path.relative_to(root)): path for path in (annotations, *listed)}
    if not splits:
        raise MissingFileError(
            f"{root / 'annotations'} has no instances_train2017.json and no instances_val2017.json"
        )
    annotations_of = functools.cache(lambda split: _Annotations.load(root, split))
    return RawDataset(
        info=DATASET,
        root=root,
        splits=splits,
        ids=lambda split: tuple(annotations_of(split).images),
        read=lambda split, image_id: annotations_of(split).example(image_id),
        files=files,
        settings={"min_labelled_pixels": MIN_LABELLED_PIXELS},
    )


@dataclasses.dataclass(frozen=True)
class _Annotations:
    """An annotation file: its images by id, and their instances of VOC's classes."""

    path: Path
    folder: Path
    images: Mapping[str, Mapping[str, Any]]
    instances: Mapping[int, Sequence[Mapping[str, Any]]]
    class_of: Mapping[int, int]

    @classmethod
    def load(cls, root: Path, split: str) -> "_Annotations":
        path = root / "annotations" / f"instances_{split}2017.json"
        try:
            content = json.loads(path.read_bytes())
            class_of = _class_of(content["categories"])
            instances = collections.defaultdict(list)
            for annotation in content["annotations"]:
                if annotation["category_id"] in class_of:
                    instances[annotation["image_id"]].append(annotation)
            images = sorted(content["images"], key=lambda image: image["file_name"])
            by_id = {Path(image["file_name"]).stem: image for image in images}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no complete annotation file of COCO ({error!r})") from error
        return cls(path, root / f"{split}2017", by_id, dict(instances), class_of)

    def example(self, image_id: str) -> RawExample | None:
        """The example of an image; None where too little of it is labelled."""
        image = self.images[image_id]
        annotations = self.instances.get(image["id"], [])
        label = label_map((image["height"], image["width"]), annotations, self.class_of)
        labelled = np.count_nonzero((label > 0) & (label < IGNORE_LABEL))
        if labelled < MIN_LABELLED_PIXELS:
            return None
        file = self.folder / image["file_name"]
        drawn = image_files.encode_png(label)
        return RawExample(image_id, "", pairs.content(file), drawn, str(file), str(self.path))


def _class_of(categories: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Category id -> VOC's class id."""
    ids = {category["name"]: category["id"] for category in categories}
    names = enumerate(voc2012.CLASS_NAMES[1:], start=1)
    return {ids[_COCO_OF_VOC.get(name, name)]: class_id for class_id, name in names}


def label_map(
    size: tuple[int, int], annotations: Sequence[Mapping[str, Any]], class_of: Mapping[int, int]
) -> np.ndarray:
    """Draws instances into a label map.

    Args:
        size: (height, width).
        annotations: instances as COCO's files hold them, of categories in `class_of`.
        class_of: category id -> class id.

    Returns:
        uint8 [height, width]: class ids, 0 background, 255 where classes overlap.
    """
    label = np.zeros(size, np.uint8)
    for annotation in annotations:
        mask = instance_mask(annotation["segmentation"], size)
        class_id = class_of[annotation["category_id"]]
        taken = mask & (label != 0) & (label != class_id)
        label[mask] = class_id
        label[taken] = IGNORE_LABEL
    return label


def instance_mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Draws an instance: a list of polygons, or run lengths (plain or packed).

    Returns:
        bool [height, width].
    """
    if isinstance(segmentation, Mapping):
        counts = segmentation["counts"]
        return _run_length_mask(unpack_counts(counts) if isinstance(counts, str) else counts, size)
    image = Image.new("1", (size[1], size[0]))
    draw = ImageDraw.Draw(image)
    for polygon in segmentation:
        if len(polygon) >= 6:
            draw.polygon(polygon, fill=1)
    return np.asarray(image)


def _run_length_mask(counts: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Runs of 0 and 1 in turn, down the columns."""
    values = np.arange(len(counts)) % 2 == 1
    flat = np.repeat(values, counts)
    if flat.size != size[0] * size[1]:
        raise UserError(f"run lengths must fill {size[0]}x{size[1]} pixels; found {flat.size}")
    return flat.reshape(size[1], size[0]).T


def unpack_counts(text: str) -> list[int]:
    """Reads COCO's packed run lengths: 5 bits a character, from the third on as differences.

    A character holds, from 48 up, 5 bits of a number, lowest first, and in bit 5 whether more
    follow; the last one's bit 4 is the sign. (maskApi.c, rleFrString.)
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts
