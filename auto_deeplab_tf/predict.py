"""Segments images: one, those of a folder, or those that a glob matches.

Writes into --output_dir, for each image STEM.png, .jpg or .tif: STEM_mask.png (class ids) and
STEM_overlay.png (the classes' colours laid over the image). An image that cannot be read does not
keep the others from being segmented: it is named at the end, and the exit code is 1.
"""

import glob
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from auto_deeplab_tf import cli, config
from auto_deeplab_tf.data.dataset import IMAGE_SUFFIXES, is_hidden
from auto_deeplab_tf.errors import FieldError, MissingFileError, UserError

cli.define(config.PredictConfig)


def main() -> None:
    """Runs the command."""
    options = cli.read(config.PredictConfig)
    result = predict(options)
    if options.json:
        cli.print_json(result)
    else:
        count = len(result["images"]) + len(result["failures"])
        print(
            f"{len(result['images'])} of {count} images: masks and overlays in {options.output_dir}"
        )
        if result["left_out"]:
            print(f"left out, not {', '.join(IMAGE_SUFFIXES)}: {result['left_out']} files")
    if result["failures"]:
        sys.stdout.flush()
        raise UserError(
            f"{len(result['failures'])} images could not be segmented: "
            f"{'; '.join(result['failures'])}"
        )


def predict(options: config.PredictConfig) -> dict[str, Any]:
    """Segments as the command does; returns what it wrote, and the images that failed."""
    paths = find_images(options.image)
    _check_names(paths, Path(options.output_dir))
    from auto_deeplab_tf.served import load_segmenter

    model = load_segmenter(options.model)
    output_dir = Path(options.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    written = []
    failures = []
    for path in paths:
        try:
            written.append(_predict(model, path, output_dir, options))
        except (OSError, ValueError) as error:
            failures.append(f"{path} ({' '.join(str(error).split())})")
    return {
        "model": options.model,
        "output_dir": options.output_dir,
        "num_images": len(written),
        "images": written,
        "failures": failures,
        "left_out": _left_out(Path(options.image)),
    }


def find_images(argument: str) -> list[Path]:
    """Lists the images that `--image` means: a file, the images in a folder, or a glob's matches.

    Raises:
        FileNotFoundError: Where there are none.
    """
    path = Path(argument)
    if path.is_file():
        return [path]
    if path.is_dir():
        names = (entry for entry in path.iterdir() if not is_hidden(entry.name))
        found = [entry for entry in names if entry.suffix.lower() in IMAGE_SUFFIXES]
        rule = f"the folder has no {', '.join(IMAGE_SUFFIXES)} file"
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


def _left_out(folder: Path) -> int:
    """Number of files in a folder that are no images."""
    if not folder.is_dir():
        return 0
    others = (path for path in folder.iterdir() if path.suffix.lower() not in IMAGE_SUFFIXES)
    return sum(path.is_file() and not is_hidden(path.name) for path in others)


def _check_names(paths: Sequence[Path], output_dir: Path) -> None:
    """Refuses images whose results would overwrite one another, or an image."""
    by_stem: dict[str, Path] = {}
    for path in paths:
        if path.stem in by_stem:
            raise UserError(
                f"{by_stem[path.stem]} and {path} would both be written as {path.stem}_mask.png: "
                "segment them into different folders"
            )
        by_stem[path.stem] = path
    inputs = {path.resolve() for path in paths}
    for stem in by_stem:
        for result in _results(output_dir, stem):
            if result.resolve() in inputs:
                raise FieldError(
                    f"{result} is one of the images and would be overwritten: name another "
                    "output_dir",
                    "output_dir",
                )


def _results(output_dir: Path, stem: str) -> tuple[Path, Path]:
    return output_dir / f"{stem}_mask.png", output_dir / f"{stem}_overlay.png"


def _predict(
    model: Any, path: Path, output_dir: Path, options: config.PredictConfig
) -> dict[str, Any]:
    import numpy as np

    from auto_deeplab_tf import overlay
    from auto_deeplab_tf.data import image_files

    image = image_files.read_photograph(
        path.read_bytes(), model.input_channels, options.max_image_pixels
    )
    seen = model.command_input_size(image.shape[:2], options.input_size)
    class_ids = model.predict_class_ids(image, input_size=seen)
    palette = model.palette
    if palette is None:
        palette = overlay.default_palette(model.num_classes)
    mask, drawing = _results(output_dir, path.stem)
    overlay.save_png(mask, class_ids.astype(np.uint8 if model.num_classes <= 256 else np.uint16))
    overlay.save_png(drawing, overlay.overlay(overlay.displayable(image), class_ids, palette))
    return {
        "image": str(path),
        "mask": str(mask),
        "overlay": str(drawing),
        "size": list(image.shape[:2]),
        "input_size": list(seen),
    }


if __name__ == "__main__":
    cli.run(main)
