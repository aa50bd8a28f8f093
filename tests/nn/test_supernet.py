"""The supernet: the fused formulation against the plain one.

Alpha and beta against their own edges and moves.
"""

import numpy as np
import pytest
import tensorflow as tf
from commands import run_on_jax
from one_hot import decoded_cell
from reference_supernet import plain_loss_and_gradients

from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.decoding import one_hot, unidentified_transitions
from auto_deeplab_tf.nn.resize import resize_bilinear
from auto_deeplab_tf.nn.supernet import build_supernet
from auto_deeplab_tf.sampling import random_architecture
from auto_deeplab_tf.search_space import relaxed_edges, transitions

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


@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_blocks": 2},
        pytest.param({"atrous": "full", "num_layers": 2}, marks=pytest.mark.slow),
        pytest.param(
            {"share_operations": False, "num_layers": 2, "num_blocks": 2}, marks=pytest.mark.slow
        ),
        pytest.param(
            {"num_layers": 5, "num_blocks": 1, "filter_multiplier": 1}, marks=pytest.mark.slow
        ),
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

    computed = supernet.forward(x, training=True)
    loss = tf.reduce_sum(computed.logits * weighting)
    weight_gradients = supernet.backward(computed, weighting, "weights")
    architecture_gradients = supernet.backward(computed, weighting, "architecture")

    plain_loss, plain_gradients = plain_loss_and_gradients(supernet, x, weighting)
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-4)
    for variable, ours, theirs in zip(
        [*supernet.trainable_variables, *supernet.architecture_variables],
        [*weight_gradients, *architecture_gradients],
        plain_gradients,
        strict=True,
    ):
        scale = np.abs(theirs).max()
        assert scale > 0, variable.path
        np.testing.assert_allclose(ours, theirs, atol=2e-4 * scale, err_msg=variable.path)


def inference_features(supernet, x):
    return supernet.forward(x, training=False).features


def changed_nodes(before, after):
    """(layer, level) of the nodes whose features differ."""
    return {
        node
        for node in before
        if node[0] >= 0 and not np.array_equal(before[node], after[node], equal_nan=True)
    }


def test_each_beta_entry_touches_the_moves_that_leave_its_level_only():
    supernet = small_supernet(num_layers=3, num_blocks=1, filter_multiplier=1)
    x = images((1, 49, 70, 3))
    before = inference_features(supernet, x)
    beta = supernet.beta_logits
    initial = np.array(beta)
    for layer in range(3):
        for level in range(4):
            for move in range(3):
                perturbed = initial.copy()
                perturbed[layer, level, move] += 1.0
                beta.assign(perturbed)
                changed = changed_nodes(before, inference_features(supernet, x))
                in_layer = {node[1] for node in changed if node[0] == layer}
                earlier = {node for node in changed if node[0] < layer}
                target = level + move - 1
                # The stem is at level 0, and after l layers no level beyond l has been reached.
                alive = level <= layer and 0 <= target <= 3
                # The softmax shares one level's moves out, so their targets change together.
                expected = {t for t in (level - 1, level, level + 1) if 0 <= t <= 3}
                assert in_layer == (expected if alive else set()), (layer, level, move)
                assert not earlier
    beta.assign(initial)


def test_each_alpha_row_touches_the_block_of_its_edge_and_later_ones_only():
    supernet = small_supernet(num_layers=1, num_blocks=3, filter_multiplier=2)
    x = images((1, 49, 70, 3))
    before = np.asarray(inference_features(supernet, x)[0, 0])
    initial = np.array(supernet.alpha_logits)
    for edge in relaxed_edges(3):
        perturbed = initial.copy()
        perturbed[edge.index, edge.index % 8] += 1.0
        supernet.alpha_logits.assign(perturbed)
        after = np.asarray(inference_features(supernet, x)[0, 0])
        blocks = [
            not np.array_equal(*pair)
            for pair in zip(*(np.split(t, 3, -1) for t in (before, after)), strict=True)
        ]
        assert blocks[edge.block], edge
        assert not any(blocks[: edge.block]), edge


def test_beta_gets_a_gradient_wherever_it_is_identified():
    supernet = small_supernet(num_layers=4, num_blocks=1, filter_multiplier=2)
    x = images((2, 65, 97, 3))
    weighting = tf.constant(
        np.random.default_rng(1).standard_normal((2, 65, 97, CLASSES)), tf.float32
    )
    computed = supernet.forward(x, training=True)
    _, gradient = supernet.backward(computed, weighting, "architecture")
    size = {
        transition: abs(float(gradient[transition.layer, transition.from_level, transition.move]))
        for transition in transitions(4)
    }
    unidentified = set(unidentified_transitions(4))
    typical = np.median([size[t] for t in size if t not in unidentified])
    for transition, value in size.items():
        if transition not in unidentified:
            assert value > 1e-3 * typical, transition
    dead = np.ones((4, 4, 3), bool)
    for transition in transitions(4):
        dead[transition.layer, transition.from_level, transition.move] = False
    assert not np.asarray(gradient)[dead].any()


