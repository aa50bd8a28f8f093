"""Random scale, crop, flip and colours as pure functions of (image, label, seed).

They give the same eagerly and in tf.data.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

# A window is accepted where no class covers this share of its labelled pixels or more; the value of
# every RandomCrop in the configurations of mmsegmentation (cat_max_ratio).
_LARGEST_SHARE = 0.75
# Rows and columns of a window that are sampled to judge it.
_GRID = 32
_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601


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
    crop_tries: int = 1,
    color_jitter: float = 0.0,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Scales by a random factor, crops a random window, and flips with probability 0.5.

    The factor is uniform in `scale_range`. Where the scaled image is smaller than the window, it
    lies at a random place in it. Only the pixels of the window are ever computed, which took a
    third of the time of resizing the whole image first.

    Args:
        image: uint8 [height, width, channels]; or float32, 0..255.
        label: uint8 [height, width], class ids.
        seed: integers [2]; everything random follows from it.
        crop_size: (height, width) of the window.
        scale_range: smallest and largest factor.
        flip: whether to flip horizontally with probability 0.5.
        padding: mean of each channel, 0..255: the colour outside the image.
        ignore_label: class id outside the image.
        crop_tries: maximum number of crop attempts: the first is accepted in which no class covers
            75 % of the labelled pixels or more; if there is none, the first of all.
        color_jitter: strength, 0..1, of `jitter_colors`; 0 keeps the colours.

    Returns:
        (image, label): float32 [*crop_size, channels], 0..255, and int32 [*crop_size].
    """
    uniform = tf.random.stateless_uniform([4], seed)
    scale = scale_range[0] + uniform[0] * (scale_range[1] - scale_range[0])
    size = tf.cast(tf.shape(label), tf.float32)
    scaled_size = tf.maximum(tf.round(size * scale), 1.0)
    # Room to shift the window in; negative where the image is shifted inside the window.
    room = scaled_size - tf.constant(crop_size, tf.float32)
    low, high = tf.minimum(room, 0.0), tf.maximum(room, 0.0)

    def offsets(position):
        return tf.minimum(low + tf.floor(position * (high - low + 1.0)), high)

    offset = offsets(uniform[1:3])
    if crop_tries > 1:
        more = tf.random.stateless_uniform([crop_tries - 1, 2], _folded(seed, 1))
        candidates = tf.concat([offset[tf.newaxis], offsets(more)], axis=0)
        shares = largest_shares(label, scaled_size, candidates, crop_size, ignore_label)
        # The first of the largest: the first window that will do, or the first of all.
        offset = candidates[tf.argmax(tf.cast(shares < _LARGEST_SHARE, tf.int32))]
    recolor = None
    if color_jitter > 0.0:
        change = 1.0 + color_jitter * tf.random.stateless_uniform([3], _folded(seed, 2), -1.0, 1.0)

        def recolor(window):
            return jitter_colors(window, change, padding)

    flipped = tf.logical_and(flip, uniform[3] < 0.5)
    return sample_window(
        image,
        label,
        scaled_size,
        offset,
        flipped,
        crop_size=crop_size,
        padding=padding,
        ignore_label=ignore_label,
        recolor=recolor,
    )


