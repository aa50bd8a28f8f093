"""The training loop: when it reads logs, what it finds in them, and how it ends early."""

import math
import os
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab_tf.errors import RunError
from auto_deeplab_tf.training import distribution, loop, termination
from auto_deeplab_tf.training.checkpoints import Checkpoints
from auto_deeplab_tf.training.schedules import Cosine

STEPS = 6


class Quadratic(keras.Model):
    """Minimises (w - x)^2 for the numbers x that come as batches."""

    def __init__(self):
        super().__init__()
        self.w = self.add_weight(shape=(), initializer="ones", name="w")
        self.completed_steps = distribution.step_counter()
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.built = True
        self.compile(keras.optimizers.SGD(Cosine(0.5, 0.1, 2 * STEPS)))
        self.optimizer.build(self.trainable_variables)

    @property
    def metrics(self):
        return [self.loss_tracker]

    def train_step(self, batch):
        with tf.GradientTape() as tape:
            loss = tf.square(self.w - batch)
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}


def numbers(wrong=None):
    """Step -> the numbers from there on; that of the step `wrong` is not finite."""
    values = np.sin(np.arange(2 * STEPS)).astype("float32")
    if wrong is not None:
        values[wrong] = np.inf
    return lambda step: tf.data.Dataset.from_tensor_slices(values[step:])


class Hook(keras.callbacks.Callback):
    """Calls a function (completed steps, logs) at the end of every batch."""

    def __init__(self, call):
        super().__init__()
        self._call = call

    def on_train_batch_end(self, batch, logs=None):
        self._call(int(self.model.completed_steps), dict(logs))


