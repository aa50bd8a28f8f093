"""Full-resolution residual networks A and B."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.nn.operations import (
    BATCH_NORM_DECAY,
    AtrousConv2D,
    ConvBN,
    register,
)
from auto_deeplab_tf.nn.resize import resize_bilinear
from auto_deeplab_tf.nn.segmentation_network import SegmentationNetwork, checked_width

# (units, channels, factor by which the image is pooled), in the order of computation.
_STAGES = {
    "a": (
        (3, 96, 2),
        (4, 192, 4),
        (2, 384, 8),
        (2, 384, 16),
        (2, 192, 8),
        (2, 192, 4),
        (2, 96, 2),
    ),
    "b": (
        (3, 96, 2),
        (4, 192, 4),
        (2, 384, 8),
        (2, 384, 16),
        (2, 384, 32),
        (2, 192, 16),
        (2, 192, 8),
        (2, 192, 4),
        (2, 96, 2),
    ),
}
_BASE_FILTERS, _STREAM_FILTERS = 48, 32
_RESIDUAL_UNITS = 3
# Below any feature, and finite in every 16-bit float but float16.
_LOWEST = -1e30


def max_pool(images, size):
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
    return ops.max_pool(images, size, strides=size, padding="valid")


def unpool(images, size, shape):
    """Repeats each pixel size x size times and cuts what lies beyond the map.

    Args:
        images: float [N, ceil(h / size), ceil(w / size), C].
        size: int.
        shape: (h, w) of the result.
    """
    images = ops.repeat(ops.repeat(images, size, axis=1), size, axis=2)
    return images[:, : shape[0], : shape[1]]


@register
class ResidualUnit(keras.layers.Layer):
    """3x3, BN, ReLU, 3x3, BN, plus the input; where its channels differ, through a 1x1.

    Args:
        filters: Output channels.
        batch_norm_decay: Decay of the moving statistics.
        synchronized: Whether batch statistics are taken over all replicas.

    Input shape: float [N, h, w, C].
    Output shape: float [N, h, w, filters].
    """

    def __init__(self, filters, batch_norm_decay=BATCH_NORM_DECAY, synchronized=True, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.batch_norm_decay = batch_norm_decay
        self.synchronized = synchronized
        norm = {
            "batch_norm_decay": batch_norm_decay,
            "synchronized": synchronized,
            "dtype": self.dtype_policy,
        }
        self.convs = [
            ConvBN(filters, 3, relu=relu, name=f"conv_{index}", **norm)
            for index, relu in enumerate(("after", None))
        ]
        self.projection = None

    def build(self, input_shape):
        if input_shape[-1] != self.filters:
            self.projection = AtrousConv2D(
                self.filters,
                1,
                use_bias=False,
                kernel_initializer="he_normal",
                name="projection",
                dtype=self.dtype_policy,
            )
            self.projection.build(input_shape)
        for conv in self.convs:
            conv.build(input_shape)
            input_shape = (*input_shape[:-1], self.filters)

    def call(self, inputs, training=None):
        features = inputs
        for conv in self.convs:
            features = conv(features, training=training)
        return features + (inputs if self.projection is None else self.projection(inputs))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)

    def get_config(self):
        return super().get_config() | {
            "filters": self.filters,
            "batch_norm_decay": self.batch_norm_decay,
            "synchronized": self.synchronized,
        }


@register
class FullResolutionResidualUnit(keras.layers.Layer):
    """Reads both streams, writes the pooling one anew and adds to the residual one.

    The residual stream, pooled, beside the pooling stream; twice 3x3, BN, ReLU: that is the new
    pooling stream. A 1x1 with bias of it, unpooled, is added to the residual stream.

    Args:
        filters: Channels of the pooling stream.
        size: Factor by which it is pooled.
        batch_norm_decay: Decay of the moving statistics.
        synchronized: Whether batch statistics are taken over all replicas.

    Call arguments:
        pooled: float [N, ceil(H / size), ceil(W / size), C].
        stream: float [N, H, W, D].

    Output shape: those of `pooled`, with `filters` channels, and of `stream`.

    Reference: Pohlen et al., FRRN, CVPR 2017, arXiv:1611.08323, fig. 3.
    """

    def __init__(
        self, filters, size, batch_norm_decay=BATCH_NORM_DECAY, synchronized=True, **kwargs
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.size = size
        self.batch_norm_decay = batch_norm_decay
        self.synchronized = synchronized
        norm = {
            "relu": "after",
            "batch_norm_decay": batch_norm_decay,
            "synchronized": synchronized,
            "dtype": self.dtype_policy,
        }
        self.convs = [ConvBN(filters, 3, name=f"conv_{index}", **norm) for index in range(2)]
        self.residual = None

    def build(self, pooled_shape, stream_shape):
        shape = (*pooled_shape[:-1], pooled_shape[-1] + stream_shape[-1])
        for conv in self.convs:
            conv.build(shape)
            shape = (*shape[:-1], self.filters)
        self.residual = AtrousConv2D(
            stream_shape[-1],
            1,
            kernel_initializer="he_normal",
            name="residual",
            dtype=self.dtype_policy,
        )
        self.residual.build(shape)

    def call(self, pooled, stream, training=None):
        features = ops.concatenate([pooled, max_pool(stream, self.size)], axis=-1)
        for conv in self.convs:
            features = conv(features, training=training)
        added = unpool(self.residual(features), self.size, ops.shape(stream)[1:3])
        return features, stream + added

    def compute_output_shape(self, pooled_shape, stream_shape):
        return (*pooled_shape[:-1], self.filters), stream_shape

    def get_config(self):
        return super().get_config() | {
            "filters": self.filters,
            "size": self.size,
            "batch_norm_decay": self.batch_norm_decay,
            "synchronized": self.synchronized,
        }


@register
class FRRN(SegmentationNetwork):
    """Two streams: one at full resolution that units only add to, one that is pooled and unpooled.

    5x5; 3 residual units; a 1x1 and BN begin the residual stream; then for each row of the paper's
    table the pooling stream is pooled or bilinearly resized and passes full-resolution residual
    units; at last both streams side by side, 3 residual units and a 1x1 with bias to the classes.

    Every size works: a map pooled by p is ceil(H / p) x ceil(W / p) (see `max_pool`, `unpool`).

    Args:
        num_classes: See `SegmentationNetwork`, as for the arguments not named here.
        variant: `"a"`, pooled down to 1/16, or `"b"`, down to 1/32.
        width_multiplier: Factor of all channels, above 0; 1 in the paper.

    Input shape, output shape: see `SegmentationNetwork`.

    Reference: Pohlen et al., Full-Resolution Residual Networks, CVPR 2017, arXiv:1611.08323,
        table 1; the authors' code.
    """

    def __init__(
        self,
        num_classes: int = 19,
        input_size: tuple[int, int] | None = None,
        *,
        variant: str = "a",
        width_multiplier: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, input_size, **kwargs)
        if variant not in _STAGES:
            raise UserError(f"variant must be 'a' or 'b'. Received: {variant!r}.")
        self.variant = variant
        self.width_multiplier = checked_width(width_multiplier)
        self._add_layers()
        self.build(self.static_input_shape)

    def _add_layers(self):
        norm = self.norm_settings()

        def width(filters):
            return max(1, round(filters * self.width_multiplier))

        base = width(_BASE_FILTERS)
        self.root = ConvBN(base, 5, relu="after", name="root", **norm)
        self.first_units = [
            ResidualUnit(base, name=f"first_{index}", **norm) for index in range(_RESIDUAL_UNITS)
        ]
        self.split = ConvBN(width(_STREAM_FILTERS), relu=None, name="split", **norm)
        # One flat list: Keras saves no weights of layers in a list of lists.
        self.units = [
            FullResolutionResidualUnit(
                width(filters), size, name=f"stage_{index}_unit_{unit}", **norm
            )
            for index, (units, filters, size) in enumerate(_STAGES[self.variant])
            for unit in range(units)
        ]
        self.last_units = [
            ResidualUnit(base, name=f"last_{index}", **norm) for index in range(_RESIDUAL_UNITS)
        ]
        self.classes = AtrousConv2D(
            self.num_classes,
            1,
            kernel_initializer="he_normal",
            name="classes",
            dtype=self.dtype_policy,
        )

    def build(self, input_shape):
        """Creates the weights; `input_shape` is [N, H, W, C], N, H and W possibly None."""
        free = (None, None, None)
        self.root.build(input_shape)
        for unit in self.first_units:
            unit.build((*free, self.root.filters))
        self.split.build((*free, self.root.filters))
        stream, pooled = (*free, self.split.filters), (*free, self.root.filters)
        for unit in self.units:
            unit.build(pooled, stream)
            pooled = (*free, unit.filters)
        joined = (*free, pooled[-1] + stream[-1])
        for unit in self.last_units:
            unit.build(joined)
            joined = (*free, unit.filters)
        self.classes.build(joined)

    def compute_logits(self, images, training=None):
        """Computes the logits at full resolution; see `SegmentationNetwork`."""
        size = ops.shape(images)[1:3]
        pooled = self.root(images, training=training)
        for unit in self.first_units:
            pooled = unit(pooled, training=training)
        stream = self.split(pooled, training=training)
        at = 1
        for unit in self.units:
            if unit.size != at:
                pooled = _bring(pooled, at, unit.size, size)
                at = unit.size
            pooled, stream = unit(pooled, stream, training=training)
        features = ops.concatenate([_bring(pooled, at, 1, size), stream], axis=-1)
        for unit in self.last_units:
            features = unit(features, training=training)
        return self.classes(features)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return super().get_config() | {
            "variant": self.variant,
            "width_multiplier": self.width_multiplier,
        }


def _bring(pooled, at, wanted, size):
    """Brings a map that is pooled by `at` to `wanted`: pooled, or resized bilinearly."""
    if wanted > at:
        return max_pool(pooled, wanted // at)
    return resize_bilinear(pooled, tuple((extent + wanted - 1) // wanted for extent in size))
