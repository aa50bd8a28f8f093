"""Searches an architecture: weights on one half of the images, alpha and beta on the other.

Writes into --run_dir: architecture.json and its drawing, logits.npz (alpha and beta), metrics.csv
(a row per epoch), split.json (members of the two halves), flags.txt, checkpoints/, logs/ for
TensorBoard. The same command resumes from the last checkpoint; on a finished run it changes
nothing.
"""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from auto_deeplab_tf import cli, config
from auto_deeplab_tf.errors import FieldError, RunError

cli.define(config.SearchConfig)

SHORT_SEARCH = 2000  # Updates of alpha and beta; longer ones have not been compared.
IS_SHORT = (
    "a short search: alpha and beta are updated {updates} times. That so few updates find better "
    "networks than random draws has not been shown (docs/evidence.md): let select compare what "
    "this search finds with random draws (--search_runs=RUN --num_random=N)"
)
# At L 2: B 2, F 2, crop 49x70 on two busy cores; B 5, F 8, crop 65 in benchmarks/results.
PLAIN_IS_SLOW = (
    "the plain formulation is meant for a small num_layers: at 2 layers a step takes 16 (2 blocks) "
    "to 46 (5 blocks) times as long as a fused one; with step_mode=traced less, after minutes of "
    "compilation"
)


def main() -> None:
    """Runs the command."""
    from auto_deeplab_tf.training.cluster import Workers

    options = cli.read(config.SearchConfig)
    is_chief = Workers.of(options.distribution_strategy).is_chief
    if options.dry_run:
        needs = _dry_run(options)
        if not is_chief:
            return
        if options.json:
            cli.print_json(needs)
        else:
            for name, value in needs.items():
                print(f"{name:24} {value}")
        return
    from auto_deeplab_tf.training.run_dir import RunDir

    run = RunDir(options.run_dir, options, options.resume, writes=is_chief)
    result = _finished(run, options) or _search(run, options)
    if not is_chief:
        return
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


