"""Your own images and masks, described by a small JSON file; docs/data.md has its format.

DATA_DIR/images/STEM.png, .jpg or .tif
DATA_DIR/masks/STEM.png or .tif
DATA_DIR/dataset.json
DATA_DIR/{train,val,test}.txt   (one stem a line; without them a seeded part becomes val)
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from auto_deeplab_tf.data import image_files
from auto_deeplab_tf.data.dataset import Dataset, Defect, RawDataset
from auto_deeplab_tf.data.sets import pairs
from auto_deeplab_tf.data.sets.folder_config import CONFIG_FILE, FolderConfig
from auto_deeplab_tf.errors import MissingFileError, UserError

_SPLITS = ("train", "val", "test")


def find(data_dir: Path, dataset_config: Path | None = None) -> RawDataset:
    """Lists the files, and describes them as the JSON file says.

    Raises:
        FileNotFoundError: where the folder, images/, masks/ or the JSON file is missing.
        ValueError: where the JSON file breaks a rule.
    """
    if not data_dir.is_dir():
        raise MissingFileError(f"data_dir={data_dir} is not a directory")
    config = FolderConfig.load(dataset_config or data_dir / CONFIG_FILE)
    masks = pairs.existing(data_dir / config.masks_dir)
    images = pairs.existing(data_dir / config.images_dir)
    found, defects = pairs.of_folders(images, masks, pairs.IMAGE_SUFFIXES)
    group_of = _grouping(config, found)
    splits, list_files, split_defects = _splits(data_dir, config, found, images, group_of)
    return pairs.raw_dataset(
        _describe(config, splits),
        data_dir,
        splits,
        [*defects, *split_defects],
        group_of=group_of,
        more_files=list_files,
        settings={"config": config.content},
    )


def _describe(config: FolderConfig, splits: Mapping[str, pairs.Pairs]) -> Dataset:
    channels, bits = config.channels, config.bits
    if channels is None or bits is None:
        seen = _traits_of_first(splits)
        channels, bits = channels or seen[0], bits or seen[1]
    return dataclasses.replace(
        config.description(channels, bits), splits=tuple(split for split in splits)
    )


def _traits_of_first(splits: Mapping[str, pairs.Pairs]) -> tuple[int, int]:
    """(channels, bits) of the first image that can be read."""
    for found in splits.values():
        for image, _ in found.values():
            try:
                return image_files.image_traits(image.read_bytes())
            except (OSError, ValueError):
                continue  # it is named when it is prepared or checked
    return 3, 8


def _grouping(config: FolderConfig, found: pairs.Pairs) -> Callable[[str], str]:
    """The function that tells the group of an image id."""
    if config.group is None:
        return lambda image_id: ""
    if config.group == "folder":
        return lambda image_id: found[image_id][0].parent.name
    pattern = re.compile(config.group)

    def group_of(image_id: str) -> str:
        match = pattern.search(image_id)
        return match[0] if match else ""

    return group_of


def _splits(
    data_dir: Path,
    config: FolderConfig,
    found: pairs.Pairs,
    images: Path,
    group_of: Callable[[str], str],
) -> tuple[dict[str, pairs.Pairs], list[Path], list[Defect]]:
    """(pairs of each split, list files, what is wrong with them)."""
    lists = {split: data_dir / f"{split}.txt" for split in _SPLITS}
    lists = {split: path for split, path in lists.items() if path.is_file()}
    if not lists:
        return _seeded(config, found, group_of), [], []
    if config.val_fraction is not None:
        raise UserError(
            f"{config.path}: val_fraction is for folders without lists, and there is "
            f"{next(iter(lists.values()))}: remove one of them"
        )
    known = set(pairs.listing(images, pairs.IMAGE_SUFFIXES).files)
    splits: dict[str, pairs.Pairs] = {}
    defects: list[Defect] = []
    split_of: dict[str, str] = {}
    for split, path in lists.items():
        splits[split], wrong = pairs.in_list(found, path, known)
        defects += wrong
        for stem in splits[split]:
            if stem in split_of:
                text = f"{path} names {stem}, which {split_of[stem]}.txt names too"
                defects.append(Defect("in two splits", str(path), text, fatal=False))
            split_of.setdefault(stem, split)
    return splits, list(lists.values()), defects


def _seeded(
    config: FolderConfig, found: pairs.Pairs, group_of: Callable[[str], str]
) -> dict[str, pairs.Pairs]:
    """Val gets a part of the images, chosen by a hash: of whole groups where there are groups."""

    def rank(text: str) -> str:
        return hashlib.sha256(f"{config.split_seed}/{text}".encode()).hexdigest()

    fraction = config.default_val_fraction if config.val_fraction is None else config.val_fraction
    wanted = max(1, round(fraction * len(found))) if fraction and len(found) > 1 else 0
    units: dict[str, list[str]] = {}
    for stem in found:
        units.setdefault(group_of(stem) if config.group else stem, []).append(stem)
    val: set[str] = set()
    for unit in sorted(units, key=rank)[: len(units) - 1]:
        if len(val) >= wanted:
            break
        val.update(units[unit])
    parts = {
        "train": {stem: pair for stem, pair in found.items() if stem not in val},
        "val": {stem: pair for stem, pair in found.items() if stem in val},
    }
    return {split: part for split, part in parts.items() if part or split == "train"}
