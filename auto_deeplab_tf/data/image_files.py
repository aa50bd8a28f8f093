"""Image files as arrays, and the rules of a data set that they are compared with.

All commands decode by this module: training, the check, prediction and calibration. (A served
signature decodes in its graph: `export.image_files`.) An image is what a viewer shows: turned by
its EXIF orientation, palettes as their colours, CMYK as RGB. A label map is the numbers that its
file stores. What has no single meaning is refused: several pages or frames, label maps as JPEG,
more than 16 bits.
"""

import dataclasses
import io
import struct
import warnings
from pathlib import Path
from typing import TypeGuard

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from auto_deeplab_tf.config.options import MAX_IMAGE_PIXELS
from auto_deeplab_tf.data.dataset import Dataset, RawExample
from auto_deeplab_tf.errors import UserError

# The limit is `max_pixels` of `decode`; Pillow's own would warn below it and stop at another.
Image.MAX_IMAGE_PIXELS = None
# Pillow drops a fourth band of 8 bits that is not declared as alpha, such as near infrared.
for _byte_order in (b"II", b"MM"):
    TiffImagePlugin.OPEN_INFO[_byte_order, 2, (1,), 1, (8, 8, 8, 8), (0,)] = ("RGBA", "RGBA")
# Of Pillow's formats those of photographs and label maps: others run programs (EPS) or are rare.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")
# What Pillow raises for some broken files, beside OSError.
_BROKEN = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)
# What TensorFlow reads in a record as it is; everything else becomes PNG. MPO is the JPEG of
# cameras that add a second picture, such as a depth map: the first one is the photograph.
_RECORD_FORMATS = ("PNG", "JPEG", "MPO")
_LOSSY_FORMATS = ("JPEG", "MPO")
_JPEG_QUALITY = 95
_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright


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
        if label_ids.shape == image.shape[1::-1] and _is_turned(example, info):
            text += (
                " (the image is turned by its EXIF orientation tag, as viewers show it: turn the "
                "label map likewise, or remove the tag)"
            )
        rule = "image and label map must have the same size"
        problem("size mismatch", UserError(f"{rule}; {text}"), example.label_path)
    elif image is not None and info.image_size not in (None, image.shape[:2]):
        wanted = f"{info.image_size[0]}x{info.image_size[1]}" if info.image_size else ""
        text = f"images of {info.name} are {wanted}; found {_size_text(image)}"
        problem("wrong size", UserError(text), example.image_path)
    return Examined(image, as_it_is, label, tuple(problems))


def _is_turned(example: RawExample, info: Dataset) -> bool:
    return decode(example.image, info.max_image_pixels).orientation != 1


def _size_text(array: np.ndarray) -> str:
    return f"{array.shape[0]}x{array.shape[1]}"


def read_image(data: bytes, info: Dataset) -> tuple[np.ndarray, bool]:
    """Decodes an image file to the channels and bits of its data set.

    Channels become those of the set as `with_channels` says; 8 bits are spread over 16 (times 257)
    where the set has 16.

    Returns:
        (image, as_it_is): uint8 or uint16 [height, width, info.channels]; whether a record can hold
        the file's own bytes.

    Raises:
        OSError: where the file cannot be read whole.
        UserError: where the file is refused, or has 16 bits in a set of 8.
    """
    decoded = decode(data, info.max_image_pixels)
    array = decoded.pixels()
    found = array.shape[2]
    if array.dtype == np.uint16 and info.image_bits == 8:
        raise UserError(
            f"images of {info.name} have 8 bits a channel; found 16: bring all to 8 bits, or for "
            'dataset=folder set "bits": 16 in its description'
        )
    as_it_is = (
        decoded.format in _RECORD_FORMATS
        and decoded.orientation == 1
        and decoded.mode in ("L", "RGB", "RGBA", "I;16", "P")
        and info.channels in (3, found)
    )
    array = with_channels(array, info.channels)
    if array.dtype == np.uint8 and info.image_bits == 16:
        return array.astype(np.uint16) * 257, False
    return array, as_it_is


def read_photograph(data: bytes, channels: int, max_pixels: int = MAX_IMAGE_PIXELS) -> np.ndarray:
    """Decodes an image file of no data set, for a network that takes so many channels.

    Warns where the network takes 4 channels and the image has no fourth.

    Returns:
        [height, width, channels], 0..255: uint8, or float32 where the file has 16 bits.

    Raises:
        OSError: where the file cannot be read whole.
        UserError: where the file is refused.
    """
    array = decode(data, max_pixels).pixels()
    if channels == 4 and array.shape[2] in (1, 3):
        warnings.warn(
            "the network takes 4 channels, and an image has no fourth: it gets an opaque one, "
            "which is wrong where the network learnt near-infrared or another measurement there: "
            "give images of 4 channels (RGBA)",
            stacklevel=2,
        )
    array = with_channels(array, channels)
    return array.astype(np.float32) / 257.0 if array.dtype == np.uint16 else array


