"""Fast paths of one backend, each beside its plain default.

The plain defaults are `keras.ops` and run on every Keras backend, and under XLA; the fast paths are
for TensorFlow on CPU, where the supernet is bound by depthwise filter gradients and by the number
of kernels that run. How segments are compiled and called is in `nn/execution.py`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops

from auto_deeplab_tf.errors import UserError

# A tensor of the Keras backend in use, or what it converts to one.
Tensor: TypeAlias = Any
# Channels stand last, whatever Keras' `image_data_format` is.
_LAST = "channels_last"

_TENSORFLOW = keras.backend.backend() == "tensorflow"
_JAX = keras.backend.backend() == "jax"
if _TENSORFLOW:
    import tensorflow as tf


def require_tensorflow() -> None:
    """Refuses a configuration of Keras in which nothing can be trained here.

    Raises:
        UserError: For another backend than TensorFlow, or another default precision than float32,
            in which metrics would count and optimizers would step.
    """
    if not _TENSORFLOW:
        raise UserError(
            "Training, evaluation and export run on TensorFlow. Keras' backend is "
            f"{keras.backend.backend()!r}, by KERAS_BACKEND or ~/.keras/keras.json: set "
            "KERAS_BACKEND=tensorflow."
        )
    if keras.config.floatx() != "float32":
        raise UserError(
            f"Keras' floatx must be 'float32', and is {keras.config.floatx()!r}, by "
            "~/.keras/keras.json or set_floatx: change it there. A network in another precision "
            "is made by its dtype, such as 'mixed_float16'."
        )


@functools.cache
def has_fast_cpu_kernels() -> bool:
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


_plain_only: contextvars.ContextVar[bool] = contextvars.ContextVar("plain_only", default=False)
_on_keep: contextvars.ContextVar[Any] = contextvars.ContextVar("on_keep", default=None)
_resizing: contextvars.ContextVar[str | None] = contextvars.ContextVar("resizing", default=None)


@contextlib.contextmanager
def setting(variable: contextvars.ContextVar[Any], value: Any) -> Iterator[None]:
    """A context in which a context variable has a value."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def plain_kernels() -> contextlib.AbstractContextManager[None]:
    """A context in which the plain defaults serve: the form that XLA compiles."""
    return setting(_plain_only, True)


def resizing_by(form: str) -> contextlib.AbstractContextManager[None]:
    """A context in which resizing takes one form, on whatever device; `nn/resize.py` has them.

    Args:
        form: "kernel", "gather" or "product".
    """
    return setting(_resizing, form)


def resizing_form(images: Tensor) -> str:
    """Returns how these images are resized: as the context says, else the fastest that is right.

    XLA computes other values than TensorFlow's kernel at some sizes (5 -> 97), so the kernel serves
    where XLA cannot come in.
    """
    if form := _resizing.get():
        return form
    single = keras.backend.standardize_dtype(images.dtype) == "float32"
    return "kernel" if single and _takes_fast_path(images) else "product"


def resize_kernel(images: Tensor, size: Sequence[Any]) -> Tensor:
    """TensorFlow's bilinear resizing, corners aligned: float32 [N, h, w, C] -> [N, *size, C]."""
    return tf.raw_ops.ResizeBilinear(images=images, size=size, align_corners=True)


def keeping(
    on_keep: Callable[[Tensor], Tensor],
) -> contextlib.AbstractContextManager[None]:
    """A context in which `keep` calls `on_keep(tensor)` and returns its result."""
    return setting(_on_keep, on_keep)


def keep(tensor: Tensor) -> Tensor:
    """Marks a tensor that is expensive to compute and that the backward pass needs.

    Segments that save tensors for their backward pass save these; elsewhere it does nothing.
    """
    on_keep = _on_keep.get()
    return tensor if on_keep is None else on_keep(tensor)


def _takes_fast_path(images: Tensor) -> bool:
    # oneDNN's grouped convolutions know no float16.
    dtype = keras.backend.standardize_dtype(images.dtype)
    return not _plain_only.get() and dtype != "float16" and has_fast_cpu_kernels()


def _compiles_for_xla() -> bool:
    return _TENSORFLOW and _plain_only.get()


def _has_dilated_kernels(images: Tensor) -> bool:
    """Tells whether TensorFlow dilates a convolution, and its gradients, by the kernel itself.

    XLA, cuDNN and oneDNN do; TensorFlow's own CPU kernels have no such gradient.
    """
    return (
        _compiles_for_xla()
        or _takes_fast_path(images)
        or (_TENSORFLOW and bool(tf.config.list_physical_devices("GPU")))
    )


