"""CamVid in the layout of the SegNet tutorial: 480x360, 11 classes, void 11.

    DATA_DIR/{train,val,test}/STEM.png or .jpg
    DATA_DIR/{train,val,test}annot/STEM.png

DATA_DIR may also be the parent of that folder. An image and its label map share their stem. The
lists (train.txt, ...) are not read: they name folders of the machine that they were made on.
"""

from pathlib import Path

from auto_deeplab_tf.data.origin import Origin

_SPLITS = ("train", "val", "test")
_SUFFIXES = (".png", ".jpg", ".jpeg")


def find(data_dir: Path) -> Origin:
    """Lists the files of every split that is there.

    Raises:
        FileNotFoundError: where the folder, a split's label folder or a label map is missing.
        ValueError: where a split is empty, or two images have the same stem.
    """
    root, pairs = find_pairs(data_dir)
    files = [path for split in pairs.values() for pair in split.values() for path in pair]
    return Origin(
        splits={split: split for split in pairs},
        builder="auto_deeplab_tf.data.builders.camvid:Camvid",
        manual_dir=root,
        image_key="image",
        label_key="segmentation_label",
        group_of=lambda image_id: image_id.split("_")[0],  # 0016E5_08550 -> drive 0016E5
        files={str(path.relative_to(root)): path for path in files},
    )


def find_pairs(data_dir: Path) -> tuple[Path, dict[str, dict[str, tuple[Path, Path]]]]:
    """Returns the folder of the splits, and for each split: stem -> (image, label map)."""
    root = _root(data_dir)
    return root, {split: _split_pairs(root, split) for split in _SPLITS if (root / split).is_dir()}


def _root(data_dir: Path) -> Path:
    """The folder that holds the splits: `data_dir`, or a folder in it."""
    if not data_dir.is_dir():
        raise FileNotFoundError(f"--data_dir={data_dir} is not a directory")
    if any((data_dir / split).is_dir() for split in _SPLITS):
        return data_dir
    inner = [
        folder
        for folder in sorted(data_dir.iterdir())
        if folder.is_dir() and any((folder / split).is_dir() for split in _SPLITS)
    ]
    if len(inner) != 1:
        found = f"{len(inner)} folders that hold one" if inner else "none"
        raise FileNotFoundError(
            f"--data_dir={data_dir} must hold train/, val/ or test/ of CamVid, or one folder that "
            f"does. Found: {found}"
        )
    return inner[0]


def _split_pairs(root: Path, split: str) -> dict[str, tuple[Path, Path]]:
    labels = root / f"{split}annot"
    if not labels.is_dir():
        raise FileNotFoundError(
            f"{root} has {split}/ but no {split}annot/, the folder of its label maps"
        )
    images: dict[str, Path] = {}
    for path in sorted((root / split).iterdir()):
        if path.suffix.lower() not in _SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in images:
            raise ValueError(
                f"{path} and {images[path.stem].name} have the same stem: keep one of them"
            )
        images[path.stem] = path
    if not images:
        raise ValueError(f"{root / split} has no images (expected .png or .jpg files)")
    pairs = {}
    for stem, image in images.items():
        label = labels / f"{stem}.png"
        if not label.is_file():
            raise FileNotFoundError(f"{image} has no label map: expected {label}")
        pairs[stem] = (image, label)
    return pairs
