"""Data sets that are pairs of files: an image and its label map."""

import collections
import dataclasses
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from auto_deeplab_tf.data.dataset import (
    IMAGE_SUFFIXES,
    LABEL_SUFFIXES,
    Dataset,
    Defect,
    RawDataset,
    RawExample,
    is_hidden,
)
from auto_deeplab_tf.errors import MissingFileError, UserError

Pairs = Mapping[str, tuple[Path, Path]]  # image id -> (image, label map)

_SUFFIX = "|".join(re.escape(suffix) for suffix in IMAGE_SUFFIXES)
# A line of a list with two columns: an image and its label map, as in the lists of CamVid.
_TWO_COLUMNS = re.compile(rf"(.*?(?:{_SUFFIX}))\s+\S.*(?:{_SUFFIX})", re.IGNORECASE)


@dataclasses.dataclass
class Listing:
    """The files of a folder.

    Attributes:
        files: file by its path below the folder without suffix, with slashes and in the Unicode
            form NFC; ascending.
        defects: files that cannot be used.
    """

    files: dict[str, Path]
    defects: list[Defect]

    @property
    def has_unique_stems(self) -> bool:
        """Whether no two files have the same name in different folders."""
        return len({_stem(key) for key in self.files}) == len(self.files)

    def by_stem(self) -> dict[str, Path]:
        """The files by their name alone, without folder and suffix; ascending."""
        return dict(sorted((_stem(key), path) for key, path in self.files.items()))


def _stem(key: str) -> str:
    return key.rpartition("/")[2]


def _nfc(text: str) -> str:
    """One form for names that look alike: some systems store an accent as a letter of its own."""
    return unicodedata.normalize("NFC", text)


def listing(folder: Path, suffixes: Sequence[str]) -> Listing:
    """Lists a folder and the folders in it; hidden files are left out, links are followed."""
    result = Listing({}, [])
    paths: list[Path] = []
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        # A link to a folder above would be followed without end.
        folders[:] = [] if real in seen else [n for n in folders if not is_hidden(n)]
        if real not in seen:
            paths += [Path(parent) / name for name in names if not is_hidden(name)]
        seen.add(real)
    keyed = [(_nfc(p.relative_to(folder).with_suffix("").as_posix()), p) for p in paths]
    usable = {key for key, path in keyed if path.suffix.lower() in suffixes}
    for key, path in sorted(keyed):
        suffix = path.suffix.lower()
        if suffix not in suffixes and suffix in IMAGE_SUFFIXES and key not in usable:
            text = (
                f"{path} is a label map as JPEG, which changes the ids at every edge: save it as "
                "PNG from its source"
            )
            result.defects.append(Defect("lossy mask", str(path), text))
        elif suffix not in suffixes:
            text = f"{path} does not belong there (expected {', '.join(suffixes)} files)"
            result.defects.append(Defect("stray file", str(path), text, fatal=False))
        elif not path.exists():
            text = f"{path} is a link to a file that does not exist"
            result.defects.append(Defect("broken link", str(path), text, missing=True))
        elif not path.is_file():  # a pipe would be waited for
            text = f"{path} is no regular file"
            result.defects.append(Defect("stray file", str(path), text))
        elif key in result.files:
            other = result.files[key].relative_to(folder)
            text = f"{path} and {other} have the same stem: keep one of them"
            result.defects.append(Defect("duplicate stem", str(path), text))
        else:
            result.files[key] = path
    return result


def _common_ending(images: Mapping[str, Path], labels: Mapping[str, Path]) -> str:
    """The ending that most names of label maps have beyond an image's name; none: empty."""
    endings: collections.Counter[str] = collections.Counter()
    for key in labels:
        lengths = range(len(key) - 1, 0, -1)
        endings[next((key[n:] for n in lengths if key[:n] in images), "")] += 1
    ending, count = endings.most_common(1)[0] if endings else ("", 0)
    return ending if 2 * count > len(labels) else ""


def match(
    images: Mapping[str, Path],
    labels: Mapping[str, Path],
    label_folder: Path,
    mask_suffix: str = "",
) -> tuple[dict[str, tuple[Path, Path]], list[Defect]]:
    """Pairs images and label maps by their keys; what has no partner is a defect.

    A label map without an image is no obstacle: it is left out.
    """
    found, defects = {}, []
    for key, image in images.items():
        if key in labels:
            found[key] = (image, labels[key])
        else:
            text = f"{image} has no label map: expected {label_folder / key}{mask_suffix}.png"
            defects.append(Defect("missing mask", str(image), text, missing=True))
    for key, label in labels.items():
        if key not in images:
            text = f"{label} has no image of the same stem"
            defects.append(Defect("missing image", str(label), text, fatal=False))
    return found, defects


