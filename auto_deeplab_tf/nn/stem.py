"""The stem: images to stride 4 in two stride-2 reductions."""

import keras

from auto_deeplab_tf.nn.operations import BATCH_NORM_DECAY, ConvBN, register, strided_shape
from auto_deeplab_tf.search_space import STEM_CHANNELS, STEM_STRIDES


@register
class Stem(keras.layers.Layer):
    """3x3 to C0 stride 2, BN, ReLU; 3x3 to C1, BN; ReLU; 3x3 to C2 stride 2, BN.

    Args:
        channels: (C0, C1, C2).
        batch_norm_decay: Decay of the moving statistics.
        synchronized: Whether batch statistics are taken over all replicas.

    Input shape: float [N, H, W, C], normalised images.
    Output shape: (float [N, ceil(H / 2), ceil(W / 2), C1], float [N, ceil(H / 4), ceil(W / 4),
        C2]): the first cell's `prev_prev` and `prev`, both before their ReLU.

    Reference: the authors' TF1 code, `_nas_stem`.
    """

    def __init__(
        self, channels=STEM_CHANNELS, batch_norm_decay=BATCH_NORM_DECAY, synchronized=True, **kwargs
    ):
        super().__init__(**kwargs)
        self.channels = tuple(channels)
        self.batch_norm_decay = batch_norm_decay
        self.synchronized = synchronized
        self.units = [
            ConvBN(
                filters,
                kernel_size=3,
                stride=stride,
                relu=relu,
                batch_norm_decay=batch_norm_decay,
                synchronized=synchronized,
                name=f"unit_{index}",
                dtype=self.dtype_policy,
            )
            for index, (filters, stride, relu) in enumerate(
                zip(self.channels, STEM_STRIDES, (None, "before", "before"), strict=True)
            )
        ]

    def build(self, input_shape):
        for unit in self.units:
            unit.build(input_shape)
            input_shape = unit.compute_output_shape(input_shape)

    def call(self, images, training=None):
        half = self.units[1](self.units[0](images, training=training), training=training)
        return half, self.units[2](half, training=training)

    def compute_output_shape(self, input_shape):
        half = strided_shape(input_shape, 2, self.channels[1])
        return half, strided_shape(half, 2, self.channels[2])

    def get_config(self):
        return super().get_config() | {
            "channels": self.channels,
            "batch_norm_decay": self.batch_norm_decay,
            "synchronized": self.synchronized,
        }
