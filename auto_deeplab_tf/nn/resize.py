"""Bilinear resizing with aligned corners, and averages over bins, as products with matrices.

The authors' TF1 code aligned corners. `tf.image.resize` (half-pixel centres) is another function,
and under XLA it is wrong at small odd sizes; a matrix product is exact on every backend and needs
no special gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from auto_deeplab_tf.nn import backend
from auto_deeplab_tf.nn.backend import Tensor


def interpolation_matrix(size_out: Any, size_in: Any) -> Tensor:
    """Returns the matrix of linear interpolation with aligned corners along one axis.

    Row o holds max(0, 1 - |o * (size_in - 1) / (size_out - 1) - i|) for input position i: the first
    output lies on the first input, the last on the last. A single output lies on the first input.

    Args:
        size_out: Number of outputs: an int, or a scalar integer tensor where it is not known
            statically.
        size_in: Number of inputs, likewise.

    Returns:
        float32 [size_out, size_in]: a NumPy array where both sizes are ints, else a tensor. Rows
        sum to 1.
    """
    if isinstance(size_out, int) and isinstance(size_in, int):
        position = np.arange(size_out) * ((size_in - 1) / max(size_out - 1, 1))
        distance = np.abs(position[:, None] - np.arange(size_in)[None, :])
        return np.maximum(0.0, 1.0 - distance).astype("float32")
    last_in = ops.cast(size_in - 1, "float32")
    last_out = ops.cast(ops.maximum(size_out - 1, 1), "float32")
    # Multiplied before it is divided: o * last_in is exact in float32, so whole positions stay
    # whole.
    position = ops.cast(ops.arange(size_out), "float32") * last_in / last_out
    inputs = ops.cast(ops.arange(size_in), "float32")
    return ops.maximum(0.0, 1.0 - ops.abs(position[:, None] - inputs[None, :]))


def resize_bilinear(images: Tensor, size: Sequence[Any]) -> Tensor:
    """Resizes images or feature maps bilinearly, corners aligned.

    Args:
        images: float [N, h, w, C]; h and w may be unknown statically.
        size: (height, width) of the result: ints or scalar integer tensors.

    Returns:
        float [N, height, width, C] in the dtype of `images`; `images` itself where the size is the
        same.
    """
    _, height_in, width_in, _ = ops.shape(images)
    height, width = size
    if not (isinstance(height, int) and isinstance(height_in, int) and height == height_in):
        images = _combine_rows(interpolation_matrix(height, height_in), images)
    if not (isinstance(width, int) and isinstance(width_in, int) and width == width_in):
        images = backend.combine(interpolation_matrix(width, width_in), images)
    return images


def _combine_rows(matrix: Tensor, images: Tensor) -> Tensor:
    """[H, h], [N, h, w, C] -> [N, H, w, C]."""
    _, height, width, channels = ops.shape(images)
    rows = ops.reshape(images, (-1, height, width * channels))
    new_height = matrix.shape[0] or ops.shape(matrix)[0]
    return ops.reshape(backend.combine(matrix, rows), (-1, new_height, width, channels))


def average_bins(images: Tensor, bins: int) -> Tensor:
    """Averages over bins x bins parts of the map: adaptive average pooling.

    Part i holds the rows from floor(i * h / bins) to ceil((i + 1) * h / bins), columns likewise:
    parts overlap by a row where they do not divide the map, and repeat rows where h < bins.

    Args:
        images: float [N, h, w, C]; h and w may be unknown statically.
        bins: Number of parts along each axis.

    Returns:
        float [N, bins, bins, C] in the dtype of `images`.
    """
    _, height, width, _ = ops.shape(images)
    return backend.combine(
        _bin_matrix(bins, width), _combine_rows(_bin_matrix(bins, height), images)
    )


def _bin_matrix(bins: int, size: Any) -> Tensor:
    """Returns float32 [bins, size]: 1 / length on the positions of each part; rows sum to 1."""
    first = np.arange(bins, dtype="int32")
    starts = (first * size) // bins
    ends = ((first + 1) * size + bins - 1) // bins
    positions = ops.arange(size)
    inside = ops.logical_and(
        positions[None, :] >= ops.cast(starts, positions.dtype)[:, None],
        positions[None, :] < ops.cast(ends, positions.dtype)[:, None],
    )
    return ops.cast(inside, "float32") / ops.cast(ends - starts, "float32")[:, None]
