"""The dense prediction cell: an atrous pyramid found by search, in place of the ASPP."""

import keras
from keras import ops

from auto_deeplab_tf.nn.operations import BATCH_NORM_DECAY, ConvBN, register

# The published cell for Cityscapes, rates at stride 16 (down, across). A branch reads the features,
# or an earlier branch by its number.
BRANCHES = (
    (None, (1, 6)),
    (0, (18, 15)),
    (1, (6, 3)),
    (0, (1, 1)),
    (0, (6, 21)),
)


@register
class DensePredictionCell(keras.layers.Layer):
    """Five separable 3x3 atrous convolutions in a tree, concatenated; then 1x1.

    BN and ReLU follow each depthwise and each pointwise convolution, and the last 1x1. The rates
    of `BRANCHES` hold at stride 16; at stride 8 all are doubled, as in the authors' code.

    Args:
        stride: Stride of the input, 8 or 16.
        filters: Channels of each branch and of the output.
        batch_norm_decay: Decay of the moving statistics.
        synchronized: Whether batch statistics are taken over all replicas.

    Input shape: float [N, h, w, C].
    Output shape: float [N, h, w, filters].

    Reference: Chen et al., Searching for Efficient Multi-Scale Architectures for Dense Image
        Prediction, NeurIPS 2018, arXiv:1809.04184, fig. 3.
    """

    def __init__(
        self, stride, filters=256, batch_norm_decay=BATCH_NORM_DECAY, synchronized=True, **kwargs
    ):
        super().__init__(**kwargs)
        self.stride = stride
        self.filters = filters
        self.batch_norm_decay = batch_norm_decay
        self.synchronized = synchronized
        norm = {
            "relu": "after",
            "batch_norm_decay": batch_norm_decay,
            "synchronized": synchronized,
            "dtype": self.dtype_policy,
        }
        self.branches = [
            ConvBN(
                filters,
                3,
                rate=tuple(rate * 16 // stride for rate in rates),
                separable=True,
                depthwise_norm=True,
                name=f"branch_{index}",
                **norm,
            )
            for index, (_, rates) in enumerate(BRANCHES)
        ]
        self.joined = ConvBN(filters, name="joined", **norm)

    def build(self, input_shape):
        for branch, (source, _) in zip(self.branches, BRANCHES, strict=True):
            branch.build(input_shape if source is None else (*input_shape[:-1], self.filters))
        self.joined.build((*input_shape[:-1], len(BRANCHES) * self.filters))

    def call(self, features, training=None):
        results = []
        for branch, (source, _) in zip(self.branches, BRANCHES, strict=True):
            inputs = features if source is None else results[source]
            results.append(branch(inputs, training=training))
        return self.joined(ops.concatenate(results, axis=-1), training=training)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)

    def get_config(self):
        return super().get_config() | {
            "stride": self.stride,
            "filters": self.filters,
            "batch_norm_decay": self.batch_norm_decay,
            "synchronized": self.synchronized,
        }
