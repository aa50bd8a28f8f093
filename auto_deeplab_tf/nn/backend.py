"""Everything in `nn/` that knows the backend: fast paths beside their defaults, compilation.

The plain defaults are `keras.ops` and run on every Keras backend; the fast paths are for TensorFlow
on CPU, where the supernet is bound by depthwise filter gradients and by the number of kernels that
run.
"""

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


def split(values, sizes, axis):
    """Splits a tensor into parts of the given sizes along an axis.

    `keras.ops.split` adds 20 nodes to a graph, this 2.
    """
    if len(sizes) == 1:
        return [values]
    if _TENSORFLOW:
        return tf.split(values, sizes, axis)
    return ops.split(values, np.cumsum(sizes)[:-1].tolist(), axis)


def grouped_pointwise(images, kernel):
    """Applies a 1x1 convolution of its own to each group of channels.

    Args:
        images: float [N, h, w, groups * channels], group-major.
        kernel: float [channels, groups, filters].

    Returns:
        float [N, h, w, groups * filters], group-major.
    """
    channels, groups, filters = kernel.shape
    if groups == 1 or has_fast_cpu_kernels():
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
    if not has_fast_cpu_kernels():
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
    return ops.concatenate(
        [
            ops.depthwise_conv(images, kernel[..., None], padding="same", dilation_rate=rate)
            for kernel in kernels
        ],
        axis=-1,
    )


if _TENSORFLOW:

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
    if has_fast_cpu_kernels() and num_replicas() == 1:
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
    mean = replica_mean(ops.mean(values, axis=(0, 1, 2)))
    variance = replica_mean(ops.mean(ops.square(values - mean), axis=(0, 1, 2)))
    scale = gamma * ops.rsqrt(variance + epsilon)
    normalized = values * scale + (beta - mean * scale)
    return ops.cast(normalized, images.dtype), mean, variance


def num_replicas():
    """Returns the number of replicas of the TensorFlow strategy in force; elsewhere 1."""
    if _TENSORFLOW and tf.distribute.has_strategy():
        context = tf.distribute.get_replica_context()
        if context is not None:
            return context.num_replicas_in_sync
    return 1


def replica_mean(value):
    """Averages a tensor, and its gradient, over the replicas.

    Each must hold the same number of examples.
    """
    if num_replicas() == 1:
        return value
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, value)


def runner(kind):
    """Returns what runs a kind of segment: compiled where TensorFlow runs eagerly, else inline.

    It has `forward(kernels, affine, moving, architecture, inputs, training)`, and when compiled
    also `pullback`.
    """
    if _TENSORFLOW and tf.executing_eagerly():
        return _compiled(kind)
    return InlineSegment(kind)


class InlineSegment:
    """A segment that stands inline in the function being traced.

    Its gradient is the backend's own.
    """

    def __init__(self, kind):
        self.forward = kind.compute


@functools.lru_cache(maxsize=128)
def _compiled(kind):
    return CompiledSegment(kind)


class CompiledSegment:
    """One kind of segment compiled for calls from eager TensorFlow: its forward and its pullback.

    The pullback recomputes the forward inside one function, so that between the two only the
    segment's inputs are kept.

    Args:
        kind: `nn.segments.SegmentKind`.
    """

    def __init__(self, kind):
        self._kind = kind
        self._forward = {
            training: tf.function(
                functools.partial(kind.compute, training=training), autograph=False
            )
            for training in (False, True)
        }
        self._pullback = {
            wrt: tf.function(functools.partial(self._trace_pullback, wrt), autograph=False)
            for wrt in ("weights", "architecture")
        }

    @property
    def functions(self):
        """All compiled functions, for those who count what they hold."""
        return [*self._forward.values(), *self._pullback.values()]

    def forward(self, kernels, affine, moving, architecture, inputs, training):
        return self._forward[training](kernels, affine, moving, architecture, inputs)

    def pullback(self, wrt, kernels, affine, moving, architecture, inputs, upstream):
        """Returns (gradients of the parameters that `wrt` names, gradients of the inputs).

        Args:
            wrt: "weights": the parameters are (kernels, affine); "architecture": those of
                `architecture`.
            upstream: tuple of the gradients of the outputs.
        """
        return self._pullback[wrt](kernels, affine, moving, architecture, inputs, upstream)

    def _trace_pullback(self, wrt, kernels, affine, moving, architecture, inputs, upstream):
        parameters = (kernels, affine) if wrt == "weights" else architecture
        sources = (parameters, inputs if self._kind.input_gradients else ())
        present = [source for source in tf.nest.flatten(sources) if source is not None]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(present)
            outputs, _ = self._kind.compute(
                kernels, affine, moving, architecture, inputs, training=True
            )
        gradients = iter(
            tape.gradient(
                outputs,
                present,
                output_gradients=upstream,
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
        )
        return tf.nest.map_structure(
            lambda source: None if source is None else next(gradients), sources
        )
