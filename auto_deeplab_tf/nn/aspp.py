"""The head: atrous spatial pyramid pooling and the decoder of DeepLabv3+."""

import keras
from keras import ops

from auto_deeplab_tf.nn.operations import BATCH_NORM_DECAY, ConvBN, register
from auto_deeplab_tf.nn.resize import resize_bilinear
from auto_deeplab_tf.search_space import ASPP_EXTENTS


@register
class ASPP(keras.layers.Layer):
    """1x1, three 3x3 atrous convolutions and image pooling side by side; then 1x1.

    Each branch and the last 1x1 are followed by BN and ReLU. The pooled values are constant over
    the map.

    Args:
        stride: Stride of the input, 4..32; the rates are (96, 192, 288) / stride.
        filters: Channels of each branch and of the output.
        separable: Whether the atrous convolutions are separable, BN and ReLU behind both parts.
        batch_norm_decay: Decay of the moving statistics.
        synchronized: Whether batch statistics are taken over all replicas.

    Input shape: float [N, h, w, C].
    Output shape: float [N, h, w, filters].

    Reference: Chen et al., DeepLabv3, arXiv:1706.05587; separable: DeepLabv3+, arXiv:1802.02611.
    """

    def __init__(
        self,
        stride,
        filters=256,
        separable=False,
        batch_norm_decay=BATCH_NORM_DECAY,
        synchronized=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.stride = stride
        self.filters = filters
        self.separable = separable
        self.batch_norm_decay = batch_norm_decay
        self.synchronized = synchronized
        norm = {
            "relu": "after",
            "batch_norm_decay": batch_norm_decay,
            "synchronized": synchronized,
            "dtype": self.dtype_policy,
        }
        form = {"separable": separable, "depthwise_norm": separable}
        self.pointwise = ConvBN(filters, name="pointwise", **norm)
        self.atrous = [
            ConvBN(filters, 3, rate=extent // stride, name=f"atrous_{index}", **form, **norm)
            for index, extent in enumerate(ASPP_EXTENTS)
        ]
        self.pooling = ConvBN(filters, name="pooling", **norm)
        self.joined = ConvBN(filters, name="joined", **norm)

    def build(self, input_shape):
        for branch in (self.pointwise, *self.atrous, self.pooling):
            branch.build(input_shape)
        branches = 2 + len(self.atrous)
        self.joined.build((*input_shape[:-1], branches * self.filters))

    def call(self, features, training=None):
        branches = [
            branch(features, training=training) for branch in (self.pointwise, *self.atrous)
        ]
        pooled = ops.mean(features, axis=(1, 2), keepdims=True)
        pooled = self.pooling(pooled, training=training)
        branches.append(ops.broadcast_to(pooled, ops.shape(branches[0])))
        return self.joined(ops.concatenate(branches, axis=-1), training=training)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)

    def get_config(self):
        return super().get_config() | {
            "stride": self.stride,
            "filters": self.filters,
            "separable": self.separable,
            "batch_norm_decay": self.batch_norm_decay,
            "synchronized": self.synchronized,
        }


@register
class Decoder(keras.layers.Layer):
    """Joins the ASPP output with a feature map at stride 4 and predicts the classes there.

    Low-level feature to `low_level_filters` (1x1, BN, ReLU); beside it the ASPP output, resized
    bilinearly; two 3x3 convolutions to `filters`, each with BN and ReLU; 1x1 with bias to classes.

    Args:
        num_classes: Channels of the output.
        filters: Channels of the two 3x3 convolutions.
        low_level_filters: Channels of the projected low-level feature.
        upsample: Whether the ASPP output is coarser than the low-level feature.
        separable: Whether the 3x3 convolutions are separable, BN and ReLU behind both parts.
        batch_norm_decay: Decay of the moving statistics.
        synchronized: Whether batch statistics are taken over all replicas.

    Call arguments:
        features: float [N, h', w', C].
        low_level: float [N, h, w, D].

    Output shape: float [N, h, w, num_classes], logits.

    Reference: Chen et al., DeepLabv3+, arXiv:1802.02611.
    """

    def __init__(
        self,
        num_classes,
        filters=256,
        low_level_filters=48,
        upsample=True,
        separable=False,
        batch_norm_decay=BATCH_NORM_DECAY,
        synchronized=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.filters = filters
        self.low_level_filters = low_level_filters
        self.upsample = upsample
        self.separable = separable
        self.batch_norm_decay = batch_norm_decay
        self.synchronized = synchronized
        norm = {
            "relu": "after",
            "batch_norm_decay": batch_norm_decay,
            "synchronized": synchronized,
            "dtype": self.dtype_policy,
        }
        self.low_level = ConvBN(low_level_filters, name="low_level", **norm)
        form = {"separable": separable, "depthwise_norm": separable}
        self.convs = [
            ConvBN(filters, 3, name=f"conv_{index}", **form, **norm) for index in range(2)
        ]
        self.classes = keras.layers.Conv2D(
            num_classes, 1, kernel_initializer="he_normal", name="classes", dtype=self.dtype_policy
        )

    def build(self, features_shape, low_level_shape):
        self.low_level.build(low_level_shape)
        channels = features_shape[-1] + self.low_level_filters
        self.convs[0].build((*low_level_shape[:-1], channels))
        for layer in (self.convs[1], self.classes):
            layer.build((*low_level_shape[:-1], self.filters))

    def call(self, features, low_level, training=None):
        if self.upsample:
            features = resize_bilinear(features, ops.shape(low_level)[1:3])
        joined = [features, self.low_level(low_level, training=training)]
        features = ops.concatenate(joined, axis=-1)
        for conv in self.convs:
            features = conv(features, training=training)
        return self.classes(features)

    def compute_output_shape(self, features_shape, low_level_shape):
        return (*low_level_shape[:-1], self.num_classes)

    def get_config(self):
        return super().get_config() | {
            "num_classes": self.num_classes,
            "filters": self.filters,
            "low_level_filters": self.low_level_filters,
            "upsample": self.upsample,
            "separable": self.separable,
            "batch_norm_decay": self.batch_norm_decay,
            "synchronized": self.synchronized,
        }
