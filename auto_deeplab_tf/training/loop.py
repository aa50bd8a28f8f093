"""The one training loop: for searches and fixed networks, on one device or many, resumed or not.

Keras' own `fit` cannot start inside an epoch, and breaks under some strategies; its progress bar,
callbacks and metrics are used as they are. `Segmenter.fit` brings Keras' forms of data to it.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from auto_deeplab_tf.config import RunConfig
from auto_deeplab_tf.errors import RunError, UserError
from auto_deeplab_tf.nn import backend
from auto_deeplab_tf.nn.segmentation_network import UPDATES_NAME, SegmentationNetwork
from auto_deeplab_tf.training import distribution, schedules, termination
from auto_deeplab_tf.training.checkpoints import Checkpoints


def checkpointed_variables(model: keras.Model) -> list[Any]:
    """Returns all that a training changes: step, weights, seeds, optimizers, metrics so far.

    Left out is the number of updates of the moving statistics, which is the step: `fit` sets it.
    Optimizers must have been built. A model with several lists them as `optimizers`.
    """
    optimizers = getattr(model, "optimizers", [model.optimizer])
    return [
        model.completed_steps,
        *(variable for variable in model.variables if variable.name != UPDATES_NAME),
        *(variable for optimizer in optimizers for variable in optimizer.variables),
        *model.metrics_variables,
    ]


def fit(
    model: keras.Model,
    data_at: Callable[[int], tf.data.Dataset | Iterable[Any]],
    *,
    epochs: int,
    steps_per_epoch: int | None,
    initial_epoch: int | None = None,
    validate: Callable[[int], Mapping[str, Any]] | None = None,
    callbacks: keras.callbacks.CallbackList | Sequence[keras.callbacks.Callback] = (),
    checkpoints: Checkpoints | None = None,
    checkpoint_every_steps: int | None = None,
    log_every_steps: int = RunConfig.log_every_steps,
    max_hours: float | None = None,
    eager: bool = False,
    verbose: int = 1,
) -> keras.callbacks.History:
    """Trains from `model.completed_steps` to the end of the last epoch.

    At the end of an epoch come, in this order: `validate`, the callbacks, a checkpoint. With
    checkpoints, SIGTERM, Ctrl-C and `max_hours` end the process after the step and a checkpoint
    (`training.termination`). A run that is killed in between repeats what came after its last
    checkpoint; whatever the callbacks write must bear that.

    Reading the logs of a step waits for the device to finish it. They are read every
    `log_every_steps` steps, after the first step of an epoch, before a checkpoint and at the end
    of an epoch; between, the progress bar shows the last ones. Where a callback has a hook of its
    own at the end of a batch, they are read after every step, and it gets that step's. What is
    computed and written does not depend on it.

    Args:
        model: Has `train_step(batch) -> logs so far`, Keras metrics and `completed_steps`, a
            tf.Variable int64; made and compiled in the scope of the strategy that is in force. An
            attribute `traced_step`, None at first, keeps the traced function for the next call.
        data_at: Global step -> the batches from that step on; called at the start of every epoch.
            A `tf.data.Dataset`, or one that is distributed already, may be endless; another
            iterable holds the batches of one epoch, distributed already.
        epochs: Number of epochs in all, those already done included.
        steps_per_epoch: Number of batches of an epoch; None: an epoch ends with its data.
        initial_epoch: First epoch, from 0, in place of the one that `completed_steps` says; that
            counter is then set to its first step. A callback such as Keras' `BackupAndRestore` may
            set another one.
        validate: Epoch -> more logs of that epoch.
        callbacks: Keras callbacks, or the `callback_list` of them.
        checkpoints: Where checkpoints are written; None: nowhere.
        checkpoint_every_steps: Write one also within an epoch, after every so many steps.
        log_every_steps: Read the logs after every so many steps. A loss that is not finite is
            found then, and named with its very step.
        max_hours: With checkpoints, end the process so many hours after it began.
        eager: Call `train_step` as it is, instead of inside one traced function (on one device
            only).
        verbose: Keras' progress bar: 0 silent, 1 a bar, 2 a line per epoch.

    Returns:
        Keras' `History` of the epochs that ran.

    Raises:
        UserError: If `steps_per_epoch` is no whole number of at least 1.
        RunError: If a loss is not finite, or the data end before the epoch does.
    """
    if steps_per_epoch is not None and (
        steps_per_epoch != int(steps_per_epoch) or steps_per_epoch < 1
    ):
        raise UserError(
            "steps_per_epoch must be a whole number of at least 1, such as images // batch_size. "
            f"Received: {steps_per_epoch}"
        )
    strategy = tf.distribute.get_strategy()
    if eager and strategy.num_replicas_in_sync > 1:
        raise UserError(
            "An eager step runs on one device only: trace the step under a strategy of "
            f"{strategy.num_replicas_in_sync} replicas."
        )
    take_step = model.train_step if eager else getattr(model, "traced_step", None)
    if take_step is None:
        take_step = _traced_step(model, strategy)
        if hasattr(model, "traced_step"):
            model.traced_step = take_step
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callback_list(model, callbacks, epochs, steps_per_epoch, verbose)
    model.stop_training = False
    callbacks.on_train_begin()
    if initial_epoch is None:
        step = int(model.completed_steps.numpy())
        epoch, first = divmod(step, steps_per_epoch or 1)
    else:
        # Where Keras' BackupAndRestore notes the epoch that it restored.
        epoch, first = model._initial_epoch or initial_epoch, 0
        model._initial_epoch = None
        step = epoch * (steps_per_epoch or 0)
        model.completed_steps.assign(step)
    if isinstance(getattr(model, "network", None), SegmentationNetwork):
        model.network.resume_updates(step)
    logs: dict[str, Any] = {}
    reads_every_step = log_every_steps == 1 or _have_batch_hooks(callbacks)
    with termination.noted(checkpoints is not None, max_hours) as stop:
        while epoch < epochs and not model.stop_training:
            if first == 0:
                model.reset_metrics()
            callbacks.on_epoch_begin(epoch)
            logs, on_device = {}, _DeviceLogs()
            batches = _batches(data_at(step), steps_per_epoch, first, strategy)
            for index, batch in enumerate(batches, start=first):
                callbacks.on_train_batch_begin(index)
                on_device.add(step, take_step(batch))
                model.completed_steps.assign_add(1)
                step += 1
                is_last = step % (steps_per_epoch or step + 1) == 0
                saves = step % (checkpoint_every_steps or step + 1) == 0
                reads = saves or is_last or step % log_every_steps == 0
                # Workers end at one common step, whichever of them was told to.
                code = distribution.agreed(stop, asks=reads)
                saves |= code is not None
                if reads_every_step or reads or saves or not logs:
                    logs = on_device.read()
                callbacks.on_train_batch_end(index, logs)
                if model.stop_training:
                    break
                on_device.check(model, epoch, checkpoints)
                if checkpoints and saves and not is_last:
                    saved = checkpoints.save(step)
                    if code:
                        termination.end(code, saved)
            logs = on_device.read()
            if not model.stop_training:
                on_device.check(model, epoch, checkpoints)
            ended = step < (epoch + 1) * steps_per_epoch if steps_per_epoch else not logs
            if ended and not model.stop_training:
                raise RunError(
                    f"the data ended after step {step}, before epoch {epoch} did: it has "
                    f"{steps_per_epoch or 'no'} steps"
                )
            results = model.get_metrics_result()
            logs = {name: _number(results.get(name, value)) for name, value in logs.items()}
            if validate is not None:
                logs |= validate(epoch)
            callbacks.on_epoch_end(epoch, logs)
            epoch, first = epoch + 1, 0
            is_end = epoch >= epochs or model.stop_training
            if checkpoints:
                saved, code = checkpoints.save(step), distribution.agreed(stop)
                if code and not (is_end and code == termination.TIME_IS_UP):
                    termination.end(code, saved)
    callbacks.on_train_end(logs)
    return model.history


def callback_list(
    model: keras.Model,
    callbacks: Sequence[keras.callbacks.Callback],
    epochs: int,
    steps_per_epoch: int | None,
    verbose: int = 1,
) -> keras.callbacks.CallbackList:
    """Returns the callbacks of a training, with Keras' history and the progress bar."""
    return keras.callbacks.CallbackList(
        [*callbacks, *([ProgressBar()] if verbose else [])],
        add_history=True,
        verbose=verbose,
        epochs=epochs,
        steps=steps_per_epoch,
        model=model,
    )


