"""What every segmentation network shares: images in 0..255 to logits at the images' size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.nn import backend
from auto_deeplab_tf.nn.backend import Tensor
from auto_deeplab_tf.nn.layer import Normalized, Shape
from auto_deeplab_tf.nn.normalization import BATCH_NORM_DECAY, Normalization, counted_updates
from auto_deeplab_tf.nn.resize import resize_bilinear
from auto_deeplab_tf.search_space import (
    CHANNEL_NAMES,
    INPUT_CHANNELS,
    MINIMUM_SIZE,
    PLAIN_MEAN,
    PLAIN_STD,
    checked_count,
    checked_size,
)

# The number of updates that moving statistics have had where a file of an earlier version does not
# say it: their decay stays at its limit, as it was there.
MANY_UPDATES = 2**30
# The variable of that number, which checkpoints leave out: it is the number of steps.
UPDATES_NAME = "normalization_updates"


class SegmentationNetwork(Normalized, keras.Model):
    """Base of the networks: checks and normalises images, resizes logits to the images' size.

    A subclass's constructor hands the common settings on, keeps its own, makes its layers in the
    order of computation and ends with `self.build((None, height, width, channels))`, of
    `self.static_input_shape`. It has

        build(input_shape)                 creates the weights of its layers
        compute_logits(images, training)   normalised images -> logits of any size
        class_layer                        the layer whose outputs are the classes

    and keeps each of its arguments as an attribute of the same name.

    Args:
        num_classes: Number of classes, 1 or more.
        input_size: (height, width), each 32 or more: the static size recorded for summaries and
            exports; None: any size. The weights serve any other size too.
        mean, std: Images are normalised (x - mean) / std, in units of 0..255: one value for each
            channel of the images, of which there are 1, 3 or 4.
        batch_norm_decay: Limit of the moving statistics' decay, which is smaller during the first
            updates (`normalization.update_weights`); in [0, 1).
        **kwargs: Those of `keras.Model`, such as `name` and `dtype`.

    Input shape: [N, H, W, C], 0..255; C = len(mean); H and W 32 or more.
    Output shape: float32 [N, H, W, num_classes], logits, also in mixed precision.

    Attributes:
        updates: int32 variable: how often the moving statistics were updated.

    Raises:
        ValueError: For a setting out of its range, or images that do not fit.
    """

    def __init__(
        self,
        num_classes: int = 19,
        input_size: tuple[int, int] | None = None,
        *,
        mean: Sequence[float] = PLAIN_MEAN,
        std: Sequence[float] = PLAIN_STD,
        batch_norm_decay: float = BATCH_NORM_DECAY,
        **kwargs: Any,
    ) -> None:
        # Images stay float32 until they are normalised: bfloat16 holds 0..255 to 8 bits only.
        super().__init__(**{"autocast": False, **kwargs})
        self.num_classes = checked_count("num_classes", num_classes)
        self.input_size = None if input_size is None else checked_size(input_size)
        self.mean, self.std = checked_normalization(mean, std)
        if not 0 <= batch_norm_decay < 1:
            raise UserError(
                f"batch_norm_decay must be at least 0 and below 1. Received: {batch_norm_decay}."
            )
        self.batch_norm_decay = float(batch_norm_decay)
        self.norm = Normalization(self.batch_norm_decay)
        self.updates = self.add_weight(
            name=UPDATES_NAME, shape=(), initializer="zeros", trainable=False, dtype="int32"
        )

    @property
    def input_channels(self) -> int:
        """Channels of the images."""
        return len(self.mean)

    @property
    def static_input_shape(self) -> Shape:
        """[N, H, W, C] as far as it is known: None for N, and for H and W without an input size."""
        return (None, *(self.input_size or (None, None)), self.input_channels)

    @property
    def progress(self) -> keras.Variable | None:
        """The training's progress in 0..1, for the training loop to set; None: nothing reads it."""
        return None

    @property
    def class_layer(self) -> keras.layers.Layer:
        """The layer whose outputs are the classes: what a transfer to other classes replaces."""
        raise NotImplementedError

    def resume_updates(self, steps: int) -> None:
        """Notes that the moving statistics come from a training of that many steps."""
        self.updates.assign(max(steps, int(ops.convert_to_numpy(self.updates))))

    def load_own_variables(self, store: Any) -> None:
        """Reads `updates`, which files of earlier versions do not hold."""
        if len(store.keys()) > 0:
            super().load_own_variables(store)
        else:
            self.updates.assign(MANY_UPDATES)

    def build_from_config(self, config: Mapping[str, Any]) -> None:
        """Does nothing, where Keras loads a model: a network is built when it is constructed."""

    def __call__(self, images: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Refuses images that do not fit in one line, then calls the network.

        Here and not in `call`, for Keras would wrap the message into a report of ten lines.
        """
        check_images(images, self.input_channels)
        return super().__call__(images, *args, **kwargs)

    def call(self, images: Tensor, training: bool | None = None) -> Tensor:
        """Computes the logits; see the class."""
        size = ops.shape(images)[1:3]
        images = ops.cast(images, "float32")
        images = (images - ops.convert_to_tensor(self.mean, "float32")) / ops.convert_to_tensor(
            self.std, "float32"
        )
        updates = backend.read(self.updates) if training and self.trainable else None
        with counted_updates(updates):
            logits = self.compute_logits(ops.cast(images, self.compute_dtype), training=training)
        if updates is not None:
            self.updates.assign(updates + 1)
        return resize_bilinear(ops.cast(logits, "float32"), size)

    def compute_logits(self, images: Tensor, training: bool | None = None) -> Tensor:
        """Computes logits of any size, corners aligned with those of the images.

        Args:
            images: [N, H, W, C] in the compute dtype, normalised.
            training: Whether batch statistics are taken, and paths dropped.
        """
        raise NotImplementedError

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Returns [N, H, W, num_classes]."""
        return (*input_shape[:-1], self.num_classes)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> Any:
        """Builds a network from `get_config`'s content, as it is or read from JSON."""
        config = dict(config)
        for key in ("input_size", "mean", "std"):
            if config.get(key) is not None:
                config[key] = tuple(config[key])
        return super().from_config(config, custom_objects)


class ScaledNetwork(SegmentationNetwork):
    """Base of the networks whose channels can all be multiplied by a factor.

    Args:
        *args: See `SegmentationNetwork`.
        width_multiplier: Factor of all channels, above 0; 1 in the paper.
        **kwargs: See `SegmentationNetwork`.

    Input shape, output shape: see `SegmentationNetwork`.
    """

    def __init__(self, *args: Any, width_multiplier: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(width_multiplier, bool) or not width_multiplier > 0:
            raise UserError(
                f"width_multiplier must be a number above 0. Received: {width_multiplier!r}."
            )
        self.width_multiplier = float(width_multiplier)

    def width(self, filters: int) -> int:
        """Returns a number of channels times the factor; see `scaled`."""
        return scaled(filters, self.width_multiplier)

    @property
    def class_layer(self) -> keras.layers.Layer:
        """The last layer."""
        return self.classes


def scaled(filters: int, width_multiplier: float) -> int:
    """Returns a number of channels times a factor, rounded, at least 1."""
    return max(1, round(filters * width_multiplier))


def checked_normalization(
    mean: Sequence[float], std: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and std as floats, one for each channel of the images.

    Raises:
        ValueError: For another number of channels than 1, 3 or 4, for different numbers, or a
            deviation of 0 or less.
    """
    mean, std = (tuple(float(value) for value in values) for values in (mean, std))
    if len(mean) not in INPUT_CHANNELS:
        raise UserError(
            "mean must hold a value for each channel of the images: 1, 3 (R, G and B) or 4 "
            f"values. Received: {mean}."
        )
    if len(std) != len(mean):
        raise UserError(
            f"std must hold as many values as mean, {len(mean)}. Received: {len(std)} values, "
            f"{std}."
        )
    if min(std) <= 0:
        raise UserError(f"std must be above 0 for each channel. Received: {std}.")
    return mean, std


def check_images(images: Any, channels: int) -> None:
    """Refuses what is no batch of images with that many channels, of 32 pixels or more.

    Raises:
        ValueError: In one line.
    """
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[-1] != channels:
        raise UserError(
            f"images must be [N, H, W, {channels}], {CHANNEL_NAMES[channels]}, 0..255. "
            f"Received shape: {shape}."
        )
    if any(extent is not None and extent < MINIMUM_SIZE for extent in shape[1:3]):
        raise UserError(
            f"images must be {MINIMUM_SIZE} pixels or more in height and width. "
            f"Received: {shape[1]} x {shape[2]}."
        )
