"""ScheduledDropPath: its schedule, its expectation, and that a restart changes nothing."""

import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab_tf.nn.drop_path import ScheduledDropPath


def draw(layer, samples=4):
    return np.array(layer(np.zeros((samples, 1), "float32")))


def test_nothing_is_dropped_at_the_beginning():
    factors = draw(ScheduledDropPath(3, 5, keep_final=0.3))
    np.testing.assert_array_equal(factors, np.ones((3, 5, 4, 1, 1, 1)))


def test_keep_probability_follows_progress_and_cell():
    layer = ScheduledDropPath(4, 10, keep_final=0.4)
    layer.progress.assign(0.5)
    factors = draw(layer, samples=2000)
    for cell in range(4):
        keep = 1 - 0.5 * (cell + 1) / 4 * 0.6
        kept = factors[cell] > 0
        # 20,000 draws: a standard deviation of at most 0.0036.
        assert abs(kept.mean() - keep) < 0.015
        np.testing.assert_allclose(factors[cell][kept], 1 / keep, rtol=1e-6)
        assert abs(factors[cell].mean() - 1) < 0.02


def test_samples_and_paths_are_drawn_independently():
    layer = ScheduledDropPath(1, 2, keep_final=0.5)
    layer.progress.assign(1.0)
    kept = draw(layer, samples=4000)[0, ..., 0, 0, 0] > 0
    joint = (kept[0] & kept[1]).mean()
    assert abs(joint - 0.25) < 0.03
    assert abs((kept[0, 1:] & kept[0, :-1]).mean() - 0.25) < 0.03


def test_draws_are_a_function_of_seed_and_count():
    layers = [ScheduledDropPath(2, 3, keep_final=0.5, seed=seed) for seed in (1, 1, 2)]
    for layer in layers:
        layer.progress.assign(1.0)
    first, same, other = ([draw(layer, 20) for _ in range(2)] for layer in layers)
    np.testing.assert_array_equal(first, same)
    assert np.any(first[0] != first[1])
    assert np.any(first[0] != other[0])


def test_a_restored_checkpoint_goes_on_with_the_same_draws(tmp_path):
    layer = ScheduledDropPath(2, 3, keep_final=0.5)
    layer.progress.assign(0.75)
    for _ in range(3):
        draw(layer)
    path = tf.train.Checkpoint(layer=layer).write(str(tmp_path / "checkpoint"))
    expected = draw(layer)
    again = ScheduledDropPath(2, 3, keep_final=0.5)
    tf.train.Checkpoint(layer=again).read(path).assert_consumed()
    np.testing.assert_array_equal(draw(again), expected)


def test_replicas_draw_what_one_draws_for_the_global_batch(mirrored):
    with mirrored.scope():
        layer = ScheduledDropPath(2, 3, keep_final=0.5)
        layer.progress.assign(1.0)
    alone = ScheduledDropPath(2, 3, keep_final=0.5)
    alone.progress.assign(1.0)

    @tf.function
    def run():
        return mirrored.run(lambda: layer(tf.zeros((4, 1))))

    for _ in range(2):
        parts = mirrored.experimental_local_results(run())
        assert np.any(parts[0] != parts[1])
        np.testing.assert_array_equal(np.concatenate(parts, axis=2), draw(alone, samples=8))


def test_refused_arguments():
    with pytest.raises(ValueError, match="drop_path_keep must be above 0 and at most 1"):
        ScheduledDropPath(2, 3, keep_final=0.0)
    with pytest.raises(ValueError, match="drop_path_keep must be above 0 and at most 1"):
        ScheduledDropPath(2, 3, keep_final=1.5)
    with pytest.raises(ValueError, match="seed must lie in 0..2"):
        ScheduledDropPath(2, 3, keep_final=0.5, seed=-1)
