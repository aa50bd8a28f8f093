"""The dense prediction cell: an atrous pyramid found by search, in place of the ASPP."""

from __future__ import annotations

from typing import Any

from keras import ops

from auto_deeplab_tf.nn.backend import Tensor
from auto_deeplab_tf.nn.conv import ConvBN
from auto_deeplab_tf.nn.layer import Layer, Shape
from auto_deeplab_tf.nn.serialization import register

# The published cell for Cityscapes, rates at stride 16 (down, across). A branch reads the features,
# or an earlier branch by its number.
BRANCHES: tuple[tuple[int | None, tuple[int, int]], ...] = (
    (None, (1, 6)),
    (0, (18, 15)),
    (1, (6, 3)),
    (0, (1, 1)),
    (0, (6, 21)),
)


@register
class DensePredictionCell(Layer):
    """Five separable 3x3 atrous convolutions in a tree, concatenated; then 1x1.

    BN and ReLU follow each depthwise and each pointwise convolution, and the last 1x1. The rates
    of `BRANCHES` hold at stride 16; at stride 8 all are doubled, as in the authors' code.

    Args:
        stride: Stride of the input, 8 or 16.
        filters: Channels of each branch and of the output.
        **kwargs: See `Layer`.

    Input shape: float [N, h, w, C].
    Output shape: float [N, h, w, filters].

    Reference: Chen et al., Searching for Efficient Multi-Scale Architectures for Dense Image
        Prediction, NeurIPS 2018, arXiv:1809.04184, fig. 3.
    """

    def __init__(self, stride: int, filters: int = 256, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stride = stride
        self.filters = filters
        shared = self.shared | {"relu": "after"}
        self.branches = [
            ConvBN(
                filters,
                3,
                rate=(down * 16 // stride, across * 16 // stride),
                separable=True,
                depthwise_norm=True,
                name=f"branch_{index}",
                **shared,
            )
            for index, (_, (down, across)) in enumerate(BRANCHES)
        ]
        self.joined = ConvBN(filters, name="joined", **shared)

    def build(self, input_shape: Shape) -> None:
        """Creates the weights."""
        for branch, (source, _) in zip(self.branches, BRANCHES, strict=True):
            branch.build(input_shape if source is None else (*input_shape[:-1], self.filters))
        self.joined.build((*input_shape[:-1], len(BRANCHES) * self.filters))

    def call(self, features: Tensor, training: bool | None = None) -> Tensor:
        """Computes the branches and joins them; batch statistics where `training`."""
        results: list[Tensor] = []
        for branch, (source, _) in zip(self.branches, BRANCHES, strict=True):
            inputs = features if source is None else results[source]
            results.append(branch(inputs, training=training))
        return self.joined(ops.concatenate(results, axis=-1), training=training)
