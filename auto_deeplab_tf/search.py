"""Searches an architecture: weights on one half of the images, alpha and beta on the other.

Writes into --run_dir: architecture.json and its drawing, logits.npz (alpha and beta), metrics.csv
(a row per epoch), split.json (members of the two halves), flags.txt, checkpoints/, logs/ for
TensorBoard. The same command resumes from the last checkpoint; on a finished run it changes
nothing.
"""

import sys
import time
from typing import Any

from auto_deeplab_tf import cli, config

cli.define(config.SearchConfig)


def main() -> None:
    options = cli.read(config.SearchConfig)
    if options.dry_run:
        needs = _needs(options)
        if options.json:
            cli.print_json(needs)
        else:
            for name, value in needs.items():
                print(f"{name:18} {value}")
        return
    from auto_deeplab_tf.training.run_dir import RunDir

    run = RunDir(options.run_dir, options, options.resume)
    result = _finished(run, options) or _search(run, options)
    if options.json:
        cli.print_json(result)
    else:
        _print(result)


def _finished(run: Any, options: config.SearchConfig) -> dict[str, Any] | None:
    """The result of a run that has nothing left to do."""
    from auto_deeplab_tf.training.run_dir import METRICS_FILE, MetricsFile

    rows = MetricsFile(run / METRICS_FILE).rows()
    if not (run / "architecture.json").exists() or len(rows) < options.epochs:
        return None
    return _result(run, rows[-1], 0.0)


