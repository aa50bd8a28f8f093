"""Random inputs and weights, comparisons by size, and what TensorFlow's profiler counts."""

import numpy as np
import tensorflow as tf


def images(shape, seed=0):
    """Uniform in 0..255, float32."""
    return np.random.default_rng(seed).uniform(0, 255, shape).astype("float32")


def features(shape, seed=0):
    """Normal, float32."""
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def randomized(layer, *input_shapes, seed=0):
    """Builds a layer and gives all its weights, batch statistics too, random values."""
    layer.build(*input_shapes)
    rng = np.random.default_rng(seed)
    for variable in layer.weights:
        values = rng.normal(size=variable.shape)
        variable.assign(np.abs(values) + 0.5 if "variance" in variable.path else values)
    return layer


def close(actual, expected, rtol=1e-4, atol=1e-4):
    """Asserts equality up to `rtol`, or up to `atol` of the largest expected value."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol * np.abs(expected).max())


def profiler_multi_adds(concrete_function):
    """Multi-Adds of the convolutions of a traced function, by TensorFlow's own profiler."""
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    frozen = convert_variables_to_constants_v2(concrete_function)
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["account_type_regexes"] = ["^Conv2D$", "^DepthwiseConv2dNative$"]
    options["output"] = "none"
    profile = tf.compat.v1.profiler.profile(frozen.graph, options=options)
    return profile.total_float_ops // 2
