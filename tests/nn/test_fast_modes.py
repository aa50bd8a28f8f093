"""The fast modes of the supernet: against the plain formulation, and against the exact search."""

import numpy as np
import pytest
import tensorflow as tf
from reference_supernet import plain_loss_and_gradients

from auto_deeplab_tf.nn.relaxation import sample_moves
from auto_deeplab_tf.nn.supernet import build_supernet
from auto_deeplab_tf.search_space import move_mask, transitions

CLASSES = 3
SIZE = (33, 41)


def random(shape, seed):
    return tf.constant(np.random.default_rng(seed).standard_normal(shape), tf.float32)


def weighting_of_loss():
    """Drawn so that the terms of the loss do not cancel, and rounding is not what is left."""
    return random((2, *SIZE, CLASSES), 2)


def images(seed=0):
    return 127.5 + 60.0 * random((2, *SIZE, 3), seed)


def gumbel(shape, seed=0):
    return tf.constant(np.random.default_rng(seed).gumbel(size=shape), tf.float32)


def supernet(num_layers=2, seed=0, **modes):
    """A small supernet whose alpha, beta, edges and affine weights are random."""
    settings = {"num_blocks": 2, "filter_multiplier": 2, "input_size": SIZE} | modes
    net = build_supernet(CLASSES, num_layers, seed=seed, **settings)
    generator = np.random.default_rng(seed)
    for variable in net.architecture_variables:
        variable.assign(generator.standard_normal(variable.shape))
    for segment in net.segments:
        if segment.affine is not None:
            segment.affine.assign(generator.uniform(0.5, 1.5, segment.affine.shape))
    return net


def gradients_of(net, sampling=None):
    """Loss and gradients, first of the weights, then of the architecture variables."""
    weighting = weighting_of_loss()
    computed = net.forward(images(), True, sampling)
    loss = tf.reduce_sum(computed.logits * weighting)
    found = [net.backward(computed, weighting, wrt) for wrt in ("weights", "architecture")]
    return loss, found[0] + found[1]


def check_same_gradients(net, ours, theirs):
    for variable, a, b in zip(
        [*net.trainable_variables, *net.architecture_variables], ours, theirs, strict=True
    ):
        np.testing.assert_allclose(
            a, b, atol=2e-4 * max(np.abs(b).max(), 1e-6), err_msg=variable.path
        )


