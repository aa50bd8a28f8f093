"""Convolution layers without useless taps, and the conv-BN unit of every network."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.nn import backend
from auto_deeplab_tf.nn.atrous import atrous_conv, atrous_depthwise_conv
from auto_deeplab_tf.nn.backend import Tensor
from auto_deeplab_tf.nn.layer import Layer, Shape, strided_shape
from auto_deeplab_tf.nn.normalization import BatchNormalization
from auto_deeplab_tf.nn.serialization import register


@register
class AtrousConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` by `atrous_conv`: without the taps that can only fall on padding.

    Channels stand last, whatever Keras' `image_data_format` is.

    Input shape: float [N, h, w, C].
    Output shape: float [N, h, w, filters].
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(
            *args,
            **{"kernel_initializer": "he_normal", "data_format": "channels_last", **kwargs},
        )

    def call(self, inputs: Tensor, scale: Tensor | None = None, offset: Any = None) -> Tensor:
        """Computes the layer; `scale` and `offset`, float32 [D], are applied to the convolution."""
        if scale is None:
            return super().call(inputs)
        return self.convolution_op(inputs, backend.read(self.kernel) * scale) + offset

    def convolution_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Computes the convolution without bias and activation."""
        rate = self.dilation_rate[0]
        return atrous_conv(inputs, kernel, rate, strides=self.strides, padding=self.padding)


@register
class AtrousDepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` by `atrous_depthwise_conv`, without bias and activation.

    Channels stand last, whatever Keras' `image_data_format` is.

    Input shape: float [N, h, w, C].
    Output shape: float [N, ceil(h / stride), ceil(w / stride), C].
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"data_format": "channels_last", **kwargs})

    def call(self, inputs: Tensor, scale: Tensor | None = None, offset: Any = None) -> Tensor:
        """Computes the convolution; `scale` and `offset`, float32 [C], are applied to it."""
        if scale is None:
            return self._convolve(inputs, self.kernel)
        return self._convolve(inputs, backend.read(self.kernel) * scale[:, None]) + offset

    def _convolve(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        return atrous_depthwise_conv(
            inputs, kernel, self.dilation_rate, strides=self.strides, padding=self.padding
        )


@register
class ConvBN(Layer):
    """(ReLU,) convolution without bias, batch normalisation (, ReLU).

    In inference in float32 the normalisation is folded into the kernel, so that no graph holds one.

    Args:
        filters: Output channels.
        kernel_size: Width of the square window.
        stride: 1 or 2.
        rate: Atrous rate; 1 where `stride` is 2. Of a separable one also (rate down, rate across).
        separable: A depthwise window, then a pointwise 1x1, in place of the full convolution.
        depthwise_norm: Whether batch normalisation, and ReLU where it stands after, follow the
            depthwise convolution too (as in Xception's code).
        relu: `"before"`, `"after"` or None.
        **kwargs: See `Layer`.

    Input shape: float [N, h, w, C].
    Output shape: float [N, ceil(h / stride), ceil(w / stride), filters].
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 1,
        stride: int = 1,
        rate: int | tuple[int, int] = 1,
        separable: bool = False,
        depthwise_norm: bool = False,
        relu: str | None = "before",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if relu not in ("before", "after", None):
            raise UserError(f"relu must be 'before', 'after' or None. Received: {relu!r}.")
        if depthwise_norm and not separable:
            raise UserError("depthwise_norm needs separable: there is no depthwise convolution.")
        self.filters = filters
        self.kernel_size = kernel_size
        self.stride = stride
        self.rate = rate
        self.separable = separable
        self.depthwise_norm = depthwise_norm
        self.relu = relu
        window = {"strides": stride, "dilation_rate": rate, "padding": "same"}
        shared = {"use_bias": False, "dtype": self.dtype_policy}
        self.depthwise = None
        if separable:
            self.depthwise = AtrousDepthwiseConv2D(
                kernel_size,
                # Keras counts the fan-in of a depthwise kernel over all channels; it is k * k.
                depthwise_initializer=keras.initializers.RandomNormal(stddev=1 / kernel_size),
                name="depthwise",
                **window,
                **shared,
            )
            kernel_size, window = 1, {}
        self.depthwise_batch_norm = None
        if depthwise_norm:
            self.depthwise_batch_norm = self.norm("depthwise_batch_norm", self.dtype_policy)
        self.conv = AtrousConv2D(filters, kernel_size, name="conv", **window, **shared)
        self.batch_norm = self.norm("batch_norm", self.dtype_policy)

    def build(self, input_shape: Shape) -> None:
        """Creates the weights."""
        for layer in (self.depthwise, self.depthwise_batch_norm, self.conv):
            if layer is not None:
                layer.build(input_shape)
        self.batch_norm.build((*input_shape[:-1], self.filters))

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Computes the unit; batch statistics where `training`."""
        features = ops.relu(inputs) if self.relu == "before" else inputs
        if self.depthwise_batch_norm is not None:
            features = _normalized(self.depthwise, self.depthwise_batch_norm, features, training)
            features = ops.relu(features) if self.relu == "after" else features
        elif self.depthwise is not None:
            features = self.depthwise(features)
        features = _normalized(self.conv, self.batch_norm, features, training)
        return ops.relu(features) if self.relu == "after" else features

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Returns [N, ceil(h / stride), ceil(w / stride), filters]."""
        return strided_shape(input_shape, self.stride, self.filters)


def _normalized(
    conv: Any, batch_norm: BatchNormalization, features: Tensor, training: bool | None
) -> Tensor:
    """A convolution without bias, then its normalisation."""
    if batch_norm.takes_batch_statistics(training) or conv.compute_dtype != "float32":
        return batch_norm(conv(features), training=training)
    # A call of the layer, as `counting` watches them.
    scale, offset = batch_norm.scale_and_offset()
    return conv(features, scale=scale, offset=offset)
