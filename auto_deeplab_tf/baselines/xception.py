"""Aligned Xception, the backbone of DeepLabv3+: images to features at stride 8 or 16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.nn.backend import Tensor
from auto_deeplab_tf.nn.conv import ConvBN
from auto_deeplab_tf.nn.layer import Layer, Shape, build_chain, call_chain, strided_shape
from auto_deeplab_tf.nn.segmentation_network import scaled
from auto_deeplab_tf.nn.serialization import register

# Per depth, the blocks of the entry flow: (channels, stride). After it come 16 blocks of the middle
# flow and two of the exit flow, common to both.
_ENTRY_FLOWS = {
    65: ((128, 2), (256, 2), (728, 2)),
    71: ((128, 2), (256, 1), (256, 2), (728, 1), (728, 2)),
}
_ROOT_FILTERS = (32, 64)
_MIDDLE_FILTERS, _MIDDLE_BLOCKS = 728, 16
_EXIT_FILTERS = ((728, 1024, 1024), (1536, 1536, 2048))
OUTPUT_STRIDES = (8, 16)


@register
class XceptionBlock(Layer):
    """Three separable convolutions and a shortcut; the stride in the third and in the shortcut.

    Each is (ReLU,) depthwise 3x3, BN, pointwise, BN.

    Args:
        filters: Output channels of the three.
        stride: 1 or 2.
        rate: Atrous rate.
        shortcut: `"conv"`: 1x1 and BN, `"sum"`: the input itself, or None.
        relu: `"before"` each separable convolution, or `"after"` each of its two parts.
        **kwargs: See `Layer`.

    Input shape: float [N, h, w, C].
    Output shape: (float [N, ceil(h / stride), ceil(w / stride), filters[2]], float [N, h, w,
        filters[1]]): the block's output, and that of the second convolution (after its BN).

    Reference: Chollet, Xception, arXiv:1610.02357; Chen et al., DeepLabv3+, arXiv:1802.02611,
        fig. 4.
    """

    def __init__(
        self,
        filters: Sequence[int],
        stride: int = 1,
        rate: int = 1,
        shortcut: str | None = "conv",
        relu: str = "before",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if shortcut not in ("conv", "sum", None):
            raise UserError(f"shortcut must be 'conv', 'sum' or None. Received: {shortcut!r}.")
        self.filters = tuple(filters)
        self.stride = stride
        self.rate = rate
        self.shortcut = shortcut
        self.relu = relu
        # Only the third has the stride, and where it has one the rate is 1.
        self.convs = [
            ConvBN(
                width,
                3,
                stride=stride if index == 2 else 1,
                rate=rate,
                separable=True,
                depthwise_norm=True,
                relu=relu,
                name=f"separable_{index}",
                **self.shared,
            )
            for index, width in enumerate(self.filters)
        ]
        self.projection: ConvBN | None = None
        if shortcut == "conv":
            self.projection = ConvBN(
                self.filters[-1], stride=stride, relu=None, name="shortcut", **self.shared
            )

    def build(self, input_shape: Shape) -> None:
        """Creates the weights."""
        build_chain(self.convs, input_shape)
        if self.projection is not None:
            self.projection.build(input_shape)

    def call(self, inputs: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
        """Returns the block's output and the second convolution's."""
        results = [inputs]
        for conv in self.convs:
            results.append(conv(results[-1], training=training))
        output = results[-1]
        if self.projection is not None:
            output = output + self.projection(inputs, training=training)
        elif self.shortcut == "sum":
            output = output + inputs
        return output, results[2]

    def compute_output_shape(self, input_shape: Shape) -> tuple[Shape, Shape]:
        """Returns the shapes of the block's output and of the second convolution's."""
        return (
            strided_shape(input_shape, self.stride, self.filters[-1]),
            strided_shape(input_shape, 1, self.filters[1]),
        )


@register
class Xception(Layer):
    """Aligned Xception-65 or -71 without its classifier: max pooling is replaced by strides.

    Once `output_stride` is reached, strides are replaced by atrous rates.

    Args:
        depth: 65 or 71.
        output_stride: 8 or 16.
        width_multiplier: Factor of all channels.
        **kwargs: See `Layer`.

    Input shape: float [N, H, W, C], normalised images.
    Output shape: (float [N, ceil(H / output_stride), ceil(W / output_stride), 2048], float [N,
        ceil(H / 4), ceil(W / 4), 256]): the features, and the low-level feature for a decoder: the
        second convolution of the block that leaves stride 4.

    Reference: Chen et al., DeepLabv3+, arXiv:1802.02611, sec. 3.2; the authors' TF1 code.
    """

    def __init__(
        self,
        depth: int = 65,
        output_stride: int = 8,
        width_multiplier: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if depth not in _ENTRY_FLOWS:
            raise UserError(f"depth must be one of 65, 71. Received: {depth!r}.")
        if output_stride not in OUTPUT_STRIDES:
            raise UserError(f"output_stride must be 8 or 16. Received: {output_stride!r}.")
        self.depth = depth
        self.output_stride = output_stride
        self.width_multiplier = width_multiplier
        self.root = [
            ConvBN(
                scaled(filters, width_multiplier),
                3,
                stride=2 - index,
                relu="after",
                name=f"root_{index}",
                **self.shared,
            )
            for index, filters in enumerate(_ROOT_FILTERS)
        ]
        self._stride, self._rate = 2, 1
        self.blocks: list[XceptionBlock] = []
        self.low_level_index = 0
        for index, (filters, stride) in enumerate(_ENTRY_FLOWS[depth]):
            if self._stride == 4 and stride == 2:
                self.low_level_index = index
            self._add_block(f"entry_{index}", (filters,) * 3, stride)
        for index in range(_MIDDLE_BLOCKS):
            self._add_block(f"middle_{index}", (_MIDDLE_FILTERS,) * 3, 1, shortcut="sum")
        self._add_block("exit_0", _EXIT_FILTERS[0], 2)
        self._add_block("exit_1", _EXIT_FILTERS[1], 1, shortcut=None, relu="after")

    def _add_block(self, name: str, filters: Sequence[int], stride: int, **arguments: Any) -> None:
        reached = self._stride == self.output_stride
        self.blocks.append(
            XceptionBlock(
                [scaled(width, self.width_multiplier) for width in filters],
                stride=1 if reached else stride,
                rate=self._rate,
                name=name,
                **arguments,
                **self.shared,
            )
        )
        if reached:
            self._rate *= stride
        else:
            self._stride *= stride

    @property
    def channels(self) -> tuple[int, int]:
        """Channels of the features, and of the low-level feature."""
        return self.blocks[-1].filters[-1], self.blocks[self.low_level_index].filters[1]

    def build(self, input_shape: Shape) -> None:
        """Creates the weights."""
        shape = build_chain(self.root, input_shape)
        for block in self.blocks:
            block.build(shape)
            shape, _ = block.compute_output_shape(shape)

    def call(self, images: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
        """Returns the features and the low-level feature; batch statistics where `training`."""
        features = call_chain(self.root, images, training)
        low_level = None
        for index, block in enumerate(self.blocks):
            features, second = block(features, training=training)
            if index == self.low_level_index:
                low_level = second
        return features, low_level

    def compute_output_shape(self, input_shape: Shape) -> tuple[Shape, Shape]:
        """Returns the shapes of the features and of the low-level feature."""
        features, low_level = self.channels
        return (
            strided_shape(input_shape, self.output_stride, features),
            strided_shape(input_shape, 4, low_level),
        )
