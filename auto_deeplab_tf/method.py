"""Auto-DeepLab as its paper writes it: the search network and its optimisation.

This is the plain formulation: one call for each operation, edge and predecessor, in `keras.ops`. It
is the place to read the method and to try a new relaxation first (`search --formulation=plain`
runs it). `nn.node` computes the same functions with few wide operations; tests hold it to this file
in the loss and in all gradients.

The equations have the numbers of docs/method.md:

    eq. 1   `mixed_operation`                          one edge, weighted by alpha
            `cell`                                     B blocks, each the sum of its edges
    eq. 2   `relaxed_node`                             one node of the trellis, weighted by beta
    eq. 3   `relax`                                    alpha and beta from their logits
            `Network.logits`                           stem, trellis and reduced ASPP heads
            `bilevel_update`                           w on train_a, then alpha and beta on train_b
    argmax of alpha, Viterbi on beta                   `decoding.decode_cell`, `decoding.viterbi`

Symbols: sH^l is the feature map of layer l at stride s = 4 * 2**level; level -1 stands for the
stem's map at stride 2. `prev` is H^{l-1}, `prev_prev` is H^{l-2}. A predecessor is a node of layer
l - 1 from which a move leads here, the finer ones first.

Reference: Liu et al., Auto-DeepLab, CVPR 2019, arXiv:1901.02985.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from auto_deeplab_tf.search_space import (
    ASPP_EXTENTS,
    NUM_LEVELS,
    OPERATION_TABLE,
    STEM_STRIDES,
    Operation,
    RelaxedEdge,
    move_mask,
    relaxed_edges,
    stride,
)

# A tensor of any Keras backend.
Tensor = Any

BATCH_NORM_EPSILON = 1e-3
# The kinds of the paper's operations; a registered operation of another kind may have a transform.
KINDS = ("separable", "atrous", "pool", "skip", "none")


# ---- the equations


def mixed_operation(
    x: Tensor, alpha: Tensor, candidates: Sequence[Callable[[Tensor], Tensor]]
) -> Tensor:
    """Applies the mixed operation of one edge (eq. 1).

        O(x) = sum_k alpha_k O_k(x)

    Args:
        x: float [N, h, w, f], the state that the edge leaves.
        alpha: float32 [num_ops], the edge's row, which sums to 1.
        candidates: The operations O_k, in the order of the columns.

    Returns:
        float [N, h, w, f].
    """
    weights = ops.unstack(alpha, len(candidates))
    return sum(weight * candidate(x) for weight, candidate in zip(weights, candidates, strict=True))


def partial_mixed_operation(
    x: Tensor,
    alpha: Tensor,
    candidates: Sequence[Callable[[Tensor], Tensor]],
    edge_weight: Tensor,
    partial_channels: int,
) -> Tensor:
    """Applies eq. 1 to one in K channels (a fast mode: PC-DARTS, Xu et al., arXiv:1907.05737).

    The other channels pass as they are. All are shuffled, the first channel of each of the K groups
    before the second ones, so that all of them take their turn.

    Args:
        x: See `mixed_operation`.
        alpha: See there.
        candidates: See there.
        edge_weight: float32 [], softmax over the edges into the block.
        partial_channels: K, a divisor of f.

    Returns:
        float [N, h, w, f].
    """
    first, *others = ops.split(x, partial_channels, axis=-1)
    groups = ops.stack([mixed_operation(first, alpha, candidates), *others], axis=-1)
    return edge_weight * ops.reshape(groups, ops.shape(x))


def cell(
    prev: Tensor,
    prev_prev: Tensor,
    num_blocks: int,
    mixed: Callable[[RelaxedEdge, Tensor], Tensor],
) -> Tensor:
    """Evaluates Cell(prev, prev_prev; alpha): each block sums the mixed operations of its edges.

        H_i = sum_{j < i} O_{j -> i}(H_j),  over prev, prev_prev and the blocks before i

    Args:
        prev: float [N, h, w, f], H^{l-1} brought here.
        prev_prev: float [N, h, w, f], H^{l-2} brought here.
        num_blocks: B.
        mixed: (edge, state) -> the mixed operation of the edge.

    Returns:
        float [N, h, w, B * f], the blocks side by side.
    """
    states = {"prev": prev, "prev_prev": prev_prev}
    for block in range(num_blocks):
        edges = [edge for edge in relaxed_edges(num_blocks) if edge.block == block]
        states[f"block_{block}"] = sum(mixed(edge, states[edge.source]) for edge in edges)
    return ops.concatenate([states[f"block_{i}"] for i in range(num_blocks)], axis=-1)


def relaxed_node(
    prevs: Sequence[Tensor],
    prev_prev: Tensor,
    betas: Sequence[Tensor],
    evaluate: Callable[[int, Tensor, Tensor], Tensor],
) -> Tensor:
    """Computes one node of the relaxed trellis (eq. 2).

        sH^l = sum_p beta_{p -> s} Cell(pH^{l-1}, sH^{l-2}; alpha)

    Args:
        prevs: For each predecessor p float [N, h, w, f], brought to the node's stride.
        prev_prev: float [N, h, w, f], likewise.
        betas: For each predecessor float32 [], the weight of its move to this node.
        evaluate: (index of the predecessor, prev, prev_prev) -> `cell` with its weights.

    Returns:
        float [N, h, w, B * f].
    """
    cells = [evaluate(index, prev, prev_prev) for index, prev in enumerate(prevs)]
    return sum(beta * output for beta, output in zip(betas, cells, strict=True))


def relax(alpha_logits: Tensor, beta_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Normalises the architecture variables (eq. 3).

        alpha_k = exp(a_k) / sum_j exp(a_j)                     over the operations of an edge
        beta_{s -> s/2} + beta_{s -> s} + beta_{s -> 2s} = 1    over the moves leaving a level

    Moves that leave the trellis are masked out before the softmax.

    Args:
        alpha_logits: float32 [B (B + 3) / 2, num_ops].
        beta_logits: float32 [L, 4, 3]: [l, s, m] is the move m - 1 leaving level s into layer l.

    Returns:
        (alpha, beta) of these shapes.
    """
    inside = move_mask(beta_logits.shape[0])
    beta = ops.softmax(ops.where(inside, beta_logits, -np.inf), axis=-1)
    return ops.softmax(alpha_logits, axis=-1), beta


