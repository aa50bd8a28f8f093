"""DeepLabv3+ on aligned Xception, with the ASPP or with the dense prediction cell."""

from __future__ import annotations

from typing import Any

import keras

from auto_deeplab_tf.baselines.dpc import DensePredictionCell
from auto_deeplab_tf.baselines.xception import Xception
from auto_deeplab_tf.config import NetworkConfig
from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.nn.aspp import ASPP, Decoder
from auto_deeplab_tf.nn.backend import Tensor
from auto_deeplab_tf.nn.layer import Shape
from auto_deeplab_tf.nn.segmentation_network import ScaledNetwork
from auto_deeplab_tf.nn.serialization import register
from auto_deeplab_tf.search_space import checked_count

_CONTEXTS = {"aspp": ASPP, "dpc": DensePredictionCell}


@register
class DeepLabV3Plus(ScaledNetwork):
    """Aligned Xception, a pyramid of atrous convolutions, and the decoder; all 3x3 separable.

    Args:
        *args: See `ScaledNetwork`.
        depth: Of Xception, 65 or 71.
        context: `"aspp"`, or `"dpc"` for the dense prediction cell in its place.
        output_stride: Stride of the pyramid, 8 (the setting of the published counts) or 16.
        head_channels: Channels of the pyramid and the decoder.
        decoder_channels: Channels of the projected low-level feature.
        **kwargs: See `ScaledNetwork`; `width_multiplier` is that of the backbone.

    Input shape, output shape: see `SegmentationNetwork`.

    Reference: Chen et al., DeepLabv3+, ECCV 2018, arXiv:1802.02611; with `"dpc"`: Chen et al.,
        NeurIPS 2018, arXiv:1809.04184.
    """

    def __init__(
        self,
        *args: Any,
        depth: int = 65,
        context: str = "aspp",
        output_stride: int = 8,
        head_channels: int = NetworkConfig.head_channels,
        decoder_channels: int = NetworkConfig.decoder_channels,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if context not in _CONTEXTS:
            raise UserError(f"context must be 'aspp' or 'dpc'. Received: {context!r}.")
        self.depth = depth
        self.context = context
        self.output_stride = output_stride
        self.head_channels = checked_count("head_channels", head_channels)
        self.decoder_channels = checked_count("decoder_channels", decoder_channels)
        shared = self.shared
        self.backbone = Xception(
            depth, output_stride, self.width_multiplier, name="backbone", **shared
        )
        form = {"separable": True} if context == "aspp" else {}
        self.pyramid = _CONTEXTS[context](
            output_stride, self.head_channels, name=context, **form, **shared
        )
        self.decoder = Decoder(
            self.num_classes,
            self.head_channels,
            self.decoder_channels,
            separable=True,
            name="decoder",
            **shared,
        )
        self.build(self.static_input_shape)

    @property
    def class_layer(self) -> keras.layers.Layer:
        """The decoder's last layer."""
        return self.decoder.classes

    def build(self, input_shape: Shape) -> None:
        """Creates the weights; `input_shape` is [N, H, W, C], N, H and W possibly None."""
        self.backbone.build(input_shape)
        features, low_level = self.backbone.compute_output_shape(input_shape)
        self.pyramid.build(features)
        self.decoder.build((*features[:-1], self.head_channels), low_level)

    def compute_logits(self, images: Tensor, training: bool | None = None) -> Tensor:
        """Computes the logits at stride 4; see `SegmentationNetwork`."""
        features, low_level = self.backbone(images, training=training)
        features = self.pyramid(features, training=training)
        return self.decoder(features, low_level, training=training)
