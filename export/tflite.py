r"""Exports a trained model as a TFLite file for LiteRT.

    python -m export.tflite --model=RUN/model.keras --output=model.tflite --input_size=360x480
    python -m export.tflite --model=RUN/model.keras --output=int8.tflite --input_size=360x480 \
        --precision=int8 --calibration_dir=IMAGES

The file has one input, [1, H, W, C], 0..255, RGB or the C channels that the network was trained on
(float32; uint8 for int8), and one output, class_ids int32 [1, H, W]. It is run with LiteRT and
compared with the Keras model before it gets its name; if the predictions differ, nothing is
published.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from auto_deeplab_tf import cli, config
from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.files import LiteralPath
from export import common

cli.define(config.TFLiteConfig)

MAX_CHECKED_IMAGES = 8

# Weights of 11 (float16) or 8 bits cost accuracy; a file far below these is broken, not rounded.
TOLERANCES = {
    "float32": common.EXACT,
    "float16": common.Tolerance(same_class=0.99, max_error=0.1, mean_error=0.01, tie=1e-3),
    "dynamic": common.Tolerance(same_class=0.95, max_error=1.0, mean_error=0.05, tie=1e-3),
    "int8": common.INT8,
}


def export_tflite(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    input_size: Sequence[int],
    precision: str = "float32",
    calibration_dir: str | os.PathLike[str] | None = None,
) -> common.Exported:
    """Writes, checks and publishes a TFLite file; an existing one is replaced at the end.

    Args:
        model: A .keras file of `Segmenter`.
        output: The file, ending in .tflite.
        input_size: (height, width).
        precision: "float32", "float16" (weights), "dynamic" (8-bit weights, activations quantised
            at run time) or "int8" (weights and activations).
        calibration_dir: Folder of images, for int8 only: the ranges of the activations are
            measured on up to 100 of them, and the predictions are compared on up to 8.

    Returns:
        The file, and its agreement with the Keras model.

    Raises:
        MissingFileError: If there is no such model, or no calibration image.
        UserError: For a model, a size or a precision that cannot be exported.
        ImportError: If LiteRT is not installed.
        common.Disagreement: If the file disagrees with the Keras model.
    """
    common.check_precision(precision, TOLERANCES, calibration_dir)
    output = common.check_output_file(output, ".tflite")
    size = common.check_input_size(input_size)
    common.require("ai_edge_litert.interpreter")
    model = common.check_model_file(model)
    # TensorFlow is imported here: the flags are read and checked before it starts.
    from export import flatbuffer, image_files
    from export import model as model_lib

    segmenter = model_lib.load(model)
    channels = segmenter.input_channels
    calibration, images = image_files.calibration_images(
        calibration_dir, size, channels, MAX_CHECKED_IMAGES
    )
    # Before the export, so that nothing the export does to the weights can hide in it.
    reference = model_lib.reference(segmenter, images)
    metadata = model_lib.describe(segmenter) | {"input_size": size, "precision": precision}
    with common.staging_folder(output.parent) as staged:
        model_lib.FixedGraph(segmenter, size).save(staged / "graph")
        content = convert(
            staged / "graph", precision, lambda: _samples(calibration, size, channels)
        )
        file = staged / output.name
        file.write_bytes(flatbuffer.add_metadata(content, common.to_json(metadata)))
        agreement = check(file, images, reference, TOLERANCES[precision])
        common.publish_file(file, output, model, metadata)
    return common.Exported(output, agreement)


def convert(
    graph: pathlib.Path, precision: str, samples: Callable[[], Iterator[dict[str, np.ndarray]]]
) -> bytes:
    """Converts a SavedModel of fixed sizes.

    A conversion from a concrete function would leave out the variables of a Keras 3 model: the file
    would predict class 0 everywhere, without an error.

    Args:
        graph: Folder of the SavedModel.
        precision: As in `export_tflite`.
        samples: Function that yields the calibration images, for int8.

    Returns:
        The content of the file.

    Raises:
        UserError: If an operation has no TFLite counterpart.
    """
    import tensorflow as tf

    from export import flatbuffer

    literal = LiteralPath(graph)
    converter = tf.lite.TFLiteConverter.from_saved_model(
        literal.path, signature_keys=["serving_default"]
    )
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if precision == "int8":
        converter.representative_dataset = samples
        converter.inference_input_type = tf.uint8
        # Integers only: an operation without an int8 kernel fails instead of running in float.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    try:
        with common.quiet():
            content = bytes(converter.convert())
    # The converter's own exception class is not public, and passes come with others.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"TFLite cannot hold this network in {precision}: {reason}") from error
    return flatbuffer.requantize_broadcasts(content)


def _samples(
    paths: Sequence[pathlib.Path], size: tuple[int, int], channels: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the calibration images, each with one black and one white pixel.

    The two make the measured input range 0..255 for any images. So one step of the uint8 input is
    one grey level, and the caller need not rescale.
    """
    from export import image_files

    for path in paths:
        image = image_files.read(path, size, channels)
        image[0, 0], image[-1, -1] = 0.0, 255.0
        yield {"images": image[None]}


