"""Whole steps as XLA compiles them, as a TPU would run them: the numbers are those without it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import config as framework_config

from auto_deeplab_tf import Architecture, Segmenter
from auto_deeplab_tf.architecture import Edge
from auto_deeplab_tf.nn.supernet import build_supernet
from auto_deeplab_tf.training import loop, metrics, whole_images
from auto_deeplab_tf.training.bilevel import BilevelModel

CLASSES = 4
SIZE = (33, 46)  # no multiple of any stride, and not square
ARCHITECTURE = Architecture(
    levels=(1,),
    cell=((Edge("prev", "sep_3x3"), Edge("prev_prev", "max_pool_3x3")),),
    atrous="separable",
)


@pytest.fixture(autouse=True)
def no_determinism():
    """Tests before may have asked for it, and with it XLA has no gradient of max pooling."""
    was_on = framework_config.is_op_determinism_enabled()
    framework_config.disable_op_determinism()
    yield
    if was_on:
        framework_config.enable_op_determinism()


def batch(seed, count=2):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, (count, *SIZE)).astype("int32")
    labels[:, :3] = 255
    images = generator.uniform(0, 255, (count, *SIZE, 3)).astype("float32")
    return tf.constant(images), tf.constant(labels)


def bilevel(modes):
    supernet = build_supernet(CLASSES, 1, 1, 2, input_size=SIZE, **modes)
    settings = {"batch_norm_decay": 0.9, "cost_weight": 0.5, "gradient_clip_norm": 1.0}
    model = BilevelModel(supernet, **settings)
    # Not Adam, whose first step is as long for a gradient near 0.
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), keras.optimizers.SGD(0.05))
    return model, (batch(0), batch(1)), model.architecture_optimizer


def segmenter(_):
    model = Segmenter(
        ARCHITECTURE,
        CLASSES,
        filter_multiplier=2,
        head_channels=8,
        decoder_channels=4,
        hardest_fraction=0.5,
    )
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9))
    model.optimizer.build(model.trainable_variables)
    return model, batch(0), model.optimizer


def values(variables):
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


@pytest.mark.parametrize(
    ("make", "modes"),
    # Without draws: XLA has a generator of its own.
    [
        (bilevel, {}),
        pytest.param(bilevel, {"partial_channels": 2}, marks=pytest.mark.slow),
        (segmenter, {}),
    ],
    ids=["bilevel", "bilevel_partial", "decoded"],
)
def test_a_whole_training_step_is_that_without_xla_at_an_odd_crop(make, modes):
    found = []
    for compiles in (False, True):
        keras.utils.set_random_seed(0)
        model, data, optimizer = make(modes)
        before = values(loop.checkpointed_variables(model))
        step = loop.for_xla(model.train_step) if compiles else model.train_step
        logs = tf.function(step, jit_compile=compiles, autograph=False)(data)
        assert int(optimizer.iterations) == 1
        after = values(loop.checkpointed_variables(model))
        # Of a seed or a counter the difference would be that of unsigned numbers.
        changes = [np.subtract(b, a, dtype="float64") for a, b in zip(before, after, strict=True)]
        found.append((logs, changes))
    (logs, changes), (compiled_logs, compiled_changes) = found
    for name, value in logs.items():
        np.testing.assert_allclose(compiled_logs[name], value, rtol=1e-4)
    assert sum(np.any(change) for change in changes) > len(changes) / 2
    for ours, theirs in zip(compiled_changes, changes, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-3 * np.abs(theirs).max() + 1e-6)


def test_the_evaluation_steps_are_those_without_xla_at_an_odd_size():
    model, (images, labels), _ = segmenter({})
    search, *_ = bilevel({})

    def of_supernet(data):
        return whole_images.logits(
            lambda images: search.supernet(images, training=False), data[0], search.supernet.mean
        )

    for predict in (of_supernet, lambda data: model._logits(data[0])):

        def step(data, predict=predict):
            logits = predict(data)
            return logits, metrics.count_pixels(data[1], logits, CLASSES)

        logits, counts = tf.function(step, autograph=False)((images, labels))
        xla = tf.function(loop.for_xla(step), jit_compile=True, autograph=False)((images, labels))
        scale = np.std(logits)
        assert scale > 1e-3
        np.testing.assert_allclose(xla[0], logits, atol=1e-3 * scale)
        np.testing.assert_array_equal(xla[1], counts)
        assert metrics.matrix_of(counts, CLASSES).sum() == 2 * (SIZE[0] - 3) * SIZE[1]
    step = tf.function(loop.for_xla(model.test_step), jit_compile=True, autograph=False)
    logs = step((images, labels))
    assert np.isfinite(float(logs["loss"])) and 0 < float(logs["miou"]) < 1
