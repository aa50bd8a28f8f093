"""`method.py` on the variables of a supernet: where its weights lie in flat vectors."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from keras import ops

from auto_deeplab_tf import method
from auto_deeplab_tf.method import Convolution
from auto_deeplab_tf.nn import backend
from auto_deeplab_tf.nn.backend import Tensor
from auto_deeplab_tf.nn.node import NodeKind
from auto_deeplab_tf.nn.operations import OperationLayer, operation_layer_class
from auto_deeplab_tf.nn.segments import Segment, SegmentKind
from auto_deeplab_tf.nn.supernet_ends import HeadKind, StemKind
from auto_deeplab_tf.search_space import OPERATION_TABLE, block_sources, relaxed_edges


def build(
    segments: Sequence[Segment],
    weights: Sequence[tuple[Tensor, Tensor, Tensor]],
    nodes: Sequence[tuple[int, int]],
    alpha: Tensor,
    beta: Tensor,
    training: bool,
    edge_weights: Tensor | None = None,
) -> method.Network:
    """Builds the plain network from what the segments hold.

    Args:
        segments: Of a `Supernet`.
        weights: For each of them (kernels, affine, moving), of `Segment.read`.
        nodes: (layer, level) of each node, in the order of the segments.
        alpha: float32 [B (B + 3) / 2, num_ops].
        beta: float32 [L, 4, 3], weights of the moves.
        training: True: statistics of the batch; False: the moving ones.
        edge_weights: float32 [B (B + 3) / 2], with partial channels only.

    Returns:
        The network; its `statistics.moments` are for `moments`.
    """
    place = iter(nodes)
    moving: dict[Any, Tensor] = {}
    found: dict[str, Any] = {"nodes": {}, "heads": {}}
    for segment, (kernels, affine, of_segment) in zip(segments, weights, strict=True):
        kind = segment.kind
        arrays = kind.kernels.unpack(kernels) | kind.affine.unpack(affine)
        if kind.normalized:
            names, widths = zip(*kind.normalized, strict=True)
            parts = backend.split(of_segment, list(widths), 1)
            moving |= {(segment.name, *_tuple(n)): p for n, p in zip(names, parts, strict=True)}
        if isinstance(kind, StemKind):
            found |= {"mean": kind.mean, "std": kind.std}
            found["stem"] = [
                _with_affine(segment.name, name, arrays, f"conv_{name}")
                for name, _ in kind.normalized
            ]
        elif isinstance(kind, NodeKind):
            found |= {"num_blocks": kind.num_blocks, "partial_channels": kind.partial_channels}
            found["nodes"][next(place)] = node_weights(segment.name, kind, arrays)
        elif isinstance(kind, HeadKind):
            branches = {
                name: _with_affine(segment.name, name, arrays, name) for name, _ in kind.normalized
            }
            found["heads"][kind.level] = method.HeadWeights(
                **branches, classes=arrays["classes"][None, None], bias=arrays["bias"]
            )
    return method.Network(
        **found,
        alpha=alpha,
        beta=beta,
        edge_weights=edge_weights,
        statistics=method.Statistics(None if training else moving),
        transforms=_transforms(),
    )


def edge_weights(edge_logits: Tensor | None, num_blocks: int) -> Tensor | None:
    """Normalises the logits of the edges over those into each block; None stays None."""
    if edge_logits is None:
        return None
    counts = [len(block_sources(block)) for block in range(num_blocks)]
    blocks = backend.split(edge_logits, counts, 0)
    return ops.concatenate([ops.softmax(block) for block in blocks])


def moments(
    segments: Sequence[Segment], statistics: method.Statistics, training: bool
) -> tuple[Tensor | None, ...]:
    """Returns for each segment its statistics float32 [2, M], or None where it has none.

    They are the batch's in training, in the order of the segment, else the moving ones.
    """
    if not training:
        return tuple(segment.moving for segment in segments)
    return tuple(_moments(segment.name, segment.kind, statistics) for segment in segments)


def _moments(segment: str, kind: SegmentKind, statistics: method.Statistics) -> Tensor | None:
    parts = [statistics.moments[segment, *_tuple(name)] for name, _ in kind.normalized]
    return ops.concatenate(parts, axis=1) if parts else None


def _tuple(name: Any) -> tuple[Any, ...]:
    return name if isinstance(name, tuple) else (name,)


def _with_affine(
    segment: str, name: Any, arrays: dict[str, Tensor], kernel_name: str
) -> Convolution:
    kernel = arrays[kernel_name]
    kernel = kernel if len(kernel.shape) == 4 else kernel[None, None]
    gamma, beta = (arrays[f"{name}/{part}"] for part in ("gamma", "beta"))
    return Convolution((segment, name), kernel, gamma=gamma, beta=beta)


def node_weights(segment: str, kind: NodeKind, arrays: Mapping[str, Tensor]) -> method.NodeWeights:
    """Takes a node's convolutions out of the arrays in which they lie side by side.

    Args:
        segment: Name of the node.
        kind: Its kind.
        arrays: Of `kind.kernels.unpack`.

    Returns:
        The convolutions; the name of each is `segment` and the name in `kind.normalized`.
    """
    arrays = dict(arrays)
    predecessors = range(len(kind.predecessors))
    for array_name, array in kind.kernel_arrays.items():
        names, counts = zip(*array.pieces, strict=True)
        values = arrays.pop(array_name)
        arrays |= zip(names, backend.split(values, list(counts), len(array.shape)), strict=True)
    sources = dict(kind.sources)

    def convolutions(edge: Any, operation: Any, predecessor: int) -> list[Convolution]:
        is_input = edge.source in kind.source_groups[0]
        group = "inputs" if is_input else edge.source
        target = [e.block for e in sources[edge.source]].index(edge.block)
        found = []
        for stage in range(operation.repeats):
            kernel = arrays[f"{group}/{operation.name}_{stage}"]
            # The kernels of `prev` stand before those of `prev_prev`.
            own = kernel.shape[-2] // (2 if is_input else 1)
            branch = min(predecessor, own - 1) + own * (edge.source == "prev_prev")
            of_source = min(predecessor, kind.branches(edge.source) - 1)
            name = (segment, edge.source, operation.name, stage, edge.block, of_source)
            kernel = kernel[..., target, branch, :]
            if operation.is_separable(kind.atrous):
                names = [o.name for o in kind.stages[stage] if o.is_separable(kind.atrous)]
                row = names.index(operation.name) * len(sources[edge.source]) + target
                pointwise = arrays[f"{group}/pointwise_{stage}"][:, row, branch]
                found.append(Convolution(name, pointwise[None, None], kernel))
            else:
                found.append(Convolution(name, kernel))
        return found

    return method.NodeWeights(
        [Convolution((segment, "prev", p), arrays[f"prev_{p}"][None, None]) for p in predecessors],
        Convolution((segment, "prev_prev"), arrays["prev_prev"][None, None]),
        {
            (edge.index, operation.name, p): convolutions(edge, operation, p)
            for edge in relaxed_edges(kind.num_blocks)
            for operation in kind.operations
            for p in predecessors
        },
    )


def _transforms() -> dict[str, Any]:
    """What registered operations do before their convolutions, by `OperationLayer.transform`."""
    rows = {row.name: row for row in OPERATION_TABLE if row.kind not in method.KINDS}
    return {
        name: functools.partial(operation_layer_class(name).transform, row, stride=1)
        for name, row in rows.items()
        if operation_layer_class(name).transform is not OperationLayer.transform
    }
