"""Devices and workers: the strategy that a flag names, what workers share, same bits each time."""

import contextlib
import dataclasses
import functools
import hashlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.ops import resource_variable_ops

from auto_deeplab_tf import config
from auto_deeplab_tf.data.pipeline import Share
from auto_deeplab_tf.errors import FieldError, RunError, UserError
from auto_deeplab_tf.training import cluster
from auto_deeplab_tf.training.cluster import Workers

# What TensorFlow raises in a step when another worker has gone.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
    tf.errors.UnknownError,
    tf.errors.FailedPreconditionError,
)


def start(options: config.RunConfig | config.EvaluateConfig) -> tf.distribute.Strategy:
    """Seeds and sets up TensorFlow as a command's options say, and returns their strategy.

    It comes before the first operation of TensorFlow: a cluster cannot be joined later.
    """
    if isinstance(options, config.RunConfig):
        prepare(options.seed, options.deterministic)
    if isinstance(options, config.ThreadsConfig):
        set_threads(options.intra_op_threads, options.inter_op_threads)
    return strategy(options.distribution_strategy, options.tpu)


def strategy(name: str, tpu: str | None = None) -> tf.distribute.Strategy:
    """Returns the strategy of a `distribution_strategy`, the same one each time.

    A second MirroredStrategy in a process would number its collective operations from the start
    again, and TensorFlow would take them for those of the first.

    Args:
        name: "one_device": the default device; "mirrored": all GPUs of this machine, else all its
            logical CPUs; "multi_worker_mirrored": all GPUs, else one CPU, of each worker that
            TF_CONFIG names, where it waits for all of them; "tpu": all cores of a TPU.
        tpu: Name or gRPC address of the TPU; None: the one of this machine.

    Raises:
        UserError: If TF_CONFIG does not fit, or there is no such TPU.
    """
    return _strategy(name, tpu)


@functools.cache  # of positional arguments: `strategy("mirrored", None)` is no other call
def _strategy(name, tpu):
    if name == "one_device":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
        return tf.distribute.MirroredStrategy(
            [device.name for device in tf.config.list_logical_devices(kind)]
        )
    if name == cluster.MULTI_WORKER:
        return _multi_worker_strategy()
    if name == "tpu":
        return _tpu_strategy(tpu or "local")
    raise FieldError(
        f"distribution_strategy is one of {', '.join(config.STRATEGIES)}. Received: {name!r}"
    )


def _multi_worker_strategy():
    """Joins the cluster of TF_CONFIG: NCCL between GPUs, else rings over gRPC."""
    own = cluster.from_environment()
    print(
        f"worker {own.index} of {own.count}: waiting for all of them", file=sys.stderr, flush=True
    )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(
            tf.distribute.cluster_resolver.TFConfigClusterResolver()
        )
    except tf.errors.OpError as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{cluster.VARIABLE}: worker {own.index} of {own.count} could not join the cluster: is "
            f"its port free, and do all addresses reach their hosts? ({reason})"
        ) from error


def _tpu_strategy(address):
    """The start-up that TensorFlow documents for TPUs: connect, initialise, then the strategy."""
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=address)
        if address != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise FieldError(
            f"tpu={address}: no TPU was found there ({reason}). Give its name or gRPC address, or "
            "on a TPU VM leave tpu out",
            "tpu",
        ) from error
    return tf.distribute.TPUStrategy(resolver)


# ---- workers


def workers() -> Workers:
    """Returns the workers of the strategy in force: one, except under the multi-worker strategy."""
    strategy = tf.distribute.get_strategy()
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return Workers()
    resolver = strategy.cluster_resolver
    jobs = resolver.cluster_spec().as_dict()
    index = resolver.task_id or 0
    if resolver.task_type == "worker":
        index += len(jobs.get("chief", ()))
    return Workers(index, max(1, sum(map(len, jobs.values()))))


def sum_over_workers(values: Any) -> np.ndarray:
    """Sums an array over the workers; every worker calls it, and gets the sum.

    Args:
        values: Integers, or floats, of one shape in all workers.

    Returns:
        int64 or float64 of that shape.
    """
    values = np.asarray(values)
    values = values.astype("int64" if np.issubdtype(values.dtype, np.integer) else "float64")
    own = workers()
    if own.count == 1:
        return values
    strategy = tf.distribute.get_strategy()
    local = strategy.num_replicas_in_sync // own.count

    def of_replica(context: Any) -> Any:
        is_first = context.replica_id_in_sync_group % local == 0
        return tf.constant(values if is_first else np.zeros_like(values))

    shares = strategy.experimental_distribute_values_from_function(of_replica)
    return strategy.reduce(tf.distribute.ReduceOp.SUM, shares, axis=None).numpy()


