"""Devices: the strategy that a flag names, and operations that give the same bits each time."""

import functools
from typing import Any

import keras
import tensorflow as tf

from auto_deeplab_tf.errors import FieldError, UserError


@functools.cache
def strategy(name: str) -> tf.distribute.Strategy:
    """Returns the strategy of a `--distribution_strategy`, the same one each time.

    A second MirroredStrategy in a process would number its collective operations from the start
    again, and TensorFlow would take them for those of the first.

    Args:
        name: "one_device": the default device; "mirrored": all GPUs of this machine, else all its
            logical CPUs.
    """
    if name == "one_device":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
        return tf.distribute.MirroredStrategy(
            [device.name for device in tf.config.list_logical_devices(kind)]
        )
    raise FieldError(f"distribution_strategy is one_device or mirrored. Received: {name!r}")


def check_batch_size(batch_size: int, replicas: int) -> None:
    """Refuses a batch that the replicas cannot share equally."""
    if batch_size % replicas:
        raise UserError(
            f"batch_size={batch_size} must be a multiple of the {replicas} devices: "
            "every replica takes the same number of images."
        )


def step_counter() -> tf.Variable:
    """Returns a variable, int64, that counts the steps of all replicas together."""
    return tf.Variable(
        0,
        trainable=False,
        dtype=tf.int64,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )


def sum_over_replicas(values: Any) -> Any:
    """Sums a tensor, or each of a list, over the replicas; outside a strategy they stay."""
    context = tf.distribute.get_replica_context()
    if context is not None and context.num_replicas_in_sync > 1:
        return context.all_reduce(tf.distribute.ReduceOp.SUM, values)
    return values


def prepare(seed: int, deterministic: bool) -> None:
    """Seeds Keras, NumPy and Python; `deterministic` gives TensorFlow the same bits each time."""
    keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()


def set_threads(intra_op: int, inter_op: int) -> None:
    """Sets how TensorFlow uses the cores; before it runs its first operation.

    Args:
        intra_op: Threads that share one operation; 0: all cores.
        inter_op: Operations that run at a time; 0: as many as cores.
    """
    tf.config.threading.set_intra_op_parallelism_threads(intra_op)
    tf.config.threading.set_inter_op_parallelism_threads(inter_op)
