"""Resizing of images and label maps, the same for records, predictions and served graphs."""

import numpy as np
import tensorflow as tf


def resize(image: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Resizes an image in graph operations.

    Args:
        image: [h, w, channels] of any real dtype.
        size: int32 [2], (height, width).

    Returns:
        float32 [height, width, channels]: by area where the image shrinks on both axes, else
        bilinear with antialiasing.
    """
    return tf.cond(
        tf.reduce_all(size <= tf.shape(image)[:2]),
        lambda: tf.image.resize(image, size, method="area"),
        lambda: tf.image.resize(image, size, method="bilinear", antialias=True),
    )


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes an image array of shape [h, w, channels], as `resize` does.

    Returns:
        [height, width, channels] of the image's dtype; whole numbers are rounded.
    """
    array = resize(image, tf.constant(size)).numpy()
    if np.issubdtype(image.dtype, np.integer):
        array = np.clip(np.rint(array), 0, np.iinfo(image.dtype).max)
    return array.astype(image.dtype)


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a label map of shape [h, w]: each pixel takes the label under its centre."""
    rows = ((np.arange(size[0]) + 0.5) * label.shape[0] / size[0]).astype(np.int64)
    columns = ((np.arange(size[1]) + 0.5) * label.shape[1] / size[1]).astype(np.int64)
    return label[rows[:, None], columns[None, :]]
