"""Random alpha and beta, decoded: whatever path and cell comes out counts, builds and trains."""

import numpy as np
import pytest

from auto_deeplab_tf.accounting import count
from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.decoding import decode
from auto_deeplab_tf.search_space import OPERATIONS, move_mask, relaxed_edges
from auto_deeplab_tf.segmenter import Segmenter

NUM_CLASSES = 4
SIZES = ((97, 97), (224, 224), (480, 720))
SETTINGS = {"num_classes": NUM_CLASSES, "filter_multiplier": 2}
HEAD = {"head_channels": 8, "decoder_channels": 4}


def draw(seed):
    """Decodes random logits of the paper's search space; every third beta rather goes down."""
    generator = np.random.default_rng(seed)
    alpha = generator.normal(0, 2, (len(relaxed_edges(5)), len(OPERATIONS)))
    beta = generator.normal(0, 2, move_mask(12).shape) + (np.arange(3) - 1) * (seed % 3)
    return decode(alpha, beta, ("full", "separable")[seed % 2])


def trains_a_step(architecture, size, seed):
    generator = np.random.default_rng(seed)
    images = generator.uniform(0, 255, (1, *size, 3)).astype("float32")
    masks = generator.integers(0, NUM_CLASSES, (1, *size)).astype("int32")
    segmenter = Segmenter(architecture, **SETTINGS, **HEAD)
    assert segmenter(images[:, :33, :40]).shape == (1, 33, 40, NUM_CLASSES)
    variables = segmenter.trainable_variables
    counted = count(architecture, **SETTINGS, input_size=size, **HEAD)
    assert sum(int(np.prod(v.shape)) for v in variables) == counted.params
    segmenter.optimizer.build(variables)
    before = [np.asarray(v.value) for v in variables]
    logs = segmenter.train_step((images, masks))
    assert np.isfinite(float(logs["loss"])) and float(logs["loss"]) > 0
    moved = [not np.array_equal(v.value, old) for v, old in zip(variables, before, strict=True)]
    assert np.mean(moved) > 0.9


def test_a_hundred_draws_decode_validate_and_count():
    draws = [draw(seed) for seed in range(100)]
    for architecture in draws:
        assert Architecture.from_json(architecture.to_json()) == architecture
        assert all(edge.op != "none" for block in architecture.cell for edge in block)
        small, large = (
            count(architecture, **SETTINGS, input_size=size, **HEAD) for size in SIZES[:2]
        )
        assert small.params == large.params > 0
        assert 0 < small.multi_adds < large.multi_adds
    assert {architecture.levels[-1] for architecture in draws} == {0, 1, 2, 3}
    assert any(0 not in architecture.levels for architecture in draws)


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 100))]
)
def test_draws_build_run_and_train_a_step(seed):
    trains_a_step(draw(seed), SIZES[seed % 3], seed)