def read_list(path: Path, known: Mapping[str, Any]) -> list[str]:
    """Returns the images that a list file names, one a line.

    A line is the name of an image, with or without suffix, or a path that ends with it; names may
    hold spaces. A line of two columns names an image and its label map; what follows another
    known name after a space is left out. Backslashes, Windows line ends and byte-order marks are
    understood.

    Args:
        path: the list.
        known: the images, by their keys.

    Returns:
        For each line the key of the image, or the line's name where no image has it.

    Raises:
        UserError: where the file is no text, or names nothing.
    """
    content = path.read_bytes()
    utf_16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = content.decode("utf-16" if utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no list: it is not text in UTF-8") from error
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    if not lines:
        raise UserError(f"{path} names no image")
    return [_key_of(line, known) for line in lines]


def _key_of(line: str, known: Mapping[str, Any]) -> str:
    """The key of the image that a line of a list names, or the name that no image has."""
    line = _nfc(line)
    columns = _TWO_COLUMNS.fullmatch(line)
    first = line.split()[0]  # as in lists that say more of each image
    names = [_without_suffix(name) for name in (line, columns[1] if columns else first, first)]
    for name in names:
        parts = PurePosixPath(name).parts
        for start in range(len(parts)):  # a path may begin on another machine
            key = "/".join(parts[start:])
            if key in known:
                return key
    return _stem(names[1] if columns else names[0])


def _without_suffix(name: str) -> str:
    name = name.replace("\\", "/")
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in IMAGE_SUFFIXES else name


def in_list(
    found: Pairs, path: Path, known: Mapping[str, Any]
) -> tuple[dict[str, tuple[Path, Path]], list[Defect]]:
    """Returns the pairs that a list file names; each name that is not there is a defect.

    Args:
        found: all pairs.
        path: the list.
        known: the images that are there, with a label map or without, by their keys.
    """
    defects = []
    keys = read_list(path, known)
    for key in sorted(key for key, count in collections.Counter(keys).items() if count > 1):
        text = f"{path} names {key} more than once"
        defects.append(Defect("duplicate stem", str(path), text, fatal=False))
    for key in sorted(set(keys) - set(known)):
        text = f"{path} names {key}, but there is no image of that stem"
        defects.append(Defect("missing image", str(path), text, missing=True))
    return {key: found[key] for key in sorted(set(keys)) if key in found}, defects


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


def existing(root: Path, name: str, key: str | None = None) -> Path:
    """Returns a folder that has to be there.

    Args:
        root: The folder that holds it.
        name: Its path below `root`.
        key: The key of the set's description that names another one, if there is such a key.

    Raises:
        MissingFileError: If it is missing; names the folders that are there.
    """
    folder = root / name
    if not folder.is_dir():
        there = sorted(path.name for path in root.iterdir() if path.is_dir())
        remedy = f'; the key "{key}" of its description names another' if key else ""
        raise MissingFileError(
            f"{root} has no folder {name} (found: {', '.join(there) or 'none'}){remedy}"
        )
    return folder


def of_folders(
    images: Path,
    labels: Path,
    suffixes: Sequence[str] = IMAGE_SUFFIXES,
    mask_suffix: str = "",
) -> tuple[dict[str, tuple[Path, Path]], dict[str, Path], list[Defect]]:
    """Pairs a folder of images and one of label maps.

    The key of a pair, its image id, is its name without suffix. Where a name occurs in several
    folders, the key is the path below `images`, and the label map lies at the same path below
    `labels`. The names of label maps end in `mask_suffix` beyond those of the images.

    Returns:
        (pairs, images, defects): the pairs and all images by their keys, and all that is wrong.

    Raises:
        MissingFileError: where `labels` is missing.
    """
    if not labels.is_dir():
        raise MissingFileError(
            f"{images.parent} has {images.name}/ but no {os.path.relpath(labels, images.parent)}/, "
            "the folder of its label maps"
        )
    lists = listing(images, suffixes), listing(labels, LABEL_SUFFIXES)
    unique = all(entry.has_unique_stems for entry in lists)
    image_files, label_files = (entry.by_stem() if unique else entry.files for entry in lists)
    if mask_suffix:
        named = label_files.items()
        label_files = {
            key.removesuffix(mask_suffix): f for key, f in named if key.endswith(mask_suffix)
        }
    found, defects = match(image_files, label_files, labels, mask_suffix)
    if not found and (ending := _common_ending(image_files, label_files)):
        text = (
            f"{labels} has label maps by the names of the images and {ending!r}: for "
            f'dataset=folder the key "mask_suffix": "{mask_suffix + ending}" pairs them'
        )
        defects.insert(0, Defect("mask names", str(labels), text))
    if not image_files:
        text = f"{images} has no images (expected {', '.join(suffixes)} files)"
        defects.append(Defect("empty split", str(images), text))
    return found, image_files, [*lists[0].defects, *lists[1].defects, *defects]
