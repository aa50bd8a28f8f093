"""PSPNet: a dilated ResNet and pyramid pooling."""

from __future__ import annotations

from typing import Any

from keras import ops

from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.nn.backend import Tensor, max_pool
from auto_deeplab_tf.nn.conv import AtrousConv2D, ConvBN
from auto_deeplab_tf.nn.layer import Layer, Shape, build_chain, call_chain, strided_shape
from auto_deeplab_tf.nn.resize import average_bins, resize_bilinear
from auto_deeplab_tf.nn.segmentation_network import ScaledNetwork
from auto_deeplab_tf.nn.serialization import register

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_ROOT_FILTERS = (64, 64, 128)
# Of the four stages: channels of the 3x3 convolutions (the output has four times as many), the
# stride of the first block, the atrous rate of all.
_STAGES = ((64, 1, 1), (128, 2, 1), (256, 1, 2), (512, 1, 4))
_PYRAMID_BINS = (1, 2, 3, 6)
_HEAD_FILTERS = 512


@register
class Bottleneck(Layer):
    """1x1, 3x3 (with stride or rate), 1x1 to four times the channels; plus a shortcut; ReLU.

    Args:
        filters: Channels of the first two convolutions.
        stride: 1 or 2.
        rate: Atrous rate of the 3x3.
        project: Whether the shortcut is a 1x1 with BN, in place of the input itself.
        **kwargs: See `Layer`.

    Input shape: float [N, h, w, C].
    Output shape: float [N, ceil(h / stride), ceil(w / stride), 4 * filters].

    Reference: He et al., ResNet, CVPR 2016, arXiv:1512.03385.
    """

    def __init__(
        self,
        filters: int,
        stride: int = 1,
        rate: int = 1,
        project: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.stride = stride
        self.rate = rate
        self.project = project
        shared = self.shared
        self.convs = [
            ConvBN(filters, relu="after", name="reduce", **shared),
            ConvBN(filters, 3, stride=stride, rate=rate, relu="after", name="window", **shared),
            ConvBN(4 * filters, relu=None, name="increase", **shared),
        ]
        self.projection = None
        if project:
            self.projection = ConvBN(
                4 * filters, stride=stride, relu=None, name="shortcut", **shared
            )

    def build(self, input_shape: Shape) -> None:
        """Creates the weights."""
        build_chain(self.convs, input_shape)
        if self.projection is not None:
            self.projection.build(input_shape)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Computes the block; batch statistics where `training`."""
        features = call_chain(self.convs, inputs, training)
        if self.projection is not None:
            inputs = self.projection(inputs, training=training)
        return ops.relu(features + inputs)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Returns [N, ceil(h / stride), ceil(w / stride), 4 * filters]."""
        return strided_shape(input_shape, self.stride, 4 * self.filters)


@register
class PyramidPooling(Layer):
    """Averages over 1x1, 2x2, 3x3 and 6x6 bins, each 1x1, BN, ReLU and resized, beside the input.

    Args:
        filters: Channels of each level.
        **kwargs: See `Layer`.

    Input shape: float [N, h, w, C].
    Output shape: float [N, h, w, C + 4 * filters].

    Reference: Zhao et al., PSPNet, CVPR 2017, arXiv:1612.01105, sec. 3.2.
    """

    def __init__(self, filters: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.levels = [
            ConvBN(filters, relu="after", name=f"bins_{bins}", **self.shared)
            for bins in _PYRAMID_BINS
        ]

    def build(self, input_shape: Shape) -> None:
        """Creates the weights."""
        for level in self.levels:
            level.build(input_shape)

    def call(self, features: Tensor, training: bool | None = None) -> Tensor:
        """Returns the pyramid beside the input; batch statistics where `training`."""
        size = ops.shape(features)[1:3]
        results = [features]
        for bins, level in zip(_PYRAMID_BINS, self.levels, strict=True):
            pooled = level(average_bins(features, bins), training=training)
            results.append(resize_bilinear(pooled, size))
        return ops.concatenate(results, axis=-1)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Returns [N, h, w, C + 4 * filters]."""
        return (*input_shape[:-1], (input_shape[-1] or 0) + len(self.levels) * self.filters)


@register
class PSPNet(ScaledNetwork):
    """ResNet at stride 8 by atrous convolutions, pyramid pooling, 3x3, and 1x1 to the classes.

    The root is the authors': three 3x3 convolutions and 3x3 max pooling, in place of one 7x7. Their
    auxiliary loss on the fourth stage, and the dropout before the last 1x1, are left out: every
    network here has one output and is trained by the same recipe.

    Args:
        *args: See `ScaledNetwork`.
        depth: Of the ResNet: 50, 101 or 152.
        **kwargs: See `ScaledNetwork`.

    Input shape, output shape: see `SegmentationNetwork`.

    Reference: Zhao et al., PSPNet, CVPR 2017, arXiv:1612.01105; the authors' Caffe definitions.
    """

    def __init__(self, *args: Any, depth: int = 101, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if depth not in _BLOCKS:
            raise UserError(f"depth must be one of 50, 101, 152. Received: {depth!r}.")
        self.depth = depth
        self._add_layers()
        self.build(self.static_input_shape)

    def _add_layers(self) -> None:
        shared, width = self.shared, self.width
        self.root = [
            ConvBN(
                width(filters),
                3,
                stride=2 if index == 0 else 1,
                relu="after",
                name=f"root_{index}",
                **shared,
            )
            for index, filters in enumerate(_ROOT_FILTERS)
        ]
        self.blocks = [
            Bottleneck(
                width(filters),
                stride=stride if index == 0 else 1,
                rate=rate,
                project=index == 0,
                name=f"stage_{stage}_block_{index}",
                **shared,
            )
            for stage, ((filters, stride, rate), blocks) in enumerate(
                zip(_STAGES, _BLOCKS[self.depth], strict=True)
            )
            for index in range(blocks)
        ]
        self.pyramid = PyramidPooling(width(_HEAD_FILTERS), name="pyramid", **shared)
        self.joined = ConvBN(width(_HEAD_FILTERS), 3, relu="after", name="joined", **shared)
        self.classes = AtrousConv2D(self.num_classes, 1, name="classes", dtype=self.dtype_policy)

    def build(self, input_shape: Shape) -> None:
        """Creates the weights; `input_shape` is [N, H, W, C], N, H and W possibly None."""
        layers = (*self.root, *self.blocks, self.pyramid, self.joined, self.classes)
        build_chain(layers, input_shape)

    def compute_logits(self, images: Tensor, training: bool | None = None) -> Tensor:
        """Computes the logits at stride 8; see `SegmentationNetwork`."""
        features = max_pool(call_chain(self.root, images, training), 3, strides=2)
        features = call_chain((*self.blocks, self.pyramid, self.joined), features, training)
        return self.classes(features)
