"""Bilinear resizing with aligned corners: its three forms against one written out."""

import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab_tf.nn import backend
from auto_deeplab_tf.nn.resize import resize_bilinear

FORMS = ["kernel", "product", "gather"]
# Of (5, 97) and (9, 97) XLA makes other values than TensorFlow's own kernel.
SIZES = [
    ((5, 9), (97, 33)),
    ((9, 5), (17, 97)),
    ((12, 15), (7, 8)),
    ((3, 1), (1, 5)),
    ((4, 6), (4, 9)),
]


def images(size, channels=3):
    return np.random.default_rng(sum(size)).normal(size=(2, *size, channels)).astype("float32")


def expected(given, size):
    """Each output between its neighbours, in float64, by numpy's own interpolation."""
    for axis, new in ((1, size[0]), (2, size[1])):
        old = given.shape[axis]
        at = np.arange(new) * ((old - 1) / max(new - 1, 1))
        given = np.apply_along_axis(
            lambda v, at=at, old=old: np.interp(at, range(old), v), axis, given
        )
    return given


@pytest.mark.parametrize(("old", "new"), SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_each_form_interpolates(form, old, new):
    given = images(old)
    with backend.resizing_by(form):
        found = resize_bilinear(tf.constant(given), new)
    np.testing.assert_allclose(found, expected(given, new), atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_each_form_takes_sizes_that_are_known_when_it_runs(form):
    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, None, 3]),
            tf.TensorSpec([], tf.int32),
            tf.TensorSpec([], tf.int32),
        ]
    )
    def resized(given, height, width):
        with backend.resizing_by(form):
            return resize_bilinear(given, (height, width))

    for old, new in SIZES:
        given = images(old)
        np.testing.assert_allclose(resized(given, *new), expected(given, new), atol=1e-5)


@pytest.mark.parametrize("form", ["product", "gather"])
def test_what_xla_may_compile_is_right_under_xla(form):
    @tf.function(jit_compile=True)
    def resized(given):
        with backend.resizing_by(form):
            return resize_bilinear(given, SIZES[0][1])

    given = images(SIZES[0][0])
    np.testing.assert_allclose(resized(given), expected(given, SIZES[0][1]), atol=1e-5)


def test_the_gradients_of_kernel_and_product_agree():
    given, weights = tf.constant(images((9, 12))), images((17, 25))
    gradients = []
    for form in ("kernel", "product"):
        with tf.GradientTape() as tape, backend.resizing_by(form):
            tape.watch(given)
            value = tf.reduce_sum(resize_bilinear(given, (17, 25)) * weights)
        gradients.append(tape.gradient(value, given))
    assert np.std(gradients[1]) > 0.1
    np.testing.assert_allclose(*gradients, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_images_of_the_size_are_returned_as_they_are(form):
    given = tf.constant(images((4, 6)))
    with backend.resizing_by(form):
        assert resize_bilinear(given, (4, 6)) is given


def test_the_form_is_the_kernel_only_where_xla_cannot_come_in():
    single, half = tf.zeros((1, 2, 2, 1)), tf.zeros((1, 2, 2, 1), tf.float16)
    assert backend.resizing_form(half) == "product"
    with backend.plain_kernels():
        assert backend.resizing_form(single) == "product"
    if backend.has_fast_cpu_kernels():
        assert backend.resizing_form(single) == "kernel"
