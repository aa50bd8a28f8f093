"""Counts of built networks: equal to counting alone, and to TensorFlow's own profiler."""

import numpy as np
import pytest
import tensorflow as tf
from arrays import images, profiler_multi_adds
from random_architectures import random_architecture

from auto_deeplab_tf import build_baseline, build_network
from auto_deeplab_tf.accounting import count
from auto_deeplab_tf.nn.counting import count_network


@pytest.mark.parametrize(
    "seed", [*range(10), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(10, 100))]
)
def test_counting_alone_equals_the_built_network(seed):
    larger = {"max_layers": 14, "max_blocks": 6} if seed >= 50 else {}
    architecture = random_architecture(seed, **larger)
    settings = {"num_classes": 5, "filter_multiplier": 2, "head_channels": 6, "decoder_channels": 4}
    settings |= {"stem_channels": (3, 5, 7)} if seed % 2 else {}
    network = build_network(architecture, **settings)
    built = count_network(network, (97, 131))
    counted = count(architecture, input_size=(97, 131), **settings)
    assert (built.params, built.multi_adds) == (counted.params, counted.multi_adds)
    assert built.parts == counted.parts
    # A row's name is the path of a layer.
    found = dict.fromkeys((row.name for row in counted.layers), 0)
    for variable in network.trainable_variables:
        (name,) = [name for name in found if f"/{name}/" in f"/{variable.path}"]
        found[name] += int(np.prod(variable.shape))
    assert found == {row.name: row.params for row in counted.layers}
    # Its rows are finer: the convolutions of a separable operation one by one.
    by_name = {row.name: row for row in counted.layers}
    for name, row in by_name.items():
        inside = [r for r in built.layers if r.name == name or r.name.startswith(f"{name}/")]
        assert sum(r.multi_adds for r in inside) == row.multi_adds
        assert sum(r.params for r in inside) == row.params


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("frrn_b", {"width_multiplier": 0.1}),
        pytest.param("pspnet_resnet101", {"width_multiplier": 0.05}, marks=pytest.mark.slow),
    ],
)
def test_equal_to_the_graph_profiler(name, settings):
    """At 256x192 every atrous rate divides its map, so nothing is padded for it."""
    network = build_baseline(name, 5, **settings)
    spec = tf.TensorSpec((1, 256, 192, 3))
    traced = tf.function(lambda x: network(x, training=False)).get_concrete_function(spec)
    assert count_network(network, (256, 192)).multi_adds == profiler_multi_adds(traced)


def test_counting_leaves_the_network_as_it_was():
    network = build_baseline("frrn_a", 5, width_multiplier=0.1)
    x = images((1, 40, 33, 3))
    before = np.asarray(network(x))
    first = count_network(network, (64, 96))
    assert count_network(network, (64, 96)) == first
    assert len({row.name for row in first.layers}) == len(first.layers)
    assert first.layers[0].name == "root" and first.layers[-1].name == "classes"
    assert first.parts[-1].output_shape == (64, 96, 5)
    np.testing.assert_array_equal(network(x), before)


@pytest.mark.parametrize("name", ["keras_hub_deeplabv3plus", "keras_hub_segformer_b0"])
def test_a_network_of_other_layers_is_counted(name):
    """Normalisations and dense layers stand outside of any convolution unit there."""
    pytest.importorskip("keras_hub")
    network = build_baseline(name, 5)
    count = count_network(network, (65, 96))
    assert count.params == sum(int(np.prod(v.shape)) for v in network.trainable_variables)
    assert sum(part.params for part in count.parts) == count.params
    assert sum(part.multi_adds for part in count.parts) == count.multi_adds > 0


def test_small_images_are_refused():
    with pytest.raises(ValueError, match="images must be 32 pixels or more"):
        count_network(build_baseline("frrn_a", 5, width_multiplier=0.1), (31, 64))
