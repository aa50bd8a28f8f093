"""The learning rates against their formulas in plain Python."""

import math

import keras
import numpy as np
import pytest

from auto_deeplab_tf.training import schedules


def test_poly_follows_its_formula_and_ends_at_zero():
    poly = schedules.Poly(0.05, steps=40, power=0.9)
    for step in (0, 1, 17, 39, 40, 50):
        expected = 0.05 * max(1 - step / 40, 0) ** 0.9
        np.testing.assert_allclose(float(poly(step)), expected, rtol=1e-5, atol=1e-9)


def test_cosine_follows_its_formula_and_stays_at_its_end():
    cosine = schedules.Cosine(0.025, 0.001, steps=30)
    for step in (0, 1, 15, 29, 30, 45):
        expected = 0.001 + 0.024 * (1 + math.cos(math.pi * min(step / 30, 1))) / 2
        np.testing.assert_allclose(float(cosine(step)), expected, rtol=1e-5)


def test_the_papers_values_are_the_defaults():
    assert float(schedules.Poly(steps=10)(0)) == pytest.approx(0.05)
    assert float(schedules.Cosine(steps=10)(0)) == pytest.approx(0.025)
    assert float(schedules.Cosine(steps=10)(10)) == pytest.approx(0.001)


def test_alpha_moves_as_far_in_a_short_search_unless_it_is_very_short():
    for updates, rate in (
        (14_880, 0.003),
        (3000, 0.003),
        (600, 0.015),
        (60, 0.15),
        (4, 0.15),
        (0, 0.15),
    ):
        assert schedules.arch_learning_rate(updates) == pytest.approx(rate)


@pytest.mark.parametrize(
    "schedule",
    [schedules.Poly(0.3, 7, 0.5), schedules.Cosine(0.3, 0.02, 7)],
    ids=["poly", "cosine"],
)
def test_an_optimizer_keeps_its_schedule_when_it_is_saved(schedule):
    optimizer = keras.optimizers.SGD(schedule, momentum=0.9)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    again.iterations.assign(3)
    assert float(again.learning_rate) == float(schedule(3))
    assert again._learning_rate.get_config() == schedule.get_config()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.Poly(0.0, 5), "initial learning rate must be > 0. Received: 0.0"),
        (lambda: schedules.Poly(0.1, 0), "whole number of at least 1. Received: 0"),
        (lambda: schedules.Poly(0.1, 2.5), "whole number of at least 1. Received: 2.5"),
        (lambda: schedules.Poly(0.1, 5, 0), "power of a poly schedule must be > 0. Received: 0"),
        (lambda: schedules.Cosine(0.1, 0.2, 5), r"the initial one \(0.1\). Received: 0.2"),
    ],
)
def test_values_are_validated(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_current_rate_is_known_under_several_replicas_too(mirrored, wrapped):
    def rate_of(learning_rate):
        optimizer = keras.optimizers.Adam(learning_rate)
        if wrapped:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        return schedules.current_rate(optimizer)

    with mirrored.scope():
        assert rate_of(0.003) == pytest.approx(0.003)
        assert rate_of(schedules.Poly(0.05, steps=40, power=0.9)) == pytest.approx(0.05)
