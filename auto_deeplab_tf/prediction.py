"""The prediction of one file: an image, an image tile by tile, or a video; and of many, on Ray."""

from __future__ import annotations

import functools
import hashlib
import importlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from auto_deeplab_tf import ray_cluster, tiling, video
from auto_deeplab_tf.config import PredictConfig
from auto_deeplab_tf.errors import MissingExtraError, UserError, is_out_of_memory
from auto_deeplab_tf.files import AnyPath, absolute, as_path, local_input, local_output, write_once
from auto_deeplab_tf.image_results import (
    SETTINGS_FILE,
    is_result,
    is_video,
    results_of,
    write_results,
)


def predict(
    model: Any, path: AnyPath, output_dir: AnyPath, options: PredictConfig
) -> dict[str, Any]:
    """Predicts one file; writes and returns what the command says of it.

    Args:
        model: A `Segmenter`.
        path: The image or video.
        output_dir: Folder of the results; it exists.
        options: How.

    Raises:
        OSError: If a file cannot be read or written.
        ValueError: If it is refused, too large for the memory, or needs an extra.
    """
    if is_video(path):
        predict_file = _predict_video
    else:
        predict_file = _predict if options.tile is None else _predict_tiled
    try:
        return predict_file(model, path, output_dir, options)
    except MissingExtraError as error:
        raise UserError(str(error)) from error
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"out of memory: use {_smaller(path, options)}") from error


def _smaller(path: AnyPath, options: PredictConfig) -> str:
    """What takes less memory for a file."""
    if is_video(path):
        return "a smaller input_size"
    return "tile=HxW" if options.tile is None else "a smaller tile"


def failure(path: AnyPath, error: Exception) -> str:
    """Returns how the command names a file that could not be predicted."""
    return f"{path} ({' '.join(str(error).split())})"


def _predict(
    model: Any, path: AnyPath, output_dir: AnyPath, options: PredictConfig
) -> dict[str, Any]:
    from auto_deeplab_tf.data import image_files

    image = image_files.read_photograph(
        path.read_bytes(), model.input_channels, options.max_image_pixels
    )
    seen = model.command_input_size(image.shape[:2], options.input_size)
    class_ids = model.predict_class_ids(image, input_size=seen)
    mask, drawing = write_results(
        image, class_ids, model.num_classes, model.palette, output_dir, path
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
    model: Any, path: AnyPath, output_dir: AnyPath, options: PredictConfig
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
        local_input(path) as local,
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

        mask, drawing = results_of(output_dir, path)
        bits = 8 if model.num_classes <= 256 else 16
        with (
            local_output(mask) as local_mask,
            local_output(drawing) as local_drawing,
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
    model: Any, path: AnyPath, output_dir: AnyPath, options: PredictConfig
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

    (output,) = results_of(output_dir, path)
    with local_input(path) as frames, local_output(output) as local:
        drawn = video.draw(frames, local, picture, options.max_image_pixels)
    return {"image": str(path), "overlay": str(output), **drawn}


# ---- many files, on Ray


def without_written(
    paths: Sequence[AnyPath], output_dir: AnyPath, options: PredictConfig
) -> list[AnyPath]:
    """Returns the files whose results are not in the folder yet, and notes there of what they are.

    Raises:
        UserError: If the folder holds results of another model, of other settings, or of a
            prediction without Ray, which does not say.
    """
    written = {path.name for path in output_dir.iterdir()}
    if SETTINGS_FILE not in written and any(map(is_result, written)):
        raise UserError(
            f"{output_dir} holds results and no {SETTINGS_FILE} that says of which model they are: "
            "name another output_dir"
        )
    settings = {
        "model": _digest(options.model),
        **{name: getattr(options, name) for name in ("input_size", "tile", "overlap")},
    }
    write_once(
        output_dir / SETTINGS_FILE,
        settings,
        f"{output_dir} holds results of another model, or with another input_size, tile or "
        "overlap: name another output_dir",
    )

    def is_missing(path: AnyPath) -> bool:
        return any(result.name not in written for result in results_of(output_dir, path))

    return [path for path in paths if is_missing(path)]


def _digest(model: str) -> str:
    path = as_path(model)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else model


def on_ray(paths: Sequence[AnyPath], options: PredictConfig) -> Iterator[str]:
    """Predicts files by Ray Data; yields for each "" or, as `failure`, why not; in any order.

    Every worker loads the model once. Model, images and results must have the same paths on all
    machines of the cluster: a shared folder, or a URL.

    Args:
        paths: The files.
        options: How, and the address of the cluster.
    """
    if not paths:
        return
    options = options.with_absolute_paths()
    with ray_cluster.connected(str(options.ray_address)) as ray:
        ray_data: Any = importlib.import_module("ray.data")
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        ray_data.DataContext.get_current().enable_progress_bars = False
        rows = [{"path": absolute(path)} for path in paths]
        workers = min(ray_cluster.num_workers(ray), len(rows))
        # Four blocks for each worker, so that none waits long for another; a block is what Ray
        # repeats where a worker dies.
        blocks = min(len(rows), max(4 * workers, len(rows) // 1000))
        dataset = ray_data.from_items(rows, override_num_blocks=blocks)
        found = dataset.map(
            _Worker,
            fn_constructor_args=(options,),
            compute=ray_data.ActorPoolStrategy(min_size=1, max_size=workers),
            **ray_cluster.resources(ray),
        )
        for row in found.iter_rows():
            yield row["failure"]


class _Worker:
    """Predicts rows {"path"} as {"failure"}; an object in each process of a cluster."""

    def __init__(self, options: PredictConfig):
        from auto_deeplab_tf.served import load_segmenter

        self._options = options
        self._model = load_segmenter(options.model)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        path = as_path(row["path"])
        try:
            predict(self._model, path, as_path(self._options.output_dir), self._options)
        except (OSError, ValueError) as error:
            return {"failure": failure(path, error)}
        return {"failure": ""}
