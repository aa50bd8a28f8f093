"""A network as an ONNX file of fixed height and width: the route to TensorRT that lasts.

tf2onnx ends without an error on operations it cannot translate. So a file passes only if ONNX's own
checker accepts it and ONNX Runtime predicts what Keras predicts.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.files import LiteralPath
from export import common

if TYPE_CHECKING:
    import onnx

OPSET = 17
"""Understood by TensorRT 8.6 and later."""

BATCH = "batch"
"""Name of the first dimension of a file whose number of images is free."""


def convert(graph: pathlib.Path, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Converts a SavedModel: images -> class_ids, as in `model.FixedGraph`.

    Args:
        graph: Folder of the SavedModel.
        metadata: Content of metadata_props.

    Returns:
        The ONNX model.

    Raises:
        ImportError: If tf2onnx or onnx is not installed.
        UserError: If tf2onnx cannot convert it.
    """
    import tensorflow as tf
    from tensorflow.python.framework import convert_to_constants

    package = common.require("onnx")
    literal = LiteralPath(graph)
    loaded = tf.saved_model.load(literal.path)
    function = loaded.signatures["serving_default"]
    try:
        with common.quiet():
            tf2onnx = common.require("tf2onnx.convert")
            frozen = convert_to_constants.convert_variables_to_constants_v2(function)
            (images,), (class_ids,) = frozen.inputs, frozen.outputs
            converted, _ = tf2onnx.from_graph_def(
                frozen.graph.as_graph_def(),
                name="auto_deeplab_tf",
                input_names=[images.name],
                output_names=[class_ids.name],
                tensors_to_rename={images.name: "images", class_ids.name: "class_ids"},
                opset=OPSET,
            )
    except ImportError:
        raise
    # tf2onnx raises whatever its handlers come across.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"ONNX cannot hold this network: {reason}") from error
    model: onnx.ModelProto = converted
    for value in (*model.graph.input, *model.graph.output):
        first = value.type.tensor_type.shape.dim[0]
        if not first.HasField("dim_value"):
            first.dim_param = BATCH
    _resize_to_whole_sizes(model)
    package.helper.set_model_props(model, dict(metadata))
    return model


def _resize_to_whole_sizes(model: onnx.ModelProto) -> None:
    """Gives every Resize the height and width of its result in place of its scales.

    tf2onnx writes scales, and a scale in float32 times a size can fall short of a whole number by
    so little that the result loses a row.
    """
    onnx = common.require("onnx")
    graph = model.graph
    resizes = [node for node in graph.node if node.op_type == "Resize"]
    scales = {node.input[2] for node in resizes}
    unused = scales | {node.input[1] for node in resizes}
    for value in graph.initializer:
        if value.name in scales:
            factors = onnx.numpy_helper.to_array(value) * np.float32(1 + 1e-6)
            value.CopyFrom(onnx.numpy_helper.from_array(factors, value.name))
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in inferred.value_info}
    for node in resizes:
        shape = shapes[node.output[0]]
        height, width = (dimension.dim_value for dimension in shape[2:])
        sizes, new = f"{node.name}_sizes", f"{node.name}_new_size"
        if shape[0].HasField("dim_value"):
            known = np.array([shape[0].dim_value, shape[1].dim_value, height, width], np.int64)
            graph.initializer.append(onnx.numpy_helper.from_array(known, sizes))
        else:
            kept = f"{node.name}_kept_size"
            known = np.array([height, width], np.int64)
            graph.initializer.append(onnx.numpy_helper.from_array(known, new))
            at = next(i for i, each in enumerate(graph.node) if each.name == node.name)
            graph.node.insert(at, onnx.helper.make_node("Concat", [kept, new], [sizes], axis=0))
            graph.node.insert(at, onnx.helper.make_node("Shape", [node.input[0]], [kept], end=2))
        node.input[:] = [node.input[0], "", "", sizes]
    for value in [each for each in graph.initializer if each.name in unused]:
        graph.initializer.remove(value)


