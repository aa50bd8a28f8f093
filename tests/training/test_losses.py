"""The segmentation loss against plain NumPy, and its sums over replicas."""

import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab_tf.config import LossConfig
from auto_deeplab_tf.training import losses

NUM_CLASSES = 5


def _batch(seed, shape=(3, 7, 5), void=0.2):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, NUM_CLASSES, shape)
    labels[rng.random(shape) < void] = 255
    logits = rng.normal(size=(*shape, NUM_CLASSES)) * 3
    return labels.astype("int32"), logits.astype("float32")


def _numpy_pixel_losses(labels, logits, weights=None, smoothing=0.0, ignore=255):
    """Cost of each pixel, image by image and pixel by pixel, in float64; NaN where ignored."""
    weights = np.ones(NUM_CLASSES) if weights is None else np.asarray(weights)
    costs = np.full(labels.shape, np.nan)
    for position in np.ndindex(*labels.shape):
        label = labels[position]
        if label == ignore:
            continue
        z = logits[position].astype("float64")
        log_p = z - z.max() - np.log(np.exp(z - z.max()).sum())
        target = np.full(NUM_CLASSES, smoothing / NUM_CLASSES)
        target[label] += 1 - smoothing
        costs[position] = -weights[label] * (target * log_p).sum()
    return costs


def hardest(fraction):
    return losses.segmentation_loss(NUM_CLASSES, settings=LossConfig(hardest_fraction=fraction))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_numpy(smoothing, weighted):
    weights = [0.5, 2.0, 1.0, 0.0, 3.0] if weighted else None
    labels, logits = _batch(0)
    loss_sum, weight_sum = losses.segmentation_loss(
        NUM_CLASSES, class_weights=weights, settings=LossConfig(label_smoothing=smoothing)
    )(labels, logits)
    costs = _numpy_pixel_losses(labels, logits, weights, smoothing)
    np.testing.assert_allclose(loss_sum, np.nansum(costs), rtol=1e-5)
    assert float(weight_sum) == np.sum(labels != 255)
    assert loss_sum.dtype == weight_sum.dtype == tf.float32


@pytest.mark.parametrize("fraction", [0.05, 0.29, 0.5, 0.97])
def test_hardest_pixels_of_each_image_equal_numpy(fraction):
    labels, logits = _batch(1, (3, 10, 10), void=0.4)
    labels[1] = 255
    labels[2, 0, :3] = 255
    loss_sum, weight_sum = losses.segmentation_loss(
        NUM_CLASSES, settings=LossConfig(hardest_fraction=fraction)
    )(labels, logits)
    kept = int(np.floor(fraction * 100 + 1e-6))
    expected, pixels = 0.0, 0
    for costs in _numpy_pixel_losses(labels, logits):
        hardest = np.sort(costs[~np.isnan(costs)])[::-1][:kept]
        expected, pixels = expected + hardest.sum(), pixels + len(hardest)
    np.testing.assert_allclose(loss_sum, expected, rtol=1e-5)
    assert float(weight_sum) == pixels


def test_is_the_official_loss_once_divided():
    from official.vision.losses.segmentation_losses import SegmentationLoss

    labels, logits = _batch(2)
    weights = [0.5, 2.0, 1.0, 0.2, 3.0]
    official = SegmentationLoss(0.1, weights, 255, False)(
        tf.constant(logits), tf.constant(labels[..., None])
    )
    ours = losses.normalized(
        *losses.segmentation_loss(
            NUM_CLASSES, class_weights=weights, settings=LossConfig(label_smoothing=0.1)
        )(labels, logits)
    )
    np.testing.assert_allclose(ours, official, rtol=1e-6)


@pytest.mark.parametrize("fraction", [1.0, 0.3])
def test_only_void_costs_nothing_and_moves_nothing(fraction):
    labels, logits = _batch(3, void=1.0)
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = losses.normalized(*hardest(fraction)(labels, logits))
    assert float(loss) == 0.0
    np.testing.assert_array_equal(tape.gradient(loss, logits), np.zeros(logits.shape))


