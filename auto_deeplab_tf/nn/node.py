"""A node of the relaxed trellis (paper, eq. 1 and 2) as one pure function, in a fused formulation.

What the plain formulation computes edge by edge and operation by operation runs here as few wide
operations:

- All edges that leave one source state run together, `targets` copies of the state side by side
  (target-major). The node's two inputs are known at once, so their edges run together too.
- The (up to 3) predecessors of the node lie side by side on the channel axis. Operation kernels are
  the node's (`share_operations`) or each predecessor's own; batch statistics are always the
  predecessor's own.
- `prev_prev` is the same for every predecessor, so with shared kernels its edges are computed once:
  a lane of its own beside those of the predecessors.
- One batch normalisation serves all convolutions of a stage. It has no affine part, so normalising
  and weighting by alpha is one multiplication and one addition per channel.
- Pooling is computed once a source; `none` costs nothing.

Channels are always ordered (operation, target, lane, filter); a lane is a predecessor, or
`prev_prev`.

Two settings change what is computed (the fast modes of the search): `partial_channels` sends a part
of the channels through the operations, `mix_predecessors` evaluates one cell for all predecessors.
"""

import dataclasses
import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
from keras import ops

from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.nn import backend
from auto_deeplab_tf.nn.operations import operation_layer_class
from auto_deeplab_tf.nn.resize import resize_bilinear
from auto_deeplab_tf.nn.segments import (
    BatchStatistics,
    SegmentKind,
    kernel_layout,
    project,
    spread,
)
from auto_deeplab_tf.search_space import OPERATION_TABLE, Operation, relaxed_edges


@dataclasses.dataclass(frozen=True)
class StateShape:
    """A feature map that a node reads.

    Attributes:
        log2_stride: level + 2.
        channels: its channels.
    """

    log2_stride: int
    channels: int


class KernelArray(NamedTuple):
    """Kernels of one form, side by side: float [*shape, edges, own lanes, filters].

    Attributes:
        shape: of a kernel without its last axis.
        fan_in: the number of inputs that one output sums.
        own_lanes: lanes with kernels of their own: where predecessors share them 1, of the node's
            inputs 2 (`prev`, `prev_prev`).
        pieces: (name, number of edges) of what the array is cut into by edges. The name is
            "round/operation_stage", or "round/pointwise_stage" with those of all separable
            operations, operation-major; the round is "inputs" or the block that is read.
    """

    shape: tuple[int, ...]
    fan_in: int
    own_lanes: int
    pieces: list[tuple[str, int]]