def with_channels(array: np.ndarray, channels: int) -> np.ndarray:
    """Brings an image to 1, 3 or 4 channels.

    Gray becomes three equal channels; colour becomes gray by its luminance (ITU-R BT.601); an alpha
    channel is dropped, or added as opaque.

    Args:
        array: uint8 or uint16 [height, width, 1 to 4]; two channels are gray and alpha.
        channels: 1, 3 or 4.

    Returns:
        [height, width, channels] of the same dtype.
    """
    if array.shape[2] == channels:
        return array
    colors = 1 if array.shape[2] < 3 else 3
    color, alpha = array[..., :colors], array[..., colors:]
    if channels == 1:
        if colors == 3:
            red, green, blue = np.moveaxis(color.astype(np.uint32), -1, 0)
            luminance = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
            color = luminance.astype(array.dtype)[..., None]
        return color
    color = color.repeat(3, axis=2) if colors == 1 else color
    if channels == 3:
        return color
    if not alpha.shape[2]:
        alpha = np.full_like(array[..., :1], np.iinfo(array.dtype).max)
    return np.concatenate([color, alpha], axis=2)


def image_traits(file: bytes | Path) -> tuple[int, int]:
    """Returns (channels, bits) of an image file, from its header: 1, 3 or 4; 8 or 16.

    Gray with alpha counts as 1, a palette as 3.

    Raises:
        OSError: where it is no image.
    """
    try:
        with io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as stream:
            head = stream.read(26)
            stream.seek(0)
            image = Image.open(stream, formats=_FORMATS)
            depth = _depth(image, head)
    except _BROKEN as error:
        raise OSError(str(error)) from error
    gray = image.mode in ("1", "L", "LA", *_GRAY_16)
    if image.format == "PNG":
        gray = head[25] in (0, 4)  # its colour type; Pillow has no mode for 16 bits with alpha
    alpha = image.mode == "RGBA"
    if _is_tiff(image) and depth == 16:  # Pillow leaves out what it cannot hold
        alpha = image.tag_v2.get(277) == 4
    channels = 1 if gray else 4 if alpha else 3
    return channels, 16 if depth > 8 or image.mode in _GRAY_16 else 8


