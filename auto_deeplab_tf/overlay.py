"""Masks as pictures: colours, overlays on the image, and a contact sheet with a legend."""

from __future__ import annotations

import functools
import importlib.util
import io
import lzma
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from auto_deeplab_tf.data.dataset import voc_colors
from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.files import write_atomically

VOID_COLOR = (0, 0, 0)
_GAP = 6
_TEXT_HEIGHT = 18
_FONT_SIZE = 12
# GNU Unifont draws in a grid of 16 pixels and has every script of Unicode's first plane.
_UNIFONT = Path(__file__).parent / "fonts" / "unifont.otf.xz"
_UNIFONT_SIZE = 16
_SWATCH = 14  # of a legend's entry: the coloured square and the space behind it


def default_palette(num_classes: int) -> np.ndarray:
    """Returns the colour map of PASCAL VOC for classes that have no colours of their own.

    Class 0 takes the colour of id 1: that of id 0 is black, the colour of void.

    Returns:
        uint8 [num_classes, 3], all different up to 255 classes.
    """
    return np.array(voc_colors(range(1, num_classes + 1)), "uint8")


def colorize(class_ids: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Colours a mask.

    Args:
        class_ids: Integers [H, W]; what is not a class of the palette is void and becomes black.
        palette: uint8 [num_classes, 3].

    Returns:
        uint8 [H, W, 3].
    """
    class_ids = np.asarray(class_ids).astype("int64")
    num_classes = len(palette)
    table = np.concatenate([np.asarray(palette, "uint8"), np.array([VOID_COLOR], "uint8")])
    known = (class_ids >= 0) & (class_ids < num_classes)
    colored: np.ndarray = table[np.where(known, class_ids, num_classes)]
    return colored


def overlay(
    image: np.ndarray, class_ids: np.ndarray, palette: np.ndarray, opacity: float = 0.5
) -> np.ndarray:
    """Lays a coloured mask over its image; void pixels show the image alone.

    Args:
        image: [H, W, 3], 0..255.
        class_ids: Integers [H, W].
        palette: uint8 [num_classes, 3].
        opacity: Share of the colour, 0..1.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: Where image and mask differ in size.
    """
    image, class_ids = np.asarray(image), np.asarray(class_ids)
    if image.shape != (*class_ids.shape, 3):
        raise UserError(
            "an overlay needs an image [H, W, 3] and class ids [H, W] of one size. "
            f"Received: image {list(image.shape)}, class ids {list(class_ids.shape)}"
        )
    known = (class_ids >= 0) & (class_ids < len(palette))
    share = opacity * known[..., None]
    mixed = image.astype("float32") * (1 - share) + colorize(class_ids, palette) * share
    return _to_uint8(mixed)


def displayable(image: np.ndarray) -> np.ndarray:
    """A picture to look at: gray as three equal channels, of more than three channels the first.

    Args:
        image: [H, W, C], 0..255; C may be 1 or at least 3.

    Returns:
        uint8 [H, W, 3].
    """
    image = np.asarray(image)
    image = image.repeat(3, axis=-1) if image.shape[-1] == 1 else image[..., :3]
    return _to_uint8(image)


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(np.rint(image), 0, 255), "uint8")


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    row_names: Sequence[str],
    class_names: Sequence[str],
    palette: np.ndarray,
    tile_width: int = 320,
) -> np.ndarray:
    """Puts pictures into a table: titles above the columns, names below the rows, then a legend.

    Texts may be in any script. One that is wider than its place is shortened in the middle.

    Args:
        rows: For each row one uint8 picture [h, w, 3] per column; each is brought to `tile_width`
            with its own proportions.
        titles: One per column.
        row_names: One per row.
        class_names: One per class, for the legend.
        palette: uint8 [num_classes, 3].
        tile_width: Width of a column in pixels.

    Returns:
        uint8 [height, width, 3].

    Raises:
        ValueError: Where a row has another number of pictures than there are titles.
    """
    for row in rows:
        if len(row) != len(titles):
            raise UserError(
                f"every row of a sheet needs one picture per title ({len(titles)}). "
                f"Received: {len(row)}"
            )
    tiles = [[_scaled(picture, tile_width) for picture in row] for row in rows]
    heights = [max((tile.height for tile in row), default=0) for row in tiles]
    width = _GAP + len(titles) * (tile_width + _GAP)
    labels = [_Label(name, width - 2 * _GAP - _SWATCH) for name in class_names]
    legend = _legend_positions(labels, width)
    legend_height = (legend[-1][1] if legend else 0) + _TEXT_HEIGHT + _GAP
    height = _TEXT_HEIGHT + sum(heights) + len(rows) * (_TEXT_HEIGHT + _GAP) + legend_height + _GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        _Label(title, tile_width).draw(draw, _GAP + column * (tile_width + _GAP), 0)
    y = _TEXT_HEIGHT
    for tile_row, row_height, name in zip(tiles, heights, row_names, strict=True):
        for column, tile in enumerate(tile_row):
            sheet.paste(tile, (_GAP + column * (tile_width + _GAP), y))
        _Label(name, width - 2 * _GAP).draw(draw, _GAP, y + row_height)
        y += row_height + _TEXT_HEIGHT + _GAP
    for (x, dy), label, color in zip(legend, labels, palette, strict=True):
        box = (x, y + dy + 3, x + 10, y + dy + 13)
        draw.rectangle(box, fill=tuple(int(value) for value in color), outline="black")
        label.draw(draw, x + _SWATCH, y + dy)
    return np.asarray(sheet)


def _scaled(picture: np.ndarray, width: int) -> Image.Image:
    image = Image.fromarray(np.asarray(picture, "uint8"))
    height = max(1, round(image.height * width / image.width))
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _legend_positions(labels: Sequence[_Label], width: int) -> list[tuple[int, int]]:
    """(x, y) of each entry of the legend, from left to right in as many lines as it takes."""
    positions, x, y = [], _GAP, 0
    for label in labels:
        entry = _SWATCH + label.width
        if x + entry > width - _GAP and x > _GAP:
            x, y = _GAP, y + _TEXT_HEIGHT
        positions.append((x, y))
        x += entry + 12
    return positions


class _Label:
    """A line of text in a font that has its glyphs, at most `max_width` pixels wide."""

    def __init__(self, text: str, max_width: int) -> None:
        text = " ".join(text.split())
        self._font = next((font for font in _fonts() if _has_glyphs(font, text)), _fonts()[-1])
        self._text = text = "".join(
            char if _has_glyphs(self._font, char) else f"<U+{ord(char):04X}>" for char in text
        )
        kept = len(text)
        while kept > 1 and self._font.getlength(self._text) > max_width:
            kept -= 1
            self._text = f"{text[: kept - kept // 2]}...{text[len(text) - kept // 2 :]}"
        self.width = int(np.ceil(self._font.getlength(self._text)))

    def draw(self, drawing: ImageDraw.ImageDraw, x: int, y: int) -> None:
        """Draws the text into the line whose upper left corner is (x, y), centred vertically."""
        place = (x, y + _TEXT_HEIGHT // 2)
        drawing.text(place, self._text, fill="black", font=self._font, anchor="lm")


@functools.cache
def _fonts() -> list[Any]:
    """The fonts, the most pleasant first: Pillow's, matplotlib's, and one with every script."""
    fonts: list[Any] = [ImageFont.load_default(size=_FONT_SIZE)]
    matplotlib = importlib.util.find_spec("matplotlib")  # found, not imported: that takes a second
    for folder in (matplotlib and matplotlib.submodule_search_locations) or ():
        path = Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.exists():
            fonts.append(ImageFont.truetype(str(path), _FONT_SIZE))
    unifont = io.BytesIO(lzma.decompress(_UNIFONT.read_bytes()))
    return [*fonts, ImageFont.truetype(unifont, _UNIFONT_SIZE)]


def _has_glyphs(font: Any, text: str) -> bool:
    """Tells whether a font has a glyph of its own for each character."""
    missing = _bitmap(font, "\U0010fffe")  # a code point that is no character
    return all(_bitmap(font, char) != missing for char in set(text))


@functools.lru_cache(maxsize=4096)
def _bitmap(font: Any, char: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(char)
    return mask.size, bytes(mask)


def comparison_sheet(
    samples: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]],
    class_names: Sequence[str],
    palette: np.ndarray,
) -> np.ndarray:
    """Draws samples as rows of a sheet: image, labels and prediction laid over it.

    Args:
        samples: (name, image [H, W, C], 0..255, labels [H, W], predicted class ids [H, W]) each.
        class_names: One per class.
        palette: uint8 [num_classes, 3].
    """
    rows = []
    for _, image, labels, prediction in samples:
        image = displayable(image)
        rows.append((image, overlay(image, labels, palette), overlay(image, prediction, palette)))
    names = [name for name, *_ in samples]
    titles = ("image", "labels", "prediction")
    return contact_sheet(rows, titles, names, class_names, palette)


def save_png(path: str | os.PathLike[str], picture: np.ndarray) -> None:
    """Writes a PNG file whole or not at all.

    Args:
        path: The file.
        picture: uint8 [H, W, 3], or uint8 or uint16 [H, W].
    """
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, format="PNG")
    write_atomically(path, encoded.getvalue())