def read(variable: Any) -> Tensor:
    """Returns the value of a Keras variable as a tensor.

    `keras.ops.convert_to_tensor` leaves a variable as it is; a compiled function that gets one for
    an argument copies it by way of numpy.
    """
    return tf.convert_to_tensor(variable.value) if _TENSORFLOW else variable.value


def split(values: Tensor, sizes: Sequence[int], axis: int) -> Sequence[Tensor]:
    """Splits a tensor into parts of the given sizes along an axis.

    `keras.ops.split` adds 20 nodes to a graph, this 2.
    """
    if len(sizes) == 1:
        return [values]
    if _TENSORFLOW:
        return list(tf.split(values, sizes, axis))
    return list(ops.split(values, np.cumsum(sizes)[:-1].tolist(), axis))


def sum_all(terms: Sequence[Tensor]) -> Tensor:
    """Sums tensors of one shape and dtype."""
    if len(terms) == 1:
        return terms[0]
    if _TENSORFLOW:
        return tf.add_n(terms)
    return functools.reduce(ops.add, terms)


def combine(matrix: Tensor, values: Tensor) -> Tensor:
    """Multiplies each matrix by one from the left: [M, K], [..., K, C] -> [..., M, C].

    XLA makes one product of all, and transposes the result, unless each has a matrix of its own.
    """
    matrix = ops.cast(matrix, values.dtype)
    if _compiles_for_xla():
        matrix = ops.broadcast_to(matrix, (*ops.shape(values)[:-2], *ops.shape(matrix)))
    return ops.matmul(matrix, values)


def grouped_pointwise(images: Tensor, kernel: Tensor) -> Tensor:
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
            return ops.conv(images, kernel, padding="same", data_format=_LAST)
        return tf.nn.conv2d(images, kernel, strides=1, padding="SAME")
    return plain_grouped_pointwise(images, kernel)


def plain_grouped_pointwise(images: Tensor, kernel: Tensor) -> Tensor:
    """The default of `grouped_pointwise`: one batched matrix product."""
    channels, groups, filters = kernel.shape
    _, height, width, _ = ops.shape(images)
    grouped = ops.reshape(images, (-1, height, width, groups, channels))
    return ops.reshape(
        ops.einsum("nhwgc,cgd->nhwgd", grouped, kernel), (-1, height, width, groups * filters)
    )


def depthwise_convs(images: Tensor, kernels: Sequence[Tensor], rate: int = 1) -> Tensor:
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


def plain_depthwise_convs(images: Tensor, kernels: Sequence[Tensor], rate: int = 1) -> Tensor:
    """The default of `depthwise_convs`."""
    conv = _dilated_depthwise_conv if _compiles_for_xla() else depthwise_conv
    return ops.concatenate(
        [conv(images, kernel[..., None], padding="same", rate=rate) for kernel in kernels], axis=-1
    )


def depthwise_conv(
    images: Tensor,
    kernel: Tensor,
    strides: int | tuple[int, int] = 1,
    padding: str = "same",
    rate: int | tuple[int, int] = 1,
) -> Tensor:
    """`keras.ops.depthwise_conv` in two dimensions; kernel float [k, k, C, M]."""
    return ops.depthwise_conv(images, kernel, strides, padding, _LAST, rate)


def conv(
    images: Tensor,
    kernel: Tensor,
    strides: int | tuple[int, int] = 1,
    padding: str = "same",
    rate: int = 1,
) -> Tensor:
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
    return ops.conv(images, kernel, strides, padding, _LAST, rate)


