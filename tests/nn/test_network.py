"""The network of an architecture: published figures, any path, any size, saving, other backends."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from arrays import close, images, profiler_multi_adds
from commands import run_on_jax
from random_architectures import random_architecture

from auto_deeplab_tf.accounting import count
from auto_deeplab_tf.architecture import Architecture, Edge
from auto_deeplab_tf.nn.aspp import ASPP, Decoder
from auto_deeplab_tf.nn.cell import Cell
from auto_deeplab_tf.nn.network import Network, build_network
from auto_deeplab_tf.nn.stem import Stem
from auto_deeplab_tf.search_space import DECODABLE_OPERATIONS

SMALL = {"num_classes": 5, "filter_multiplier": 2, "head_channels": 6, "decoder_channels": 4}
# Levels of a path; index of the cell with the low-level feature, -1 for the stem.
PATHS = [((0, 0, 1, 0, 1), 1), ((0, 0), 1), ((1, 2, 3, 3), -1), ((1, 0, 0), -1), ((0, 1, 2), 0)]
CELL = (
    (Edge("prev_prev", "atrous_3x3"), Edge("prev", "sep_3x3")),
    (Edge("block_0", "skip"), Edge("prev", "skip")),
)
# An operation of each kind, and few of them: JAX compiles them one by one.
JAX_CELL = (
    (Edge("prev_prev", "atrous_5x5"), Edge("prev", "skip")),
    (Edge("block_0", "sep_3x3"), Edge("prev", "avg_pool_3x3")),
)


def small_network(architecture, seed=0, **arguments):
    keras.utils.set_random_seed(seed)
    return build_network(architecture, **(SMALL | arguments))


def num_trainable(network):
    return sum(int(np.prod(variable.shape)) for variable in network.trainable_variables)


@pytest.fixture
def recorded(monkeypatch):
    """Records (inputs, output) of the parts of a network, in the order of their calls."""
    calls = []

    def record(layer_class):
        original = layer_class.call

        def call(self, *inputs, **arguments):
            output = original(self, *inputs, **arguments)
            calls.append((self.name, inputs, output))
            return output

        monkeypatch.setattr(layer_class, "call", call)

    for layer_class in (Stem, Cell, ASPP, Decoder):
        record(layer_class)
    return calls


def trace(network, size):
    """Traces a call without computing it."""
    spec = tf.TensorSpec((1, *size, 3))
    return tf.function(lambda x: network(x, training=False)).get_concrete_function(spec)


@pytest.mark.parametrize(
    ("filter_multiplier", "millions"),
    [(20, "10.15"), pytest.param(32, "21.62", marks=pytest.mark.slow), (48, "44.42")],
)
def test_published_parameter_counts(filter_multiplier, millions):
    network = build_network("auto_deeplab", 19, filter_multiplier)
    assert f"{num_trainable(network) / 1e6:.2f}" == millions


def test_published_sizes_at_321(recorded):
    trace(build_network("auto_deeplab", 19, 10), (321, 321))
    shapes = {name: output for name, _, output in recorded}
    half, quarter = shapes.pop("stem")
    assert half.shape == (1, 161, 161, 64) and quarter.shape == (1, 81, 81, 128)
    sides = [81, 81, 81, 41, 21, 41, 21, 21, 11, 11, 21, 41]
    channels = [50, 50, 50, 100, 200, 100, 200, 200, 400, 400, 200, 100]
    for index, (side, width) in enumerate(zip(sides, channels, strict=True)):
        assert shapes[f"cell_{index}"].shape == (1, side, side, width)
    assert shapes["aspp"].shape == (1, 41, 41, 256)
    assert shapes["decoder"].shape == (1, 81, 81, 19)


@pytest.mark.parametrize(("levels", "index"), PATHS)
def test_the_head_reads_what_the_path_says(levels, index, recorded):
    network = small_network(Architecture(levels, CELL, "full"))
    size = (97, 70)
    assert trace(network, size).output_shapes == (1, *size, 5)
    assert network.low_level_index == index
    assert network.output_stride == 4 * 2 ** levels[-1]
    parts = {name: (inputs, output) for name, inputs, output in recorded}
    for layer, level in enumerate(levels):
        stride = 4 * 2**level
        expected = (1, -(-size[0] // stride), -(-size[1] // stride), 2 * 2 * 2**level)
        assert parts[f"cell_{layer}"][1].shape == expected
    low_level = parts["decoder"][0][1]
    assert low_level is (parts["stem"][1][1] if index == -1 else parts[f"cell_{index}"][1])
    assert network.aspp.atrous[0].rate == 96 // network.output_stride


def test_the_first_cell_reads_the_stem_and_each_later_one_the_two_before(recorded):
    trace(small_network(Architecture((0, 0, 0), CELL, "full")), (48, 64))
    (_, _, (half, quarter)), *cells = recorded[:4]
    first, second, third = (inputs for _, inputs, _ in cells)
    # The stem's stride-2 tensor is brought to stride 4.
    assert first[0] is quarter and first[1].shape == (1, 12, 16, half.shape[-1])
    assert second[0] is cells[0][2] and second[1] is quarter
    assert third[0] is cells[1][2] and third[1] is cells[0][2]


def test_relu_stands_before_the_aspp_and_not_before_the_decoder(recorded):
    """On a path that never leaves level 0 both read the last cell."""
    network = small_network(Architecture((0, 0), CELL, "full"))
    network(images((1, 40, 36, 3)))
    parts = {name: (inputs, output) for name, inputs, output in recorded}
    last = parts["cell_1"][1]
    assert np.min(last) < 0
    np.testing.assert_array_equal(parts["aspp"][0][0], np.maximum(last, 0))
    assert parts["decoder"][0][1] is last


@pytest.mark.parametrize("seed", [0, 3, 4, 8])
def test_any_architecture_trains(seed):
    """Ends on any level, with and without level 0 after the stem; every weight gets a gradient."""
    architecture = random_architecture(seed)
    network = small_network(architecture, seed=seed)
    x = images((3, 97, 97, 3), seed)
    labels = np.random.default_rng(seed).integers(0, 5, (3, 97, 97))
    optimizer = keras.optimizers.SGD(0.01)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            logits = network(x, training=True)
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
            )
        gradients = tape.gradient(loss, network.trainable_variables)
        optimizer.apply(gradients, network.trainable_variables)
        return loss, gradients

    before = [np.asarray(variable) for variable in network.trainable_variables]
    loss, gradients = step()
    assert np.isfinite(loss)
    for variable, gradient in zip(network.trainable_variables, gradients, strict=True):
        assert np.all(np.isfinite(gradient)) and np.any(gradient), variable.path
    after = [np.asarray(variable) for variable in network.trainable_variables]
    assert all(np.any(a != b) for a, b in zip(before, after, strict=True))
    assert network(x).shape == (3, 97, 97, 5)


def slow(seed):
    return pytest.param(seed, marks=pytest.mark.slow)


def test_the_architectures_that_are_counted_have_every_case():
    drawn = [random_architecture(seed) for seed in range(50)]
    pairs = [
        (edge, level > before)
        for architecture in drawn
        for before, level in zip((0, *architecture.levels), architecture.levels, strict=False)
        for block in architecture.cell
        for edge in block
    ]
    reduced = {edge.op for edge, down in pairs if down and not edge.source.startswith("block_")}
    assert reduced == set(DECODABLE_OPERATIONS)
    assert {architecture.atrous for architecture in drawn} == {"full", "separable"}
    assert {architecture.levels[-1] for architecture in drawn} == {0, 1, 2, 3}
    assert any(0 not in architecture.levels for architecture in drawn)
    assert len({(a.num_layers, a.num_blocks) for a in drawn}) > 10


@pytest.mark.parametrize("seed", [*range(3), *(slow(seed) for seed in range(3, 50))])
def test_multi_adds_equal_the_graph_profiler(seed):
    """At 576x576 every atrous rate divides its map.

    Elsewhere TensorFlow on CPU pads the map for an atrous convolution, and the profiler counts
    the padded positions too (as the paper's figures do).
    """
    architecture = random_architecture(seed)
    traced = trace(small_network(architecture), (576, 576))
    result = count(architecture, input_size=(576, 576), **SMALL)
    assert result.multi_adds == profiler_multi_adds(traced)


@pytest.mark.parametrize("seed", [0, 1])
def test_any_size_in_one_traced_function(seed):
    """As an exported model runs: height, width and batch unknown until the call."""
    network = small_network(random_architecture(seed), input_size=None)
    spec = tf.TensorSpec((None, None, None, 3))
    any_size = tf.function(lambda x: network(x), input_signature=[spec])
    for shape in ((1, 33, 50, 3), (2, 97, 64, 3)):
        x = images(shape)
        expected = network(x)
        assert expected.shape == (*shape[:-1], 5)
        np.testing.assert_allclose(any_size(x), expected, rtol=1e-3, atol=1e-4)


def test_images_are_normalised_inside():
    architecture = random_architecture(0)
    plain = small_network(architecture, mean=(0, 0, 0), std=(1, 1, 1))
    network = small_network(architecture, mean=(120, 110, 100), std=(50, 60, 70))
    x = images((1, 40, 45, 3))
    normalised = (x - np.float32([120, 110, 100])) / np.float32([50, 60, 70])
    np.testing.assert_allclose(network(x), plain(normalised), rtol=1e-4, atol=1e-5)
    # Integers as an image file holds them serve too.
    whole = np.round(x)
    np.testing.assert_array_equal(network(whole.astype("uint8")), network(whole))


def test_drop_path_acts_in_training_only():
    network = small_network(random_architecture(2), drop_path_keep=0.5)
    x = images((2, 40, 45, 3))
    network.progress.assign(1.0)
    np.testing.assert_array_equal(network(x), network(x))
    assert int(network.drop_path.num_draws) == 0
    assert np.any(np.asarray(network(x, training=True)) != np.asarray(network(x, training=True)))
    assert int(network.drop_path.num_draws) == 2
    network.progress.assign(0.0)
    np.testing.assert_array_equal(network(x, training=True), network(x, training=True))


def test_a_saved_network_comes_back(tmp_path):
    network = small_network(
        random_architecture(3),
        drop_path_keep=0.7,
        mean=(1, 2, 3),
        batch_norm_decay=0.9,
        stem_channels=(3, 5, 7),
    )
    x = images((2, 50, 39, 3))
    network(x, training=True)
    expected = network(x)
    network.save(tmp_path / "network.keras")
    again = keras.saving.load_model(tmp_path / "network.keras")
    assert type(again) is Network and again.architecture == network.architecture
    assert again.get_config() == network.get_config()
    np.testing.assert_array_equal(again(x), expected)
    # A file from before the stem had a setting holds none: the published one is meant.
    config = small_network(random_architecture(3)).get_config()
    del config["stem_channels"]
    assert Network.from_config(config).settings.stem_channels == (64, 64, 128)
    # Batch statistics and their decay came along: a training step continues alike.
    np.testing.assert_array_equal(again(x, training=True), network(x, training=True))
    np.testing.assert_array_equal(again(x), network(x))


def test_a_config_with_another_architecture_is_refused():
    config = small_network(random_architecture(3)).get_config()
    other = random_architecture(4)
    with pytest.raises(ValueError) as error:
        Network.from_config(config | {"architecture": other.to_dict()})
    assert other.fingerprint in str(error.value) and config["fingerprint"] in str(error.value)
    assert "\n" not in str(error.value)


def test_mixed_precision():
    architecture = random_architecture(1)
    network = small_network(architecture)
    mixed = small_network(architecture, dtype="mixed_bfloat16")
    x = images((2, 64, 50, 3))
    assert mixed(x).dtype == "float32"
    assert {v.dtype for v in mixed.trainable_variables} == {"float32"}
    assert all(cell.compute_dtype == "bfloat16" for cell in mixed.cells)
    expected = np.asarray(network(x, training=True))
    error = np.abs(np.asarray(mixed(x, training=True)) - expected).mean()
    assert 0 < error < 0.1 * np.abs(expected).mean()
    assert Network.from_config(mixed.get_config()).decoder.compute_dtype == "bfloat16"


@pytest.mark.slow
def test_jax_gives_the_same_logits_from_the_same_weights(tmp_path):
    """The other backend in a process of its own: nothing in nn/ may be TensorFlow's alone."""
    architecture = Architecture((1, 0), JAX_CELL, "separable")
    network = small_network(architecture, drop_path_keep=0.5)
    x = images((2, 49, 70, 3))
    here = [np.asarray(network(x, training=training)) for training in (False, True)]
    architecture.save(tmp_path / "architecture.json")
    program = f"""
from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.nn.network import build_network
architecture = Architecture.load(r"{tmp_path}/architecture.json")
network = build_network(architecture, drop_path_keep=0.5, **{SMALL})
assign(network)
logits = [np.asarray(network(data["x"], training=training)) for training in (False, True)]
network.progress.assign(1.0)
assert np.any(np.asarray(network(data["x"], training=True)) != logits[1])
save(*logits)
"""
    variables = small_network(architecture).variables
    there = run_on_jax(program, tmp_path, variables, x=x)
    for ours, theirs in zip(here, (there["arr_0"], there["arr_1"]), strict=True):
        close(theirs, ours)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_classes": 0}, "num_classes must be an integer of 1 or more. Received: 0."),
        ({"filter_multiplier": 1.5}, "filter_multiplier takes N. Received: 1.5"),
        ({"head_channels": 0}, "head_channels=0: must be at least 1"),
        ({"stem_channels": (8, 8, 0)}, "stem_channels=8,8,0: must be at least 1"),
        ({"stem_channels": (8, 8)}, "stem_channels must be 3 integers of 1 or more"),
        ({"decoder_channels": -3}, "decoder_channels=-3: must be at least 1"),
        ({"input_size": (31, 64)}, "input_size must be (height, width), each 32 pixels or more"),
        ({"mean": (1.0, 2.0)}, "mean must hold a value for each channel of the images: 1, 3"),
        ({"mean": (1.0,)}, "std must hold as many values as mean, 1. Received: 3 values"),
        ({"std": (1, 0, 1)}, "std must be above 0 for each channel"),
        ({"drop_path_keep": 0}, "drop_path_keep=0.0: must be greater than 0"),
        ({"batch_norm_decay": 1}, "batch_norm_decay=1.0: must be smaller than 1"),
        ({"architecture": "deeplab"}, "unknown architecture 'deeplab': the presets are auto_"),
        ({"architecture": 3}, "architecture must be an Architecture"),
    ],
)
def test_settings_out_of_range(changed, message):
    with pytest.raises(ValueError) as error:
        build_network(**({"architecture": random_architecture(0)} | SMALL | changed))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 31, 64, 3), "images must be 32 pixels or more in height and width. Received: 31 x 64"),
        (
            (1, 64, 64, 4),
            "images must be [N, H, W, 3], RGB, 0..255. Received shape: (1, 64, 64, 4)",
        ),
        ((64, 64, 3), "images must be [N, H, W, 3], RGB, 0..255. Received shape: (64, 64, 3)"),
    ],
)
def test_images_that_do_not_fit(shape, message):
    with pytest.raises(ValueError) as error:
        small_network(random_architecture(0))(np.zeros(shape, "float32"))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
