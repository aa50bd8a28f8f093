"""Whole images of any size: padded to the least that a network takes, scored once, never bent."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab_tf.architecture import Architecture, Edge
from auto_deeplab_tf.nn.supernet import build_supernet
from auto_deeplab_tf.segmenter import Segmenter
from auto_deeplab_tf.training import whole_images
from auto_deeplab_tf.training.bilevel import BilevelModel
from auto_deeplab_tf.training.metrics import scores

CLASSES = 3
SIZES = ((20, 45), (33, 31), (7, 1), (37, 53), (20, 45))
MEAN = (90.0, 100.0, 110.0)


def example(size, seed):
    rng = np.random.default_rng(seed)
    image = rng.uniform(0, 255, (1, *size, 3)).astype("float32")
    label = rng.integers(0, CLASSES, (1, *size)).astype("int32")
    label[:, :2, : size[1] // 2] = 255
    return image, label


def batches(sizes):
    """One image a batch, as `evaluation_batches` gives images whose sizes differ."""
    return tf.data.Dataset.from_generator(
        lambda: (example(size, seed) for seed, size in enumerate(sizes)),
        output_signature=(
            tf.TensorSpec([None, None, None, 3], tf.float32),
            tf.TensorSpec([None, None, None], tf.int32),
        ),
    )


@pytest.fixture(scope="module")
def segmenter():
    keras.utils.set_random_seed(0)
    cell = ((Edge("prev", "sep_3x3"), Edge("prev_prev", "max_pool_3x3")),)
    architecture = Architecture(levels=(1, 1), cell=cell, atrous="separable")
    small = {"filter_multiplier": 2, "head_channels": 8, "decoder_channels": 4}
    return Segmenter(architecture, CLASSES, mean=MEAN, std=(60.0, 50.0, 40.0), **small)


def padded(image):
    """The image with the mean below and to the right of it, up to 32 rows and columns."""
    height, width = image.shape[1:3]
    result = np.empty((1, max(height, 32), max(width, 32), 3), "float32")
    result[:] = MEAN
    result[:, :height, :width] = image
    return result


@pytest.mark.parametrize("static", [True, False])
def test_padding_is_the_least_and_cut_off_again(static):
    def run(images):
        seen = []

        def network(images):
            seen.append(images)
            return tf.concat([images, images[..., :1]], axis=-1)

        return whole_images.logits(network, images, MEAN), seen[0]

    if not static:
        signature = [tf.TensorSpec([None, None, None, 3], tf.float32)]
        run = tf.function(run, input_signature=signature)
    for seed, size in enumerate((*SIZES, (32, 32))):
        image, _ = example(size, seed)
        logits, seen = run(tf.constant(image))
        assert logits.shape == (1, *size, 4)
        np.testing.assert_array_equal(logits[..., :3], image)
        np.testing.assert_array_equal(seen, padded(image))


def test_each_image_is_segmented_and_scored_at_its_own_size(segmenter):
    answers = segmenter.predict_class_ids([example(s, i)[0][0] for i, s in enumerate(SIZES)])
    loss_sum = weight_sum = matrix = 0
    for seed, (size, answer) in enumerate(zip(SIZES, answers, strict=True)):
        image, label = example(size, seed)
        logits = np.asarray(segmenter(padded(image)))[:, : size[0], : size[1]]
        assert answer.shape == size
        np.testing.assert_array_equal(answer, logits[0].argmax(-1))
        sums = segmenter._loss_function(tf.constant(label), tf.constant(logits))
        loss_sum, weight_sum = loss_sum + float(sums[0]), weight_sum + float(sums[1])
        valid = label[0] != 255
        matrix = matrix + np.bincount(
            label[0][valid] * CLASSES + answer[valid], minlength=CLASSES**2
        ).reshape(CLASSES, CLASSES)
    loss, scored = segmenter.score(batches(SIZES))
    np.testing.assert_array_equal(scored, matrix)
    assert loss == pytest.approx(loss_sum / weight_sum, rel=1e-4)
    # Keras' own evaluate counts the same pixels.
    results = segmenter.evaluate(batches(SIZES), verbose=0, return_dict=True)
    np.testing.assert_array_equal(segmenter.confusion_matrix, matrix)
    assert results["loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("batch_size", [2, 4])
def test_a_last_partial_batch_counts_once(segmenter, batch_size):
    images, labels = zip(*(example((33, 37), seed) for seed in range(5)), strict=True)
    images, labels = np.concatenate(images), np.concatenate(labels)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    loss, matrix = segmenter.score(dataset.batch(batch_size))
    alone = segmenter.score(dataset.batch(1))
    np.testing.assert_array_equal(matrix, alone[1])
    assert matrix.sum() == (labels != 255).sum() and loss == pytest.approx(alone[0], rel=1e-4)


def test_a_supernet_scores_small_images_too():
    supernet = build_supernet(CLASSES, 2, 1, 2, input_size=(32, 45), mean=MEAN)
    model = BilevelModel(supernet)
    images, labels = example((20, 45), 0)
    result = model.score([(tf.constant(images), tf.constant(labels))])
    logits = np.asarray(supernet(padded(images)))[:, :20]
    valid = labels != 255
    matrix = np.bincount(
        labels[valid] * CLASSES + logits.argmax(-1)[valid], minlength=CLASSES**2
    ).reshape(CLASSES, CLASSES)
    expected = scores(matrix)
    assert result["val_miou"] == pytest.approx(expected["miou"])
    assert result["val_pixel_accuracy"] == pytest.approx(expected["pixel_accuracy"])
