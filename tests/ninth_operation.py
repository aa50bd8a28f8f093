"""A whole chain with an operation that the package does not have; run as `python FILE KIND DIR`.

The one class and the one row of each: a convolution in full twice over, and a blur without weights.
"""

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from keras import ops

from auto_deeplab_tf import ArchitectureSearch, Segmenter, build_supernet
from auto_deeplab_tf.accounting import count
from auto_deeplab_tf.architecture import Architecture, Edge
from auto_deeplab_tf.nn.operations import OperationLayer, operation_layer
from auto_deeplab_tf.search_space import OPERATIONS, Operation, register_operation

kind, folder = sys.argv[1], Path(sys.argv[2])

if kind == "conv":

    @operation_layer("conv")
    class ConvOperation(OperationLayer):
        """ReLU, kxk convolution, BN: `repeats` times, the stride in the first."""

    register_operation(Operation("conv_3x3", "conv", kernel_size=3, repeats=2))
elif kind == "blur":

    @operation_layer("blur")
    class BlurOperation(OperationLayer):
        """The binomial filter, without weights."""

        @staticmethod
        def transform(row, images, stride):
            taps = np.outer([1, 2, 1], [1, 2, 1]).astype("float32")[..., None, None] / 16
            kernel = ops.tile(ops.cast(taps, images.dtype), (1, 1, images.shape[-1], 1))
            return ops.depthwise_conv(images, kernel, strides=stride, padding="same")

    register_operation(Operation("blur_3x3", "blur", kernel_size=3))
elif kind == "blurred_conv":

    @operation_layer("blurred_conv")
    class BlurredConvOperation(OperationLayer):
        """An average, then ReLU, depthwise, pointwise, BN: weights behind something without."""

        @staticmethod
        def transform(row, images, stride):
            return ops.average_pool(images, 3, strides=1, padding="same")

    register_operation(
        Operation("blurred_conv_3x3", "blurred_conv", kernel_size=3, repeats=1, separable=True)
    )
else:
    register_operation(Operation("sep_7x7", "separable", kernel_size=7, repeats=2, separable=True))

NAME = OPERATIONS[-1]
assert OPERATIONS[:8] == (
    *("sep_3x3", "sep_5x5", "atrous_3x3", "atrous_5x5"),
    *("avg_pool_3x3", "max_pool_3x3", "skip", "none"),
)
assert len(OPERATIONS) == 9

generator = np.random.default_rng(0)
images = generator.uniform(0, 255, (4, 48, 64, 3)).astype("float32")
masks = (images[..., 0] > images[..., 2]).astype("int32")

# Searched: alpha has a ninth column, and it gets a gradient.
search = ArchitectureSearch(2, num_layers=2, num_blocks=1, filter_multiplier=2)
alpha = search.model.supernet.alpha_logits
assert alpha.shape == (2, 9)
before = np.array(alpha)
pairs = ((images[:2], masks[:2]), (images[2:], masks[2:]))
search.fit(pairs, batch_size=2, epochs=1, verbose=0)
assert np.all(np.array(alpha)[:, 8] != before[:, 8])

# The plain formulation has it too.
nets = [build_supernet(2, 2, 1, 2, formulation=name, atrous="full") for name in ("fused", "plain")]
for net in nets:
    net.alpha_logits.assign(np.where(np.arange(9) == 8, 4.0, 0.0) + np.zeros((2, 1)))
fused, plain = (np.array(net(images[:2], training=True)) for net in nets)
np.testing.assert_allclose(fused, plain, atol=1e-3 * np.abs(fused).max())

# Its relaxed form is its decoded one.
from one_hot import check_node_equals_cell  # noqa: E402 - it reads the table when it is imported

blocks = (
    (Edge("prev", NAME), Edge("prev_prev", NAME)),
    (Edge("block_0", NAME), Edge("prev", "sep_3x3")),
    (Edge("block_0", NAME), Edge("prev", NAME)),
)
check_node_equals_cell(blocks, "separable")
check_node_equals_cell(blocks, "full", share_operations=False)

# Decoded, saved and read again.
alpha.assign(np.where(np.arange(9) == 8, 4.0, 0.0) + np.zeros((2, 1)))
search.model.supernet.beta_logits.assign(np.tile([0.0, 0.0, 9.0], (2, 4, 1)))
architecture = search.decode()
assert architecture.levels == (1, 2)
assert [edge.op for edge in architecture.cell[0]] == [NAME, NAME]
architecture.save(folder / "architecture.json")
architecture = Architecture.load(folder / "architecture.json")

# Counted: both positions of stride 2 are among them.
settings = {"filter_multiplier": 4, "head_channels": 8, "decoder_channels": 4}
segmenter = Segmenter(architecture, num_classes=2, **settings)
counted = count(architecture, num_classes=2, input_size=(48, 64), **settings)
built = [int(np.prod(v.shape)) for v in segmenter.trainable_variables]
assert counted.params == sum(built)

# Trained a step: every weight of the operation moves.
own = [v for v in segmenter.trainable_variables if NAME in v.path]
assert bool(own) == (kind != "blur")
start = [np.array(v) for v in own]
segmenter.fit(images, masks, batch_size=4, epochs=1, verbose=0)
assert all(np.any(np.array(v) != old) for v, old in zip(own, start, strict=True))

# Exported: it predicts what the model predicts.
segmenter.save(folder / "model.keras")
from export.saved_model import export_saved_model  # noqa: E402 - it defines flags

exported = export_saved_model(folder / "model.keras", folder / "served")
served = tf.saved_model.load(str(exported.path)).signatures["serving_default"]
answer = served(images=tf.constant(images))["class_ids"].numpy()
assert np.mean(answer == segmenter.predict_class_ids(images)) > 0.999
print(f"done: {NAME}")