def check(
    file: pathlib.Path, images: np.ndarray, reference: np.ndarray, tolerance: common.Tolerance
) -> common.Agreement:
    """Runs the file with LiteRT and compares it with Keras.

    The class ids are those of the file itself; the probabilities come from a copy in memory in
    which the input of its ARG_MAX is an output too.

    Args:
        file: The TFLite file.
        images: float32 [N, H, W, C], whole numbers 0..255.
        reference: float32 [N, H, W, classes], the Keras model's probabilities.
        tolerance: The agreement that it must reach.

    Returns:
        The agreement over all images.

    Raises:
        common.Disagreement: If input or output are not as documented, or predictions differ.
    """
    from export import flatbuffer

    content = file.read_bytes()
    if custom := flatbuffer.custom_operations(content):
        raise common.Disagreement(
            f"the file needs operations that LiteRT does not have ({', '.join(custom)})"
        )
    class_ids = np.concatenate([run(content, image[None])[0] for image in images])
    tapped = flatbuffer.with_logits_as_output(content)
    logits = np.stack([run(tapped, image[None])[1] for image in images])
    probabilities = common.probabilities_of(logits, class_ids, reference)
    agreement = common.compare(class_ids, probabilities, reference, tolerance.tie)
    tolerance.check(agreement, "the TFLite file")
    return agreement


def run(content: bytes, images: np.ndarray) -> list[np.ndarray]:
    """Runs one batch of images.

    Args:
        content: A TFLite file.
        images: [1, H, W, C], whole numbers 0..255 of any dtype; cast to that of the input.

    Returns:
        The outputs; quantised ones as real numbers.

    Raises:
        common.Disagreement: If the uint8 input is not 0..255.
    """
    litert = common.require("ai_edge_litert.interpreter")
    with common.quiet():
        interpreter = litert.Interpreter(model_content=content)
        interpreter.allocate_tensors()
    (details,) = interpreter.get_input_details()
    if details["dtype"] == np.uint8 and details["quantization"] != (1.0, 0):
        scale, zero_point = details["quantization"]
        raise common.Disagreement(
            f"the uint8 input would not be 0..255 (scale {scale}, zero point {zero_point})"
        )
    interpreter.set_tensor(details["index"], images.astype(details["dtype"]))
    interpreter.invoke()
    return [_real(interpreter, output) for output in interpreter.get_output_details()]


def _real(interpreter: Any, details: dict[str, Any]) -> np.ndarray:
    values: np.ndarray = interpreter.get_tensor(details["index"])
    scales = details["quantization_parameters"]["scales"]
    if not scales.size:
        return values
    real: np.ndarray = values.astype(np.float32) - details["quantization_parameters"]["zero_points"]
    return np.asarray(real * scales)


def main() -> None:
    """Exports as the flags say and prints what was published."""
    options = cli.read(config.TFLiteConfig)
    exported = export_tflite(
        options.model,
        options.output,
        options.input_size,
        options.precision,
        options.calibration_dir,
    )
    common.report(exported, options.json)


if __name__ == "__main__":
    cli.run(main)
