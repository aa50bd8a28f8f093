"""Bilinear resizing with aligned corners, and averages over bins.

The authors' TF1 code aligned corners; `tf.image.resize` (half-pixel centres) is another function.
Resizing has three forms of one value, to the rounding of float32:

- kernel: TensorFlow's own operation, on CPU by far the fastest, and the one that ONNX and TFLite
  have too. XLA gets it wrong at some sizes.
- product: with a matrix for each axis. Right on every backend, under XLA, and in its gradient.
- gather: two neighbours along each axis, weighted. Right wherever the product is, and much faster
  where no gradient is asked for: the form of graphs that others serve.

`backend.resizing_form` chooses.
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
    inputs = ops.cast(ops.arange(size_in), "float32")
    return ops.maximum(0.0, 1.0 - ops.abs(_positions(size_out, size_in)[:, None] - inputs[None, :]))


def _positions(size_out: Any, size_in: Any) -> Tensor:
    """Returns where outputs lie among inputs, float32 [size_out]."""
    last_in = ops.cast(size_in - 1, "float32")
    last_out = ops.cast(ops.maximum(size_out - 1, 1), "float32")
    # Multiplied before it is divided: o * last_in is exact in float32, so whole positions stay
    # whole.
    return ops.cast(ops.arange(size_out), "float32") * last_in / last_out


def resize_bilinear(images: Tensor, size: Sequence[Any]) -> Tensor:
    """Resizes images or feature maps bilinearly, corners aligned.

    Args:
        images: float [N, h, w, C]; h and w may be unknown statically.
        size: (height, width) of the result: ints or scalar integer tensors.

    Returns:
        float [N, height, width, C] in the dtype of `images`; `images` itself where the size is the
        same.
    """
    form = backend.resizing_form(images)
    height_in, width_in = ops.shape(images)[1:3]
    height, width = size
    keeps = [
        isinstance(new, int) and isinstance(old, int) and new == old
        for new, old in ((height, height_in), (width, width_in))
    ]
    if form == "kernel":
        return images if all(keeps) else backend.resize_kernel(images, size)
    along = _between_neighbours if form == "gather" else _by_product
    # Rows last: they lie in one piece, and a map that grows then has fewer of them before.
    if not keeps[1]:
        images = along(images, width, width_in, axis=2)
    if not keeps[0]:
        images = along(images, height, height_in, axis=1)
    return images


def _by_product(images: Tensor, size: Any, size_in: Any, axis: int) -> Tensor:
    """Resizes along one axis by a product with a matrix."""
    multiply = _combine_rows if axis == 1 else backend.combine
    return multiply(interpolation_matrix(size, size_in), images)


def _between_neighbours(images: Tensor, size: Any, size_in: Any, axis: int) -> Tensor:
    """Resizes along one axis: the neighbours of each position, weighted by their nearness."""
    position = _positions(size, size_in)
    before = ops.cast(ops.floor(position), "int32")
    after = ops.minimum(before + 1, size_in - 1)
    shape = [1, 1, 1, 1]
    shape[axis] = -1
    weight = ops.reshape(position - ops.cast(before, "float32"), shape)
    first = ops.take(images, before, axis=axis)
    difference = ops.take(images, after, axis=axis) - first
    return first + difference * ops.cast(weight, images.dtype)


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
    return resample(images, _bin_matrix(bins, height), _bin_matrix(bins, width))


def resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Multiplies the rows of images or feature maps by a matrix, and the columns by another.

    Args:
        images: float [N, h, w, C]; h and w may be unknown statically.
        rows: float [H, h].
        columns: float [W, w].

    Returns:
        float [N, H, W, C] in the dtype of `images`.
    """
    return backend.combine(columns, _combine_rows(rows, images))


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
