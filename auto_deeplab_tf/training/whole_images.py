"""Whole images of any size through a network: padded only to the least that it takes, cut back."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from auto_deeplab_tf.nn.resize import resize_bilinear
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


def class_ids(
    logits: Callable[[tf.Tensor], tf.Tensor],
    images: tf.Tensor,
    size: Any = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> tf.Tensor:
    """Segments a batch; see `Segmenter.class_ids`.

    Args:
        logits: Images -> logits of the same size.
        images: float32 [N, h, w, C].
        size: (height, width) of the result, a pair or a tensor; None: that of the images.
        scales: Factors by which the images are resized, corners aligned.
        flip: Whether to average with the mirrored images too.

    Returns:
        int32 [N, height, width].
    """
    own_size = size_of(images)
    result_size = own_size if size is None else (size[0], size[1])
    predictions = []
    for scale in scales:
        scaled = images
        if scale != 1.0:
            scaled = resize_bilinear(images, tuple(_scaled(side, scale) for side in own_size))
        for mirror in (False, True) if flip else (False,):
            found = logits(tf.reverse(scaled, [2]) if mirror else scaled)
            found = tf.reverse(found, [2]) if mirror else found
            if scale != 1.0 or size is not None:
                found = resize_bilinear(found, result_size)
            predictions.append(found)
    if len(predictions) > 1:
        # A single one without the softmax, which can round the two best to a tie.
        predictions = [tf.add_n([tf.nn.softmax(found) for found in predictions])]
    return tf.argmax(predictions[0], axis=-1, output_type=tf.int32)


def with_area_of(size: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    """Returns the size with the proportions of the first and as many pixels as the second."""
    factor = (math.prod(other) / math.prod(size)) ** 0.5
    return round(size[0] * factor) or 1, round(size[1] * factor) or 1


def _scaled(side, scale):
    """A side times `scale`, corners aligned: as many whole steps of 1 / scale as lie within it."""
    if isinstance(side, int):
        return round((side - 1) * scale) + 1
    return tf.cast(tf.round(tf.cast(side - 1, tf.float32) * scale), tf.int32) + 1
