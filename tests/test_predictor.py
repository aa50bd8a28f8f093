"""The regression that `select --num_predicted` draws by."""

import numpy as np
import pytest
import scipy.stats

from auto_deeplab_tf import predictor
from auto_deeplab_tf.architecture import Architecture, Edge
from auto_deeplab_tf.sampling import random_architecture


def test_features_count_operations_inputs_and_levels():
    cell = (
        (Edge("prev_prev", "skip"), Edge("prev", "sep_5x5")),
        (Edge("prev", "skip"), Edge("block_0", "max_pool_3x3")),
    )
    architecture = Architecture((0, 1, 2, 2), cell, "separable")
    counted = predictor.features(architecture, 8, 1000)
    # Operations in their order, without none; prev, prev_prev; levels 0 to 3; F, parameters.
    assert counted[:7] == [0, 1, 0, 0, 0, 1, 2]
    assert counted[7:9] == [2, 1]
    assert counted[9:13] == [1, 1, 2, 0]
    assert counted[13:] == pytest.approx([np.log(8), np.log(1000)])


def test_it_learns_what_a_few_networks_show_through_noise():
    rng = np.random.default_rng(0)
    seen = np.array([predictor.features(random_architecture(n), 10, 1000) for n in range(400)])
    truth = 0.3 * seen[:, 6] - 0.1 * seen[:, 12]  # skips, and layers at the coarsest level
    noisy = truth[:24] + 0.2 * truth.std() * rng.standard_normal(24)
    scores = predictor.predicted_scores(seen[:24], noisy, seen[24:])
    assert scipy.stats.spearmanr(scores, truth[24:]).statistic > 0.8
    assert np.mean(truth[24:][np.argsort(scores)[-10:]]) > np.quantile(truth[24:], 0.95)


def test_noise_alone_is_shrunk_to_its_mean():
    rng = np.random.default_rng(0)
    seen = np.array([predictor.features(random_architecture(n), 10, 1000) for n in range(100)])
    noise = rng.standard_normal(20)
    scores = predictor.predicted_scores(seen[:20], noise, seen[20:])
    assert np.std(scores) < 0.5 * np.std(noise)
    assert predictor.predicted_scores(seen[:20], noise, []) == []