class ProgressBar(keras.callbacks.ProgbarLogger):
    """Keras' progress bar; at the end of an epoch, logs that are texts get a line each below it."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the epoch's values."""
        logs = logs or {}
        texts = {name: value for name, value in logs.items() if isinstance(value, str)}
        super().on_epoch_end(
            epoch, {name: value for name, value in logs.items() if name not in texts}
        )
        for name, text in texts.items():
            print(f"{name}: {text}", flush=True)


def _batches(data, steps_per_epoch, first, strategy):
    """The batches of an epoch from its step `first` on, distributed over the replicas."""
    if isinstance(data, tf.data.Dataset):
        if steps_per_epoch is not None:
            data = data.take(steps_per_epoch - first)
        if strategy.num_replicas_in_sync > 1:
            data = strategy.experimental_distribute_dataset(data)
    elif isinstance(data, tf.distribute.DistributedDataset) and steps_per_epoch is not None:
        return itertools.islice(data, steps_per_epoch - first)
    return data


def _traced_step(model, strategy):
    """One traced function of a whole step, on every replica; the logs are their mean."""
    train_step = model.train_step
    if getattr(model, "jit_compile", False):
        train_step = tf.function(for_xla(train_step), jit_compile=True, autograph=False)
    elif isinstance(strategy, tf.distribute.TPUStrategy):
        train_step = for_xla(train_step)  # the strategy compiles it

    def step(batch):
        logs = strategy.run(train_step, args=(batch,))
        return {
            name: strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None)
            for name, value in logs.items()
        }

    return tf.function(step, autograph=False)


