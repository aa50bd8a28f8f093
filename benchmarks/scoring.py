"""Images of a data set as arrays, and a confusion matrix that needs no TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def read_split(
    dataset: str, split: str, data_dir: str, cache_dir: str | None, image_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns all images of a split at one size, float32 [N, H, W, channels], and their labels."""
    from auto_deeplab_tf.data import pipeline, source

    opened = source.open_split(
        dataset, split, data_dir=data_dir, cache_dir=cache_dir, image_size=image_size
    )
    batches = list(pipeline.evaluation_batches(opened, 1).as_numpy_iterator())
    images, labels = (np.concatenate(each) for each in zip(*batches, strict=True))
    return images, labels


def confusion_matrix(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], num_classes: int, ignore_label: int
) -> np.ndarray:
    """Counts pixels, int64 [num_classes, num_classes], by (label, prediction) of each image."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for label, found in pairs:
        counted = label != ignore_label
        np.add.at(matrix, (label[counted], found[counted]), 1)
    return matrix
