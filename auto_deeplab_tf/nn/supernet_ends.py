"""The supernet's ends: the stem, the reduced ASPPs, and their sum."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
from keras import ops

from auto_deeplab_tf.nn.atrous import atrous_conv
from auto_deeplab_tf.nn.backend import Tensor
from auto_deeplab_tf.nn.resize import resize_bilinear
from auto_deeplab_tf.nn.segments import (
    Arguments,
    BatchStatistics,
    Layout,
    SegmentKind,
    affine_layout,
    kernel_layout,
    project,
)
from auto_deeplab_tf.search_space import ASPP_EXTENTS, STEM_CHANNELS, STEM_STRIDES, stride


@dataclasses.dataclass(frozen=True)
class StemKind(SegmentKind):
    """Images to the tensors at stride 2 and 4 that the first layer reads.

    Images are normalised (x - mean) / std; 3x3 with stride 2, BN, ReLU; 3x3, BN (the output at
    stride 2); ReLU; 3x3 with stride 2, BN (the output at stride 4).

    Attributes:
        mean, std: a float for each channel of the images, in units of 0..255.
        dtype: Name of the dtype of the features.
        channels: Of the three convolutions.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str
    channels: tuple[int, ...] = STEM_CHANNELS

    input_gradients = False

    @functools.cached_property
    def kernels(self) -> Layout:
        """See `SegmentKind`."""
        shapes, channels = {}, len(self.mean)
        for i, filters in enumerate(self.channels):
            shapes[f"conv_{i}"] = ((3, 3, channels, filters), 9 * channels)
            channels = filters
        return kernel_layout(shapes)

    @functools.cached_property
    def affine(self) -> Layout:
        """See `SegmentKind`."""
        return affine_layout(_gammas_and_betas(self.normalized))

    @property
    def normalized(self) -> tuple[tuple[Any, int], ...]:
        """See `SegmentKind`."""
        return tuple(enumerate(self.channels))

    def compute(self, arguments: Arguments, training: bool) -> tuple[tuple[Tensor, ...], Tensor]:
        """See `SegmentKind.compute`.

        inputs: (images float32 [N, H, W, len(mean)], 0..255); outputs: (stride 2, stride 4).
        """
        (images,) = arguments.inputs
        kernels = self.kernels.unpack(ops.cast(arguments.kernels, self.dtype))
        affine = self.affine.unpack(arguments.affine)
        statistics = BatchStatistics(arguments.moving, training)
        mean, std = (np.asarray(values, "float32") for values in (self.mean, self.std))
        features = ops.cast((images - mean) / std, self.dtype)
        outputs = []
        for i, step in enumerate(STEM_STRIDES):
            if i:
                features = ops.relu(features)
            features = ops.conv(features, kernels[f"conv_{i}"], strides=step, padding="same")
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
        num_classes: Of the prediction.
    """

    level: int
    channels: int
    num_classes: int

    @property
    def rate(self) -> int:
        """The atrous rate, 96 / stride."""
        return ASPP_EXTENTS[0] // stride(self.level)

    @functools.cached_property
    def kernels(self) -> Layout:
        """See `SegmentKind`."""
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
    def affine(self) -> Layout:
        """See `SegmentKind`."""
        return affine_layout(_gammas_and_betas(self.normalized) | {"bias": (self.num_classes,)})

    @property
    def normalized(self) -> tuple[tuple[Any, int], ...]:
        """See `SegmentKind`."""
        return tuple((branch, self.channels) for branch in ("pointwise", "atrous", "pooling"))

    def compute(self, arguments: Arguments, training: bool) -> tuple[tuple[Tensor, ...], Tensor]:
        """See `SegmentKind.compute`.

        inputs: (map [N, h, w, channels],); outputs: (logits [N, h, w, classes],).
        """
        (features,) = arguments.inputs
        kernels = self.kernels.unpack(ops.cast(arguments.kernels, features.dtype))
        affine = self.affine.unpack(arguments.affine)
        statistics = BatchStatistics(arguments.moving, training)
        features = ops.relu(features)
        pooled = ops.mean(ops.cast(features, "float32"), axis=(1, 2), keepdims=True)
        pooled = ops.cast(pooled, features.dtype)
        convolved = {
            "pointwise": project(features, kernels["pointwise"], 1),
            "atrous": atrous_conv(features, kernels["atrous"], self.rate),
            "pooling": project(pooled, kernels["pooling"], 1),
        }
        branches = [
            ops.relu(statistics.normalize(images, affine[f"{name}/gamma"], affine[f"{name}/beta"]))
            for name, images in convolved.items()
        ]
        branches[2] = ops.broadcast_to(branches[2], ops.shape(features))
        joined = ops.concatenate(branches, axis=-1)
        logits = project(joined, kernels["classes"], 1) + ops.cast(affine["bias"], joined.dtype)
        return (logits,), statistics.moments()


@dataclasses.dataclass(frozen=True)
class LogitsKind(SegmentKind):
    """Sums the predictions of the levels, each resized to the size of the images.

    Where paths are sampled, only those of the levels that a path ends on count.
    """

    def compute(self, arguments: Arguments, training: bool) -> tuple[tuple[Tensor, ...], Tensor]:
        """See `SegmentKind.compute`.

        architecture: (), or where paths are sampled (live float32 [num_nodes],), the nodes of the
            last layer at its end.
        inputs: (images [N, H, W, C], then the logits of each level).
        outputs: (logits float32 [N, H, W, classes],).
        """
        images, *predictions = arguments.inputs
        size = tuple(images.shape[1:3])
        resized = [resize_bilinear(ops.cast(logits, "float32"), size) for logits in predictions]
        if arguments.architecture:
            (live,) = arguments.architecture
            resized = [logits * live[index - len(resized)] for index, logits in enumerate(resized)]
        return (sum(resized[1:], resized[0]),), None


def _gammas_and_betas(normalized: Iterable[tuple[Any, int]]) -> dict[str, tuple[int, ...]]:
    return {f"{name}/{part}": (width,) for name, width in normalized for part in ("gamma", "beta")}
