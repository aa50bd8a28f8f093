"""Whole steps as XLA compiles them, as a TPU would run them: the numbers are those without it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab_tf import Architecture, Segmenter
from auto_deeplab_tf.architecture import Edge
from auto_deeplab_tf.nn.supernet import build_supernet
from auto_deeplab_tf.training import loop, metrics, whole_images
from auto_deeplab_tf.training.bilevel import BilevelModel

CLASSES = 4
SIZE = (33, 46)  # no multiple of any stride, and not square
ARCHITECTURE = Architecture(
    levels=(1, 1),
    cell=((Edge("prev", "sep_3x3"), Edge("prev_prev", "max_pool_3x3")),),
    atrous="separable",
)


def batch(seed, count=2):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, (count, *SIZE)).astype("int32")
    labels[:, :3] = 255
    images = generator.uniform(0, 255, (count, *SIZE, 3)).astype("float32")
    return tf.constant(images), tf.constant(labels)


def bilevel(modes):
    supernet = build_supernet(CLASSES, 1, 1, 2, input_size=SIZE, **modes)
    model = BilevelModel(supernet, batch_norm_decay=0.9, cost_weight=0.5, gradient_clip_norm=1.0)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), keras.optimizers.Adam(0.01))
    return model, (batch(0), batch(1)), model.optimizers


def segmenter(_):
    model = Segmenter(
        ARCHITECTURE,
        CLASSES,
        filter_multiplier=2,
        head_channels=8,
        decoder_channels=4,
        drop_path_keep=0.5,
        hardest_fraction=0.5,
    )
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9))
    model.optimizer.build(model.trainable_variables)
    model.total_steps = 4
    return model, batch(0), [model.optimizer]


def values(variables):
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


@pytest.mark.parametrize(
    ("make", "modes"),
    [(bilevel, {}), (bilevel, {"partial_channels": 2, "sampled_paths": 2}), (segmenter, {})],
    ids=["bilevel", "bilevel_fast", "decoded"],
)
def test_a_whole_training_step_is_that_without_xla_at_an_odd_crop(make, modes):
    found = []
    for compiles in (False, True):
        keras.utils.set_random_seed(0)
        model, data, optimizers = make(modes)
        start = values(model.trainable_variables)
        step = loop.for_xla(model.train_step) if compiles else model.train_step
        step = tf.function(step, jit_compile=compiles, autograph=False)
        for _ in range(2):
            logs = step(data)
            model.completed_steps.assign_add(1)
        variables = loop.checkpointed_variables(model)
        found.append((start, values(model.trainable_variables), values(variables), logs))
        assert optimizers[0].iterations.numpy() == 2
    (start, before, one, logs), (_, after, two, compiled_logs) = found
    for name, value in logs.items():
        np.testing.assert_allclose(compiled_logs[name], value, rtol=1e-4)
    assert sum(not np.array_equal(a, b) for a, b in zip(start, after, strict=True)) > 5
    for ours, theirs in zip((*after, *two), (*before, *one), strict=True):
        scale = max(np.abs(theirs).max(), 1e-3)
        np.testing.assert_allclose(ours, theirs, atol=1e-3 * scale)


def test_the_evaluation_steps_are_those_without_xla_at_an_odd_size():
    model, (images, labels), _ = segmenter({})
    search, *_ = bilevel({})

    def of_supernet(data):
        logits = whole_images.logits(
            lambda images: search.supernet(images, training=False), data[0], search.supernet.mean
        )
        return metrics.count_pixels(data[1], logits, CLASSES)

    counts = []
    for step in (
        of_supernet,
        lambda data: metrics.count_pixels(data[1], model._logits(data[0]), 4),
    ):
        plain = tf.function(step, autograph=False)((images, labels))
        xla = tf.function(loop.for_xla(step), jit_compile=True, autograph=False)((images, labels))
        np.testing.assert_array_equal(xla, plain)
        counts.append(plain)
    # Both predict more than one class, and count every pixel.
    for count in counts:
        matrix = metrics.matrix_of(count, CLASSES)
        assert matrix.sum() == 2 * (SIZE[0] - 3) * SIZE[1]
        assert (matrix.sum(axis=0) > 0).sum() > 1
    step = tf.function(loop.for_xla(model.test_step), jit_compile=True, autograph=False)
    logs = step((images, labels))
    assert np.isfinite(float(logs["loss"])) and 0 < float(logs["miou"]) < 1
