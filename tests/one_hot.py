"""The relaxed node with one-hot alpha and beta beside the decoded cell with the same weights."""

import keras
import numpy as np

from auto_deeplab_tf.nn.cell import Cell
from auto_deeplab_tf.nn.node import NodeKind, StateShape
from auto_deeplab_tf.nn.normalization import Normalization
from auto_deeplab_tf.nn.resize import resize_bilinear
from auto_deeplab_tf.search_space import stride

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


def _statistics(kind, values, predecessor):
    """Cuts float [2, M] of a node: name of a normalisation -> [2, filters], for one predecessor.

    The names are `prev`, `prev_prev` and (source, operation, stage, target).
    """
    predecessors = len(kind.predecessors)
    widths = [("prev", predecessors), ("prev_prev", 1)]
    edges_of = dict(kind.sources)
    for sources in kind.source_groups:
        for stage, convolutions in enumerate(kind.stages):
            for operation in convolutions:
                for target in range(len(edges_of[sources[0]])):
                    for source in sources:
                        key = (source, operation.name, stage, target)
                        widths.append((key, kind.branches(source)))
    found, offset = {}, 0
    for name, own in widths:
        start = offset + min(predecessor, own - 1) * FILTERS
        found[name] = values[:, start : start + FILTERS]
        offset += own * FILTERS
    assert offset == values.shape[1] == kind.num_normalized
    return found


def _assign_unit(unit, kernels, source, operation, stage, kind, target, predecessor):
    place = "inputs" if source in ("prev", "prev_prev") else source
    kernel = np.asarray(kernels[f"{place}/{operation.name}_{stage}"])
    if not unit.separable:
        # Kernels that the predecessors share stand there once.
        own = 1 if kind.share_operations else len(kind.predecessors)
    else:
        own = kind.branches(source)
    prevs = 0 if source != "prev_prev" else kernel.shape[-2] - own
    predecessor = prevs + min(predecessor, own - 1)
    if not unit.separable:
        unit.conv.kernel.assign(kernel[:, :, :, target, predecessor])
        return
    unit.depthwise.kernel.assign(kernel[:, :, target, predecessor, :, None])
    pointwise = np.asarray(kernels[f"{place}/pointwise_{stage}"])
    separable = [o.name for o in kind.stages[stage] if o.is_separable(kind.atrous)]
    row = separable.index(operation.name) * kernel.shape[2] + target
    unit.conv.kernel.assign(pointwise[None, None, :, row, predecessor])


def decoded_cell(kind, blocks, kernels, moving, predecessor):
    """The cell that reads predecessor `predecessor`, with the node's weights and moving statistics.

    Returns:
        (cell, layers): what is built; name of a normalisation as in `_statistics` -> its layer.
    """
    # A decay of 0: after a step in training mode the moving statistics are the batch's.
    cell = Cell(FILTERS, blocks, atrous=kind.atrous, norm=Normalization(decay=0.0))
    channels = kind.predecessors[predecessor].channels
    cell.build(*((None, None, None, c) for c in (channels, kind.prev_prev.channels)))
    cell.project_prev.conv.kernel.assign(np.asarray(kernels[f"prev_{predecessor}"])[None, None])
    cell.project_prev_prev.conv.kernel.assign(np.asarray(kernels["prev_prev"])[None, None])
    layers = {
        "prev": cell.project_prev.batch_norm,
        "prev_prev": cell.project_prev_prev.batch_norm,
    }
    by_source = dict(kind.sources)
    edges = [(block, edge) for block, pair in enumerate(blocks) for edge in pair]
    for (block, edge), layer in zip(edges, cell.operations, strict=True):
        target = [e.block for e in by_source[edge.source]].index(block)
        for stage, unit in enumerate(layer.units):
            _assign_unit(unit, kernels, edge.source, layer.row, stage, kind, target, predecessor)
            layers[edge.source, edge.op, stage, target] = unit.batch_norm
    statistics = _statistics(kind, moving, predecessor)
    for name, layer in layers.items():
        layer.moving_mean.assign(statistics[name][0])
        layer.moving_variance.assign(statistics[name][1])
    return cell, layers


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
    cell, layers = decoded_cell(kind, blocks, kind.unpack(flat), moving, predecessor)
    prev = inputs[predecessor] if predecessor == 1 else resize_bilinear(inputs[predecessor], SIZE)
    tensors = tuple(keras.ops.convert_to_tensor(image) for image in inputs)
    for training in (False, True):
        (output,), moments = kind.compute(flat, None, moving, (alpha, beta), tensors, training)
        expected = np.asarray(cell(prev, inputs[-1], training=training))
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(output, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    for name, values in _statistics(kind, np.asarray(moments), predecessor).items():
        if name in layers:
            mean, variance = layers[name].moving_mean, layers[name].moving_variance
            np.testing.assert_allclose(values[0], mean, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(values[1], variance, rtol=1e-3, atol=1e-4)
