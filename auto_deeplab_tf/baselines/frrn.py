"""Full-resolution residual networks A and B."""

from __future__ import annotations

from typing import Any

from keras import ops

from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.nn import backend
from auto_deeplab_tf.nn.backend import Tensor
from auto_deeplab_tf.nn.conv import AtrousConv2D, ConvBN
from auto_deeplab_tf.nn.layer import Layer, Shape, build_chain, call_chain
from auto_deeplab_tf.nn.resize import resize_bilinear
from auto_deeplab_tf.nn.segmentation_network import ScaledNetwork
from auto_deeplab_tf.nn.serialization import register

# (units, channels, factor by which the image is pooled), in the order of computation.
_DOWN, _UP = ((3, 96, 2), (4, 192, 4), (2, 384, 8), (2, 384, 16)), ((2, 192, 4), (2, 96, 2))
_STAGES = {
    "a": (*_DOWN, (2, 192, 8), *_UP),
    "b": (*_DOWN, (2, 384, 32), (2, 192, 16), (2, 192, 8), *_UP),
}
_BASE_FILTERS, _STREAM_FILTERS = 48, 32
_RESIDUAL_UNITS = 3
# Below any feature, and finite in every 16-bit float but float16.
_LOWEST = -1e30


def max_pool(images: Tensor, size: int) -> Tensor:
    """Maximum over whole windows and, at the bottom and right edges, over what is left of them.

    So pooling by 2 and again by 2 is pooling by 4 at every size, and a pooled pixel p lies on the
    pixels from size * p on, which `unpool` gives back.

    Args:
        images: float [N, h, w, C]; h and w may be unknown statically.
        size: Side of the window, which is the stride too.

    Returns:
        float [N, ceil(h / size), ceil(w / size), C].
    """
    missing = [
        0 if extent is not None and extent % size == 0 else size - 1 for extent in images.shape[1:3]
    ]
    if any(missing):
        # size - 1 more rows always complete the last window; those too many are no window.
        widths = [(0, 0), (0, missing[0]), (0, missing[1]), (0, 0)]
        images = ops.pad(images, widths, constant_values=_LOWEST)
    return backend.max_pool(images, size, strides=size, padding="valid")


def unpool(images: Tensor, size: int, shape: tuple[Any, Any]) -> Tensor:
    """Repeats each pixel size x size times and cuts what lies beyond the map.

    Args:
        images: float [N, ceil(h / size), ceil(w / size), C].
        size: Side of the square.
        shape: (h, w) of the result.

    Returns:
        float [N, h, w, C].
    """
    images = ops.repeat(ops.repeat(images, size, axis=1), size, axis=2)
    return images[:, : shape[0], : shape[1]]


