"""Data sets that are pairs of files: an image and its label map, which share their stem."""

import collections
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from auto_deeplab_tf.data.dataset import Dataset, Defect, RawDataset, RawExample
from auto_deeplab_tf.errors import MissingFileError, UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
LABEL_SUFFIXES = (".png", ".tif", ".tiff")

Pairs = Mapping[str, tuple[Path, Path]]  # image id -> (image, label map)


@dataclasses.dataclass
class Listing:
    """The files of a folder by their stem.

    Attributes:
        files: stem -> file, in the order of the stems.
        defects: files whose stem another has, and files of other kinds.
    """

    files: dict[str, Path]
    defects: list[Defect]


def listing(folder: Path, suffixes: Sequence[str]) -> Listing:
    """Lists a folder and the folders in it; hidden files are passed over."""
    result = Listing({}, [])
    files = [
        Path(parent) / name
        for parent, _, names in os.walk(folder, followlinks=True)
        if not Path(parent).relative_to(folder).name.startswith(".")
        for name in names
        if not name.startswith(".")
    ]
    for path in sorted(files, key=lambda path: (path.stem, path)):
        if path.suffix.lower() not in suffixes:
            text = f"{path} does not belong there (expected {', '.join(suffixes)} files)"
            result.defects.append(Defect("stray file", str(path), text, fatal=False))
        elif path.stem in result.files:
            other = result.files[path.stem].relative_to(folder)
            text = f"{path} and {other} have the same stem: keep one of them"
            result.defects.append(Defect("duplicate stem", str(path), text))
        else:
            result.files[path.stem] = path
    return result


def match(
    images: Mapping[str, Path], labels: Mapping[str, Path], label_folder: Path
) -> tuple[dict[str, tuple[Path, Path]], list[Defect]]:
    """Pairs images and label maps by stem; what has no partner is a defect.

    A label map without an image is no obstacle: it is passed over.
    """
    found, defects = {}, []
    for stem, image in images.items():
        if stem in labels:
            found[stem] = (image, labels[stem])
        else:
            text = f"{image} has no label map: expected {label_folder / stem}.png"
            defects.append(Defect("missing mask", str(image), text, missing=True))
    for stem, label in labels.items():
        if stem not in images:
            text = f"{label} has no image of the same stem"
            defects.append(Defect("missing image", str(label), text, fatal=False))
    return found, defects


def read_list(path: Path) -> list[str]:
    """The stems that a list file names, one a line.

    A line may hold the stem, the image's file name or its path, and more after a space.

    Raises:
        ValueError: where the file is no text, or names nothing.
    """
    try:
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no list: it is not text") from error
    if not lines:
        raise UserError(f"{path} names no image")
    names = [PurePosixPath(line.split()[0]) for line in lines]
    return [name.stem if name.suffix.lower() in IMAGE_SUFFIXES else name.name for name in names]


def in_list(found: Pairs, path: Path, known: set[str]) -> tuple[Pairs, list[Defect]]:
    """The pairs that a list file names; each stem that is not there is a defect.

    Args:
        found: all pairs.
        path: the list.
        known: stems of the images that are there, with a label map or without.
    """
    defects = []
    stems = read_list(path)
    for stem in sorted(stem for stem, count in collections.Counter(stems).items() if count > 1):
        text = f"{path} names {stem} more than once"
        defects.append(Defect("duplicate stem", str(path), text, fatal=False))
    for stem in sorted(set(stems) - known):
        text = f"{path} names {stem}, but there is no image of that stem"
        defects.append(Defect("missing image", str(path), text, missing=True))
    return {stem: found[stem] for stem in sorted(set(stems)) if stem in found}, defects


def raw_dataset(
    info: Dataset,
    root: Path,
    splits: Mapping[str, Pairs],
    defects: Sequence[Defect],
    *,
    group_of: Callable[[str], str] = lambda image_id: "",
    more_files: Sequence[Path] = (),
    label_bytes: Callable[[Path], bytes] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> RawDataset:
    """Returns the data set that pairs of files make.

    Args:
        info: description of the set.
        root: folder of the user's files.
        splits: the pairs of each split.
        defects: problems of the listing.
        group_of: returns the drive or city of an image id; default: no groups.
        more_files: files that the splits depend on, such as lists.
        label_bytes: reads a label map as an image file; default: the file's bytes.
        settings: as in `RawDataset`.
    """
    paths = [path for pairs in splits.values() for pair in pairs.values() for path in pair]
    paths += more_files

    def read(split: str, image_id: str) -> RawExample:
        image, label = splits[split][image_id]
        return RawExample(
            image_id,
            group_of(image_id),
            content(image),
            (label_bytes or content)(label),
            str(image),
            str(label),
        )

    return RawDataset(
        info=info,
        root=root,
        splits=tuple(splits),
        ids=lambda split: tuple(splits[split]),
        read=read,
        files={os.path.relpath(path, root): path for path in paths},
        settings=settings or {},
        defects=tuple(defects),
    )


def content(path: Path) -> bytes:
    """A file's bytes; none where it cannot be read, so that whoever decodes them can name it."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def root_of(data_dir: Path, inside: str, name: str) -> Path:
    """The folder that holds `inside`: `data_dir`, or one at most two folders below it.

    Raises:
        FileNotFoundError: where there is none, or more than one.
    """
    if not data_dir.is_dir():
        raise MissingFileError(f"data_dir={data_dir} is not a directory")
    found: list[Path] = []
    for pattern in (inside, f"*/{inside}", f"*/*/{inside}"):
        found = found or [path for path in sorted(data_dir.glob(pattern)) if path.is_dir()]
    if len(found) != 1:
        raise MissingFileError(
            f"data_dir={data_dir} must be {name}, the folder that holds {inside}/, or a folder "
            f"above it. Found: {len(found) or 'none'}"
        )
    root = found[0]
    for _ in Path(inside).parts:
        root = root.parent
    return root


def existing(folder: Path) -> Path:
    """Returns a folder that has to be there."""
    if not folder.is_dir():
        raise MissingFileError(f"{folder.parent} has no folder {folder.name}")
    return folder


def of_folders(
    images: Path, labels: Path, suffixes: Sequence[str]
) -> tuple[dict[str, tuple[Path, Path]], list[Defect]]:
    """The pairs of a folder of images and one of label maps, and all that is wrong with them."""
    if not labels.is_dir():
        raise MissingFileError(
            f"{images.parent} has {images.name}/ but no {labels}, the folder of its label maps"
        )
    image_list, label_list = listing(images, suffixes), listing(labels, LABEL_SUFFIXES)
    found, defects = match(image_list.files, label_list.files, labels)
    if not image_list.files:
        text = f"{images} has no images (expected {', '.join(suffixes)} files)"
        defects.append(Defect("empty split", str(images), text))
    return found, [*image_list.defects, *label_list.defects, *defects]
