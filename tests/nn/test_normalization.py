"""Batch normalisation: statistics of a batch, of several replicas, and of a training."""

import contextlib
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from arrays import close, features, images

from auto_deeplab_tf import build_baseline, build_network
from auto_deeplab_tf.architecture import Architecture, Edge
from auto_deeplab_tf.nn.conv import ConvBN
from auto_deeplab_tf.nn.normalization import BatchNormalization, counted_updates, update_weights
from auto_deeplab_tf.nn.segmentation_network import MANY_UPDATES

CHANNELS = 4
SHAPE = (4, 40, 48, 3)
ARCHITECTURE = Architecture(
    (0, 1), ((Edge("prev", "sep_3x3"), Edge("prev_prev", "atrous_3x3")),), "separable"
)


def small_network(seed=0, **settings):
    keras.utils.set_random_seed(seed)
    sizes = {"filter_multiplier": 2, "head_channels": 6, "decoder_channels": 4}
    return build_network(ARCHITECTURE, 2, **(sizes | settings))


def moving_of(network):
    return [np.array(v) for v in network.non_trainable_variables if "moving" in v.path]


def test_batch_statistics_and_their_decay():
    layer = BatchNormalization(momentum=0.9)
    x = features((3, 5, 4, CHANNELS)) * 2 + 1
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    close(layer(x, training=True), (x - mean) / np.sqrt(variance + 1e-3))
    close(layer.moving_mean, 0.1 * mean)
    close(layer.moving_variance, 0.9 + 0.1 * variance)
    close(layer(x), (x - 0.1 * mean) / np.sqrt(0.9 + 0.1 * variance + 1e-3))


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_batch_normalisation_has_the_gradients_of_keras(dtype):
    """With the size known and unknown: the fused kernel and the plain form."""
    shape = (3, 5, 4, CHANNELS)
    x, upstream = tf.constant(features(shape) + 1), features(shape, seed=1)
    layers = [BatchNormalization(dtype=dtype), keras.layers.BatchNormalization(dtype=dtype)]
    for layer in layers:
        layer.build(shape)
        for index, variable in enumerate(layer.trainable_variables):
            variable.assign(features(variable.shape, seed=index))

    def gradients(layer, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            result = layer(x, training=True)
        return tape.gradient(
            result, [x, *layer.trainable_variables], tf.cast(upstream, result.dtype)
        )

    any_size = tf.function(lambda x: gradients(layers[0], x)).get_concrete_function(
        tf.TensorSpec((None, None, None, CHANNELS))
    )
    expected = gradients(layers[1], x)
    for result in (gradients(layers[0], x), any_size(x)):
        for actual, wanted in zip(result, expected, strict=True):
            limit = (1e-5 if dtype == "float32" else 2e-2) * np.abs(wanted).max()
            np.testing.assert_allclose(actual, wanted, atol=limit)


@pytest.mark.parametrize("first", [2, 3, 4])
def test_statistics_are_those_of_all_replicas(mirrored, first):
    """Where they hold the same number of images, different ones, or none."""
    x = features((4, 3, 5, CHANNELS)) * np.float32([[[[1]]]] * 2 + [[[[3]]]] * 2)
    alone = BatchNormalization(momentum=0.9)
    with tf.GradientTape() as tape:
        tape.watch(x := tf.constant(x))
        expected = alone(x, training=True)
        loss = tf.reduce_sum(expected**3)
    gradient = tape.gradient(loss, x)
    with mirrored.scope():
        layer = BatchNormalization(momentum=0.9)
        layer.build(x.shape)

    @tf.function
    def run(parts):
        def step(part):
            with tf.GradientTape() as tape:
                tape.watch(part)
                result = layer(part, training=True)
                loss = tf.reduce_sum(result**3)
            return result, tape.gradient(loss, part)

        return mirrored.run(step, args=(parts,))

    parts = mirrored.experimental_distribute_values_from_function(
        lambda context: tf.split(x, [first, 4 - first])[context.replica_id_in_sync_group]
    )
    results = [mirrored.experimental_local_results(value) for value in run(parts)]
    for ours, theirs in zip(results, (expected, gradient), strict=True):
        close(np.concatenate([np.array(part) for part in ours]), theirs)
    close(layer.moving_variance, alone.moving_variance)


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.9997])
def test_the_decay_grows_to_its_limit(decay):
    for count in (0, 1, 60, 500, 10_000):
        kept, added = update_weights(decay, count)
        assert float(kept) == pytest.approx(min(decay, (1 + count) / (10 + count)))
        assert float(added) == pytest.approx(1 - float(kept), abs=1e-7)
    assert update_weights(decay) == (decay, 1 - decay)
    # Of the initial value less than a millionth is left after 60 updates.
    kept = [float(update_weights(decay, count)[0]) for count in range(60)]
    assert np.prod(kept) < 1e-6


