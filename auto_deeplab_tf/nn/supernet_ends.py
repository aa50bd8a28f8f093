"""The supernet's segments beside its nodes.

Softmax of alpha and beta, the stem, the reduced ASPPs, and their sum.
"""

import dataclasses
import functools
import itertools

import numpy as np
from keras import ops

from auto_deeplab_tf.accounting import STEM_FILTERS, STEM_STRIDES
from auto_deeplab_tf.architecture import Transition, move_mask
from auto_deeplab_tf.nn import backend
from auto_deeplab_tf.nn.atrous import atrous_conv
from auto_deeplab_tf.nn.resize import resize_bilinear
from auto_deeplab_tf.nn.segments import (
    BatchStatistics,
    SegmentKind,
    affine_layout,
    kernel_layout,
    project,
)


@dataclasses.dataclass(frozen=True)
class StemKind(SegmentKind):
    """Images to the tensors at stride 2 and 4 that the first layer reads.

    3x3 to 64 stride 2, BN, ReLU; 3x3 64 -> 64, BN (stride 2 output); ReLU; 3x3 64 -> 128 stride
    2, BN (stride 4 output).
    Images are normalised (x - mean) / std first.

    Attributes:
        mean, std: a float for each channel of the images, in units of 0..255.
        dtype: name of the dtype of the features.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str

    input_gradients = False

    @functools.cached_property
    def kernels(self):
        shapes, channels = {}, len(self.mean)
        for i, filters in enumerate(STEM_FILTERS):
            shapes[f"conv_{i}"] = ((3, 3, channels, filters), 9 * channels)
            channels = filters
        return kernel_layout(shapes)

    @functools.cached_property
    def affine(self):
        return affine_layout(_gammas_and_betas(enumerate(STEM_FILTERS)))

    @property
    def num_normalized(self):
        return sum(STEM_FILTERS)

    def compute(self, kernels, affine, moving, architecture, inputs, training):
        """See `SegmentKind.compute`.

        inputs: (images float32 [N, H, W, len(mean)], 0..255); outputs: (stride 2, stride 4).
        """
        (images,) = inputs
        kernels = self.kernels.unpack(ops.cast(kernels, self.dtype))
        affine = self.affine.unpack(affine)
        statistics = BatchStatistics(moving, training)
        mean, std = (np.asarray(values, "float32") for values in (self.mean, self.std))
        features = ops.cast((images - mean) / std, self.dtype)
        outputs = []
        for i, stride in enumerate(STEM_STRIDES):
            if i:
                features = ops.relu(features)
            features = ops.conv(features, kernels[f"conv_{i}"], strides=stride, padding="same")
            features = statistics.normalize(features, affine[f"{i}/gamma"], affine[f"{i}/beta"])
            outputs.append(features)
        return (outputs[1], outputs[2]), statistics.moments()


@dataclasses.dataclass(frozen=True)
class HeadKind(SegmentKind):
    """The ASPP of one final level, reduced to three branches, and its prediction there.

    ReLU; 1x1 | 3x3 with atrous rate 96 / stride | image pooling and 1x1, each to `channels`, BN,
    ReLU; concatenated; 1x1 with bias to the classes.

    Attributes:
        level: 0..3.
        channels: B * F * stride / 4, of the input and of each branch.
        num_classes: of the prediction.
    """

    level: int
    channels: int
    num_classes: int

    @property
    def rate(self):
        return 96 // 2 ** (self.level + 2)

    @functools.cached_property
    def kernels(self):
        channels = self.channels
        return kernel_layout(
            {
                "pointwise": ((channels, channels), channels),
                "atrous": ((3, 3, channels, channels), 9 * channels),
                "pooling": ((channels, channels), channels),
                "classes": ((3 * channels, self.num_classes), 3 * channels),
            }
        )

    @functools.cached_property
    def affine(self):
        branches = ("pointwise", "atrous", "pooling")
        return affine_layout(
            _gammas_and_betas((branch, self.channels) for branch in branches)
            | {"bias": (self.num_classes,)}
        )

    @property
    def num_normalized(self):
        return 3 * self.channels

    def compute(self, kernels, affine, moving, architecture, inputs, training):
        """See `SegmentKind.compute`.

        inputs: (map [N, h, w, channels],); outputs: (logits [N, h, w, classes],).
        """
        (features,) = inputs
        kernels = self.kernels.unpack(ops.cast(kernels, features.dtype))
        affine = self.affine.unpack(affine)
        statistics = BatchStatistics(moving, training)
        features = ops.relu(features)
        pooled = ops.mean(ops.cast(features, "float32"), axis=(1, 2), keepdims=True)
        pooled = ops.cast(pooled, features.dtype)
        branches = {
            "pointwise": project(features, kernels["pointwise"], 1),
            "atrous": atrous_conv(features, kernels["atrous"], self.rate),
            "pooling": project(pooled, kernels["pooling"], 1),
        }
        branches = [
            ops.relu(statistics.normalize(images, affine[f"{name}/gamma"], affine[f"{name}/beta"]))
            for name, images in branches.items()
        ]
        branches[2] = ops.broadcast_to(branches[2], ops.shape(features))
        joined = ops.concatenate(branches, axis=-1)
        logits = project(joined, kernels["classes"], 1) + ops.cast(affine["bias"], joined.dtype)
        return (logits,), statistics.moments()


@dataclasses.dataclass(frozen=True)
class LogitsKind(SegmentKind):
    """Sums the predictions of the levels, each resized to the size of the images."""

    def compute(self, kernels, affine, moving, architecture, inputs, training):
        """See `SegmentKind.compute`.

        inputs: (images [N, H, W, C], then the logits of each level).
        outputs: (logits float32 [N, H, W, classes],).
        """
        images, *predictions = inputs
        size = tuple(images.shape[1:3])
        resized = [resize_bilinear(ops.cast(logits, "float32"), size) for logits in predictions]
        return (sum(resized[1:], resized[0]),), None


@dataclasses.dataclass(frozen=True)
class RelaxKind(SegmentKind):
    """Normalises the architecture variables (paper, eq. 1 and 3).

    alpha^k = softmax over the operations k of an edge; beta = softmax over the moves that leave a
    level of a layer, those that leave the trellis masked out before it.

    Attributes:
        incoming: for each node, node by node, the transitions that lead to it.
    """

    incoming: tuple[tuple[Transition, ...], ...]

    input_gradients = False

    def compute(self, kernels, affine, moving, architecture, inputs, training):
        """See `SegmentKind.compute`.

        architecture: (alpha_logits [num_edges, num_ops], beta_logits [L, 4, 3]).
        outputs: (alpha [num_edges, num_ops], then each node's beta [predecessors]).
        """
        alpha_logits, beta_logits = architecture
        mask = move_mask(beta_logits.shape[0])
        # A finite stand-in for -inf: its softmax is exactly 0, and so is its gradient, never NaN.
        beta = ops.softmax(ops.where(mask, beta_logits, -1e9), axis=-1)
        # One product with a 0/1 matrix picks them all: 105 slices would be a graph of their own.
        picked = np.zeros((sum(map(len, self.incoming)), beta_logits.shape[0] * 12), "float32")
        for row, (layer, level, move, _) in enumerate(itertools.chain(*self.incoming)):
            picked[row, (layer * 4 + level) * 3 + move] = 1.0
        by_node = backend.split(
            ops.matmul(picked, ops.reshape(beta, (-1,))), [len(node) for node in self.incoming], 0
        )
        return (ops.softmax(alpha_logits, axis=-1), *by_node), None


def _gammas_and_betas(channels):
    return {f"{name}/{part}": (width,) for name, width in channels for part in ("gamma", "beta")}