def read_label(data: bytes, info: Dataset) -> np.ndarray:
    """Decodes a label map to the ids that its file stores; a palette image to its indices.

    Returns:
        integers [height, width]: label ids, `dataset.packed_color`s where the set's maps are
        colours.

    Raises:
        OSError: where the file cannot be read whole.
        UserError: where it is no image of the kind that the set has.
    """
    decoded = decode(data, info.max_image_pixels)
    if decoded.format in _LOSSY_FORMATS:
        raise UserError(
            "a label map must be lossless, and JPEG changes the ids at every edge: save it as PNG "
            "from its source"
        )
    if info.color_labels:
        if decoded.mode not in ("RGB", "RGBA", "P", "PA") or decoded.depth > 8:
            raise UserError(
                f"label maps of {info.name} are RGB images of 8 bits; found mode {decoded.mode} of "
                f"{decoded.depth} bits"
            )
        colors = decoded.pixels()[..., :3].astype(np.int64)
        return (colors[..., 0] << 16) + (colors[..., 1] << 8) + colors[..., 2]
    label, mode = decoded.stored(), decoded.mode
    if mode == "LA" and (label[..., 1] == 255).all():  # opaque: the gray channel is the map
        label, mode = label[..., 0], "L"
    if mode not in ("1", "L", "P", "I;16", "I;16B", "I") or label.ndim != 2:
        hint = 'for masks of colours, dataset=folder has the key "masks": "colors"'
        if mode in ("RGB", "RGBA") and (label[..., :3] == label[..., :1]).all():
            hint = "its channels are equal: save one of them"
        raise UserError(
            "a label map must be an image of one channel, gray or palette; found mode "
            f"{mode} ({hint})"
        )
    if decoded.depth == 1 and 1 not in info.label_ids and 255 in info.label_ids:
        # Optimizers store a map of 0 and 255 in one bit.
        return label.astype(np.uint8) * 255
    return label


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A decoded image file.

    Attributes:
        image: the image as Pillow has it, loaded.
        data: the file.
        format: its format, as Pillow names it.
        mode: its mode, likewise.
        depth: bits of one sample in the file.
        orientation: its EXIF orientation, 1 to 8; 1 is upright.
    """

    image: Image.Image
    data: bytes
    format: str
    mode: str
    depth: int
    orientation: int

    def pixels(self) -> np.ndarray:
        """Returns the image as viewers show it: uint8 or uint16 [height, width, 1 to 4].

        Raises:
            UserError: where it has more than 8 bits, and not 16, or more than 4 channels.
        """
        image, mode = self.image, self.mode
        if 8 < self.depth < 16:  # Pillow reads 0..4095 as it is: nearly black beside 65535
            raise UserError(
                f"an image must hold 8 or 16 bits a channel; found {self.depth}: scale it to 16 "
                "bits, and save it so"
            )
        if _is_tiff(image) and (channels := image.tag_v2.get(277, 1)) > 4:  # Pillow drops them
            raise UserError(
                f"an image must hold up to 4 channels; found {channels}: save those to use as a "
                "file of its own"
            )
        if _is_tiff(image) and self.depth == 16 and image.tag_v2.get(262, 1) not in (1, 2):
            raise UserError(
                "a TIFF of 16 bits must be gray, with 0 for black, or RGB: save it so, or as a PNG "
                "of 16 bits"
            )
        gray_tiff = _is_tiff(image) and mode in _GRAY_16
        if self.depth == 16 and not gray_tiff and self.format in ("PNG", "TIFF"):
            try:
                deep = _deep_tiff(image, self.data) if _is_tiff(image) else _deep_png(self.data)
            except UserError:
                raise
            except Exception as error:  # of TensorFlow's decoder, or for tags of any kind
                raise OSError(" ".join(str(error).split())[:200]) from error
            return _turned(deep, self.orientation)
        if mode in _GRAY_16:
            array = np.asarray(image).astype(np.int64)
            if array.min() < 0 or array.max() > 65535:
                raise UserError("an image must hold 0..65535 at most; found more than 16 bits")
            array = array.astype(np.uint16)
        elif mode in ("F", "I;16L") or self.depth > 16:
            raise UserError(f"an image must hold 8 or 16 bits a channel; found mode {mode}")
        else:
            if mode == "1":
                image = image.convert("L")
            elif mode == "PA" or (mode == "P" and "transparency" in image.info):
                image = image.convert("RGBA")
            elif mode not in ("L", "LA", "RGB", "RGBA"):
                image = image.convert("RGB")
            array = np.asarray(image)
        return self._upright(array[..., None] if array.ndim == 2 else array)

    def stored(self) -> np.ndarray:
        """Returns the numbers that the file stores, upright: [height, width] or with channels."""
        array = np.asarray(self.image)
        if self.mode == "1":
            array = array.astype(np.uint8)
        elif self.mode == "L" and self.depth in (2, 4):
            # Pillow spreads them over 0..255.
            array = array // (255 // (2**self.depth - 1))
        return self._upright(array)

    def _upright(self, array: np.ndarray) -> np.ndarray:
        # Pillow turns TIFF files by itself.
        return array if self.format == "TIFF" else _turned(array, self.orientation)


_GRAY_16 = ("I;16", "I;16B", "I")


def decode(data: bytes, max_pixels: int = MAX_IMAGE_PIXELS) -> Decoded:
    """Decodes an image file completely: `Image.open` alone leaves a truncated file for later.

    Args:
        data: the file.
        max_pixels: largest height times width; the size is read from the header and checked first.

    Raises:
        OSError: where the file is cut, or no image.
        UserError: where it is too large, or holds several pages or frames.
    """
    if not data:
        raise OSError("the file is empty or out of reach")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        _check_size(image, max_pixels)
        _check_frames(image)
        orientation = image.getexif().get(_ORIENTATION, 1)
        orientation = orientation if orientation in range(1, 9) else 1
        file_format, mode, depth = image.format or "", image.mode, _depth(image, data)
        image.load()
    except UserError:
        raise
    except UnidentifiedImageError as error:
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            raise UserError(
                "a TIFF must hold up to 4 channels of 8 or 16 bits, pixel by pixel, in a usual "
                "compression; this one has others: save the channels to use (1, 3 or 4) as a file"
            ) from error
        raise OSError("it is no image of a known format") from error
    except _BROKEN as error:
        raise OSError(str(error)) from error
    return Decoded(image, data, file_format, mode, depth, orientation)


def _is_tiff(image: Image.Image) -> TypeGuard[TiffImagePlugin.TiffImageFile]:
    return isinstance(image, TiffImagePlugin.TiffImageFile)


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise UserError(
            f"an image must have at most {max_pixels} pixels; found {height}x{width} = "
            f"{width * height}: cut it into tiles (predict does, by tile), or raise "
            "max_image_pixels if the memory allows"
        )


def _check_frames(image: Image.Image) -> None:
    """Refuses several pages or frames; smaller copies of the first page in a TIFF do not count."""
    frames = getattr(image, "n_frames", 1)
    if frames == 1 or image.format == "MPO":
        return
    if _is_tiff(image):
        pages = 1
        for number in range(1, frames):
            image.seek(number)
            pages += not image.tag_v2.get(254, 0) & 1  # NewSubfileType: of reduced resolution
        image.seek(0)
        if pages == 1:
            return
        frames = pages
    raise UserError(
        f"an image file must hold one image; found {frames} pages or frames: save the one to use "
        "as a file of its own"
    )


def _depth(image: Image.Image, head: bytes) -> int:
    """Bits of one sample in the file, of which `head` is the start."""
    if image.format == "PNG":
        return head[24]
    if _is_tiff(image):
        return max(image.tag_v2.get(258, (1,)))
    return 1 if image.mode == "1" else 8


def _turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turns [height, width, ...] as its EXIF orientation says."""
    if orientation > 4:
        array = np.swapaxes(array, 0, 1)
    # After the exchange of the axes: which of them run backwards.
    rows, columns = {
        1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1),
        5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1),
    }[orientation]  # fmt: skip
    return array[::rows, ::columns]