def _search(run: Any, options: config.SearchConfig) -> dict[str, Any]:
    import tensorflow as tf

    from auto_deeplab_tf import decoding, visualize
    from auto_deeplab_tf.data import pipeline, source, split
    from auto_deeplab_tf.searcher import METRICS
    from auto_deeplab_tf.training import callbacks, distribution
    from auto_deeplab_tf.training.run_dir import METRICS_FILE, MetricsFile

    started = time.monotonic()
    distribution.prepare(options.seed, options.deterministic)
    distribution.set_threads(options.intra_op_threads, options.inter_op_threads)
    train = source.open_for(options, "train")
    validation = source.open_for(options, "val")
    halves = split.source_halves(train)
    members = {
        name: [train.ids[index] for index in half]
        for name, half in zip(("train_a", "train_b"), halves, strict=True)
    }
    pipeline.check_crop_size(train, options.crop_size, options.scale_max)
    steps_per_epoch = options.steps_per_epoch or max(1, min(map(len, halves)) // options.batch_size)
    total_steps = steps_per_epoch * options.epochs

    strategy = distribution.strategy(options.distribution_strategy)
    distribution.check_batch_size(options.batch_size, strategy.num_replicas_in_sync)
    traced = None if options.step_mode == "auto" else options.step_mode == "traced"
    with run, strategy.scope(), source.damage_named(train, validation):
        run.record("split.json", members)
        # An existing one is of a shorter run, which is resumed now.
        (run / "architecture.json").unlink(missing_ok=True)
        search = _build(options, train, total_steps)
        if search.fast_modes:
            modes = ", ".join(f"{name}={value}" for name, value in search.fast_modes.items())
            print(f"fast modes (not the exact search): {modes}", file=sys.stderr, flush=True)
        checkpoints = search.checkpoints(run / "checkpoints", options.keep_checkpoints)
        checkpoints.restore()
        search.fit(
            lambda step, pairs: pipeline.search_batches(
                train, halves, pairs=pairs, start_step=step, **pipeline.batch_options(options)
            ),
            epochs=options.epochs,
            steps_per_epoch=steps_per_epoch,
            arch_start_epoch=options.arch_start_epoch,
            validation_data=pipeline.validation_batches(
                validation, options.batch_size, options.validation_images
            ),
            validation_every_epochs=options.validation_every_epochs,
            callbacks=[
                callbacks.MetricsRow(run / METRICS_FILE, METRICS),
                callbacks.TensorBoardLogs(run / "logs"),
            ],
            checkpoints=checkpoints,
            checkpoint_every_steps=options.checkpoint_every_steps,
            traced=traced,
            verbose=callbacks.verbosity(options),
        )
        row = MetricsFile(run / METRICS_FILE).rows()[-1]
        alpha, beta = search.logits
        architecture = search.decode(
            {
                "command": "search",
                "dataset": options.dataset,
                "seed": options.seed,
                "steps": total_steps,
                "supernet_val_miou": float(row["val_miou"]),
                "tensorflow": tf.__version__,
            }
        )
        decoding.save_logits(run / "logits.npz", alpha, beta, options.atrous, search.edge_logits)
        visualize.save_architecture_drawing(architecture, run / "architecture", beta)
        # Last: where it exists, the run is complete.
        architecture.save(run / "architecture.json")
    return _result(run, row, time.monotonic() - started)


def _needs(options: config.SearchConfig) -> dict[str, Any]:
    """Predicts what the run needs; prepares the records of the data set where there are none."""
    from auto_deeplab_tf.data import source, split
    from auto_deeplab_tf.nn.execution import Execution
    from auto_deeplab_tf.training import distribution, prediction

    distribution.set_threads(options.intra_op_threads, options.inter_op_threads)
    train = source.open_for(options, "train")
    halves = split.source_halves(train)
    steps_per_epoch = options.steps_per_epoch or max(1, min(map(len, halves)) // options.batch_size)
    search = _build(options, train, steps_per_epoch * options.epochs)
    traced = options.step_mode == "traced"
    remat = Execution(_flag_or_auto(options.remat)).recomputes(eager=not traced)
    setting = (search.model.supernet, options.crop_size, options.batch_size, remat)
    memory = prediction.peak_memory_mib(*setting, traced, prediction.resident_mib())
    seconds = prediction.step_seconds(*setting, traced, prediction.measure_speeds())
    weights_only = min(options.arch_start_epoch, options.epochs)
    steps = options.epochs - (1 - prediction.WEIGHT_STEP_SHARE) * weights_only
    return {
        "peak_memory_mib": round(memory),
        "seconds_per_step": round(seconds, 3),
        "total_seconds": round(seconds * steps * steps_per_epoch),
        "steps": options.epochs * steps_per_epoch,
        "num_parameters": prediction.num_parameters(search.model.supernet),
    }


def _build(options: config.SearchConfig, train: Any, total_steps: int) -> Any:
    import keras

    from auto_deeplab_tf.searcher import ArchitectureSearch
    from auto_deeplab_tf.training import losses
    from auto_deeplab_tf.training.schedules import Cosine

    frequencies = losses.class_frequencies(train.class_pixels, train.present_pixels)
    search = ArchitectureSearch(
        train.info.num_classes,
        options.part(config.ArchitectureSearchConfig),
        mean=(127.5,) * train.info.channels,
        std=(127.5,) * train.info.channels,
        ignore_label=train.info.ignore_label,
        class_weights=losses.class_weights(frequencies, options.class_weights),
        path_temperature=keras.optimizers.schedules.PolynomialDecay(
            options.path_temperature, total_steps, options.min_path_temperature
        ),
        seed=options.seed,
        dtype_policy=options.dtype_policy,
    )
    search.compile(
        keras.optimizers.SGD(
            Cosine(options.learning_rate, options.min_learning_rate, total_steps),
            momentum=options.momentum,
        ),
        keras.optimizers.Adam(options.arch_learning_rate),
        remat=_flag_or_auto(options.remat),
        jit_compile=_flag_or_auto(options.jit_compile),
    )
    return search


def _flag_or_auto(text: str) -> bool | None:
    return None if text == "auto" else text == "true"


def _result(run: Any, row: dict[str, str], seconds: float) -> dict[str, Any]:
    return {
        "run_dir": str(run.path),
        "architecture": str(run / "architecture.json"),
        "levels": row["levels"],
        "cell": row["cell"],
        "val_miou": float(row["val_miou"]),
        "epochs": int(row["epoch"]) + 1,
        "seconds": round(seconds, 1),
    }


def _print(result: dict[str, Any]) -> None:
    print(f"path          {result['levels']}")
    print(f"cell          {result['cell']}")
    print(f"supernet mIoU {result['val_miou']:.4f} (val, after epoch {result['epochs']})")
    print(f"architecture  {result['architecture']}")


if __name__ == "__main__":
    cli.run(main)
