"""The messages of TensorFlow Serving and gRPC, and their tensors as NumPy arrays.

The generated modules live under `tensorflow.core`, so importing them would start TensorFlow: 20
seconds of a core, and its memory. They need nothing of it but the folder; where TensorFlow has not
been imported, an empty package stands for it while they are.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import threading
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from auto_deeplab_tf.errors import UserError
from export import common
from export.serving.native import DTYPES, STRING

NUMBERS = {dtype: number for number, dtype in DTYPES.items()}
# Of TensorProto: the field that holds values of a dtype, where tensor_content is not used.
_VALUE_FIELDS = {
    "float32": "float_val",
    "float64": "double_val",
    "int64": "int64_val",
    "bool": "bool_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    "object": "string_val",
}
# A probability map of 513x513 pixels has 21 MB; gRPC's own limit is 4 MB.
GRPC_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
)
_LOCK = threading.Lock()


def load(name: str) -> types.ModuleType:
    """Imports a generated module, such as `tensorflow_serving.apis.predict_pb2`.

    Raises:
        MissingExtraError: If tensorflow-serving-api is not installed.
    """
    if name in sys.modules or "tensorflow" in sys.modules:
        return common.require(name)
    with _LOCK:
        spec = importlib.util.find_spec("tensorflow")
        stub = types.ModuleType("tensorflow")
        stub.__path__ = list((spec and spec.submodule_search_locations) or ())
        sys.modules["tensorflow"] = stub
        try:
            return common.require(name)
        finally:
            # The packages below stay: TensorFlow imports them again by their names.
            del sys.modules["tensorflow"]


def to_array(proto: Any) -> np.ndarray:
    """Returns a TensorProto as an array; strings as `bytes` objects.

    Raises:
        UserError: For a dtype or a number of values that does not fit.
    """
    dtype = DTYPES.get(proto.dtype)
    if dtype is None:
        raise UserError(f"tensors of DataType {proto.dtype} are not supported.")
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or min(shape, default=0) < 0:
        raise UserError("the shape of a tensor must be known.")
    count = math.prod(shape)
    if math.prod(side or 1 for side in shape) > 2**40:
        raise UserError(f"a tensor of shape {shape} is too large.")
    if proto.tensor_content:
        size = count * dtype.itemsize
        if dtype.kind == "O" or len(proto.tensor_content) != size:
            raise UserError(
                f"a tensor of shape {shape} has {size} bytes of tensor_content, but there are "
                f"{len(proto.tensor_content)}."
            )
        content: np.ndarray = np.frombuffer(proto.tensor_content, dtype)
        return content.reshape(shape)
    values: Any = list(getattr(proto, _VALUE_FIELDS.get(dtype.name, "int_val")))
    if dtype == np.float16:  # as the integers of their bits
        values = np.array(proto.half_val, np.uint16).view(dtype)
    if len(values) > count or (count and not len(values) and dtype.kind == "O"):
        raise UserError(f"a tensor of shape {shape} cannot hold {len(values)} values.")
    if count > len(values) and count * dtype.itemsize > 2**28:
        raise UserError(f"a tensor of shape {shape} is larger than 256 MiB.")
    # The last value stands for the rest, zero where there is none.
    found: np.ndarray = np.empty(count, dtype)
    found[:] = values[-1] if len(values) else 0
    found[: len(values)] = values
    return found.reshape(shape)


def from_array(array: np.ndarray, proto: Any) -> None:
    """Fills a TensorProto with an array."""
    proto.dtype = NUMBERS[array.dtype]
    for side in array.shape:
        proto.tensor_shape.dim.add(size=side)
    if proto.dtype == STRING:
        proto.string_val.extend(array.flat)
    else:
        proto.tensor_content = array.tobytes()


def fill_inputs(request: Any, signature: str, inputs: Mapping[str, np.ndarray]) -> None:
    """Fills a PredictRequest but for the model's name and version."""
    request.model_spec.signature_name = signature
    for key, array in inputs.items():
        from_array(array, request.inputs[key])
