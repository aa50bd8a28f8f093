"""The benchmark of tiled prediction, on a network that sees one pixel and on one that sees all."""

import numpy as np
import pytest

from benchmarks import tiles

SIZE = (24, 40)
CLASSES = (3, 255)


@pytest.fixture
def pairs():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, (2, *SIZE))
    labels[0, :4] = 255
    return [(generator.uniform(0, 255, (*SIZE, 3)), label) for label in labels]


def pointwise(image):
    return np.asarray(image, np.float32)


def pooling(image):
    """What is seen is compared with its mean, as by a head that pools."""
    return np.asarray(image - image.mean((0, 1)), np.float32)


def test_a_network_of_single_pixels_is_the_same_in_tiles(pairs):
    (row,) = tiles.compare(pointwise, pairs, [((9, 17), 3)], CLASSES)
    assert (row["tile"], row["overlap"]) == ("9x17", 3)
    assert row["agreement"] == row["seam_agreement"] == 1
    scores = []
    for c in range(3):
        counts = [
            np.stack([(ids == c), (label == c)])[:, label != 255]
            for (image, label) in pairs
            for ids in [image.argmax(-1)]
        ]
        both = np.concatenate(counts, axis=1)
        scores.append(both.all(0).sum() / both.any(0).sum())
    assert row["miou"] == row["whole_miou"] == round(float(np.mean(scores)), 4)


def test_a_network_that_pools_differs_in_tiles(pairs):
    small, large = tiles.compare(pooling, pairs, [((9, 17), 3), ((18, 34), 3)], CLASSES)
    assert 0.5 < small["agreement"] < large["agreement"] < 1
    assert small["whole_miou"] == large["whole_miou"]


def test_seams_lie_where_the_next_tile_takes_over():
    near = tiles._seams((64, 100), (64, 60), 20)
    # Tiles begin at 0 and 40: the middle of what they share is 50.
    assert np.flatnonzero(near[0]).tolist() == list(range(42, 59))
    assert (near == near[0]).all()
    assert not tiles._seams((64, 100), (64, 100), 0).any()
