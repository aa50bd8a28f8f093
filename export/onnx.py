"""A network as an ONNX file of fixed size: the route to TensorRT that lasts.

tf2onnx ends without an error on operations it cannot translate. So a file passes only if ONNX's own
checker accepts it and ONNX Runtime predicts what Keras predicts.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.files import LiteralPath
from export import common

if TYPE_CHECKING:
    import onnx

OPSET = 17
"""Understood by TensorRT 8.6 and later."""


def convert(graph: pathlib.Path, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Converts a SavedModel of fixed sizes: images -> class_ids, as in `model.FixedGraph`.

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
    package.helper.set_model_props(model, dict(metadata))
    return model


def check(file: pathlib.Path, images: np.ndarray, reference: np.ndarray) -> common.Agreement:
    """Checks the file with ONNX, runs it with ONNX Runtime and compares it with Keras.

    The class ids are those of the file itself; the probabilities come from a copy in memory in
    which the input of its ArgMax is an output too.

    Args:
        file: The ONNX file.
        images: float32 [N, H, W, C], 0..255.
        reference: float32 [N, H, W, classes], the Keras model's probabilities.

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
    class_ids = _run(str(file), images)[0][:, 0]
    logits = _run(_with_logits_as_output(onnx.load(str(file))), images)[1]
    probabilities = common.probabilities_of(logits, class_ids, reference)
    agreement = common.compare(class_ids, probabilities, reference, common.EXACT.tie)
    common.EXACT.check(agreement, "the ONNX file")
    return agreement


def _run(model: str | bytes, images: np.ndarray) -> list[np.ndarray]:
    """Runs images one by one with ONNX Runtime; stacks each output along a new first axis."""
    runtime = common.require("onnxruntime")
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    outputs = [session.run(None, {"images": image[None]}) for image in images]
    return [np.stack(parts) for parts in zip(*outputs, strict=True)]


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
