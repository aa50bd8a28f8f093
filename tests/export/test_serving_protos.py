"""Tensors of TensorFlow Serving's messages as arrays, and what the serving modules import."""

import subprocess
import sys

import numpy as np
import pytest

from auto_deeplab_tf.errors import UserError
from export.serving import protos
from export.serving.native import DTYPES


def tensor(**fields):
    shape = fields.pop("shape", None)
    proto = protos.load("tensorflow.core.framework.tensor_pb2").TensorProto(**fields)
    for side in shape or ():
        proto.tensor_shape.dim.add(size=side)
    return proto


@pytest.mark.parametrize("number", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_an_array_comes_back(number, shape):
    values = np.arange(6)[: int(np.prod(shape))].reshape(shape)
    if DTYPES[number].kind == "O":
        array = np.empty(shape, object)
        array.flat[:] = [bytes([255, value]) for value in values.flat]
    else:
        array = values.astype(DTYPES[number])
    proto = tensor()
    protos.from_array(array, proto)
    assert proto.dtype == number
    found = protos.to_array(type(proto).FromString(proto.SerializeToString()))
    assert found.dtype == array.dtype and found.shape == shape
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    ("proto", "expected"),
    [
        (tensor(dtype=1, shape=(2, 2), float_val=[1.5]), np.full((2, 2), 1.5, np.float32)),
        (tensor(dtype=3, shape=(3,), int_val=[4, 5]), np.array([4, 5, 5], np.int32)),
        (tensor(dtype=9, shape=(2,), int64_val=[-1, 2]), np.array([-1, 2])),
        (tensor(dtype=4, shape=(2,), int_val=[255]), np.array([255, 255], np.uint8)),
        (tensor(dtype=10, shape=(1,), bool_val=[True]), np.array([True])),
        (tensor(dtype=19, shape=(2,), half_val=[0x3C00]), np.ones(2, np.float16)),
        (tensor(dtype=2, double_val=[0.5]), np.array(0.5)),
        (tensor(dtype=1, shape=(2,)), np.zeros(2, np.float32)),
    ],
)
def test_values_in_fields_of_their_own(proto, expected):
    """The last one stands for those that are left out, zero if there is none."""
    found = protos.to_array(proto)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (tensor(dtype=14), "DataType 14 are not supported"),  # bfloat16
        (tensor(dtype=1, shape=(-1,)), "shape of a tensor must be known"),
        (tensor(dtype=1, shape=(2,), tensor_content=b"1234"), "has 8 bytes of tensor_content"),
        (tensor(dtype=7, shape=(1,), tensor_content=b"1"), "tensor_content"),
        (tensor(dtype=7, shape=(2,)), "cannot hold 0 values"),
        (tensor(dtype=1, shape=(1,), float_val=[1, 2]), "cannot hold 2 values"),
        (tensor(dtype=1, shape=(2**40,)), "larger than 256 MiB"),
        (tensor(dtype=1, shape=(0, 2**62)), "is too large"),
    ],
)
def test_tensors_that_are_refused(proto, message):
    with pytest.raises(UserError, match=message):
        protos.to_array(proto)


def test_no_serving_module_imports_tensorflow():
    code = """
import sys
from export.serving import client, load_test, native, protos, rest, stand_in, versions, worker
client.Client("localhost:1").close()
for name in ("prediction_log_pb2", "get_model_metadata_pb2", "prediction_service_pb2_grpc"):
    protos.load("tensorflow_serving.apis." + name)
assert not {"tensorflow", "keras", "tensorflow.python"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
