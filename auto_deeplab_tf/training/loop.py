"""The one training loop: for searches and fixed networks, on one device or many, resumed or not.

Keras' own `fit` cannot start inside an epoch, and breaks under some strategies; its progress bar,
callbacks and metrics are used as they are. `Segmenter.fit` brings Keras' forms of data to it.
"""

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from auto_deeplab_tf.errors import RunError, UserError
from auto_deeplab_tf.nn.segmentation_network import UPDATES_NAME, SegmentationNetwork
from auto_deeplab_tf.training import termination
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
    eager: bool = False,
    verbose: int = 1,
) -> keras.callbacks.History:
    """Trains from `model.completed_steps` to the end of the last epoch.

    At the end of an epoch come, in this order: `validate`, the callbacks, a checkpoint. With
    checkpoints, SIGTERM ends the process with 143 after the step and a checkpoint. A run that is
    killed in between repeats what came after its last checkpoint; whatever the callbacks write
    must bear that.

    Args:
        model: Has `train_step(batch) -> logs so far`, Keras metrics and `completed_steps`, a
            tf.Variable int64; made and compiled in the scope of the strategy that is in force. An
            attribute `traced_step`, None at first, keeps the traced function for the next call.
        data_at: Global step -> the batches from that step on; called at the start of every epoch.
            A `tf.data.Dataset` may be endless; another iterable holds the batches of one epoch,
            distributed already.
        epochs: Number of epochs in all, those already done included.
        steps_per_epoch: Number of batches of an epoch; None: an epoch ends with its data.
        initial_epoch: First epoch, from 0, in place of the one that `completed_steps` says; that
            counter is then set to its first step. A callback such as Keras' `BackupAndRestore` may
            set another one.
        validate: Epoch -> more logs of that epoch.
        callbacks: Keras callbacks, or the `callback_list` of them.
        checkpoints: Where checkpoints are written; None: nowhere.
        checkpoint_every_steps: Write one also within an epoch, after every so many steps.
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
    with termination.noted(wanted=checkpoints is not None) as terminated:
        while epoch < epochs and not model.stop_training:
            if first == 0:
                model.reset_metrics()
            callbacks.on_epoch_begin(epoch)
            logs = {}
            batches = _batches(data_at(step), steps_per_epoch, first, strategy)
            for index, batch in enumerate(batches, start=first):
                callbacks.on_train_batch_begin(index)
                logs = {name: _number(value) for name, value in take_step(batch).items()}
                step = int(model.completed_steps.assign_add(1).numpy())
                callbacks.on_train_batch_end(index, logs)
                if model.stop_training:
                    break
                _check_finite(logs, model, step - 1, epoch, checkpoints)
                is_last = step % (steps_per_epoch or step + 1) == 0
                if checkpoints and not is_last:
                    if terminated() or step % (checkpoint_every_steps or step + 1) == 0:
                        checkpoints.save(step)
                    if terminated():
                        sys.exit(termination.EXIT_CODE)
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
            if checkpoints:
                checkpoints.save(step)
            if terminated():
                sys.exit(termination.EXIT_CODE)
            epoch, first = epoch + 1, 0
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
    return data


def _traced_step(model, strategy):
    """One traced function of a whole step, on every replica; the logs are their mean."""
    train_step = model.train_step
    if getattr(model, "jit_compile", False):
        train_step = tf.function(train_step, jit_compile=True, autograph=False)

    def step(batch):
        logs = strategy.run(train_step, args=(batch,))
        return {
            name: strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None)
            for name, value in logs.items()
        }

    return tf.function(step, autograph=False)


def _number(value):
    """A log as a float; a metric of the user's may be an array."""
    return float(value) if np.size(value) == 1 else np.asarray(value)


def _check_finite(logs, model, step, epoch, checkpoints):
    losses = {name: value for name, value in logs.items() if name.endswith("loss")}
    wrong = [name for name, value in losses.items() if not math.isfinite(value)]
    if not wrong:
        return
    latest = checkpoints.latest if checkpoints else None
    raise RunError(
        f"{wrong[0]} became {logs[wrong[0]]} at step {step} (epoch {epoch}, learning "
        f"rate {float(model.optimizer.learning_rate):g}): lower the learning rate, or look at "
        f"the images of that step. Last checkpoint: {latest or 'none'}"
    )