@dataclasses.dataclass(frozen=True)
class NodeKind(SegmentKind):
    """The relaxed node of one level.

    sH^l = sum over predecessors p of beta_p * Cell(p, sH^{l-2}; alpha), each p first brought to
    stride s.

    Attributes:
        level: 0..3, of the node.
        predecessors: `StateShape` of each H^{l-1} that leads here, finer ones first.
        prev_prev: `StateShape` of H^{l-2}, or of the nearest-sized one.
        filters: F * 2**level, channels of each block.
        num_blocks: B.
        atrous: "separable" or "full".
        share_operations: whether the predecessors share the kernels of the operations.
        operations: the columns of alpha.
        partial_channels: K, a divisor of `filters`. On every edge the first 1/K of the channels go
            through the operations and the others pass as they are; the edges into a block are
            weighted; a block's channels are shuffled, so that all of them take their turn.
            (PC-DARTS, Xu et al., ICLR 2020, arXiv:1907.05737.) 1: all channels, edges unweighted.
        mix_predecessors: sH^l = Cell(sum_p beta_p * p, sH^{l-2}; alpha): one cell a node.
    """

    level: int
    predecessors: tuple[StateShape, ...]
    prev_prev: StateShape
    filters: int
    num_blocks: int
    atrous: str
    share_operations: bool
    operations: tuple[Operation, ...] = dataclasses.field(
        default_factory=lambda: tuple(OPERATION_TABLE)
    )
    partial_channels: int = 1
    mix_predecessors: bool = False

    @functools.cached_property
    def sources(self):
        """The source states in the order of computation with their edges: ((name, edges), ...)."""
        by_source = {}
        for edge in relaxed_edges(self.num_blocks):
            by_source.setdefault(edge.source, []).append(edge)
        blocks = [f"block_{i}" for i in range(self.num_blocks - 1)]
        return tuple((name, tuple(by_source[name])) for name in ("prev", "prev_prev", *blocks))

    @property
    def num_cells(self):
        """The number of cells that the node evaluates side by side."""
        return 1 if self.mix_predecessors else len(self.predecessors)

    @property
    def mixed_filters(self):
        """The channels of a block that go through the operations."""
        return self.filters // self.partial_channels

    def lanes(self, source):
        """The number of cells for which the edges of a source are computed."""
        return 1 if source == "prev_prev" and self.share_operations else self.num_cells

    @property
    def rounds(self):
        """The sources that are computed side by side, in order: the inputs, then block by block."""
        return (("prev", "prev_prev"), *((f"block_{i}",) for i in range(self.num_blocks - 1)))

    def _round_lanes(self, sources):
        return sum(map(self.lanes, sources))

    def _is_separable(self, operation):
        return operation.is_separable(self.atrous)

    @functools.cached_property
    def stages(self):
        """The convolutions that run side by side.

        Stage r holds those with more than r repeats, separable ones first.
        """
        convolutions = sorted(
            (operation for operation in self.operations if operation.repeats),
            key=lambda operation: (
                not self._is_separable(operation),
                -operation.repeats,
                operation.rate,
            ),
        )
        depth = max(operation.repeats for operation in convolutions)
        return tuple(
            tuple(operation for operation in convolutions if operation.repeats > stage)
            for stage in range(depth)
        )

    @functools.cached_property
    def kernel_arrays(self):
        """The operations' kernels of all edges by name, a `KernelArray` for each form.

        So what unpacks them is one call for each form.
        """
        filters, arrays = self.mixed_filters, {}

        def add(sources, form, shape, fan_in, piece):
            own = len(sources) if self.share_operations else self._round_lanes(sources)
            name = f"{'inputs' if len(sources) > 1 else 'blocks'}/{form}"
            arrays.setdefault(name, KernelArray(shape, fan_in, own, [])).pieces.append(piece)

        for sources in self.rounds:
            name, targets = _round_name(sources), len(self._edges(sources))
            for stage, convolutions in enumerate(self.stages):
                separable = [c for c in convolutions if self._is_separable(c)]
                for operation in convolutions:
                    size = operation.kernel_size
                    piece = (f"{name}/{operation.name}_{stage}", targets)
                    if operation in separable:
                        add(sources, f"depthwise_{size}", (size, size), size**2, piece)
                    else:
                        shape = (size, size, filters)
                        add(sources, f"full_{size}", shape, size**2 * filters, piece)
                if separable:
                    piece = (f"{name}/pointwise_{stage}", len(separable) * targets)
                    add(sources, "pointwise", (filters,), filters, piece)
        return arrays

    @functools.cached_property
    def kernels(self):
        """Those of the projections, float [channels, filters]; then `kernel_arrays`."""
        shapes = {
            f"prev_{i}": ((state.channels, self.filters), state.channels)
            for i, state in enumerate(self.predecessors)
        }
        shapes["prev_prev"] = ((self.prev_prev.channels, self.filters), self.prev_prev.channels)
        for name, array in self.kernel_arrays.items():
            edges = sum(count for _, count in array.pieces)
            shape = (*array.shape, edges, array.own_lanes, self.mixed_filters)
            shapes[name] = (shape, array.fan_in)
        return kernel_layout(shapes)

    def unpack(self, kernels):
        """Cuts a flat vector of kernels [kernels.size].

        Returns:
            name -> kernels: of the projections as they are; of the pieces of `kernel_arrays` float
                [*shape, edges, lanes, filters], of full kernels with own lanes.
        """
        unpacked = self.kernels.unpack(kernels)
        for name, array in self.kernel_arrays.items():
            values, edges_axis = unpacked.pop(name), len(array.shape)
            is_full = edges_axis == 3
            if self.share_operations and not is_full:
                lanes_axis = edges_axis + 1
                first, *once = backend.split(values, [1] * array.own_lanes, lanes_axis)
                values = spread(first, lanes_axis, self.num_cells)
                if once:
                    values = ops.concatenate([values, *once], axis=lanes_axis)
            names, counts = zip(*array.pieces, strict=True)
            unpacked |= zip(names, backend.split(values, list(counts), edges_axis), strict=True)
        return unpacked

    @functools.cached_property
    def num_normalized(self):
        channels = (len(self.predecessors) + 1) * self.filters
        for sources in self.rounds:
            edges = len(self._edges(sources)) * self._round_lanes(sources)
            channels += sum(map(len, self.stages)) * edges * self.mixed_filters
        return channels

    def _edges(self, sources):
        """The edges that leave the first source of a round; the others lead to the same blocks."""
        return dict(self.sources)[sources[0]]

    def compute(self, kernels, affine, moving, architecture, inputs, training):
        """See `SegmentKind.compute`.

        architecture: (alpha [num_edges, num_ops], beta [predecessors]), with partial channels also
            the weights of the edges [num_edges].
        inputs: (one H^{l-1} for each predecessor, ..., H^{l-2}).
        outputs: one map [N, h, w, B * filters].
        """
        alpha, beta, *edge_weights = architecture
        kernels = self.unpack(ops.cast(kernels, inputs[0].dtype))
        statistics = BatchStatistics(moving, training)
        images = self._project(inputs, beta, kernels, statistics)
        rows = ops.transpose(alpha)
        if edge_weights:
            rows = ops.concatenate([rows * edge_weights[0], ops.expand_dims(edge_weights[0], 0)])
        terms = [[] for _ in range(self.num_blocks)]
        passed = [[] for _ in range(self.num_blocks)]
        blocks = []
        for sources, weights in zip(self.rounds, self._lane_weights(rows), strict=True):
            if sources != self.rounds[0]:
                images = backend.keep(self._join(terms[len(blocks)], passed[len(blocks)]))
                blocks.append(images)
            if edge_weights:
                images, rest = self._part(sources, images)
                weights, passing = backend.split(weights, [len(self.operations), 1], 0)
                self._deal(sources, self._pass(rest, passing), passed)
            self._deal(sources, self._mix(sources, images, weights, kernels, statistics), terms)
        blocks.append(self._join(terms[-1], passed[-1]))
        # [N, h, w, 1, cells, filters] each, side by side on the axis of targets.
        output = ops.concatenate(blocks, axis=3)
        _, height, width, *_ = output.shape
        if not self.mix_predecessors:
            output = weighted(output, ops.reshape(beta, (-1, 1)))
        if self.num_cells > 1:
            output = ops.sum(output, axis=4)
        output = ops.reshape(output, (-1, height, width, self.num_blocks * self.filters))
        return (output,), statistics.moments()

    def _lane_weights(self, rows):
        """Spreads the weights of the edges over the lanes of each round.

        Args:
            rows: float32 [R, num_edges], for each edge alpha's row, and more.

        Returns:
            For each round float32 [R, targets, lanes].
        """
        edges = [[edge.index for edge in edges] for _, edges in self.sources]
        order = np.eye(rows.shape[1], dtype="float32")[:, list(itertools.chain(*edges))]
        by_source = dict(
            zip(
                [source for source, _ in self.sources],
                backend.split(ops.matmul(rows, order), list(map(len, edges)), axis=1),
                strict=True,
            )
        )
        for sources in self.rounds:
            # [sources, lanes]: 1 where the lane is the source's.
            lanes = np.repeat(
                np.eye(len(sources), dtype="float32"), list(map(self.lanes, sources)), axis=1
            )
            yield ops.matmul(ops.stack([by_source[source] for source in sources], axis=-1), lanes)

    def _deal(self, sources, mixed, terms):
        """Hands each block its part of a round: appends float [N, h, w, 1, cells, filters].

        Args:
            mixed: float [N, h, w, targets, lanes, filters].
            terms: a list for each block.
        """
        if len(sources) > 1:
            own = list(map(self.lanes, sources))
            prev, prev_prev = backend.split(mixed, own, axis=4)
            mixed = prev + spread(prev_prev, 4, own[0] // own[1])
        edges = self._edges(sources)
        for edge, part in zip(edges, backend.split(mixed, [1] * len(edges), axis=3), strict=True):
            terms[edge.block].append(part)

    def _part(self, sources, images):
        """Parts the channels into those that go through the operations and those that pass.

        Args:
            images: float [N, h, w, ..., C], any form of lanes * filters channels.

        Returns:
            float [N, h, w, lanes, mixed filters] and [N, h, w, lanes, other filters].
        """
        _, height, width, *_ = images.shape
        images = ops.reshape(images, (-1, height, width, self._round_lanes(sources), self.filters))
        return backend.split(images, [self.mixed_filters, self.filters - self.mixed_filters], 4)

    def _pass(self, rest, weights):
        """Weights the channels that pass by each edge that leaves their source.

        Args:
            rest: float [N, h, w, lanes, filters].
            weights: float32 [1, targets, lanes].

        Returns:
            float [N, h, w, targets, lanes, filters].
        """
        return weighted(ops.expand_dims(rest, 3), ops.expand_dims(weights, 3))

    def _join(self, terms, passed):
        """Sums the edges into a block: float [N, h, w, 1, cells, filters].

        Channels that passed are joined to the others and shuffled: of K groups the first channels,
        then the second ones, and so on.
        """
        block = backend.sum_all(terms)
        if not passed:
            return block
        block = ops.concatenate([block, backend.sum_all(passed)], axis=5)
        _, height, width, _, cells, _ = block.shape
        groups = ops.reshape(block, (-1, self.partial_channels, self.mixed_filters))
        shuffled = ops.transpose(groups, (0, 2, 1))
        return ops.reshape(shuffled, (-1, height, width, 1, cells, self.filters))

    def _project(self, inputs, beta, kernels, statistics):
        """Brings the inputs to the node's stride and width: ReLU, 1x1, batch normalisation.

        Where predecessors are mixed, by beta, that is the normalisation's gamma.

        Returns:
            float [N, h, w, lanes * filters], `prev` before `prev_prev`.
        """
        log2_stride = self.level + 2
        # Sizes are ceil(H / s): the finest input says them exactly, a coarser one alone could not.
        size = self._size(inputs)
        projected = []
        names = [*(f"prev_{i}" for i in range(len(self.predecessors))), "prev_prev"]
        for name, state, images in zip(
            names, (*self.predecessors, self.prev_prev), inputs, strict=True
        ):
            if state.log2_stride > log2_stride:
                images = resize_bilinear(images, size)
            stride = 2 ** max(log2_stride - state.log2_stride, 0)
            projected.append(project(images, kernels[name], stride))
        joined = backend.keep(ops.concatenate(projected, axis=-1))
        gamma = None
        if self.mix_predecessors:
            weights = ops.concatenate([beta, ops.ones(1, "float32")])
            gamma = ops.reshape(spread(ops.expand_dims(weights, 1), 1, self.filters), (-1,))
        images = statistics.normalize(joined, gamma)
        if self.share_operations and not self.mix_predecessors:
            return images
        *prevs, prev_prev = backend.split(images, [self.filters] * len(projected), axis=-1)
        if self.mix_predecessors:
            prevs = [backend.sum_all(prevs)]
        return ops.concatenate([*prevs, *[prev_prev] * self.lanes("prev_prev")], axis=-1)

    def _size(self, inputs):
        """Returns (h, w) of the node, from an input that is not coarser than it."""
        for state, images in zip((*self.predecessors, self.prev_prev), inputs, strict=True):
            if state.log2_stride <= self.level + 2:
                stride = 2 ** (self.level + 2 - state.log2_stride)
                return tuple(-(-extent // stride) for extent in images.shape[1:3])
        raise UserError("A node has a predecessor or an H^{l-2} at its own stride or a finer one.")

    def _mix(self, sources, images, weights, kernels, statistics):
        """Sums the alpha-weighted operations of all edges that leave the sources (eq. 1).

        Args:
            images: float [N, h, w, ..., C], any form of lanes * mixed filters channels.
            weights: float32 [num_ops, targets, lanes].

        Returns:
            float [N, h, w, targets, lanes, mixed filters].
        """
        _, targets, lanes = weights.shape
        _, height, width, *_ = images.shape
        images = ops.reshape(images, (-1, height, width, lanes * self.mixed_filters))
        # For each operation [1, targets, C].
        weights = ops.reshape(
            spread(ops.expand_dims(weights, 3), 3, self.mixed_filters),
            (-1, targets, images.shape[-1]),
        )
        names = [operation.name for operation in self.operations]
        weights = dict(zip(names, backend.split(weights, [1] * len(names), axis=0), strict=True))
        terms = self._convolution_terms(sources, images, weights, kernels, statistics)
        terms.append(self._free_operations(images, weights))
        return ops.reshape(
            backend.sum_all(terms), (-1, height, width, targets, lanes, self.mixed_filters)
        )

    def _free_operations(self, images, weights):
        """The weighted sum of the operations without parameters: float [N, h, w, targets * C].

        `none` adds nothing.
        """
        _, height, width, _ = images.shape
        terms = [
            weighted(ops.expand_dims(transformed(operation, images), 3), weights[operation.name])
            for operation in self.operations
            if not operation.repeats and operation.name != "none"
        ]
        total = backend.sum_all(terms)
        return ops.reshape(total, (-1, height, width, total.shape[3] * total.shape[4]))

    def _convolution_terms(self, sources, images, weights, kernels, statistics):
        """The weighted convolutions, stage by stage: a list of float [N, h, w, targets * C].

        The last normalisation of an operation has alpha for its gamma.
        """
        targets = len(self._edges(sources))
        wide = targets * images.shape[-1]
        narrow_input = ops.relu(images)
        wide_input = widen(narrow_input, targets)
        stage_inputs, terms = {}, []
        for operation in self.stages[0]:
            own = transformed(operation, images)
            if own is not images:
                stage_inputs[operation.name] = widen(ops.relu(own), targets)
        for stage, convolutions in enumerate(self.stages):
            result = self._convolve(
                sources, stage, convolutions, narrow_input, wide_input, stage_inputs, kernels
            )
            going_on = [c.name for c in convolutions if c.repeats > stage + 1]
            one = np.ones((1, targets, images.shape[-1]), "float32")
            gammas = [one if c.name in going_on else weights[c.name] for c in convolutions]
            gamma = ops.reshape(ops.concatenate(gammas, axis=0), (-1,))
            result = statistics.normalize(result, gamma)
            parts = backend.split(result, [wide] * len(convolutions), axis=-1)
            for operation, part in zip(convolutions, parts, strict=True):
                if operation.name in going_on:
                    stage_inputs[operation.name] = ops.relu(part)
                else:
                    terms.append(part)
        return terms

    def _convolve(
        self, sources, stage, convolutions, narrow_input, wide_input, stage_inputs, kernels
    ):
        """Runs one stage before its normalisation.

        Returns:
            float [N, h, w, convolutions * targets * lanes * filters].
        """
        name = _round_name(sources)
        depthwise = []
        separable = [operation for operation in convolutions if self._is_separable(operation)]
        # In the first stage neighbours of one rate share their input; later each has its own.
        for (rate, own), members in itertools.groupby(
            separable, key=lambda o: (o.rate, o.name if o.name in stage_inputs else "")
        ):
            depthwise_kernels = [
                _joined(kernels[f"{name}/{operation.name}_{stage}"]) for operation in members
            ]
            images = stage_inputs[own] if own else wide_input
            depthwise.append(backend.depthwise_convs(images, depthwise_kernels, rate))
        results = []
        if separable:
            pointwise = kernels[f"{name}/pointwise_{stage}"]
            pointwise = ops.reshape(pointwise, (self.mixed_filters, -1, self.mixed_filters))
            depthwise = ops.concatenate(depthwise, axis=-1) if len(depthwise) > 1 else depthwise[0]
            results.append(backend.grouped_pointwise(backend.keep(depthwise), pointwise))
        for operation in convolutions[len(separable) :]:
            kernel = kernels[f"{name}/{operation.name}_{stage}"]
            images = stage_inputs.get(operation.name, narrow_input)
            lanes = self._round_lanes(sources)
            results.append(self._full_convolution(images, kernel, lanes, operation.rate))
        return backend.keep(ops.concatenate(results, axis=-1) if len(results) > 1 else results[0])

    def _full_convolution(self, images, kernel, lanes, rate):
        """A full atrous convolution of every lane to all targets.

        Args:
            images: float [N, h, w, lanes * filters], or with an input for each target, [N, h, w,
                targets * lanes * filters].
            kernel: float [k, k, filters, targets, own lanes, filters].

        Returns:
            float [N, h, w, targets * lanes * filters].
        """
        size, _, filters, targets, own, _ = kernel.shape
        sharing = 1 if own == lanes else self.num_cells
        _, height, width, channels = images.shape
        parts = backend.split(images, [filters] * (channels // filters), -1)
        results = []
        if len(parts) > lanes:
            for index, part in enumerate(parts):
                target, lane = divmod(index, lanes)
                weights = kernel[:, :, :, target, lane // sharing]
                results.append(backend.conv(part, weights, rate=rate))
            return ops.concatenate(results, axis=-1)
        for lane, part in enumerate(parts):
            weights = ops.reshape(
                kernel[:, :, :, :, lane // sharing], (size, size, filters, targets * filters)
            )
            result = backend.conv(part, weights, rate=rate)
            results.append(ops.reshape(result, (-1, height, width, targets, filters)))
        stacked = ops.stack(results, axis=-2)
        return ops.reshape(stacked, (-1, height, width, targets * lanes * filters))


def _round_name(sources):
    return "inputs" if len(sources) > 1 else sources[0]


def _joined(kernels):
    """Depthwise kernels in a row: float [k, k, edges, lanes, C] -> [k, k, edges * lanes * C]."""
    return ops.reshape(kernels, (*kernels.shape[:2], math.prod(kernels.shape[2:])))


def weighted(images, weights):
    """Multiplies maps by float32 weights that broadcast; in the dtype of the maps.

    The product, and so the sum in the gradient of the weights, is taken in float32.
    """
    return ops.cast(ops.cast(images, "float32") * weights, images.dtype)


def transformed(operation, images):
    """What an operation does at stride 1 before its convolutions, or without any; often nothing."""
    return operation_layer_class(operation.name).transform(operation, images, 1)


def widen(images, targets):
    """Copies of a map side by side: float [N, h, w, C] -> [N, h, w, targets * C]."""
    _, height, width, channels = images.shape
    copies = spread(ops.expand_dims(images, 3), 3, targets)
    return ops.reshape(copies, (-1, height, width, targets * channels))
