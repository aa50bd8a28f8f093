"""Encoded images in graph operations: decoded within bounds, and resized to the network's input."""

from __future__ import annotations

import math
import pathlib

import numpy as np
import tensorflow as tf

from auto_deeplab_tf.data import resizing
from auto_deeplab_tf.errors import UserError

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
HEADER_BYTES = 24  # of a PNG file up to the end of its width and height


def decode(image_bytes: tf.Tensor, max_pixels: int, channels: int = 3) -> tf.Tensor:
    """Decodes PNG (grey, palette, RGB, with alpha, 8 or 16 bit) or JPEG.

    The size is read from the header and checked first: a file of a few kB may declare gigabytes.

    Args:
        image_bytes: string [].
        max_pixels: Largest height times width.
        channels: 1: grey; 3: RGB; 4: RGB and the alpha channel of a PNG (255 where there is none).

    Returns:
        uint8 [H, W, channels]; of 16 bits the upper 8 are kept.

    Raises:
        tf.errors.InvalidArgumentError: For other bytes, and for a larger image.
    """
    padded = tf.strings.join([tf.strings.substr(image_bytes, 0, HEADER_BYTES), "\0" * HEADER_BYTES])
    header = tf.io.decode_raw(tf.strings.substr(padded, 0, HEADER_BYTES), tf.uint8)
    is_png = tf.reduce_all(header[: len(PNG_MAGIC)] == tf.constant(list(PNG_MAGIC), tf.uint8))
    is_jpeg = tf.reduce_all(header[: len(JPEG_MAGIC)] == tf.constant(list(JPEG_MAGIC), tf.uint8))
    known = tf.debugging.Assert(is_png | is_jpeg, ["image_bytes must hold a PNG or JPEG file."])
    # An operation without state, such as a decoder, would not wait for an assertion by itself.
    with tf.control_dependencies([known]):
        # IHDR: width, then height, each 4 bytes, the highest first.
        sides = tf.reshape(tf.cast(header[16:24], tf.float64), [2, 4])
        png_size = tf.linalg.matvec(
            sides, tf.constant([2.0**24, 2.0**16, 2.0**8, 1.0], tf.float64)
        )[::-1]
        size = tf.cond(
            is_jpeg,
            lambda: tf.cast(tf.io.extract_jpeg_shape(image_bytes)[:2], tf.float64),
            lambda: png_size,
        )
    bounded = tf.debugging.Assert(
        tf.reduce_prod(size) <= max_pixels,
        ["an image must have at most", max_pixels, "pixels, but its size is", size],
    )
    with tf.control_dependencies([bounded]):
        return tf.cond(
            is_jpeg,
            lambda: _jpeg(image_bytes, channels),
            lambda: tf.io.decode_png(image_bytes, channels=channels),
        )


def _jpeg(image_bytes: tf.Tensor, channels: int) -> tf.Tensor:
    image = tf.io.decode_jpeg(image_bytes, channels=min(channels, 3))
    # JPEG has no fourth channel: opaque, as a PNG without one is decoded.
    return tf.pad(image, [[0, 0], [0, 0], [0, channels - image.shape[-1]]], constant_values=255)


def input_size(
    size: tf.Tensor, fixed: tuple[int, int] | None, trained: tuple[int, int] | None
) -> tf.Tensor:
    """Returns the size at which the network sees an image: `Segmenter.command_input_size`.

    Args:
        size: int32 [2], (height, width) of the image.
        fixed: Size of the network's input, if it is fixed.
        trained: Size that the training images were resized to, if any: an image is then resized to
            as many pixels, keeping its aspect ratio.

    Returns:
        int32 [2].
    """
    if fixed is not None:
        return tf.constant(fixed)
    if trained is None:
        return size
    sides = tf.cast(size, tf.float64)
    factor = tf.sqrt(math.prod(trained) / tf.reduce_prod(sides))
    return tf.maximum(tf.cast(tf.round(sides * factor), tf.int32), 1)


def resize(image: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Resizes as the training images were: `data.resizing.resize_image`, in a graph.

    Args:
        image: uint8 [h, w, C].
        size: int32 [2], (height, width).

    Returns:
        float32 [height, width, C], whole numbers 0..255.
    """
    return tf.clip_by_value(tf.round(resizing.resize(image, size)), 0.0, 255.0)


def read(path: pathlib.Path, size: tuple[int, int], channels: int = 3) -> np.ndarray:
    """Returns an image file as the network of a fixed size sees it.

    Returns:
        float32 [height, width, channels], whole numbers 0..255; see `decode`.

    Raises:
        UserError: If the file cannot be decoded.
    """
    try:
        image = decode(tf.constant(path.read_bytes()), max_pixels=2**28, channels=channels)
    except tf.errors.InvalidArgumentError as error:
        reason = " ".join(error.message.split())[:200]
        raise UserError(
            f"{path} cannot be read as an image ({reason}); fix or remove it."
        ) from error
    return resizing.resize_image(image.numpy(), size).astype(np.float32)
