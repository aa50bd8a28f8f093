"""Which weights a network takes from one trained for other classes."""

import numpy as np
import pytest

from auto_deeplab_tf.architecture import Architecture, Edge
from auto_deeplab_tf.nn.network import build_network
from auto_deeplab_tf.segmenter import Segmenter
from auto_deeplab_tf.training.transfer import take_weights

ARCHITECTURE = Architecture(
    levels=(0, 1), cell=((Edge("prev", "sep_3x3"), Edge("prev_prev", "skip")),), atrous="separable"
)


def model(names, seed, **settings):
    settings = {"filter_multiplier": 1, "head_channels": 8, "decoder_channels": 4} | settings
    network = build_network(ARCHITECTURE, num_classes=len(names), **settings)
    rng = np.random.default_rng(seed)
    for variable in network.weights:
        if np.issubdtype(variable.dtype, np.floating):
            variable.assign(rng.uniform(0.1, 1, variable.shape))
    return Segmenter(network, class_names=names)


@pytest.mark.parametrize(
    ("names", "same"),
    [(("a", "b", "c"), True), (("a", "b", "d"), False), (("a", "b", "c", "d"), False)],
)
def test_the_class_layer_is_taken_where_the_classes_are_the_same(names, same):
    source, target = model(("a", "b", "c"), 0), model(names, 1)
    before = [np.array(variable) for variable in target.network.trainable_variables]
    found = take_weights(target, source, "x.keras")
    pairs = list(zip(target.network.trainable_variables, before, strict=True))
    theirs = source.network.trainable_variables
    for (ours, old), other in zip(pairs[:-2], theirs[:-2], strict=True):
        np.testing.assert_array_equal(ours, other)
        assert not np.array_equal(ours, old)
    for (ours, old), other in zip(pairs[-2:], theirs[-2:], strict=True):
        np.testing.assert_array_equal(ours, other if same else old)
    assert found["new"] == ([] if same else ["decoder/classes/bias", "decoder/classes/kernel"])
    moving = [v for v in target.network.non_trainable_variables if "moving" in v.path]
    assert found["taken"] == len(pairs) - len(found["new"]) + len(moving)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_channels": 16}, "init_from=x.keras has head_channels 8, and this training 16"),
        ({"mean": (100.0,), "std": (50.0,)}, "takes images of 3 channels, and the data set has 1"),
    ],
)
def test_another_network_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        take_weights(model(("a", "b"), 1, **settings), model(("a", "b"), 0), "x.keras")
