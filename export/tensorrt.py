"""Exports a trained model towards TensorRT.

    python -m export.tensorrt --model=RUN/model.keras --output=model.onnx --input_size=513x513

--route=onnx (the default) writes an ONNX file of fixed height and width, with --dynamic_batch of
any number of images, and prints the trtexec command that builds the engine from it. Run that on the
machine that serves: an engine fits one kind of GPU only. --precision=float16 has trtexec compute in
16 bits where that is faster; --precision=int8 --calibration_dir=IMAGES writes 8-bit convolutions
into the file, with ranges measured on those images. --route=tf_trt writes a SavedModel with
TensorRT segments. It needs a TensorFlow built with TensorRT and a GPU; without them its error names
what to use instead. It is untested here.

Input and output are those of export.tflite: images float32 [N, H, W, C], 0..255, and class_ids
int32 [N, H, W], N = 1 unless it is left free. What was written is run and compared with the Keras
model before it gets its name; if the predictions differ, nothing is published.
"""

from __future__ import annotations

import os
import pathlib
import shlex
from collections.abc import Sequence

import numpy as np

from auto_deeplab_tf import cli, config
from auto_deeplab_tf.errors import RunError, UserError
from auto_deeplab_tf.files import LiteralPath
from export import common, provenance

cli.define(config.TensorRTConfig)

ROUTES = ("onnx", "tf_trt")
PRECISIONS = ("float32", "float16", "int8")
CHECKED_IMAGES = 4
# Of the engine's profile where the number of images is free: least, best, most.
BATCHES = (1, 4, 8)

# Engines compute in TF32 by default on GPUs that have it: 10 bits of mantissa.
TF_TRT_TOLERANCE = common.Tolerance(same_class=0.99, max_error=0.1, mean_error=0.01, tie=1e-3)


def export_tensorrt(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    input_size: Sequence[int],
    route: str = "onnx",
    precision: str = "float32",
    calibration_dir: str | os.PathLike[str] | None = None,
    dynamic_batch: bool = False,
) -> common.Exported:
    """Writes, checks and publishes a network for TensorRT.

    Args:
        model: A .keras file of `Segmenter`.
        output: A file ending in .onnx, which is replaced if it exists; for tf_trt a folder, which
            must not exist.
        input_size: (height, width).
        route: "onnx" or "tf_trt".
        precision: "float32"; "float16", the same file for an engine of 16 bits; or "int8".
        calibration_dir: Folder of images, for int8 only: the ranges of the activations are
            measured on up to 100 of them, and the predictions are compared on the first.
        dynamic_batch: Leave the number of images free; height and width are fixed always.

    Returns:
        The path, and its agreement with the Keras model.

    Raises:
        MissingFileError: If there is no such model, or no calibration image.
        UserError: For a model, a size, a precision or an output that cannot be used.
        FileExistsError: If the output folder of tf_trt exists.
        ImportError: If a package of the ONNX route is not installed.
        RunError: If this machine cannot do TF-TRT.
        common.Disagreement: If the export disagrees with the Keras model.
    """
    if route not in ROUTES:
        raise UserError(f"route={route} must be one of {', '.join(ROUTES)}.")
    common.check_precision(precision, PRECISIONS, calibration_dir)
    if route == "tf_trt" and (precision != "float32" or dynamic_batch):
        raise UserError("precision and dynamic_batch are for route=onnx.")
    size = common.check_input_size(input_size)
    model = common.check_model_file(model)
    output = pathlib.Path(output)
    if route == "onnx":
        common.check_output_file(output, ".onnx")
        for module in ("onnx", "onnxruntime", "tf2onnx"):
            common.require(module)
    else:
        if output.exists():
            # A folder cannot be replaced in one step.
            raise FileExistsError(f"output={output} exists already; give a new name.")
        check_tf_trt()
    # TensorFlow is imported here: the flags are read and checked before it starts.
    from export import image_files
    from export import model as model_lib
    from export import onnx as onnx_lib

    segmenter = model_lib.load(model)
    channels = segmenter.input_channels
    calibration, images = image_files.calibration_images(
        calibration_dir, size, channels, CHECKED_IMAGES
    )
    # Before the export, so that nothing the export does to the weights can hide in it.
    reference = model_lib.reference(segmenter, images)
    metadata = model_lib.describe(segmenter) | {
        "input_size": size,
        "route": route,
        "precision": precision,
    }
    with common.staging_folder(output.parent) as staged:
        graph, result = staged / "graph", staged / output.name
        model_lib.FixedGraph(segmenter, size, None if dynamic_batch else 1).save(graph)
        if route == "onnx":
            converted = onnx_lib.convert(graph, common.to_strings(metadata))
            result.write_bytes(converted.SerializeToString())
            tolerance = common.EXACT
            if precision == "int8":
                tolerance = common.INT8
                read = (image_files.read(path, size, channels)[None] for path in calibration)
                onnx_lib.quantize(result, read)
            agreement = onnx_lib.check(result, images, reference, tolerance)
            common.publish_file(result, output, model, metadata)
        else:
            convert_tf_trt(graph, result, (*size, segmenter.input_channels))
            extra = result / "assets.extra"
            extra.mkdir(exist_ok=True)
            (extra / "metadata.json").write_text(common.to_json(metadata) + "\n", "utf-8")
            agreement = check_saved_model(result, images, reference)
            provenance.write(result, model, metadata)
            os.replace(result, output)
    return common.Exported(output, agreement)


