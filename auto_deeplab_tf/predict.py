"""Segments images: one, those of a folder, or those that a glob matches.

Writes into --output_dir, for each image STEM.png, .jpg or .tif: STEM_mask.png (class ids) and
STEM_overlay.png (the classes' colours laid over the image). An image that cannot be read does not
keep the others from being segmented: it is named at the end, and the exit code is 1.
"""

import sys
from pathlib import Path
from typing import Any

from auto_deeplab_tf import cli, config
from auto_deeplab_tf.data.dataset import IMAGE_SUFFIXES
from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.image_results import (
    check_names,
    find_images,
    left_out,
    write_results,
)

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
    check_names(paths, Path(options.output_dir))
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
        "left_out": left_out(Path(options.image)),
    }


def _predict(
    model: Any, path: Path, output_dir: Path, options: config.PredictConfig
) -> dict[str, Any]:
    from auto_deeplab_tf.data import image_files

    image = image_files.read_photograph(
        path.read_bytes(), model.input_channels, options.max_image_pixels
    )
    seen = model.command_input_size(image.shape[:2], options.input_size)
    class_ids = model.predict_class_ids(image, input_size=seen)
    mask, drawing = write_results(
        image, class_ids, model.num_classes, model.palette, output_dir, path.stem
    )
    return {
        "image": str(path),
        "mask": str(mask),
        "overlay": str(drawing),
        "size": list(image.shape[:2]),
        "input_size": list(seen),
    }


if __name__ == "__main__":
    cli.run(main)
