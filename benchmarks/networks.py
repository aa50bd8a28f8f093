"""Time and memory of every network, forward and training, one process for each measurement.

    python -m benchmarks.networks --network=auto_deeplab --filter_multiplier=20 --mode=forward \
        --input_size=1025x2049 --batch_size=1 --threads=2 --json
    python -m benchmarks.networks --counts
    python -m benchmarks.networks --all

`--network` is auto_deeplab, a baseline that `train --network` takes, or a reference of
tf-models-official. `--all` runs the whole table row by row into results/networks.csv; rows that are
there already are left, so the same command continues where it stopped; --redo measures them anew.
Run it on a machine that does nothing else. `--counts` writes parameters and Multi-Adds of all
networks into results/network_counts.csv; it measures nothing.

A forward pass goes from images to class ids at the images' size. Multi-Adds are those of
convolutions: the matrix products of a transformer's attention and of dense layers do not count.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags

from auto_deeplab_tf import accounting
from auto_deeplab_tf.process import peak_memory_mib
from benchmarks import process, reference_official, rows

FLAGS = flags.FLAGS
RESULTS = rows.RESULTS / "networks.csv"
COUNTS = rows.RESULTS / "network_counts.csv"
MODULE = "benchmarks.networks"
AUTO_DEEPLAB = "auto_deeplab"
OFFICIAL = {"tf_models_official_resnet50": 50, "tf_models_official_resnet101": 101}
WHOLE_IMAGE = "1025x2049"
CROP = "513x513"
# A training step's products: forward, and the gradients by inputs and by kernels.
PASSES = {"forward": 1, "train": 3}


def define_flags() -> None:
    flags.DEFINE_string("network", AUTO_DEEPLAB, "the network")
    flags.DEFINE_integer("filter_multiplier", 20, "F of auto_deeplab", lower_bound=1)
    flags.DEFINE_enum("mode", "forward", list(PASSES), "what is timed")
    flags.DEFINE_string("input_size", WHOLE_IMAGE, "HxW of the images")
    flags.DEFINE_integer("batch_size", 1, "images at once", lower_bound=1)
    flags.DEFINE_integer("num_classes", 19, "classes", lower_bound=2)
    flags.DEFINE_integer("threads", 2, "threads of TensorFlow", lower_bound=1)
    flags.DEFINE_integer("iterations", 3, "calls that are timed, after the first", lower_bound=1)
    flags.DEFINE_boolean("json", False, "print one JSON object on one line, nothing else")
    flags.DEFINE_boolean("all", False, "measure the whole table")
    flags.DEFINE_boolean("counts", False, "count parameters and Multi-Adds of all networks")
    flags.DEFINE_boolean("redo", False, "with --all: also the rows that are there")


def names() -> tuple[str, ...]:
    """All networks that `--network` takes."""
    from auto_deeplab_tf.baselines import BASELINES

    return (AUTO_DEEPLAB, *BASELINES, *OFFICIAL)


def settings() -> list[str]:
    """The flags of each row of the whole table, the cheaper ones first."""
    networks = [f"--network={AUTO_DEEPLAB} --filter_multiplier={f}" for f in (20, 32, 48)]
    networks += [f"--network={name}" for name in names() if name != AUTO_DEEPLAB]
    modes = [
        f"--mode=forward --input_size={CROP} --batch_size=1 --iterations=3",
        f"--mode=train --input_size={CROP} --batch_size=2 --iterations=2",
        f"--mode=forward --input_size={WHOLE_IMAGE} --batch_size=1 --iterations=1",
    ]
    return [f"{network} {mode} --threads=2" for mode in modes for network in networks]


def crop_settings() -> list[str]:
    """Forward and training at 513x513 of S and of networks of like size."""
    compared = [f"--network={AUTO_DEEPLAB} --filter_multiplier=20"]
    others = ("deeplabv3plus_xception65", "keras_hub_deeplabv3plus", "tf_models_official_resnet50")
    compared += [f"--network={name}" for name in others]
    return [s for s in settings() if CROP in s and s.startswith(tuple(f"{c} " for c in compared))]


def quick_settings() -> list[str]:
    """Those that `make bench` has time for: S, forward and training at 513x513."""
    return [setting for setting in crop_settings() if AUTO_DEEPLAB in setting]


def measure() -> dict[str, Any]:
    """Times what the flags say in this process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(FLAGS.threads)
    tf.config.threading.set_inter_op_parallelism_threads(FLAGS.threads)
    height, width = (int(side) for side in FLAGS.input_size.split("x"))
    shape = (FLAGS.batch_size, height, width)
    rng = np.random.default_rng(0)
    images = tf.constant(rng.uniform(0, 255, (*shape, 3)), tf.float32)
    labels = tf.constant(rng.integers(0, FLAGS.num_classes, shape), tf.int32)
    prepare = _official if FLAGS.network in OFFICIAL else _own
    params, multi_adds, call = prepare(images, labels)
    seconds = process.median_seconds(call, FLAGS.iterations)
    peak_rss_mib = peak_memory_mib()
    # The peak of memory is read first, for this allocates too.
    peak_gflops = process.matmul_gflops()
    result = {
        "network": FLAGS.network,
        "filter_multiplier": FLAGS.filter_multiplier if FLAGS.network == AUTO_DEEPLAB else "",
        "mode": FLAGS.mode,
        "input_size": FLAGS.input_size,
        "batch_size": FLAGS.batch_size,
        "threads": FLAGS.threads,
        "seconds_per_image": round(seconds / FLAGS.batch_size, 4),
        "images_per_second": round(FLAGS.batch_size / seconds, 4),
        "peak_rss_mib": round(peak_rss_mib, 1),
        "params": params,
        "multi_adds": multi_adds if multi_adds is not None else "",
        "matmul_gflops": round(peak_gflops, 1),
    }
    if multi_adds is not None:
        operations = 2 * multi_adds * PASSES[FLAGS.mode] * FLAGS.batch_size
        result["gflops"] = round(operations / seconds / 1e9, 1)
        result["share_of_matmul"] = round(operations / seconds / 1e9 / peak_gflops, 3)
    return result