def decoded(levels, num_blocks=3, seed=0):
    """An architecture of these levels with a random cell, and its one-hot alpha and beta."""
    cell = random_architecture(seed, num_layers=1, num_blocks=num_blocks).cell
    architecture = Architecture(tuple(levels), cell, "separable")
    return architecture, one_hot(architecture)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "modes",
    [{}, pytest.param({"partial_channels": 2}, marks=pytest.mark.slow)],
    ids=["exact", "partial"],
)
def test_a_decoded_pass_computes_the_path_alone_as_the_plain_formulation_does(training, modes):
    levels = (1, 0, 1)
    _, arrays = decoded(levels, num_blocks=2)
    fused = small_supernet(num_blocks=2, **modes)
    plain = small_supernet(num_blocks=2, formulation="plain", **modes)
    x = images((2, 49, 70, 3))
    computed = fused.forward(x, training, relaxed=arrays)
    expected = plain.forward(x, training, relaxed=arrays)
    scale = np.abs(expected.logits).max()
    assert scale > 0.1
    np.testing.assert_allclose(computed.logits, expected.logits, atol=1e-3 * scale)
    for (layer, level), features in computed.features.items():
        on_path = layer < 0 or levels[layer] == level
        assert np.any(features) == on_path, (layer, level)
    relaxed = fused.forward(x, training)
    assert np.abs(relaxed.logits - computed.logits).max() > 0.1 * scale


def test_sampled_paths_decode_as_the_exact_search_does():
    _, arrays = decoded((0, 1, 1))
    x = images((1, 49, 70, 3))
    exact, sampled = small_supernet(), small_supernet(sampled_paths=2)
    for training in (False, True):
        ours, theirs = (s.forward(x, training, relaxed=arrays).logits for s in (sampled, exact))
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("levels", [(0, 0, 0, 0), (1, 1, 1, 0), (1, 2, 2, 2)])
def test_the_nodes_of_a_decoded_pass_are_the_decoded_cells(levels):
    """Where the path kept its level for two layers; after a move up H^{l-2} is 0."""
    supernet = small_supernet(num_layers=4)
    architecture, arrays = decoded(levels, seed=1)
    features = supernet.forward(images((2, 64, 96, 3)), False, relaxed=arrays).features
    layer, level = 3, levels[3]
    index = supernet.nodes.index((layer, level))
    segment = next(s for s in supernet.segments if s.name == f"layer_{layer}_level_{level}")
    froms = [move.from_level for move in supernet.incoming[index]]
    kernels, _, moving = map(np.asarray, (segment.kernels, [], segment.moving))
    cell, _ = decoded_cell(
        segment.kind, architecture.cell, kernels, moving, froms.index(levels[layer - 1])
    )
    node, prev = features[layer, level], features[layer - 1, levels[layer - 1]]
    output = cell(resize_bilinear(prev, node.shape[1:3]), features[layer - 2, level])
    assert np.abs(node).max() > 0.1
    np.testing.assert_allclose(node, output, rtol=1e-3, atol=1e-3 * np.abs(node).max())


def test_inference_with_the_statistics_of_a_batch_equals_training_on_it():
    supernet = small_supernet(num_layers=2, num_blocks=2)
    x = images((2, 49, 70, 3))
    computed = supernet.forward(x, training=True)
    for segment, batch_moments in zip(supernet.segments, computed.moments, strict=True):
        if segment.moving is not None:
            segment.moving.assign(batch_moments)
    logits = supernet(x, training=False)
    scale = np.abs(computed.logits).max()
    np.testing.assert_allclose(logits, computed.logits, atol=1e-3 * scale)


@pytest.mark.parametrize("size", [(32, 32), (97, 97), (224, 224), (480, 720), (321, 33)])
def test_any_crop_size_gives_logits_of_its_size(size):
    supernet = small_supernet(num_layers=4, num_blocks=1, filter_multiplier=1, input_size=size)
    logits = supernet(images((1, *size, 3)))
    assert logits.shape == (1, *size, CLASSES)
    assert np.isfinite(logits).all()
    assert np.std(logits) > 0


def test_architecture_variables_are_a_collection_of_their_own():
    supernet = small_supernet()
    assert supernet.architecture_variables == [supernet.alpha_logits, supernet.beta_logits]
    assert supernet.alpha_logits.shape == (9, 8)
    assert supernet.beta_logits.shape == (3, 4, 3)
    trainable = {id(variable) for variable in supernet.trainable_variables}
    assert not trainable & {id(variable) for variable in supernet.architecture_variables}
    everything = {id(variable) for variable in supernet.variables}
    assert {id(variable) for variable in supernet.architecture_variables} <= everything


def test_the_papers_supernet_has_its_size():
    supernet = build_supernet(input_size=(321, 321))
    assert supernet.alpha_logits.shape == (20, 8)
    assert supernet.beta_logits.shape == (12, 4, 3)
    assert len(supernet.incoming) == 45
    assert sum(map(len, supernet.incoming)) == 105
    deviations = [np.std(variable) for variable in supernet.architecture_variables]
    np.testing.assert_allclose(deviations, 1e-3, rtol=0.2)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("num_classes", 0),
        ("num_layers", 0),
        ("num_blocks", -1),
        ("filter_multiplier", 1.5),
        ("input_size", (31, 64)),
        ("atrous", "dense"),
    ],
)
def test_wrong_arguments_are_refused_by_name(argument, value):
    with pytest.raises(ValueError, match=rf"^{argument}.*(must|takes|expected) "):
        build_supernet(**{"num_classes": 5, argument: value})


def test_jax_gives_the_same_logits_from_the_same_weights(tmp_path):
    """The other backend in a process of its own: nothing in nn/ may be TensorFlow's alone."""
    supernet = small_supernet(num_layers=2, num_blocks=2)
    x = images((2, 49, 70, 3))
    here = [np.asarray(supernet(x, training=training)) for training in (False, True)]
    program = f"""
from auto_deeplab_tf.nn.supernet import build_supernet
supernet = build_supernet({CLASSES}, 2, 2, 2, input_size=(49, 70))
assign(supernet)
save(*(supernet(data["x"], training=training) for training in (False, True)))
"""
    there = run_on_jax(program, tmp_path, supernet.variables, x=x)
    for ours, theirs in zip(here, (there["arr_0"], there["arr_1"]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(ours).max())
