"""Networks of keras-hub as outside references, with the interface of all networks here.

They are built from their settings, without any download; the extra `references` holds the package.
Layers, initial values and dropout are keras-hub's own. What is changed: decay of batch
normalisation is an argument, batch statistics are those of all replicas, images are normalised as
for the other networks, and any size is taken.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from auto_deeplab_tf.nn.backend import Tensor
from auto_deeplab_tf.nn.layer import Shape
from auto_deeplab_tf.nn.normalization import BatchNormalization
from auto_deeplab_tf.nn.resize import resample
from auto_deeplab_tf.nn.segmentation_network import SegmentationNetwork
from auto_deeplab_tf.nn.serialization import register


class _KerasHubNetwork(SegmentationNetwork):
    """A network around one of keras-hub's; a subclass makes it and calls it.

    Attributes:
        reference: keras-hub's model.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        with _default_policy(self.dtype_policy):
            self.reference = self._make(importlib.import_module("keras_hub").models)
        for layer in self.reference._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization):
                # The same weights and configuration, with another `call`.
                layer.__class__ = BatchNormalization
                layer.momentum = self.norm.decay
        self.build(self.static_input_shape)

    def build(self, input_shape: Shape) -> None:
        """Does nothing: keras-hub's models are built when they are made."""
        self.built = True

    def _make(self, models: Any) -> keras.Model:
        raise NotImplementedError


@contextlib.contextmanager
def _default_policy(policy: Any) -> Iterator[None]:
    """Makes a dtype policy the default: not all of keras-hub's layers hand theirs on."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@register
class KerasHubDeepLabV3Plus(_KerasHubNetwork):
    """keras-hub's DeepLabV3+ on ResNet-50, with the settings of its Pascal VOC preset.

    It joins features at strides 4 and 32 by whole factors, so images are padded behind to multiples
    of 32, after normalisation by 0, and the logits are cut back.

    Args, shapes: see `SegmentationNetwork`.

    Reference: Chen et al., ECCV 2018, arXiv:1802.02611; keras_hub.models.DeepLabV3ImageSegmenter.
    """

    def _make(self, models: Any) -> keras.Model:
        image_shape = (None, None, self.input_channels)
        encoder = models.ResNetBackbone(
            input_conv_filters=[64],
            input_conv_kernel_sizes=[7],
            stackwise_num_filters=[64, 128, 256, 512],
            stackwise_num_blocks=[3, 4, 6, 3],
            stackwise_num_strides=[1, 2, 2, 2],
            block_type="bottleneck_block",
            image_shape=image_shape,
        )
        backbone = models.DeepLabV3Backbone(
            image_encoder=encoder,
            spatial_pyramid_pooling_key="P5",
            upsampling_size=8,
            dilation_rates=[6, 12, 18],
            low_level_feature_key="P2",
            projection_filters=48,
            image_shape=image_shape,
        )
        # Of the same layers; their weights are listed and saved once, with `reference`.
        self._pyramid = keras.Model(encoder.input, encoder.pyramid_outputs)
        return models.DeepLabV3ImageSegmenter(backbone, self.num_classes)

    @property
    def class_layer(self) -> keras.layers.Layer:
        """keras-hub's last layer."""
        return self.reference.output_conv

    def compute_logits(self, images: Tensor, training: bool | None = None) -> Tensor:
        """Computes the logits at full resolution; see `SegmentationNetwork`."""
        _, height, width, _ = ops.shape(images)
        padded = ops.pad(images, [(0, 0), (0, -height % 32), (0, -width % 32), (0, 0)])
        return self._logits(padded, training)[:, :height, :width]

    def _logits(self, images: Tensor, training: bool | None) -> Tensor:
        """keras-hub's graph, whose own way of upsampling needs sizes that are known statically.

        Args:
            images: float [N, H, W, C], H and W multiples of 32.
            training: Whether batch statistics are taken.
        """
        layers = {layer.name: layer for layer in self.reference.backbone.layers}
        pyramid = self._pyramid(images, training=training)
        deep = self._pyramid_pooling(pyramid["P5"], training)
        low = layers["decoder_conv"](pyramid["P2"])
        low = ops.relu(layers["decoder_norm"](low, training=training))
        joined = ops.concatenate([_resized(deep, ops.shape(low)[1:3]), low], axis=-1)
        joined = layers["segmentation_head_conv"](joined)
        joined = ops.relu(layers["segmentation_head_norm"](joined, training=training))
        return self.reference.output_conv(_resized(joined, ops.shape(images)[1:3]))

    def _pyramid_pooling(self, features: Tensor, training: bool | None) -> Tensor:
        (layer,) = (
            layer
            for layer in self.reference.backbone.layers
            if hasattr(layer, "aspp_parallel_channels")
        )
        *branches, pooled = (
            branch(features, training=training) for branch in layer.aspp_parallel_channels
        )
        pooled = ops.broadcast_to(pooled, ops.shape(branches[0]))
        return layer.projection(ops.concatenate([*branches, pooled], axis=-1), training=training)


