"""What evaluate draws. Scores: test_train_evaluate_predict.py; SavedModels: test_served.py."""

import numpy as np
from PIL import Image

from auto_deeplab_tf import evaluate, overlay

NAMES = ("road", "sky", "tree")
PALETTE = overlay.default_palette(3)


def sample(image_id, seed):
    rng = np.random.default_rng(seed)
    labels, prediction = rng.integers(0, 3, (2, 20, 30))
    return image_id, rng.integers(0, 256, (20, 30, 3), dtype=np.uint8), labels, prediction


def test_every_image_has_its_own_overlay_whatever_its_id(tmp_path):
    samples = [sample(name, seed) for seed, name in enumerate(("a", "sheet", "sheet_"))]
    evaluate._draw(tmp_path, samples, NAMES, PALETTE)
    expected = {one[0]: [one] for one in samples} | {"sheet__": samples}
    folder = tmp_path / "overlays"
    assert {path.stem for path in folder.iterdir()} == set(expected)
    for name, rows in expected.items():
        drawn = np.asarray(Image.open(folder / f"{name}.png"))
        np.testing.assert_array_equal(drawn, overlay.comparison_sheet(rows, NAMES, PALETTE))


def test_the_sheet_of_all_images_is_sheet_png(tmp_path):
    evaluate._draw(tmp_path, [sample("a", 0), sample("b", 1)], NAMES, PALETTE)
    names = sorted(path.name for path in (tmp_path / "overlays").iterdir())
    assert names == ["a.png", "b.png", "sheet.png"]
