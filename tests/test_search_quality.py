"""The search-quality benchmark: networks of equal cost, and the training on JAX's CPU build."""

import os
import subprocess
import sys

import numpy as np
import pytest

from auto_deeplab_tf import accounting
from auto_deeplab_tf.sampling import random_architecture
from benchmarks.search_quality import jax_train, population


@pytest.mark.parametrize("seed", range(4))
def test_networks_cost_the_same_and_the_cells_most_of_it(seed):
    architecture = random_architecture(seed)
    cost = population.cost(architecture)
    best = min(
        range(1, 60),
        key=lambda f: abs(
            accounting.count(architecture, filter_multiplier=f, **population.SETTINGS).multi_adds
            - population.MULTI_ADDS
        ),
    )
    assert cost["filter_multiplier"] == best
    assert abs(cost["multi_adds"] / population.MULTI_ADDS - 1) < 0.06
    assert cost["cell_share"] > 0.5


def test_drives_are_held_back_for_tuning(tmp_path):
    labels = np.zeros((3, 4, 4), np.uint8)
    labels[2] = 1
    np.savez(
        tmp_path / "data.npz",
        train_images=np.zeros((3, 4, 4, 3), np.uint8)
        + np.arange(3, dtype=np.uint8)[:, None, None, None],
        train_labels=labels,
        train_ids=np.array(["0001TP_1", "0006R0_1", "0016E5_1"]),
        val_images=np.full((9, 4, 4, 3), 9, np.uint8),
        val_labels=labels[[0] * 9],
    )
    tuning = jax_train.load(str(tmp_path / "data.npz"), "tuning")
    assert set(np.unique(tuning["train_images"])) == {1, 2}
    # One image of the drive, padded to a batch by images that count nowhere.
    assert len(tuning["val_images"]) == jax_train.BATCH
    assert np.all(tuning["val_labels"][1:] == 255) and np.all(tuning["val_labels"][0] == 0)
    reported = jax_train.load(str(tmp_path / "data.npz"), "reported")
    assert len(reported["train_images"]) == 3 and len(reported["val_images"]) == 16
    assert set(np.unique(reported["val_images"][:9])) == {9}


PROGRAM = """
import sys, types, time
sys.modules["tensorflow"] = None  # the device has none
import numpy as np, jax
from auto_deeplab_tf.sampling import random_architecture
from benchmarks.search_quality import jax_train, population
population.SETTINGS.update(num_classes=11)
generator = np.random.default_rng(0)
labels = (generator.uniform(size=(24, 6, 8)) < 0.5).astype(np.uint8).repeat(8, 1).repeat(8, 2)
images = (60 + 120 * labels[..., None] + generator.uniform(0, 20, (24, 48, 64, 3))).astype(np.uint8)
labels[:, :2] = 255
np.savez(sys.argv[1], train_images=images, train_labels=labels, val_images=images[:8],
         train_ids=np.array(["0006R0"] * 24), val_labels=labels[:8])
data = jax_train.load(sys.argv[1], "reported")
trainer = jax_train.Trainer(random_architecture(0, 2, 1), 2, data)
batch, truth = trainer.draw_batch(jax.random.key(3))
batch, truth = np.asarray(batch), np.asarray(truth)
assert batch.shape == (8, 48, 64, 3) and truth.shape == (8, 48, 64)
inside = truth != 255
# The label of a pixel and its brightness still belong together, away from the borders.
agree = ((batch[..., 0] > 130) == (truth == 1))[inside].mean()
assert agree > 0.9, agree
row = trainer.train(0, 200, time.monotonic() + 1000)
again = trainer.train(0, 200, time.monotonic() + 1000)
assert row["miou"] == again["miou"] > 0.8, (row, again)
assert row["loss_1_8"] > row["loss_1_4"] > row["loss_1_2"] > 0
assert trainer.train(1, 200, time.monotonic() - 1) is None
"""


@pytest.mark.slow
def test_a_network_learns_on_jax(tmp_path):
    environment = os.environ | {"KERAS_BACKEND": "jax", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "data.npz")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-2000:]
