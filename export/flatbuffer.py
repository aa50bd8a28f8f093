"""Edits of TFLite files: metadata, the logits as an output, one repair.

All functions take and return the bytes of a file. The schema, its reader and its writer are those
that TensorFlow ships.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

from auto_deeplab_tf.errors import UserError

METADATA_NAME = "auto_deeplab_tf"
"""Name of the metadata entry; its buffer holds JSON."""


def add_metadata(content: bytes, text: str) -> bytes:
    """Returns the file with `text` as its metadata entry METADATA_NAME."""
    model = _read(content)
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(text.encode(), np.uint8)
    entry = schema.MetadataT()
    entry.name, entry.buffer = METADATA_NAME, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    return _write(model)


def read_metadata(content: bytes) -> str:
    """Returns the text of the metadata entry METADATA_NAME.

    Raises:
        UserError: If the file has none.
    """
    model = _read(content)
    for entry in model.metadata or []:
        if _text(entry.name) == METADATA_NAME:
            return bytes(bytearray(model.buffers[entry.buffer].data)).decode()
    raise UserError(
        f"the file has no metadata entry {METADATA_NAME!r}: it is not from this exporter."
    )


def custom_operations(content: bytes) -> list[str]:
    """Returns the names of operations that TFLite lacks, TensorFlow's (Flex) among them."""
    codes = _read(content).operatorCodes
    return sorted(_text(code.customCode) for code in codes if code.customCode is not None)


def with_logits_as_output(content: bytes) -> bytes:
    """Returns the file with the input of its ARG_MAX as a second output, to be run by index.

    Raises:
        UserError: If it does not have exactly one ARG_MAX.
    """
    model = _read(content)
    (graph,) = model.subgraphs
    argmax = [op for op in graph.operators if _is(model, op, schema.BuiltinOperator.ARG_MAX)]
    if len(argmax) != 1:
        raise UserError(f"the file has {len(argmax)} ARG_MAX, not one.")
    graph.outputs = [*graph.outputs, argmax[0].inputs[0]]
    # A signature would have to name the new output; the interpreter runs without one.
    model.signatureDefs = []
    return _write(model)


def requantize_broadcasts(content: bytes) -> bytes:
    """Returns the file with a QUANTIZE after every BROADCAST_TO that changes the scale.

    The converter of TensorFlow 2.20 gives the output of an int8 BROADCAST_TO the scale of its
    reader (in the ASPP: of the concatenation with the other branches), but the kernel copies the
    integers. The broadcast values are then wrong by the ratio of the two scales: five times too
    large in one network, which kept the right class on 7 % of the pixels.
    """
    model = _read(content)
    for graph in model.subgraphs:
        operators = []
        for operator in graph.operators:
            operators.append(operator)
            if not _is(model, operator, schema.BuiltinOperator.BROADCAST_TO):
                continue
            source = graph.tensors[operator.inputs[0]]
            result = graph.tensors[operator.outputs[0]]
            if _scale(source) == _scale(result):
                continue
            copied = copy.copy(result)
            copied.name = f"{_text(result.name)}/copied"
            copied.quantization = source.quantization
            copied.buffer = 0  # by the format's rule the empty one
            graph.tensors.append(copied)
            quantize = schema.OperatorT()
            quantize.opcodeIndex = _code(model, schema.BuiltinOperator.QUANTIZE)
            quantize.inputs, quantize.outputs = [len(graph.tensors) - 1], operator.outputs
            operator.outputs = quantize.inputs
            operators.append(quantize)
        graph.operators = operators
    return _write(model)


def _read(content: bytes) -> Any:
    return flatbuffer_utils.convert_bytearray_to_object(bytearray(content))


def _write(model: Any) -> bytes:
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _is(model: Any, operator: Any, builtin: int) -> bool:
    return bool(model.operatorCodes[operator.opcodeIndex].builtinCode == builtin)


def _code(model: Any, builtin: int) -> int:
    """Returns the index of an operation in the file's table; adds it if it is missing."""
    for index, code in enumerate(model.operatorCodes):
        if code.builtinCode == builtin:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = builtin
    # Readers older than the longer field look here; it holds up to 127.
    code.deprecatedBuiltinCode = min(builtin, 127)
    code.version = 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _scale(tensor: Any) -> tuple[list[float], list[int]]:
    """Returns scales and zero points; empty for a tensor that is not quantised."""
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None:
        return [], []
    return list(quantization.scale), list(quantization.zeroPoint)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
