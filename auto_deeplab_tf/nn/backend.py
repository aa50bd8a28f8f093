"""Fast paths of one backend, each beside its plain default.

The plain defaults are `keras.ops` and run on every Keras backend, and under XLA; the fast paths are
for TensorFlow on CPU, where the supernet is bound by depthwise filter gradients and by the number
of kernels that run. How segments are compiled and called is in `nn/execution.py`.
"""

import contextlib
import contextvars
import functools
import os
import platform

import keras
import numpy as np
from keras import ops

_TENSORFLOW = keras.backend.backend() == "tensorflow"
if _TENSORFLOW:
    import tensorflow as tf


@functools.cache
def has_fast_cpu_kernels():
    """Tells whether oneDNN's CPU kernels serve.

    They do in TensorFlow on x86-64 without a GPU, where oneDNN is not switched off. Without it
    grouped convolutions have no gradient on CPU.
    """
    return (
        _TENSORFLOW
        and platform.machine() in ("x86_64", "AMD64")
        and os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1") != "0"
        and not tf.config.list_physical_devices("GPU")
    )


_plain_only = contextvars.ContextVar("plain_only", default=False)
_on_keep = contextvars.ContextVar("on_keep", default=None)


@contextlib.contextmanager
def _setting(variable, value):
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def plain_kernels():
    """A context in which the plain defaults serve: the form that XLA compiles."""
    return _setting(_plain_only, True)


def keeping(on_keep):
    """A context in which `keep` calls `on_keep(tensor)` and returns its result."""
    return _setting(_on_keep, on_keep)


def keep(tensor):
    """Marks a tensor that is dear to compute and that the backward pass needs.

    Segments that save tensors for their backward pass save these; elsewhere it does nothing.
    """
    on_keep = _on_keep.get()
    return tensor if on_keep is None else on_keep(tensor)


def _takes_fast_path(images):
    # oneDNN's grouped convolutions know no float16.
    dtype = keras.backend.standardize_dtype(images.dtype)
    return not _plain_only.get() and dtype != "float16" and has_fast_cpu_kernels()


def _compiles_for_xla():
    return _TENSORFLOW and _plain_only.get()


def _has_dilated_kernels(images):
    """Tells whether TensorFlow dilates a convolution, and its gradients, by the kernel itself.

    XLA, cuDNN and oneDNN do; TensorFlow's own CPU kernels have no such gradient.
    """
    return (
        _compiles_for_xla()
        or _takes_fast_path(images)
        or (_TENSORFLOW and bool(tf.config.list_physical_devices("GPU")))
    )


def read(variable):
    """Returns the value of a Keras variable as a tensor.

    `keras.ops.convert_to_tensor` leaves a variable as it is; a compiled function that gets one for
    an argument copies it by way of numpy.
    """
    return tf.convert_to_tensor(variable.value) if _TENSORFLOW else variable.value


def split(values, sizes, axis):
    """Splits a tensor into parts of the given sizes along an axis.

    `keras.ops.split` adds 20 nodes to a graph, this 2.
    """
    if len(sizes) == 1:
        return [values]
    if _TENSORFLOW:
        return tf.split(values, sizes, axis)
    return ops.split(values, np.cumsum(sizes)[:-1].tolist(), axis)


def sum_all(terms):
    """Sums tensors of one shape and dtype."""
    if len(terms) == 1:
        return terms[0]
    if _TENSORFLOW:
        return tf.add_n(terms)
    return functools.reduce(ops.add, terms)


def combine(matrix, values):
    """Multiplies each matrix by one from the left: [M, K], [..., K, C] -> [..., M, C].

    XLA makes one product of all, and transposes the result, unless each has a matrix of its own.
    """
    matrix = ops.cast(matrix, values.dtype)
    if _compiles_for_xla():
        matrix = ops.broadcast_to(matrix, (*ops.shape(values)[:-2], *ops.shape(matrix)))
    return ops.matmul(matrix, values)


def grouped_pointwise(images, kernel):
    """Applies a 1x1 convolution of its own to each group of channels.

    Args:
        images: float [N, h, w, groups * channels], group-major.
        kernel: float [channels, groups, filters].

    Returns:
        float [N, h, w, groups * filters], group-major.
    """
    channels, groups, filters = kernel.shape
    if groups == 1 or _takes_fast_path(images):
        kernel = ops.reshape(kernel, (1, 1, channels, groups * filters))
        if groups == 1:
            return ops.conv(images, kernel, padding="same")
        return tf.nn.conv2d(images, kernel, strides=1, padding="SAME")
    return plain_grouped_pointwise(images, kernel)