def for_xla(step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns a step in the form that XLA compiles, with none of the kernels that it lacks."""

    def plain(batch: Any) -> Any:
        with backend.plain_kernels():
            return step(batch)

    return plain


def _have_batch_hooks(callbacks: keras.callbacks.CallbackList) -> bool:
    """Tells whether a callback, the progress bar apart, does something at the end of a batch."""
    default = keras.callbacks.Callback
    return any(
        getattr(getattr(callback, name), "__func__", None) is not getattr(default, name)
        for callback in callbacks.callbacks
        for name in ("on_train_batch_end", "on_batch_end")
        if not isinstance(callback, keras.callbacks.ProgbarLogger)
    )


class _DeviceLogs:
    """The logs of an epoch's steps, on the device until they are read.

    Those of a step are what holds for the epoch so far, so a loss that is not finite stays so.
    All since the last reading are kept, which for a few numbers costs nothing, so that the step
    where it became so is found.
    """

    def __init__(self):
        self._unread: list[tuple[int, Mapping[str, Any]]] = []
        self._done: list[tuple[int, Mapping[str, Any]]] = []
        self._numbers: dict[str, Any] = {}

    def add(self, step: int, logs: Mapping[str, Any]) -> None:
        """Takes the logs of a step."""
        self._unread.append((step, logs))

    def read(self) -> dict[str, Any]:
        """Returns the newest logs as numbers, after waiting for the device."""
        if self._unread:
            newest = self._unread[-1][1]
            self._numbers = {name: _number(value) for name, value in newest.items()}
            self._done, self._unread = self._unread, []
        return self._numbers

    def check(self, model, epoch: int, checkpoints: Checkpoints | None) -> None:
        """Raises a RunError if a loss of the logs just read is not finite, with its step."""
        done, self._done = self._done, []
        names = [name for name in self._numbers if name.endswith("loss")]
        if all(math.isfinite(self._numbers[name]) for name in names):
            return
        step, name, value = next(
            (step, name, float(logs[name]))
            for step, logs in done
            for name in names
            if not math.isfinite(float(logs[name]))
        )
        rate = _learning_rate(model.optimizer, done[-1][0] + 1 - step)
        latest = checkpoints.latest if checkpoints else None
        raise RunError(
            f"{name} became {value} at step {step} (epoch {epoch}, learning rate {rate:g}): lower "
            "the learning rate, or look at the images of that step. Last checkpoint: "
            f"{latest or 'none'}"
        )


def _learning_rate(optimizer, steps_ago):
    """The learning rate of one of the last steps; 1 is the last."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    schedule = optimizer._learning_rate
    if not isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        return schedules.current_rate(optimizer)
    return float(schedule(max(int(optimizer.iterations) - steps_ago, 0)))


def _number(value):
    """A log as a float; a metric of the user's may be an array."""
    return float(value) if np.size(value) == 1 else np.asarray(value)
