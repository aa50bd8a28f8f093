"""A node of the relaxed trellis (paper, eq. 1 and 2) as one pure function, in a fused formulation.

What the plain formulation computes edge by edge and operation by operation runs here as few wide
operations:

- All edges that leave one source state run together, `targets` copies of the state side by side
  (target-major).
- The (up to 3) predecessors of the node lie side by side on the channel axis. Operation kernels are
  the node's (`share_operations`) or each predecessor's own; batch statistics are always the
  predecessor's own.
- `prev_prev` is the same for every predecessor, so with shared kernels its edges are computed once.
- One batch normalisation serves all convolutions of a stage. It has no affine part, so normalising
  and weighting by alpha is one multiplication and one addition per channel.
- Pooling is computed once a source; `none` costs nothing.

Channels are always ordered (operation, target, predecessor, filter).

Two settings change what is computed (the fast modes of the search): `partial_channels` sends a part
of the channels through the operations, `mix_predecessors` evaluates one cell for all predecessors.
"""

import dataclasses
import functools
import itertools

import numpy as np
from keras import ops

from auto_deeplab_tf.architecture import OPERATION_TABLE, Operation, relaxed_edges
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


@dataclasses.dataclass(frozen=True)
class StateShape:
    """A feature map that a node reads.

    Attributes:
        log2_stride: level + 2.
        channels: its channels.
    """

    log2_stride: int
    channels: int


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
    def kernels(self):
        filters = self.mixed_filters
        shapes = {
            f"prev_{i}": ((state.channels, self.filters), state.channels)
            for i, state in enumerate(self.predecessors)
        }
        shapes["prev_prev"] = ((self.prev_prev.channels, self.filters), self.prev_prev.channels)
        for source, edges in self.sources:
            lanes = 1 if self.share_operations else self.lanes(source)
            for stage, convolutions in enumerate(self.stages):
                separable = [c for c in convolutions if self._is_separable(c)]
                for operation in convolutions:
                    size = operation.kernel_size
                    window = (size, size)
                    name = f"{source}/{operation.name}_{stage}"
                    if operation in separable:
                        shapes[name] = ((*window, len(edges), lanes, filters), size**2)
                    else:
                        shape = (*window, filters, len(edges), lanes, filters)
                        shapes[name] = (shape, size**2 * filters)
                if separable:
                    shapes[f"{source}/pointwise_{stage}"] = (
                        (filters, len(separable), len(edges), lanes, filters),
                        filters,
                    )
        return kernel_layout(shapes)

    @functools.cached_property
    def num_normalized(self):
        channels = (len(self.predecessors) + 1) * self.filters
        for source, edges in self.sources:
            lanes = self.lanes(source)
            channels += sum(map(len, self.stages)) * len(edges) * lanes * self.mixed_filters
        return channels

    def compute(self, kernels, affine, moving, architecture, inputs, training):
        """See `SegmentKind.compute`.

        architecture: (alpha [num_edges, num_ops], beta [predecessors]), with partial channels also
            the weights of the edges [num_edges].
        inputs: (one H^{l-1} for each predecessor, ..., H^{l-2}).
        outputs: one map [N, h, w, B * filters].
        """
        alpha, beta, *edge_weights = architecture
        kernels = self.kernels.unpack(ops.cast(kernels, inputs[0].dtype))
        statistics = BatchStatistics(moving, training)
        states = self._project(inputs, beta, kernels, statistics)

        rows = alpha
        if edge_weights:
            weights = ops.expand_dims(edge_weights[0], 1)
            rows = ops.concatenate([alpha * weights, weights], axis=1)
        order = [edge.index for _, edges in self.sources for edge in edges]
        counts = [len(edges) for _, edges in self.sources]
        rows = backend.split(
            ops.matmul(np.eye(len(order), dtype="float32")[order], rows), counts, axis=0
        )
        terms = [[] for _ in range(self.num_blocks)]
        passed = [[] for _ in range(self.num_blocks)]
        for (source, edges), source_rows in zip(self.sources, rows, strict=True):
            if source.startswith("block_"):
                block = int(source.removeprefix("block_"))
                states[source] = backend.keep(self._join(terms[block], passed[block]))
            images, alpha_rows = states[source], source_rows
            if edge_weights:
                images, rest = self._part(source, images)
                alpha_rows, weights = backend.split(source_rows, [len(self.operations), 1], 1)
                for edge, part in zip(edges, self._pass(source, rest, weights), strict=True):
                    passed[edge.block].append(part)
            mixed = self._mix(source, images, alpha_rows, kernels, statistics)
            parts = backend.split(mixed, [1] * len(edges), axis=3)
            for edge, part in zip(edges, parts, strict=True):
                terms[edge.block].append(part)

        blocks = [states[source] for source, _ in self.sources if source.startswith("block_")]
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

    def _part(self, source, images):
        """Parts the channels into those that go through the operations and those that pass.

        Args:
            images: float [N, h, w, ..., C], any form of lanes * filters channels.

        Returns:
            float [N, h, w, lanes, mixed filters] and [N, h, w, lanes, other filters].
        """
        _, height, width, *_ = images.shape
        images = ops.reshape(images, (-1, height, width, self.lanes(source), self.filters))
        return backend.split(images, [self.mixed_filters, self.filters - self.mixed_filters], 4)

    def _pass(self, source, rest, weights):
        """Weights the channels that pass by each edge that leaves their source.

        Args:
            rest: float [N, h, w, lanes, filters].
            weights: float32 [targets, 1].

        Returns:
            For each target float [N, h, w, 1, cells, filters].
        """
        targets = weights.shape[0]
        passed = weighted(ops.expand_dims(rest, 3), ops.reshape(weights, (targets, 1, 1)))
        passed = spread(passed, 4, self.num_cells // self.lanes(source))
        return backend.split(passed, [1] * targets, axis=3)

    def _join(self, terms, passed):
        """Sums the edges into a block: float [N, h, w, 1, cells, filters].

        Channels that passed are joined to the others and shuffled: of K groups the first channels,
        then the second ones, and so on.
        """
        block = sum_all(terms)
        if not passed:
            return block
        block = ops.concatenate([block, sum_all(passed)], axis=5)
        _, height, width, _, cells, _ = block.shape
        groups = ops.reshape(block, (-1, self.partial_channels, self.mixed_filters))
        shuffled = ops.transpose(groups, (0, 2, 1))
        return ops.reshape(shuffled, (-1, height, width, 1, cells, self.filters))

    def _project(self, inputs, beta, kernels, statistics):
        """Brings the inputs to the node's stride and width: ReLU, 1x1, batch normalisation.

        Where predecessors are mixed, by beta, that is the normalisation's gamma.
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
        *prevs, prev_prev = projected
        prev = ops.concatenate(prevs, axis=-1) if len(prevs) > 1 else prevs[0]
        prev, prev_prev = backend.keep(prev), backend.keep(prev_prev)
        gamma = None
        if self.mix_predecessors:
            gamma = ops.reshape(spread(ops.expand_dims(beta, 1), 1, self.filters), (-1,))
        prev, prev_prev = statistics.normalize(prev, gamma), statistics.normalize(prev_prev)
        if self.mix_predecessors:
            prev = sum_all(backend.split(prev, [self.filters] * len(prevs), axis=-1))
        if not self.share_operations:
            prev_prev = ops.tile(prev_prev, (1, 1, 1, self.num_cells))
        return {"prev": prev, "prev_prev": prev_prev}

    def _size(self, inputs):
        """Returns (h, w) of the node, from an input that is not coarser than it."""
        for state, images in zip((*self.predecessors, self.prev_prev), inputs, strict=True):
            if state.log2_stride <= self.level + 2:
                stride = 2 ** (self.level + 2 - state.log2_stride)
                return tuple(-(-extent // stride) for extent in images.shape[1:3])
        raise ValueError("A node has a predecessor or an H^{l-2} at its own stride or a finer one.")

    def _mix(self, source, images, alpha_rows, kernels, statistics):
        """Sums the alpha-weighted operations of all edges that leave one source (eq. 1).

        Args:
            images: float [N, h, w, ..., C], any form of lanes * mixed filters channels.
            alpha_rows: float32 [targets, num_ops].

        Returns:
            float [N, h, w, targets, cells, mixed filters].
        """
        targets, lanes, filters = alpha_rows.shape[0], self.lanes(source), self.mixed_filters
        _, height, width, *_ = images.shape
        images = ops.reshape(images, (-1, height, width, lanes * filters))
        names = [operation.name for operation in self.operations]
        columns = dict(zip(names, backend.split(alpha_rows, [1] * len(names), axis=1), strict=True))
        terms = self._convolution_terms(source, images, columns, kernels, statistics)
        terms.append(self._free_operations(images, columns))
        mixed = ops.reshape(sum_all(terms), (-1, height, width, targets, lanes, filters))
        return spread(mixed, 4, self.num_cells // lanes)

    def _free_operations(self, images, columns):
        """The weighted sum of the operations without parameters: float [N, h, w, targets * C].

        `none` adds nothing.
        """
        _, height, width, channels = images.shape
        terms = []
        for operation in self.operations:
            if operation.repeats or operation.name == "none":
                continue
            result = ops.expand_dims(transformed(operation, images), 3)
            terms.append(weighted(result, columns[operation.name]))
        return ops.reshape(sum_all(terms), (-1, height, width, terms[0].shape[3] * channels))

    def _convolution_terms(self, source, images, columns, kernels, statistics):
        """The weighted convolutions, stage by stage: a list of float [N, h, w, targets * C].

        The last normalisation of an operation has alpha for its gamma.
        """
        channels = images.shape[-1]
        targets = columns["skip"].shape[0]
        wide = targets * channels
        narrow_input = ops.relu(images)
        wide_input = widen(narrow_input, targets)
        stage_inputs, terms = {}, []
        for operation in self.stages[0]:
            own = transformed(operation, images)
            if own is not images:
                stage_inputs[operation.name] = widen(ops.relu(own), targets)
        for stage, convolutions in enumerate(self.stages):
            result = self._convolve(
                source, stage, convolutions, narrow_input, wide_input, stage_inputs, kernels
            )
            going_on = [c.name for c in convolutions if c.repeats > stage + 1]
            gammas = [
                ops.ones((targets, 1), "float32") if c.name in going_on else columns[c.name]
                for c in convolutions
            ]
            gamma = spread(ops.stack(gammas), 2, channels)
            result = statistics.normalize(result, ops.reshape(gamma, (-1,)))
            parts = backend.split(result, [wide] * len(convolutions), axis=-1)
            for operation, part in zip(convolutions, parts, strict=True):
                if operation.name in going_on:
                    stage_inputs[operation.name] = ops.relu(part)
                else:
                    terms.append(part)
        return terms

    def _convolve(
        self, source, stage, convolutions, narrow_input, wide_input, stage_inputs, kernels
    ):
        """Runs one stage before its normalisation.

        Returns:
            float [N, h, w, convolutions * targets * lanes * filters].
        """
        lanes = self.lanes(source)
        depthwise = []
        separable = [operation for operation in convolutions if self._is_separable(operation)]
        # In the first stage neighbours of one rate share their input; later each has its own.
        for (rate, name), members in itertools.groupby(
            separable, key=lambda o: (o.rate, o.name if o.name in stage_inputs else "")
        ):
            depthwise_kernels = [
                self._depthwise_kernel(kernels[f"{source}/{operation.name}_{stage}"], lanes)
                for operation in members
            ]
            images = stage_inputs[name] if name else wide_input
            depthwise.append(backend.depthwise_convs(images, depthwise_kernels, rate))
        results = []
        if separable:
            pointwise = kernels[f"{source}/pointwise_{stage}"]
            filters, count, targets, _, _ = pointwise.shape
            pointwise = spread(pointwise, 3, lanes // pointwise.shape[3])
            pointwise = ops.reshape(pointwise, (filters, count * targets * lanes, filters))
            depthwise = ops.concatenate(depthwise, axis=-1) if len(depthwise) > 1 else depthwise[0]
            results.append(backend.grouped_pointwise(backend.keep(depthwise), pointwise))
        for operation in convolutions[len(separable) :]:
            kernel = kernels[f"{source}/{operation.name}_{stage}"]
            images = stage_inputs.get(operation.name, narrow_input)
            results.append(self._full_convolution(images, kernel, lanes, operation.rate))
        return backend.keep(ops.concatenate(results, axis=-1) if len(results) > 1 else results[0])

    def _depthwise_kernel(self, kernel, lanes):
        """[k, k, targets, 1 or lanes, filters] -> [k, k, targets * lanes * filters]."""
        size, _, targets, own, filters = kernel.shape
        kernel = spread(kernel, 3, lanes // own)
        return ops.reshape(kernel, (size, size, targets * lanes * filters))

    def _full_convolution(self, images, kernel, lanes, rate):
        """A full atrous convolution of every lane to all targets.

        Args:
            images: float [N, h, w, lanes * filters], or with an input for each target, [N, h, w,
                targets * lanes * filters].
            kernel: float [k, k, filters, targets, 1 or lanes, filters].

        Returns:
            float [N, h, w, targets * lanes * filters].
        """
        size, _, filters, targets, own, _ = kernel.shape
        _, height, width, channels = images.shape
        parts = backend.split(images, [filters] * (channels // filters), -1)
        results = []
        if len(parts) > lanes:
            for index, part in enumerate(parts):
                target, lane = divmod(index, lanes)
                weights = kernel[:, :, :, target, lane if own > 1 else 0]
                results.append(ops.conv(part, weights, padding="same", dilation_rate=rate))
            return ops.concatenate(results, axis=-1)
        for lane, part in enumerate(parts):
            weights = ops.reshape(
                kernel[:, :, :, :, lane if own > 1 else 0], (size, size, filters, targets * filters)
            )
            result = ops.conv(part, weights, padding="same", dilation_rate=rate)
            results.append(ops.reshape(result, (-1, height, width, targets, filters)))
        stacked = ops.stack(results, axis=-2)
        return ops.reshape(stacked, (-1, height, width, targets * lanes * filters))


def sum_all(terms):
    """Sums a list of tensors of one shape."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


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
