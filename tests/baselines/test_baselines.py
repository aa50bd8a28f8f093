"""The hand-designed networks: their counts, any size, training, precision, files."""

import subprocess
import sys
from pathlib import Path

import forked
import keras
import numpy as np
import pytest
import tensorflow as tf
from arrays import close, images

from auto_deeplab_tf import Segmenter, build_baseline
from auto_deeplab_tf.baselines import BASELINES
from auto_deeplab_tf.baselines.deeplabv3plus import DeepLabV3Plus
from auto_deeplab_tf.baselines.dpc import BRANCHES, DensePredictionCell
from auto_deeplab_tf.baselines.frrn import FRRN, FullResolutionResidualUnit, max_pool, unpool
from auto_deeplab_tf.baselines.pspnet import PSPNet
from auto_deeplab_tf.baselines.xception import Xception
from auto_deeplab_tf.nn.counting import count_network

# Trainable parameters with 19 classes; Multi-Adds at 1024x2048.
PINNED = {
    "deeplabv3plus_xception65": (41_054_899, 1_372_681_928_704),
    "deeplabv3plus_xception71": (43_477_323, 1_474_836_561_920),
    "dpc_xception65": (39_186_099, 1_328_825_761_792),
    "dpc_xception71": (41_608_523, 1_430_980_395_008),
    "frrn_a": (17_746_803, 1_969_578_049_536),
    "frrn_b": (24_755_699, 1_984_677_543_936),
    "pspnet_resnet101": (65_707_475, 2_093_463_109_632),
    "pspnet_resnet152": (81_351_123, 2_604_564_217_856),
}
NARROW = {"width_multiplier": 0.02, "head_channels": 6, "decoder_channels": 4}
# A narrow network of each class, DeepLabv3+ with each cell; the shallowest where there is a choice.
SMALL = {
    "deeplabv3plus_xception65": NARROW,
    "dpc_xception65": NARROW,
    "frrn_b": {"width_multiplier": 0.1},
    "pspnet_resnet101": {"width_multiplier": 0.05, "depth": 50},
}


def small(name, seed=0, **arguments):
    keras.utils.set_random_seed(seed)
    return build_baseline(name, **({"num_classes": 5} | SMALL[name] | arguments))


def test_every_baseline_is_pinned():
    assert list(PINNED) == [name for name, item in BASELINES.items() if item.package is None]


# The deeper twin of a network is counted by the same code: in the slow tests.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow)
        if name in ("deeplabv3plus_xception65", "dpc_xception65", "pspnet_resnet152")
        else name
        for name in PINNED
    ],
)
def test_counts(name):
    network = build_baseline(name)
    result = count_network(network, (1024, 2048))
    assert (result.params, result.multi_adds) == PINNED[name]
    trainable = sum(int(np.prod(v.shape)) for v in network.trainable_variables)
    assert trainable == result.params
    # The paper's table prints these; its FRRN counts hold the moving statistics too.
    printed = {
        "deeplabv3plus_xception71": ("43.48", trainable),
        "frrn_a": ("17.76", network.count_params()),
        "frrn_b": ("24.78", network.count_params()),
    }
    if name in printed:
        figure, count = printed[name]
        assert f"{count / 1e6:.2f}" == figure


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("dpc_xception65", marks=pytest.mark.slow),
        pytest.param("frrn_b", marks=pytest.mark.slow),
        "pspnet_resnet101",
    ],
)
def test_any_size(name):
    """Odd sizes, the smallest size, and sizes that are known at the call only."""
    network = small(name)
    spec = tf.TensorSpec((None, None, None, 3))
    any_size = tf.function(lambda x: network(x), input_signature=[spec])
    for shape in ((1, 32, 32, 3), (2, 75, 49, 3)):
        x = images(shape)
        expected = np.asarray(network(x))
        assert expected.shape == (*shape[:-1], 5) and expected.std() > 0
        close(any_size(x), expected, rtol=1e-3)


