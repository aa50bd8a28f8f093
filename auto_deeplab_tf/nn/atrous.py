"""Convolution without the taps that can only fall on padding, or on pixels that it skips."""

from __future__ import annotations

from auto_deeplab_tf.nn import backend
from auto_deeplab_tf.nn.backend import Tensor


def atrous_conv(
    images: Tensor,
    kernel: Tensor,
    rate: int,
    strides: int | tuple[int, int] = 1,
    padding: str = "same",
) -> Tensor:
    """An atrous convolution that leaves out taps which fall on padding at every position.

    At a rate of the map's height or more the rows above and below the middle of a 3x3 window never
    touch the map; columns likewise.

    A strided 1x1 takes its pixels first. TensorFlow 2.20 on CPU (oneDNN) corrupts memory in the
    filter gradient of a 1x1 at stride 2, seen at [1, 28, 28, 8] with 8 filters.

    Args:
        images: float [N, h, w, C]. Where h or w is unknown statically, all taps are computed.
        kernel: float [k, k, C, D].
        rate: The atrous rate.
        strides: 1 where `rate` is not 1.
        padding: As in `keras.ops.conv`.

    Returns:
        float [N, h, w, D], at stride 1.
    """
    if padding == "same":
        kernel = _reachable_taps(images, kernel, (rate, rate))
    if tuple(kernel.shape[:2]) == (1, 1):
        rate = 1
        rows, columns = (strides, strides) if isinstance(strides, int) else strides
        images, strides = images[:, ::rows, ::columns], 1
    return backend.conv(images, kernel, strides, padding, rate)


def atrous_depthwise_conv(
    images: Tensor,
    kernel: Tensor,
    rates: tuple[int, int],
    strides: int | tuple[int, int] = 1,
    padding: str = "same",
) -> Tensor:
    """A depthwise convolution that likewise leaves out taps which only fall on padding.

    Args:
        images: float [N, h, w, C].
        kernel: float [k, k, C, M].
        rates: The atrous rate down and across.
        strides: Int or pair; 1 where a rate is not 1.
        padding: As in `keras.ops.depthwise_conv`.

    Returns:
        float [N, h, w, C * M], at stride 1.
    """
    if padding == "same":
        kernel = _reachable_taps(images, kernel, rates)
    # A rate beside a single tap would only make more phases.
    down, across = (
        1 if taps == 1 else rate for taps, rate in zip(kernel.shape[:2], rates, strict=True)
    )
    return backend.depthwise_conv(images, kernel, strides, padding, (down, across))


def _reachable_taps(images: Tensor, kernel: Tensor, rates: tuple[int, int]) -> Tensor:
    """Returns a 3x3 kernel without the outer rows and columns that never touch the map."""
    if tuple(kernel.shape[:2]) != (3, 3) or max(rates) == 1:
        return kernel
    _, height, width, _ = images.shape
    if height is not None and rates[0] > 1 and rates[0] >= height:
        kernel = kernel[1:2]
    if width is not None and rates[1] > 1 and rates[1] >= width:
        kernel = kernel[:, 1:2]
    return kernel
