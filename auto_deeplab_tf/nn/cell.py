"""A decoded cell: two projections, B blocks of two operations each, concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from auto_deeplab_tf.architecture import Edge
from auto_deeplab_tf.nn.backend import Tensor
from auto_deeplab_tf.nn.conv import ConvBN
from auto_deeplab_tf.nn.layer import Layer, Shape, strided_shape
from auto_deeplab_tf.nn.operations import operation_layer_class
from auto_deeplab_tf.nn.serialization import register


@register
class Cell(Layer):
    """One layer of a decoded network (paper, sec. 3.1; method of the authors' `NASBaseCell`).

    `prev` and, where its channels are not `filters` already, `prev_prev` pass ReLU, 1x1, BN. Each
    block sums two operations, on `prev`, `prev_prev` or earlier blocks. Where the path goes down,
    those on the two cell inputs have stride 2.

    Args:
        filters: Channels of each block, F * 2**level.
        blocks: For each block two edges: `Edge`, or (source, op).
        stride: 2 where the path goes down, else 1.
        atrous: `"full"` or `"separable"`, the form of the atrous operations.
        **kwargs: See `Layer`.

    Call arguments:
        prev: float [N, h, w, C], output of the layer before.
        prev_prev: float [N, h, w, D], output of the layer before that, at the size of `prev`.
        factors: None, or float [num_droppable, N, 1, 1, 1]: what the results of the operations
            other than skip are multiplied by, in the order of `blocks` (`ScheduledDropPath`).

    Output shape: float [N, ceil(h / stride), ceil(w / stride), B * filters].

    Attributes:
        num_droppable: Number of operations other than skip.

    Reference: Liu et al., Auto-DeepLab, CVPR 2019, arXiv:1901.02985.
    """

    def __init__(
        self,
        filters: int,
        blocks: Sequence[Sequence[Any]],
        stride: int = 1,
        atrous: str = "full",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.blocks = tuple(
            tuple(e if isinstance(e, Edge) else Edge(*e) for e in block) for block in blocks
        )
        self.stride = stride
        self.atrous = atrous
        self.project_prev = ConvBN(filters, name="prev", **self.shared)
        self.project_prev_prev: ConvBN | None = None
        self.operations = [
            operation_layer_class(edge.op)(
                edge.op,
                filters,
                stride=stride if edge.source in ("prev", "prev_prev") else 1,
                atrous=atrous,
                name=f"block_{index}_{edge.source}_{edge.op}",
                **self.shared,
            )
            for index, block in enumerate(self.blocks)
            for edge in block
        ]
        self.num_droppable = sum(layer.droppable for layer in self.operations)

    def build(self, prev_shape: Shape, prev_prev_shape: Shape) -> None:
        """Creates the weights."""
        self.project_prev.build(prev_shape)
        # Where its channels fit it stays as it is, as in the authors' code.
        if prev_prev_shape[-1] != self.filters:
            self.project_prev_prev = ConvBN(self.filters, name="prev_prev", **self.shared)
            self.project_prev_prev.build(prev_prev_shape)
        for layer in self.operations:
            layer.build((*prev_shape[:-1], self.filters))

    def call(
        self,
        prev: Tensor,
        prev_prev: Tensor,
        factors: Tensor | None = None,
        training: bool | None = None,
    ) -> Tensor:
        """Computes the blocks in their order; batch statistics where `training`."""
        states = {"prev": self.project_prev(prev, training=training), "prev_prev": prev_prev}
        if self.project_prev_prev is not None:
            states["prev_prev"] = self.project_prev_prev(prev_prev, training=training)
        edges = [edge for block in self.blocks for edge in block]
        dropped = 0
        results: list[Tensor] = []
        for edge, layer in zip(edges, self.operations, strict=True):
            result = layer(states[edge.source], training=training)
            if layer.droppable and factors is not None:
                result = result * ops.cast(factors[dropped], result.dtype)
                dropped += 1
            results.append(result)
            if len(results) % 2 == 0:
                states[f"block_{len(results) // 2 - 1}"] = results[-2] + results[-1]
        return ops.concatenate(
            [states[f"block_{index}"] for index in range(len(self.blocks))], axis=-1
        )

    def compute_output_shape(self, prev_shape: Shape, prev_prev_shape: Shape) -> Shape:
        """Returns [N, ceil(h / stride), ceil(w / stride), B * filters]."""
        return strided_shape(prev_shape, self.stride, len(self.blocks) * self.filters)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments; each edge as (source, op)."""
        blocks = [[(edge.source, edge.op) for edge in block] for block in self.blocks]
        return super().get_config() | {"blocks": blocks}
