"""The segmentation loss, as a sum and a weight that replicas can add up, and the class weights."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from auto_deeplab_tf.config import CLASS_WEIGHT_SCHEMES, LossConfig
from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.training import distribution

SumAndWeight = tuple[tf.Tensor, tf.Tensor]


def class_frequencies(class_pixels: np.ndarray, present_pixels: np.ndarray) -> np.ndarray:
    """Computes how often each class occurs in the images that show it.

    f_c = (pixels of class c) / (labelled pixels of all images in which c occurs); both counts are
    attributes of a `data.Source`.

    Args:
        class_pixels: Integers [num_classes], the numerators.
        present_pixels: Integers [num_classes], the denominators.

    Returns:
        float64 [num_classes]; 0 for a class that occurs nowhere.

    Reference: Eigen and Fergus, arXiv 1411.4734, sec. 6.3.2.
    """
    pixels = np.asarray(class_pixels, "float64")
    return np.divide(pixels, present_pixels, out=np.zeros_like(pixels), where=pixels > 0)


def class_weights(
    frequencies: Sequence[float] | np.ndarray, scheme: str
) -> tuple[float, ...] | None:
    """Computes the weight of each class in the loss.

    `median_frequency`: w_c = median(f) / f_c, the median over the classes that occur.
    `sqrt_median_frequency`: the square root of it, which favours rare classes less.

    A class that never occurs gets weight 1. It has no pixel to be weighted; the value only matters
    where a later data set has the class after all, and then 1 means "like a class of middling
    frequency".

    Args:
        frequencies: Share of each class, >= 0 (see `class_frequencies`).
        scheme: `none`, `median_frequency` or `sqrt_median_frequency`.

    Returns:
        One weight per class, or None for `none`.

    Raises:
        UserError: For an unknown scheme, a negative or non-finite share, or where no class occurs.
    """
    if scheme not in CLASS_WEIGHT_SCHEMES:
        raise UserError(
            f"class_weights must be one of {', '.join(CLASS_WEIGHT_SCHEMES)}. Received: {scheme}"
        )
    if scheme == "none":
        return None
    shares = np.asarray(frequencies, "float64")
    present = shares > 0
    if shares.ndim != 1 or not np.all(np.isfinite(shares)) or np.any(shares < 0):
        raise UserError(
            f"class frequencies must be one finite share >= 0 per class. Received: {frequencies}"
        )
    if not present.any():
        raise UserError(
            "class weights need at least one class that occurs. Received: all frequencies 0"
        )
    weights = np.ones_like(shares)
    weights[present] = np.median(shares[present]) / shares[present]
    if scheme == "sqrt_median_frequency":
        weights = np.sqrt(weights)
    return tuple(float(weight) for weight in weights)


def segmentation_loss(
    num_classes: int,
    ignore_label: int = 255,
    class_weights: Sequence[float] | None = None,
    settings: LossConfig | None = None,
) -> Callable[[tf.Tensor, tf.Tensor], SumAndWeight]:
    """Builds the loss of tf-models-official in a form that replicas can add up.

    With p the softmax of the logits at a pixel, C classes, y its class and s the label smoothing, a
    pixel that is not ignored costs

        -w_y * sum_c ((1 - s) [c = y] + s / C) log p_c

    and the loss of a batch is the sum over its pixels divided by their number (not by the sum of
    w). `SegmentationLoss` divides by the pixels of its own batch; here sum and number stay apart,
    so that several replicas can divide by the pixels of the global batch (`normalized`) and equal
    one device.

    Hardest-pixel mining keeps the k = floor(hardest_fraction * H * W) pixels of EACH image that
    cost most and divides by the sum over the images of min(k, pixels not ignored). The original
    takes the hardest pixels of the whole batch, which would depend on how the batch is spread over
    replicas.

    Args:
        num_classes: C, the classes of the logits.
        ignore_label: The label that costs nothing: any integer that is not a class.
        class_weights: The weights w, one number >= 0 per class; None for 1 each.
        settings: `label_smoothing` is s; a `hardest_fraction` of 1 takes every pixel. Default: s 0,
            every pixel.

    Returns:
        A function (labels, logits) -> (loss_sum, weight_sum): labels integers [N, H, W], logits
        float [N, H, W, C], sizes static or not; two float32 scalars. It calculates in float32
        whatever the dtype of the logits. Where every pixel is ignored both are 0, and so is the
        gradient.

    Raises:
        UserError: For a value outside the ranges above.
    """
    _check(num_classes, ignore_label, class_weights)
    settings = settings or LossConfig()
    weights = [1.0] * num_classes if class_weights is None else [float(w) for w in class_weights]
    official = _official_loss(ignore_label, weights, settings)
    # The small constant that the official loss adds to its divisor.
    epsilon = official.divisor_epsilon

    def loss(labels: tf.Tensor, logits: tf.Tensor) -> SumAndWeight:
        labels = tf.cast(tf.convert_to_tensor(labels), tf.int32)
        logits = tf.cast(tf.convert_to_tensor(logits), tf.float32)
        _check_shapes(labels, logits, num_classes)
        batch_size = tf.shape(labels)[0]
        # Every pixel becomes an image of 1 x 1: the official loss then has the equal static sizes
        # that it needs (it would resize otherwise), whatever H and W are.
        mean = official(
            tf.reshape(logits, [-1, 1, 1, num_classes]),
            tf.reshape(labels, [-1, 1, 1, 1]),
            batch_size=batch_size,
        )
        valid = tf.cast(tf.reshape(labels, [batch_size, -1]) != ignore_label, tf.float32)
        if settings.hardest_fraction < 1.0:
            kept = tf.cast(official.kept_pixels(tf.shape(valid)[1]), tf.float32)
            return mean, tf.reduce_sum(tf.minimum(tf.reduce_sum(valid, axis=1), kept))
        num_valid = tf.reduce_sum(valid)
        return mean * (num_valid + epsilon), num_valid

    return loss


def normalized(loss_sum: tf.Tensor, weight_sum: tf.Tensor) -> tf.Tensor:
    """Divides this replica's share of a loss by the weight of the global batch.

    In a replica the result is a share: the shares of all replicas ADD UP to the mean over the
    global batch, and so do their gradients. Outside a strategy it is that mean. A batch without any
    weight gives 0.
    """
    weight_sum = distribution.sum_over_replicas(weight_sum)
    return tf.math.divide_no_nan(loss_sum, tf.stop_gradient(weight_sum))


def _official_loss(ignore_label, weights, settings):
    # Imported here: it takes about 2 s (tf_keras), which only training has to pay.
    from official.vision.losses import segmentation_losses

    class HardestOfEachImage(segmentation_losses.SegmentationLoss):
        """The official loss; with mining, the SUM over the hardest pixels of each image."""

        divisor_epsilon = segmentation_losses.EPSILON

        def __call__(self, logits, labels, batch_size):
            self._batch_size = batch_size
            return super().__call__(logits, labels)

        def kept_pixels(self, pixels):
            share = tf.constant(settings.hardest_fraction, tf.float64) * tf.cast(pixels, tf.float64)
            # The margin keeps 0.29 * 100 at 29; at least one pixel stays whatever the fraction.
            return tf.maximum(tf.cast(tf.floor(share + 1e-6), tf.int32), 1)

        def aggregate_loss_top_k(self, pixelwise_loss, num_valid_pixels=None):
            of_image = tf.reshape(pixelwise_loss, [self._batch_size, -1])
            hardest, _ = tf.math.top_k(
                of_image, self.kept_pixels(tf.shape(of_image)[1]), sorted=False
            )
            return tf.reduce_sum(hardest)

    return HardestOfEachImage(
        label_smoothing=settings.label_smoothing,
        class_weights=weights,
        ignore_label=ignore_label,
        use_groundtruth_dimension=False,
        top_k_percent_pixels=settings.hardest_fraction,
    )


def _check(num_classes, ignore_label, class_weights):
    if num_classes < 2:
        raise UserError(f"num_classes must be at least 2. Received: {num_classes}")
    if 0 <= ignore_label < num_classes:
        raise UserError(
            f"ignore_label must not be one of the classes 0..{num_classes - 1}. "
            f"Received: {ignore_label}"
        )
    if class_weights is not None:
        weights = np.asarray(class_weights, "float64")
        if weights.shape != (num_classes,):
            raise UserError(
                f"class_weights must be one number per class ({num_classes}). "
                f"Received: shape {list(weights.shape)}"
            )
        if not np.all(np.isfinite(weights)) or np.any(weights < 0):
            raise UserError(f"class_weights must be finite and >= 0. Received: {class_weights}")


def _check_shapes(labels, logits, num_classes):
    if labels.shape.rank != 3 or not logits.shape.is_compatible_with(
        labels.shape.concatenate([num_classes])
    ):
        raise UserError(
            f"the loss needs labels [N, H, W] and logits [N, H, W, {num_classes}] of the same "
            "N, H, W. "
            f"Received: labels {labels.shape}, logits {logits.shape}"
        )
