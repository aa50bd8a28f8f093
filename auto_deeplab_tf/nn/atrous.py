"""Convolution without the taps that can only fall on padding, or on pixels that it skips."""

from keras import ops


def atrous_conv(images, kernel, rate, strides=1, padding="same"):
    """An atrous convolution that leaves out taps which fall on padding at every position.

    At a rate of the map's height or more the rows above and below the middle of a 3x3 window never
    touch the map; columns likewise. On CPU TensorFlow runs an atrous convolution as rate * rate
    padded phases: at rate 36 on 23x30 that is 1,296 positions of 9 taps in place of 690 of one.

    A strided 1x1 takes its pixels first. TensorFlow 2.20 on CPU (oneDNN) corrupts memory in the
    filter gradient of a 1x1 at stride 2, seen at [1, 28, 28, 8] with 8 filters.

    Args:
        images: float [N, h, w, C]. Where h or w is unknown statically, all taps are computed.
        kernel: float [k, k, C, D].
        rate: the atrous rate.
        strides: 1 where `rate` is not 1.
        padding: as in `keras.ops.conv`.

    Returns:
        float [N, h, w, D], at stride 1.
    """
    if rate > 1 and tuple(kernel.shape[:2]) == (3, 3) and padding == "same":
        _, height, width, _ = images.shape
        if height is not None and rate >= height:
            kernel = kernel[1:2]
        if width is not None and rate >= width:
            kernel = kernel[:, 1:2]
    if tuple(kernel.shape[:2]) == (1, 1):
        rate = 1
        rows, columns = (strides, strides) if isinstance(strides, int) else strides
        images, strides = images[:, ::rows, ::columns], 1
    return ops.conv(images, kernel, strides=strides, padding=padding, dilation_rate=rate)
