"""The operations of the search space as plain layers, and the conv-BN unit of every part.

`OPERATION_LAYERS` gives the class for each kind of row in `architecture.OPERATION_TABLE`; the
supernet computes the same operations fused (nn/node.py), from the same rows and classes.
"""

import keras
from keras import ops

from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.nn import backend
from auto_deeplab_tf.nn.atrous import atrous_conv, atrous_depthwise_conv
from auto_deeplab_tf.nn.resize import resize_bilinear
from auto_deeplab_tf.search_space import (
    ATROUS_KINDS,
    DECODABLE_OPERATIONS,
    operation,
    operation_units,
)

BATCH_NORM_EPSILON = 1e-3
BATCH_NORM_DECAY = 0.9997


def register(cls):
    """Registers a class for Keras serialisation under this package's name."""
    return keras.saving.register_keras_serializable(package="auto_deeplab_tf")(cls)


@register
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' batch normalisation with statistics over all replicas, on any backend.

    Keras' own `synchronized=True` is for TensorFlow alone and takes E[x^2] - E[x]^2 even on one
    device; here the variance is the mean of (x - mean)^2. On CPU the fused kernel serves.

    Args:
        momentum: Decay of the moving statistics.
        epsilon: Added to the variance.
        synchronized: Whether batch statistics are averaged over the replicas, which must hold the
            same number of examples each.

    Input shape: float [N, h, w, C].
    Output shape: The same.

    Reference: Ioffe and Szegedy 2015, arXiv:1502.03167.
    """

    def __init__(
        self, momentum=BATCH_NORM_DECAY, epsilon=BATCH_NORM_EPSILON, synchronized=True, **kwargs
    ):
        super().__init__(momentum=momentum, epsilon=epsilon, **kwargs)
        # Under Keras' own name it would refuse other backends.
        self.synchronized_over_replicas = synchronized

    def call(self, inputs, training=None):
        if not (training and self.trainable and self.synchronized_over_replicas):
            return super().call(inputs, training=training)
        # The fused kernel's variance is corrected by the number of positions, an int.
        has_size = None not in inputs.shape[1:3]
        normalize = backend.normalize_batch if has_size else backend.plain_normalize_batch
        gamma, beta = ops.convert_to_tensor(self.gamma), ops.convert_to_tensor(self.beta)
        normalized, mean, variance = normalize(inputs, gamma, beta, self.epsilon)
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + value * (1.0 - self.momentum))
        return normalized

    def get_config(self):
        config = super().get_config()
        config["synchronized"] = self.synchronized_over_replicas
        return config


@register
class ConvBN(keras.layers.Layer):
    """(ReLU,) convolution without bias, batch normalisation (, ReLU).

    Args:
        filters: Output channels.
        kernel_size: Width of the square window.
        stride: 1 or 2.
        rate: Atrous rate; 1 where `stride` is 2. Of a separable one also (rate down, rate across).
        separable: A depthwise window, then a pointwise 1x1, in place of the full convolution.
        depthwise_norm: Whether batch normalisation, and ReLU where it stands after, follow the
            depthwise convolution too (as in Xception's code).
        relu: `"before"`, `"after"` or None.
        batch_norm_decay: Decay of the moving statistics.
        synchronized: Whether batch statistics are taken over all replicas.

    Input shape: float [N, h, w, C].
    Output shape: float [N, ceil(h / stride), ceil(w / stride), filters].
    """

    def __init__(
        self,
        filters,
        kernel_size=1,
        stride=1,
        rate=1,
        separable=False,
        depthwise_norm=False,
        relu="before",
        batch_norm_decay=BATCH_NORM_DECAY,
        synchronized=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if relu not in ("before", "after", None):
            raise UserError(f"relu must be 'before', 'after' or None. Received: {relu!r}.")
        self.filters = filters
        self.kernel_size = kernel_size
        self.stride = stride
        self.rate = rate
        self.separable = separable
        self.depthwise_norm = depthwise_norm
        self.relu = relu
        self.batch_norm_decay = batch_norm_decay
        self.synchronized = synchronized
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
            if not separable:
                raise UserError(
                    "depthwise_norm needs separable: there is no depthwise convolution."
                )
            self.depthwise_batch_norm = BatchNormalization(
                batch_norm_decay,
                synchronized=synchronized,
                name="depthwise_batch_norm",
                dtype=self.dtype_policy,
            )
        self.conv = AtrousConv2D(
            filters, kernel_size, kernel_initializer="he_normal", name="conv", **window, **shared
        )
        self.batch_norm = BatchNormalization(
            batch_norm_decay,
            synchronized=synchronized,
            name="batch_norm",
            dtype=self.dtype_policy,
        )

    def build(self, input_shape):
        if self.depthwise is not None:
            self.depthwise.build(input_shape)
        if self.depthwise_batch_norm is not None:
            self.depthwise_batch_norm.build(input_shape)
        self.conv.build(input_shape)
        self.batch_norm.build((*input_shape[:-1], self.filters))

    def call(self, inputs, training=None):
        features = ops.relu(inputs) if self.relu == "before" else inputs
        if self.depthwise is not None:
            features = self.depthwise(features)
        if self.depthwise_batch_norm is not None:
            features = self.depthwise_batch_norm(features, training=training)
            features = ops.relu(features) if self.relu == "after" else features
        features = self.batch_norm(self.conv(features), training=training)
        return ops.relu(features) if self.relu == "after" else features

    def compute_output_shape(self, input_shape):
        return strided_shape(input_shape, self.stride, self.filters)

    def get_config(self):
        return super().get_config() | {
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "rate": self.rate,
            "separable": self.separable,
            "depthwise_norm": self.depthwise_norm,
            "relu": self.relu,
            "batch_norm_decay": self.batch_norm_decay,
            "synchronized": self.synchronized,
        }


@register
class AtrousConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` by `atrous_conv`: without the taps that can only fall on padding.

    Input shape: float [N, h, w, C].
    Output shape: float [N, h, w, filters].
    """

    def convolution_op(self, inputs, kernel):
        rate = self.dilation_rate[0]
        return atrous_conv(inputs, kernel, rate, strides=self.strides, padding=self.padding)


@register
class AtrousDepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` by `atrous_depthwise_conv`, without bias and activation.

    Input shape: float [N, h, w, C].
    Output shape: float [N, ceil(h / stride), ceil(w / stride), C].
    """

    def call(self, inputs):
        return atrous_depthwise_conv(
            inputs, self.kernel, self.dilation_rate, strides=self.strides, padding=self.padding
        )


# What a decoded edge may carry, by the kind of its row in `architecture.OPERATION_TABLE`.
OPERATION_LAYERS: dict[str, type["OperationLayer"]] = {}


def operation_layer(kind):
    """Makes a class that of the operations of a kind, and registers it for Keras' files."""

    def add(cls):
        OPERATION_LAYERS[kind] = register(cls)
        return cls

    return add


class OperationLayer(keras.layers.Layer):
    """Base of the operations on an edge of a cell.

    It applies `transform`, then the convolutions that `accounting.operation_units` lists, each as
    ReLU-conv-BN, so that what is built and what is counted cannot differ. A new operation is a
    subclass under `operation_layer` and a row of the table; the row alone where its kind is there.

    Args:
        op: Name of a row of `OPERATION_TABLE`.
        filters: Channels of input and output.
        stride: 2 where the path goes down and the operation reads an input of the cell, else 1.
        atrous: `"full"` or `"separable"`, the form of the atrous operations.
        batch_norm_decay: Decay of the moving statistics.
        synchronized: Whether batch statistics are taken over all replicas.

    Input shape: float [N, h, w, filters].
    Output shape: float [N, ceil(h / stride), ceil(w / stride), filters].

    Reference: Liu et al., Auto-DeepLab, CVPR 2019, arXiv:1901.02985, sec. 3.1.
    """

    # Whether ScheduledDropPath may drop the result.
    droppable = True

    def __init__(
        self,
        op: str,
        filters: int,
        stride: int = 1,
        atrous: str = "full",
        batch_norm_decay: float = BATCH_NORM_DECAY,
        synchronized: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if stride not in (1, 2):
            raise UserError(f"stride must be 1 or 2. Received: {stride!r}.")
        if atrous not in ATROUS_KINDS:
            raise UserError(f"atrous must be 'full' or 'separable'. Received: {atrous!r}.")
        self.op = op
        self.row = operation(op)
        self.filters = filters
        self.stride = stride
        self.atrous = atrous
        self.batch_norm_decay = batch_norm_decay
        self.synchronized = synchronized
        self.units = [
            ConvBN(
                filters,
                **unit._asdict(),
                batch_norm_decay=batch_norm_decay,
                synchronized=synchronized,
                name=f"unit_{index}",
                dtype=self.dtype_policy,
            )
            for index, unit in enumerate(operation_units(self.row, stride, atrous))
        ]

    def build(self, input_shape):
        for unit in self.units:
            unit.build(input_shape)

    @staticmethod
    def transform(row, images, stride):
        """What the operation does without weights before its convolutions: nothing, unless a
        subclass says otherwise.

        The supernet calls it at stride 1, for the channels of several predecessors side by side.

        Args:
            row: The operation's row of `OPERATION_TABLE`.
            images: float [N, h, w, C]; each channel is transformed alike and by itself.
            stride: 1 or 2.

        Returns:
            float [N, h, w, C], or in half the size, rounded up, where the stride is 2 and neither
            the convolutions nor the projection have it.
        """
        return images

    def call(self, inputs, training=None):
        outputs = self.transform(self.row, inputs, self.stride)
        for unit in self.units:
            outputs = unit(outputs, training=training)
        return outputs

    def compute_output_shape(self, input_shape):
        return strided_shape(input_shape, self.stride, self.filters)

    def get_config(self):
        return super().get_config() | {
            "op": self.op,
            "filters": self.filters,
            "stride": self.stride,
            "atrous": self.atrous,
            "batch_norm_decay": self.batch_norm_decay,
            "synchronized": self.synchronized,
        }


@operation_layer("separable")
class SeparableOperation(OperationLayer):
    """ReLU, depthwise kxk, pointwise 1x1, BN: `repeats` times, the stride in the first.

    Args, shapes, reference: see `OperationLayer`.
    """


@operation_layer("atrous")
class AtrousOperation(OperationLayer):
    """ReLU, atrous kxk convolution, BN.

    In a stride-2 position the input is, after the ReLU, resized bilinearly to half its size, and
    the rate is 1 (as the authors' code does it). A full convolution, or depthwise and pointwise
    where `atrous` is `"separable"`.

    Args, shapes, reference: see `OperationLayer`.
    """

    @staticmethod
    def transform(row, images, stride):
        if stride == 1:
            return images
        _, height, width, _ = ops.shape(images)
        # ReLU first: interpolating and clipping do not commute. The unit's own ReLU changes
        # nothing after it.
        return resize_bilinear(ops.relu(images), ((height + 1) // 2, (width + 1) // 2))


@operation_layer("pool")
class PoolOperation(OperationLayer):
    """Average or maximum over a kxk window, the stride in the pool; neither weights nor BN.

    Positions on padding take no part in the average.

    Args, shapes, reference: see `OperationLayer`.
    """

    @staticmethod
    def transform(row, images, stride):
        # The supernet's is at stride 1, and XLA may have to compile it.
        max_pool = backend.max_pool if stride == 1 else ops.max_pool
        pool = {"average": ops.average_pool, "max": max_pool}[row.pooling]
        return pool(images, row.kernel_size, strides=stride, padding="same")


@operation_layer("skip")
class SkipOperation(OperationLayer):
    """Identity; in a stride-2 position ReLU, 1x1 convolution with stride 2, BN.

    Args, shapes, reference: see `OperationLayer`.
    """

    # ScheduledDropPath never drops it.
    droppable = False


def operation_layer_class(op: str) -> type[OperationLayer]:
    """Returns the layer class of an operation by its name."""
    row = operation(op)
    try:
        return OPERATION_LAYERS[row.kind]
    except KeyError:
        raise UserError(
            f"operation {op!r} has no layer: a decoded edge carries one of "
            f"{', '.join(DECODABLE_OPERATIONS)}."
        ) from None


def strided_shape(input_shape, stride, filters):
    """Returns the shape [N, ceil(h / stride), ceil(w / stride), filters]; None stays None."""
    batch, *extents, _ = input_shape
    return (batch, *(None if e is None else -(-e // stride) for e in extents), filters)
