"""The ways to run one body: eager and traced, recomputed or kept, compiled by XLA or not."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab_tf.nn import backend
from auto_deeplab_tf.nn.execution import Execution, runner
from auto_deeplab_tf.nn.node import weighted
from auto_deeplab_tf.nn.supernet import build_supernet

CLASSES = 5
SIZE = (49, 70)


def random(shape, seed, low=-1.0, high=1.0):
    return np.random.default_rng(seed).uniform(low, high, shape).astype("float32")


def supernet(dtype="float32", **kwargs):
    """A small supernet with random alpha, beta and affine weights."""
    settings = {"num_blocks": 2, "filter_multiplier": 2, "input_size": SIZE} | kwargs
    net = build_supernet(CLASSES, settings.pop("num_layers", 2), dtype=dtype, **settings)
    for index, variable in enumerate(net.architecture_variables):
        variable.assign(random(variable.shape, index))
    for index, segment in enumerate(net.segments):
        if segment.affine is not None:
            segment.affine.assign(random(segment.affine.shape, index, 0.5, 1.5))
    return net


X = random((2, *SIZE, 3), 0, 0, 255)
WEIGHTING = random((2, *SIZE, CLASSES), 1)


def eager_results(net):
    """Logits, moments, and the gradients of all variables."""
    computed = net.forward(tf.constant(X), training=True)
    gradients = [
        gradient
        for wrt in ("weights", "architecture")
        for gradient in net.backward(computed, tf.constant(WEIGHTING), wrt)
    ]
    return computed.logits, [m for m in computed.moments if m is not None], gradients


@functools.cache
def float32_results():
    return eager_results(supernet())


def traced_results(net):
    @tf.function(autograph=False, jit_compile=net.execution.jit_compile or None)
    def step():
        variables = [v.value for v in [*net.trainable_variables, *net.architecture_variables]]
        with tf.GradientTape() as tape:
            tape.watch(variables)
            computed = net.forward(tf.constant(X), training=True)
            loss = tf.reduce_sum(computed.logits * WEIGHTING)
        moments = [m for m in computed.moments if m is not None]
        return computed.logits, moments, tape.gradient(loss, variables)

    return step()


def check_close(ours, theirs, tolerance):
    """Compares logits, moments and each gradient, relative to the largest value of each."""
    for one, other in zip(tf.nest.flatten(ours), tf.nest.flatten(theirs), strict=True):
        scale = np.abs(other).max()
        assert scale > 0
        np.testing.assert_allclose(one, other, atol=tolerance * scale)


@pytest.mark.parametrize(
    ("run", "remat", "kwargs"),
    [
        pytest.param(eager_results, False, {}, marks=pytest.mark.slow),
        pytest.param(
            eager_results,
            False,
            {"atrous": "full", "share_operations": False},
            marks=pytest.mark.slow,
        ),
        (traced_results, False, {}),
        (traced_results, True, {}),
    ],
    ids=["eager_kept", "eager_kept_own_full", "traced", "traced_recomputed"],
)
def test_every_way_to_run_gives_the_same_loss_moments_and_gradients(run, remat, kwargs):
    net = supernet(**kwargs)
    expected = eager_results(net)
    net.execution = Execution(remat=remat)
    check_close(run(net), expected, 1e-4)


def check_xla(run, **kwargs):
    net = supernet(**kwargs)
    expected = eager_results(net)
    net.execution = Execution(remat=run is traced_results, jit_compile=True)
    # XLA rounds otherwise (3e-6 in the median). A value that rounds to the other side of a ReLU's
    # zero moves a gradient by more: on one machine by 5e-3 of the largest, on another by nothing.
    check_close(run(net), expected, 2e-2)


@pytest.mark.parametrize(
    ("run", "num_layers"),
    [pytest.param(eager_results, 2, marks=pytest.mark.slow), (traced_results, 1)],
)
def test_functions_that_xla_compiles_equal_the_others_at_an_odd_crop(run, num_layers):
    check_xla(run, num_layers=num_layers, num_blocks=1)


@pytest.mark.slow
@pytest.mark.parametrize("run", [eager_results, traced_results])
@pytest.mark.parametrize("atrous", ["separable", "full"])
def test_four_layers_that_xla_compiles_equal_the_others_at_an_odd_crop(run, atrous):
    check_xla(run, num_layers=4, num_blocks=2, filter_multiplier=4, atrous=atrous)


def test_no_kernel_that_xla_lacks_or_runs_slowly_is_in_what_it_compiles():
    """Max pool has no gradient there with deterministic operations on."""
    net = supernet(num_layers=1, num_blocks=1)
    segment = next(s for s in net.segments if s.name == "layer_0_level_0")
    images = {"stem_2": tf.zeros((1, 25, 35, 64)), "stem_4": tf.zeros((1, 13, 18, 128))}
    states = {**images, "alpha": tf.zeros((2, 8)), "beta_0": tf.ones(1)}
    function = runner(segment.kind, Execution(jit_compile=True)).functions["forward"]
    graph = function.get_concrete_function(segment.arguments(segment.read(), states)).graph
    types = {op.type for op in graph.get_operations()}
    assert "DepthwiseConv2dNative" in types
    assert not types & {"MaxPool", "FusedBatchNormV3", "SpaceToBatchND"}


def test_only_a_segment_that_is_not_recomputed_keeps_tensors():
    net = supernet(num_layers=1)

    def kept():
        return [t for kept in net.forward(tf.constant(X), True).residuals for t in kept]

    assert kept() == []
    net.execution = Execution(remat=False)
    # In each of two nodes: the projections; a depthwise and a pointwise result of two stages for
    # the inputs and for the first block; that block.
    assert len(kept()) == 2 * (1 + 2 * 2 * 2 + 1)


def test_the_pullback_of_a_segment_that_keeps_computes_no_convolution_again():
    net = supernet(num_layers=1)

    segment = next(s for s in net.segments if s.name == "layer_0_level_0")

    def convolutions(execution):
        net.execution = execution
        eager_results(net)
        function = runner(segment.kind, execution).functions["weights"]
        graph = function._list_all_concrete_functions()[-1].graph
        needed, frontier = set(), list(graph.outputs)
        while frontier:
            tensor = frontier.pop()
            op = tensor.op
            # Grappler splits an IdentityN, so that one output needs one input.
            inputs = [op.inputs[tensor.value_index]] if op.type == "IdentityN" else op.inputs
            frontier += [i for i in inputs if i.name not in needed]
            needed |= {i.name for i in inputs}
        types = [graph.get_tensor_by_name(name).op.type for name in needed]
        return types.count("Conv2D"), types.count("DepthwiseConv2dNative")

    assert min(convolutions(Execution(remat=True))) > 0
    assert convolutions(Execution(remat=False)) == (0, 0)


@pytest.mark.parametrize(
    "dtype", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)]
)
def test_mixed_precision_keeps_alpha_beta_statistics_and_logits_in_float32(dtype):
    net = supernet(dtype)
    logits, moments, gradients = eager_results(net)
    computed = net.forward(tf.constant(X), training=True)
    assert computed.features[0, 0].dtype == net.compute_dtype
    for tensor in [logits, *moments, *gradients, computed.alpha, computed.betas[0]]:
        assert tensor.dtype == tf.float32
    expected = float32_results()
    tolerance = {"mixed_bfloat16": 0.1, "mixed_float16": 0.02}[dtype]
    check_close((logits, moments), expected[:2], tolerance)
    for ours, theirs in zip(gradients, expected[2], strict=True):
        ours, theirs = np.ravel(ours), np.ravel(theirs)
        cosine = ours @ theirs / (np.linalg.norm(ours) * np.linalg.norm(theirs))
        assert cosine > 1 - tolerance


def test_the_gradient_of_alpha_is_summed_in_float32():
    """In bfloat16 a sum of 40,000 ones stops at 256."""
    images = tf.ones((1, 200, 200, 1), tf.bfloat16)
    weight = tf.Variable([1.0])
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(tf.cast(weighted(images, weight), tf.float32))
    np.testing.assert_allclose(tape.gradient(total, weight), [40_000.0], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_max_pool_by_shifts_equals_the_kernel_in_value_and_gradient(dtype):
    """With many equal values, which must take the gradient alike."""
    values = np.random.default_rng(0).integers(-3, 4, (2, 7, 10, 3))
    images = tf.constant(values, dtype)
    upstream = tf.cast(tf.constant(np.random.default_rng(1).integers(1, 9, values.shape)), dtype)
    results = []
    for pool in (backend.max_pool, backend.plain_max_pool):
        with tf.GradientTape() as tape:
            tape.watch(images)
            pooled = pool(images, 3)
        results.append((pooled, tape.gradient(pooled, images, output_gradients=upstream)))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(tf.cast(ours, "float32"), tf.cast(theirs, "float32"))
