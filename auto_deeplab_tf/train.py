"""Trains the network of an architecture file, of a published preset, or a baseline.

Writes into --run_dir: model.keras (the best by validation mIoU), last.keras, metrics.csv (a row per
epoch), architecture.json, flags.txt, overlays/ (the same validation images after every validation),
checkpoints/, logs/ for TensorBoard, and with --init_from init.json (which weights were taken, which
are new). The same command resumes from the last checkpoint; on a finished run it changes nothing.
"""

import hashlib
import json
import math
import sys
import time
from typing import Any

from auto_deeplab_tf import cli, config
from auto_deeplab_tf.errors import FieldError, StorageError, UserError
from auto_deeplab_tf.files import local_output, write_text
from auto_deeplab_tf.search_space import PLAIN_MEAN, PLAIN_STD

cli.define(config.TrainConfig)

METRICS = (
    "loss",
    "miou",
    "pixel_accuracy",
    "learning_rate",
    "val_loss",
    "val_miou",
    "val_pixel_accuracy",
)
ARCHITECTURE_FILE = "architecture.json"
MODEL_FILE = "model.keras"
LAST_MODEL_FILE = "last.keras"
INIT_FILE = "init.json"


def main() -> None:
    """Runs the command."""
    from auto_deeplab_tf.training.cluster import Workers

    options = cli.read(config.TrainConfig)
    result = train(options)
    if not Workers.of(options.distribution_strategy).is_chief:
        return
    if options.json:
        cli.print_json(result)
    elif options.dry_run:
        for name, value in result.items():
            print(f"{name:24} {value}")
    else:
        _print(result)


def train(options: config.TrainConfig) -> dict[str, Any]:
    """Trains as the command does, or resumes; returns what it reports.

    With `options.dry_run` it measures some steps, writes nothing but the records of the data set,
    and returns what the run needs.

    Raises:
        UserError: If the settings, the data or the run folder do not fit.
        RunError: If the run had to stop.
        StorageError: If a file of the run cannot be written.
    """
    from auto_deeplab_tf.data import hold_back, pipeline, source
    from auto_deeplab_tf.training import cluster, distribution
    from auto_deeplab_tf.training.run_dir import RunDir

    is_chief = cluster.Workers.of(options.distribution_strategy).is_chief
    run = RunDir(options.run_dir, options, options.resume, writes=is_chief)
    strategy = distribution.start(options)
    architecture = _architecture(options, run)
    split = source.open_for(options, "train")
    held_back = None
    if options.hold_back or options.hold_back_groups:
        held_back = hold_back.of_source(split, options.hold_back, options.hold_back_groups)
    validation = split if held_back else source.open_for(options, "val")
    pipeline.check_crop_size(split, options.crop_size, options.scale_max)
    if not validation.class_pixels.any():
        raise UserError(
            f"val of {validation.info.name} has no labelled pixel: all carry the ignore label "
            f"{validation.info.ignore_label}, so no epoch could be scored. Look at the masks, or "
            "at the ids of the classes"
        )
    training = _Training(options, architecture, split, validation, run, strategy, held_back)
    if options.dry_run:
        return training.needs()
    return training.finished() or training.run()


