"""Each operation against its definition written out; sizes, serialisation."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from arrays import close, features, randomized
from keras import ops

from auto_deeplab_tf.nn import backend
from auto_deeplab_tf.nn.conv import AtrousConv2D, ConvBN
from auto_deeplab_tf.nn.operations import OperationLayer, operation_layer_class
from auto_deeplab_tf.nn.resize import resize_bilinear
from auto_deeplab_tf.search_space import DECODABLE_OPERATIONS

FILTERS = 4


def make(op, stride=1, atrous="full", seed=0):
    layer = operation_layer_class(op)(op, FILTERS, stride=stride, atrous=atrous)
    return randomized(layer, (None, None, None, FILTERS), seed=seed)


def convolve(x, kernel, stride=1, rate=1, depthwise=False):
    """Convolution with zero padding as a sum over taps: out[i] = sum_t x[i * stride + t] k[t]."""
    size = kernel.shape[0]
    out = [-(-extent // stride) for extent in x.shape[1:3]]
    # TensorFlow's SAME: as much padding as the outputs need, the odd one behind.
    total = [
        max((o - 1) * stride + (size - 1) * rate + 1 - e, 0)
        for o, e in zip(out, x.shape[1:3], strict=True)
    ]
    x = np.pad(x, [(0, 0), *((t // 2, t - t // 2) for t in total), (0, 0)])
    result = 0.0
    for row in range(size):
        for column in range(size):
            top, left = row * rate, column * rate
            window = x[:, top:, left:][:, ::stride, ::stride][:, : out[0], : out[1]]
            tap = kernel[row, column]
            result = result + (window * tap[:, 0] if depthwise else window @ tap)
    return result


def normalize(x, batch_norm):
    deviation = np.sqrt(np.asarray(batch_norm.moving_variance) + 1e-3)
    x = (x - np.asarray(batch_norm.moving_mean)) / deviation
    return x * np.asarray(batch_norm.gamma) + np.asarray(batch_norm.beta)


def relu(x):
    return np.maximum(x, 0)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("op", DECODABLE_OPERATIONS)
def test_sizes_are_rounded_up(op, stride):
    layer = make(op, stride)
    for height, width in ((9, 14), (8, 11), (3, 1)):
        result = layer(features((2, height, width, FILTERS)))
        expected = (2, -(-height // stride), -(-width // stride), FILTERS)
        assert result.shape == expected
        assert layer.compute_output_shape((2, height, width, FILTERS)) == expected


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("op", "size"), [("sep_3x3", 3), ("sep_5x5", 5)])
def test_separable_operation(op, size, stride):
    layer, x = make(op, stride), features((2, 9, 12, FILTERS))
    expected = x
    for unit, step in zip(layer.units, (stride, 1), strict=True):
        depthwise, pointwise = np.asarray(unit.depthwise.kernel), np.asarray(unit.conv.kernel)
        assert depthwise.shape[:2] == (size, size)
        expected = convolve(relu(expected), depthwise, stride=step, depthwise=True)
        expected = normalize(convolve(expected, pointwise), unit.batch_norm)
    close(layer(x), expected)


@pytest.mark.parametrize("atrous", ["full", "separable"])
@pytest.mark.parametrize(("op", "size"), [("atrous_3x3", 3), ("atrous_5x5", 5)])
def test_atrous_operation_at_rate_2(op, size, atrous):
    layer, x = make(op, atrous=atrous), features((2, 9, 12, FILTERS))
    (unit,) = layer.units
    if atrous == "full":
        assert unit.conv.kernel.shape == (size, size, FILTERS, FILTERS)
        expected = convolve(relu(x), np.asarray(unit.conv.kernel), rate=2)
    else:
        kernel = np.asarray(unit.depthwise.kernel)
        expected = convolve(relu(x), kernel, rate=2, depthwise=True)
        expected = convolve(expected, np.asarray(unit.conv.kernel))
    close(layer(x), normalize(expected, unit.batch_norm))


def test_atrous_operation_in_a_stride_2_position_resizes_and_has_rate_1():
    layer, x = make("atrous_3x3", stride=2), features((2, 9, 12, FILTERS))
    (unit,) = layer.units
    half = np.array(resize_bilinear(ops.convert_to_tensor(relu(x)), (5, 6)))
    close(layer(x), normalize(convolve(half, np.asarray(unit.conv.kernel)), unit.batch_norm))


@pytest.mark.parametrize("stride", [1, 2])
def test_pooling_takes_no_padding_into_account(stride):
    x = features((1, 5, 8, FILTERS)) - 3.0  # all negative: a maximum over padding would be 0
    for op, reduce in (("avg_pool_3x3", np.mean), ("max_pool_3x3", np.max)):
        result = np.array(make(op, stride)(x))
        for row in range(result.shape[1]):
            for column in range(result.shape[2]):
                # SAME at stride 2 pads an even extent behind only.
                top, left = (
                    at * stride - (1 if stride == 1 or extent % 2 else 0)
                    for at, extent in ((row, 5), (column, 8))
                )
                window = x[0, max(top, 0) : top + 3, max(left, 0) : left + 3]
                close(result[0, row, column], reduce(window, axis=(0, 1)))


def test_skip_is_the_identity_and_a_projection_in_a_stride_2_position():
    x = features((2, 9, 12, FILTERS))
    assert make("skip").weights == []
    np.testing.assert_array_equal(make("skip")(x), x)
    layer = make("skip", stride=2)
    (unit,) = layer.units
    expected = relu(x)[:, ::2, ::2] @ np.asarray(unit.conv.kernel)[0, 0]
    close(layer(x), normalize(expected, unit.batch_norm))


@pytest.mark.parametrize("rate", [5, 7, 8, 12])
def test_taps_on_padding_are_left_out_without_a_difference(rate):
    """Maps of 7x11: at rate 7 the outer rows of the window never touch one, at 11 the columns."""
    layer = randomized(
        AtrousConv2D(3, 3, dilation_rate=rate, padding="same", use_bias=False), (1, 7, 11, FILTERS)
    )
    x = features((2, 7, 11, FILTERS))
    expected = convolve(x, np.asarray(layer.kernel), rate=rate)
    close(layer(x), expected)
    any_size = tf.function(layer, input_signature=[tf.TensorSpec((None, None, None, FILTERS))])
    close(any_size(x), expected)


def value_and_gradients(convolution, *arguments):
    upstream = tf.constant(features((2, 13, 16, 5), seed=7))
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        result = convolution(*arguments)
    return [result, *tape.gradient(result, arguments, output_gradients=upstream)]


@pytest.mark.parametrize("rate", [2, 3, 12])
def test_a_convolution_that_the_kernel_dilates_equals_the_one_by_phases(rate):
    arguments = tf.constant(features((2, 13, 16, 4), seed=1)), tf.constant(features((3, 3, 4, 5)))
    ours = value_and_gradients(lambda x, k: backend.conv(x, k, rate=rate), *arguments)
    by_phases = value_and_gradients(
        lambda x, k: ops.conv(x, k, padding="same", dilation_rate=rate), *arguments
    )
    for one, other in zip(ours, by_phases, strict=True):
        close(one, other)
    traced = tf.function(lambda x, k: backend.conv(x, k, rate=rate)).get_concrete_function(
        *arguments
    )
    types = {op.type for op in traced.graph.get_operations()}
    assert ("SpaceToBatchND" in types) != backend.has_fast_cpu_kernels()


def test_no_kernel_is_asked_to_dilate_where_it_has_no_gradient():
    """TensorFlow's own CPU kernels refuse it; float16 has no others."""
    arguments = tf.ones((1, 9, 9, 2), tf.float16), tf.ones((3, 3, 2, 2), tf.float16)
    graph = tf.function(lambda x, k: backend.conv(x, k, rate=2)).get_concrete_function(*arguments)
    assert "SpaceToBatchND" in {op.type for op in graph.graph.get_operations()}