def sample_window(
    image: tf.Tensor,
    label: tf.Tensor,
    scaled_size: tf.Tensor,
    offset: tf.Tensor,
    flipped: tf.Tensor,
    *,
    crop_size: tuple[int, int],
    padding: Sequence[float],
    ignore_label: int,
    recolor: Callable[[tf.Tensor], tf.Tensor] | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes a window of the resized image: bilinear for the image, nearest for the label.

    Pixel i of a resized axis has its centre at (i + 1/2) / scaled * original - 1/2 in the original.
    Both tensors are sampled at the same positions, and share one mask of what lies outside.

    Args:
        image: uint8 [height, width, channels]; or float32, 0..255.
        label: uint8 [height, width].
        scaled_size: float32 [2], whole numbers.
        offset: float32 [2], whole numbers: the window's first row and column in the resized image;
            may be negative.
        flipped: bool [], whether the window is flipped horizontally.
        crop_size: (height, width) of the window.
        padding: each channel outside the image.
        ignore_label: class id outside the image.
        recolor: changes the colours of the window; what lies outside keeps those of `padding`.

    Returns:
        (image, label): float32 [*crop_size, channels] and int32 [*crop_size].
    """
    image, label = _with_margin(image), _with_margin(label)
    size = tf.cast(tf.shape(label), tf.float32)  # with the margin
    window = tf.constant(crop_size, tf.float32)
    first = (offset + 0.5) * (size - 2.0) / scaled_size + 0.5
    last = (offset + window - 0.5) * (size - 2.0) / scaled_size + 0.5
    inside_rows = _inside(offset[0], scaled_size[0], crop_size[0])
    inside_columns = _inside(offset[1], scaled_size[1], crop_size[1])
    inside_columns = tf.where(flipped, inside_columns[::-1], inside_columns)
    left = tf.where(flipped, last[1], first[1])
    right = tf.where(flipped, first[1], last[1])
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
    if recolor is not None:
        image = recolor(image)
    label = tf.cast(sample(label[:, :, tf.newaxis], "nearest")[:, :, 0], tf.int32)

    def padded():
        outside = tf.constant(padding, tf.float32)
        return (
            tf.where(inside[:, :, tf.newaxis], image, outside),
            tf.where(inside, label, ignore_label),
        )

    # Most windows lie inside, and this selection takes as long as the sampling.
    return tf.cond(tf.reduce_all(inside), lambda: (image, label), padded)


def jitter_colors(image: tf.Tensor, change: tf.Tensor, mean: Sequence[float]) -> tf.Tensor:
    """Changes contrast, brightness and saturation, each by a factor.

        y = brightness * (mean + contrast * (x - mean)),  z = gray(y) + saturation * (y - gray(y))

    with the luminance of y as gray(y), and z cut to 0..255. All of it is one linear map. An image
    of one channel has no saturation; the fourth channel of four is no colour and is kept.

    Args:
        image: float32 [height, width, channels], 0..255.
        change: float32 [3]: the factors of brightness, contrast and saturation; 1 changes nothing.
        mean: mean of each channel over the data set, the centre of the change of contrast. (The
            mean of the window would have to be computed first, and that of a window of sky or road
            says little.)

    Returns:
        float32 of the same shape.
    """
    channels = len(mean)
    colors = min(channels, 3)
    brightness, contrast, saturation = change[0], change[1], change[2]
    blend = tf.eye(colors)
    if colors == 3:
        gray = tf.repeat(tf.constant(_LUMINANCE)[:, tf.newaxis], 3, axis=1)
        blend = gray + saturation * (blend - gray)
    # No product of three, and no sum after a product of matrices: TensorFlow's graph optimizer
    # reorders the one and may fuse the other, so tf.data would not round as eager code does.
    matrix = tf.reduce_prod([contrast, brightness]) * blend
    shift = tf.constant([mean[:colors]], tf.float32) * tf.reduce_prod([contrast - 1.0, brightness])
    shift = tf.matmul(shift, blend)[0]
    changed = tf.reshape(image[..., :colors], [-1, colors])
    changed = tf.clip_by_value(tf.matmul(changed, matrix) - shift, 0.0, 255.0)
    changed = tf.reshape(changed, tf.shape(image[..., :colors]))
    changed = tf.ensure_shape(changed, image.shape[:2] + [colors])
    return changed if channels == colors else tf.concat([changed, image[..., colors:]], axis=-1)


def largest_shares(
    label: tf.Tensor,
    scaled_size: tf.Tensor,
    offsets: tf.Tensor,
    crop_size: tuple[int, int],
    ignore_label: int,
) -> tf.Tensor:
    """Returns the share of the labelled pixels of each window that its most frequent class covers.

    Up to 32 rows and 32 columns of every window are sampled, evenly spread.

    Args:
        label: uint8 [height, width].
        scaled_size: float32 [2]: size of the resized label.
        offsets: float32 [n, 2]: first row and column of each window in the resized label.
        crop_size: (height, width) of the windows.
        ignore_label: class id of pixels that are not labelled; so are those outside.

    Returns:
        float32 [n]; 1 where nothing is labelled.
    """
    size = tf.shape(label)

    def places(axis):
        grid = min(_GRID, crop_size[axis])
        steps = tf.constant([(2 * i + 1) * crop_size[axis] // (2 * grid) for i in range(grid)])
        position = offsets[:, axis, tf.newaxis] + tf.cast(steps, tf.float32)  # [n, grid]
        inside = tf.logical_and(position >= 0.0, position < scaled_size[axis])
        extent = tf.cast(size[axis], tf.float32)
        place = tf.cast(tf.floor((position + 0.5) * extent / scaled_size[axis]), tf.int32)
        return tf.clip_by_value(place, 0, size[axis] - 1), inside

    (rows, rows_inside), (columns, columns_inside) = places(0), places(1)
    index = rows[:, :, tf.newaxis] * size[1] + columns[:, tf.newaxis, :]
    inside = tf.logical_and(rows_inside[:, :, tf.newaxis], columns_inside[:, tf.newaxis, :])
    classes = tf.where(
        inside, tf.cast(tf.gather(tf.reshape(label, [-1]), index), tf.int32), ignore_label
    )
    classes = tf.reshape(classes, [tf.shape(offsets)[0], -1])
    counts = tf.math.bincount(classes, minlength=256, maxlength=256, axis=-1)
    counts = tf.where(tf.range(256) == ignore_label, 0, counts)
    most, labelled = tf.reduce_max(counts, axis=-1), tf.reduce_sum(counts, axis=-1)
    return tf.where(
        labelled > 0, tf.cast(most, tf.float32) / tf.cast(tf.maximum(labelled, 1), tf.float32), 1.0
    )


def _folded(seed: tf.Tensor, number: int) -> tf.Tensor:
    """A seed of its own for a further draw, so that earlier draws keep their values."""
    return tf.random.fold_in(seed, tf.constant(number, tf.int64))


def _with_margin(tensor: tf.Tensor) -> tf.Tensor:
    """Repeats the outermost pixels of [height, width, ...].

    So positions up to half a pixel beyond the outer centres can be sampled. `tf.pad` by reflection
    does the same, in eight times the time.
    """
    tensor = tf.concat([tensor[:1], tensor, tensor[-1:]], axis=0)
    return tf.concat([tensor[:, :1], tensor, tensor[:, -1:]], axis=1)


def _inside(offset: tf.Tensor, scaled_size: tf.Tensor, count: int) -> tf.Tensor:
    """Which rows (or columns) of the window lie in the resized image: bool [count]."""
    position = offset + tf.range(count, dtype=tf.float32)
    return tf.logical_and(position >= 0.0, position < scaled_size)
