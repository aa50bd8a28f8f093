"""Confusion matrix and scores against counting by hand; the trivial predictors."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab_tf.training import metrics

NUM_CLASSES = 4


def _batch(seed, shape=(3, 6, 5), classes=NUM_CLASSES):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, shape).astype("int32")
    labels[rng.random(shape) < 0.2] = 255
    logits = rng.normal(size=(*shape, NUM_CLASSES)).astype("float32")
    return labels, logits


def _matrix_by_hand(labels, predictions):
    matrix = np.zeros((NUM_CLASSES, NUM_CLASSES), "int64")
    for label, prediction in zip(labels.flat, predictions.flat, strict=True):
        if label != 255:
            matrix[label, prediction] += 1
    return matrix


def test_counts_equal_counting_by_hand_over_several_batches():
    metric = metrics.ConfusionMatrix(NUM_CLASSES)
    expected = 0
    for seed in range(3):
        labels, logits = _batch(seed, (seed + 1, 4, 7))
        metric.update_state(labels, logits)
        expected = expected + _matrix_by_hand(labels, logits.argmax(-1))
    np.testing.assert_array_equal(metric.matrix(), expected)
    metric.reset_state()
    assert metric.matrix().sum() == 0


def test_class_ids_count_like_the_logits_they_come_from():
    labels, logits = _batch(1)
    of_logits, of_ids = (metrics.ConfusionMatrix(NUM_CLASSES) for _ in range(2))
    of_logits.update_state(labels, logits)
    of_ids.update_state(labels.astype("uint8"), logits.argmax(-1).astype("uint8"))
    np.testing.assert_array_equal(of_logits.matrix(), of_ids.matrix())


def test_result_is_scores_and_leaves_absent_classes_out():
    labels, logits = _batch(2, classes=3)
    logits[..., 3] = -100.0
    metric = metrics.ConfusionMatrix(NUM_CLASSES)
    metric.update_state(labels, logits)
    predictions = logits.argmax(-1)
    ious = []
    for index in range(3):
        valid = labels != 255
        a, b = (labels == index) & valid, (predictions == index) & valid
        ious.append((a & b).sum() / (a | b).sum())
    expected = metrics.scores(metric.matrix())
    np.testing.assert_allclose(expected["per_class_iou"][:3], ious)
    assert expected["per_class_iou"][3] is None
    assert expected["miou"] == pytest.approx(np.mean(ious))
    accuracy = (labels == predictions)[labels != 255].mean()
    assert expected["pixel_accuracy"] == pytest.approx(accuracy)
    assert expected["mean_of_miou_and_pixel_accuracy"] == pytest.approx(
        (np.mean(ious) + accuracy) / 2
    )
    result = metric.result()
    assert float(result["miou"]) == pytest.approx(expected["miou"], abs=1e-15)
    assert float(result["pixel_accuracy"]) == pytest.approx(accuracy, abs=1e-15)


def test_a_predicted_class_that_has_no_label_counts_as_wrong():
    result = metrics.scores(np.array([[2, 2, 0], [0, 0, 0], [0, 0, 0]]))
    assert result["per_class_iou"] == [0.5, 0.0, None]
    metric = metrics.ConfusionMatrix(3)
    metric.update_state(np.zeros((1, 1, 4)), np.array([[[0, 0, 1, 1]]]))
    assert result["miou"] == float(metric.result()["miou"]) == 0.25


def test_nothing_counted_is_no_score():
    labels = np.full((1, 2, 2), 255)
    metric = metrics.ConfusionMatrix(NUM_CLASSES)
    metric.update_state(labels, np.zeros((1, 2, 2, NUM_CLASSES), "float32"))
    assert all(np.isnan(float(value)) for value in metric.result().values())
    empty = metrics.scores(metric.matrix())
    assert empty.pop("per_class_iou") == [None] * NUM_CLASSES
    assert set(empty.values()) == {None}
    with pytest.raises(ValueError, match="no score: all pixels .* the ignore label 255"):
        metrics.score(lambda images: labels, [(labels, labels)], NUM_CLASSES)
    with pytest.raises(ValueError, match="no image to score"):
        metrics.score(lambda images: labels, [], NUM_CLASSES)


def test_score_sums_over_batches_and_hands_each_on():
    batches = [_batch(seed, (seed + 1, 4, 7)) for seed in range(3)]
    seen = []
    loss, matrix = metrics.score(
        lambda logits: tf.constant(logits),
        [(logits, labels) for labels, logits in batches],
        NUM_CLASSES,
        loss=lambda labels, logits: (tf.constant(len(labels) * 2.0), tf.constant(len(labels))),
        on_batch=lambda images, labels, predictions: seen.append(predictions.shape),
    )
    assert loss == 2.0 and seen == [(n, 4, 7, NUM_CLASSES) for n in (1, 2, 3)]
    by_hand = sum(_matrix_by_hand(labels, logits.argmax(-1)) for labels, logits in batches)
    np.testing.assert_array_equal(matrix, by_hand)


def test_counts_stay_exact_where_float32_would_not():
    metric = metrics.ConfusionMatrix(2)
    metric.counts.assign(np.full((2, 2), 2.0**30))
    metric.update_state(np.array([[[0]]]), np.array([[[1]]]))
    assert metric.matrix()[0, 1] == 2**30 + 1


@pytest.mark.parametrize(
    ("labels", "predictions"),
    # A prediction of class 4, or of -1, would fall into the row above or below.
    [([0, 4, -1, 255], [0, 0, 0, 0]), ([0, 1, 2, 255], [0, 4, -1, 9])],
)
def test_labels_and_predictions_outside_the_classes_are_refused(labels, predictions):
    metric = metrics.ConfusionMatrix(NUM_CLASSES)
    metric.update_state(np.array([[labels]]), np.array([[predictions]]))
    np.testing.assert_array_equal(metric.counts, np.diag([1, 0, 0, 0]))
    rule = "classes 0..3 or the ignore label 255, and predictions classes. Received: 2 pixels"
    with pytest.raises(ValueError, match=rule):
        metric.matrix()


def test_sample_weights_are_refused():
    labels, logits = _batch(0)
    with pytest.raises(ValueError, match="takes no sample_weight"):
        metrics.ConfusionMatrix(NUM_CLASSES).update_state(labels, logits, sample_weight=labels)


def test_two_replicas_count_what_one_device_counts(mirrored):
    labels, logits = _batch(5, (4, 6, 5))
    alone = metrics.ConfusionMatrix(NUM_CLASSES)
    alone.update_state(labels, logits)
    with mirrored.scope():
        metric = metrics.ConfusionMatrix(NUM_CLASSES)
    dataset = tf.data.Dataset.from_tensor_slices((labels, logits)).batch(4)

    @tf.function
    def update(batch):
        mirrored.run(lambda data: metric.update_state(*data), args=(batch,))

    for batch in mirrored.experimental_distribute_dataset(dataset):
        update(batch)
    np.testing.assert_array_equal(metric.matrix(), alone.matrix())
    assert float(metric.result()["miou"]) == float(alone.result()["miou"])


def test_config_round_trip():
    metric = metrics.ConfusionMatrix(7, ignore_label=0, name="m")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
    assert (again.num_classes, again.ignore_label, again.name) == (7, 0, "m")


def test_trivial_predictors_know_the_majorities():
    rng = np.random.default_rng(0)
    maps = rng.integers(0, NUM_CLASSES, (5, 4, 3))
    maps[rng.random(maps.shape) < 0.3] = 255
    maps[:, 0, 0] = 255
    statistics = metrics.LabelStatistics(NUM_CLASSES)
    for labels in maps:
        statistics.add(labels)
    totals = [(maps == index).sum() for index in range(NUM_CLASSES)]
    assert statistics.most_frequent_class() == int(np.argmax(totals))
    majority = statistics.position_majority((4, 3))
    for row, column in np.ndindex(4, 3):
        here = [(maps[:, row, column] == index).sum() for index in range(NUM_CLASSES)]
        assert majority[row, column] == np.argmax(here if any(here) else totals)


def test_trivial_predictors_need_labels():
    with pytest.raises(ValueError, match="no label was counted"):
        metrics.LabelStatistics(NUM_CLASSES).position_majority((2, 2))


def test_positions_are_relative_where_sizes_differ():
    statistics = metrics.LabelStatistics(NUM_CLASSES)
    small = np.array([[0, 1], [2, 3]])
    statistics.add(small)
    statistics.add(np.kron(small, np.ones((3, 3), "int64")))
    np.testing.assert_array_equal(statistics.position_majority((2, 2)), small)
    np.testing.assert_array_equal(
        statistics.position_majority((4, 6)), np.kron(small, np.ones((2, 3), "int64"))
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([[0, 9]]), r"classes 0..3 or the ignore label 255. Received: 9"),
        (np.zeros((1, 2, 2)), r"shape \[H, W\]. Received: shape \[1, 2, 2\]"),
    ],
)
def test_label_statistics_are_validated(labels, message):
    with pytest.raises(ValueError, match=message):
        metrics.LabelStatistics(NUM_CLASSES).add(labels)


def test_named_scores_name_each_class():
    result = metrics.named_scores(np.diag([3, 0]), ["road", "sky"])
    assert result["per_class_iou"] == {"road": 1.0, "sky": None}
    assert result["miou"] == result["pixel_accuracy"] == 1.0
