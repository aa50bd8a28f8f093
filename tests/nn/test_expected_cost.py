"""The expected cost: a count where alpha and beta are one-hot, else a mean over paths."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab_tf import accounting, decoding, method
from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.config import SupernetConfig
from auto_deeplab_tf.nn.expected_cost import COUNTED_SIZE, ExpectedCost
from auto_deeplab_tf.sampling import random_architecture
from auto_deeplab_tf.search_space import NUM_LEVELS, relaxed_edges

STEM = (3, 5, 6)


def settings(num_layers, num_blocks, atrous="separable"):
    return SupernetConfig(
        num_layers=num_layers,
        num_blocks=num_blocks,
        filter_multiplier=3,
        atrous=atrous,
        stem_channels=STEM,
    )


def counted(architecture, kind):
    """The cells of the architecture by `accounting`."""
    parts = accounting.count(
        architecture,
        num_classes=7,
        input_size=COUNTED_SIZE,
        filter_multiplier=3,
        stem_channels=STEM,
        head_channels=9,
    ).parts
    return sum(getattr(part, kind) for part in parts if part.name.startswith("cell_"))


def of_one_hot(cost, architecture):
    alpha, beta = decoding.one_hot(architecture)
    return float(cost(tf.constant(alpha, tf.float64), tf.constant(beta, tf.float64)))


@pytest.mark.parametrize("kind", ["multi_adds", "params"])
@pytest.mark.parametrize("atrous", ["separable", "full"])
@pytest.mark.parametrize(("num_layers", "num_blocks"), [(1, 1), (2, 2), (12, 5), (5, 3)])
def test_one_hot_alpha_and_beta_cost_exactly_what_accounting_counts(
    num_layers, num_blocks, atrous, kind
):
    cost = ExpectedCost(settings(num_layers, num_blocks, atrous), kind)
    for seed in range(8):
        architecture = random_architecture(seed, num_layers, num_blocks, atrous)
        assert of_one_hot(cost, architecture) == counted(architecture, kind)


@pytest.mark.parametrize("kind", ["multi_adds", "params"])
def test_beta_weights_paths_by_their_probability_and_alpha_operations(kind):
    num_layers, num_blocks = 3, 2
    cost = ExpectedCost(settings(num_layers, num_blocks), kind)
    rng = np.random.default_rng(0)
    edges = len(relaxed_edges(num_blocks))
    logits = (rng.normal(size=(edges, 8)), rng.normal(size=(num_layers, NUM_LEVELS, 3)))
    alpha, beta = method.relax(*(tf.constant(values, tf.float64) for values in logits))
    beta = beta.numpy()
    # Over all paths, and on each edge over all operations: cost is a sum over edges.
    expected = 0.0
    for levels in itertools.product(range(NUM_LEVELS), repeat=num_layers):
        steps = list(zip((0, *levels), levels, strict=False))
        if any(abs(after - before) > 1 for before, after in steps):
            continue
        moves = [beta[layer, b, c - b + 1] for layer, (b, c) in enumerate(steps)]
        one_hot = np.zeros_like(beta)
        for layer, (b, c) in enumerate(steps):
            one_hot[layer, b, c - b + 1] = 1.0
        expected += np.prod(moves) * float(cost(alpha, tf.constant(one_hot)))
    assert float(cost(alpha, tf.constant(beta))) == pytest.approx(expected, rel=1e-9)
    # On a path, alpha mixes: half of two cells costs half of both.
    first, second = (random_architecture(seed, num_layers, num_blocks) for seed in (1, 2))
    second = Architecture(first.levels, second.cell, "separable")
    (alpha_1, path), (alpha_2, _) = map(decoding.one_hot, (first, second))
    half = float(cost(tf.constant((alpha_1 + alpha_2) / 2), tf.constant(path)))
    assert half == pytest.approx((counted(first, kind) + counted(second, kind)) / 2, rel=1e-6)


def test_the_ratio_begins_at_one_and_falls_where_its_gradient_says():
    cost = ExpectedCost(settings(4, 3))
    logits = [tf.Variable(tf.zeros((len(relaxed_edges(3)), 8))), tf.Variable(tf.zeros((4, 4, 3)))]
    assert float(cost.log_ratio(*logits)) == pytest.approx(0.0, abs=1e-6)
    for _ in range(20):
        with tf.GradientTape() as tape:
            ratio = cost.log_ratio(*logits)
        for variable, gradient in zip(logits, tape.gradient(ratio, logits), strict=True):
            assert np.isfinite(gradient).all()
            variable.assign_sub(gradient)
    # Down to what cannot be chosen away: projections, and of the edges pooling, skip and none.
    assert float(cost.log_ratio(*logits)) < -0.3
