"""Prediction of images larger than memory: tile by tile, blended where tiles overlap.

A network that pools over the whole image sees less of it in a tile, so a tiled prediction differs
from that of the whole image. Memory is bounded by one tile and one strip of `overlap` rows of
logits over the image's width. TIFF files are read window by window.
"""

from __future__ import annotations

import collections
import contextlib
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from auto_deeplab_tf.errors import MissingExtraError, StorageError, UserError

# Decoded parts of a TIFF that are kept: neighbouring tiles need the same ones.
_CACHE_BYTES = 2**26
# Bits of NewSubfileType: an overview, a transparency mask.
_NO_IMAGE = 1 | 4
_ORIENTATION = 274  # the tag; 1 is upright


class Span(NamedTuple):
    """What one tile gives of an axis.

    Attributes:
        start: Where the tile begins in the image.
        begin: Where what is used of it begins, in the image.
        weights: float32, of each pixel used; with those of its neighbours they sum to 1.
        fading: How many of the last weights its successor shares.
    """

    start: int
    begin: int
    weights: np.ndarray
    fading: int


def spans(length: int, tile: int, overlap: int) -> list[Span]:
    """Divides an axis into tiles of equal size, evenly spread, and blended linearly.

    Args:
        length: Pixels of the axis.
        tile: Pixels of a tile, at most `length`.
        overlap: Pixels over which two tiles are blended; at most a third of `tile`, so that no
            more than two meet.

    Returns:
        The tiles from the first to the last.

    Raises:
        ValueError: For sizes that do not fit.
    """
    if not (0 < tile <= length and 0 <= 3 * overlap <= tile):
        raise ValueError(f"tile {tile} and overlap {overlap} do not fit the length {length}")
    count = 1 if tile == length else -(-(length - overlap) // (tile - overlap))
    starts = [round(index * (length - tile) / max(count - 1, 1)) for index in range(count)]
    # The middle of what two tiles have in common, less half of the overlap.
    fades = [
        (one + tile + two) // 2 - overlap // 2 for one, two in zip(starts, starts[1:], strict=False)
    ]
    rising = (np.arange(overlap, dtype=np.float32) + 0.5) / max(overlap, 1)
    result = []
    for index, start in enumerate(starts):
        first, last = index == 0, index == count - 1
        begin = 0 if first else fades[index - 1]
        end = length if last else fades[index] + overlap
        weights = np.ones(end - begin, np.float32)
        if not first:
            weights[:overlap] = rising
        if not last and overlap:
            weights[-overlap:] = 1 - rising
        result.append(Span(start, begin, weights, 0 if last else overlap))
    return result


def class_ids(
    size: tuple[int, int],
    tile: tuple[int, int],
    overlap: int,
    logits: Callable[[int, int, int, int], np.ndarray],
) -> Iterator[np.ndarray]:
    """Segments an image tile by tile.

    Args:
        size: (height, width) of the image.
        tile: (height, width) of a tile; cut to the image's.
        overlap: Pixels over which the logits of two tiles are blended, linearly.
        logits: (top, left, height, width) of a window -> float32 [height, width, classes].

    Yields:
        int32 [rows, width]: all rows of the image, from the top.
    """
    height, width = min(tile[0], size[0]), min(tile[1], size[1])
    columns = spans(size[1], width, overlap if width < size[1] else 0)
    above = np.zeros((0, 0, 0), np.float32)
    for row in spans(size[0], height, overlap if height < size[0] else 0):
        used, kept = len(row.weights), len(row.weights) - row.fading
        band = np.empty((kept, size[1]), np.int32)
        below = np.zeros((0, 0, 0), np.float32)
        left = np.zeros((0, 0, 0), np.float32)
        for column in columns:
            found = logits(row.start, column.start, height, width)
            top, side = row.begin - row.start, column.begin - column.start
            found = found[top : top + used, side : side + len(column.weights)]
            found = found * (row.weights[:, None, None] * column.weights[None, :, None])
            if left.size:
                found[:, : left.shape[1]] += left
            ready = found.shape[1] - column.fading
            left = found[:, ready:].copy()
            place = slice(column.begin, column.begin + ready)
            found = found[:, :ready]
            if above.size:
                found[: len(above)] += above[:, place]
            band[:, place] = found[:kept].argmax(-1)
            if row.fading:
                if not below.size:
                    below = np.empty((row.fading, size[1], found.shape[-1]), np.float32)
                below[:, place] = found[kept:]
        above = below
        yield band


# ---- reading


class Windows(Protocol):
    """An image that is read in parts.

    Attributes:
        size: (height, width).
    """

    size: tuple[int, int]

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Returns a window: [height, width, channels], 0..255, uint8, or float32 of 16 bits."""
        ...


class WholeImage:
    """An image in memory.

    Args:
        image: [H, W, channels].
    """

    def __init__(self, image: np.ndarray) -> None:
        self._image = image
        self.size = (image.shape[0], image.shape[1])

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """See `Windows`."""
        return self._image[top : top + height, left : left + width]


class TiffWindows:
    """A TIFF file, tiled or in strips, read window by window.

    Args:
        file: The open `tifffile.TiffFile`.
        channels: Channels of what is read: 1, 3 or 4.

    Raises:
        UserError: For several images in one file, and for pixels that are not gray or RGB of 8 or
            16 bits.
    """

    def __init__(self, file: Any, channels: int) -> None:
        pages = [page for page in file.pages if not page.subfiletype & _NO_IMAGE]
        if len(pages) != 1:
            raise UserError(f"it holds {len(pages)} images; give one in a file")
        page = pages[0]
        photometric = getattr(page.photometric, "name", page.photometric)
        if photometric not in ("MINISBLACK", "RGB", "YCBCR") or page.imagedepth != 1:
            raise UserError(f"its colours are {photometric}; windows are read of gray and RGB")
        if page.tags.valueof(_ORIENTATION, 1) != 1:
            raise UserError("it is turned by its orientation tag: save it upright")
        unsigned = page.dtype in (np.dtype(np.uint8), np.dtype(np.uint16))
        if not unsigned or page.bitspersample not in (8, 16):
            raise UserError(
                f"its pixels are {page.dtype} of {page.bitspersample} bits; 8 or 16 bits without "
                "sign are needed"
            )
        if not 1 <= page.samplesperpixel <= 4:
            raise UserError(f"it has {page.samplesperpixel} channels; 1 to 4 are needed")
        self.size = (page.imagelength, page.imagewidth)
        self._file, self._page, self._channels = file, page, channels
        if page.is_tiled:
            self._part = (page.tilelength, page.tilewidth)
        else:
            self._part = (min(page.rowsperstrip, self.size[0]), self.size[1])
        self._across = -(-self.size[1] // self._part[1])
        self._down = -(-self.size[0] // self._part[0])
        self._separate = page.planarconfig == 2 and page.samplesperpixel > 1
        self._cache: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """See `Windows`."""
        from auto_deeplab_tf.data import image_files

        samples = self._page.samplesperpixel
        window = np.zeros((height, width, samples), self._page.dtype)
        part_height, part_width = self._part
        for down in range(top // part_height, (top + height - 1) // part_height + 1):
            for across in range(left // part_width, (left + width - 1) // part_width + 1):
                for plane in range(samples if self._separate else 1):
                    index = (plane * self._down + down) * self._across + across
                    part = self._decoded(index)
                    y, x = down * part_height, across * part_width
                    rows = slice(max(top, y), min(top + height, y + part.shape[0]))
                    columns = slice(max(left, x), min(left + width, x + part.shape[1]))
                    target = window[
                        rows.start - top : rows.stop - top,
                        columns.start - left : columns.stop - left,
                    ]
                    target = target[..., plane : plane + 1] if self._separate else target
                    target[:] = part[rows.start - y : rows.stop - y][
                        :, columns.start - x : columns.stop - x
                    ]
        window = image_files.with_channels(window, self._channels)
        return window.astype(np.float32) / 257.0 if window.dtype == np.uint16 else window

    def _decoded(self, index: int) -> np.ndarray:
        """One tile or strip of the file: [h, w, samples]; zeros where the file has none."""
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        page = self._page
        count = page.databytecounts[index]
        with _readable():
            self._file.filehandle.seek(page.dataoffsets[index])
            content = self._file.filehandle.read(count) if count else None
            decoded, _, shape = page.decode(content, index, jpegtables=page.jpegtables)
            part = np.zeros(shape, page.dtype) if decoded is None else np.asarray(decoded)
            part = part.reshape(shape)[0]  # of the depth, 1
        self._cache[index] = part
        while sum(each.nbytes for each in self._cache.values()) > _CACHE_BYTES:
            self._cache.popitem(last=False)
        return part


@contextlib.contextmanager
def open_windows(path: Path, channels: int, max_pixels: int) -> Iterator[Windows]:
    """Opens an image file: a TIFF window by window, others whole.

    Args:
        path: The file.
        channels: Channels of what is read.
        max_pixels: Largest height times width of a file that is read whole.

    Yields:
        The image.

    Raises:
        MissingExtraError: For a TIFF, if tifffile is not installed.
        UserError: If the file is refused.
        OSError: If it cannot be read.
    """
    from auto_deeplab_tf.data import image_files

    if path.suffix.lower() not in (".tif", ".tiff"):
        whole = image_files.read_photograph(path.read_bytes(), channels, max_pixels)
        yield WholeImage(whole)
        return
    try:
        import tifffile
    except ImportError as error:
        raise MissingExtraError(
            f"tiles of a TIFF need tifffile ({error}): pip install auto_deeplab_tf[media]"
        ) from error
    with contextlib.ExitStack() as stack:
        with _readable():
            file = stack.enter_context(tifffile.TiffFile(path))
            windows = TiffWindows(file, channels)
        yield windows


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Turns what tifffile and the decoders raise of a damaged file into an error for the user."""
    try:
        yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:  # each compression has a decoder with errors of its own
        raise UserError(f"it cannot be read as a TIFF: {error}") from error


# ---- writing


class PngWriter:
    """A PNG file written from the top; it gets its name when it is whole.

    Args:
        path: The file.
        size: (height, width).
        channels: 1 or 3.
        bits: 8 or 16.
    """

    def __init__(self, path: Path, size: tuple[int, int], channels: int = 1, bits: int = 8) -> None:
        self._path, self._size, self._bits = path, size, bits
        # The mask and the overlay of an image are written at the same time.
        name = f".{os.getpid()}-{threading.get_ident()}-{id(self)}.part"
        self._partial = path.with_name(name)
        self._rows = 0
        self._compress = zlib.compressobj(6)
        color = {1: 0, 3: 2}[channels]
        self._header = struct.pack(">IIBBBBB", size[1], size[0], bits, color, 0, 0, 0)

    def __enter__(self) -> Self:
        self._file = open(self._partial, "wb")
        self._file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", self._header)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._chunk(b"IDAT", self._compress.flush())
                self._chunk(b"IEND", b"")
            self._file.close()
            if kind is None:
                if self._rows != self._size[0]:
                    raise ValueError(f"{self._rows} rows were written of {self._size[0]}")
                os.replace(self._partial, self._path)
        except OSError as error:
            remedy = "make room there, or name another folder"
            raise StorageError.of(self._path, error, remedy) from error
        finally:
            with contextlib.suppress(OSError):
                self._partial.unlink()

    def write(self, rows: np.ndarray) -> None:
        """Adds rows: integers [rows, width] or [rows, width, 3].

        Raises:
            StorageError: If they cannot be written.
        """
        content = rows.astype(">u2" if self._bits == 16 else np.uint8)
        content = content.reshape(len(rows), -1).view(np.uint8)
        # Each row begins with the number of its filter: none.
        filtered = np.pad(content, ((0, 0), (1, 0)))
        self._rows += len(rows)
        compressed = self._compress.compress(filtered.tobytes())
        if compressed:
            try:
                self._chunk(b"IDAT", compressed)
            except OSError as error:
                remedy = "make room there, or name another folder"
                raise StorageError.of(self._path, error, remedy) from error

    def _chunk(self, kind: bytes, content: bytes) -> None:
        checksum = zlib.crc32(kind + content)
        self._file.write(struct.pack(">I", len(content)) + kind + content)
        self._file.write(struct.pack(">I", checksum))
