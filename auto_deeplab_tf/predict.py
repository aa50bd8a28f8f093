"""Segments images: one, those of a folder, or those that a glob matches.

Writes into --output_dir, for each image STEM.png, .jpg or .tif: STEM_mask.png (class ids) and
STEM_overlay.png (the classes' colours laid over the image). An image that cannot be read does not
keep the others from being segmented: it is named at the end, and the exit code is 1.

With --tile, an image is segmented tile by tile, and a TIFF is read window by window, for images
larger than memory. For a video, STEM_overlay.mp4 is written.
"""

import functools
import sys
from typing import Any

from auto_deeplab_tf import cli, config, tiling, video
from auto_deeplab_tf.data.dataset import IMAGE_SUFFIXES
from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.files import AnyPath, as_path, read_locally, written_locally
from auto_deeplab_tf.image_results import (
    check_names,
    find_images,
    left_out,
    results_of,
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
        done = len(result["images"]) + len(result["videos"])
        count = done + len(result["failures"])
        print(f"{done} of {count} images: masks and overlays in {options.output_dir}")
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
    from auto_deeplab_tf.served import load_segmenter

    model = load_segmenter(options.model)
    output_dir = as_path(options.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    written: list[dict[str, Any]] = []
    videos: list[dict[str, Any]] = []
    failures = []
    for path in paths:
        try:
            if path.suffix.lower() in video.SUFFIXES:
                videos.append(_predict_video(model, path, output_dir, options))
            elif options.tile is not None:
                written.append(_predict_tiled(model, path, output_dir, options))
            else:
                written.append(_predict(model, path, output_dir, options))
        except (OSError, ValueError) as error:
            failures.append(f"{path} ({' '.join(str(error).split())})")
    return {
        "model": options.model,
        "output_dir": options.output_dir,
        "num_images": len(written),
        "images": written,
        "videos": videos,
        "failures": failures,
        "left_out": left_out(as_path(options.image)),
    }


def _predict(
    model: Any, path: AnyPath, output_dir: AnyPath, options: config.PredictConfig
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


def _palette(model: Any) -> Any:
    from auto_deeplab_tf import overlay

    return overlay.default_palette(model.num_classes) if model.palette is None else model.palette


@functools.lru_cache(maxsize=1)
def _network(model: Any) -> Any:
    """The graph function of all tiles: images, size of the result or None -> logits."""
    import tensorflow as tf

    from auto_deeplab_tf.nn.resize import resize_bilinear
    from auto_deeplab_tf.training import whole_images

    @tf.function(autograph=False, reduce_retracing=True)
    def network(images: Any, size: Any) -> Any:
        found = whole_images.logits(
            lambda batch: model(batch, training=False), images, model.network.mean
        )
        return found if size is None else resize_bilinear(found, (size[0], size[1]))

    return network


def _predict_tiled(
    model: Any, path: AnyPath, output_dir: AnyPath, options: config.PredictConfig
) -> dict[str, Any]:
    """As `_predict`, with memory for a tile instead of the image."""
    import numpy as np
    import tensorflow as tf

    from auto_deeplab_tf import overlay
    from auto_deeplab_tf.data.resizing import resize_image

    assert options.tile is not None
    overlap = min(options.tile) // 8 if options.overlap is None else options.overlap
    palette = _palette(model)
    with (
        read_locally(path) as local,
        tiling.open_windows(local, model.input_channels, options.max_image_pixels) as image,
    ):
        size = (min(options.tile[0], image.size[0]), min(options.tile[1], image.size[1]))
        # A tile is seen as an image of its size would be.
        seen = model.command_input_size(size, options.input_size)

        network = _network(model)

        def logits(*window: int) -> Any:
            part = image.read(*window)
            if seen == size:
                return network(tf.constant(part[None], tf.float32), None)[0].numpy()
            part = tf.cast(resize_image(part, seen)[None], tf.float32)
            return network(part, tf.constant(size))[0].numpy()

        mask, drawing = results_of(output_dir, path.stem)
        bits = 8 if model.num_classes <= 256 else 16
        with (
            written_locally(mask) as local_mask,
            written_locally(drawing) as local_drawing,
            tiling.PngWriter(local_mask, image.size, bits=bits) as masks,
            tiling.PngWriter(local_drawing, image.size, channels=3) as drawings,
        ):
            top = 0
            for band in tiling.class_ids(image.size, options.tile, overlap, logits):
                masks.write(band)
                for rows in np.array_split(band, -(-len(band) // 64)):
                    picture = overlay.displayable(image.read(top, 0, *rows.shape))
                    drawings.write(overlay.overlay(picture, rows, palette))
                    top += len(rows)
        return {
            "image": str(path),
            "mask": str(mask),
            "overlay": str(drawing),
            "size": list(image.size),
            "input_size": list(seen),
            "tile": list(size),
            "overlap": overlap,
        }


def _predict_video(
    model: Any, path: AnyPath, output_dir: AnyPath, options: config.PredictConfig
) -> dict[str, Any]:
    """Writes a video of the overlays of another one's frames."""
    from auto_deeplab_tf import overlay
    from auto_deeplab_tf.data.image_files import with_channels

    if options.tile is not None:
        raise UserError("tile is for images, and this is a video")
    palette = _palette(model)

    def picture(frame: Any) -> Any:
        seen = model.command_input_size(frame.shape[:2], options.input_size)
        image = with_channels(frame, model.input_channels)
        return overlay.overlay(frame, model.predict_class_ids(image, input_size=seen), palette)

    output = output_dir / f"{path.stem}_overlay.mp4"
    with read_locally(path) as frames, written_locally(output) as local:
        drawn = video.draw(frames, local, picture, options.max_image_pixels)
    return {"image": str(path), "overlay": str(output), **drawn}


if __name__ == "__main__":
    cli.run(main)
