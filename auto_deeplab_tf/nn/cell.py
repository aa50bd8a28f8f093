"""A decoded cell: two projections, B blocks of two operations each, concatenation."""

import keras
from keras import ops

from auto_deeplab_tf.architecture import Edge
from auto_deeplab_tf.nn.operations import (
    BATCH_NORM_DECAY,
    ConvBN,
    operation_layer_class,
    register,
    strided_shape,
)


@register
class Cell(keras.layers.Layer):
    """One layer of a decoded network (paper, sec. 3.1; method of the authors' `NASBaseCell`).

    `prev` and, where its channels are not `filters` already, `prev_prev` pass ReLU, 1x1, BN. Each
    block sums two operations, on `prev`, `prev_prev` or earlier blocks. Where the path goes down,
    those on the two cell inputs have stride 2.

    Args:
        filters: Channels of each block, F * 2**level.
        blocks: For each block two edges: `Edge`, or (source, op).
        stride: 2 where the path goes down, else 1.
        atrous: `"full"` or `"separable"`, the form of the atrous operations.
        batch_norm_decay: Decay of the moving statistics.
        synchronized: Whether batch statistics are taken over all replicas.

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
        filters,
        blocks,
        stride=1,
        atrous="full",
        batch_norm_decay=BATCH_NORM_DECAY,
        synchronized=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.blocks = tuple(
            tuple(e if isinstance(e, Edge) else Edge(*e) for e in block) for block in blocks
        )
        self.stride = stride
        self.atrous = atrous
        self.batch_norm_decay = batch_norm_decay
        self.synchronized = synchronized
        self._norm = {
            "batch_norm_decay": batch_norm_decay,
            "synchronized": synchronized,
            "dtype": self.dtype_policy,
        }
        self.project_prev = ConvBN(filters, name="prev", **self._norm)
        self.project_prev_prev = None
        self.operations = []
        for index, block in enumerate(self.blocks):
            for edge in block:
                layer_class = operation_layer_class(edge.op)
                self.operations.append(
                    layer_class(
                        edge.op,
                        filters,
                        stride=stride if edge.source in ("prev", "prev_prev") else 1,
                        atrous=atrous,
                        name=f"block_{index}_{edge.source}_{edge.op}",
                        **self._norm,
                    )
                )
        self.num_droppable = sum(layer.droppable for layer in self.operations)

    def build(self, prev_shape, prev_prev_shape):
        self.project_prev.build(prev_shape)
        # Where its channels fit it stays as it is, as in the authors' code.
        if prev_prev_shape[-1] != self.filters:
            self.project_prev_prev = ConvBN(self.filters, name="prev_prev", **self._norm)
            self.project_prev_prev.build(prev_prev_shape)
        for layer in self.operations:
            layer.build((*prev_shape[:-1], self.filters))

    def call(self, prev, prev_prev, factors=None, training=None):
        states = {"prev": self.project_prev(prev, training=training), "prev_prev": prev_prev}
        if self.project_prev_prev is not None:
            states["prev_prev"] = self.project_prev_prev(prev_prev, training=training)
        edges = [edge for block in self.blocks for edge in block]
        dropped = 0
        results = []
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

    def compute_output_shape(self, prev_shape, prev_prev_shape):
        return strided_shape(prev_shape, self.stride, len(self.blocks) * self.filters)

    def get_config(self):
        return super().get_config() | {
            "filters": self.filters,
            "blocks": [[(edge.source, edge.op) for edge in block] for block in self.blocks],
            "stride": self.stride,
            "atrous": self.atrous,
            "batch_norm_decay": self.batch_norm_decay,
            "synchronized": self.synchronized,
        }