def bilevel_update(
    w: Any,
    a: Any,
    loss_a: Callable[[Any, Any], Tensor],
    loss_b: Callable[[Any, Any], Tensor],
    gradient: Callable[[Callable[[Any], Tensor], Any], Any],
    step_w: Callable[[Any, Any], Any],
    step_a: Callable[[Any, Any], Any],
) -> tuple[Any, Any]:
    """Takes one iteration of the first-order bilevel optimisation (sec. 3.2).

        1. w <- step_w(w, grad_w L_trainA(w, a))
        2. a <- step_a(a, grad_a L_trainB(w, a)),  at the w of 1.

    `training.bilevel.BilevelModel.train_step` is this with Keras' optimizers for the steps.

    Args:
        w: The weights.
        a: The logits of alpha and beta.
        loss_a: (w, a) -> loss on a batch of train_a.
        loss_b: (w, a) -> loss on a batch of train_b.
        gradient: (function, point) -> gradient of the function there.
        step_w: (w, gradient) -> new w; weight decay is part of the step.
        step_a: (a, gradient) -> new a, likewise.

    Returns:
        (w, a) after both updates.
    """
    w = step_w(w, gradient(lambda values: loss_a(values, a), w))
    a = step_a(a, gradient(lambda values: loss_b(w, values), a))
    return w, a


# ---- what the equations are made of


class Convolution(NamedTuple):
    """The weights of a convolution and of the batch normalisation behind it.

    Attributes:
        name: Names the statistics of the normalisation.
        kernel: [k, k, C, D]; 1x1 behind a depthwise one.
        depthwise: [k, k, C] of the depthwise convolution before it, or None.
        gamma, beta: [D], or 1 and 0: the searched operations have no affine part.
    """

    name: Hashable
    kernel: Tensor
    depthwise: Tensor | None = None
    gamma: Tensor | float = 1.0
    beta: Tensor | float = 0.0


class NodeWeights(NamedTuple):
    """The weights of a node.

    Attributes:
        prevs: For each predecessor the 1x1 convolution that brings it here.
        prev_prev: The one for H^{l-2}.
        operations: (index of the edge, name of the operation, index of the predecessor) -> the
            operation's convolutions.
    """

    prevs: Sequence[Convolution]
    prev_prev: Convolution
    operations: Mapping[tuple[int, str, int], Sequence[Convolution]]


class HeadWeights(NamedTuple):
    """The weights of a reduced ASPP: its three branches, and the 1x1 with bias to the classes."""

    pointwise: Convolution
    atrous: Convolution
    pooling: Convolution
    classes: Tensor
    bias: Tensor


