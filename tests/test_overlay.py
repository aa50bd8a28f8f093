"""Colours, overlays and sheets: every pixel where it belongs."""

import numpy as np
import pytest

from auto_deeplab_tf import overlay

PALETTE = np.array([[255, 0, 0], [0, 200, 0], [0, 0, 100]], "uint8")


def test_colorize_gives_each_class_its_colour_and_void_black():
    class_ids = np.array([[0, 1, 2], [255, -1, 3]])
    expected = [
        [[255, 0, 0], [0, 200, 0], [0, 0, 100]],
        [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
    ]
    np.testing.assert_array_equal(overlay.colorize(class_ids, PALETTE), expected)


def test_overlay_mixes_classes_and_shows_the_image_where_void():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (4, 6, 3)).astype("uint8")
    class_ids = rng.choice([0, 1, 2, 255], (4, 6))
    mixed = overlay.overlay(image, class_ids, PALETTE, opacity=0.25)
    for position in np.ndindex(4, 6):
        pixel = image[position].astype("float64")
        if class_ids[position] != 255:
            pixel = 0.75 * pixel + 0.25 * PALETTE[class_ids[position]]
        np.testing.assert_allclose(mixed[position], pixel, atol=0.5 + 1e-6)


def test_overlay_refuses_another_size():
    with pytest.raises(
        ValueError, match=r"of one size. Received: image \[4, 5, 3\], class ids \[5, 4\]"
    ):
        overlay.overlay(np.zeros((4, 5, 3)), np.zeros((5, 4), int), PALETTE)


@pytest.mark.parametrize("num_classes", [2, 21, 255])
def test_default_palette_has_a_colour_for_each_class(num_classes):
    palette = overlay.default_palette(num_classes)
    assert palette.shape == (num_classes, 3)
    assert len({tuple(color) for color in palette}) == num_classes
    assert (palette.sum(axis=-1) > 0).all()


def test_sheet_holds_every_tile_and_colour():
    colors = [[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120]]
    tiles = [np.full((30, 40, 3), color, "uint8") for color in colors]
    sheet = overlay.contact_sheet(
        [tiles[:2], tiles[2:]],
        ["image", "mask"],
        ["a", "b"],
        ["x", "y", "z"],
        PALETTE,
        tile_width=80,
    )
    for color in colors:
        assert (sheet == color).all(axis=-1).sum() == 60 * 80
    for color in PALETTE:
        assert (sheet == color).all(axis=-1).sum() >= 80


def test_sheet_refuses_a_ragged_row():
    with pytest.raises(ValueError, match=r"one picture per title \(2\). Received: 1"):
        overlay.contact_sheet([[np.zeros((2, 2, 3))]], ["a", "b"], ["r"], ["x"], PALETTE[:1])


def legend(*names, tile_width=160):
    """The sheet's part below the picture, as darkness of the text."""
    palette = np.full((len(names), 3), 255, "uint8")
    tile = np.full((20, 40, 3), 255, "uint8")
    sheet = overlay.contact_sheet([[tile]], [""], [""], names, palette, tile_width=tile_width)
    return 255 - sheet.astype("int64").min(axis=-1)


@pytest.mark.parametrize(
    "names",
    [
        ("Straße", "Strasse"),
        ("дорога", "дороги"),
        ("δρόμος", "δρόμοι"),
        ("道路", "道踏"),
        ("自転車", "自動車"),
        ("보행자", "보행로"),
        ("سيارة", "سيارات"),
        ("שביל", "שבול"),
        ("सड़क", "सड़ख"),
        ("ถนน", "ถนด"),
    ],
)
def test_a_legend_has_the_glyphs_of_any_script(names):
    """Letters without a glyph would all be drawn as the same box."""
    first, second = (legend(name) for name in names)
    assert first.max() == 255 and np.any(first != second)
    assert all(overlay._has_glyphs(overlay._Label(name, 300)._font, name) for name in names)


def test_a_character_without_a_glyph_is_named():
    label = overlay._Label("\U0001f9f1 brick", 300)
    assert label._text in ("\U0001f9f1 brick", "<U+1F9F1> brick")
    assert overlay._Label("\U0010fffd", 300)._text == "<U+10FFFD>"


@pytest.mark.parametrize("name", ["w" * 200, "道" * 60, "a b " * 80])
def test_a_long_name_is_shortened_in_the_middle(name):
    drawn, other = legend(f"{name}x"), legend(f"{name}yyy")
    assert drawn[:, -overlay._GAP :].max() == 0
    assert np.any(drawn != other)
    label = overlay._Label(name, 100)
    assert label.width <= 100 and "..." in label._text
    assert overlay._Label("road", 100)._text == "road"
