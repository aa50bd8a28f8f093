"""The one training loop: of searches and fixed networks, on one device or many, resumed or not.

Keras' own `fit` cannot start inside an epoch, and breaks under some strategies; its progress bar,
callbacks and metrics are used as they are.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from auto_deeplab_tf.errors import RunError, UserError
from auto_deeplab_tf.nn.segmentation_network import UPDATES_NAME, SegmentationNetwork
from auto_deeplab_tf.training.run_dir import Checkpoints


def checkpointed_variables(model: keras.Model) -> list[Any]:
    """Returns all that a training changes: step, weights, seeds, optimizers, metrics so far.

    Left out is the number of updates of the moving statistics, which is the step: `fit` sets it.
    Optimizers must have been built. A model with more than one lists them as `optimizers`.
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
    data_at: Callable[[int], tf.data.Dataset],
    *,
    epochs: int,
    steps_per_epoch: int,
    validate: Callable[[int], Mapping[str, Any]] | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    checkpoints: Checkpoints | None = None,
    checkpoint_every_steps: int | None = None,
    eager: bool = False,
    verbose: int = 1,
) -> keras.callbacks.History:
    """Trains from `model.completed_steps` to the end of the last epoch.

    At the end of an epoch come, in this order: `validate`, the callbacks, a checkpoint. A run that
    is killed in between repeats what lies behind its last checkpoint; whatever the callbacks write
    must bear that.

    Args:
        model: has `train_step(batch) -> logs so far`, Keras metrics and `completed_steps`, a
            tf.Variable int64; made and compiled in the scope of the strategy that is in force.
        data_at: global step -> the batches from that step on; called at the start of every epoch.
        epochs: number of epochs in all, those already done included.
        steps_per_epoch: number of batches of an epoch.
        validate: epoch -> more logs of that epoch.
        callbacks: Keras callbacks.
        checkpoints: where checkpoints go; None for none.
        checkpoint_every_steps: also within an epoch, after every so many steps.
        eager: call `train_step` as it is, instead of inside one traced function (on one device
            only).
        verbose: of Keras' progress bar: 0 silent, 1 a bar, 2 a line per epoch.

    Returns:
        Keras' `History` of the epochs that ran.

    Raises:
        RunError: where a log is not finite, or the data end before the epoch does.
    """
    strategy = tf.distribute.get_strategy()
    if eager and strategy.num_replicas_in_sync > 1:
        raise UserError(
            "An eager step runs on one device only: trace the step under a strategy of "
            f"{strategy.num_replicas_in_sync} replicas."
        )
    take_step = model.train_step if eager else _traced_step(model, strategy)
    container = keras.callbacks.CallbackList(
        [*callbacks, *([ProgressBar()] if verbose else [])],
        add_history=True,
        verbose=verbose,
        epochs=epochs,
        steps=steps_per_epoch,
        model=model,
    )
    step = int(model.completed_steps.numpy())
    if isinstance(getattr(model, "network", None), SegmentationNetwork):
        model.network.resume_updates(step)
    model.stop_training = False
    container.on_train_begin()
    logs: dict[str, Any] = {}
    while step < epochs * steps_per_epoch and not model.stop_training:
        epoch, first = divmod(step, steps_per_epoch)
        if first == 0:
            model.reset_metrics()
        container.on_epoch_begin(epoch)
        dataset = data_at(step).take(steps_per_epoch - first)
        if strategy.num_replicas_in_sync > 1:
            dataset = strategy.experimental_distribute_dataset(dataset)
        for index, batch in enumerate(dataset, start=first):
            container.on_train_batch_begin(index)
            logs = {name: float(value) for name, value in take_step(batch).items()}
            _check_finite(logs, model, step, epoch, checkpoints)
            step = int(model.completed_steps.assign_add(1).numpy())
            container.on_train_batch_end(index, logs)
            is_last = step % steps_per_epoch == 0
            if checkpoints and checkpoint_every_steps and not is_last:
                if step % checkpoint_every_steps == 0:
                    checkpoints.save(step)
        if step % steps_per_epoch:
            raise RunError(
                f"the data ended after step {step}, before epoch {epoch} did: it has "
                f"{steps_per_epoch} steps"
            )
        results = model.get_metrics_result()
        logs = {name: float(results[name]) for name in logs}
        if validate is not None:
            logs |= validate(epoch)
        container.on_epoch_end(epoch, logs)
        if checkpoints:
            checkpoints.save(step)
    container.on_train_end(logs)
    return container._history


class ProgressBar(keras.callbacks.ProgbarLogger):
    """Keras' progress bar; at the end of an epoch, logs that are texts get a line each below it."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        logs = logs or {}
        texts = {name: value for name, value in logs.items() if isinstance(value, str)}
        super().on_epoch_end(
            epoch, {name: value for name, value in logs.items() if name not in texts}
        )
        for name, text in texts.items():
            print(f"{name}: {text}", flush=True)


def _traced_step(model, strategy):
    """One traced function of a whole step, on every replica; the logs are their mean."""

    def step(batch):
        logs = strategy.run(model.train_step, args=(batch,))
        return {
            name: strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None)
            for name, value in logs.items()
        }

    return tf.function(step, autograph=False)


def _check_finite(logs, model, step, epoch, checkpoints):
    wrong = [name for name, value in logs.items() if not math.isfinite(value)]
    if not wrong:
        return
    latest = checkpoints.latest if checkpoints else None
    raise RunError(
        f"{wrong[0]} became {logs[wrong[0]]} at step {step} (epoch {epoch}, learning "
        f"rate {float(model.optimizer.learning_rate):g}): lower the learning rate, or look at "
        f"the images of that step. Last checkpoint: {latest or 'none'}"
    )