class Statistics:
    """Batch normalisation: in training by the moments of the batch, else by the moving ones.

    Args:
        moving: Name of a normalisation -> float32 [2, C], mean and variance; None in training.

    Attributes:
        moments: In training what `normalize` used, by name.
    """

    def __init__(self, moving: Mapping[Hashable, Tensor] | None = None) -> None:
        self._moving = moving
        self.moments: dict[Hashable, Tensor] = {}

    def normalize(self, x: Tensor, convolution: Convolution) -> Tensor:
        """Returns gamma * (x - mean) / sqrt(variance + epsilon) + beta."""
        if self._moving is None:
            mean, variance = ops.moments(x, axes=(0, 1, 2))
            self.moments[convolution.name] = ops.stack([mean, variance])
        else:
            mean, variance = ops.unstack(self._moving[convolution.name], 2)
        scale = convolution.gamma * ops.rsqrt(variance + BATCH_NORM_EPSILON)
        return (x - mean) * scale + convolution.beta


def convolve(x: Tensor, kernel: Tensor, stride: int = 1, rate: int = 1) -> Tensor:
    """Convolves float [N, h, w, C] by [k, k, C, D], padded to `ceil(h / stride)` rows."""
    if kernel.shape[0] == 1:
        # Pixels first: TensorFlow 2.20 corrupts memory in the gradient of a 1x1 at stride 2.
        x, stride = x[:, ::stride, ::stride], 1
    return ops.conv(x, kernel, strides=stride, padding="same", dilation_rate=rate)


