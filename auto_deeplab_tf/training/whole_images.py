"""Whole images of any size through a network: padded only to the least that it takes, cut back."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from auto_deeplab_tf.search_space import MINIMUM_SIZE


def size_of(images: tf.Tensor) -> tuple[Any, Any]:
    """(height, width) of a batch: ints where they are known statically, else scalar tensors."""
    dynamic = tf.shape(images)
    height, width = (
        dynamic[axis] if images.shape[axis] is None else images.shape[axis] for axis in (1, 2)
    )
    return height, width


def logits(
    network: Callable[[tf.Tensor], tf.Tensor], images: tf.Tensor, mean: Sequence[float]
) -> tf.Tensor:
    """Logits at the size of the images, whatever that is.

    An image of `MINIMUM_SIZE` or more in both directions reaches the network as it is; a smaller
    one is padded below and to the right.

    Args:
        network: Images of `MINIMUM_SIZE` or more -> logits of the same size.
        images: float32 [N, H, W, C], 0..255, H and W of 1 or more.
        mean: Of each channel: the colour that the network's normalisation turns into 0, as its
            convolutions pad.

    Returns:
        float32 [N, H, W, num_classes].
    """
    height, width = size_of(images)
    if all(isinstance(side, int) and side >= MINIMUM_SIZE for side in (height, width)):
        return tf.cast(network(images), tf.float32)
    padded_size = [tf.maximum(side, MINIMUM_SIZE) for side in (height, width)]
    padded = tf.pad(
        images, [(0, 0), (0, padded_size[0] - height), (0, padded_size[1] - width), (0, 0)]
    )
    inside = tf.logical_and(
        (tf.range(padded_size[0]) < height)[:, tf.newaxis],
        (tf.range(padded_size[1]) < width)[tf.newaxis, :],
    )
    padded = tf.where(inside[tf.newaxis, :, :, tf.newaxis], padded, tf.constant(mean, tf.float32))
    return tf.cast(network(padded), tf.float32)[:, :height, :width]
