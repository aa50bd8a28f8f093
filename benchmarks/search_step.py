"""Time and memory of whole bilevel iterations of the paper's supernet, by the product's train_step.

    python -m benchmarks.search_step --crop_size=65 --batch_size=2 --threads=1 --iterations=3 --json

One process measures one setting: a second one would find caches warm, or spoiled. Iterations are
timed after the first, which compiles, and `--warmup` more: sampled paths need some until every kind
of node has been on one. The median is reported. `--formulation=plain` measures the
plain formulation (one call per operation, edge and predecessor), where its size allows.
"""

import os
import statistics
import time
from typing import Any

from absl import app, flags

from auto_deeplab_tf.process import peak_memory_mib, seconds_since_start
from benchmarks import process, rows, step_flags

FLAGS = flags.FLAGS
step_flags.define(batch_size=2, num_layers=12, iterations=3, min_iterations=0)
flags.DEFINE_integer("threads", 1, "threads that share one operation", lower_bound=1)
flags.DEFINE_integer("inter_op_threads", None, "operations at a time; none: threads", lower_bound=1)
flags.DEFINE_integer("warmup", 0, "iterations before them, beside the first", lower_bound=0)
flags.DEFINE_integer("num_classes", 19, "classes", lower_bound=2)
flags.DEFINE_integer("partial_channels", 1, "K, a fast mode", lower_bound=1)
flags.DEFINE_integer("sampled_paths", 0, "paths of a step, a fast mode", lower_bound=0)
flags.DEFINE_enum("atrous", "separable", ["separable", "full"], "form of the atrous operations")
flags.DEFINE_enum("step_mode", "eager", ["eager", "traced"], "how the outer step runs")
flags.DEFINE_enum("remat", "auto", ["auto", "true", "false"], "recomputation of nodes")
flags.DEFINE_boolean("jit_compile", False, "compile by XLA")
flags.DEFINE_enum(
    "dtype_policy",
    "float32",
    ["float32", "mixed_bfloat16", "mixed_float16"],
    "precision of the features",
)
flags.DEFINE_enum("formulation", "fused", ["fused", "plain"], "of the supernet")


def main(_: list[str]) -> None:
    result = measure()
    rows.show(result, FLAGS.json)


def prepare() -> tuple[Any, Any, float]:
    """Builds the search at the flags' setting.

    Returns:
        (model, data, resident): the compiled `BilevelModel`, a batch of each half, and the resident
            size in MiB when the supernet stood and nothing was compiled.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import numpy as np
    import tensorflow as tf

    from auto_deeplab_tf.nn.execution import Execution
    from auto_deeplab_tf.nn.supernet import build_supernet
    from auto_deeplab_tf.training import distribution
    from auto_deeplab_tf.training.bilevel import BilevelModel

    distribution.set_threads(FLAGS.threads, FLAGS.inter_op_threads or FLAGS.threads)
    size = (FLAGS.crop_size, FLAGS.crop_size)
    supernet = build_supernet(
        FLAGS.num_classes,
        FLAGS.num_layers,
        FLAGS.num_blocks,
        FLAGS.filter_multiplier,
        input_size=size,
        atrous=FLAGS.atrous,
        dtype=FLAGS.dtype_policy,
        partial_channels=FLAGS.partial_channels,
        sampled_paths=FLAGS.sampled_paths,
        formulation=FLAGS.formulation,
    )
    model = BilevelModel(supernet)
    model.compile(
        keras.optimizers.SGD(0.025, momentum=0.9),
        keras.optimizers.Adam(0.003),
        execution=Execution(
            None if FLAGS.remat == "auto" else FLAGS.remat == "true", FLAGS.jit_compile
        ),
    )
    generator = np.random.default_rng(0)

    def batch():
        shape = (FLAGS.batch_size, *size)
        images = generator.uniform(0, 255, (*shape, 3)).astype("float32")
        labels = generator.integers(0, FLAGS.num_classes, shape).astype("int32")
        return tf.constant(images), tf.constant(labels)

    return model, (batch(), batch()), process.rss_mib()


def measure() -> dict[str, Any]:
    """Times the iterations of the search at the flags' setting."""
    model, data, resident = prepare()
    supernet = model.supernet
    import numpy as np
    import tensorflow as tf

    if FLAGS.step_mode == "traced":
        step = tf.function(model.train_step, autograph=False)
    else:
        step = model.train_step

    def iterate():
        logs = {name: float(value) for name, value in step(data).items()}
        model.completed_steps.assign_add(1)  # sampled paths are those of the step
        return logs

    losses = iterate()
    seconds_to_first = seconds_since_start()
    for _ in range(FLAGS.warmup):
        iterate()
    wall, cpu = [], []
    for _ in range(FLAGS.iterations):
        start, start_cpu = time.perf_counter(), time.process_time()
        losses = iterate()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    if not all(np.isfinite(list(losses.values()))):
        raise RuntimeError(f"the losses are not finite: {losses}")
    peak = peak_memory_mib()
    return {
        "seconds_per_iteration": round(statistics.median(wall), 4) if wall else None,
        "cpu_seconds_per_iteration": round(statistics.median(cpu), 4) if cpu else None,
        "peak_rss_mib": round(peak, 1),
        "seconds_to_first_iteration": round(seconds_to_first, 2),
        "num_variables": len(supernet.variables),
        "num_graph_ops": _num_graph_ops(step, model),
        "matmul_gflops": round(process.matmul_gflops(), 1),
        "num_parameters": sum(int(np.prod(v.shape)) for v in supernet.trainable_variables),
        "built_rss_mib": round(resident, 1),
    }


def _num_graph_ops(step: Any, model: Any) -> int | None:
    """Operations in the graphs of everything that was compiled; None where nothing is."""
    from auto_deeplab_tf.nn.execution import runner

    if FLAGS.formulation == "plain":
        return None
    if FLAGS.step_mode == "traced":
        functions = [step]
    else:
        kinds = {segment.kind for segment in model.supernet.segments}
        runners = [runner(kind, model.supernet.execution) for kind in kinds]
        functions = [function for run in runners for function in run.functions.values()]
        functions += [model._eager_loss, *model._eager_apply.values()]
    graphs = [
        concrete.graph
        for function in functions
        for concrete in function._list_all_concrete_functions()
    ]
    return sum(len(graph.get_operations()) for graph in graphs)


if __name__ == "__main__":
    app.run(main)