def convolve_depthwise(x: Tensor, kernel: Tensor, rate: int = 1) -> Tensor:
    """Convolves each channel of float [N, h, w, C] by its own window of [k, k, C]."""
    return ops.depthwise_conv(x, kernel[..., None], padding="same", dilation_rate=rate)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes float [N, h, w, C] bilinearly; the corners are aligned.

    Row i of n reads the position i (h - 1) / (n - 1).
    """
    for axis, after in zip((1, 2), size, strict=True):
        before = x.shape[axis]
        positions = np.arange(after) * (before - 1) / max(after - 1, 1)
        distance = np.abs(positions[:, None] - np.arange(before))
        matrix = np.maximum(1.0 - distance, 0.0).astype("float32")
        x = ops.moveaxis(ops.tensordot(matrix, x, axes=(1, axis)), 0, axis)
    return x


def operation(
    row: Operation,
    x: Tensor,
    convolutions: Sequence[Convolution],
    statistics: Statistics,
    transforms: Mapping[str, Callable[[Tensor], Tensor]],
) -> Tensor:
    """Applies one candidate operation at stride 1, as its row in the table says.

    Args:
        row: Of `search_space.OPERATION_TABLE`.
        x: float [N, h, w, f].
        convolutions: One for each of the row's repeats.
        statistics: Of the normalisations.
        transforms: Name of a registered operation -> what it does before its convolutions.

    Returns:
        float [N, h, w, f].
    """
    if row.name == "none":
        return ops.zeros_like(x)
    if row.pooling == "average":
        return ops.average_pool(x, row.kernel_size, strides=1, padding="same")
    if row.pooling == "max":
        return ops.max_pool(x, row.kernel_size, strides=1, padding="same")
    x = transforms[row.name](x) if row.name in transforms else x
    for convolution in convolutions:
        x, rate = ops.relu(x), row.rate
        if convolution.depthwise is not None:
            x, rate = convolve_depthwise(x, convolution.depthwise, rate), 1
        x = statistics.normalize(convolve(x, convolution.kernel, rate=rate), convolution)
    return x


@dataclasses.dataclass
class Network:
    """The search network with its weights, alpha and beta: stem, trellis and heads.

    Attributes:
        stem: The three convolutions of the stem.
        nodes: (layer, level) -> weights of the node.
        heads: level -> weights of the head.
        statistics: Of all batch normalisations.
        alpha: float32 [B (B + 3) / 2, num_ops], of `relax`; likewise:
        beta: float32 [L, 4, 3].
        num_blocks: B.
        mean, std: A float for each channel of the images, in units of 0..255.
        transforms: See `operation`.
        edge_weights: float32 [B (B + 3) / 2] with `partial_channels` above 1, else None.
        partial_channels: K of `partial_mixed_operation`.
    """

    stem: Sequence[Convolution]
    nodes: Mapping[tuple[int, int], NodeWeights]
    heads: Mapping[int, HeadWeights]
    statistics: Statistics
    alpha: Tensor
    beta: Tensor
    num_blocks: int
    mean: Sequence[float]
    std: Sequence[float]
    transforms: Mapping[str, Callable[[Tensor], Tensor]] = dataclasses.field(default_factory=dict)
    edge_weights: Tensor | None = None
    partial_channels: int = 1

    def logits(self, images: Tensor) -> Tensor:
        """Returns float32 [N, H, W, num_classes] for images [N, H, W, len(mean)] in 0..255.

        The predictions of the levels of the last layer, resized to the images' size, are summed.
        """
        size = tuple(images.shape[1:3])
        last = self.trellis(images)
        return sum(resize(self.predict(level, x), size) for level, x in last.items())

    def trellis(self, images: Tensor) -> dict[int, Tensor]:
        """Returns level -> feature map float [N, h, w, B * F * 2**level] of the last layer."""
        height, width = images.shape[1:3]
        stride_2, stride_4 = self.compute_stem(images)
        prev_prev, prev = {-1: stride_2}, {0: stride_4}
        for layer in range(self.beta.shape[0]):
            current = {}
            for level in range(NUM_LEVELS):
                if (layer, level) in self.nodes:
                    size = (-(-height // stride(level)), -(-width // stride(level)))
                    current[level] = self.node(layer, level, prev, prev_prev, size)
            prev_prev, prev = prev, current
        return prev

    def compute_stem(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the maps at stride 2 and 4: the first `prev_prev` and the first `prev`.

        3x3 at stride 2, BN; ReLU, 3x3, BN (the first map); ReLU, 3x3 at stride 2, BN (the second).
        """
        mean, std = (np.asarray(values, "float32") for values in (self.mean, self.std))
        x, maps = (images - mean) / std, list[Tensor]()
        for convolution, strides in zip(self.stem, STEM_STRIDES, strict=True):
            x = ops.relu(x) if maps else x
            x = self.statistics.normalize(convolve(x, convolution.kernel, strides), convolution)
            maps.append(x)
        return maps[1], maps[2]

    def node(
        self,
        layer: int,
        level: int,
        prev: Mapping[int, Tensor],
        prev_prev: Mapping[int, Tensor],
        size: tuple[int, int],
    ) -> Tensor:
        """Computes a node from the maps of the two layers before it, by level.

        Where H^{l-2} does not exist at the node's level, the nearest level serves; on a tie the
        finer one.
        """
        weights = self.nodes[layer, level]
        predecessors = [other for other in (level - 1, level, level + 1) if other in prev]
        nearest = min(prev_prev, key=lambda other: (abs(other - level), other))
        prevs = [
            self.bring(prev[other], other, level, size, convolution)
            for other, convolution in zip(predecessors, weights.prevs, strict=True)
        ]
        # beta's last axis is the move plus 1: 0 finer, 1 same level, 2 coarser.
        betas = [self.beta[layer, other, level - other + 1] for other in predecessors]

        def mixed(index: int, edge: RelaxedEdge, x: Tensor) -> Tensor:
            candidates = [
                lambda x, row=row: operation(
                    row,
                    x,
                    weights.operations.get((edge.index, row.name, index), ()),
                    self.statistics,
                    self.transforms,
                )
                for row in OPERATION_TABLE
            ]
            alpha = self.alpha[edge.index]
            if self.edge_weights is None:
                return mixed_operation(x, alpha, candidates)
            weight = self.edge_weights[edge.index]
            return partial_mixed_operation(x, alpha, candidates, weight, self.partial_channels)

        def evaluate(index: int, prev: Tensor, prev_prev: Tensor) -> Tensor:
            return cell(prev, prev_prev, self.num_blocks, lambda edge, x: mixed(index, edge, x))

        second = self.bring(prev_prev[nearest], nearest, level, size, weights.prev_prev)
        return relaxed_node(prevs, second, betas, evaluate)

    def bring(
        self, x: Tensor, from_level: int, level: int, size: tuple[int, int], by: Convolution
    ) -> Tensor:
        """Brings a map to another level: from a coarser one bilinearly, then ReLU, 1x1, BN.

        From a finer one the 1x1 has the stride.
        """
        x = resize(x, size) if from_level > level else x
        x = convolve(ops.relu(x), by.kernel, 2 ** max(level - from_level, 0))
        return self.statistics.normalize(x, by)

    def predict(self, level: int, x: Tensor) -> Tensor:
        """Returns the logits of a final level, by an ASPP reduced to three branches.

        ReLU; 1x1 | 3x3 with atrous rate 96 / stride | image pooling and 1x1, each BN and ReLU;
        concatenated; 1x1 to the classes.
        """
        weights, x = self.heads[level], ops.relu(x)
        rate = ASPP_EXTENTS[0] // stride(level)
        branches = [
            ops.relu(self.statistics.normalize(convolve(y, by.kernel, rate=by_rate), by))
            for y, by, by_rate in (
                (x, weights.pointwise, 1),
                (x, weights.atrous, rate),
                (ops.mean(x, axis=(1, 2), keepdims=True), weights.pooling, 1),
            )
        ]
        branches[2] = ops.broadcast_to(branches[2], ops.shape(branches[0]))
        return convolve(ops.concatenate(branches, axis=-1), weights.classes) + weights.bias
