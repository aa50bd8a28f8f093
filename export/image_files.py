"""Encoded images in graph operations: decoded within bounds, and resized to the network's input."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from auto_deeplab_tf.data import image_files as data_files
from auto_deeplab_tf.data import resizing
from auto_deeplab_tf.errors import UserError
from export import common

MAX_CALIBRATION_IMAGES = 100
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
HEADER_BYTES = 24  # of a PNG file up to the end of its width and height
# Where EXIF data are looked for: they come first in what cameras write, and hold 64 KiB at most.
_HEAD_BYTES = 2**17


def decode(
    image_bytes: tf.Tensor, max_pixels: int, channels: int = 3, place: Sequence[Any] = ()
) -> tf.Tensor:
    """Decodes PNG (gray, palette, RGB, with alpha, 8 or 16 bit) or JPEG as `data.image_files` does.

    The size is read from the header and checked first: a file of a few kB may declare gigabytes.

    Args:
        image_bytes: string [].
        max_pixels: Largest height times width.
        channels: 1: gray, of colours their luminance; 3: RGB; 4: RGB and the alpha channel of a PNG
            (255 where there is none).
        place: Words and scalars that errors begin with.

    Returns:
        uint8 [H, W, channels], turned by a JPEG's EXIF orientation; 16 bits are cut to the upper 8.

    Raises:
        tf.errors.InvalidArgumentError: For other bytes, for a larger image, for an animated PNG and
            for a PNG that holds EXIF data, which might turn it.
    """
    head = tf.strings.substr(image_bytes, 0, _HEAD_BYTES)
    header = tf.io.decode_raw(tf.strings.join([head, "\0" * HEADER_BYTES]), tf.uint8)
    is_png = tf.reduce_all(header[: len(PNG_MAGIC)] == tf.constant(list(PNG_MAGIC), tf.uint8))
    is_jpeg = tf.reduce_all(header[: len(JPEG_MAGIC)] == tf.constant(list(JPEG_MAGIC), tf.uint8))
    known = tf.debugging.Assert(
        is_png | is_jpeg, [*place, "image_bytes must hold a PNG or JPEG file."]
    )
    special = is_png & _has_png_chunk(header, b"eXIf", b"acTL")
    plain = tf.debugging.Assert(
        ~special, [*place, "a PNG must be a single image without EXIF data: save it again without."]
    )
    # An operation without state, such as a decoder, would not wait for an assertion by itself.
    with tf.control_dependencies([known, plain]):
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
        [
            *place,
            "an image must have at most",
            max_pixels,
            "pixels, but its size is",
            size,
            "(auto_deeplab_tf.predict --tile takes larger ones)",
        ],
    )
    with tf.control_dependencies([bounded]):
        image = tf.cond(
            is_jpeg,
            lambda: _jpeg(image_bytes, header),
            lambda: tf.io.decode_png(image_bytes, channels=4),
        )
    if channels == 1:
        red, green, blue, _ = tf.unstack(tf.cast(image, tf.int32), axis=-1)
        luminance = (19595 * red + 38470 * green + 7471 * blue + 32768) // 65536
        return tf.cast(luminance, tf.uint8)[..., None]
    return image[..., :channels]


def _jpeg(image_bytes: tf.Tensor, header: tf.Tensor) -> tf.Tensor:
    """The upright image with an opaque fourth channel: uint8 [H, W, 4]."""
    image = tf.io.decode_jpeg(image_bytes, channels=3, dct_method="INTEGER_ACCURATE")
    image = tf.pad(image, [[0, 0], [0, 0], [0, 1]], constant_values=255)
    orientation = jpeg_orientation(header)
    image = tf.cond(orientation > 4, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    flip = tf.gather(tf.constant(_FLIPS), orientation)
    image = tf.cond(flip[0], lambda: image[::-1], lambda: image)
    return tf.cond(flip[1], lambda: image[:, ::-1], lambda: image)


# For each EXIF orientation, after its exchange of axes (5 to 8): whether rows and columns run
# backwards.
_FLIPS = [(n in (3, 4, 7, 8), n in (2, 3, 6, 7)) for n in range(9)]


def jpeg_orientation(header: tf.Tensor) -> tf.Tensor:
    """Reads the EXIF orientation from the first bytes of a JPEG file.

    Args:
        header: uint8 [n], padded with zeros; of the file, at least its segments up to EXIF.

    Returns:
        int32 [], 1 to 8; 1 (upright) where there is none.
    """
    data = tf.cast(header, tf.int32)
    count = tf.shape(data)[0]

    def at(position: tf.Tensor) -> tf.Tensor:
        return data[tf.clip_by_value(position, 0, count - 1)]

    def is_app1(position: tf.Tensor) -> tf.Tensor:
        marker = tf.clip_by_value(position + tf.constant([1, 4, 5, 6, 7]), 0, count - 1)
        return tf.reduce_all(tf.gather(data, marker) == tf.constant([0xE1, *b"Exif"]))

    def before_scan(position: tf.Tensor) -> tf.Tensor:
        segment = (at(position) == 0xFF) & (at(position + 1) != 0xDA) & (position < count - 4)
        return segment & ~is_app1(position)

    def next_segment(position: tf.Tensor) -> tuple[tf.Tensor]:
        return (position + 2 + 256 * at(position + 2) + at(position + 3),)

    (place,) = tf.while_loop(before_scan, next_segment, [tf.constant(2)])
    start = place + 10  # of the TIFF structure
    little = at(start) == ord("I")

    def number(position: tf.Tensor) -> tf.Tensor:
        first, second = at(position), at(position + 1)
        return tf.where(little, first + 256 * second, 256 * first + second)

    # The directory's offset has 4 bytes; here it is below 65536, as the segment is.
    offset = number(start + tf.where(little, 4, 6))
    entries = tf.range(number(start + offset)) * 12 + start + offset + 2
    found = tf.map_fn(
        lambda entry: tf.where(number(entry) == 0x0112, number(entry + 8), 0), entries
    )
    orientation = tf.reduce_max(tf.concat([found, [0]], axis=0))
    sound = is_app1(place) & (orientation >= 1) & (orientation <= 8)
    return tf.where(sound, orientation, 1)


def _has_png_chunk(header: tf.Tensor, *names: bytes) -> tf.Tensor:
    """Whether a PNG file has a chunk of one of the names before its pixels."""
    data = tf.cast(header, tf.int64)
    weights = tf.constant([2**24, 2**16, 2**8, 1], tf.int64)

    def number(position: tf.Tensor) -> tf.Tensor:  # of 4 bytes, the highest first
        places = tf.clip_by_value(position + tf.range(4, dtype=tf.int64), 0, _last(data))
        return tf.reduce_sum(tf.gather(data, places) * weights)

    wanted = tf.constant([int.from_bytes(name) for name in names], tf.int64)
    pixels = int.from_bytes(b"IDAT")

    def more(position: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
        return ~found & (position < _last(data)) & (number(position + 4) != pixels)

    def step(position: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        found = tf.reduce_any(wanted == number(position + 4))
        return position + 12 + number(position), found

    start = tf.constant(len(PNG_MAGIC), tf.int64)
    return tf.while_loop(more, step, [start, tf.constant(False)])[1]


def _last(data: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.shape(data)[0] - 1, tf.int64)


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


def calibration_images(
    calibration_dir: str | os.PathLike[str] | None,
    size: tuple[int, int],
    channels: int,
    max_checked: int,
) -> tuple[list[pathlib.Path], np.ndarray]:
    """Returns the images that ranges are measured on, and those that predictions are compared on.

    Args:
        calibration_dir: Folder of images; None: nothing is measured, and generated images serve.
        size: (height, width) that they are resized to.
        channels: Channels of the network's images.
        max_checked: How many images of the folder are compared, at most.

    Returns:
        Up to 100 files; float32 [N, height, width, channels].

    Raises:
        MissingFileError: If there is no such folder, or no image in it.
        UserError: If an image cannot be decoded.
    """
    if calibration_dir is None:
        return [], common.random_images(4, size, channels=channels)
    checked = common.find_images(calibration_dir, max_checked)
    images = np.stack([read(path, size, channels) for path in checked])
    return common.find_images(calibration_dir, MAX_CALIBRATION_IMAGES), images


def read(path: pathlib.Path, size: tuple[int, int], channels: int = 3) -> np.ndarray:
    """Returns an image file as the network of a fixed size sees it, decoded as in training.

    Returns:
        float32 [height, width, channels], whole numbers 0..255.

    Raises:
        UserError: If the file cannot be decoded.
    """
    try:
        image = data_files.read_photograph(path.read_bytes(), channels)
    except (OSError, UserError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} cannot be read as an image ({reason}); fix or remove it."
        ) from error
    resized: np.ndarray = np.rint(resizing.resize_image(image, size))
    return resized.astype(np.float32)
