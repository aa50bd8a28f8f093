"""What reading losses every N steps saves, beside reading them at every step.

    python -m benchmarks.log_every_steps --case=search --json     (and --case=train)

Both cases run the product's loop, `training.loop.fit`, on batches that are made once. `search`: the
paper's supernet at crop 65, bilevel steps. `train`: a small decoded network (the published
architecture's first `--num_layers` layers at F 4, 97x97 crops, batch 4), where a step is short. One
process measures one case: N = 1 and N = `--log_every_steps` alternate for `--rounds` rounds of
`--steps` steps, after one epoch that compiles, and the medians are reported.

On CPU TensorFlow runs the operations of a step before it returns, so that little can be saved
there; on a GPU the next step is queued while one runs.
"""

import os
import statistics
import time
from typing import Any

from absl import app, flags

from benchmarks import rows

FLAGS = flags.FLAGS
flags.DEFINE_enum("case", "search", ["search", "train"], "what takes the steps")
flags.DEFINE_integer("log_every_steps", 10, "N", lower_bound=2)
flags.DEFINE_integer("steps", 20, "steps of a round", lower_bound=2)
flags.DEFINE_integer("rounds", 3, "rounds of each", lower_bound=1)
flags.DEFINE_integer("threads", 1, "threads that share one operation", lower_bound=1)
flags.DEFINE_integer("crop_size", None, "of the crops; none: 65 in search, 97 in train")
flags.DEFINE_integer("num_layers", 12, "layers of the network", lower_bound=1)
flags.DEFINE_integer("num_blocks", 5, "blocks of a cell of the supernet", lower_bound=1)
flags.DEFINE_integer("filter_multiplier", None, "F; none: 8 in search, 4 in train")
flags.DEFINE_boolean("json", False, "print one JSON object on one line, nothing else")

NUM_CLASSES = 19


def prepare() -> tuple[Any, Any, bool]:
    """Returns (model, its batch, whether the step is taken eagerly, as the command would)."""
    import keras
    import numpy as np
    import tensorflow as tf

    from auto_deeplab_tf import Architecture, Segmenter
    from auto_deeplab_tf.searcher import ArchitectureSearch
    from auto_deeplab_tf.training import distribution

    distribution.set_threads(FLAGS.threads, FLAGS.threads)
    searches = FLAGS.case == "search"
    crop = FLAGS.crop_size or (65 if searches else 97)
    generator = np.random.default_rng(0)

    def batch(size: int) -> tuple[Any, Any]:
        images = generator.uniform(0, 255, (size, crop, crop, 3)).astype("float32")
        labels = generator.integers(0, NUM_CLASSES, (size, crop, crop)).astype("int32")
        return tf.constant(images), tf.constant(labels)

    if searches:
        search = ArchitectureSearch(
            NUM_CLASSES,
            num_layers=FLAGS.num_layers,
            num_blocks=FLAGS.num_blocks,
            filter_multiplier=FLAGS.filter_multiplier or 8,
        )
        search.compile()
        has_gpu = bool(tf.config.list_physical_devices("GPU"))
        return search.model, (batch(2), batch(2)), not has_gpu
    published = Architecture.preset("auto_deeplab")
    model = Segmenter(
        Architecture(published.levels[: FLAGS.num_layers], published.cell, published.atrous),
        NUM_CLASSES,
        filter_multiplier=FLAGS.filter_multiplier or 4,
        head_channels=32,
        decoder_channels=16,
    )
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9))
    model.optimizer.build(model.trainable_variables)
    return model, batch(4), False


def measure() -> dict[str, Any]:
    """Times steps of both kinds in turn."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    from auto_deeplab_tf.data import pipeline
    from auto_deeplab_tf.training import loop

    model, batch, eager = prepare()
    data = tf.data.Dataset.from_tensors(batch).repeat().with_options(pipeline.iteration_options())

    def seconds_per_step(every: int) -> float:
        model.completed_steps.assign(0)
        start = time.perf_counter()
        loop.fit(
            model,
            lambda step: data,
            epochs=1,
            steps_per_epoch=FLAGS.steps,
            log_every_steps=every,
            eager=eager,
            verbose=0,
        )
        return (time.perf_counter() - start) / FLAGS.steps

    seconds_per_step(1)
    measured: dict[int, list[float]] = {1: [], FLAGS.log_every_steps: []}
    for _ in range(FLAGS.rounds):
        for every, seconds in measured.items():
            seconds.append(seconds_per_step(every))
    each, rare = (statistics.median(seconds) for seconds in measured.values())
    return {
        "case": FLAGS.case,
        "log_every_steps": FLAGS.log_every_steps,
        "seconds_per_step_read_each": round(each, 5),
        "seconds_per_step_read_rarely": round(rare, 5),
        "saved_percent": round(100 * (1 - rare / each), 2),
        "seconds_of_rounds": " ".join(f"{s:.5f}" for runs in measured.values() for s in runs),
        "device": "GPU" if tf.config.list_physical_devices("GPU") else "CPU",
    }


def main(_: list[str]) -> None:
    rows.show(measure(), FLAGS.json)


if __name__ == "__main__":
    app.run(main)
