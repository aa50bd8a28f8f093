"""Scores of a segmentation: one confusion matrix over a split, and trivial predictors."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from auto_deeplab_tf.data.resizing import resize_label
from auto_deeplab_tf.errors import UserError


def scores(matrix: np.ndarray) -> dict[str, Any]:
    """Computes the scores of a confusion matrix.

    With n_yp pixels of class y predicted as p: IoU_c = n_cc / (sum_p n_cp + sum_y n_yc - n_cc). A
    class that is neither labelled nor predicted anywhere is absent: it has no IoU and takes no part
    in the mean.

    Args:
        matrix: counts [num_classes, num_classes], rows the labels, columns the predictions.

    Returns:
        `miou`; `per_class_iou`, one float per class, None where the class is absent;
        `pixel_accuracy`; `mean_of_miou_and_pixel_accuracy` (the third column of ADE20K's table).
        miou and pixel_accuracy of an empty matrix are 0.
    """
    matrix = np.asarray(matrix, "float64")
    hits = np.diagonal(matrix)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - hits
    present = union > 0
    iou = np.divide(hits, union, out=np.zeros_like(hits), where=present)
    miou = float(iou[present].mean()) if present.any() else 0.0
    total = matrix.sum()
    accuracy = float(hits.sum() / total) if total else 0.0
    return {
        "miou": miou,
        "per_class_iou": [
            float(value) if here else None for value, here in zip(iou, present, strict=True)
        ],
        "pixel_accuracy": accuracy,
        "mean_of_miou_and_pixel_accuracy": (miou + accuracy) / 2,
    }


def named_scores(matrix: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """`scores` with `per_class_iou` as a mapping from the class name."""
    result = scores(matrix)
    result["per_class_iou"] = dict(zip(class_names, result["per_class_iou"], strict=True))
    return result


def count_pixels(
    labels: Any, predictions: Any, num_classes: int, ignore_label: int = 255
) -> tf.Tensor:
    """Counts the pixels of a batch by label and prediction.

    Args:
        labels: integers, of any shape.
        predictions: class ids, integers of that shape, or logits or probabilities, floats with one
            axis more.
        num_classes: C.
        ignore_label: label of the pixels that are not counted.

    Returns:
        float64 [C * C + 2], whole numbers: entry y * C + p counts class y predicted as p; then the
        pixels ignored; then those whose label is neither a class nor the ignore label.
    """
    labels = tf.reshape(tf.cast(labels, tf.int32), [-1])
    predictions = tf.convert_to_tensor(predictions)
    if predictions.dtype.is_floating:
        predictions = tf.argmax(predictions, axis=-1, output_type=tf.int32)
    predictions = tf.reshape(tf.cast(predictions, tf.int32), [-1])
    is_class = (labels >= 0) & (labels < num_classes)
    # Bins of their own take what is not counted: a mask would give a result of unknown size, which
    # XLA refuses.
    bins = tf.where(is_class, labels * num_classes + predictions, num_classes**2)
    bins = tf.where(is_class | (labels == ignore_label), bins, num_classes**2 + 1)
    size = num_classes**2 + 2
    return tf.cast(tf.math.bincount(bins, minlength=size, maxlength=size), tf.float64)


def matrix_of(counts: Any, num_classes: int, ignore_label: int = 255) -> np.ndarray:
    """Brings the sum of `count_pixels` over all batches to an int64 matrix [C, C].

    Raises:
        ValueError: where a label was neither a class nor the ignore label.
    """
    counts = np.rint(np.asarray(counts)).astype("int64")
    if counts[-1]:
        raise UserError(
            f"labels must be classes 0..{num_classes - 1} or the ignore label {ignore_label}. "
            f"Received: {counts[-1]} pixels with another value"
        )
    return counts[:-2].reshape(num_classes, num_classes)


@keras.saving.register_keras_serializable(package="auto_deeplab_tf")
class ConfusionMatrix(keras.metrics.Metric):
    """Counts every pixel of a split once and gives mIoU and pixel accuracy.

    The counts are whole numbers in float64, exact to 2**53 pixels, so the result depends neither on
    the size of the batches nor on how replicas shared them.

    Args:
        num_classes: number of classes.
        ignore_label: label of the pixels that are not counted.
        name: name of the metric.
        dtype: taken for Keras' sake; the counts are float64 always.

    Call arguments:
        y_true: integers [N, H, W].
        y_pred: logits or probabilities, float [N, H, W, num_classes], or class ids, integers
            [N, H, W].

    Result: `{"miou", "pixel_accuracy"}`, two scalars; absent classes as in `scores`.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_label: int = 255,
        name: str = "confusion_matrix",
        dtype: Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        if num_classes < 1:
            raise UserError(f"num_classes must be at least 1. Received: {num_classes}")
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.counts = self.add_variable(
            (num_classes, num_classes), initializer="zeros", dtype="float64", name="counts"
        )
        self.num_invalid = self.add_variable(
            (), initializer="zeros", dtype="float64", name="num_invalid"
        )

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Counts the pixels of a batch.

        Raises:
            ValueError: with sample weights: a pixel counts once or, as void, not at all.
        """
        if sample_weight is not None:
            raise UserError(
                "ConfusionMatrix takes no sample_weight: give void pixels the ignore label instead"
            )
        counts = count_pixels(y_true, y_pred, self.num_classes, self.ignore_label)
        size = self.num_classes**2
        self.counts.assign_add(tf.reshape(counts[:size], self.counts.shape))
        self.num_invalid.assign_add(counts[-1])

    def result(self) -> dict[str, tf.Tensor]:
        counts = tf.convert_to_tensor(self.counts)
        hits = tf.linalg.diag_part(counts)
        union = tf.reduce_sum(counts, axis=0) + tf.reduce_sum(counts, axis=1) - hits
        num_present = tf.reduce_sum(tf.cast(union > 0, tf.float64))
        iou = tf.math.divide_no_nan(hits, union)
        return {
            "miou": tf.math.divide_no_nan(tf.reduce_sum(iou), num_present),
            "pixel_accuracy": tf.math.divide_no_nan(tf.reduce_sum(hits), tf.reduce_sum(counts)),
        }

    def matrix(self) -> np.ndarray:
        """Returns the counts, int64 [num_classes, num_classes] (eagerly, outside replicas).

        Raises:
            ValueError: where a label was neither a class nor the ignore label.
        """
        counts, invalid = (tf.convert_to_tensor(v).numpy() for v in (self.counts, self.num_invalid))
        counts = np.concatenate([counts.ravel(), [0.0, invalid]])
        return matrix_of(counts, self.num_classes, self.ignore_label)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {**config, "num_classes": self.num_classes, "ignore_label": self.ignore_label}


class LabelStatistics:
    """What can be said of a split from its labels alone: two trivial predictors.

    The trivial predictors never look at an image. `most_frequent_class` answers the same class
    everywhere; `position_majority` answers, at every position, the class that the training labels
    have there most often. A network has learnt something only where it beats the second.

    Args:
        num_classes: number of classes.
        ignore_label: label of the pixels that are not counted.
    """

    def __init__(self, num_classes: int, ignore_label: int = 255):
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self._per_class = np.zeros(num_classes, "int64")
        self._per_position: np.ndarray | None = None

    def add(self, labels: np.ndarray) -> None:
        """Counts one label map, integers [H, W].

        The first one fixes the grid of positions (4 bytes for each class and position); one of
        another size is brought to it (nearest).

        Raises:
            ValueError: for a label that is neither a class nor the ignore label.
        """
        labels = np.asarray(labels)
        if labels.ndim != 2:
            raise UserError(
                f"a label map must have the shape [H, W]. Received: shape {list(labels.shape)}"
            )
        valid = labels != self.ignore_label
        outside = valid & ((labels < 0) | (labels >= self.num_classes))
        if outside.any():
            raise UserError(
                f"labels must be classes 0..{self.num_classes - 1} or the ignore label "
                f"{self.ignore_label}. Received: {labels[outside][0]}"
            )
        self._per_class += np.bincount(labels[valid], minlength=self.num_classes)
        if self._per_position is None:
            self._per_position = np.zeros((*labels.shape, self.num_classes), "uint32")
        labels = resize_label(labels, self._per_position.shape[:2])
        rows, columns = np.nonzero(labels != self.ignore_label)
        self._per_position[rows, columns, labels[rows, columns]] += 1

    def most_frequent_class(self) -> int:
        """Returns the class with most pixels; on a tie the lower one."""
        return int(self._per_class.argmax())

    def position_majority(self, size: tuple[int, int]) -> np.ndarray:
        """Returns the most frequent class of every position, int64 [height, width].

        Positions that no training label covers get the most frequent class of all.

        Args:
            size: (height, width) of the map, brought to it by the nearest position.
        """
        if self._per_position is None:
            raise UserError("no label was counted: call add() with those of the training split")
        majority = self._per_position.argmax(axis=-1)
        majority[self._per_position.sum(axis=-1) == 0] = self.most_frequent_class()
        return resize_label(majority, size)