@pytest.mark.slow
def test_published_size_is_traced():
    for name in ("dpc_xception65", "frrn_b", "pspnet_resnet101"):
        network = small(name)
        spec = tf.TensorSpec((1, 1025, 2049, 3))
        traced = tf.function(lambda x, net=network: net(x)).get_concrete_function(spec)
        assert traced.output_shapes == (1, 1025, 2049, 5)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)]
)
def test_a_step_reaches_every_weight(name, dtype):
    network = small(name, dtype=dtype)
    x = images((2, 65, 97, 3))
    labels = np.random.default_rng(1).integers(0, 5, (2, 65, 97)).astype("int32")

    # Eagerly: a graph of so many layers takes ten times as long to make as to run.
    with tf.GradientTape() as tape:
        logits = network(x, training=True)
        loss = tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        )
    gradients = tape.gradient(loss, network.trainable_variables)
    keras.optimizers.SGD(0.01).apply(gradients, network.trainable_variables)
    assert logits.dtype == "float32" and np.all(np.isfinite(logits)) and np.isfinite(loss)
    for variable, gradient in zip(network.trainable_variables, gradients, strict=True):
        assert variable.dtype == "float32"
        assert np.all(np.isfinite(gradient)) and np.any(gradient), variable.path
    assert np.all(np.isfinite(network(x)))


@pytest.mark.parametrize(
    "name", [pytest.param("dpc_xception65", marks=pytest.mark.slow), "frrn_b", "pspnet_resnet101"]
)
def test_a_file_gives_the_same_output(name, tmp_path):
    settings = {"mean": (1.0, 2.0, 3.0), "batch_norm_decay": 0.9}
    model = Segmenter(small(name, **settings), class_names=[*"abcde"])
    x = images((2, 50, 39, 3))
    model(x, training=True)
    expected = model(x)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.network.get_config() == model.network.get_config()
    assert type(again.network) is type(model.network) and again.class_names == (*"abcde",)
    np.testing.assert_array_equal(again(x), expected)


