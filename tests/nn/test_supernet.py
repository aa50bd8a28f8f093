"""The supernet: the fused formulation against the plain one.

Alpha and beta against their own edges and moves.
"""

import numpy as np
import pytest
import tensorflow as tf
from reference_supernet import Reference

from auto_deeplab_tf.nn.supernet import build_supernet

CLASSES = 5


def images(shape, seed=0):
    return tf.constant(np.random.default_rng(seed).uniform(0, 255, shape), tf.float32)


def randomize(supernet, seed=0):
    """Gives alpha, beta and all affine weights random values.

    So that no term can hide behind a 0 or a 1.
    """
    generator = np.random.default_rng(seed)
    for variable in supernet.architecture_variables:
        variable.assign(generator.standard_normal(variable.shape))
    for segment in supernet.segments:
        if segment.affine is not None:
            segment.affine.assign(generator.uniform(0.5, 1.5, segment.affine.shape))
        if segment.moving is not None:
            segment.moving.assign(generator.uniform(0.5, 1.5, segment.moving.shape))
    return supernet


def small_supernet(num_layers=3, seed=0, **kwargs):
    settings = {"num_blocks": 3, "filter_multiplier": 2, "input_size": (49, 70)} | kwargs
    return randomize(build_supernet(CLASSES, num_layers, seed=seed, **settings), seed)


def plain_logits(supernet, x, variables, alpha_logits, beta_logits):
    """The reference's logits from the same values.

    Differentiable with respect to the given tensors.
    """
    values = dict(zip([id(v) for v in supernet.trainable_variables], variables, strict=True))
    weights = {}
    for segment in supernet.segments:
        arrays = {}
        for variable, layout in (
            (segment.kernels, segment.kind.kernels),
            (segment.affine, segment.kind.affine),
        ):
            if variable is not None:
                arrays |= layout.unpack(values[id(variable)])
        weights[segment.name] = arrays
    return Reference(supernet, weights, alpha_logits, beta_logits).logits(x)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"atrous": "full", "num_layers": 2},
        {"share_operations": False},
        {"num_layers": 5, "num_blocks": 2, "filter_multiplier": 1},
        {"num_layers": 1, "num_blocks": 1},
    ],
    ids=["shared", "full", "own", "five_layers", "one_layer"],
)
def test_fused_equals_plain_in_loss_and_all_gradients(kwargs):
    supernet = small_supernet(**kwargs)
    x = images((2, 49, 70, 3))
    weighting = tf.constant(
        np.random.default_rng(1).standard_normal((2, 49, 70, CLASSES)), tf.float32
    )

    states, _ = supernet.forward(x, training=True)
    loss = tf.reduce_sum(states["logits"] * weighting)
    weight_gradients = supernet.backward(states, weighting, "weights")
    architecture_gradients = supernet.backward(states, weighting, "architecture")

    variables = [v.value for v in supernet.trainable_variables]
    sources = (variables, [v.value for v in supernet.architecture_variables])
    with tf.GradientTape() as tape:
        tape.watch(sources)
        plain_loss = tf.reduce_sum(plain_logits(supernet, x, variables, *sources[1]) * weighting)
    plain_weights, plain_architecture = tape.gradient(plain_loss, sources)
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-4)
    for variable, ours, theirs in zip(
        [*supernet.trainable_variables, *supernet.architecture_variables],
        [*weight_gradients, *architecture_gradients],
        [*plain_weights, *plain_architecture],
        strict=True,
    ):
        scale = np.abs(theirs).max()
        assert scale > 0, variable.path
        np.testing.assert_allclose(ours, theirs, atol=2e-4 * scale, err_msg=variable.path)


def test_traced_step_equals_the_eager_one():
    supernet = small_supernet()
    x = images((2, 49, 70, 3))
    weighting = images((2, 49, 70, CLASSES), seed=1) / 255.0
    states, moments = supernet.forward(x, training=True)
    eager = {wrt: supernet.backward(states, weighting, wrt) for wrt in ("weights", "architecture")}

    @tf.function(autograph=False)
    def traced():
        variables = [v.value for v in supernet.trainable_variables]
        variables += [v.value for v in supernet.architecture_variables]
        with tf.GradientTape() as tape:
            tape.watch(variables)
            inner_states, inner_moments = supernet.forward(x, training=True)
            loss = tf.reduce_sum(inner_states["logits"] * weighting)
        return inner_states["logits"], inner_moments, tape.gradient(loss, variables)

    logits, traced_moments, gradients = traced()
    np.testing.assert_allclose(states["logits"], logits, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(moments, traced_moments, strict=True):
        if ours is not None:
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(eager["weights"] + eager["architecture"], gradients, strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * scale)
