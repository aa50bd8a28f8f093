"""Training in mixed_bfloat16 on a small set: the loss falls, nothing becomes NaN.

The baselines' is in baselines/test_baselines.py.
"""

import keras
import numpy as np
import pytest

from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.nn.network import build_network
from auto_deeplab_tf.segmenter import Segmenter

PUBLISHED = Architecture.preset("auto_deeplab")
DTYPE = "mixed_bfloat16"


def small_set(count, size, seed=0):
    """Images of coloured tiles; the class of a tile is its strongest colour."""
    rng = np.random.default_rng(seed)
    tiles = rng.integers(0, 3, (count, 4, 4))
    masks = tiles.repeat(-(-size // 4), 1).repeat(-(-size // 4), 2)[:, :size, :size]
    images = 60 + 120 * np.eye(3)[masks] + rng.normal(0, 10, (*masks.shape, 3))
    return np.clip(images, 0, 255).astype("float32"), masks.astype("int32")


def train(network, steps, size, learning_rate=5e-3):
    """Trains on one batch after another; returns the losses."""
    segmenter = Segmenter(network)
    segmenter.compile(keras.optimizers.Adam(learning_rate))
    images, masks = small_set(2 * steps, size)
    losses = []

    class Losses(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            segmenter.reset_metrics()

        def on_train_batch_end(self, batch, logs=None):
            losses.append(float(logs["loss"]))

    segmenter.fit(images, masks, batch_size=2, epochs=1, verbose=0, callbacks=[Losses()])
    assert len(losses) == steps and np.isfinite(losses).all()
    for variable in segmenter.variables:
        assert np.isfinite(np.asarray(variable)).all(), variable.path
    assert {variable.dtype for variable in network.trainable_variables} == {"float32"}
    logits = np.asarray(network(images[:1]))
    assert logits.dtype == "float32" and np.isfinite(logits).all() and logits.std() > 0
    return losses


@pytest.mark.parametrize("atrous", [pytest.param("full", marks=pytest.mark.slow), "separable"])
def test_auto_deeplab_learns_in_mixed_precision(atrous):
    keras.utils.set_random_seed(0)
    architecture = Architecture((0, 1), PUBLISHED.cell, atrous)
    network = build_network(
        architecture, 3, 4, head_channels=32, decoder_channels=8, batch_norm_decay=0.9, dtype=DTYPE
    )
    assert all(cell.compute_dtype == "bfloat16" for cell in network.cells)
    losses = train(network, steps=25, size=49)
    assert np.mean(losses[-5:]) < 0.8 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("filter_multiplier", [20, 32, 48])
def test_the_published_sizes_stay_finite_in_mixed_precision(filter_multiplier):
    train(build_network(PUBLISHED, 3, filter_multiplier, dtype=DTYPE), 3, 97, learning_rate=1e-3)