class _Training:
    """One training: what it is made of, and how far it is."""

    def __init__(
        self,
        options: config.TrainConfig,
        architecture: Any,
        train: Any,
        val: Any,
        run: Any,
        strategy: Any,
        held_back: tuple[Any, Any] | None = None,
    ):
        from auto_deeplab_tf.training.run_dir import METRICS_FILE, MetricsFile

        self._options = options
        self._architecture = architecture
        self._train = train
        self._val = val
        self._run = run
        self._strategy = strategy
        self._metrics = MetricsFile(run / METRICS_FILE)
        everything: tuple[Any, Any] = (range(train.num_examples), range(val.num_examples))
        self._kept, self._scored = held_back or everything
        self._steps_per_epoch, self._epochs = self._plan(options)
        self._total_steps = self._epochs * self._steps_per_epoch
        wanted = min(options.stop_after_steps or self._total_steps, self._total_steps)
        self._last_epoch = math.ceil(wanted / self._steps_per_epoch)

    def _plan(self, options: config.TrainConfig) -> tuple[int, int]:
        """Steps of an epoch, and number of epochs."""
        whole_set = max(1, len(self._kept) // options.batch_size)
        rows = self._metrics.rows()
        if rows:  # of a run that began with fewer steps than that, epochs stay as short
            steps_per_epoch = int(rows[0]["step"])
        else:
            steps_per_epoch = min(options.steps_per_epoch or whole_set, options.steps)
        return steps_per_epoch, math.ceil(options.steps / steps_per_epoch)

    @property
    def _is_whole(self) -> bool:
        """Whether this command trains up to the last step."""
        return self._last_epoch == self._epochs

    def finished(self) -> dict[str, Any] | None:
        """The result of a run that has nothing left to do."""
        from auto_deeplab_tf.training.checkpoints import steps_in

        rows = self._metrics.rows()
        last = int(rows[-1]["step"]) if rows else 0
        wanted = self._last_epoch * self._steps_per_epoch
        if last < wanted:
            return None
        if not (self._run / LAST_MODEL_FILE).exists():
            # A kill may have come between the row of an epoch and its models and checkpoint.
            saved = max(steps_in(self._run / "checkpoints"), default=0)
            if self._is_whole or saved < wanted:
                return None
        if not any(row["val_miou"] for row in rows):
            raise FieldError(
                f"stop_after_steps={self._options.stop_after_steps} must be greater than {last}: "
                "the run has that many steps already, and none of its epochs was validated, so "
                "there is no model yet"
            )
        return self._result(0.0)

    def needs(self) -> dict[str, Any]:
        """Measures some steps; returns what the run needs."""
        from auto_deeplab_tf.training import dry_run

        timer = dry_run.StepTimer()
        self._check_devices()
        with self._strategy.scope():
            model = self._build()
            model.fit(
                self._batches, epochs=1, steps_per_epoch=dry_run.STEPS, callbacks=[timer], verbose=0
            )
        return dry_run.needs(model, {"step": (timer.epochs[0], self._total_steps)})

    def _check_devices(self) -> None:
        from auto_deeplab_tf.training import distribution

        replicas = self._strategy.num_replicas_in_sync
        distribution.check_batch_size(self._options.batch_size, replicas)

    def _batches(self, step: int) -> Any:
        from auto_deeplab_tf.data import pipeline
        from auto_deeplab_tf.training import distribution

        settings = pipeline.batch_options(self._options) | {"start_step": step}
        return distribution.distributed(
            lambda share: pipeline.training_batches(
                self._train, self._kept, share=share, **settings
            )
        )

    def run(self) -> dict[str, Any]:
        """Trains up to the last step."""
        from auto_deeplab_tf.data import source
        from auto_deeplab_tf.training import checkpoints, distribution

        options, run = self._options, self._run
        started = time.monotonic()
        self._check_devices()
        if self._total_steps != options.steps and run.writes and not options.json:
            print(
                f"--steps={options.steps} become {self._total_steps}: "
                f"{self._epochs} whole epochs of {self._steps_per_epoch}"
            )
        with self._strategy.scope(), distribution.lost_workers_named():
            data = {"train": self._train.fingerprint, "val": self._val.fingerprint}
            distribution.check_same_run(options, *data.values(), _contents(self._architecture))
            model = self._build()
            is_new = not checkpoints.steps_in(run / "checkpoints")
            # Before the folder is made: where the file is refused, there is no run.
            started_from = self._start_from(model) if is_new else None
            with run, source.damage_named(self._train, self._val):
                if run.writes:
                    # What the run depends on and its flags do not say.
                    run.record_data(data)
                    if self._architecture is not None:
                        self._architecture.save(run / ARCHITECTURE_FILE)
                    if started_from is not None:
                        write_text(run / INIT_FILE, json.dumps(started_from, indent=1) + "\n")
                self._fit(model, is_new)
                # Last: where it exists, the run is complete.
                if self._is_whole and run.writes:
                    _save(model, run / LAST_MODEL_FILE)
                distribution.wait_for_workers()
        return self._result(time.monotonic() - started)

    def _start_from(self, model: Any) -> dict[str, Any] | None:
        """Takes the weights of `init_from`; None where there is none."""
        from auto_deeplab_tf.served import load_segmenter
        from auto_deeplab_tf.training import transfer

        path = self._options.init_from
        if path is None:
            return None
        result = transfer.take_weights(model, load_segmenter(path, "init_from"), path)
        if self._run.writes and not self._options.json:
            new = f"; new: {', '.join(result['new'])}" if result["new"] else ""
            print(f"started from {path}: {result['taken']} weights taken{new}")
        return result

    def _fit(self, model: Any, is_new: bool) -> None:
        from auto_deeplab_tf.training import callbacks, loop
        from auto_deeplab_tf.training.checkpoints import Checkpoints

        options = self._options
        checkpoints = Checkpoints(
            self._run / "checkpoints",
            loop.checkpointed_variables(model),
            _layout_fingerprint(model),
            options.keep_checkpoints,
            former_fingerprint=_fingerprint(model),
        )
        # The best model, the last one, and one while it is written.
        if self._run.writes:
            checkpoints.check_space(3 * 4 * model.count_params())
        if checkpoints.restore():
            if self._run.writes:
                self._say_stretched(int(model.completed_steps.numpy()))
        elif not is_new:  # its only checkpoint is damaged
            self._start_from(model)
        self._run.write_flags()
        if self._run.writes:
            # That of a shorter run, which is extended from here on: what refuses that comes before.
            (self._run / LAST_MODEL_FILE).unlink(missing_ok=True)
        model.fit(
            self._batches,
            epochs=self._epochs,  # also where it stops earlier: schedules span all steps
            steps_per_epoch=self._steps_per_epoch,
            validation_data=lambda epoch: self._validate(model, epoch),
            callbacks=self._callbacks(),
            checkpoints=checkpoints,
            checkpoint_every_steps=options.checkpoint_every_steps,
            log_every_steps=options.log_every_steps,
            max_hours=options.max_hours,
            verbose=callbacks.verbosity(options) if self._run.writes else 0,
        )

    def _say_stretched(self, step: int) -> None:
        """Says what more steps than before change in the learning rates, from a step on."""
        from auto_deeplab_tf.training.schedules import Poly, stretched

        before, options = self._run.before, self._options
        if before is None or before.steps == options.steps:
            return
        old, new = (
            Poly(options.learning_rate, math.prod(self._plan(each)), options.power)
            for each in (before, options)
        )
        line = stretched("steps", before.steps, options.steps, old, new, step)
        print(line, file=sys.stderr, flush=True)

    def _build(self) -> Any:

        from auto_deeplab_tf.baselines import build_baseline
        from auto_deeplab_tf.segmenter import Segmenter
        from auto_deeplab_tf.training import losses, optimizers
        from auto_deeplab_tf.training.schedules import Poly

        options, info = self._options, self._train.info
        plain = PLAIN_MEAN[:1] * info.channels, PLAIN_STD[:1] * info.channels
        mean, std = plain if options.normalization == "plain" else (info.mean, info.std)
        of_network = {"mean": mean, "std": std, "dtype": options.dtype_policy}
        network = self._architecture or build_baseline(
            str(options.network),
            info.num_classes,
            batch_norm_decay=options.batch_norm_decay,
            **of_network,
        )
        frequencies = losses.class_frequencies(self._train.class_pixels, self._train.present_pixels)
        model = Segmenter(
            network,
            info.num_classes,
            options,
            class_names=info.class_names,
            palette=info.palette,
            ignore_label=info.ignore_label,
            class_weights=losses.class_weights(frequencies, options.class_weights),
            image_size=options.image_size,
            drop_path_seed=options.seed % 2**31,
            **of_network,
        )
        schedule = Poly(options.learning_rate, self._total_steps, options.power)
        model.compile(optimizers.from_options(options, schedule))
        # A checkpoint is read into variables that exist.
        model.optimizer.build(model.trainable_variables)
        return model

    def _validate(self, model: Any, epoch: int) -> dict[str, Any]:
        from auto_deeplab_tf.data import pipeline
        from auto_deeplab_tf.training import distribution
        from auto_deeplab_tf.training.metrics import scores
        from auto_deeplab_tf.training.schedules import current_rate

        options = self._options
        logs = {"learning_rate": current_rate(model.optimizer)}
        if (epoch + 1) % options.validation_every_epochs and epoch + 1 < self._last_epoch:
            return logs
        batches = pipeline.validation_batches(
            self._val,
            options.batch_size,
            options.validation_images,
            self._scored,
            share=distribution.share(),
        )
        loss, matrix = model.score(batches)
        result = scores(matrix)
        if self._run.writes:
            self._draw(model, epoch)
        return logs | {
            "val_loss": loss,
            "val_miou": result["miou"],
            "val_pixel_accuracy": result["pixel_accuracy"],
        }

    def _draw(self, model: Any, epoch: int) -> None:
        """Writes a sheet of the same validation images each time: image, labels, prediction."""
        from auto_deeplab_tf import overlay
        from auto_deeplab_tf.data import pipeline

        chosen = pipeline.spread(len(self._scored), self._options.overlays)
        if not chosen:
            return
        indices = [int(self._scored[place]) for place in chosen]
        examples = [[tensor.numpy() for tensor in self._val.example(index)] for index in indices]
        predictions = model.predict_class_ids([image for image, _ in examples])
        folder = self._run / "overlays"
        folder.mkdir(exist_ok=True)
        samples = [
            (self._val.ids[index], image, label, prediction)
            for index, (image, label), prediction in zip(
                indices, examples, predictions, strict=True
            )
        ]
        info = self._val.info
        sheet = overlay.comparison_sheet(samples, info.class_names, info.palette)
        overlay.save_png(folder / f"epoch_{epoch:05d}.png", sheet)

    def _callbacks(self) -> list[Any]:
        import keras

        from auto_deeplab_tf.training import callbacks

        metrics, run = self._metrics, self._run

        class BestModel(keras.callbacks.Callback):
            """Writes model.keras where an epoch's validation mIoU is above that of all before.

            What came before stands in metrics.csv, so an epoch that is repeated after a restart
            decides as it did the first time.
            """

            def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
                miou = (logs or {}).get("val_miou")
                if miou is None:
                    return
                before = [row for row in metrics.rows() if int(row["epoch"]) < epoch]
                best = max(
                    (float(row["val_miou"]) for row in before if row["val_miou"]), default=-1
                )
                if miou > best:
                    _save(self.model, run / MODEL_FILE)

        last_epoch = self._last_epoch

        class StopEarly(keras.callbacks.Callback):
            """Ends the training after the epoch that `stop_after_steps` names."""

            def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
                self.model.stop_training |= epoch + 1 >= last_epoch

        writers = [
            callbacks.MetricsRow(metrics.path, METRICS),
            callbacks.TensorBoardLogs(run / "logs"),
            BestModel(),
        ]
        return [*(writers if run.writes else ()), StopEarly()]

    def _result(self, seconds: float) -> dict[str, Any]:
        rows = [row for row in self._metrics.rows() if row["val_miou"]]
        best = max(rows, key=lambda row: float(row["val_miou"]))
        return {
            "run_dir": str(self._run.path),
            "model": str(self._run / MODEL_FILE),
            "val_miou": float(best["val_miou"]),
            "val_pixel_accuracy": float(best["val_pixel_accuracy"]),
            "best_epoch": int(best["epoch"]) + 1,
            "epochs": self._last_epoch,
            "steps": self._last_epoch * self._steps_per_epoch,
            "seconds": round(seconds, 1),
        }


def _contents(architecture: Any) -> str:
    """What workers must agree on of an architecture; empty for a baseline."""
    return "" if architecture is None else architecture.fingerprint


def _fingerprint(model: Any) -> str:
    """What a checkpoint belongs to: the architecture, or the config of a network that has none."""
    if model.architecture is not None:
        return model.architecture.fingerprint
    text = json.dumps(model.network.get_config(), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _layout_fingerprint(model: Any) -> str:
    """`_fingerprint`, and the names and shapes of the network's weights in their order."""
    layout = [[v.path.partition("/")[2], list(v.shape)] for v in model.network.weights]
    text = json.dumps([_fingerprint(model), layout])
    return hashlib.sha256(text.encode()).hexdigest()


def _architecture(options: config.TrainConfig, run: Any) -> Any:
    """Reads the architecture, None for a baseline; refuses another one than the run began with."""
    from auto_deeplab_tf.architecture import Architecture
    from auto_deeplab_tf.baselines import check_name

    if options.architecture is None:
        check_name(str(options.network))
        return None
    architecture = Architecture.from_argument(options.architecture)
    path = run / ARCHITECTURE_FILE
    if path.exists() and Architecture.load(path) != architecture:
        raise UserError(
            f"{run.path} trains another architecture than the file that architecture names now: "
            "name another run_dir, or bring the old file back"
        )
    return architecture


def _save(model: Any, path: Any) -> None:
    """Writes a model file whole or not at all."""
    from auto_deeplab_tf.training import distribution

    try:
        with local_output(path) as local:
            temporary = local.with_name(f".{local.stem}.partial.keras")
            try:
                with distribution.own_variables():  # of the optimizer that is saved
                    model.save(temporary, include_optimizer=False)
                temporary.replace(local)
            finally:
                temporary.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        resumes = "make room, and the same command resumes from the last checkpoint"
        raise StorageError.of(path, error, resumes, 4 * model.count_params()) from error


def _print(result: dict[str, Any]) -> None:
    print(
        f"best val mIoU {result['val_miou']:.4f} (pixel accuracy "
        f"{result['val_pixel_accuracy']:.4f}), after epoch {result['best_epoch']} of "
        f"{result['epochs']}"
    )
    print(f"model         {result['model']}")


if __name__ == "__main__":
    cli.run(main)
