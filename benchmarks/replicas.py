"""What two workers on loopback cost: seconds of a bilevel step, and of the exchange alone.

    python -m benchmarks.replicas --crop_size=65 --batch_size=4 --num_layers=4 --json

Measures the traced step on one device, and on `--workers` processes that share the same batch, each
on one thread; and in the workers an all-reduce of as many values as the weights have, which is the
gradient's, and one of a single value, of which a step has four for each batch normalisation. Puts
its row into results/replicas.csv. Run it on a machine that does nothing else.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

from absl import app, flags, logging

from benchmarks import rows, step_flags

PATH = rows.RESULTS / "replicas.csv"
FLAGS = flags.FLAGS


def define_flags() -> None:
    step_flags.define(batch_size=4, num_layers=4, iterations=5)
    flags.DEFINE_integer("workers", 2, "processes", lower_bound=2)
    flags.DEFINE_enum("role", "parent", ["parent", "one", "worker"], "for the processes it starts")


def environments(count: int) -> list[dict[str, str]]:
    """Returns an environment for each worker of a cluster on loopback, on ports that are free."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    hosts = [f"127.0.0.1:{listening.getsockname()[1]}" for listening in sockets]
    for listening in sockets:
        listening.close()
    return [
        os.environ
        | {
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "-1",
            "TF_CONFIG": json.dumps(
                {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
            ),
        }
        for index in range(count)
    ]


def main(_: list[str]) -> None:
    if FLAGS.role != "parent":
        print(json.dumps(_measure()), flush=True)
        return
    setting = step_flags.arguments()
    (one,) = _run(setting, "one", [dict(os.environ)])
    several = _run(setting, "worker", environments(FLAGS.workers))
    slowest = {name: max(found[name] for found in several) for name in several[0]}
    result = {
        "command": rows.command_of(
            "benchmarks.replicas", " ".join([*setting, f"--workers={FLAGS.workers}"])
        ),
        "seconds_one_device": one["step"],
        "seconds_workers": slowest["step"],
        "seconds_all_reduce_gradient": slowest["gradient"],
        "seconds_all_reduce_value": slowest["value"],
        "gradient_mib": slowest["gradient_mib"],
        **rows.machine(),
    }
    rows.put(PATH, result)
    rows.show(result, FLAGS.json)


def _run(setting: list[str], role: str, variables: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Runs processes of one role at the same time; returns what each measured."""
    command = [sys.executable, "-m", "benchmarks.replicas", *setting, f"--role={role}"]
    processes = [
        subprocess.Popen(command, env=one, stdout=subprocess.PIPE, text=True) for one in variables
    ]
    try:
        outputs = [process.communicate()[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(process.returncode for process in processes):
        raise RuntimeError(f"{' '.join(command)} failed")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def _measure() -> dict[str, float]:
    """Seconds of a step, and of exchanges, of this process."""
    import keras
    import numpy as np
    import tensorflow as tf

    from auto_deeplab_tf.nn.supernet import build_supernet
    from auto_deeplab_tf.training import distribution, dry_run, loop
    from auto_deeplab_tf.training.bilevel import BilevelModel

    logging.set_verbosity(logging.WARNING)  # TensorFlow tells of every exchange
    distribution.set_threads(1, 1)
    name = "multi_worker_mirrored" if FLAGS.role == "worker" else "one_device"
    size = (FLAGS.crop_size, FLAGS.crop_size)
    generator = np.random.default_rng(0)
    images = generator.uniform(0, 255, (FLAGS.batch_size, *size, 3)).astype("float32")
    labels = generator.integers(0, 19, (FLAGS.batch_size, *size)).astype("int32")

    def batches(share: Any) -> tf.data.Dataset:
        _, rows_of_replica = share.sizes(FLAGS.batch_size)
        part = slice(share.worker * rows_of_replica, (share.worker + 1) * rows_of_replica)
        half = (images[part], labels[part])
        return tf.data.Dataset.from_tensors((half, half)).repeat()

    with distribution.strategy(name).scope():
        supernet = build_supernet(
            19, FLAGS.num_layers, FLAGS.num_blocks, FLAGS.filter_multiplier, input_size=size
        )
        model = BilevelModel(supernet)
        model.compile(keras.optimizers.SGD(0.025, momentum=0.9), keras.optimizers.Adam(0.003))
        timer = dry_run.StepTimer()
        steps = FLAGS.iterations + 1
        loop.fit(
            model,
            lambda step: distribution.distributed(batches),
            epochs=1,
            steps_per_epoch=steps,
            callbacks=[timer],
            verbose=0,
        )
        values = sum(int(np.prod(v.shape)) for v in supernet.trainable_variables)
        return {
            "step": round(statistics.median(timer.epochs[0][1:]), 4),
            "gradient": _exchange_seconds(values),
            "value": _exchange_seconds(1),
            "gradient_mib": round(4 * values / 2**20, 2),
        }


def _exchange_seconds(count: int) -> float:
    """Median seconds of an all-reduce of so many float32 values, inside a traced function."""
    import tensorflow as tf

    from auto_deeplab_tf.training import distribution

    strategy = tf.distribute.get_strategy()
    values = tf.zeros(count)

    @tf.function
    def exchange() -> Any:
        return strategy.run(lambda: distribution.sum_over_replicas(values))

    seconds = []
    for _ in range(FLAGS.iterations + 1):
        start = time.perf_counter()
        strategy.experimental_local_results(exchange())[0].numpy()
        seconds.append(time.perf_counter() - start)
    return round(statistics.median(seconds[1:]), 6)


if __name__ == "__main__":
    define_flags()
    app.run(main)
