"""The relaxed node with one-hot alpha and beta beside the decoded cell with the same weights."""

import keras
import numpy as np

from auto_deeplab_tf.nn import plain
from auto_deeplab_tf.nn.cell import Cell
from auto_deeplab_tf.nn.node import NodeKind, StateShape
from auto_deeplab_tf.nn.normalization import Normalization
from auto_deeplab_tf.nn.resize import resize_bilinear
from auto_deeplab_tf.nn.segments import Arguments
from auto_deeplab_tf.search_space import relaxed_edges, stride

NODE = "node"
FILTERS = 3
SIZE = (9, 12)
CHANNELS = {"prev": 7, "prev_prev": 5}


def node_kind(num_blocks, atrous, share_operations, level=1):
    """A node with a finer predecessor, one of its own stride and a coarser one."""
    return NodeKind(
        level=level,
        predecessors=tuple(
            StateShape(level + 2 + step, CHANNELS["prev"] + step) for step in (-1, 0, 1)
        ),
        prev_prev=StateShape(level + 2, CHANNELS["prev_prev"]),
        filters=FILTERS,
        num_blocks=num_blocks,
        atrous=atrous,
        share_operations=share_operations,
    )


def one_hot_alpha(kind, blocks):
    """float32 [edges, ops]: 1 at the operation of a kept edge, and at `none` of the others."""
    names = [operation.name for operation in kind.operations]
    kept = {(block, edge.source): edge.op for block, pair in enumerate(blocks) for edge in pair}
    alpha = np.zeros((sum(len(edges) for _, edges in kind.sources), len(names)), "float32")
    for _, edges in kind.sources:
        for edge in edges:
            alpha[edge.index, names.index(kept.get((edge.block, edge.source), "none"))] = 1
    return alpha


def _statistics(kind, values):
    """Cuts float [2, M] of a node: name of a normalisation -> float [2, channels]."""
    names, widths = zip(*kind.normalized, strict=True)
    parts = np.split(values, np.cumsum(widths)[:-1], axis=1)
    return {(NODE, *name): part for name, part in zip(names, parts, strict=True)}


def decoded_cell(kind, blocks, kernels, moving, predecessor):
    """The cell that reads predecessor `predecessor`, with the node's weights and moving statistics.

    Returns:
        (cell, layers): what is built; name of a normalisation as in `_statistics` -> its layer.
    """
    # A decay of 0: after a step in training mode the moving statistics are the batch's.
    cell = Cell(kind.filters, blocks, atrous=kind.atrous, norm=Normalization(decay=0.0))
    channels = kind.predecessors[predecessor].channels
    cell.build(*((None, None, None, c) for c in (channels, kind.prev_prev.channels)))
    weights = plain.node_weights(NODE, kind, kind.kernels.unpack(kernels))
    units = [(weights.prevs[predecessor], cell.project_prev)]
    units.append((weights.prev_prev, cell.project_prev_prev))
    rows = {(edge.block, edge.source): edge.index for edge in relaxed_edges(len(blocks))}
    edges = [(block, edge) for block, pair in enumerate(blocks) for edge in pair]
    for (block, edge), layer in zip(edges, cell.operations, strict=True):
        key = (rows[block, edge.source], edge.op, predecessor)
        units += zip(weights.operations[key], layer.units, strict=True)
    statistics = _statistics(kind, moving)
    for convolution, unit in units:
        unit.conv.kernel.assign(convolution.kernel)
        if convolution.depthwise is not None:
            unit.depthwise.kernel.assign(convolution.depthwise[..., None])
        mean, variance = statistics[convolution.name]
        unit.batch_norm.moving_mean.assign(mean)
        unit.batch_norm.moving_variance.assign(variance)
    return cell, {convolution.name: unit.batch_norm for convolution, unit in units}


def check_node_equals_cell(blocks, atrous, *, predecessor=1, share_operations=True, seed=0):
    """Asserts it in inference and in training mode, of the outputs and the batch's statistics.

    Args:
        blocks: the decoded cell.
        atrous: "full" or "separable".
        predecessor: 1: the predecessor of the node's own stride; 2: the coarser one.
        share_operations: as in the supernet.
        seed: of weights, statistics and inputs.
    """
    rng = np.random.default_rng(seed)
    kind = node_kind(len(blocks), atrous, share_operations)
    flat = rng.normal(size=kind.kernels.size).astype("float32")
    moving = rng.uniform(0.5, 1.5, (2, kind.num_normalized)).astype("float32")
    sizes = [tuple(2 * extent for extent in SIZE), SIZE, tuple((e + 1) // 2 for e in SIZE)]
    inputs = [
        rng.normal(size=(2, *size, state.channels)).astype("float32")
        for size, state in zip([*sizes, SIZE], [*kind.predecessors, kind.prev_prev], strict=True)
    ]
    alpha = one_hot_alpha(kind, blocks)
    beta = np.eye(3, dtype="float32")[predecessor]
    assert stride(kind.level) == 2 ** kind.predecessors[1].log2_stride
    cell, layers = decoded_cell(kind, blocks, flat, moving, predecessor)
    prev = inputs[predecessor] if predecessor == 1 else resize_bilinear(inputs[predecessor], SIZE)
    tensors = tuple(keras.ops.convert_to_tensor(image) for image in inputs)
    for training in (False, True):
        arguments = Arguments(flat, None, moving, (alpha, beta), tensors)
        (output,), moments = kind.compute(arguments, training)
        expected = np.asarray(cell(prev, inputs[-1], training=training))
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(output, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    statistics = _statistics(kind, np.asarray(moments))
    for name, layer in layers.items():
        mean, variance = statistics[name]
        np.testing.assert_allclose(mean, layer.moving_mean, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(variance, layer.moving_variance, rtol=1e-3, atol=1e-4)