def test_gradient_is_softmax_minus_target_over_valid_pixels():
    labels, logits = _batch(4)
    variable = tf.Variable(logits)
    loss_function = losses.segmentation_loss(NUM_CLASSES)
    with tf.GradientTape() as tape:
        loss = losses.normalized(*loss_function(labels, variable))
    valid = labels != 255
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    expected = (
        (p - np.eye(NUM_CLASSES)[np.where(valid, labels, 0)]) * valid[..., None] / valid.sum()
    )
    np.testing.assert_allclose(tape.gradient(loss, variable), expected, atol=1e-7)


@pytest.mark.parametrize("fraction", [1.0, 0.3])
def test_sizes_may_be_unknown_and_parts_add_up(fraction):
    labels, logits = _batch(5, (4, 6, 9))
    loss = hardest(fraction)
    dynamic = tf.function(
        loss,
        input_signature=[
            tf.TensorSpec([None, None, None], tf.int32),
            tf.TensorSpec([None, None, None, NUM_CLASSES], tf.float32),
        ],
    )
    whole = loss(labels, logits)
    parts = [dynamic(labels[part], logits[part]) for part in (slice(0, 1), slice(1, 4))]
    for index in range(2):
        np.testing.assert_allclose(parts[0][index] + parts[1][index], whole[index], rtol=1e-5)


def test_half_precision_logits_are_computed_in_float32():
    labels, logits = _batch(6)
    loss = losses.segmentation_loss(NUM_CLASSES)
    half = tf.cast(logits, tf.float16)
    np.testing.assert_array_equal(loss(labels, half), loss(labels, tf.cast(half, tf.float32)))


@pytest.mark.parametrize("dtype", ["uint8", "int64"])
def test_labels_of_any_integer_type(dtype):
    labels, logits = _batch(7)
    loss = losses.segmentation_loss(NUM_CLASSES)
    np.testing.assert_array_equal(loss(labels.astype(dtype), logits), loss(labels, logits))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2. Received: 1"),
        ({"ignore_label": 4}, r"ignore_label must not be one of the classes 0..4. Received: 4"),
        ({"class_weights": [1.0] * 4}, r"one number per class \(5\). Received: shape \[4\]"),
        ({"class_weights": [1, 1, -1, 1, 1]}, "class_weights must be finite and >= 0"),
    ],
)
def test_options_are_validated(options, message):
    with pytest.raises(ValueError, match=message):
        losses.segmentation_loss(**{"num_classes": NUM_CLASSES, **options})


def test_shapes_are_validated():
    labels, logits = _batch(8)
    with pytest.raises(ValueError, match="of the same N, H, W. Received"):
        losses.segmentation_loss(NUM_CLASSES)(labels[:, :-1], logits)


def test_class_frequencies_look_at_the_images_that_show_the_class():
    counts = np.array([[6, 2, 0, 0], [10, 0, 2, 0]])
    present = (counts > 0).T @ counts.sum(axis=1)
    frequencies = losses.class_frequencies(counts.sum(axis=0), present)
    np.testing.assert_allclose(frequencies, [16 / 20, 2 / 8, 2 / 12, 0])


def test_class_weights():
    frequencies = [0.4, 0.0, 0.1, 0.2]
    assert losses.class_weights(frequencies, "none") is None
    np.testing.assert_allclose(
        losses.class_weights(frequencies, "median_frequency"), [0.5, 1.0, 2.0, 1.0]
    )
    np.testing.assert_allclose(
        losses.class_weights(frequencies, "sqrt_median_frequency"),
        [0.5**0.5, 1.0, 2.0**0.5, 1.0],
    )


@pytest.mark.parametrize(
    ("frequencies", "scheme", "message"),
    [
        ([1.0], "median", "must be one of none, median_frequency, .* Received: median"),
        ([0.5, -0.1], "median_frequency", "one finite share >= 0 per class"),
        ([0.0, 0.0], "median_frequency", "at least one class that occurs"),
    ],
)
def test_class_weights_are_validated(frequencies, scheme, message):
    with pytest.raises(ValueError, match=message):
        losses.class_weights(frequencies, scheme)
