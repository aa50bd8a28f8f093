"""`method.py` against TensorFlow's own kernels, and its two updates against `BilevelModel`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference_supernet import plain_network

from auto_deeplab_tf import method
from auto_deeplab_tf.nn.supernet import build_supernet
from auto_deeplab_tf.nn.supernet_ends import HeadKind
from auto_deeplab_tf.training import losses
from auto_deeplab_tf.training.bilevel import BilevelModel

CLASSES = 3
SIZE = (33, 41)


def images(seed=0):
    return tf.constant(np.random.default_rng(seed).uniform(0, 255, (2, *SIZE, 3)), tf.float32)


def supernet(num_layers, **kwargs):
    net = build_supernet(CLASSES, num_layers, 2, 1, **kwargs)
    generator = np.random.default_rng(0)
    for variable in net.architecture_variables:
        variable.assign(generator.standard_normal(variable.shape))
    return net


def values(variables):
    return [tf.convert_to_tensor(variable.value) for variable in variables]


class TensorFlowOps:
    """`keras.ops` with convolutions, pools and moments by `tf.nn`."""

    def __getattr__(self, name):
        return getattr(keras.ops, name)

    def conv(self, x, kernel, strides, padding, dilation_rate):
        return tf.nn.conv2d(x, kernel, strides, padding.upper(), dilations=dilation_rate)

    def depthwise_conv(self, x, kernel, padding, dilation_rate):
        rates = [dilation_rate] * 2
        return tf.nn.depthwise_conv2d(x, kernel, [1] * 4, padding.upper(), dilations=rates)

    def average_pool(self, x, size, strides, padding):
        return tf.nn.avg_pool2d(x, size, strides, padding.upper())

    def max_pool(self, x, size, strides, padding):
        return tf.nn.max_pool2d(x, size, strides, padding.upper())

    def moments(self, x, axes):
        return tf.nn.moments(x, axes)


@pytest.mark.parametrize("atrous", ["separable", "full"])
def test_tensorflows_own_convolutions_and_resizing_give_the_same(monkeypatch, atrous):
    net = supernet(3, atrous=atrous)
    weights, architecture = values(net.trainable_variables), values(net.architecture_variables)
    ours = plain_network(net, weights, architecture).logits(images())
    monkeypatch.setattr(method, "ops", TensorFlowOps())
    resize = tf.compat.v1.image.resize_bilinear
    monkeypatch.setattr(method, "resize", lambda x, size: resize(x, size, align_corners=True))
    theirs = plain_network(net, weights, architecture).logits(images())
    assert np.std(theirs) > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_alpha_and_beta_sum_to_one_inside_the_trellis():
    alpha, beta = method.relax(*values(supernet(2).architecture_variables))
    np.testing.assert_allclose(np.sum(alpha, -1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.sum(beta, -1), 1, rtol=1e-6)
    assert not np.any(beta[:, 0, 0]) and not np.any(beta[:, 3, 2])


def test_the_two_updates_are_those_of_the_bilevel_model():
    net = supernet(1)
    rates, decays = (0.1, 0.5), (0.02, 0.3)
    model = BilevelModel(net, weight_decay=decays[0], arch_weight_decay=decays[1])
    model.compile(keras.optimizers.SGD(rates[0]), keras.optimizers.SGD(rates[1]))
    labels = tf.constant(np.random.default_rng(3).integers(0, CLASSES, (2, *SIZE)), tf.int32)
    batches = [(images(seed), labels) for seed in (1, 2)]

    def loss(batch):
        def of(w, a):
            logits = plain_network(net, w, a).logits(batch[0])
            return losses.normalized(*model.loss_function(batch[1], logits))

        return of

    def gradient(function, point):
        with tf.GradientTape() as tape:
            tape.watch(point)
            value = function(point)
        return tape.gradient(value, point)

    def step_w(w, gradients):
        decayed = ["kernels" in variable.path for variable in net.trainable_variables]
        return [
            v - rates[0] * (g + decays[0] * float(d) * v)
            for v, g, d in zip(w, gradients, decayed, strict=True)
        ]

    def step_a(a, gradients):
        return [v - rates[1] * (g + decays[1] * v) for v, g in zip(a, gradients, strict=True)]

    w, a = method.bilevel_update(
        values(net.trainable_variables),
        values(net.architecture_variables),
        *map(loss, batches),
        gradient,
        step_w,
        step_a,
    )
    before = values(net.trainable_variables + net.architecture_variables)
    model.train_step(tuple(batches))
    after = values(net.trainable_variables + net.architecture_variables)
    for old, ours, theirs in zip(before, w + a, after, strict=True):
        moved = np.abs(theirs - old).max()
        assert moved > 0
        np.testing.assert_allclose(ours, theirs, atol=1e-3 * moved)


def test_the_heads_reach_as_far_as_96_pixels():
    """At the other tests' sizes their atrous taps fall on padding alone."""
    assert [HeadKind(level, 4, CLASSES).rate for level in range(4)] == [24, 12, 6, 3]
    net = supernet(1)
    x = tf.image.resize(images(), (33, 130))
    weights, architecture = values(net.trainable_variables), values(net.architecture_variables)
    theirs = plain_network(net, weights, architecture).logits(x)
    np.testing.assert_allclose(
        net(x, training=True), theirs, atol=1e-4 * float(np.abs(theirs).max())
    )