if _TENSORFLOW:

    def _dilated_depthwise_conv(images: Tensor, kernel: Tensor, padding: str, rate: int) -> Tensor:
        """For XLA: dilated by the kernel; `tf.nn.depthwise_conv2d` would move values into phases.

        The filter gradient alone is taken of the phases: of a dilated one XLA makes, for a GPU, a
        grouped convolution with both maps transposed before it.
        """
        settings = {
            "strides": [1, 1, 1, 1],
            "padding": padding.upper(),
            "dilations": [1, rate, rate, 1],
        }
        if rate == 1:
            return tf.raw_ops.DepthwiseConv2dNative(input=images, filter=kernel, **settings)

        @tf.custom_gradient
        def convolve(images: Tensor, kernel: Tensor) -> Any:
            def gradient(upstream: Tensor) -> tuple[Tensor, Tensor]:
                images_gradient = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
                    input_sizes=tf.shape(images), filter=kernel, out_backprop=upstream, **settings
                )
                kernel_gradient = tf.nn.depthwise_conv2d_backprop_filter(
                    _phases(images, rate),
                    kernel.shape,
                    _phases(upstream, rate),
                    [1, 1, 1, 1],
                    padding.upper(),
                )
                return images_gradient, kernel_gradient

            result = tf.raw_ops.DepthwiseConv2dNative(input=images, filter=kernel, **settings)
            return result, gradient

        return convolve(images, kernel)

    def _phases(images: Tensor, rate: int) -> Tensor:
        """Every rate-th row and column from each of the first, one behind the other in the batch.

        float [N, h, w, C] -> [rate * rate * N, ceil(h / rate), ceil(w / rate), C], 0 where a phase
        has ended.
        """
        _, height, width, _ = images.shape
        images = tf.pad(images, [[0, 0], [0, -height % rate], [0, -width % rate], [0, 0]])
        return tf.concat(
            [images[:, i::rate, j::rate] for i in range(rate) for j in range(rate)], axis=0
        )

    def _depthwise_conv(images: Tensor, kernel: Tensor) -> Tensor:
        return tf.nn.depthwise_conv2d(images, kernel, [1, 1, 1, 1], "SAME")

    @tf.custom_gradient
    def _depthwise_conv_5x5(images: Tensor, kernel: Tensor) -> Any:
        """A depthwise 5x5 convolution whose filter gradient is taken in two halves of width 3.

        TensorFlow's CPU kernel has a fast path for filters of width 3: measured 8.4 ms for the
        5x5 filter gradient at [2, 33, 33, 320] on one core, 1.1 ms for a 5x3.
        """

        def gradient(upstream: Tensor) -> tuple[Tensor, Tensor]:
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


def max_pool(images: Tensor, size: int, strides: int = 1, padding: str = "same") -> Tensor:
    """`keras.ops.max_pool` in two dimensions; positions on padding never win.

    float [N, h, w, C] -> the same shape at stride 1, the only one that XLA compiles.
    """
    if _plain_only.get() and strides == 1:
        return plain_max_pool(images, size)
    return ops.max_pool(images, size, strides, padding, _LAST)


def average_pool(images: Tensor, size: int, strides: int = 1) -> Tensor:
    """`keras.ops.average_pool` in two dimensions; positions on padding do not count."""
    return ops.average_pool(images, size, strides, "same", _LAST)


def plain_max_pool(images: Tensor, size: int) -> Tensor:
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


def normalize_batch(
    images: Tensor, gamma: Tensor, beta: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises each channel by the batch of all replicas; then times gamma plus beta.

    Args:
        images: float [N, h, w, C].
        gamma: float32 [C].
        beta: float32 [C].
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


def plain_normalize_batch(
    images: Tensor, gamma: Tensor, beta: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The default of `normalize_batch`; replicas may hold different numbers of images, or none."""
    values, axes = ops.cast(images, "float32"), (0, 1, 2)
    if _JAX and images.dtype != values.dtype:
        # Of 16 bits float32 sums lose nothing; one pass over the map serves for both.
        mean = keep(ops.mean(values, axis=axes))
        squares = ops.mean(ops.square(values), axis=axes)
        variance = keep(ops.maximum(squares - ops.square(mean), 0.0))
    elif num_replicas() == 1:
        mean = keep(ops.mean(values, axis=axes))
        variance = keep(ops.mean(ops.square(values - mean), axis=axes))
    else:
        positions = tf.cast(tf.reduce_prod(tf.shape(values)[:3]), "float32")
        # One tensor: TensorFlow may join two sums on one device and not on the other.
        sums = _replica_sum(tf.concat([tf.reduce_sum(values, axes), [positions]], axis=0))
        count = tf.maximum(sums[-1], 1.0)
        mean = keep(sums[:-1] / count)
        variance = keep(_replica_sum(tf.reduce_sum(tf.square(values - mean), axes)) / count)
    scale = gamma * ops.rsqrt(variance + epsilon)
    normalized = values * scale + (beta - mean * scale)
    return ops.cast(normalized, images.dtype), mean, variance


def is_known(tensor: Tensor) -> bool:
    """Tells whether a tensor has its values already: not inside a function that is being traced."""
    return _TENSORFLOW and not tf.is_symbolic_tensor(tensor)


def num_replicas() -> int:
    """Returns the number of replicas of the TensorFlow strategy in force; elsewhere 1."""
    if _TENSORFLOW and tf.distribute.has_strategy():
        context = tf.distribute.get_replica_context()
        if context is not None:
            return int(context.num_replicas_in_sync)
    return 1


def replica_part(draw: Callable[[Any], Tensor], samples: Any, axis: int) -> Tensor:
    """Draws for the batch of all replicas and returns this replica's part of it.

    So replicas draw together what one would draw for the whole batch, where they hold equal parts
    of it in their order.

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


def _replica_sum(value: Tensor) -> Tensor:
    """Sums a tensor, and its gradient, over the replicas."""
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)
