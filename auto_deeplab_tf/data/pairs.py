"""Data sets that are pairs of files: an image and its label map, which share their stem."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from auto_deeplab_tf.data import catalog
from auto_deeplab_tf.data.origin import Defect, Origin, RawExample

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
    files = (path for path in folder.rglob("*") if path.is_file())
    for path in sorted(files, key=lambda path: (path.stem, path)):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
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


def listed(
    stems: Sequence[str], found: Pairs, list_file: Path, missing: set[str]
) -> tuple[dict[str, tuple[Path, Path]], list[Defect]]:
    """The pairs that a list names, in the order of their stems; each that is not there a defect.

    Args:
        stems: the lines of the list.
        found: all pairs.
        list_file: the list, for messages.
        missing: stems that have been reported already.
    """
    pairs, defects = {}, []
    for stem in sorted(set(stems)):
        if stem in found:
            pairs[stem] = found[stem]
        elif stem not in missing:
            text = f"{list_file} names {stem}, of which there is no image and label map"
            defects.append(Defect("missing pair", str(list_file), text, missing=True))
    if len(set(stems)) < len(stems):
        twice = sorted({stem for stem in stems if stems.count(stem) > 1})
        text = f"{list_file} names {twice[0]} more than once"
        defects.append(Defect("duplicate stem", str(list_file), text, fatal=False))
    return pairs, defects


def read_list(path: Path) -> list[str]:
    """The lines of a list file, without blank ones."""
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def origin(
    info: catalog.Dataset,
    root: Path,
    splits: Mapping[str, Pairs],
    defects: Sequence[Defect],
    *,
    builder: str,
    group_of: Callable[[str], str],
    settings: Mapping[str, Any] | None = None,
    builder_options: Mapping[str, Any] | None = None,
) -> Origin:
    """The origin of a set of pairs; the builder is a `builders.examples.ExamplesBuilder`."""
    paths = [path for pairs in splits.values() for pair in pairs.values() for path in pair]

    def read(split: str) -> Iterator[RawExample]:
        for image_id, (image, label) in splits[split].items():
            yield RawExample(image_id, group_of(image_id), image.read_bytes(), label.read_bytes())

    return Origin(
        info=info,
        splits={split: split for split in splits},
        builder=builder,
        builder_options=builder_options or {},
        manual_dir=root,
        image_key="image",
        label_key="segmentation_label",
        group_of=group_of,
        read=read,
        files={str(path.relative_to(root)): path for path in paths},
        settings=settings or {},
        defects=tuple(defects),
    )


def empty_split(text: str, path: Path) -> Defect:
    return Defect("empty split", str(path), text)