@register
class KerasHubSegFormerB0(_KerasHubNetwork):
    """keras-hub's SegFormer-B0: a MiT-B0 encoder and the all-MLP decoder.

    keras-hub calls its layers for square images of a fixed size only (it takes the root of the
    number of positions for the height). Here the same layers, with their weights, are called with
    height and width; on a square image the result is keras-hub's.

    Args, shapes: see `SegmentationNetwork`; any H and W of 32 or more.

    Reference: Xie et al., NeurIPS 2021, arXiv:2105.15203; keras_hub.models.SegFormerImageSegmenter.
    """

    # A size that every stride and every reduction of the attention divides.
    _MADE_AT = 64

    def _make(self, models: Any) -> keras.Model:
        encoder = models.MiTBackbone(
            image_shape=(self._MADE_AT, self._MADE_AT, self.input_channels),
            num_layers=4,
            hidden_dims=[32, 64, 160, 256],
            layerwise_depths=[2, 2, 2, 2],
            layerwise_num_heads=[1, 2, 5, 8],
            layerwise_sr_ratios=[8, 4, 2, 1],
            layerwise_patch_sizes=[7, 3, 3, 3],
            layerwise_strides=[4, 2, 2, 2],
            max_drop_path_rate=0.1,
        )
        backbone = models.SegFormerBackbone(image_encoder=encoder, projection_filters=256)
        return models.SegFormerImageSegmenter(backbone, self.num_classes)

    @property
    def class_layer(self) -> keras.layers.Layer:
        """keras-hub's last layer."""
        return self.reference.output_segmentation_head

    def compute_logits(self, images: Tensor, training: bool | None = None) -> Tensor:
        """Computes the logits at full resolution; see `SegmentationNetwork`."""
        size = ops.shape(images)[1:3]
        backbone = self.reference.backbone
        pyramid = self._encode(backbone.image_encoder, images, training)
        finest = ops.shape(pyramid[0])[1:3]
        mixed = [
            _resized(mlp(features), finest)
            for mlp, features in zip(backbone.mlp_blocks, pyramid, strict=True)
        ]
        fused = backbone.linear_fuse(ops.concatenate(mixed[::-1], axis=-1), training=training)
        fused = self.reference.dropout(fused, training=training)
        logits = self.reference.output_segmentation_head(fused)
        return _resized(ops.cast(logits, "float32"), size)

    def _encode(self, encoder: Any, images: Tensor, training: bool | None) -> list[Tensor]:
        """Returns the four feature maps, float [N, h, w, C], at strides 4 to 32."""
        layers = {layer.name: layer for layer in encoder.layers}
        norms = [x for x in encoder.layers if isinstance(x, keras.layers.LayerNormalization)]
        pyramid = []
        for level, depth in enumerate(encoder.layerwise_depths):
            embed = layers[f"patch_and_embed_{level}"]
            images = embed.proj(embed.padding(images))
            shape = ops.shape(images)
            tokens = embed.norm(ops.reshape(images, (-1, shape[1] * shape[2], shape[3])))
            for index in range(depth):
                block = layers[f"hierarchical_encoder_{level}_{index}"]
                attended = _attend(block.attn, block.norm1(tokens), shape, training)
                tokens = tokens + block.drop_path(attended, training=training)
                mixed = _mix(block.mlp, block.norm2(tokens), shape)
                tokens = tokens + block.drop_path(mixed, training=training)
            images = ops.reshape(norms[level](tokens), (-1, *shape[1:]))
            pyramid.append(images)
        return pyramid


def _resized(images: Tensor, size: tuple[Any, Any]) -> Tensor:
    """As keras-hub resizes to a larger size: bilinear between the centres of the pixels.

    As products with matrices, since `ops.image.resize` needs a size that is known statically.
    """
    _, height, width, _ = ops.shape(images)
    return resample(images, _centred_matrix(size[0], height), _centred_matrix(size[1], width))


def _centred_matrix(size_out: Any, size_in: Any) -> Tensor:
    """float32 [size_out, size_in]: linear interpolation with the edges of the pixels aligned."""
    last = ops.cast(size_in - 1, "float32")
    scale = ops.cast(size_in, "float32") / ops.cast(size_out, "float32")
    position = ops.clip((ops.cast(ops.arange(size_out), "float32") + 0.5) * scale - 0.5, 0.0, last)
    inputs = ops.cast(ops.arange(size_in), "float32")
    return ops.maximum(0.0, 1.0 - ops.abs(position[:, None] - inputs[None, :]))


def _attend(layer: Any, tokens: Tensor, shape: tuple[Any, ...], training: bool | None) -> Tensor:
    """Attention whose keys and values are taken at a fraction of the resolution.

    Args:
        layer: Of keras-hub, a SegFormerMultiheadAttention.
        tokens: float [N, h * w, C].
        shape: (N, h, w, C).
        training: Whether dropout acts.
    """
    _, height, width, channels = shape
    heads = (-1, layer.num_heads, channels // layer.num_heads)

    def by_head(values: Tensor) -> Tensor:
        return ops.transpose(ops.reshape(values, (ops.shape(values)[0], *heads)), (0, 2, 1, 3))

    queries, reduced = by_head(layer.q(tokens)), tokens
    if layer.sr_ratio > 1:
        reduced = layer.sr(ops.reshape(tokens, (-1, height, width, channels)))
        rows, columns = ops.shape(reduced)[1:3]
        reduced = layer.norm(ops.reshape(reduced, (-1, rows * columns, channels)))
    keys, values = by_head(layer.k(reduced)), by_head(layer.v(reduced))
    weights = ops.softmax(queries @ ops.transpose(keys, (0, 1, 3, 2)) * layer.scale, axis=-1)
    mixed = ops.transpose(layer.dropout(weights, training=training) @ values, (0, 2, 1, 3))
    mixed = layer.proj(ops.reshape(mixed, (-1, height * width, channels)))
    return layer.proj_drop(mixed, training=training)


def _mix(layer: Any, tokens: Tensor, shape: tuple[Any, ...]) -> Tensor:
    """keras-hub's MixFFN: dense, depthwise 3x3, GELU, dense; float [N, h * w, C] -> the same."""
    _, height, width, _ = shape
    wide = layer.fc1(tokens)
    channels = wide.shape[-1]
    images = layer.dwconv(ops.reshape(wide, (-1, height, width, channels)))
    return layer.fc2(ops.gelu(ops.reshape(images, (-1, height * width, channels))))
