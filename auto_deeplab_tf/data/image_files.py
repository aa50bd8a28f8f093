"""Image files as arrays, and the rules of a data set that they are compared with."""

import dataclasses
import io

import numpy as np
import tensorflow as tf
from PIL import Image

from auto_deeplab_tf.data.dataset import Dataset, RawExample
from auto_deeplab_tf.errors import UserError

# What TensorFlow reads in a record as it is; everything else becomes PNG.
_RECORD_FORMATS = ("PNG", "JPEG")
_JPEG_QUALITY = 95


@dataclasses.dataclass(frozen=True)
class Problem:
    """One rule that an example breaks: a short name, and the error that says it."""

    kind: str
    error: Exception
    path: str


@dataclasses.dataclass(frozen=True)
class Examined:
    """An example as arrays, as far as it could be read, and what is wrong with it.

    Attributes:
        image: uint8 or uint16 [height, width, channels].
        as_it_is: whether a record can hold the image file's own bytes.
        label: uint8 [height, width], class ids.
        problems: every rule that it breaks.
    """

    image: np.ndarray | None
    as_it_is: bool
    label: np.ndarray | None
    problems: tuple[Problem, ...]


def examine(example: RawExample, info: Dataset) -> Examined:
    """Decodes an example and compares it with all rules of its data set."""
    image, as_it_is, label, label_ids = None, False, None, None
    problems: list[Problem] = []

    def problem(kind: str, error: Exception, path: str) -> None:
        problems.append(Problem(kind, error, path))

    try:
        image, as_it_is = read_image(example.image, info)
    except OSError as error:
        text = f"image cannot be read ({error})"
        problem("unreadable image", OSError(text), example.image_path)
    except UserError as error:
        problem("image of another kind", error, example.image_path)
    try:
        label_ids = read_label(example.label, info)
    except OSError as error:
        text = f"label map cannot be read ({error})"
        problem("unreadable mask", OSError(text), example.label_path)
    except UserError as error:
        problem("mask of another kind", error, example.label_path)
    if label_ids is not None:
        try:
            label = info.class_ids(label_ids)
        except UserError as error:
            problem("id out of range", error, example.label_path)
    if image is not None and label_ids is not None and label_ids.shape != image.shape[:2]:
        text = f"found {_size_text(image)} and {_size_text(label_ids)}"
        rule = "image and label map must have the same size"
        problem("size mismatch", UserError(f"{rule}; {text}"), example.label_path)
    elif image is not None and info.image_size not in (None, image.shape[:2]):
        wanted = f"{info.image_size[0]}x{info.image_size[1]}" if info.image_size else ""
        text = f"images of {info.name} are {wanted}; found {_size_text(image)}"
        problem("wrong size", UserError(text), example.image_path)
    return Examined(image, as_it_is, label, tuple(problems))


def _size_text(array: np.ndarray) -> str:
    return f"{array.shape[0]}x{array.shape[1]}"


def read_image(data: bytes, info: Dataset) -> tuple[np.ndarray, bool]:
    """Decodes an image file to the channels and bits of its data set.

    Gray becomes three equal channels, and transparency is left out, where the set has 3 channels;
    8 bits are spread over 16 (times 257) where the set has 16.

    Returns:
        (image, as_it_is): uint8 or uint16 [height, width, info.channels]; whether a record can hold
        the file's own bytes.

    Raises:
        OSError: where the file cannot be read whole.
        ValueError: where it has other channels, or 16 bits in a set of 8.
    """
    image = decode(data)
    array = _pixels(image, data)
    bits = 16 if array.dtype == np.uint16 else 8
    if bits > info.image_bits:
        raise UserError(f"images of {info.name} have 8 bits a channel; found 16")
    array = _with_channels(array, info.channels, info.name)
    plain = image.mode in ("L", "RGB", "RGBA", "I;16", "P") and image.format in _RECORD_FORMATS
    if bits < info.image_bits:
        return array.astype(np.uint16) * 257, False
    return array, plain


