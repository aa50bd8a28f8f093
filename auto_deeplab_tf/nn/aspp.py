"""The head: atrous spatial pyramid pooling and the decoder of DeepLabv3+."""

from __future__ import annotations

from typing import Any

from keras import ops

from auto_deeplab_tf.nn.backend import Tensor
from auto_deeplab_tf.nn.conv import AtrousConv2D, ConvBN
from auto_deeplab_tf.nn.layer import Layer, Shape, build_chain, call_chain
from auto_deeplab_tf.nn.resize import resize_bilinear
from auto_deeplab_tf.nn.serialization import register
from auto_deeplab_tf.search_space import ASPP_EXTENTS


@register
class ASPP(Layer):
    """1x1, three 3x3 atrous convolutions and image pooling side by side; then 1x1.

    Each branch and the last 1x1 are followed by BN and ReLU. The pooled values are constant over
    the map.

    Args:
        stride: Stride of the input, 4..32; the rates are (96, 192, 288) / stride.
        filters: Channels of each branch and of the output.
        separable: Whether the atrous convolutions are separable, BN and ReLU behind both parts.
        **kwargs: See `Layer`.

    Input shape: float [N, h, w, C].
    Output shape: float [N, h, w, filters].

    Reference: Chen et al., DeepLabv3, arXiv:1706.05587; separable: DeepLabv3+, arXiv:1802.02611.
    """

    def __init__(
        self,
        stride: int,
        filters: int = 256,
        separable: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.stride = stride
        self.filters = filters
        self.separable = separable
        shared = self.shared | {"relu": "after"}
        form: dict[str, Any] = {"separable": separable, "depthwise_norm": separable}
        self.pointwise = ConvBN(filters, name="pointwise", **shared)
        self.atrous = [
            ConvBN(filters, 3, rate=extent // stride, name=f"atrous_{index}", **form, **shared)
            for index, extent in enumerate(ASPP_EXTENTS)
        ]
        self.pooling = ConvBN(filters, name="pooling", **shared)
        self.joined = ConvBN(filters, name="joined", **shared)

    def build(self, input_shape: Shape) -> None:
        """Creates the weights."""
        for branch in (self.pointwise, *self.atrous, self.pooling):
            branch.build(input_shape)
        branches = 2 + len(self.atrous)
        self.joined.build((*input_shape[:-1], branches * self.filters))

    def call(self, features: Tensor, training: bool | None = None) -> Tensor:
        """Computes the branches and joins them; batch statistics where `training`."""
        branches = [
            branch(features, training=training) for branch in (self.pointwise, *self.atrous)
        ]
        pooled = ops.mean(features, axis=(1, 2), keepdims=True)
        pooled = self.pooling(pooled, training=training)
        branches.append(ops.broadcast_to(pooled, ops.shape(branches[0])))
        return self.joined(ops.concatenate(branches, axis=-1), training=training)


@register
class Decoder(Layer):
    """Joins the ASPP output with a feature map at stride 4 and predicts the classes there.

    Low-level feature to `low_level_filters` (1x1, BN, ReLU); beside it the ASPP output, resized
    bilinearly; two 3x3 convolutions to `filters`, each with BN and ReLU; 1x1 with bias to classes.

    Args:
        num_classes: Channels of the output.
        filters: Channels of the two 3x3 convolutions.
        low_level_filters: Channels of the projected low-level feature.
        upsample: Whether the ASPP output is coarser than the low-level feature.
        separable: Whether the 3x3 convolutions are separable, BN and ReLU behind both parts.
        **kwargs: See `Layer`.

    Call arguments:
        features: float [N, h', w', C].
        low_level: float [N, h, w, D].

    Output shape: float [N, h, w, num_classes], logits.

    Reference: Chen et al., DeepLabv3+, arXiv:1802.02611.
    """

    def __init__(
        self,
        num_classes: int,
        filters: int = 256,
        low_level_filters: int = 48,
        upsample: bool = True,
        separable: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.filters = filters
        self.low_level_filters = low_level_filters
        self.upsample = upsample
        self.separable = separable
        shared = self.shared | {"relu": "after"}
        self.low_level = ConvBN(low_level_filters, name="low_level", **shared)
        form: dict[str, Any] = {"separable": separable, "depthwise_norm": separable}
        self.convs = [
            ConvBN(filters, 3, name=f"conv_{index}", **form, **shared) for index in range(2)
        ]
        self.classes = AtrousConv2D(num_classes, 1, name="classes", dtype=self.dtype_policy)

    def build(self, features_shape: Shape, low_level_shape: Shape) -> None:
        """Creates the weights."""
        self.low_level.build(low_level_shape)
        channels = (features_shape[-1] or 0) + self.low_level_filters
        build_chain([*self.convs, self.classes], (*low_level_shape[:-1], channels))

    def call(self, features: Tensor, low_level: Tensor, training: bool | None = None) -> Tensor:
        """Returns the logits; batch statistics where `training`."""
        if self.upsample:
            features = resize_bilinear(features, ops.shape(low_level)[1:3])
        joined = [features, self.low_level(low_level, training=training)]
        features = ops.concatenate(joined, axis=-1)
        return self.classes(call_chain(self.convs, features, training))