def _deep_png(data: bytes) -> np.ndarray:
    """uint16 [height, width, channels] of a PNG of 16 bits: Pillow cuts colours to 8 bits."""
    import tensorflow as tf  # a client of a server starts without it

    return tf.io.decode_png(data, dtype=tf.uint16).numpy()


def _deep_tiff(image: TiffImagePlugin.TiffImageFile, data: bytes) -> np.ndarray:
    """uint16 [height, width, channels] of a TIFF of 16 bits and several channels.

    Pillow decodes one 16-bit channel only. So it is given the same file with another directory, in
    which the channels of a row lie side by side as one gray row.
    """
    tags = image.tag_v2
    channels = tags.get(277, 1)
    formats = set(tags.get(339, (1,)))
    if tags.get(284, 1) != 1 or formats != {1} or channels > 4 or data[2:4] not in (b"*\0", b"\0*"):
        raise UserError(
            "a TIFF of 16 bits must hold up to 4 channels of unsigned numbers, pixel by pixel: "
            "save it so, or as a PNG of 16 bits"
        )
    order = "<" if data[:2] == b"II" else ">"
    width, height = tags[256], tags[257]
    numbers = {256: width * channels, 257: height, 258: 16, 262: 1, 277: 1}
    numbers[259] = tags.get(259, 1)
    for tag in (266, 273, 278, 279, 324, 325, 323):  # fill order, strips, tiles
        if tag in tags:
            numbers[tag] = tags[tag]
    if 322 in tags:
        numbers[322] = tags[322] * channels
    start = len(data) + len(data) % 2
    entries, more = [], b""
    end = start + 2 + 12 * len(numbers) + 4
    for tag in sorted(numbers):
        values = numbers[tag] if isinstance(numbers[tag], tuple) else (numbers[tag],)
        content = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            content, more = struct.pack(f"{order}I", end + len(more)), more + content
        entries.append(struct.pack(f"{order}HHI", tag, 4, len(values)) + content)
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entries) + b"\0" * 4 + more
    patched = data[:4] + struct.pack(f"{order}I", start) + data[8:].ljust(start - 8, b"\0")
    with Image.open(io.BytesIO(patched + directory)) as gray:
        array = np.asarray(gray).astype(np.uint16).reshape(height, width, channels)
    if tags.get(317, 1) == 2:  # differences between neighbours were stored, anew in each tile
        step = tags.get(322, width)
        for left in range(0, width, step):
            part = array[:, left : left + step]
            np.cumsum(part, axis=1, out=part)
    return array


def encode_png(array: np.ndarray) -> bytes:
    """Encodes uint8 or uint16 [h, w] or [h, w, c] as a PNG file."""
    if array.dtype == np.uint16:  # Pillow writes 16 bits of one channel only
        import tensorflow as tf

        return tf.io.encode_png(array if array.ndim == 3 else array[..., None]).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array).save(buffer, "PNG")
    return buffer.getvalue()


def encode_jpeg(array: np.ndarray) -> bytes:
    """Encodes uint8 [h, w, 1 or 3] as a JPEG of high quality, colour at full resolution."""
    buffer = io.BytesIO()
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
