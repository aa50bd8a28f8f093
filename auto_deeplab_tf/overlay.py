"""Masks as pictures: colours, overlays on the image, and a contact sheet with a legend."""

import io
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from auto_deeplab_tf.data.dataset import voc_colors
from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.files import write_atomically

VOID_COLOR = (0, 0, 0)
_GAP = 6
_TEXT_HEIGHT = 18
_FONT_SIZE = 12


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
        class_ids: integers [H, W]; what is not a class of the palette is void and becomes black.
        palette: uint8 [num_classes, 3].

    Returns:
        uint8 [H, W, 3].
    """
    class_ids = np.asarray(class_ids).astype("int64")
    num_classes = len(palette)
    table = np.concatenate([np.asarray(palette, "uint8"), np.array([VOID_COLOR], "uint8")])
    known = (class_ids >= 0) & (class_ids < num_classes)
    return table[np.where(known, class_ids, num_classes)]


def overlay(
    image: np.ndarray, class_ids: np.ndarray, palette: np.ndarray, opacity: float = 0.5
) -> np.ndarray:
    """Lays a coloured mask over its image; void pixels show the image alone.

    Args:
        image: [H, W, 3], 0..255.
        class_ids: integers [H, W].
        palette: uint8 [num_classes, 3].
        opacity: share of the colour, 0..1.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: where image and mask differ in size.
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
    return np.clip(np.rint(mixed), 0, 255).astype("uint8")


def displayable(image: np.ndarray) -> np.ndarray:
    """A picture to look at: gray as three equal channels, of more than three channels the first.

    Args:
        image: [H, W, C], 0..255; C may be 1 or at least 3.

    Returns:
        uint8 [H, W, 3].
    """
    image = np.asarray(image)
    image = image.repeat(3, axis=-1) if image.shape[-1] == 1 else image[..., :3]
    return np.clip(np.rint(image), 0, 255).astype("uint8")


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    row_names: Sequence[str],
    class_names: Sequence[str],
    palette: np.ndarray,
    tile_width: int = 320,
) -> np.ndarray:
    """Puts pictures into a table: titles above the columns, names below the rows, then a legend.

    Args:
        rows: for each row one uint8 picture [h, w, 3] per column; each is brought to `tile_width`
            with its own proportions.
        titles: one per column.
        row_names: one per row.
        class_names: one per class, for the legend.
        palette: uint8 [num_classes, 3].
        tile_width: width of a column in pixels.

    Returns:
        uint8 [height, width, 3].

    Raises:
        ValueError: where a row has another number of pictures than there are titles.
    """
    for row in rows:
        if len(row) != len(titles):
            raise UserError(
                f"every row of a sheet needs one picture per title ({len(titles)}). "
                f"Received: {len(row)}"
            )
    font = ImageFont.load_default(size=_FONT_SIZE)
    tiles = [[_scaled(picture, tile_width) for picture in row] for row in rows]
    heights = [max((tile.height for tile in row), default=0) for row in tiles]
    width = _GAP + len(titles) * (tile_width + _GAP)
    legend = _legend_positions(class_names, width, font)
    legend_height = (legend[-1][1] if legend else 0) + _TEXT_HEIGHT + _GAP
    height = _TEXT_HEIGHT + sum(heights) + len(rows) * (_TEXT_HEIGHT + _GAP) + legend_height + _GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((_GAP + column * (tile_width + _GAP), 2), title, fill="black", font=font)
    y = _TEXT_HEIGHT
    for tile_row, row_height, name in zip(tiles, heights, row_names, strict=True):
        for column, tile in enumerate(tile_row):
            sheet.paste(tile, (_GAP + column * (tile_width + _GAP), y))
        draw.text((_GAP, y + row_height + 1), name, fill="black", font=font)
        y += row_height + _TEXT_HEIGHT + _GAP
    for (x, dy), name, color in zip(legend, class_names, palette, strict=True):
        box = (x, y + dy + 3, x + 10, y + dy + 13)
        draw.rectangle(box, fill=tuple(int(value) for value in color), outline="black")
        draw.text((x + 14, y + dy), name, fill="black", font=font)
    return np.asarray(sheet)


def _scaled(picture: np.ndarray, width: int) -> Image.Image:
    image = Image.fromarray(np.asarray(picture, "uint8"))
    height = max(1, round(image.height * width / image.width))
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _legend_positions(
    class_names: Sequence[str], width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> list[tuple[int, int]]:
    """(x, y) of each entry of the legend, from left to right in as many lines as it takes."""
    positions, x, y = [], _GAP, 0
    for name in class_names:
        entry = 14 + int(font.getlength(name)) + 12
        if x + entry > width and x > _GAP:
            x, y = _GAP, y + _TEXT_HEIGHT
        positions.append((x, y))
        x += entry
    return positions


def comparison_sheet(
    samples: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]],
    class_names: Sequence[str],
    palette: np.ndarray,
) -> np.ndarray:
    """Draws samples as rows of a sheet: image, labels and prediction laid over it.

    Args:
        samples: (name, image [H, W, C], 0..255, labels [H, W], predicted class ids [H, W]) each.
        class_names: one per class.
        palette: uint8 [num_classes, 3].
    """
    rows = []
    for _, image, labels, prediction in samples:
        image = displayable(image)
        rows.append((image, overlay(image, labels, palette), overlay(image, prediction, palette)))
    names = [name for name, *_ in samples]
    titles = ("image", "labels", "prediction")
    return contact_sheet(rows, titles, names, class_names, palette)


def save_png(path: str | os.PathLike, picture: np.ndarray) -> None:
    """Writes a PNG file whole or not at all.

    Args:
        path: the file.
        picture: uint8 [H, W, 3], or uint8 or uint16 [H, W].
    """
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, format="PNG")
    write_atomically(path, encoded.getvalue())
