"""Optimizers of the weights: the paper's for networks, and loss scaling for float16."""

import keras

from auto_deeplab_tf.config import RunConfig, TrainConfig
from auto_deeplab_tf.training.schedules import Poly


def default_optimizer(steps: int | None = None) -> keras.optimizers.Optimizer:
    """Returns the paper's optimizer for networks: SGD, momentum 0.9, poly learning rate from 0.05.

    Args:
        steps: Number of steps of the schedule; default: the paper's.
    """
    schedule = Poly() if steps is None else Poly(steps=steps)
    return keras.optimizers.SGD(schedule, momentum=TrainConfig.momentum)


def from_options(
    options: RunConfig, schedule: keras.optimizers.schedules.LearningRateSchedule
) -> keras.optimizers.Optimizer:
    """Returns the optimizer of the weights that a command's options name, with a schedule."""
    if options.optimizer == "adam":
        return keras.optimizers.Adam(schedule, beta_1=options.momentum)
    return keras.optimizers.SGD(schedule, momentum=options.momentum)


def with_loss_scaling(
    optimizer: keras.optimizers.Optimizer, compute_dtype: str
) -> keras.optimizers.Optimizer:
    """Returns the optimizer, wrapped so that it scales its loss where features are float16.

    A step whose gradient is not finite is then left out, and the scale halved.
    """
    optimizer = keras.optimizers.get(optimizer)
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if compute_dtype != "float16" or scales:
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer)