def test_relu_stands_where_it_is_asked_for():
    x = features((1, 4, 5, FILTERS))
    layers = {r: randomized(ConvBN(3, relu=r), x.shape) for r in ("before", "after", None)}
    for where, layer in layers.items():
        read = relu(x) if where == "before" else x
        expected = normalize(read @ np.asarray(layer.conv.kernel)[0, 0], layer.batch_norm)
        close(layer(x), relu(expected) if where == "after" else expected)
    with pytest.raises(ValueError, match="relu must be 'before', 'after' or None"):
        ConvBN(3, relu="both")


@pytest.mark.parametrize("form", [{}, {"separable": True}, {"depthwise_norm": True}])
def test_inference_folds_the_normalization_into_the_kernel(form):
    form = form | ({"separable": True} if form else {})
    x = features((1, 9, 7, FILTERS))
    layer = randomized(ConvBN(5, 3, rate=2, relu="after", **form), x.shape)
    norms = [norm for norm in (layer.depthwise_batch_norm, layer.batch_norm) if norm is not None]
    convolve = layer.depthwise if layer.depthwise is not None else layer.conv
    expected = convolve(x)
    if layer.depthwise is not None:
        if layer.depthwise_batch_norm is not None:
            expected = relu(normalize(expected, layer.depthwise_batch_norm))
        expected = layer.conv(expected)
    expected = relu(normalize(expected, layer.batch_norm))
    close(layer(x), expected)
    graph = tf.function(lambda x: layer(x, training=False)).get_concrete_function(x).graph
    of_maps = [op for op in graph.get_operations() if op.outputs and op.outputs[0].shape.rank == 4]
    types = [op.type for op in of_maps if op.outputs[0].shape[1] == 9]
    # Nothing but the convolutions, a bias for each normalisation, and their ReLU.
    assert types.count("AddV2") == len(norms) and not {"Mul", "Sub", "FusedBatchNormV3"} & {*types}
    # A frozen layer too, with its gradients.
    layer.batch_norm.trainable = False
    if layer.depthwise_batch_norm is not None:
        layer.depthwise_batch_norm.trainable = False
    with tf.GradientTape() as tape:
        frozen = layer(x, training=True)
    np.testing.assert_array_equal(frozen, layer(x))
    assert tape.gradient(frozen, layer.conv.kernel.value) is not None