def read_photograph(data: bytes, channels: int) -> np.ndarray:
    """Decodes an image file of no data set, for a network that takes so many channels.

    Returns:
        [height, width, channels], 0..255: uint8, or float32 where the file has 16 bits.

    Raises:
        OSError: where the file cannot be read whole.
        ValueError: where it has other channels.
    """
    array = _with_channels(_pixels(decode(data), data), channels, "the model")
    return array.astype(np.float32) / 257.0 if array.dtype == np.uint16 else array


def _with_channels(array: np.ndarray, channels: int, whose: str) -> np.ndarray:
    found = array.shape[2]
    if found == channels:
        return array
    if channels != 3:
        raise UserError(f"images of {whose} have {channels} channels; found {found}")
    return array.repeat(3, axis=2) if found == 1 else array[..., :3]


def image_traits(data: bytes) -> tuple[int, int]:
    """(channels, bits) of an image file."""
    array = _pixels(decode(data), data)
    return array.shape[2], 16 if array.dtype == np.uint16 else 8


def read_label(data: bytes, info: Dataset) -> np.ndarray:
    """Decodes a label map to the ids that its file holds; a palette image to its indices.

    Returns:
        integers [height, width]: label ids, `dataset.packed_color`s where the set's maps are
        colours.

    Raises:
        OSError: where the file cannot be read whole.
        ValueError: where it is no image of the kind that the set has.
    """
    image = decode(data)
    if info.color_labels:
        if image.mode not in ("RGB", "RGBA", "P"):
            raise UserError(f"label maps of {info.name} are RGB images; found mode {image.mode}")
        colors = np.asarray(image.convert("RGB"), np.int64)
        return (colors[..., 0] << 16) + (colors[..., 1] << 8) + colors[..., 2]
    if image.mode not in ("1", "L", "P", "I;16", "I"):
        raise UserError(
            f"a label map must be an image of one channel, gray or palette; found mode {image.mode}"
        )
    label = np.asarray(image)
    return label.astype(np.uint8) if image.mode == "1" else label


def decode(data: bytes) -> Image.Image:
    """Decodes an image file completely: `Image.open` alone leaves a truncated file for later.

    Raises:
        OSError: where it is cut, or no image.
    """
    if not data:
        raise OSError("the file is empty or out of reach")
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (SyntaxError, EOFError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(str(error)) from error  # what Pillow raises for some broken files
    return image


def encode_png(array: np.ndarray) -> bytes:
    """uint8 or uint16 [h, w] or [h, w, c] as a PNG file."""
    if array.dtype == np.uint16:  # Pillow writes 16 bits of one channel only
        return tf.io.encode_png(array if array.ndim == 3 else array[..., None]).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array).save(buffer, "PNG")
    return buffer.getvalue()


def encode_jpeg(array: np.ndarray) -> bytes:
    """uint8 [h, w, 1 or 3] as a JPEG file of high quality, colour at full resolution."""
    buffer = io.BytesIO()
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _pixels(image: Image.Image, data: bytes) -> np.ndarray:
    """uint8 or uint16 [height, width, channels] of a decoded image."""
    if image.format == "PNG" and data[24] == 16:  # the bit depth in its header
        # Pillow cuts 16-bit colours to 8 bits.
        return tf.io.decode_png(data, dtype=tf.uint16).numpy()
    if image.mode in ("I;16", "I;16B", "I"):
        array = np.asarray(image).astype(np.int64)
        if array.min() < 0 or array.max() > 65535:
            raise UserError("an image must hold 0..65535 at most; found more than 16 bits")
        return array.astype(np.uint16)[..., None]
    if image.mode in ("F", "I;16L"):
        raise UserError(f"an image must hold 8 or 16 bits a channel; found mode {image.mode}")
    kept = image if image.mode in ("L", "RGB", "RGBA") else image.convert(_plain_mode(image))
    array = np.asarray(kept)
    return array[..., None] if array.ndim == 2 else array


def _plain_mode(image: Image.Image) -> str:
    return "L" if image.mode in ("1", "LA") else "RGB"
