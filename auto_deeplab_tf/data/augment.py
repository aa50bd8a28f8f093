"""Random scale, crop and flip as pure functions of (image, label, seed), eager or in tf.data."""

from collections.abc import Sequence

import tensorflow as tf


def random_crop(
    image: tf.Tensor,
    label: tf.Tensor,
    seed: tf.Tensor,
    *,
    crop_size: tuple[int, int],
    scale_range: tuple[float, float],
    flip: bool,
    padding: Sequence[float],
    ignore_label: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Scales by a random factor, cuts out a random window, and flips half of the time.

    The factor is uniform in `scale_range`.
    Where the scaled image is smaller than the window, it lies at a random place in it. Only the
    pixels of the window are ever computed, which took a third of the time of resizing the whole
    image first.

    Args:
        image: uint8 [height, width, 3].
        label: uint8 [height, width], class ids.
        seed: integers [2]; everything random follows from it.
        crop_size: (height, width) of the window.
        scale_range: smallest and largest factor.
        flip: whether to mirror left and right half of the time.
        padding: red, green, blue outside the image, 0..255.
        ignore_label: class id outside the image.

    Returns:
        (image, label): float32 [*crop_size, 3], 0..255, and int32 [*crop_size].
    """
    uniform = tf.random.stateless_uniform([4], seed)
    scale = scale_range[0] + uniform[0] * (scale_range[1] - scale_range[0])
    size = tf.cast(tf.shape(label), tf.float32)
    scaled_size = tf.maximum(tf.round(size * scale), 1.0)
    # Room to shift the window in; negative where the image is shifted inside the window.
    room = scaled_size - tf.constant(crop_size, tf.float32)
    low, high = tf.minimum(room, 0.0), tf.maximum(room, 0.0)
    offset = tf.minimum(low + tf.floor(uniform[1:3] * (high - low + 1.0)), high)
    mirrored = tf.logical_and(flip, uniform[3] < 0.5)
    return sample_window(
        image,
        label,
        scaled_size,
        offset,
        mirrored,
        crop_size=crop_size,
        padding=padding,
        ignore_label=ignore_label,
    )


def sample_window(
    image: tf.Tensor,
    label: tf.Tensor,
    scaled_size: tf.Tensor,
    offset: tf.Tensor,
    mirrored: tf.Tensor,
    *,
    crop_size: tuple[int, int],
    padding: Sequence[float],
    ignore_label: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes a window of the resized image: bilinear for the image, nearest for the label.

    Pixel i of a resized axis has its centre at (i + 1/2) / scaled * original - 1/2 in the original.
    Both tensors are sampled at the same positions, and share one mask of what lies outside.

    Args:
        image: uint8 [height, width, 3].
        label: uint8 [height, width].
        scaled_size: float32 [2], whole numbers.
        offset: float32 [2], whole numbers: the window's first row and column in the resized image;
            may be negative.
        mirrored: bool []: whether the window is flipped left to right.
        crop_size: (height, width) of the window.
        padding: red, green, blue outside the image.
        ignore_label: class id outside the image.

    Returns:
        (image, label): float32 [*crop_size, 3] and int32 [*crop_size].
    """
    image, label = _with_margin(image), _with_margin(label)
    size = tf.cast(tf.shape(label), tf.float32)  # with the margin
    window = tf.constant(crop_size, tf.float32)
    first = (offset + 0.5) * (size - 2.0) / scaled_size + 0.5
    last = (offset + window - 0.5) * (size - 2.0) / scaled_size + 0.5
    inside_rows = _inside(offset[0], scaled_size[0], crop_size[0])
    inside_columns = _inside(offset[1], scaled_size[1], crop_size[1])
    inside_columns = tf.where(mirrored, inside_columns[::-1], inside_columns)
    left = tf.where(mirrored, last[1], first[1])
    right = tf.where(mirrored, first[1], last[1])
    # crop_and_resize takes a window of one pixel from the middle of the box: there first = last, so
    # the same place.
    box = tf.stack([first[0], left, last[0], right]) / tf.stack(
        [size[0], size[1], size[0], size[1]] - tf.ones(4)
    )

    def sample(tensor, method):
        return tf.image.crop_and_resize(
            tensor[tf.newaxis], box[tf.newaxis], [0], crop_size, method=method
        )[0]

    inside = tf.logical_and(inside_rows[:, tf.newaxis], inside_columns[tf.newaxis, :])
    image = sample(image, "bilinear")
    label = tf.cast(sample(label[:, :, tf.newaxis], "nearest")[:, :, 0], tf.int32)

    def padded():
        outside = tf.constant(padding, tf.float32)
        return (
            tf.where(inside[:, :, tf.newaxis], image, outside),
            tf.where(inside, label, ignore_label),
        )

    # Most windows lie inside, and this selection takes as long as the sampling.
    return tf.cond(tf.reduce_all(inside), lambda: (image, label), padded)


def _with_margin(tensor: tf.Tensor) -> tf.Tensor:
    """Repeats the outermost pixels of [height, width, ...].

    So positions up to half a pixel beyond the outer centres can be sampled. `tf.pad` by reflection
    does the same, in eight times the time.
    """
    tensor = tf.concat([tensor[:1], tensor, tensor[-1:]], axis=0)
    return tf.concat([tensor[:, :1], tensor, tensor[:, -1:]], axis=1)


def _inside(offset: tf.Tensor, scaled_size: tf.Tensor, count: int) -> tf.Tensor:
    """bool [count]: which rows (or columns) of the window lie in the resized image."""
    position = offset + tf.range(count, dtype=tf.float32)
    return tf.logical_and(position >= 0.0, position < scaled_size)