def _own(images: Any, labels: Any) -> tuple[int, int | None, Callable[[], Any]]:
    """Returns parameters, Multi-Adds for one image, and what is timed: networks in Keras 3."""
    import tensorflow as tf

    from auto_deeplab_tf.baselines import build_baseline
    from auto_deeplab_tf.nn.network import build_network
    from auto_deeplab_tf.segmenter import Segmenter

    size = tuple(images.shape[1:3])
    if FLAGS.network == AUTO_DEEPLAB:
        network = build_network(AUTO_DEEPLAB, FLAGS.num_classes, FLAGS.filter_multiplier)
        multi_adds = accounting.count(
            network.architecture,
            num_classes=FLAGS.num_classes,
            filter_multiplier=FLAGS.filter_multiplier,
            input_size=size,
        ).multi_adds
    else:
        from auto_deeplab_tf.nn import counting

        network = build_baseline(FLAGS.network, FLAGS.num_classes)
        multi_adds = counting.count_network(network, size).multi_adds
    params = sum(int(tf.size(variable)) for variable in network.trainable_variables)
    model = Segmenter(network)
    if FLAGS.mode == "forward":
        forward = tf.function(model.class_ids, autograph=False)
        return params, multi_adds, lambda: forward(images).numpy()
    model.optimizer.build(model.trainable_variables)
    step = tf.function(model.train_step, autograph=False)
    return params, multi_adds, lambda: float(step((images, labels))["loss"])


def _official(images: Any, labels: Any) -> tuple[int, int | None, Callable[[], Any]]:
    """The same for tf-models-official, with tf_keras; its Multi-Adds are not counted."""
    import tensorflow as tf

    model = reference_official.build(OFFICIAL[FLAGS.network], FLAGS.num_classes)
    params = sum(int(tf.size(variable)) for variable in model.trainable_variables)
    if FLAGS.mode == "forward":
        serve = reference_official.served(model)
        return params, None, lambda: serve(images)["class_ids"].numpy()
    step = reference_official.training_step(model)
    return params, None, lambda: float(step(images, labels))


def measure_all(path: Path = RESULTS, redo: bool = False) -> None:
    """Measures the rows that the file lacks, each in a process of its own.

    A row that fails is reported and left out; the others continue.

    Raises:
        RuntimeError: at the end, where a row failed.
    """
    failed = []
    for setting in settings():
        command = rows.command_of(MODULE, setting)
        if not redo and any(row["command"] == command for row in rows.read(path)):
            continue
        try:
            row = rows.measure(MODULE, setting)
        except RuntimeError as error:
            failed.append(setting)
            print(error, file=sys.stderr, flush=True)
            continue
        rows.put(path, row)
        print(describe(setting, row), flush=True)
    if failed:
        raise RuntimeError(f"{len(failed)} rows failed: {'; '.join(failed)}")


def count_all(path: Path = COUNTS) -> None:
    """Writes parameters and Multi-Adds of all networks but Auto-DeepLab's, which are counted."""
    import tensorflow as tf

    from auto_deeplab_tf.baselines import BASELINES, build_baseline
    from auto_deeplab_tf.nn import counting

    for name in BASELINES:
        network = build_baseline(name, 19)
        row: dict[str, Any] = {"command": f"python -m {MODULE} --counts", "network": name}
        row["params"] = sum(int(tf.size(variable)) for variable in network.trainable_variables)
        for size in ((1024, 2048), (1025, 2049)):
            counted = counting.count_network(network, size).multi_adds
            row[f"multi_adds_{size[0]}x{size[1]}"] = counted
        print(row, flush=True)
        rows.put(path, row, key="network")
    for name, depth in OFFICIAL.items():
        measured = rows.measure(reference_official.__name__, f"--depth={depth} --iterations=0")
        row = {"command": measured["command"], "network": name, "params": measured["params"]}
        rows.put(path, row, key="network")


def describe(setting: str, row: dict[str, Any]) -> str:
    """One measured row for the terminal."""
    return f"{setting}\n    {row['seconds_per_image']} s an image, {row['peak_rss_mib']} MiB"


def main(_: list[str]) -> None:
    if FLAGS.counts:
        count_all()
        return
    if FLAGS.all:
        measure_all(redo=FLAGS.redo)
        return
    if FLAGS.network not in names():
        raise app.UsageError(f"--network={FLAGS.network}: allowed are {', '.join(names())}")
    result = measure()
    rows.show(result, FLAGS.json)


if __name__ == "__main__":
    define_flags()
    app.run(main)
