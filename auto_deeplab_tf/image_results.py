"""The images and videos that a prediction is asked for, and the files that it writes for each."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from auto_deeplab_tf.data.dataset import IMAGE_SUFFIXES, is_hidden
from auto_deeplab_tf.errors import FieldError, MissingFileError, UserError
from auto_deeplab_tf.files import AnyPath, as_path

# Says of which model and settings the results in a folder are. A prediction on Ray writes it, and
# skips what is written; every other prediction removes it, so that it is never out of date.
SETTINGS_FILE = "prediction.json"
_VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm")
_MASK, _OVERLAY, _VIDEO_OVERLAY = "_mask.png", "_overlay.png", "_overlay.mp4"


def find_images(argument: str) -> list[AnyPath]:
    """Lists the images that the setting `image` means: a file, those of a folder, or of a glob.

    Raises:
        MissingFileError: Where there are none.
    """
    path = as_path(argument)
    if path.is_file():
        return [path]
    if path.is_dir():
        names = (entry for entry in path.iterdir() if not is_hidden(entry.name))
        found = [entry for entry in names if entry.suffix.lower() in IMAGE_SUFFIXES]
        rule = f"the folder has no {', '.join(IMAGE_SUFFIXES)} file"
    elif not isinstance(path, Path):
        found = list(path.parent.glob(path.name))
        rule = "no file has that name or matches that pattern"
    else:
        # Folders that are there by that very name are no pattern, whatever characters they hold.
        there = next(parent for parent in path.parents if parent.is_dir())
        pattern = os.path.join(glob.escape(str(there)), path.relative_to(there))
        found = [Path(match) for match in glob.glob(pattern, recursive=True)]
        rule = "no file has that name or matches that pattern"
    found = sorted(entry for entry in found if entry.is_file())
    if not found:
        raise MissingFileError(f"image={argument}: {rule}")
    return found


def left_out(folder: AnyPath) -> int:
    """Returns the number of files in a folder that are no images."""
    if not folder.is_dir():
        return 0
    others = (path for path in folder.iterdir() if path.suffix.lower() not in IMAGE_SUFFIXES)
    return sum(path.is_file() and not is_hidden(path.name) for path in others)


def check_names(paths: Sequence[AnyPath], output_dir: AnyPath) -> None:
    """Checks that no result would overwrite another one, or an image or video that is read.

    Raises:
        UserError: If one would.
    """
    by_stem: dict[str, AnyPath] = {}
    for path in paths:
        if path.stem in by_stem:
            raise UserError(
                f"{by_stem[path.stem]} and {path} would both be written as {path.stem}_mask.png: "
                "segment them into different folders"
            )
        by_stem[path.stem] = path
    inputs = {path.resolve() for path in paths}
    for path in paths:
        kind = "videos" if is_video(path) else "images"
        for result in results_of(output_dir, path):
            if result.resolve() in inputs:
                raise FieldError(
                    f"{result} is one of the {kind} and would be overwritten: name another "
                    "output_dir",
                    "output_dir",
                )


def is_video(path: AnyPath) -> bool:
    """Tells by its suffix whether a file is a video."""
    return path.suffix.lower() in _VIDEO_SUFFIXES


def results_of(output_dir: AnyPath, path: AnyPath) -> tuple[AnyPath, ...]:
    """Returns the files of an image's mask and overlay, or the one of a video's overlays."""
    if is_video(path):
        return (output_dir / f"{path.stem}{_VIDEO_OVERLAY}",)
    return output_dir / f"{path.stem}{_MASK}", output_dir / f"{path.stem}{_OVERLAY}"


def is_result(name: str) -> bool:
    """Tells by its name whether a file is a mask or an overlay, of whatever image or video."""
    return name.endswith((_MASK, _OVERLAY, _VIDEO_OVERLAY))


def write_results(
    image: Any, class_ids: Any, num_classes: int, palette: Any, output_dir: AnyPath, path: AnyPath
) -> tuple[AnyPath, AnyPath]:
    """Writes the mask and the overlay of an image.

    Args:
        image: [H, W, C], 0..255.
        class_ids: Integers [H, W].
        num_classes: Up to 256, the mask has 8 bits, else 16.
        palette: uint8 [num_classes, 3], or None for the default one.
        output_dir: Folder of the files.
        path: The image, after which they are named.

    Returns:
        The two files.
    """
    import numpy as np

    from auto_deeplab_tf import overlay

    if palette is None:
        palette = overlay.default_palette(num_classes)
    mask, drawing = results_of(output_dir, path)
    overlay.save_png(mask, class_ids.astype(np.uint8 if num_classes <= 256 else np.uint16))
    overlay.save_png(drawing, overlay.overlay(overlay.displayable(image), class_ids, palette))
    return mask, drawing
