"""A decoded cell equals its operations applied one by one."""

import numpy as np
import pytest
from arrays import features, randomized
from random_architectures import random_architecture

from auto_deeplab_tf.architecture import Edge
from auto_deeplab_tf.nn.cell import Cell
from auto_deeplab_tf.nn.operations import operation_layer_class
from auto_deeplab_tf.search_space import DECODABLE_OPERATIONS

FILTERS = 3


def built(blocks, stride=1, channels=(7, 5), **arguments):
    cell = Cell(FILTERS, blocks, stride=stride, **arguments)
    return randomized(cell, *((None, None, None, c) for c in channels))


def inputs(*channels):
    """A tensor for `prev` and one for `prev_prev`."""
    return (features((2, 9, 12, c), seed) for seed, c in enumerate(channels))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("op", DECODABLE_OPERATIONS)
def test_one_block_equals_the_plain_operation(op, stride):
    """The block is op(prev) + skip(prev_prev): with the second taken away, op alone is left."""
    cell = built([(Edge("prev", op), Edge("prev_prev", "skip"))], stride)
    prev, prev_prev = inputs(7, 5)
    plain = operation_layer_class(op)(op, FILTERS, stride=stride)
    plain.build((None, None, None, FILTERS))
    plain.set_weights(cell.operations[0].get_weights())
    skipped = cell.operations[1](cell.project_prev_prev(prev_prev))
    expected = np.array(plain(cell.project_prev(prev)))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(cell(prev, prev_prev) - skipped, expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_blocks_read_what_their_edges_name(seed):
    blocks = random_architecture(seed, max_blocks=5).cell
    cell = built(blocks, stride=1 + seed % 2)
    prev, prev_prev = inputs(7, 5)
    by_name = {layer.name: layer for layer in cell.operations}
    states = {"prev": cell.project_prev(prev), "prev_prev": cell.project_prev_prev(prev_prev)}
    for index, block in enumerate(blocks):
        states[f"block_{index}"] = sum(
            by_name[f"block_{index}_{edge.source}_{edge.op}"](states[edge.source]) for edge in block
        )
    expected = np.concatenate([states[f"block_{i}"] for i in range(len(blocks))], axis=-1)
    result = cell(prev, prev_prev)
    assert result.shape == cell.compute_output_shape(prev.shape, prev_prev.shape)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_prev_prev_is_projected_only_where_its_channels_differ():
    blocks = [(Edge("prev", "avg_pool_3x3"), Edge("prev_prev", "skip"))]
    cell = built(blocks, channels=(FILTERS, FILTERS))
    prev, prev_prev = inputs(FILTERS, FILTERS)
    assert cell.project_prev_prev is None
    # As it is: negative values pass, where a projection would have cut them off.
    pooled = np.array(cell(prev, prev_prev)) - prev_prev
    np.testing.assert_allclose(
        pooled, np.array(cell.operations[0](cell.project_prev(prev))), atol=1e-5
    )
    # `prev` always is, as in the authors' code.
    assert cell.project_prev.built


def test_factors_scale_all_operations_but_skip():
    blocks = [
        (Edge("prev", "sep_3x3"), Edge("prev_prev", "skip")),
        (Edge("block_0", "max_pool_3x3"), Edge("prev", "atrous_3x3")),
    ]
    cell = built(blocks)
    prev, prev_prev = inputs(7, 5)
    assert cell.num_droppable == 3
    factors = np.random.default_rng(2).uniform(size=(3, 2, 1, 1, 1)).astype("float32")
    states = cell.project_prev(prev), cell.project_prev_prev(prev_prev)
    sep, _, pool, atrous = cell.operations
    first = factors[0] * sep(states[0]) + states[1]
    second = factors[1] * pool(first) + factors[2] * atrous(states[0])
    np.testing.assert_allclose(
        cell(prev, prev_prev, factors=factors),
        np.concatenate([first, second], axis=-1),
        rtol=1e-4,
        atol=1e-4,
    )


def test_config_gives_the_cell_back():
    cell = built(random_architecture(5).cell, stride=2, atrous="separable")
    again = Cell.from_config(cell.get_config())
    assert again.get_config() == cell.get_config()
    again.build((None, None, None, 7), (None, None, None, 5))
    again.set_weights(cell.get_weights())
    arguments = tuple(inputs(7, 5))
    np.testing.assert_array_equal(again(*arguments), cell(*arguments))
