"""The operations of the search space as plain layers.

`OPERATION_LAYERS` gives the class for each kind of row in `search_space.OPERATION_TABLE`; the
supernet computes the same operations fused (nn/node.py), from the same rows and classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import ops

from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.nn import backend
from auto_deeplab_tf.nn.backend import Tensor
from auto_deeplab_tf.nn.conv import ConvBN
from auto_deeplab_tf.nn.layer import Layer, Shape, build_chain, call_chain, strided_shape
from auto_deeplab_tf.nn.resize import resize_bilinear
from auto_deeplab_tf.nn.serialization import register
from auto_deeplab_tf.search_space import (
    ATROUS_KINDS,
    DECODABLE_OPERATIONS,
    operation,
    operation_units,
)

# What a decoded edge may carry, by the kind of its row in `search_space.OPERATION_TABLE`.
OPERATION_LAYERS: dict[str, type[OperationLayer]] = {}


def operation_layer(
    kind: str,
) -> Callable[[type[OperationLayer]], type[OperationLayer]]:
    """Makes a class that of the operations of a kind, and registers it for Keras' files."""

    def add(cls: type[OperationLayer]) -> type[OperationLayer]:
        OPERATION_LAYERS[kind] = register(cls)
        return cls

    return add


class OperationLayer(Layer):
    """Base of the operations on an edge of a cell.

    It applies `transform`, then the convolutions that `accounting.operation_units` lists, each as
    ReLU-conv-BN, so that what is built and what is counted cannot differ. A new operation is a
    subclass under `operation_layer` and a row of the table; the row alone where its kind is there.

    Args:
        op: Name of a row of `OPERATION_TABLE`.
        filters: Channels of input and output.
        stride: 2 where the path goes down and the operation reads an input of the cell, else 1.
        atrous: `"full"` or `"separable"`, the form of the atrous operations.
        **kwargs: See `Layer`.

    Input shape: float [N, h, w, filters].
    Output shape: float [N, ceil(h / stride), ceil(w / stride), filters].

    Reference: Liu et al., Auto-DeepLab, CVPR 2019, arXiv:1901.02985, sec. 3.1.
    """

    # Whether ScheduledDropPath may drop the result.
    droppable = True

    def __init__(
        self,
        op: str,
        filters: int,
        stride: int = 1,
        atrous: str = "full",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if stride not in (1, 2):
            raise UserError(f"stride must be 1 or 2. Received: {stride!r}.")
        if atrous not in ATROUS_KINDS:
            raise UserError(f"atrous must be 'full' or 'separable'. Received: {atrous!r}.")
        self.op = op
        self.row = operation(op)
        self.filters = filters
        self.stride = stride
        self.atrous = atrous
        self.units = [
            ConvBN(filters, **unit._asdict(), name=f"unit_{index}", **self.shared)
            for index, unit in enumerate(operation_units(self.row, stride, atrous))
        ]

    def build(self, input_shape: Shape) -> None:
        """Creates the weights."""
        build_chain(self.units, input_shape)

    @staticmethod
    def transform(row: Any, images: Tensor, stride: int) -> Tensor:
        """Does what the operation does without weights, before its convolutions: here nothing.

        The supernet calls it at stride 1, for the channels of several predecessors side by side.

        Args:
            row: The operation's row of `OPERATION_TABLE`.
            images: float [N, h, w, C]; each channel is transformed alike and by itself.
            stride: 1 or 2.

        Returns:
            float [N, h, w, C], or in half the size, rounded up, where the stride is 2 and neither
            the convolutions nor the projection have it.
        """
        return images

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Applies `transform`, then the convolutions; batch statistics where `training`."""
        return call_chain(self.units, self.transform(self.row, inputs, self.stride), training)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Returns [N, ceil(h / stride), ceil(w / stride), filters]."""
        return strided_shape(input_shape, self.stride, self.filters)


@operation_layer("separable")
class SeparableOperation(OperationLayer):
    """ReLU, depthwise kxk, pointwise 1x1, BN: `repeats` times, the stride in the first.

    Args, shapes, reference: see `OperationLayer`.
    """


@operation_layer("atrous")
class AtrousOperation(OperationLayer):
    """ReLU, atrous kxk convolution, BN.

    In a stride-2 position the input is, after the ReLU, resized bilinearly to half its size, and
    the rate is 1 (as the authors' code does it). A full convolution, or depthwise and pointwise
    where `atrous` is `"separable"`.

    Args, shapes, reference: see `OperationLayer`.
    """

    @staticmethod
    def transform(row: Any, images: Tensor, stride: int) -> Tensor:
        """ReLU and half the size where the stride is 2; see `OperationLayer`."""
        if stride == 1:
            return images
        _, height, width, _ = ops.shape(images)
        # ReLU first: interpolating and clipping do not commute. The unit's own ReLU changes
        # nothing after it.
        return resize_bilinear(ops.relu(images), ((height + 1) // 2, (width + 1) // 2))


@operation_layer("pool")
class PoolOperation(OperationLayer):
    """Average or maximum over a kxk window, the stride in the pool; neither weights nor BN.

    Positions on padding take no part in the average.

    Args, shapes, reference: see `OperationLayer`.
    """

    @staticmethod
    def transform(row: Any, images: Tensor, stride: int) -> Tensor:
        """Pools the images; see `OperationLayer`."""
        pool = {"average": backend.average_pool, "max": backend.max_pool}[row.pooling]
        return pool(images, row.kernel_size, strides=stride)


@operation_layer("skip")
class SkipOperation(OperationLayer):
    """Identity; in a stride-2 position ReLU, 1x1 convolution with stride 2, BN.

    Args, shapes, reference: see `OperationLayer`.
    """

    # ScheduledDropPath never drops it.
    droppable = False


def operation_layer_class(op: str) -> type[OperationLayer]:
    """Returns the layer class of an operation by its name."""
    row = operation(op)
    try:
        return OPERATION_LAYERS[row.kind]
    except KeyError:
        raise UserError(
            f"operation {op!r} has no layer: a decoded edge carries one of "
            f"{', '.join(DECODABLE_OPERATIONS)}."
        ) from None