@pytest.mark.parametrize("updates", [30_000, MANY_UPDATES])
def test_a_long_training_is_updated_as_with_a_constant_decay(updates):
    x = features((3, 5, 4, CHANNELS)) + 1
    counted, constant = (BatchNormalization(momentum=0.9997) for _ in range(2))
    for _ in range(3):
        with counted_updates(tf.constant(updates)):
            counted(x, training=True)
        constant(x, training=True)
    for ours, theirs in zip(counted.variables, constant.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "make",
    [
        small_network,
        lambda: build_baseline("frrn_a", 2, width_multiplier=0.1),
        lambda: pytest.importorskip("keras_hub") and build_baseline("keras_hub_deeplabv3plus", 2),
    ],
    ids=["searched", "frrn_a", "keras_hub_deeplabv3plus"],
)
def test_every_layer_of_a_network_follows_its_count(make):
    """kept = 1 / 10, then 2 / 11, whatever the default decay of 0.9997."""
    network, x = make(), images((2, 32, 32, 3))
    initial = moving_of(network)
    network(x, training=True)
    first = moving_of(network)
    network(x, training=True)
    for start, once, twice in zip(initial, first, moving_of(network), strict=True):
        of_batch = (once - start / 10) / 0.9
        close(twice, once * 2 / 11 + of_batch * 9 / 11, rtol=1e-3, atol=1e-3)


def test_a_short_training_scores_alike_in_training_and_inference():
    """60 steps at the default decay."""
    network = small_network(seed=1)
    masks = np.zeros((4, 32, 32), "int32")
    masks[:, 8:24, 4:16] = 1
    x = images((4, 32, 32, 3)) * 0.3 + 120 * masks[..., None]
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(network.trainable_variables)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            logits = network(x, training=True)
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(masks, logits)
        gradients = tape.gradient(loss, network.trainable_variables)
        optimizer.apply(gradients, network.trainable_variables)
        return logits

    for _ in range(60):
        logits = step()
    training = np.mean(np.argmax(logits, -1) == masks)
    inference = np.mean(np.argmax(network(x), -1) == masks)
    assert int(network.updates) == 60
    assert training > 0.95 and inference > training - 0.05


def test_a_network_counts_what_updates_its_statistics():
    network = small_network()
    network(images(SHAPE))
    network(images(SHAPE), training=False)
    assert int(network.updates) == 0
    network(images(SHAPE), training=True)
    assert int(network.updates) == 1
    network.trainable = False
    network(images(SHAPE), training=True)
    assert int(network.updates) == 1
    network.resume_updates(500)
    network.resume_updates(7)
    assert int(network.updates) == 500


@pytest.mark.parametrize(
    "way", ["function", "xla", pytest.param("mirrored", marks=pytest.mark.slow)]
)
def test_the_statistics_do_not_depend_on_how_a_step_runs(way, mirrored):
    expected, x = small_network(), images(SHAPE)
    strategy = mirrored if way == "mirrored" else tf.distribute.get_strategy()
    with strategy.scope() if way == "mirrored" else contextlib.nullcontext():
        network = small_network()
    if way == "mirrored":
        given = mirrored.experimental_distribute_values_from_function(
            lambda context: tf.constant(np.split(x, 2)[context.replica_id_in_sync_group])
        )
        step = tf.function(lambda parts: mirrored.run(network, (parts,), {"training": True}))
    else:
        given = tf.constant(x)
        step = tf.function(lambda x: network(x, training=True), jit_compile=way == "xla")
    for _ in range(3):
        expected(x, training=True)
        step(given)
    assert np.array(network.updates) == np.array(expected.updates) == 3
    for ours, theirs in zip(moving_of(network), moving_of(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-4)


def test_the_count_is_saved_and_its_absence_means_a_long_training(tmp_path):
    network = small_network()
    network(images(SHAPE), training=True)
    network.save(tmp_path / "network.keras")
    assert int(keras.saving.load_model(tmp_path / "network.keras").updates) == 1
    # A file of an earlier version.
    with zipfile.ZipFile(tmp_path / "network.keras") as archive:
        archive.extractall(tmp_path / "content")
    with h5py.File(tmp_path / "content" / "model.weights.h5", "r+") as weights:
        assert list(weights["vars"]) == ["0"]
        del weights["vars/0"]
    shutil.make_archive(str(tmp_path / "old"), "zip", tmp_path / "content")
    old = keras.saving.load_model((tmp_path / "old.zip").rename(tmp_path / "old.keras"))
    assert int(old.updates) == MANY_UPDATES
    np.testing.assert_array_equal(old(images(SHAPE)), network(images(SHAPE)))
    before = moving_of(old)
    old(images(SHAPE, 1), training=True)
    for ours, theirs in zip(moving_of(old), before, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.01 * np.abs(ours).max() + 0.01)


def test_configurations_of_earlier_versions_are_read():
    config = ConvBN(3, name="unit").get_config()
    del config["norm"]
    unit = ConvBN.from_config(config | {"batch_norm_decay": 0.5, "synchronized": False})
    assert unit.norm.decay == unit.batch_norm.momentum == 0.5
    network = small_network(batch_norm_decay=0.9)
    again = type(network).from_config(network.get_config() | {"synchronized": True})
    assert again.get_config() == network.get_config()


def test_keras_own_data_format_is_not_asked():
    x = images(SHAPE)
    expected = np.array(small_network()(x, training=True))
    keras.config.set_image_data_format("channels_first")
    try:
        network = small_network()
        np.testing.assert_array_equal(network(x, training=True), expected)
        assert network(x).shape == (*x.shape[:3], 2)
    finally:
        keras.config.set_image_data_format("channels_last")
