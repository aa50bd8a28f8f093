"""keras-hub's networks behind our interface compute what they compute alone."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from arrays import images

from auto_deeplab_tf import baselines

pytest.importorskip("keras_hub", reason="the extra `references` is not installed")

NAMES = ("keras_hub_deeplabv3plus", "keras_hub_segformer_b0")
PLAIN = {"mean": (0, 0, 0), "std": (1, 1, 1)}


@pytest.fixture(scope="module", params=NAMES)
def network(request):
    """With moving statistics that no normalisation could leave out unseen."""
    keras.utils.set_random_seed(0)
    network = baselines.build_baseline(request.param, num_classes=5, batch_norm_decay=0.9, **PLAIN)
    rng = np.random.default_rng(1)
    for variable in network.variables:
        if "moving_mean" in variable.path:
            variable.assign(rng.normal(0, 0.1, variable.shape))
        elif "moving_variance" in variable.path:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return network


def test_logits_are_those_of_keras_hub(network):
    x = images((2, 64, 64, 3))
    # Called without `training`, a layer of keras-hub's DeepLabV3+ normalises by the batch.
    expected = np.asarray(network.reference(x, training=False))
    assert expected.std() > 0.01
    np.testing.assert_allclose(network(x), expected, atol=1e-4 * np.abs(expected).max())


def test_parameters_are_those_of_keras_hub(network):
    count = sum(int(np.prod(v.shape)) for v in network.trainable_variables)
    assert count == sum(int(np.prod(v.shape)) for v in network.reference.trainable_variables)
    # 39.2 M are given for keras-hub's preset with its 21 classes, statistics included; MiT-B0 with
    # this decoder has 3.7 M in the paper's table, for 19 or 150 classes.
    name = type(network).__name__
    millions = {"KerasHubDeepLabV3Plus": (39.0, 39.2), "KerasHubSegFormerB0": (3.6, 3.8)}[name]
    assert millions[0] < count / 1e6 < millions[1]


def test_any_size_in_one_traced_function(network):
    spec = tf.TensorSpec((None, None, None, 3))
    any_size = tf.function(lambda x: network(x), input_signature=[spec])
    for shape in ((1, 33, 50, 3), (2, 97, 64, 3)):
        x = images(shape)
        expected = np.asarray(network(x))
        assert expected.shape == (*shape[:-1], 5)
        np.testing.assert_allclose(any_size(x), expected, atol=1e-4 * np.abs(expected).max())


def test_a_saved_network_comes_back_and_trains(network, tmp_path):
    x, labels = images((2, 64, 96, 3)), np.random.default_rng(0).integers(0, 5, (2, 64, 96))
    network.save(tmp_path / "network.keras")
    again = keras.saving.load_model(tmp_path / "network.keras")
    np.testing.assert_allclose(again(x), network(x), atol=1e-5)
    before = [np.array(v) for v in again.variables]
    with tf.GradientTape() as tape:
        logits = again(x, training=True)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    gradients = tape.gradient(loss, again.trainable_variables)
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in gradients)
    keras.optimizers.SGD(0.01).apply(gradients, again.trainable_variables)
    moved = [np.any(np.array(v) != old) for v, old in zip(again.variables, before, strict=True)]
    assert np.mean(moved) > 0.9
    norms = [
        layer
        for layer in again.reference._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert norms and {layer.momentum for layer in norms} == {0.9}


def test_mixed_precision_computes_in_bfloat16():
    before = keras.config.dtype_policy().name
    mixed = baselines.build_baseline(NAMES[1], num_classes=5, dtype="mixed_bfloat16", **PLAIN)
    assert keras.config.dtype_policy().name == before
    logits = mixed(images((1, 64, 96, 3)), training=True)
    assert logits.dtype == "float32" and np.isfinite(logits).all()
    layers = [x for x in mixed.reference._flatten_layers() if isinstance(x, keras.layers.Dense)]
    assert {layer.compute_dtype for layer in layers} == {"bfloat16"}
    assert {v.dtype for v in mixed.trainable_variables} == {"float32"}


@pytest.mark.parametrize("name", NAMES)
def test_without_the_extra_one_line_names_it(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    for refused in (baselines.check_name, baselines.build_baseline):
        with pytest.raises(ImportError) as error:
            refused(name)
        assert "pip install auto_deeplab_tf[references]" in str(error.value)
        assert "\n" not in str(error.value)
