"""Scores of a segmentation: one confusion matrix over a split, and trivial predictors."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from auto_deeplab_tf.data.resizing import resize_label
from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.training import distribution


def scores(matrix: np.ndarray) -> dict[str, Any]:
    """Computes the scores of a confusion matrix.

    With n_yp pixels of class y predicted as p: IoU_c = n_cc / (sum_p n_cp + sum_y n_yc - n_cc). A
    class that is neither labelled nor predicted anywhere is absent: it has no IoU and takes no part
    in the mean. One that is predicted but never labelled has IoU 0 and takes part.

    Args:
        matrix: Counts [num_classes, num_classes], rows the labels, columns the predictions.

    Returns:
        `miou`; `per_class_iou`, one float per class, None where the class is absent;
        `pixel_accuracy`; `mean_of_miou_and_pixel_accuracy` (the third column of ADE20K's table).
        All are None for an empty matrix: where every pixel is ignored there is no score.
    """
    matrix = np.asarray(matrix, "float64")
    hits = np.diagonal(matrix)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - hits
    present = union > 0
    iou = np.divide(hits, union, out=np.zeros_like(hits), where=present)
    total = matrix.sum()
    miou = iou[present].mean() if total else math.nan
    accuracy = hits.sum() / total if total else math.nan
    return {
        "miou": float(miou) if total else None,
        "per_class_iou": [
            float(value) if here else None for value, here in zip(iou, present, strict=True)
        ],
        "pixel_accuracy": float(accuracy) if total else None,
        "mean_of_miou_and_pixel_accuracy": float(miou + accuracy) / 2 if total else None,
    }


def named_scores(matrix: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns `scores` with `per_class_iou` as a mapping from the class name."""
    result = scores(matrix)
    result["per_class_iou"] = dict(zip(class_names, result["per_class_iou"], strict=True))
    return result


def count_pixels(
    labels: Any, predictions: Any, num_classes: int, ignore_label: int = 255
) -> tf.Tensor:
    """Counts the pixels of a batch by label and prediction.

    Args:
        labels: Integers, of any shape.
        predictions: Class ids, integers of that shape, or logits or probabilities, floats with one
            axis more.
        num_classes: Number of classes, C.
        ignore_label: Label of the pixels that are not counted.

    Returns:
        float64 [C * C + 2], whole numbers: entry y * C + p counts class y predicted as p; then the
        pixels ignored; then those whose label is neither a class nor the ignore label, or whose
        prediction is no class.
    """
    labels = tf.reshape(tf.cast(labels, tf.int32), [-1])
    predictions = tf.convert_to_tensor(predictions)
    if predictions.dtype.is_floating:
        predictions = tf.argmax(predictions, axis=-1, output_type=tf.int32)
    predictions = tf.reshape(tf.cast(predictions, tf.int32), [-1])
    ignored = labels == ignore_label
    valid = (labels >= 0) & (labels < num_classes)
    valid &= (predictions >= 0) & (predictions < num_classes)
    # Bins of their own take what is not counted: a mask would give a result of unknown size, which
    # XLA refuses.
    bins = tf.where(valid, labels * num_classes + predictions, num_classes**2 + 1)
    bins = tf.where(ignored, num_classes**2, bins)
    size = num_classes**2 + 2
    # `tf.math.bincount` computes the number of bins, which XLA has to know.
    counts = tf.raw_ops.DenseBincount(input=bins, size=size, weights=tf.constant([], tf.int32))
    return tf.cast(counts, tf.float64)


def matrix_of(counts: Any, num_classes: int, ignore_label: int = 255) -> np.ndarray:
    """Brings the sum of `count_pixels` over all batches to an int64 matrix [C, C].

    Raises:
        UserError: If a label was neither a class nor the ignore label, or a prediction no class.
    """
    counts = np.rint(np.asarray(counts)).astype("int64")
    if counts[-1]:
        raise UserError(
            f"labels must be classes 0..{num_classes - 1} or the ignore label {ignore_label}, and "
            f"predictions classes. Received: {counts[-1]} pixels with another value"
        )
    return counts[:-2].reshape(num_classes, num_classes)


def score(
    predict: Callable[[Any], Any],
    batches: Iterable[tuple[Any, Any]],
    num_classes: int,
    ignore_label: int = 255,
    *,
    loss: Callable[[Any, Any], tuple[Any, Any]] | None = None,
    on_batch: Callable[[Any, Any, Any], None] | None = None,
) -> tuple[float | None, np.ndarray]:
    """Scores predictions by one confusion matrix: each pixel counts once, whatever the batches.

    Every worker of the strategy in force calls it with a share of the batches, which may be empty,
    and gets the scores of all of them.

    Args:
        predict: Images -> class ids, integers [N, H, W], or logits, float [N, H, W, num_classes].
        batches: (images, labels): labels integers [N, H, W].
        num_classes: Number of classes, C.
        ignore_label: Label of the pixels that are not counted.
        loss: (labels, logits) -> (sum, weight), such as `losses.segmentation_loss` gives; needs a
            `predict` that returns logits.
        on_batch: Called with (images, labels, predictions) of every batch.

    Returns:
        (loss, matrix): The mean loss over all pixels, None without a loss; int64 [C, C], rows the
        labels.

    Raises:
        UserError: If all pixels are ignored, or a label or prediction is no class.
    """
    counts: Any = np.zeros(num_classes**2 + 2)
    sums = np.zeros(2)
    for images, labels in batches:
        predictions = predict(images)
        counts += count_pixels(labels, predictions, num_classes, ignore_label).numpy()
        if loss is not None:
            sums += [float(value) for value in loss(labels, predictions)]
        if on_batch is not None:
            on_batch(images, labels, predictions)
    counts = distribution.sum_over_workers(counts)
    sums = distribution.sum_over_workers(sums)
    if not np.any(counts):
        raise UserError("there is no image to score")
    matrix = matrix_of(counts, num_classes, ignore_label)
    if not matrix.any():
        raise UserError(
            f"there is no score: all pixels of the images carry the ignore label {ignore_label}. "
            "Look at the masks, or at the ids and the ignore label of the data set"
        )
    return None if loss is None else float(sums[0] / max(sums[1], 1.0)), matrix


@keras.saving.register_keras_serializable(package="auto_deeplab_tf")
class ConfusionMatrix(keras.metrics.Metric):
    """Counts every pixel of a split once and gives mIoU and pixel accuracy.

    The counts are whole numbers in float64, exact to 2**53 pixels, so the result depends neither on
    the size of the batches nor on how replicas shared them.

    Args:
        num_classes: Number of classes.
        ignore_label: Label of the pixels that are not counted.
        name: Name of the metric.
        dtype: Accepted for Keras' sake; the counts are always float64.

    Call arguments:
        y_true: Integers [N, H, W].
        y_pred: Logits or probabilities, float [N, H, W, num_classes], or class ids, integers
            [N, H, W].

    Result: `{"miou", "pixel_accuracy"}`, two scalars; absent classes as in `scores`, NaN where no
    pixel was counted.
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
            UserError: If sample weights are given: a pixel counts once or, if ignored, not at all.
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
        """Returns the scores of the pixels counted so far."""
        counts = tf.convert_to_tensor(self.counts)
        hits = tf.linalg.diag_part(counts)
        union = tf.reduce_sum(counts, axis=0) + tf.reduce_sum(counts, axis=1) - hits
        num_present = tf.reduce_sum(tf.cast(union > 0, tf.float64))
        iou = tf.math.divide_no_nan(hits, union)
        return {
            "miou": tf.reduce_sum(iou) / num_present,
            "pixel_accuracy": tf.reduce_sum(hits) / tf.reduce_sum(counts),
        }

    def matrix(self) -> np.ndarray:
        """Returns the counts, int64 [num_classes, num_classes] (eagerly, outside replicas).

        Raises:
            UserError: If a label was neither a class nor the ignore label, or a prediction no
                class.
        """
        counts, invalid = (tf.convert_to_tensor(v).numpy() for v in (self.counts, self.num_invalid))
        counts = np.concatenate([counts.ravel(), [0.0, invalid]])
        return matrix_of(counts, self.num_classes, self.ignore_label)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor, as JSON values."""
        config = super().get_config()
        return {**config, "num_classes": self.num_classes, "ignore_label": self.ignore_label}


class MatrixScore(keras.metrics.Metric):
    """One score of a confusion matrix under its own name, for callbacks that monitor it.

    It counts nothing itself. Keras' callbacks in mode "auto" read from it that larger is better.

    Args:
        matrix: The `ConfusionMatrix` that counts.
        name: "miou" or "pixel_accuracy".
    """

    _direction = (
        "up"  # read by keras.callbacks.EarlyStopping, ModelCheckpoint and ReduceLROnPlateau
    )

    def __init__(self, matrix: ConfusionMatrix, name: str):
        super().__init__(name=name)
        # Not as an attribute: the counts would belong to two metrics.
        self._read = lambda: matrix.result()[name]

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the matrix counts."""

    def result(self) -> tf.Tensor:
        """Returns the scores of the pixels counted so far."""
        return self._read()

    def reset_state(self) -> None:
        """Does nothing: the matrix is reset by itself."""


class LabelStatistics:
    """What can be said of a split from its labels alone: two trivial predictors.

    The trivial predictors never look at an image. `most_frequent_class` predicts the same class
    everywhere; `position_majority` predicts, at every position, the class that the training labels
    have there most often. A network has learnt something only where it beats the second.

    Args:
        num_classes: Number of classes.
        ignore_label: Label of the pixels that are not counted.
    """

    def __init__(self, num_classes: int, ignore_label: int = 255):
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self._per_class = np.zeros(num_classes, "int64")
        self._per_position: np.ndarray | None = None

    def add(self, labels: np.ndarray) -> None:
        """Counts one label map, integers [H, W].

        The first one fixes the grid of positions (4 bytes for each class and position); one of
        another size is resized to it (nearest).

        Raises:
            UserError: If a label is neither a class nor the ignore label.
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
            size: (height, width) of the map, resized to it by the nearest position.
        """
        if self._per_position is None:
            raise UserError("no label was counted: call add() with those of the training split")
        majority = self._per_position.argmax(axis=-1)
        majority[self._per_position.sum(axis=-1) == 0] = self.most_frequent_class()
        return resize_label(majority, size)