def share() -> Share:
    """Returns this worker's share of images that are scored, in whole batches."""
    own = workers()
    return Share(own.index, own.count, own.count)


def agreed(code: Callable[[], int | None], asks: bool = True) -> int | None:
    """Returns the exit code with which all workers are to end, None where they may continue.

    One worker alone decides at any time. Several ask each other where `asks` is set, which is the
    same in all of them; there the largest code of any worker counts.

    Args:
        code: The exit code of this worker, above 0, or None.
        asks: Whether to ask the others.
    """
    own = workers()
    if own.count == 1:
        return code()
    if not asks:
        return None
    codes = np.zeros(own.count, "int64")
    codes[own.index] = code() or 0
    return int(sum_over_workers(codes).max()) or None


def of_chief(number: int) -> int:
    """Returns the number that the chief has; every worker calls it."""
    return int(sum_over_workers(number if workers().is_chief else 0))


def wait_for_workers() -> None:
    """Returns when every worker has called it."""
    sum_over_workers(0)


def check_equal(**facts: Any) -> None:
    """Refuses workers that do not have the same; every worker calls it.

    Args:
        **facts: What must be equal, bytes or what `repr` tells apart, by name.

    Raises:
        UserError: In every worker, with the names of the facts that differ.
    """
    own = workers()
    if own.count == 1:
        return
    digests = np.zeros((own.count, len(facts)), "int64")
    for column, fact in enumerate(facts.values()):
        content = fact if isinstance(fact, bytes) else repr(fact).encode()
        digest = hashlib.sha256(content).digest()
        digests[own.index, column] = int.from_bytes(digest[:8], "little", signed=True)
    digests = sum_over_workers(digests)
    differing = [
        f"{name} of worker {index}"
        for column, name in enumerate(facts)
        for index in range(1, own.count)
        if digests[index, column] != digests[0, column]
    ]
    if differing:
        raise UserError(
            "all workers need the same command, data and run_dir, in a folder that is common to "
            f"them. Different from those of worker 0: {'; '.join(differing)}"
        )


def check_same_run(options: config.Config, *data: str) -> None:
    """Refuses workers with other settings or data, paths and output aside; all of them call it.

    Args:
        options: The settings of the command.
        *data: Fingerprints of its data.
    """
    settings = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if not field.metadata["path"]
        and field.metadata["group"] != "output"
        and not field.name.endswith("_threads")
    }
    check_equal(**settings, data=data)


@contextlib.contextmanager
def lost_workers_named() -> Iterator[None]:
    """Turns what TensorFlow raises when another worker has gone into an error of one line.

    Raises:
        RunError: Saying so, and that the run resumes.
    """
    own = workers()
    try:
        yield
    except _LOST as error:
        if own.count == 1:
            raise
        reason = " ".join(str(error).split())[:160]
        raise RunError(
            f"worker {own.index} of {own.count} stopped because another worker has gone (its own "
            "output says why). Start all workers again with the same command: the run resumes from "
            f"its last checkpoint. ({type(error).__name__}: {reason})"
        ) from error


# ---- replicas


def distributed(batches: Callable[[Share], tf.data.Dataset]) -> Any:
    """Distributes endless batches over the replicas of the strategy in force.

    Args:
        batches: A worker's share of every batch -> its batches, of as many images as one of its
            replicas takes.

    Returns:
        A `tf.data.Dataset` where there is no strategy, else a distributed one.
    """
    if not tf.distribute.has_strategy():
        return batches(Share())
    strategy = tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return batches(Share(context.input_pipeline_id, context.num_input_pipelines, replicas))

    return strategy.distribute_datasets_from_function(of_worker)


def check_batch_size(batch_size: int, replicas: int) -> None:
    """Refuses a batch that the replicas cannot share equally."""
    Share(replicas=replicas).sizes(batch_size)


def step_counter() -> tf.Variable:
    """Returns a variable, int64, that counts the steps of all replicas together."""
    return tf.Variable(
        0,
        trainable=False,
        dtype=tf.int64,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )


def own_variables() -> contextlib.AbstractContextManager[Any]:
    """A context in which variables are made for this process alone, whatever strategy is in force.

    A strategy would send their first values to the other workers: all of them would have to make
    the same variables, and none of text.
    """

    def creator(_: Any, **arguments: Any) -> tf.Variable:
        # Of TensorFlow 1, which a checkpoint's own counter is made by.
        for name in ("expected_shape", "use_resource"):
            arguments.pop(name, None)
        return resource_variable_ops.ResourceVariable(**arguments)

    return tf.variable_creator_scope(creator)


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