@register
class ResidualUnit(Layer):
    """3x3, BN, ReLU, 3x3, BN, plus the input; where its channels differ, through a 1x1.

    Args:
        filters: Output channels.
        **kwargs: See `Layer`.

    Input shape: float [N, h, w, C].
    Output shape: float [N, h, w, filters].
    """

    def __init__(self, filters: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.convs = [
            ConvBN(filters, 3, relu=relu, name=f"conv_{index}", **self.shared)
            for index, relu in enumerate(("after", None))
        ]
        self.projection: AtrousConv2D | None = None

    def build(self, input_shape: Shape) -> None:
        """Creates the weights."""
        if input_shape[-1] != self.filters:
            self.projection = AtrousConv2D(
                self.filters, 1, use_bias=False, name="projection", dtype=self.dtype_policy
            )
            self.projection.build(input_shape)
        build_chain(self.convs, input_shape)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Computes the unit; batch statistics where `training`."""
        features = call_chain(self.convs, inputs, training)
        return features + (inputs if self.projection is None else self.projection(inputs))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Returns [N, h, w, filters]."""
        return (*input_shape[:-1], self.filters)


@register
class FullResolutionResidualUnit(Layer):
    """Reads both streams, writes the pooling one anew and adds to the residual one.

    The residual stream, pooled, beside the pooling stream; twice 3x3, BN, ReLU: that is the new
    pooling stream. A 1x1 with bias of it, unpooled, is added to the residual stream.

    Args:
        filters: Channels of the pooling stream.
        size: Factor by which it is pooled.
        **kwargs: See `Layer`.

    Call arguments:
        pooled: float [N, ceil(H / size), ceil(W / size), C].
        stream: float [N, H, W, D].

    Output shape: those of `pooled`, with `filters` channels, and of `stream`.

    Reference: Pohlen et al., FRRN, CVPR 2017, arXiv:1611.08323, fig. 3.
    """

    def __init__(self, filters: int, size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.size = size
        self.convs = [
            ConvBN(filters, 3, relu="after", name=f"conv_{index}", **self.shared)
            for index in range(2)
        ]
        self.residual: AtrousConv2D | None = None

    def build(self, pooled_shape: Shape, stream_shape: Shape) -> None:
        """Creates the weights."""
        channels = (pooled_shape[-1] or 0) + (stream_shape[-1] or 0)
        self.residual = AtrousConv2D(stream_shape[-1], 1, name="residual", dtype=self.dtype_policy)
        build_chain([*self.convs, self.residual], (*pooled_shape[:-1], channels))

    def call(
        self, pooled: Tensor, stream: Tensor, training: bool | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns both streams; batch statistics where `training`."""
        features = ops.concatenate([pooled, max_pool(stream, self.size)], axis=-1)
        features = call_chain(self.convs, features, training)
        added = unpool(self.residual(features), self.size, ops.shape(stream)[1:3])  # type: ignore[misc]
        return features, stream + added

    def compute_output_shape(self, pooled_shape: Shape, stream_shape: Shape) -> tuple[Shape, Shape]:
        """Returns the shapes of both streams."""
        return (*pooled_shape[:-1], self.filters), stream_shape


@register
class FRRN(ScaledNetwork):
    """Two streams: one at full resolution that units only add to, one that is pooled and unpooled.

    5x5; 3 residual units; a 1x1 and BN begin the residual stream; then for each row of the paper's
    table the pooling stream is pooled or bilinearly resized and passes full-resolution residual
    units; at last both streams side by side, 3 residual units and a 1x1 with bias to the classes.

    Every size works: a map pooled by p is ceil(H / p) x ceil(W / p) (see `max_pool`, `unpool`).

    Args:
        *args: See `ScaledNetwork`.
        variant: `"a"`, pooled down to 1/16, or `"b"`, down to 1/32.
        **kwargs: See `ScaledNetwork`.

    Input shape, output shape: see `SegmentationNetwork`.

    Reference: Pohlen et al., Full-Resolution Residual Networks, CVPR 2017, arXiv:1611.08323,
        table 1; the authors' code.
    """

    def __init__(self, *args: Any, variant: str = "a", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if variant not in _STAGES:
            raise UserError(f"variant must be 'a' or 'b'. Received: {variant!r}.")
        self.variant = variant
        self._add_layers()
        self.build(self.static_input_shape)

    def _add_layers(self) -> None:
        shared, width = self.shared, self.width
        base = width(_BASE_FILTERS)
        self.root = ConvBN(base, 5, relu="after", name="root", **shared)
        self.first_units = [
            ResidualUnit(base, name=f"first_{index}", **shared) for index in range(_RESIDUAL_UNITS)
        ]
        self.split = ConvBN(width(_STREAM_FILTERS), relu=None, name="split", **shared)
        # One flat list: Keras saves no weights of layers in a list of lists.
        self.units = [
            FullResolutionResidualUnit(
                width(filters), size, name=f"stage_{index}_unit_{unit}", **shared
            )
            for index, (units, filters, size) in enumerate(_STAGES[self.variant])
            for unit in range(units)
        ]
        self.last_units = [
            ResidualUnit(base, name=f"last_{index}", **shared) for index in range(_RESIDUAL_UNITS)
        ]
        self.classes = AtrousConv2D(self.num_classes, 1, name="classes", dtype=self.dtype_policy)

    def build(self, input_shape: Shape) -> None:
        """Creates the weights; `input_shape` is [N, H, W, C], N, H and W possibly None."""
        pooled = build_chain([self.root, *self.first_units], input_shape)
        self.split.build(pooled)
        stream = self.split.compute_output_shape(pooled)
        for unit in self.units:
            unit.build(pooled, stream)
            pooled, stream = unit.compute_output_shape(pooled, stream)
        channels = (pooled[-1] or 0) + (stream[-1] or 0)
        build_chain([*self.last_units, self.classes], (*stream[:-1], channels))

    def compute_logits(self, images: Tensor, training: bool | None = None) -> Tensor:
        """Computes the logits at full resolution; see `SegmentationNetwork`."""
        size = ops.shape(images)[1:3]
        pooled = call_chain([self.root, *self.first_units], images, training)
        stream = self.split(pooled, training=training)
        at = 1
        for unit in self.units:
            if unit.size != at:
                pooled = _bring(pooled, at, unit.size, size)
                at = unit.size
            pooled, stream = unit(pooled, stream, training=training)
        features = ops.concatenate([_bring(pooled, at, 1, size), stream], axis=-1)
        return self.classes(call_chain(self.last_units, features, training))


def _bring(pooled: Tensor, at: int, wanted: int, size: tuple[Any, Any]) -> Tensor:
    """Brings a map that is pooled by `at` to `wanted`: pooled, or resized bilinearly."""
    if wanted > at:
        return max_pool(pooled, wanted // at)
    height, width = ((extent + wanted - 1) // wanted for extent in size)
    return resize_bilinear(pooled, (height, width))