@pytest.mark.parametrize(
    "modes",
    [
        {"partial_channels": 2},
        pytest.param(
            {"partial_channels": 2, "share_operations": False, "atrous": "full"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["partial", "partial_own_full"],
)
def test_a_fast_mode_equals_the_plain_formulation_in_loss_and_all_gradients(modes):
    net = supernet(**modes)
    loss, ours = gradients_of(net)
    plain_loss, theirs = plain_loss_and_gradients(net, images(), weighting_of_loss())
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-4)
    assert all(np.abs(gradient).max() > 0 for gradient in theirs)
    check_same_gradients(net, ours, theirs)


def numpy_walks(beta_logits, noise):
    """The paths, one after the other: moves [L, 4, 3] as shares, and the nodes that they meet."""
    mask = move_mask(len(beta_logits))
    counts, met = np.zeros(beta_logits.shape), set()
    for of_path in np.where(mask, beta_logits + noise, -np.inf):
        level = 0
        for layer, of_layer in enumerate(of_path):
            move = int(np.argmax(of_layer[level]))
            counts[layer, level, move] += 1
            level += move - 1
            met.add((layer, level))
    return counts / np.maximum(counts.sum(-1, keepdims=True), 1), met


def test_sampled_paths_equal_walks_one_by_one_and_stay_inside_the_trellis():
    logits = np.random.default_rng(0).standard_normal((5, 4, 3)).astype("float32")
    masked = tf.where(move_mask(5), logits, -1e9)
    for seed in range(20):
        noise = gumbel((3, 5, 4, 3), seed)
        beta, visits = sample_moves(masked, noise, tf.constant(1.0))
        shares, met = numpy_walks(logits, noise.numpy())
        np.testing.assert_allclose(beta, shares, atol=1e-6)
        assert {tuple(node) for node in np.argwhere(visits)} == met
        assert tf.reduce_sum(visits) == 3 * 5
        one, _ = sample_moves(masked, noise[:1], tf.constant(1.0))
        assert set(np.unique(one)) == {0.0, 1.0} and np.sum(one) == 5


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_gradient_of_sampled_paths_is_that_of_the_softmax_at_their_temperature(temperature):
    """All paths begin at the stem, so at (0, 0) the shares are means over the paths."""
    logits = tf.where(move_mask(1), random((1, 4, 3), 0), -1e9)
    noise, weights = gumbel((5, 1, 4, 3)), random((3,), 1)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(logits)
        beta, _ = sample_moves(logits, noise, tf.constant(temperature))
        soft = tf.reduce_mean(tf.nn.softmax((logits + noise) / temperature), 0)
        ours, theirs = (tf.reduce_sum(weights * values[0, 0]) for values in (beta, soft))
    expected = tape.gradient(theirs, logits)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(tape.gradient(ours, logits), expected, rtol=1e-4, atol=1e-7)


def test_a_node_on_several_paths_is_live_once():
    """Of five paths over the two nodes of a layer one has three or more."""
    net = supernet(num_layers=1, num_blocks=1, sampled_paths=5)
    live = net.forward(images(), True, (gumbel((5, 1, 4, 3)), tf.constant(1.0))).states["live"]
    assert np.max(live) == 1.0 and set(np.unique(live)) <= {0.0, 1.0}


def test_many_sampled_paths_are_beta():
    logits = np.random.default_rng(0).standard_normal((3, 4, 3)).astype("float32")
    masked = tf.where(move_mask(3), logits, -1e9)
    beta, _ = sample_moves(masked, gumbel((40_000, 3, 4, 3)), tf.constant(1.0))
    exact = tf.nn.softmax(masked)
    for row in transitions(3):
        np.testing.assert_allclose(beta[row[:3]], exact[row[:3]], atol=0.03, err_msg=str(row))


def test_sampled_paths_equal_the_plain_formulation_on_the_same_paths():
    net = supernet(num_layers=4, num_blocks=1, sampled_paths=2)
    noise, temperature = gumbel((2, 4, 4, 3), 3), tf.constant(0.7)

    def moves_of(beta_logits):
        return sample_moves(tf.where(move_mask(4), beta_logits, -1e9), noise, temperature)[0]

    loss, ours = gradients_of(net, (noise, temperature))
    plain_loss, theirs = plain_loss_and_gradients(net, images(), weighting_of_loss(), moves_of)
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-4)
    check_same_gradients(net, ours, theirs)
    idle = [not np.any(gradient) for gradient in theirs]
    assert any(idle) and not all(idle)
    assert np.abs(ours[-1]).max() > 0, "beta"


def test_leaving_out_the_nodes_on_no_path_changes_nothing():
    """A traced function computes them all."""
    net = supernet(num_layers=4, num_blocks=1, sampled_paths=2)
    sampling = (gumbel((2, 4, 4, 3), 3), tf.constant(0.7))
    computed = net.forward(images(), True, sampling)
    left_out = [segment.name for segment in net.segments if net._is_idle(segment, computed.states)]
    assert any(name.startswith("layer_") for name in left_out)
    assert any(name.startswith("head_") for name in left_out)
    weighting = random((2, *SIZE, CLASSES), 1)
    ours = [net.backward(computed, weighting, wrt) for wrt in ("weights", "architecture")]

    @tf.function(autograph=False)
    def traced():
        variables = [v.value for v in net.trainable_variables + net.architecture_variables]
        with tf.GradientTape() as tape:
            tape.watch(variables)
            whole = net.forward(images(), True, sampling)
            loss = tf.reduce_sum(whole.logits * weighting)
        nodes = {name: whole.states[name] for name in left_out if name.startswith("layer_")}
        return whole.logits, nodes, whole.moments, tape.gradient(loss, variables)

    logits, nodes, all_moments, theirs = traced()
    np.testing.assert_allclose(computed.logits, logits, rtol=1e-4, atol=1e-4)
    for name, value in nodes.items():
        assert not np.any(value) and value.shape == computed.states[name].shape, name
    check_same_gradients(net, ours[0] + ours[1], theirs)
    for segment, few, every in zip(net.segments, computed.moments, all_moments, strict=True):
        if segment.moving is not None and segment.name not in left_out:
            np.testing.assert_allclose(few, every, rtol=1e-4, atol=1e-5, err_msg=segment.name)


def test_inference_takes_all_paths():
    exact, sampled = supernet(num_blocks=1), supernet(num_blocks=1, sampled_paths=3)
    np.testing.assert_array_equal(exact(images()), sampled(images()))
    with pytest.raises(ValueError, match=r"trains with sampling=\(noise, temperature\)"):
        sampled(images(), training=True)


def test_without_a_fast_mode_nothing_is_added():
    net = supernet()
    assert net.settings.fast_modes == {}
    assert net.architecture_variables == [net.alpha_logits, net.beta_logits]
    assert net.edge_logits is None
    assert [segment.reads for segment in net.segments][0] == ()
    partial = supernet(partial_channels=2)
    assert partial.settings.fast_modes == {"partial_channels": 2}
    assert partial.architecture_variables == [
        partial.alpha_logits,
        partial.beta_logits,
        partial.edge_logits,
    ]
    assert partial.edge_logits.shape == (5,)
    # The same seed gives the same alpha and beta in every mode.
    first, second = (build_supernet(CLASSES, 2, 2, 2, partial_channels=k) for k in (1, 2))
    for name in ("alpha_logits", "beta_logits"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
