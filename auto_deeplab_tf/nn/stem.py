"""The stem: images to stride 4 in two stride-2 reductions."""

import keras

from auto_deeplab_tf.nn.operations import BATCH_NORM_DECAY, ConvBN, register, strided_shape
from auto_deeplab_tf.search_space import STEM_FILTERS, STEM_STRIDES


@register
class Stem(keras.layers.Layer):
    """3x3 to 64 stride 2, BN, ReLU; 3x3 to 64, BN; ReLU; 3x3 to 128 stride 2, BN.

    Args:
        batch_norm_decay: Decay of the moving statistics.
        synchronized: Whether batch statistics are taken over all replicas.

    Input shape: float [N, H, W, C], normalised images.
    Output shape: (float [N, ceil(H / 2), ceil(W / 2), 64], float [N, ceil(H / 4), ceil(W / 4),
        128]): the first cell's `prev_prev` and `prev`, both before their ReLU.

    Reference: the authors' TF1 code, `_nas_stem`.
    """

    def __init__(self, batch_norm_decay=BATCH_NORM_DECAY, synchronized=True, **kwargs):
        super().__init__(**kwargs)
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
                zip(STEM_FILTERS, STEM_STRIDES, (None, "before", "before"), strict=True)
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
        half = strided_shape(input_shape, 2, STEM_FILTERS[1])
        return half, strided_shape(half, 2, STEM_FILTERS[2])

    def get_config(self):
        return super().get_config() | {
            "batch_norm_decay": self.batch_norm_decay,
            "synchronized": self.synchronized,
        }
