"""Segments images: one, those of a folder, or those that a glob matches.

Writes into --output_dir, for each image STEM.png, .jpg or .tif: STEM_mask.png (class ids) and
STEM_overlay.png (the classes' colours laid over the image). An image that cannot be read, or is too
large for the memory, does not keep the others from being segmented: it is named at the end, and the
exit code is 1.

With --tile, an image is segmented tile by tile, and a TIFF is read window by window, for images
larger than memory. For a video, STEM_overlay.mp4 is written.

With --ray_address, the images are spread over a Ray cluster, and those whose results are in the
folder already are skipped: the same command resumes what was stopped. Results that were written
without it, or by another model, are refused. --json then counts them, and lists the failures alone.
"""

import sys
from typing import Any

from auto_deeplab_tf import cli, config, prediction
from auto_deeplab_tf.data.dataset import IMAGE_SUFFIXES
from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.files import as_path
from auto_deeplab_tf.image_results import (
    SETTINGS_FILE,
    check_names,
    find_images,
    is_video,
    left_out,
)

cli.define(config.PredictConfig)


def main() -> None:
    """Runs the command."""
    options = cli.read(config.PredictConfig)
    result = predict(options)
    if options.json:
        cli.print_json(result)
    else:
        done = result["num_images"] + len(result["videos"])
        count = done + len(result["failures"])
        print(f"{done} of {count} images: masks and overlays in {options.output_dir}")
        if result.get("num_skipped"):
            print(f"skipped, results were there: {result['num_skipped']} images")
        for row in result["videos"]:
            print(
                f"{row['overlay']}: {row['num_frames']} frames, "
                f"{row['frames_per_second']:.2f} frames/s"
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
    check_names(paths, as_path(options.output_dir))
    output_dir = as_path(options.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    written: list[dict[str, Any]] = []
    videos: list[dict[str, Any]] = []
    failures: list[str] = []
    found = {
        "model": options.model,
        "output_dir": options.output_dir,
        "images": written,
        "videos": videos,
        "failures": failures,
        "left_out": left_out(as_path(options.image)),
    }
    if options.ray_address is not None:
        missing = prediction.without_written(paths, output_dir, options)
        failures += filter(None, prediction.on_ray(missing, options))
        done = len(missing) - len(failures)
        return found | {"num_images": done, "num_skipped": len(paths) - len(missing)}
    from auto_deeplab_tf.served import load_segmenter

    model = load_segmenter(options.model)
    (output_dir / SETTINGS_FILE).unlink(missing_ok=True)
    for path in paths:
        try:
            row = prediction.predict(model, path, output_dir, options)
            (videos if is_video(path) else written).append(row)
        except (OSError, ValueError) as error:
            failures.append(prediction.failure(path, error))
    return found | {"num_images": len(written)}


if __name__ == "__main__":
    cli.run(main)
