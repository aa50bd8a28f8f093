"""PASCAL VOC 2012 segmentation, with the augmented set (SBD) where it is there.

    DATA_DIR/JPEGImages/2007_000027.jpg, DATA_DIR/SegmentationClass/2007_000032.png (palette),
    DATA_DIR/ImageSets/Segmentation/{train,val}.txt

DATA_DIR is VOCdevkit/VOC2012 or a folder above it. The augmented set (Hariharan et al. 2011) is
DATA_DIR/SegmentationClassAug/ (PNG), or benchmark_RELEASE/dataset/cls/ (MATLAB files) beside
VOCdevkit, in it or in DATA_DIR. `train` is VOC's own list and whatever else the augmented set
holds, but for VOC's `val`: 1,464 images alone, 10,582 with the whole augmented set. An image that
both label has VOC's labels, which are the finer ones.
"""

from pathlib import Path

from auto_deeplab_tf.data import image_files
from auto_deeplab_tf.data.dataset import (
    IGNORE_LABEL,
    IMAGE_SUFFIXES,
    PHOTOGRAPHS_MEAN,
    PHOTOGRAPHS_STD,
    Dataset,
    Defect,
    RawDataset,
    voc_colors,
)
from auto_deeplab_tf.data.sets import pairs
from auto_deeplab_tf.errors import MissingFileError

CLASS_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
DATASET = Dataset(
    name="voc2012",
    class_names=CLASS_NAMES,
    colors=voc_colors(range(len(CLASS_NAMES))),
    label_ids={**{i: i for i in range(len(CLASS_NAMES))}, 255: IGNORE_LABEL},
    splits=("train", "val"),
    unlabelled_splits=("test",),
    mean=PHOTOGRAPHS_MEAN,
    std=PHOTOGRAPHS_STD,
)


def find(data_dir: Path) -> RawDataset:
    """Lists the files.

    Raises:
        FileNotFoundError: where a folder or VOC's list of a split is missing.
    """
    root = pairs.root_of(data_dir, "ImageSets/Segmentation", "VOC2012")
    images = pairs.listing(root / "JPEGImages", IMAGE_SUFFIXES).files
    own = pairs.listing(pairs.existing(root, "SegmentationClass"), (".png",))
    lists = {
        split: root / "ImageSets" / "Segmentation" / f"{split}.txt" for split in ("train", "val")
    }
    defects: list[Defect] = list(own.defects)
    splits: dict[str, pairs.Pairs] = {}
    for split, path in lists.items():
        if not path.is_file():
            raise MissingFileError(f"{root} has no ImageSets/Segmentation/{split}.txt")
        stems = set(pairs.read_list(path, images))
        listed = {stem: image for stem, image in images.items() if stem in stems}
        found, unpaired = pairs.match(
            listed, {s: own.files[s] for s in own.files if s in stems}, root / "SegmentationClass"
        )
        splits[split], unlisted = pairs.in_list(found, path, images)
        defects += [defect for defect in unpaired if defect.kind != "missing image"] + unlisted
    augmented = _augmented(data_dir, root)
    stems_of_val = set(pairs.read_list(lists["val"], images))
    more = {
        s: f for s, f in augmented.items() if s not in stems_of_val and s not in splits["train"]
    }
    found, unpaired = pairs.match(
        {stem: images[stem] for stem in more if stem in images}, more, root / "SegmentationClass"
    )
    splits["train"] = dict(sorted({**splits["train"], **found}.items()))
    return pairs.raw_dataset(
        DATASET,
        root,
        splits,
        [*defects, *unpaired],
        more_files=tuple(lists.values()),
        label_bytes=_label_bytes,
    )


def _augmented(data_dir: Path, root: Path) -> dict[str, Path]:
    """Label maps of the augmented set by stem; none where it is not there."""
    pngs = root / "SegmentationClassAug"
    if pngs.is_dir():
        return pairs.listing(pngs, (".png",)).files
    for parent in (data_dir, root, root.parent, root.parent.parent):
        folder = parent / "benchmark_RELEASE" / "dataset" / "cls"
        if folder.is_dir():
            return pairs.listing(folder, (".mat",)).files
    return {}


def _label_bytes(path: Path) -> bytes:
    """A label map as an image file; SBD's MATLAB files hold it as GTcls.Segmentation."""
    if path.suffix != ".mat":
        return pairs.content(path)
    import scipy.io  # only where the augmented set is read

    try:
        label = scipy.io.loadmat(path)["GTcls"]["Segmentation"][0, 0]
    except Exception:  # whatever SciPy raises for a broken file: the reader names it
        return b""
    return image_files.encode_png(label.astype("uint8"))
