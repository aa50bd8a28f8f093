"""Your own images and masks, described by a small JSON file; docs/data.md has its format.

DATA_DIR/images/STEM.png, .jpg or .tif
DATA_DIR/masks/STEM.png or .tif
DATA_DIR/dataset.json
DATA_DIR/{train,val,test}.txt   (one image a line; without them a seeded part becomes val)
"""

import collections
import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from auto_deeplab_tf.data import image_files, parallel
from auto_deeplab_tf.data.dataset import Dataset, Defect, RawDataset
from auto_deeplab_tf.data.sets import pairs
from auto_deeplab_tf.data.sets.folder_config import CONFIG_FILE, FolderConfig
from auto_deeplab_tf.errors import MissingFileError, UserError

_SPLITS = ("train", "val", "test")
# Files that are read to find out what kind the set is, evenly spread.
_SAMPLED_FILES = 256


def find(data_dir: Path, dataset_config: Path | None = None) -> RawDataset:
    """Lists the files, and describes them as the JSON file says.

    Raises:
        MissingFileError: where the folder, images/, masks/ or the JSON file is missing.
        UserError: where the JSON file breaks a rule.
    """
    if not data_dir.is_dir():
        raise MissingFileError(f"data_dir={data_dir} is not a directory")
    config = FolderConfig.load(dataset_config or data_dir / CONFIG_FILE)
    masks = pairs.existing(data_dir, config.masks_dir, "masks_dir")
    images = pairs.existing(data_dir, config.images_dir, "images_dir")
    found, listed, defects = pairs.of_folders(images, masks, mask_suffix=config.mask_suffix)
    group_of = _grouping(config, found)
    splits, list_files, split_defects = _splits(data_dir, config, found, listed, group_of)
    info, notes = _describe(config, splits)
    return dataclasses.replace(
        pairs.raw_dataset(
            info,
            data_dir,
            splits,
            [*defects, *split_defects],
            group_of=group_of,
            more_files=list_files,
            settings={"config": config.content},
        ),
        notes=notes,
    )


def _describe(
    config: FolderConfig, splits: Mapping[str, pairs.Pairs]
) -> tuple[Dataset, tuple[str, ...]]:
    """The description of the set, and what was concluded from its files."""
    files = [pair for found in splits.values() for pair in found.values()]
    channels, bits, notes = config.channels, config.bits, []
    if channels in (None, 4) or bits is None:
        traits = _traits([image for image, _ in files])
        kinds = collections.Counter(found for found, _ in traits)
        # The majority decides; of kinds that are as many, the one of more channels.
        common = max(kinds, key=lambda kind: (kinds[kind], kind), default=3)
        channels = channels or common
        bits = bits or max((depth for _, depth in traits), default=8)
        images = "images"
        if len(traits) < len(files):
            images += f" looked at (of {len(files)})"
        if channels == 4 and (opaque := len(traits) - kinds[4]):
            notes.append(
                f"{opaque} of {len(traits)} {images} have no fourth channel: they get an opaque "
                f"one, which is wrong where the fourth is no alpha but a measurement such as "
                f'near-infrared: leave these images out, or set "channels": 3 in {config.path}'
            )
        elif len(kinds) > 1 and config.channels is None:
            counts = ", ".join(f"{kinds[kind]} of {kind} channels" for kind in sorted(kinds))
            notes.append(
                f"the {images} differ ({counts}): all are brought to {channels}; the key "
                f'"channels" of {config.path} sets another number'
            )
    if config.may_mean_255 and _hold_0_and_255([mask for _, mask in files]):
        config = config.with_255()
        notes.append(
            f"the masks hold 0 and 255 only, so 255 is the class {config.classes[1].name!r}; "
            f'{{"name": "{config.classes[1].name}", "ids": [255]}} in {config.path} says so for '
            "good"
        )
    info = dataclasses.replace(config.description(channels, bits), splits=tuple(splits))
    return info, tuple(notes)


def _sample(paths: Sequence[Path]) -> list[Path]:
    count = min(_SAMPLED_FILES, len(paths))
    return [paths[(2 * i + 1) * len(paths) // (2 * count)] for i in range(count)]


def _read(function: Callable[[Path], Any], paths: Iterable[Path]) -> Iterable[Any]:
    """Applies a function to files; leaves out those that cannot be read, which are named later."""

    def read(path: Path) -> Any:
        try:
            return function(path)
        except (OSError, ValueError):
            return None

    results = parallel.ordered_map(read, paths)
    return (result for result in results if result is not None)


def _traits(images: Sequence[Path]) -> list[tuple[int, int]]:
    """(channels, bits) of images, of some of them where they are many."""
    return list(_read(image_files.image_traits, _sample(images)))


def _hold_0_and_255(masks: Sequence[Path]) -> bool:
    """Whether masks hold 255, and 0 but nothing else; of many masks some are read.

    A mask that is not read and holds another id is an error later: nothing is lost silently.
    """
    seen: set[int] = set()
    for ids in _read(_ids, _sample(masks)):
        seen |= ids
        if not seen <= {0, 255}:
            return False
    return 255 in seen


def _ids(mask: Path) -> set[int]:
    """The ids of a mask; none of one of a single bit, which is read as 0 and 255 beside others."""
    decoded = image_files.decode(mask.read_bytes())
    return set() if decoded.depth == 1 else set(np.unique(decoded.stored()).tolist())


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
    images: Mapping[str, Path],
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
    splits: dict[str, pairs.Pairs] = {}
    defects: list[Defect] = []
    split_of: dict[str, str] = {}
    for split, path in lists.items():
        splits[split], wrong = pairs.in_list(found, path, images)
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