class _Setup:
    """The data and devices of a search, and its number of steps."""

    def __init__(self, options: config.SearchConfig):
        from auto_deeplab_tf.data import pipeline, source, split
        from auto_deeplab_tf.training import distribution

        if options.arch_start_epoch == options.epochs:
            # No rule of the settings: earlier versions took it, and their runs can be extended.
            raise FieldError(
                f"arch_start_epoch={options.arch_start_epoch} must be smaller than "
                f"epochs={options.epochs}: alpha and beta would never be updated"
            )
        self.strategy = distribution.start(options)
        self.options = options
        self.train = source.open_for(options, "train")
        self.halves = split.source_halves(self.train)
        pipeline.check_crop_size(self.train, options.crop_size, options.scale_max)
        smaller = min(map(len, self.halves))
        self.steps_per_epoch = options.steps_per_epoch or max(1, smaller // options.batch_size)
        self.total_steps = self.steps_per_epoch * options.epochs
        distribution.check_batch_size(options.batch_size, self.strategy.num_replicas_in_sync)
        self.traced = None if options.step_mode == "auto" else options.step_mode == "traced"

    def say_stretched(
        self, before: config.SearchConfig | None, step: int, arch_rates: tuple[float, float]
    ) -> None:
        """Says what more epochs than before change in the learning rates, from a step on.

        Args:
            before: The settings so far; None: there were none.
            step: The first step that follows.
            arch_rates: That of alpha and beta so far, and from here on.
        """
        from auto_deeplab_tf.training.schedules import Cosine, stretched

        options = self.options
        if before is None or before.epochs == options.epochs:
            return
        old, new = (
            Cosine(options.learning_rate, options.min_learning_rate, self.steps_per_epoch * epochs)
            for epochs in (before.epochs, options.epochs)
        )
        line = stretched("epochs", before.epochs, options.epochs, old, new, step)
        old_rate, new_rate = arch_rates
        if old_rate != new_rate:
            line += f" Alpha and beta are updated at {new_rate:.3g} in place of {old_rate:.3g}."
        print(line, file=sys.stderr, flush=True)

    def batches(self, step: int, pairs: bool) -> Any:
        """Returns the batches from a step on, distributed."""
        from auto_deeplab_tf.training import distribution

        return distribution.distributed(lambda share: self.whole_batches(step, pairs, share))

    def whole_batches(self, step: int = 0, pairs: bool = False, share: Any = None) -> Any:
        """Returns the batches from a step on, as one device has them, or a share of each."""
        from auto_deeplab_tf.data import pipeline

        settings = pipeline.batch_options(self.options)
        return pipeline.search_batches(
            self.train, self.halves, pairs=pairs, start_step=step, share=share, **settings
        )


def _search(run: Any, options: config.SearchConfig) -> dict[str, Any]:
    from auto_deeplab_tf.data import pipeline, source
    from auto_deeplab_tf.searcher import METRICS, architecture_steps, from_options
    from auto_deeplab_tf.training import callbacks, collapse, distribution
    from auto_deeplab_tf.training.run_dir import METRICS_FILE, MetricsFile

    started = time.monotonic()
    setup = _Setup(options)
    train, halves = setup.train, setup.halves
    validation = source.open_for(options, "val")
    members = {
        name: [train.ids[index] for index in half]
        for name, half in zip(("train_a", "train_b"), halves, strict=True)
    }
    metrics = MetricsFile(run / METRICS_FILE)
    _check_collapse(metrics.rows(), options)
    with (
        run,
        setup.strategy.scope(),
        distribution.lost_workers_named(),
        source.damage_named(train, validation),
    ):
        distribution.check_same_run(options, train.fingerprint, validation.fingerprint)
        run.record_data({"train": train.fingerprint, "val": validation.fingerprint})
        run.record("split.json", members)
        search = from_options(options, train, setup.total_steps)
        updates = architecture_steps(options, setup.total_steps)
        if updates < SHORT_SEARCH:
            print(IS_SHORT.format(updates=updates), file=sys.stderr, flush=True)
        if search.fast_modes:
            modes = ", ".join(f"{name}={value}" for name, value in search.fast_modes.items())
            print(f"fast modes (not the exact search): {modes}", file=sys.stderr, flush=True)
        if options.formulation == "plain":
            print(PLAIN_IS_SLOW, file=sys.stderr, flush=True)
        checkpoints = search.checkpoints(run / "checkpoints", options.keep_checkpoints)
        if run.writes:
            checkpoints.check_space()
        _restore(checkpoints, run, search, setup)
        run.write_flags()
        if run.writes:
            # Those of a shorter run, which is extended from here on: what refuses that comes
            # before. decode and select take logits for those of a search that has ended.
            for name in ("architecture.json", "logits.npz"):
                (run / name).unlink(missing_ok=True)
        writers = (
            callbacks.MetricsRow(run / METRICS_FILE, METRICS),
            callbacks.TensorBoardLogs(run / "logs"),
        )
        search.fit(
            setup.batches,
            epochs=options.epochs,
            steps_per_epoch=setup.steps_per_epoch,
            arch_start_epoch=options.arch_start_epoch,
            validation_data=pipeline.validation_batches(
                validation,
                options.batch_size,
                options.validation_images,
                share=distribution.share(),
            ),
            validation_every_epochs=options.validation_every_epochs,
            decoded_batches=options.decoded_batches,
            statistics_data=setup.whole_batches(),
            callbacks=[
                collapse.CollapseWatch(
                    options.epochs,
                    options.arch_start_epoch,
                    metrics.rows(),
                    options.stop_on_collapse,
                ),
                *(writers if run.writes else ()),
            ],
            checkpoints=checkpoints,
            checkpoint_every_steps=options.checkpoint_every_steps,
            log_every_steps=options.log_every_steps,
            max_hours=options.max_hours,
            traced=setup.traced,
            verbose=callbacks.verbosity(options) if run.writes else 0,
        )
        distribution.wait_for_workers()  # the chief has written the row of the last epoch
        _check_collapse(metrics.rows(), options)
        row = metrics.rows()[-1]
        if run.writes:
            _write_result(run, search, options, row, setup.total_steps)
        distribution.wait_for_workers()
    return _result(run, row, time.monotonic() - started)


def _restore(checkpoints: Any, run: Any, search: Any, setup: _Setup) -> None:
    """Reads the last checkpoint, but for the learning rate of alpha and beta.

    Keras makes a constant rate a variable of the optimizer. `auto` is that of all updates, of which
    there are more than the checkpoint knew where the run is extended.
    """
    from auto_deeplab_tf.training.schedules import current_rate

    optimizer = search.model.architecture_optimizer
    rate = current_rate(optimizer)
    if not checkpoints.restore():
        return
    rates = current_rate(optimizer), rate
    optimizer.learning_rate = rate
    if run.writes:
        setup.say_stretched(run.before, int(search.model.completed_steps.numpy()), rates)


def _write_result(
    run: Any, search: Any, options: config.SearchConfig, row: dict[str, str], total_steps: int
) -> None:
    """Writes logits, drawing and architecture of a search that has come to its end."""
    import tensorflow as tf

    from auto_deeplab_tf import decoding, visualize

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
    visualize.save_heat_maps(architecture, run / "architecture", alpha, beta)
    # Last: where it exists, the run is complete.
    architecture.save(run / "architecture.json")


def _check_collapse(rows: Sequence[Mapping[str, str]], options: config.SearchConfig) -> None:
    """Refuses to go past an epoch with a sign of a collapse, where the options say so."""
    from auto_deeplab_tf.training import collapse

    if not options.stop_on_collapse or not rows or int(rows[-1]["epoch"]) + 1 >= options.epochs:
        return
    found = collapse.signs(rows, options.epochs, options.arch_start_epoch)
    if found:
        raise RunError(
            f"stop_on_collapse ended the search after epoch {rows[-1]['epoch']}: "
            f"{'; '.join(sign.text for sign in found)}. Begin a new run, or resume this one "
            "without stop_on_collapse."
        )


def _dry_run(options: config.SearchConfig) -> dict[str, Any]:
    """Measures steps of both kinds; prepares the records of the data set where there are none."""
    from auto_deeplab_tf.searcher import architecture_steps, from_options
    from auto_deeplab_tf.training import dry_run

    timer = dry_run.StepTimer()
    setup = _Setup(options)
    with setup.strategy.scope():
        search = from_options(options, setup.train, setup.total_steps)
        search.fit(
            setup.batches,
            epochs=2,
            steps_per_epoch=dry_run.STEPS,
            arch_start_epoch=1,
            callbacks=[timer],
            traced=setup.traced,
            verbose=0,
        )
    updates = architecture_steps(options, setup.total_steps)
    kinds = {
        "weight_step": (timer.epochs[0], setup.total_steps - updates),
        "step": (timer.epochs[1], updates),
    }
    return dry_run.needs(search.model.supernet, kinds)


def _result(run: Any, row: dict[str, str], seconds: float) -> dict[str, Any]:
    return {
        "run_dir": str(run.path),
        "architecture": str(run / "architecture.json"),
        "levels": row["levels"],
        "cell": row["cell"],
        "val_miou": float(row["val_miou"]),
        # Empty, or no column at all, in a run of an older version.
        "val_decoded_miou": float(row.get("val_decoded_miou") or "nan"),
        "epochs": int(row["epoch"]) + 1,
        "seconds": round(seconds, 1),
    }


def _print(result: dict[str, Any]) -> None:
    print(f"path          {result['levels']}")
    print(f"cell          {result['cell']}")
    print(f"supernet mIoU {result['val_miou']:.4f} (val, after epoch {result['epochs']})")
    decoded = result["val_decoded_miou"]
    if not math.isnan(decoded):
        print(f"decoded mIoU  {decoded:.4f} (path and cell alone, with the supernet's weights)")
        print(f"gap           {result['val_miou'] - decoded:.4f} (discretisation)")
    print(f"architecture  {result['architecture']}")


if __name__ == "__main__":
    cli.run(main)