@pytest.mark.parametrize("op", DECODABLE_OPERATIONS)
def test_a_layer_comes_back_from_its_config(op):
    layer = make(op, stride=2, atrous="separable")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is type(layer) and again.get_config() == layer.get_config()
    again.set_weights(layer.get_weights())
    x = features((2, 7, 6, FILTERS))
    np.testing.assert_array_equal(again(x), layer(x))


def test_mixed_precision_computes_in_bfloat16_and_normalizes_in_float32():
    layer = operation_layer_class("sep_3x3")("sep_3x3", FILTERS, dtype="mixed_bfloat16")
    assert layer(features((2, 6, 5, FILTERS)), training=True).dtype == "bfloat16"
    assert {weight.dtype for weight in layer.weights} == {"float32"}
    assert layer.units[1].conv.compute_dtype == "bfloat16"


def test_refused_arguments():
    with pytest.raises(ValueError, match="operation 'none' has no layer: a decoded edge carries"):
        operation_layer_class("none")
    with pytest.raises(ValueError, match="unknown operation 'sep_7x7': the operations are sep_3x3"):
        operation_layer_class("sep_7x7")
    with pytest.raises(ValueError, match="stride must be 1 or 2. Received: 3."):
        OperationLayer("sep_3x3", FILTERS, stride=3)
    with pytest.raises(ValueError, match="atrous must be 'full' or 'separable'. Received: 'half'."):
        OperationLayer("sep_3x3", FILTERS, atrous="half")
