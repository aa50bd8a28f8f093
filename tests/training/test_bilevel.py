"""The bilevel step: who is updated by what, on one device and two, eagerly and traced."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab_tf import decoding
from auto_deeplab_tf.errors import RunError
from auto_deeplab_tf.nn.execution import Execution
from auto_deeplab_tf.nn.supernet import build_supernet
from auto_deeplab_tf.training import loop, metrics
from auto_deeplab_tf.training.bilevel import BilevelModel
from auto_deeplab_tf.training.checkpoints import Checkpoints

CLASSES = 4
SIZE = (33, 40)


def batch(seed, count=2):
    generator = np.random.default_rng(seed)
    images = generator.uniform(0, 255, (count, *SIZE, 3)).astype("float32")
    labels = generator.integers(0, CLASSES, (count, *SIZE)).astype("int32")
    labels[:, :3] = 255
    return tf.constant(images), tf.constant(labels)


def pair(seed, count=2):
    return batch(2 * seed, count), batch(2 * seed + 1, count)


def model(num_layers=2, dtype="float32", modes=None, **kwargs):
    supernet = build_supernet(
        CLASSES, num_layers, 1, 2, input_size=SIZE, dtype=dtype, **(modes or {})
    )
    bilevel = BilevelModel(supernet, **{"batch_norm_decay": 0.9} | kwargs)
    bilevel.compile(keras.optimizers.SGD(0.05, momentum=0.9), keras.optimizers.Adam(0.01))
    return bilevel


def values(variables):
    return [keras.ops.convert_to_numpy(variable).copy() for variable in variables]


def weights_of(bilevel):
    return values(bilevel.supernet.trainable_variables)


def architecture_of(bilevel):
    return values(bilevel.supernet.architecture_variables)


def moving_of(bilevel):
    return values(s.moving for s in bilevel.supernet.segments if s.moving is not None)


def same(first, second):
    return all(np.array_equal(*both) for both in zip(first, second, strict=True))


def changed(first, second):
    return all(not np.array_equal(*both) for both in zip(first, second, strict=True))


def test_a_weight_step_leaves_alpha_and_beta_bit_for_bit_unchanged():
    bilevel = model()
    weights, architecture, moving = (f(bilevel) for f in (weights_of, architecture_of, moving_of))
    logs = bilevel.train_step(batch(0))
    assert set(logs) == {"loss"}
    assert same(architecture, architecture_of(bilevel))
    assert int(bilevel.architecture_optimizer.iterations) == 0
    assert changed(weights, weights_of(bilevel))
    assert changed(moving, moving_of(bilevel))


def test_an_architecture_step_leaves_weights_and_moving_statistics_unchanged():
    bilevel = model()
    weights, architecture, moving = (f(bilevel) for f in (weights_of, architecture_of, moving_of))
    bilevel._update("architecture", batch(0), bilevel.arch_loss_tracker)
    assert same(weights, weights_of(bilevel))
    assert same(moving, moving_of(bilevel))
    assert changed(architecture, architecture_of(bilevel))


@pytest.mark.parametrize("modes", [{}, {"partial_channels": 2, "sampled_paths": 2}])
def test_the_decoded_score_is_that_of_its_own_statistics_and_changes_nothing(modes):
    bilevel = model(modes=modes)
    supernet = bilevel.supernet
    bilevel.train_step(pair(0))
    architecture = decoding.decode(supernet.alpha_logits, supernet.beta_logits, "separable")
    before = values(bilevel.variables)
    batches = [batch(seed) for seed in (1, 2)]
    score = bilevel.score_decoded(architecture, batches[:1], batches[:1])["val_decoded_miou"]
    assert same(before, values(bilevel.variables))
    # One batch, scored on itself: inference with its statistics is the pass in training.
    one_hot = decoding.one_hot(architecture)
    logits = supernet.forward(batches[0][0], True, relaxed=one_hot).logits
    _, matrix = metrics.score(lambda images: logits, batches[:1], CLASSES)
    assert score == pytest.approx(metrics.scores(matrix)["miou"], abs=2e-3)
    # The statistics are the mean over the batches, whatever the moving ones are.
    both = bilevel.score_decoded(architecture, batches, batches[:1])["val_decoded_miou"]
    assert both != score
    for segment in supernet.segments:
        if segment.moving is not None:
            segment.moving.assign(segment.moving + 1.0)
    again = bilevel.score_decoded(architecture, batches[::-1], batches[:1])["val_decoded_miou"]
    assert again == pytest.approx(both, abs=2e-3)
    assert bilevel.score(batches[:1])["val_miou"] != pytest.approx(both, abs=1e-3)


@pytest.mark.parametrize("traced", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_weight_of_the_cost_is_added_to_the_gradient_of_alpha_and_beta(traced):
    gradients = {}
    for weight in (0.0, 2.0):
        bilevel = model(arch_weight_decay=0.0, cost_weight=weight, cost="params")
        bilevel.compile(keras.optimizers.SGD(0.0), keras.optimizers.SGD(1.0))
        before = architecture_of(bilevel)
        step = tf.function(bilevel.train_step) if traced and weight else bilevel.train_step
        step(pair(0))
        gradients[weight] = [a - b for a, b in zip(before, architecture_of(bilevel), strict=True)]
    with tf.GradientTape() as tape:
        logits = [tf.constant(values) for values in before]
        tape.watch(logits)
        ratio = bilevel.expected_cost.log_ratio(*logits)
    for ours, without, cost in zip(
        gradients[2.0], gradients[0.0], tape.gradient(ratio, logits), strict=True
    ):
        assert np.abs(cost).max() > 1e-3
        np.testing.assert_allclose(ours, without + 2.0 * cost, atol=2e-5)


def test_a_model_comes_back_from_its_configuration():
    saved = model(num_layers=1, path_temperature=3.0, cost_weight=2.0).get_config()
    again = BilevelModel.from_config(saved)
    assert (again.path_temperature, again.settings.cost_weight) == (3.0, 2.0)


def test_the_architecture_step_sees_the_weights_after_their_update():
    both, separate = model(), model()
    both.train_step(pair(0))
    separate.train_step(pair(0)[0])
    separate._update("architecture", pair(0)[1], separate.arch_loss_tracker)
    assert same(architecture_of(both), architecture_of(separate))
    assert same(weights_of(both), weights_of(separate))


def test_weight_decay_is_added_to_the_gradient_of_kernels_only():
    """Method: 50 steps at learning rate 0.1, decay 0.01, momentum 0.9 leave 0.644 of a weight."""
    bilevel = model(weight_decay=0.01)
    bilevel.compile(keras.optimizers.SGD(0.1, momentum=0.9), keras.optimizers.Adam(0.01))
    before = weights_of(bilevel)
    zeros = [tf.zeros(variable.shape) for variable in bilevel.supernet.trainable_variables]
    moments = [tf.constant(m) for m in moving_of(bilevel)]
    for _ in range(50):
        bilevel._eager_apply["weights"](zeros, moments)
    for variable, old in zip(bilevel.supernet.trainable_variables, before, strict=True):
        factor = 0.644 if variable.path.endswith("kernels") else 1.0
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(variable), factor * old, rtol=2e-3, atol=1e-7
        )


@pytest.mark.parametrize(("step", "kept"), [(0, 0.1), (8, 0.5), (40_000, 0.9997)])
def test_moving_statistics_are_right_from_the_first_steps(step, kept):
    bilevel = model(batch_norm_decay=0.9997)
    bilevel.completed_steps.assign(step)
    before = moving_of(bilevel)
    zeros = [tf.zeros(variable.shape) for variable in bilevel.supernet.trainable_variables]
    bilevel._eager_apply["weights"](zeros, [tf.fill(old.shape, 3.0) for old in before])
    for old, new in zip(before, moving_of(bilevel), strict=True):
        np.testing.assert_allclose(new, kept * old + (1 - kept) * 3.0, rtol=1e-6)


def test_gradients_are_clipped_to_their_global_norm():
    bilevel = model(gradient_clip_norm=0.5, weight_decay=0.0)
    bilevel.compile(keras.optimizers.SGD(1.0), keras.optimizers.Adam(0.01))
    before = weights_of(bilevel)
    bilevel.train_step(batch(0))
    moved = np.sqrt(
        sum(np.sum((new - old) ** 2) for new, old in zip(weights_of(bilevel), before, strict=True))
    )
    np.testing.assert_allclose(moved, 0.5, rtol=1e-3)


def test_float16_scales_its_loss_and_steps_as_float32_does():
    """Weight decay and clipping apply to the gradient without the scale."""
    settings = {"num_layers": 1, "weight_decay": 0.1, "gradient_clip_norm": 0.5}
    half, full = model(dtype="mixed_float16", **settings), model(**settings)
    before = weights_of(full)
    assert float(half._loss_scale("weights")) == 2**15
    for optimizer in half.optimizers:
        optimizer.dynamic_scale.assign(2.0**10)  # at 2**15 some initial weights overflow
    for bilevel in (half, full):
        bilevel.train_step(pair(0))
    for ours, theirs, old in zip(weights_of(half), weights_of(full), before, strict=True):
        np.testing.assert_allclose(ours - old, theirs - old, atol=0.05 * np.abs(theirs - old).max())
    # Adam's first step is the sign of a gradient, of a tiny one too: 0.01 each.
    for ours, theirs in zip(architecture_of(half), architecture_of(full), strict=True):
        assert np.median(np.abs(ours - theirs)) < 1e-3


def test_a_float16_step_whose_gradient_overflows_is_left_out_and_the_scale_halved():
    bilevel = model(num_layers=1, dtype="mixed_float16")
    bilevel.optimizer.dynamic_scale.assign(2.0**80)
    weights = weights_of(bilevel)
    bilevel.train_step(batch(0))
    assert same(weights, weights_of(bilevel))
    assert float(bilevel._loss_scale("weights")) == 2.0**79
    assert float(bilevel._loss_scale("architecture")) == 2**15


def test_xla_under_several_replicas_is_refused(mirrored):
    with mirrored.scope():
        bilevel = model(num_layers=1)
        with pytest.raises(ValueError, match="jit_compile=true needs distribution_strategy=one"):
            bilevel.compile(
                bilevel.optimizer, keras.optimizers.Adam(), execution=Execution(jit_compile=True)
            )


def run_steps(bilevel, eager, steps=3):
    """Three epochs of one step each, the first without an architecture step."""

    def data_at(step):
        data = pair(step, count=4)
        return tf.data.Dataset.from_tensors(data if step else data[0])

    return loop.fit(bilevel, data_at, epochs=steps, steps_per_epoch=1, eager=eager, verbose=0)


def test_two_devices_equal_one_and_the_traced_step_the_eager_one(mirrored):
    """Same global batch: loss and weights to 1e-5 relative, alpha and beta to 1e-4 absolute."""
    eager, traced = model(num_layers=1), model(num_layers=1)
    histories = [run_steps(eager, True), run_steps(traced, False)]
    with mirrored.scope():
        mirrored = model(num_layers=1)
        histories.append(run_steps(mirrored, False))
    for other, history in ((traced, histories[1]), (mirrored, histories[2])):
        np.testing.assert_allclose(histories[0].history["loss"], history.history["loss"], rtol=1e-5)
        np.testing.assert_allclose(
            histories[0].history["arch_loss"], history.history["arch_loss"], rtol=1e-5
        )
        for ours, theirs in zip(weights_of(eager), weights_of(other), strict=True):
            np.testing.assert_allclose(theirs, ours, atol=1e-5 * np.abs(ours).max())
        for ours, theirs in zip(architecture_of(eager), architecture_of(other), strict=True):
            np.testing.assert_allclose(theirs, ours, atol=1e-4)
        for ours, theirs in zip(moving_of(eager), moving_of(other), strict=True):
            np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5)
    assert all(m.std() > 2e-3 for m in architecture_of(eager))


@pytest.mark.parametrize(
    "modes", [{}, {"partial_channels": 2, "sampled_paths": 2}], ids=["exact", "fast"]
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, modes):
    def data_at(step):
        return (
            tf.data.Dataset.range(step, 100)
            .map(
                lambda s: tf.numpy_function(
                    lambda k: [*pair(int(k))[0], *pair(int(k))[1]],
                    [s],
                    [tf.float32, tf.int32, tf.float32, tf.int32],
                )
            )
            .map(
                lambda *t: (
                    (tf.ensure_shape(t[0], [2, *SIZE, 3]), tf.ensure_shape(t[1], [2, *SIZE])),
                    (tf.ensure_shape(t[2], [2, *SIZE, 3]), tf.ensure_shape(t[3], [2, *SIZE])),
                )
            )
        )

    class Killed(Exception):
        pass

    class Kill(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.completed_steps.numpy()) == 7:
                raise Killed

    def run(bilevel, **kwargs):
        checkpoints = Checkpoints(
            kwargs.pop("directory"), loop.checkpointed_variables(bilevel), "space", keep=2
        )
        checkpoints.restore()
        return loop.fit(
            bilevel,
            data_at,
            epochs=2,
            steps_per_epoch=4,
            checkpoints=checkpoints,
            checkpoint_every_steps=3,
            eager=True,
            verbose=0,
            **kwargs,
        )

    whole = model(modes=modes)
    history = run(whole, directory=tmp_path / "whole")
    with pytest.raises(Killed):
        run(model(modes=modes), directory=tmp_path / "part", callbacks=[Kill()])
    # The last checkpoint, of step 6, lies within the second epoch.
    resumed = model(modes=modes)
    rest = run(resumed, directory=tmp_path / "part")
    assert rest.history["loss"] == history.history["loss"][1:]
    for first, second in zip(
        loop.checkpointed_variables(whole), loop.checkpointed_variables(resumed), strict=True
    ):
        np.testing.assert_array_equal(*values([first, second]))


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where():
    bilevel = model()

    def data_at(step):
        if step == 1:
            head = next(s for s in bilevel.supernet.segments if s.name == "head_0")
            head.affine.assign(head.affine * np.nan)
        return tf.data.Dataset.from_tensors(batch(step))

    with pytest.raises(
        RunError, match=r"loss became nan at step 1 \(epoch 1, learning rate 0.05\)"
    ):
        loop.fit(bilevel, data_at, epochs=3, steps_per_epoch=1, eager=True, verbose=0)


def test_a_keras_file_holds_both_optimizers(tmp_path):
    bilevel = model()
    bilevel.train_step(pair(0))
    bilevel.save(tmp_path / "search.keras")
    loaded = keras.saving.load_model(tmp_path / "search.keras")
    assert same(architecture_of(bilevel), architecture_of(loaded))
    assert same(weights_of(bilevel), weights_of(loaded))
    for name in ("optimizer", "architecture_optimizer"):
        assert same(*(values(getattr(m, name).variables) for m in (bilevel, loaded))), name
    for m in (bilevel, loaded):
        m.train_step(pair(1))
    assert same(architecture_of(bilevel), architecture_of(loaded))


def test_the_paths_of_a_step_depend_on_seed_step_and_half_alone():
    first, second = (model(num_layers=1, modes={"sampled_paths": 3}) for _ in range(2))

    def noise(bilevel, step, wrt, seed=0):
        bilevel.completed_steps.assign(step)
        bilevel.supernet.seed = seed
        return bilevel.sampling(wrt)[0].numpy()

    drawn = {
        key: noise(first, *key)
        for key in [(0, "weights"), (0, "architecture"), (1, "weights"), (0, "weights", 1)]
    }
    for key, value in drawn.items():
        assert value.shape == (3, 1, 4, 3)
        np.testing.assert_array_equal(value, noise(second, *key))
    assert len({value.tobytes() for value in drawn.values()}) == 4
    # The standard Gumbel distribution: mean 0.577, deviation 1.283.
    many = np.concatenate([noise(first, step, "weights").ravel() for step in range(200)])
    np.testing.assert_allclose([many.mean(), many.std()], [0.577, 1.283], atol=0.05)
    assert model(num_layers=1).sampling("weights") is None


def test_the_temperature_of_sampled_paths_follows_its_schedule():
    schedule = keras.optimizers.schedules.PolynomialDecay(10.0, 4, 2.0)
    bilevel = model(num_layers=1, modes={"sampled_paths": 2}, path_temperature=schedule)
    for step, temperature in ((0, 10.0), (1, 8.0), (4, 2.0), (9, 2.0)):
        bilevel.completed_steps.assign(step)
        assert float(bilevel.sampling("weights")[1]) == pytest.approx(temperature)


def test_a_step_on_sampled_paths_moves_beta_and_leaves_other_statistics_alone():
    bilevel = model(num_layers=3, modes={"sampled_paths": 2})
    supernet = bilevel.supernet
    states = supernet.forward(batch(0)[0], True, bilevel.sampling("weights")).states
    idle = {segment.name for segment in supernet.segments if supernet._is_idle(segment, states)}
    assert idle
    before, beta = moving_of(bilevel), architecture_of(bilevel)[1]
    bilevel.train_step(pair(0))
    with_statistics = [s for s in supernet.segments if s.moving is not None]
    for segment, old, new in zip(with_statistics, before, moving_of(bilevel), strict=True):
        assert np.array_equal(old, new) == (segment.name in idle), segment.name
    assert changed([beta], architecture_of(bilevel)[1:2])


def test_a_keras_file_holds_the_fast_modes(tmp_path):
    schedule = keras.optimizers.schedules.PolynomialDecay(10.0, 4, 2.0)
    modes = {"partial_channels": 2, "sampled_paths": 2}
    bilevel = model(num_layers=1, modes=modes, path_temperature=schedule)
    bilevel.supernet.edge_logits.assign([0.5, -0.5])
    bilevel.save(tmp_path / "search.keras")
    loaded = keras.saving.load_model(tmp_path / "search.keras")
    assert loaded.supernet.settings.fast_modes == modes
    assert same(architecture_of(bilevel), architecture_of(loaded))
    loaded.completed_steps.assign(1)
    assert float(loaded.sampling("weights")[1]) == pytest.approx(8.0)