def plain_grouped_pointwise(images, kernel):
    """The default of `grouped_pointwise`: one batched matrix product."""
    channels, groups, filters = kernel.shape
    _, height, width, _ = ops.shape(images)
    grouped = ops.reshape(images, (-1, height, width, groups, channels))
    return ops.reshape(
        ops.einsum("nhwgc,cgd->nhwgd", grouped, kernel), (-1, height, width, groups * filters)
    )


def depthwise_convs(images, kernels, rate=1):
    """Convolves each channel with kernels of its own, at stride 1, zero padded to the same size.

    Args:
        images: float [N, h, w, C].
        kernels: list of float [k, k, C], each k odd.
        rate: int, the atrous rate.

    Returns:
        float [N, h, w, len(kernels) * C]: the results side by side.
    """
    if not _takes_fast_path(images):
        return plain_depthwise_convs(images, kernels, rate)
    convs = [_depthwise_conv_5x5 if kernel.shape[0] == 5 else _depthwise_conv for kernel in kernels]
    if rate > 1:
        # Each phase of the grid is convolved at rate 1; all kernels share the rearranged images.
        _, height, width, _ = images.shape
        bottom, right = -height % rate, -width % rate
        images = tf.space_to_batch(images, [rate, rate], [[0, bottom], [0, right]])
    results = [
        conv(images, ops.reshape(kernel, (*kernel.shape, 1)))
        for conv, kernel in zip(convs, kernels, strict=True)
    ]
    result = tf.concat(results, axis=-1) if len(results) > 1 else results[0]
    if rate > 1:
        result = tf.batch_to_space(result, [rate, rate], [[0, bottom], [0, right]])
    return result


def plain_depthwise_convs(images, kernels, rate=1):
    """The default of `depthwise_convs`."""
    conv = _dilated_depthwise_conv if _compiles_for_xla() else ops.depthwise_conv
    return ops.concatenate(
        [conv(images, kernel[..., None], padding="same", dilation_rate=rate) for kernel in kernels],
        axis=-1,
    )


def conv(images, kernel, strides=1, padding="same", rate=1):
    """`keras.ops.conv` in two dimensions; an atrous one without phases where the kernel allows.

    On TensorFlow `keras.ops.conv` rearranges images and results into rate * rate padded phases;
    at rate 24 on 33x33 these hold 576 * 9 positions of 9 taps.

    Args:
        images: float [N, h, w, C].
        kernel: float [k, k, C, D].
        strides: int or pair; 1 where `rate` is not 1.
        padding: "same" or "valid".
        rate: the atrous rate.

    Returns:
        float [N, h', w', D].
    """
    if rate > 1 and _has_dilated_kernels(images):
        return tf.nn.conv2d(images, kernel, 1, padding.upper(), dilations=rate)
    return ops.conv(images, kernel, strides=strides, padding=padding, dilation_rate=rate)


if _TENSORFLOW:

    def _dilated_depthwise_conv(images, kernel, padding, dilation_rate):
        """For XLA: dilated by the kernel; `tf.nn.depthwise_conv2d` would move values into phases.

        The filter gradient alone is taken of the phases: of a dilated one XLA makes, for a GPU, a
        grouped convolution with both maps transposed before it.
        """
        settings = {
            "strides": [1, 1, 1, 1],
            "padding": padding.upper(),
            "dilations": [1, dilation_rate, dilation_rate, 1],
        }
        if dilation_rate == 1:
            return tf.raw_ops.DepthwiseConv2dNative(input=images, filter=kernel, **settings)

        @tf.custom_gradient
        def convolve(images, kernel):
            def gradient(upstream):
                images_gradient = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
                    input_sizes=tf.shape(images), filter=kernel, out_backprop=upstream, **settings
                )
                kernel_gradient = tf.nn.depthwise_conv2d_backprop_filter(
                    _phases(images, dilation_rate),
                    kernel.shape,
                    _phases(upstream, dilation_rate),
                    [1, 1, 1, 1],
                    padding.upper(),
                )
                return images_gradient, kernel_gradient

            result = tf.raw_ops.DepthwiseConv2dNative(input=images, filter=kernel, **settings)
            return result, gradient

        return convolve(images, kernel)

    def _phases(images, rate):
        """Every rate-th row and column from each of the first, one behind the other in the batch.

        float [N, h, w, C] -> [rate * rate * N, ceil(h / rate), ceil(w / rate), C], 0 where a phase
        has ended.
        """
        _, height, width, _ = images.shape
        images = tf.pad(images, [[0, 0], [0, -height % rate], [0, -width % rate], [0, 0]])
        return tf.concat(
            [images[:, i::rate, j::rate] for i in range(rate) for j in range(rate)], axis=0
        )

    def _depthwise_conv(images, kernel):
        return tf.nn.depthwise_conv2d(images, kernel, [1, 1, 1, 1], "SAME")

    @tf.custom_gradient
    def _depthwise_conv_5x5(images, kernel):
        """A depthwise 5x5 convolution whose filter gradient is taken in two halves of width 3.

        TensorFlow's CPU kernel has a fast path for filters of width 3: measured 8.4 ms for the
        5x5 filter gradient at [2, 33, 33, 320] on one core, 1.1 ms for a 5x3.
        """

        def gradient(upstream):
            images_gradient = tf.nn.depthwise_conv2d_backprop_input(
                tf.shape(images), kernel, upstream, [1, 1, 1, 1], "SAME"
            )
            halves = [
                tf.nn.depthwise_conv2d_backprop_filter(
                    tf.pad(images, [[0, 0], [2, 2], columns, [0, 0]]),
                    [5, 3, images.shape[-1], 1],
                    upstream,
                    [1, 1, 1, 1],
                    "VALID",
                )
                for columns in ([2, 0], [0, 2])
            ]
            # Both halves hold the middle column.
            _, right = tf.split(halves[1], [1, 2], axis=1)
            return images_gradient, tf.concat([halves[0], right], axis=1)

        return _depthwise_conv(images, kernel), gradient


