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