@pytest.mark.slow
def test_a_file_is_read_where_nothing_was_imported(tmp_path):
    """All that a reader has imported is what `load_segmenter` needs."""
    model = Segmenter(small("frrn_b"))
    x = images((1, 40, 33, 3))
    np.save(tmp_path / "expected.npy", model(x))
    np.save(tmp_path / "images.npy", x)
    model.save(tmp_path / "model.keras")
    program = f"""
import numpy as np
from auto_deeplab_tf.served import load_segmenter
model = load_segmenter(r"{tmp_path}/model.keras")
expected = np.load(r"{tmp_path}/expected.npy")
np.testing.assert_array_equal(model(np.load(r"{tmp_path}/images.npy")), expected)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("name", BASELINES)
def test_full_size(name, dtype, tmp_path):
    """In a process of its own: TensorFlow keeps up to 1 GB of a training until its process ends."""
    if BASELINES[name].package is not None:
        pytest.importorskip(BASELINES[name].package)
    program = Path(__file__).with_name("full_size.py")
    done = forked.run(program, name, dtype, tmp_path / "model.keras")
    assert (done.returncode, done.stdout) == (0, "the same\n"), done.stderr


@pytest.mark.parametrize("channels", [1, 4])
def test_one_and_four_channels(channels):
    network = small("frrn_b", mean=(100.0,) * channels, std=(50.0,) * channels)
    assert network(images((1, 40, 45, channels))).shape == (1, 40, 45, 5)


# ---- the parts


@pytest.mark.parametrize("size", [2, 4])
def test_pooling_by_parts_is_pooling_at_once(size):
    x = np.random.default_rng(2).normal(-3, 1, (2, 21, 13, 3)).astype("float32")
    pooled = np.asarray(max_pool(x, size))
    assert pooled.shape == (2, -(-21 // size), -(-13 // size), 3)
    for row in range(pooled.shape[1]):
        for column in range(pooled.shape[2]):
            window = x[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
            np.testing.assert_array_equal(pooled[:, row, column], window.max((1, 2)))
    np.testing.assert_array_equal(max_pool(max_pool(x, size), 2), max_pool(x, 2 * size))
    back = np.asarray(unpool(pooled, size, (21, 13)))
    assert back.shape == x.shape and np.all(back >= x)


def test_a_full_resolution_unit_leaves_the_stream_but_for_a_sum():
    unit = FullResolutionResidualUnit(6, 4)
    pooled, stream = images((1, 6, 4, 5)), images((1, 21, 13, 3), 1)
    unit.build(pooled.shape, stream.shape)
    features, after = unit(pooled, stream)
    assert features.shape == (1, 6, 4, 6)
    added = np.asarray(after) - stream
    # Constant over each window of 4x4.
    np.testing.assert_allclose(added[:, 0:4, 4:8], added[:, :1, 4:5] * np.ones((1, 4, 4, 1)), 1e-3)
    assert np.std(added[:, ::4, ::4]) > 0


def test_xception_at_both_strides_has_the_same_weights():
    """At stride 16 a stride is an atrous rate: on every second pixel the two agree."""
    keras.utils.set_random_seed(1)
    fine = Xception(71, 8, 0.02)
    coarse = Xception(71, 16, 0.02)
    for layer in (fine, coarse):
        layer.build((None, None, None, 3))
    coarse.set_weights(fine.get_weights())
    # Odd, so that a stride takes the first pixel of each two, in both.
    x = images((1, 129, 97, 3)) / 127.5 - 1
    at_8, quarter = fine(x)
    at_16, quarter_too = coarse(x)
    assert quarter.shape == (1, 33, 25, 5) and at_8.shape[:3] == (1, 17, 13)
    np.testing.assert_array_equal(quarter, quarter_too)
    np.testing.assert_allclose(at_8[:, ::2, ::2], at_16, rtol=1e-3, atol=1e-4)


def test_the_dense_prediction_cell_is_the_published_one():
    cell = DensePredictionCell(8, 4)
    cell.build((None, None, None, 7))
    rates = [branch.rate for branch in cell.branches]
    assert rates == [(2, 12), (36, 30), (12, 6), (2, 2), (12, 42)]
    assert [source for source, _ in BRANCHES] == [None, 0, 1, 0, 0]
    assert cell(images((1, 9, 11, 7))).shape == (1, 9, 11, 4)


# ---- wrong use


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: build_baseline("resnet"),
            "network=resnet: no baseline of that name; allowed: " + ", ".join(PINNED),
        ),
        (
            lambda: small("frrn_b", num_classes=0),
            "num_classes must be an integer of 1 or more. Received: 0.",
        ),
        (
            lambda: small("frrn_b", width_multiplier=0),
            "width_multiplier must be a number above 0. Received: 0.",
        ),
        (
            lambda: small("frrn_b")(images((1, 31, 64, 3))),
            "images must be 32 pixels or more in height and width. Received: 31 x 64",
        ),
        (lambda: FRRN(variant="c"), "variant must be 'a' or 'b'. Received: 'c'."),
        (lambda: PSPNet(depth=18), "depth must be one of 50, 101, 152. Received: 18."),
        (lambda: DeepLabV3Plus(depth=41), "depth must be one of 65, 71. Received: 41."),
        (lambda: DeepLabV3Plus(output_stride=4), "output_stride must be 8 or 16. Received: 4."),
        (lambda: DeepLabV3Plus(context="ppm"), "context must be 'aspp' or 'dpc'. Received: 'ppm'."),
    ],
)
def test_wrong_use_is_answered_by_one_line(build, message):
    with pytest.raises(ValueError) as error:
        build()
    assert message in str(error.value) and "\n" not in str(error.value)