def max_pool(images, size, strides=1, padding="same"):
    """`keras.ops.max_pool` at stride 1; positions on padding never win.

    float [N, h, w, C] -> the same shape.
    """
    if _plain_only.get():
        return plain_max_pool(images, size)
    return ops.max_pool(images, size, strides=strides, padding=padding)


def plain_max_pool(images, size):
    """`max_pool` as maxima of shifted maps, along the columns, then the rows.

    With deterministic operations on, XLA has no gradient of a max pool. Of equal values the first
    in reading order takes the gradient, as in TensorFlow's own.
    """
    for axis in (2, 1):
        extent, padding = images.shape[axis], [(0, 0)] * 4
        padding[axis] = (size // 2, size // 2)
        padded = ops.pad(images, padding, constant_values=float("-inf"))
        shifted = [
            padded[(slice(None),) * axis + (slice(first, first + extent),)] for first in range(size)
        ]
        images = functools.reduce(ops.maximum, shifted)
    return images


def normalize_batch(images, gamma, beta, epsilon):
    """Normalises each channel by the batch of all replicas; then times gamma plus beta.

    Args:
        images: float [N, h, w, C].
        gamma, beta: float32 [C].
        epsilon: float, added to the variance.

    Returns:
        (normalized, mean, variance): the dtype and shape of `images`; float32 [C] each, of the
            batch. The statistics take no gradient where the fused kernel serves.
    """
    if _takes_fast_path(images) and num_replicas() == 1:
        normalized, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=images, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon
        )
        # The kernel reports the variance with Bessel's correction and normalises without.
        examples = images.shape[0] or tf.cast(tf.shape(images)[0], "float32")
        count = examples * images.shape[1] * images.shape[2]
        correction = (
            (count - 1) / count if isinstance(count, int) else tf.maximum(count - 1, 1) / count
        )
        return normalized, mean, variance * correction
    return plain_normalize_batch(images, gamma, beta, epsilon)


def plain_normalize_batch(images, gamma, beta, epsilon):
    """The default of `normalize_batch`."""
    values = ops.cast(images, "float32")
    mean = keep(replica_mean(ops.mean(values, axis=(0, 1, 2))))
    variance = keep(replica_mean(ops.mean(ops.square(values - mean), axis=(0, 1, 2))))
    scale = gamma * ops.rsqrt(variance + epsilon)
    normalized = values * scale + (beta - mean * scale)
    return ops.cast(normalized, images.dtype), mean, variance


def is_known(tensor):
    """Tells whether a tensor has its values already: not inside a function that is being traced."""
    return _TENSORFLOW and not tf.is_symbolic_tensor(tensor)


def num_replicas():
    """Returns the number of replicas of the TensorFlow strategy in force; elsewhere 1."""
    if _TENSORFLOW and tf.distribute.has_strategy():
        context = tf.distribute.get_replica_context()
        if context is not None:
            return context.num_replicas_in_sync
    return 1


def replica_part(draw, samples, axis):
    """Draws for the batch of all replicas and returns this replica's part of it.

    So replicas draw together what one would draw for the whole batch, of which they hold equal
    parts in their order.

    Args:
        draw: Function of the number of samples that gives a tensor, the same in every replica.
        samples: Number of samples that this replica holds: int, or a scalar integer tensor.
        axis: The tensor's axis of samples.
    """
    replicas = num_replicas()
    if replicas == 1:
        return draw(samples)
    start = tf.distribute.get_replica_context().replica_id_in_sync_group * samples
    part = (slice(None),) * axis + (slice(start, start + samples),)
    return draw(samples * replicas)[part]


def replica_mean(value):
    """Averages a tensor, and its gradient, over the replicas.

    Each must hold the same number of examples.
    """
    if num_replicas() == 1:
        return value
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, value)