def quantize(file: pathlib.Path, samples: Iterable[np.ndarray]) -> None:
    """Replaces a file's convolutions by those of 8 bits, with their scales in the file.

    Weights and activations are symmetric, weights with a scale for each channel, as TensorRT asks
    for; everything between two convolutions is left to the runtime. Scales are written as pairs of
    QuantizeLinear and DequantizeLinear, which TensorRT reads from 8 on (its calibration caches are
    deprecated since 10.1) and which ONNX Runtime can check.

    Args:
        file: An ONNX file of float32; it is overwritten.
        samples: Batches float32 [1, H, W, C] that the ranges of the activations are measured on.
    """
    quantization = common.require("onnxruntime.quantization")
    batches = iter(samples)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(batches, None)
            return None if batch is None else {"images": batch}

    with common.quiet():
        quantization.quantize_static(
            file,
            file,
            Reader(),
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                # The results of convolutions stay float32: TensorRT fuses what follows.
                "OpTypesToExcludeOutputQuantization": ["Conv"],
            },
        )


def check(
    file: pathlib.Path,
    images: np.ndarray,
    reference: np.ndarray,
    tolerance: common.Tolerance = common.EXACT,
) -> common.Agreement:
    """Checks the file with ONNX, runs it with ONNX Runtime and compares it with Keras.

    A file with a free number of images is run with one image at a time and with all at once.

    The class ids are those of the file itself; the probabilities come from a copy in memory in
    which the input of its ArgMax is an output too.

    Args:
        file: The ONNX file.
        images: float32 [N, H, W, C], 0..255.
        reference: float32 [N, H, W, classes], the Keras model's probabilities.
        tolerance: The agreement that it must reach.

    Returns:
        The agreement over all images.

    Raises:
        common.Disagreement: If the file is invalid or its predictions differ.
    """
    onnx = common.require("onnx")
    try:
        onnx.checker.check_model(str(file), full_check=True)
    # The checker and the shape inference have an exception class each, neither a ValueError.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise common.Disagreement(f"ONNX's checker refuses the file ({reason})") from error
    model = onnx.load(str(file))
    logits_too = _with_logits_as_output(model)
    ways = [[image[None] for image in images]]
    if _shape(model)[0] is None:
        ways.append([images])
    for batches in ways:
        (class_ids,) = _run(str(file), batches)
        # The copy's own class ids: in 8 bits it may round otherwise than the file.
        own_ids, logits = _run(logits_too, batches)
        probabilities = common.probabilities_of(logits[:, None], own_ids, reference)
        agreement = common.compare(class_ids, probabilities, reference, tolerance.tie)
        tolerance.check(agreement, f"the ONNX file, in batches of {len(batches[0])},")
    return agreement


def input_shape(file: pathlib.Path) -> tuple[int | None, ...]:
    """Returns (batch, height, width, channels) of a file's images; None where it is free."""
    return _shape(common.require("onnx").load(str(file)))


def _shape(model: onnx.ModelProto) -> tuple[int | None, ...]:
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    return tuple(each.dim_value if each.HasField("dim_value") else None for each in dimensions)


def _run(model: str | bytes, batches: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Runs batches one by one with ONNX Runtime; joins the parts of each output."""
    runtime = common.require("onnxruntime")
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    outputs = [session.run(None, {"images": batch}) for batch in batches]
    return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]


def _with_logits_as_output(model: onnx.ModelProto) -> bytes:
    """Returns the model with the input of its one ArgMax as a second output."""
    onnx = common.require("onnx")
    argmax = [node for node in model.graph.node if node.op_type == "ArgMax"]
    if len(argmax) != 1:
        raise common.Disagreement(f"the ONNX file has {len(argmax)} ArgMax, not one")
    name = argmax[0].input[0]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
    )
    return bytes(model.SerializeToString())