class Bar(loop.ProgressBar):
    """A progress bar that notes what it is given."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def on_train_batch_end(self, batch, logs=None):
        self.shown.append((batch, logs.get("loss")))


def fit(model, data=None, **kwargs):
    kwargs = {"epochs": 2, "steps_per_epoch": STEPS, "verbose": 0, **kwargs}
    return loop.fit(model, data or numbers(), **kwargs)


def run(model, folder, data=None, **kwargs):
    """Fits with checkpoints in a folder, from the newest of them."""
    checkpoints = Checkpoints(folder, loop.checkpointed_variables(model), "quadratic", keep=9)
    checkpoints.restore()
    return fit(model, data, checkpoints=checkpoints, checkpoint_every_steps=4, **kwargs)


def written(folder):
    return sorted(int(path.stem.split("-")[1]) for path in folder.glob("step-*.index"))


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("every", [2, 4, 100])
def test_what_is_computed_does_not_depend_on_when_logs_are_read(eager, every):
    ours, theirs = Quadratic(), Quadratic()
    found = fit(ours, eager=eager, log_every_steps=every)
    expected = fit(theirs, eager=eager, log_every_steps=1)
    assert found.history == expected.history and len(found.history["loss"]) == 2
    for a, b in zip(*map(loop.checkpointed_variables, (ours, theirs)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_logs_are_read_where_they_are_due_and_the_bar_moves_between(monkeypatch):
    reads = []
    read = loop._DeviceLogs.read
    monkeypatch.setattr(
        loop._DeviceLogs,
        "read",
        lambda self: reads.extend(step for step, _ in self._unread[-1:]) or read(self),
    )
    bar = Bar()
    fit(Quadratic(), log_every_steps=4, callbacks=[bar])
    # The first step of each epoch, every fourth, the last of each epoch.
    assert reads == [0, 3, 5, 6, 7, 11]
    assert [batch for batch, _ in bar.shown] == [*range(STEPS), *range(STEPS)]
    exact = {}
    fit(
        Quadratic(),
        log_every_steps=4,
        callbacks=[Hook(lambda step, logs: exact.update({step: logs["loss"]}))],
    )
    # A hook of one's own gets the logs of every step.
    assert reads[6:] == list(range(12)) and len(set(exact.values())) == 12
    newest = [1, 1, 1, 4, 4, 6, 7, 8, 8, 8, 8, 12]
    assert [loss for _, loss in bar.shown] == [exact[step] for step in newest]


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize(
    ("wrong", "every", "saved"),
    [(0, 100, []), (2, 100, []), (5, 100, [4]), (6, 3, [4, 6]), (10, 100, [4, 6, 8]), (3, 1, [])],
)
def test_a_loss_that_is_not_finite_is_named_with_its_step_and_never_saved(
    eager, wrong, every, saved, tmp_path
):
    rate = float(Cosine(0.5, 0.1, 2 * STEPS)(wrong))
    rule = rf"loss became inf at step {wrong} \(epoch {wrong // STEPS}, learning rate {rate:g}\)"
    with pytest.raises(RunError, match=rule) as e:
        run(Quadratic(), tmp_path, numbers(wrong), eager=eager, log_every_steps=every)
    assert written(tmp_path) == saved
    latest = tmp_path / f"step-{saved[-1]}" if saved else "none"
    assert str(e.value).endswith(f"Last checkpoint: {latest}")


def signal_at(step, *numbers):
    def call(done, logs):
        if done == step:
            for number in numbers:
                os.kill(os.getpid(), number)

    return Hook(call)


@pytest.mark.parametrize("step", [1, 3, STEPS, STEPS + 1, 2 * STEPS])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_after_a_checkpoint_and_what_is_resumed_is_the_same(
    number, step, tmp_path, capsys
):
    whole = Quadratic()
    expected = fit(whole)
    with pytest.raises((SystemExit, KeyboardInterrupt)) as e:
        run(Quadratic(), tmp_path, callbacks=[signal_at(step, number)], log_every_steps=100)
    # It came when the step was done: the next one is saved, or the epoch that ends with it.
    saved = step if step % STEPS == 0 else step + 1
    assert written(tmp_path)[-1] == saved
    line = f"{tmp_path / f'step-{saved}'} is saved; the same command resumes from it"
    if number == signal.SIGTERM:
        assert e.value.code == 143 and capsys.readouterr().err == f"terminated: {line}\n"
    else:
        assert str(e.value) == f"interrupted: {line}" and capsys.readouterr().err == ""
    resumed = Quadratic()
    rest = run(resumed, tmp_path)
    first_epoch = saved // STEPS
    assert rest.history.get("loss", []) == expected.history["loss"][first_epoch:]
    np.testing.assert_array_equal(resumed.w, whole.w)


def test_a_second_interrupt_ends_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt) as e:
        run(Quadratic(), tmp_path, callbacks=[signal_at(2, signal.SIGINT, signal.SIGINT)])
    assert str(e.value) == "" and written(tmp_path) == []


def test_without_checkpoints_signals_and_clock_are_left_alone():
    with pytest.raises(KeyboardInterrupt) as e:
        fit(Quadratic(), callbacks=[signal_at(2, signal.SIGINT)])
    assert str(e.value) == ""
    assert len(fit(Quadratic(), max_hours=1e-9).epoch) == 2


def test_a_clock_ends_the_run_and_lets_the_last_epoch_end(tmp_path, monkeypatch, capsys):
    hours = 0.0
    monkeypatch.setattr(termination, "seconds_since_start", lambda: 3600 * hours)

    def pass_time(done, logs):
        nonlocal hours
        hours = {3: 1.9, 4: 2.0, 2 * STEPS: 2.0}.get(done, hours)

    with pytest.raises(SystemExit) as e:
        run(Quadratic(), tmp_path, callbacks=[Hook(pass_time)], max_hours=2)
    assert e.value.code == 75 and written(tmp_path)[-1] == 5
    assert capsys.readouterr().err.startswith("max_hours is over: ")
    hours = 0.0
    run(Quadratic(), tmp_path, callbacks=[Hook(pass_time)], max_hours=2)
    assert written(tmp_path)[-1] == 2 * STEPS and math.isclose(hours, 2)
