"""The relaxed node: the same function as `method.relaxed_node` (eq. 1 and 2), faster.

The plain formulation makes one call for each edge, operation and predecessor. The steps from there:

- All edges that leave one source state run together, `targets` copies of the state side by side
  (target-major). The node's two inputs are known at once, so their edges run together too: the
  source groups are (`prev`, `prev_prev`), then block by block.
- The (up to 3) predecessors of the node lie side by side on the channel axis. Operation kernels are
  the node's (`share_operations`) or each predecessor's own; batch statistics are always the
  predecessor's own.
- `prev_prev` is the same for every predecessor, so with shared kernels its edges are computed once,
  in a branch of their own beside those of the predecessors.
- One batch normalisation serves all convolutions of a stage. It has no affine part, so normalising
  and weighting by alpha is one multiplication and one addition per channel.
- Pooling is computed once a source; `none` costs nothing.

Three words, used throughout:

    branch         the part of the channels that belongs to one predecessor's cell, or to the
                   edges from `prev_prev` where these are computed once for all predecessors
    source group   the source states whose edges are computed at once
    target         a block that reads a source, so one edge of it

Channels are always ordered (operation, target, branch, filter).

`partial_channels`, a fast mode of the search, sends a part of the channels through the operations
(`method.partial_mixed_operation`).
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from auto_deeplab_tf.nn import backend
from auto_deeplab_tf.nn.backend import Tensor
from auto_deeplab_tf.nn.operations import operation_layer_class
from auto_deeplab_tf.nn.resize import resize_bilinear
from auto_deeplab_tf.nn.segments import (
    Arguments,
    BatchStatistics,
    Layout,
    SegmentKind,
    kernel_layout,
    project,
    spread,
)
from auto_deeplab_tf.search_space import OPERATION_TABLE, Operation, RelaxedEdge, relaxed_edges


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
    """Kernels of one form, side by side: float [*shape, edges, own branches, filters].

    Attributes:
        shape: of a kernel without its last axis.
        fan_in: the number of inputs that one output sums.
        own_branches: branches with kernels of their own: where predecessors share them 1, of the
            node's inputs 2 (`prev`, `prev_prev`).
        pieces: (name, number of edges) of what the array is cut into by edges. The name is
            "group/operation_stage", or "group/pointwise_stage" with those of all separable
            operations, operation-major; the group is "inputs" or the block that is read.
    """

    shape: tuple[int, ...]
    fan_in: int
    own_branches: int
    pieces: list[tuple[str, int]]


@dataclasses.dataclass(frozen=True)
class NodeKind(SegmentKind):
    """The same function as `method.relaxed_node`, faster, by the steps above.

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
        partial_channels: K, a divisor of `filters`, of `method.partial_mixed_operation`. 1: all
            channels go through the operations, and the edges into a block are not weighted.
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

    @functools.cached_property
    def sources(self) -> tuple[tuple[str, tuple[RelaxedEdge, ...]], ...]:
        """The source states in the order of computation with their edges: ((name, edges), ...)."""
        by_source: dict[str, list[RelaxedEdge]] = {}
        for edge in relaxed_edges(self.num_blocks):
            by_source.setdefault(edge.source, []).append(edge)
        blocks = [f"block_{i}" for i in range(self.num_blocks - 1)]
        return tuple((name, tuple(by_source[name])) for name in ("prev", "prev_prev", *blocks))

    @property
    def mixed_filters(self) -> int:
        """The channels of a block that go through the operations."""
        return self.filters // self.partial_channels

    def branches(self, source: str) -> int:
        """The number of branches for which the edges of a source are computed."""
        return 1 if source == "prev_prev" and self.share_operations else len(self.predecessors)

    @property
    def source_groups(self) -> tuple[tuple[str, ...], ...]:
        """The source groups in order: the inputs, then block by block."""
        return (("prev", "prev_prev"), *((f"block_{i}",) for i in range(self.num_blocks - 1)))

    def _group_branches(self, sources: Sequence[str]) -> int:
        return sum(map(self.branches, sources))

    def _is_separable(self, operation: Operation) -> bool:
        return operation.is_separable(self.atrous)

    @functools.cached_property
    def stages(self) -> tuple[tuple[Operation, ...], ...]:
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
    def kernel_arrays(self) -> dict[str, KernelArray]:
        """The operations' kernels of all edges by name, a `KernelArray` for each form.

        So what unpacks them is one call for each form.
        """
        filters = self.mixed_filters
        arrays: dict[str, KernelArray] = {}

        def add(
            sources: Sequence[str],
            form: str,
            shape: tuple[int, ...],
            fan_in: int,
            piece: tuple[str, int],
        ) -> None:
            own = len(sources) if self.share_operations else self._group_branches(sources)
            name = f"{'inputs' if len(sources) > 1 else 'blocks'}/{form}"
            arrays.setdefault(name, KernelArray(shape, fan_in, own, [])).pieces.append(piece)

        for sources in self.source_groups:
            name, targets = _group_name(sources), len(self._edges(sources))
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
    def kernels(self) -> Layout:
        """Those of the projections, float [channels, filters]; then `kernel_arrays`."""
        shapes: dict[str, tuple[tuple[int, ...], int]] = {
            f"prev_{i}": ((state.channels, self.filters), state.channels)
            for i, state in enumerate(self.predecessors)
        }
        shapes["prev_prev"] = ((self.prev_prev.channels, self.filters), self.prev_prev.channels)
        for name, array in self.kernel_arrays.items():
            edges = sum(count for _, count in array.pieces)
            shape = (*array.shape, edges, array.own_branches, self.mixed_filters)
            shapes[name] = (shape, array.fan_in)
        return kernel_layout(shapes)

    def unpack(self, kernels: Tensor) -> dict[str, Tensor]:
        """Cuts a flat vector of kernels [kernels.size].

        Returns:
            name -> kernels: of the projections as they are; of the pieces of `kernel_arrays` float
                [*shape, edges, branches, filters], of full kernels with own branches.
        """
        unpacked = self.kernels.unpack(kernels)
        for name, array in self.kernel_arrays.items():
            values, edges_axis = unpacked.pop(name), len(array.shape)
            is_full = edges_axis == 3
            if self.share_operations and not is_full:
                branch_axis = edges_axis + 1
                first, *once = backend.split(values, [1] * array.own_branches, branch_axis)
                values = spread(first, branch_axis, len(self.predecessors))
                if once:
                    values = ops.concatenate([values, *once], axis=branch_axis)
            names, counts = zip(*array.pieces, strict=True)
            unpacked |= zip(names, backend.split(values, list(counts), edges_axis), strict=True)
        return unpacked

    @functools.cached_property
    def normalized(self) -> tuple[tuple[Any, int], ...]:
        """See `SegmentKind.normalized`.

        The names are ("prev", predecessor), ("prev_prev",) and (source, operation, stage, block,
        branch of the source).
        """
        found: list[tuple[Any, int]] = [
            (("prev", index), self.filters) for index in range(len(self.predecessors))
        ]
        found.append((("prev_prev",), self.filters))
        for sources in self.source_groups:
            for stage, convolutions in enumerate(self.stages):
                found += (
                    ((source, operation.name, stage, edge.block, branch), self.mixed_filters)
                    for operation in convolutions
                    for edge in self._edges(sources)
                    for source in sources
                    for branch in range(self.branches(source))
                )
        return tuple(found)

    def _edges(self, sources: Sequence[str]) -> tuple[RelaxedEdge, ...]:
        """The edges that leave the first source of a group; the others lead to the same blocks."""
        return dict(self.sources)[sources[0]]

    def compute(self, arguments: Arguments, training: bool) -> tuple[tuple[Tensor, ...], Tensor]:
        """See `SegmentKind.compute`.

        architecture: (alpha [num_edges, num_ops], beta [predecessors]), with partial channels also
            the weights of the edges [num_edges].
        inputs: (one H^{l-1} for each predecessor, ..., H^{l-2}).
        outputs: one map [N, h, w, B * filters].
        """
        kernels, _, moving, architecture, inputs = arguments
        alpha, beta, *edge_weights = architecture
        kernels = self.unpack(ops.cast(kernels, inputs[0].dtype))
        statistics = BatchStatistics(moving, training)
        images = self._project(inputs, kernels, statistics)
        rows = ops.transpose(alpha)
        if edge_weights:
            rows = ops.concatenate([rows * edge_weights[0], ops.expand_dims(edge_weights[0], 0)])
        terms: list[list[Tensor]] = [[] for _ in range(self.num_blocks)]
        passed: list[list[Tensor]] = [[] for _ in range(self.num_blocks)]
        blocks: list[Tensor] = []
        for sources, weights in zip(self.source_groups, self._branch_weights(rows), strict=True):
            if sources != self.source_groups[0]:
                images = backend.keep(self._join(terms[len(blocks)], passed[len(blocks)]))
                blocks.append(images)
            if edge_weights:
                images, rest = self._part(sources, images)
                weights, passing = backend.split(weights, [len(self.operations), 1], 0)
                self._distribute(sources, self._pass(rest, passing), passed)
            mixed = self._mix(sources, images, weights, kernels, statistics)
            self._distribute(sources, mixed, terms)
        blocks.append(self._join(terms[-1], passed[-1]))
        # [N, h, w, 1, predecessors, filters] each, side by side on the axis of targets.
        output = ops.concatenate(blocks, axis=3)
        _, height, width, *_ = output.shape
        output = weighted(output, ops.reshape(beta, (-1, 1)))
        if len(self.predecessors) > 1:
            output = ops.sum(output, axis=4)
        output = ops.reshape(output, (-1, height, width, self.num_blocks * self.filters))
        return (output,), statistics.moments()

    def _branch_weights(self, rows: Tensor) -> Iterator[Tensor]:
        """Spreads the weights of the edges over the branches of each source group.

        Args:
            rows: float32 [R, num_edges], for each edge alpha's row, and more.

        Yields:
            For each source group float32 [R, targets, branches].
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
        for sources in self.source_groups:
            # [sources, branches]: 1 where the branch is the source's.
            branches = np.repeat(
                np.eye(len(sources), dtype="float32"), list(map(self.branches, sources)), axis=1
            )
            weights = ops.stack([by_source[source] for source in sources], axis=-1)
            yield ops.matmul(weights, branches)

    def _distribute(
        self, sources: Sequence[str], mixed: Tensor, terms: Sequence[list[Tensor]]
    ) -> None:
        """Appends to each block's terms what comes from a source group.

        That is float [N, h, w, 1, predecessors, filters].

        Args:
            sources: The source group.
            mixed: float [N, h, w, targets, branches, filters].
            terms: A list for each block.
        """
        if len(sources) > 1:
            own = list(map(self.branches, sources))
            prev, prev_prev = backend.split(mixed, own, axis=4)
            mixed = prev + spread(prev_prev, 4, own[0] // own[1])
        edges = self._edges(sources)
        for edge, part in zip(edges, backend.split(mixed, [1] * len(edges), axis=3), strict=True):
            terms[edge.block].append(part)

    def _part(self, sources: Sequence[str], images: Tensor) -> list[Tensor]:
        """Splits the channels into those that go through the operations and those that pass.

        Args:
            sources: The source group.
            images: float [N, h, w, ..., C], any form of branches * filters channels.

        Returns:
            float [N, h, w, branches, mixed filters] and [N, h, w, branches, other filters].
        """
        _, height, width, *_ = images.shape
        branches = self._group_branches(sources)
        images = ops.reshape(images, (-1, height, width, branches, self.filters))
        sizes = [self.mixed_filters, self.filters - self.mixed_filters]
        return list(backend.split(images, sizes, 4))

    def _pass(self, rest: Tensor, weights: Tensor) -> Tensor:
        """Weights the channels that pass by each edge that leaves their source.

        Args:
            rest: float [N, h, w, branches, filters].
            weights: float32 [1, targets, branches].

        Returns:
            float [N, h, w, targets, branches, filters].
        """
        return weighted(ops.expand_dims(rest, 3), ops.expand_dims(weights, 3))

    def _join(self, terms: list[Tensor], passed: list[Tensor]) -> Tensor:
        """Sums the edges into a block: float [N, h, w, 1, predecessors, filters].

        Channels that passed are joined to the others and shuffled: of K groups the first channels,
        then the second ones, and so on.
        """
        block = backend.sum_all(terms)
        if not passed:
            return block
        block = ops.concatenate([block, backend.sum_all(passed)], axis=5)
        _, height, width, _, branches, _ = block.shape
        groups = ops.reshape(block, (-1, self.partial_channels, self.mixed_filters))
        shuffled = ops.transpose(groups, (0, 2, 1))
        return ops.reshape(shuffled, (-1, height, width, 1, branches, self.filters))

    def _project(
        self, inputs: Sequence[Tensor], kernels: dict[str, Tensor], statistics: BatchStatistics
    ) -> Tensor:
        """Brings the inputs to the node's stride and width: ReLU, 1x1, batch normalisation.

        Returns:
            float [N, h, w, branches * filters], `prev` before `prev_prev`.
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
        images = statistics.normalize(joined)
        if self.share_operations:
            return images
        *prevs, prev_prev = backend.split(images, [self.filters] * len(projected), axis=-1)
        return ops.concatenate([*prevs, *[prev_prev] * len(prevs)], axis=-1)

    def _size(self, inputs: Sequence[Tensor]) -> tuple[int, ...]:
        """Returns (h, w) of the node, from an input that is not coarser than it."""
        for state, images in zip((*self.predecessors, self.prev_prev), inputs, strict=True):
            if state.log2_stride <= self.level + 2:
                stride = 2 ** (self.level + 2 - state.log2_stride)
                return tuple(-(-extent // stride) for extent in images.shape[1:3])
        raise ValueError("A node has a predecessor or an H^{l-2} at its own stride or a finer one.")

    def _mix(
        self,
        sources: Sequence[str],
        images: Tensor,
        weights: Tensor,
        kernels: dict[str, Tensor],
        statistics: BatchStatistics,
    ) -> Tensor:
        """Sums the alpha-weighted operations of all edges that leave the sources (eq. 1).

        Args:
            sources: The source group.
            images: float [N, h, w, ..., C], any form of branches * mixed filters channels.
            weights: float32 [num_ops, targets, branches].
            kernels: Of `unpack`.
            statistics: Of the node.

        Returns:
            float [N, h, w, targets, branches, mixed filters].
        """
        _, targets, branches = weights.shape
        _, height, width, *_ = images.shape
        images = ops.reshape(images, (-1, height, width, branches * self.mixed_filters))
        # For each operation [1, targets, C].
        weights = ops.reshape(
            spread(ops.expand_dims(weights, 3), 3, self.mixed_filters),
            (-1, targets, images.shape[-1]),
        )
        names = [operation.name for operation in self.operations]
        rows = backend.split(weights, [1] * len(names), axis=0)
        by_name = dict(zip(names, rows, strict=True))
        terms = self._convolution_terms(sources, images, by_name, kernels, statistics)
        terms.append(self._free_operations(images, by_name))
        return ops.reshape(
            backend.sum_all(terms), (-1, height, width, targets, branches, self.mixed_filters)
        )

    def _free_operations(self, images: Tensor, weights: dict[str, Tensor]) -> Tensor:
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

    def _convolution_terms(
        self,
        sources: Sequence[str],
        images: Tensor,
        weights: dict[str, Tensor],
        kernels: dict[str, Tensor],
        statistics: BatchStatistics,
    ) -> list[Tensor]:
        """The weighted convolutions, stage by stage: a list of float [N, h, w, targets * C].

        The last normalisation of an operation has alpha for its gamma.
        """
        targets = len(self._edges(sources))
        wide = targets * images.shape[-1]
        narrow_input = ops.relu(images)
        wide_input = widen(narrow_input, targets)
        stage_inputs: dict[str, Tensor] = {}
        terms: list[Tensor] = []
        for operation in self.stages[0]:
            own = transformed(operation, images)
            if own is not images:
                stage_inputs[operation.name] = widen(ops.relu(own), targets)
        for stage, convolutions in enumerate(self.stages):
            result = self._convolve(
                sources, stage, convolutions, narrow_input, wide_input, stage_inputs, kernels
            )
            unfinished = [c.name for c in convolutions if c.repeats > stage + 1]
            one = np.ones((1, targets, images.shape[-1]), "float32")
            gammas = [one if c.name in unfinished else weights[c.name] for c in convolutions]
            gamma = ops.reshape(ops.concatenate(gammas, axis=0), (-1,))
            result = statistics.normalize(result, gamma)
            parts = backend.split(result, [wide] * len(convolutions), axis=-1)
            for operation, part in zip(convolutions, parts, strict=True):
                if operation.name in unfinished:
                    stage_inputs[operation.name] = ops.relu(part)
                else:
                    terms.append(part)
        return terms

    def _convolve(
        self,
        sources: Sequence[str],
        stage: int,
        convolutions: Sequence[Operation],
        narrow_input: Tensor,
        wide_input: Tensor,
        stage_inputs: dict[str, Tensor],
        kernels: dict[str, Tensor],
    ) -> Tensor:
        """Runs one stage before its normalisation.

        Returns:
            float [N, h, w, convolutions * targets * branches * filters].
        """
        name = _group_name(sources)
        depthwise: list[Tensor] = []
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
            wide = ops.concatenate(depthwise, axis=-1) if len(depthwise) > 1 else depthwise[0]
            results.append(backend.grouped_pointwise(backend.keep(wide), pointwise))
        for operation in convolutions[len(separable) :]:
            kernel = kernels[f"{name}/{operation.name}_{stage}"]
            images = stage_inputs.get(operation.name, narrow_input)
            branches = self._group_branches(sources)
            results.append(self._full_convolution(images, kernel, branches, operation.rate))
        return backend.keep(ops.concatenate(results, axis=-1) if len(results) > 1 else results[0])

    def _full_convolution(self, images: Tensor, kernel: Tensor, branches: int, rate: int) -> Tensor:
        """A full atrous convolution of every branch to all targets.

        Args:
            images: float [N, h, w, branches * filters], or with an input for each target, [N, h, w,
                targets * branches * filters].
            kernel: float [k, k, filters, targets, own branches, filters].
            branches: Of the source group.
            rate: The atrous rate.

        Returns:
            float [N, h, w, targets * branches * filters].
        """
        size, _, filters, targets, own, _ = kernel.shape
        sharing = 1 if own == branches else len(self.predecessors)
        _, height, width, channels = images.shape
        parts = backend.split(images, [filters] * (channels // filters), -1)
        results = []
        if len(parts) > branches:
            for index, part in enumerate(parts):
                target, branch = divmod(index, branches)
                weights = kernel[:, :, :, target, branch // sharing]
                results.append(backend.conv(part, weights, rate=rate))
            return ops.concatenate(results, axis=-1)
        for branch, part in enumerate(parts):
            weights = ops.reshape(
                kernel[:, :, :, :, branch // sharing], (size, size, filters, targets * filters)
            )
            result = backend.conv(part, weights, rate=rate)
            results.append(ops.reshape(result, (-1, height, width, targets, filters)))
        stacked = ops.stack(results, axis=-2)
        return ops.reshape(stacked, (-1, height, width, targets * branches * filters))


def _group_name(sources: Sequence[str]) -> str:
    return "inputs" if len(sources) > 1 else sources[0]


def _joined(kernels: Tensor) -> Tensor:
    """Flattens depthwise kernels: [k, k, edges, branches, C] -> [k, k, edges * branches * C]."""
    return ops.reshape(kernels, (*kernels.shape[:2], math.prod(kernels.shape[2:])))


def weighted(images: Tensor, weights: Tensor) -> Tensor:
    """Multiplies maps by float32 weights that broadcast; in the dtype of the maps.

    The product, and so the sum in the gradient of the weights, is taken in float32.
    """
    return ops.cast(ops.cast(images, "float32") * weights, images.dtype)


def transformed(operation: Operation, images: Tensor) -> Tensor:
    """What an operation does at stride 1 before its convolutions, or without any; often nothing."""
    return operation_layer_class(operation.name).transform(operation, images, 1)


def widen(images: Tensor, targets: int) -> Tensor:
    """Copies of a map side by side: float [N, h, w, C] -> [N, h, w, targets * C]."""
    _, height, width, channels = images.shape
    copies = spread(ops.expand_dims(images, 3), 3, targets)
    return ops.reshape(copies, (-1, height, width, targets * channels))
