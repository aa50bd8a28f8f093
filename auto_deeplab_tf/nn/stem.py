"""The stem: images to stride 4 in two stride-2 reductions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from auto_deeplab_tf.nn.backend import Tensor
from auto_deeplab_tf.nn.conv import ConvBN
from auto_deeplab_tf.nn.layer import Layer, Shape, build_chain
from auto_deeplab_tf.nn.serialization import register
from auto_deeplab_tf.search_space import STEM_CHANNELS, STEM_STRIDES


@register
class Stem(Layer):
    """3x3 to C0 stride 2, BN, ReLU; 3x3 to C1, BN; ReLU; 3x3 to C2 stride 2, BN.

    Args:
        channels: (C0, C1, C2).
        **kwargs: See `Layer`.

    Input shape: float [N, H, W, C], normalised images.
    Output shape: (float [N, ceil(H / 2), ceil(W / 2), C1], float [N, ceil(H / 4), ceil(W / 4),
        C2]): the first cell's `prev_prev` and `prev`, both before their ReLU.

    Reference: the authors' TF1 code, `_nas_stem`.
    """

    def __init__(self, channels: Sequence[int] = STEM_CHANNELS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.channels = tuple(channels)
        self.units = [
            ConvBN(filters, 3, stride, relu=relu, name=f"unit_{index}", **self.shared)
            for index, (filters, stride, relu) in enumerate(
                zip(self.channels, STEM_STRIDES, (None, "before", "before"), strict=True)
            )
        ]

    def build(self, input_shape: Shape) -> None:
        """Creates the weights."""
        build_chain(self.units, input_shape)

    def call(self, images: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
        """Returns the tensors at strides 2 and 4; batch statistics where `training`."""
        half = self.units[1](self.units[0](images, training=training), training=training)
        return half, self.units[2](half, training=training)