def trtexec_command(
    file: pathlib.Path, shape: Sequence[int | None], precision: str = "float32"
) -> str:
    """Returns the shell command that builds an engine from an ONNX file.

    Args:
        file: The file.
        shape: (batch, height, width, channels) of its input; a batch of None is free.
        precision: See `export_tensorrt`. An engine of int8 may compute in float16 too.
    """
    arguments = [f"--onnx={file}", f"--saveEngine={file.with_suffix('.plan')}"]
    if precision != "float32":
        arguments.append("--fp16")
    if precision == "int8":
        arguments.append("--int8")
    if shape[0] is None:
        image = "x".join(map(str, shape[1:]))
        arguments += [
            f"--{name}Shapes=images:{batch}x{image}"
            for name, batch in zip(("min", "opt", "max"), BATCHES, strict=True)
        ]
    return shlex.join(["trtexec", *arguments])


def check_tf_trt() -> None:
    """Checks that this TensorFlow, on this machine, can build TensorRT segments.

    In this order: the build flag, the library, a GPU. An import of trt_convert proves nothing, and
    asking a missing library for its version ends the process.

    Raises:
        RunError: With the reason, and what to use instead.
    """
    import tensorflow as tf

    reason = None
    if not tf.sysconfig.get_build_info().get("is_tensorrt_build"):
        reason = f"this TensorFlow ({tf.__version__}) was built without TensorRT"
    else:
        from tensorflow.compiler.tf2tensorrt import _pywrap_py_utils

        if not _pywrap_py_utils.is_tensorrt_enabled():
            reason = f"TensorRT is switched off in this TensorFlow ({tf.__version__})"
        elif not tf.config.list_physical_devices("GPU"):
            reason = "TensorFlow sees no GPU here"
    if reason:
        raise RunError(
            f"route=tf_trt cannot work: {reason}. Use route=onnx and build the engine with "
            "trtexec; TF-TRT itself is in TensorFlow up to 2.17 with NVIDIA's libraries (their "
            "container), and its models need a TensorFlow Serving of that version or earlier."
        )


def convert_tf_trt(graph: pathlib.Path, result: pathlib.Path, shape: tuple[int, int, int]) -> None:
    """Writes a SavedModel whose graph has TensorRT segments, with their engines built.

    Untested: see `check_tf_trt`.
    """
    import tensorflow as tf
    from tensorflow.python.compiler.tensorrt import trt_convert

    converter = trt_convert.TrtGraphConverterV2(
        input_saved_model_dir=str(graph), precision_mode=trt_convert.TrtPrecisionMode.FP32
    )
    converter.convert()
    converter.build(lambda: iter([(tf.zeros([1, *shape], tf.float32),)]))
    converter.save(str(result))


def check_saved_model(
    folder: pathlib.Path, images: np.ndarray, reference: np.ndarray
) -> common.Agreement:
    """Loads a SavedModel of fixed size from disk and compares its class ids with Keras.

    Args:
        folder: Folder of the SavedModel.
        images: float32 [N, H, W, C], 0..255.
        reference: float32 [N, H, W, classes], the Keras model's probabilities.

    Returns:
        The agreement over all images.

    Raises:
        common.Disagreement: If they differ.
    """
    import tensorflow as tf

    literal = LiteralPath(folder)
    loaded = tf.saved_model.load(literal.path)
    serve = loaded.signatures["serving_default"]
    class_ids = [serve(images=tf.constant(image[None]))["class_ids"].numpy() for image in images]
    # It gives no probabilities, so only the classes can be judged.
    agreement = common.compare(
        np.concatenate(class_ids), reference, reference, TF_TRT_TOLERANCE.tie
    )
    TF_TRT_TOLERANCE.check(agreement, "the TF-TRT model")
    return agreement


def main() -> None:
    """Exports as the flags say and prints what was published."""
    options = cli.read(config.TensorRTConfig)
    exported = export_tensorrt(
        options.model,
        options.output,
        options.input_size,
        options.route,
        options.precision,
        options.calibration_dir,
        options.dynamic_batch,
    )
    command = None
    if options.route == "onnx":
        from export import onnx as onnx_lib

        command = trtexec_command(
            exported.path, onnx_lib.input_shape(exported.path), options.precision
        )
    common.report(exported, options.json, **({"trtexec": command} if command else {}))
    if command and not options.json:
        print(f"on the machine that serves: {command}")


if __name__ == "__main__":
    cli.run(main)
