"""Selects one network of many: by searches, random draws, and synchronous halving of trainings.

Candidates are the best paths of searches (--search_runs), draws by their probabilities
(--samples_per_search) and random draws (--num_random), all within a budget. They are trained by the
recipe in --train_flagfile without a part of the training set, on which they are scored; val is
never read. After each rung one candidate in --reduction resumes its training, and the best of the
last rung wins. With --num_random alone it is random search. --num_predicted adds candidates to the
first rung: those of many more draws that a regression on its trainings says the best of.

Writes into --output_dir: candidates.csv (every candidate, every score), architecture.json (the
winner), candidates/ (their architectures), runs/ (their trainings), flags.txt, train.flags. The
same command resumes after a kill; on a finished folder it changes nothing.

The trainings of a rung run one after the other, or on a Ray cluster (--ray_address), where each
takes a GPU, or a core where there are none. The folder and the data have the same paths on all its
machines. A signal ends the trainings there at their last checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from auto_deeplab_tf import cli, config, ray_cluster, selection
from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.errors import RunError, UserError
from auto_deeplab_tf.files import AnyPath, absolute, write_text
from auto_deeplab_tf.process import Completed, run_command, seconds_since_start
from auto_deeplab_tf.training import termination

cli.define(config.SelectConfig)

# What the selection decides for each training, or shows of it.
_DECIDED = (
    "architecture",
    "network",
    "filter_multiplier",
    "run_dir",
    "resume",
    "dry_run",
    "json",
    "stop_after_steps",
    "max_hours",
    "hold_back",
    "hold_back_groups",
)
# The folder may move between two starts: each training compares the data with those it began with.
_PLACES = ("data_dir", "cache_dir")
_DIVERGED = re.compile(r"loss became -?(nan|inf) at step")


def main() -> None:
    """Runs the command."""
    options = cli.read(config.SelectConfig)
    result = _Selection(options).run()
    if options.json:
        cli.print_json(result)
    else:
        _print(result, options)


class _Selection:
    """One selection: its candidates, its trainings, and how far it is."""

    def __init__(self, options: config.SelectConfig):
        from auto_deeplab_tf.training.run_dir import RunDir

        self._options = options
        given = {name: getattr(options, name) for name in _PLACES if getattr(options, name)}
        recipe = dataclasses.replace(_recipe_of(options.train_flagfile), **given)
        self._training = recipe.with_absolute_paths()
        self._run = RunDir(options.output_dir, options, setting="output_dir")
        self._table = selection.Table(self._run.path)
        self._check_recipe()
        self._ray: Any = None

    def _check_recipe(self) -> None:
        """Refuses to resume with another recipe of the trainings."""
        self._recipe = _recipe_text(self._training)
        file = self._run / "train.flags"
        # Through the settings: an older version wrote no flags that are newer.
        left_out = (*_DECIDED, *_PLACES)
        now = _recipe_text(self._training, left_out)
        if file.exists() and _recipe_text(_recipe_of(str(file)), left_out) != now:
            raise UserError(
                f"{file} holds another recipe than train_flagfile={self._options.train_flagfile} "
                "now: name another output_dir, or bring the old recipe back."
            )
        # The table says it, also that of an older version.
        counted = {int(row["filter_multiplier"]) for row in self._table.rows.values()}
        multiplier = self._training.filter_multiplier
        if counted - {multiplier} and not self._options.fit_filter_multiplier:
            raise UserError(
                f"{self._table.path} holds candidates of filter_multiplier={min(counted)}, and "
                f"train_flagfile={self._options.train_flagfile} has {multiplier} now: name another "
                "output_dir, or bring the old recipe back."
            )

    def run(self) -> dict[str, Any]:
        """Selects, or resumes; returns what the command reports."""
        winner_file = self._run / "architecture.json"
        if not winner_file.exists():
            # Before the folder is made: what an error asks the user to change is free until then.
            found = None if self._table.rows else self._candidates()
            with self._run:
                write_text(self._run / "train.flags", self._recipe)
                if found:
                    self._table.add(found, self._options.rungs)
                self._score_inherited()
                with self._cluster() as self._ray:
                    winner = self._halve()
                self._save_winner(winner, winner_file)
        return self._result(winner_file)

    def _cluster(self) -> contextlib.AbstractContextManager[Any]:
        """The Ray cluster that trains, as `ray`; None where the trainings run here, in turn."""
        if self._options.ray_address is None:
            return contextlib.nullcontext()
        return ray_cluster.connected(self._options.ray_address)

    def _settings(self) -> tuple[config.SelectConfig, config.NetworkSizesConfig]:
        return self._options, self._training.part(config.NetworkSizesConfig)

    @functools.cached_property
    def _network(self) -> dict[str, Any]:
        """What the data and the flags say of each network; told once the data are found fit."""
        from auto_deeplab_tf.data import hold_back, source

        options, training = self._options, self._training
        train = source.open_for(training, "train")
        # A split that is too small is told before anything is trained.
        hold_back.of_source(train, options.hold_back, options.hold_back_groups)
        return {
            "num_classes": train.info.num_classes,
            "input_channels": train.info.channels,
            "input_size": options.input_size or training.image_size or training.crop_size,
        }

    def _candidates(self) -> list[selection.Candidate]:
        return selection.candidates(*self._settings(), **self._network)

    @functools.cached_property
    def _more_draws(self) -> list[selection.Candidate]:
        return selection.more_draws(*self._settings(), **self._network)

    def _score_inherited(self) -> None:
        if not self._options.inherited_batches:
            return
        rows = self._table.rows
        for number, run in enumerate(dict.fromkeys(self._options.search_runs or ())):
            # By name: the same folder may be written in another way than in the column `source`.
            prefix = selection.prefix_of_search(number)
            left = {
                name: self._table.architecture(name)
                for name, row in rows.items()
                if name.startswith(prefix) and row["inherited_miou"] == ""
            }
            if left:
                scores = selection.inherited_scores(run, left, self._training, self._options)
                for name, score in scores:
                    self._table.set(name, inherited_miou=score)

    def _halve(self) -> str:
        """Trains rung by rung; returns the name of the winner."""
        options, table = self._options, self._table
        alive = list(table.rows)
        for rung in range(1, options.rungs + 1):
            steps = selection.steps_of_rung(
                rung, options.rungs, options.reduction, self._training.steps
            )
            self._train(alive, rung, steps)
            if rung == 1:
                self._add_predicted(steps)
                alive = list(table.rows)
            ranked = table.best(alive, options.rank_by, rung)
            best = selection.survivors(ranked, options.reduction)
            # A training that diverged would do so again.
            alive = [name for name in best if not table.has_diverged(name, rung)]
            if not alive:
                raise selection.diverged_error(f"all trainings of rung {rung} diverged")
            self._say(f"rung {rung} of {options.rungs}, {steps} steps: {' '.join(ranked)}")
        return alive[0]

    def _add_predicted(self, steps: int) -> None:
        """Adds and trains candidates of the first rung, of which it promises the most."""
        options, table = self._options, self._table
        for number, count in enumerate(options.num_predicted or (), start=1):
            found = [name for name, row in table.rows.items() if _is_of_round(row, number)]
            if not found:
                trained = table.trained(options.rank_by)
                added = selection.predicted_candidates(
                    self._more_draws, number, count, trained, options.rank_by
                )
                table.add(added, options.rungs)
                found = [candidate.name for candidate in added]
            self._train(found, 1, steps)

    def _train(self, names: list[str], rung: int, steps: int) -> None:
        """Trains candidates up to the steps of a rung unless they are; notes their scores."""
        score = self._options.rank_by
        names = [name for name in names if self._table.score(name, score, rung) is None]
        if self._ray is None:
            for name in names:
                self._note(name, rung, steps, run_command(self._command(name, steps)))
            return
        self._train_on_ray(names, rung, steps)

    def _train_on_ray(self, names: list[str], rung: int, steps: int) -> None:
        """As many at a time as the cluster holds: a command says the hours left as it starts."""
        run = self._ray.remote(**ray_cluster.resources(self._ray))(run_command)
        waiting = list(names)
        running: dict[Any, str] = {}
        ended = None
        while waiting or running:
            try:
                while waiting and len(running) < ray_cluster.num_workers(self._ray):
                    name = waiting.pop(0)
                    running[run.remote(self._command(name, steps))] = name
                (done,), _ = self._ray.wait(list(running))
                self._note(running.pop(done), rung, steps, self._ray.get(done))
            except SystemExit as error:  # the time is up: for the others too
                ended, waiting = error, []
        if ended is not None:
            raise ended

    def _command(self, name: str, steps: int) -> list[str]:
        """The command that trains a candidate up to a number of steps."""
        row = self._table.rows[name]
        self._table.architecture(name)  # checks that its file is the one of the table
        options = self._options
        command = [
            sys.executable,
            "-m",
            "auto_deeplab_tf.train",
            # Absolute: a Ray worker runs it in another folder.
            f"--flagfile={absolute(self._run / 'train.flags')}",
            f"--architecture={absolute(self._table.architecture_file(name))}",
            f"--filter_multiplier={row['filter_multiplier']}",
            f"--run_dir={absolute(self._run / 'runs' / name)}",
            f"--stop_after_steps={steps}",
            f"--hold_back={options.hold_back!r}",
            f"--hold_back_groups={','.join(options.hold_back_groups or ())}",
            "--progress=none",
        ]
        if options.max_hours is not None:
            left = options.max_hours - seconds_since_start() / 3600
            if left <= 0:
                termination.end(termination.TIME_IS_UP, str(self._table.path))
            command.append(f"--max_hours={left!r}")
        return command

    def _note(self, name: str, rung: int, steps: int, result: Completed) -> None:
        """Notes what a training came to."""
        code, cpu_seconds, output = result
        spent = float(self._table.rows[name]["cpu_seconds"] or 0.0) + cpu_seconds
        if code in termination.CODES:
            self._table.set(name, cpu_seconds=f"{spent:.1f}")
            termination.end(code, f"the training of {name}")
        last_line = output.strip().splitlines()[-1] if output.strip() else "no message"
        if code and _DIVERGED.search(last_line):
            self._table.set_diverged(name, rung, steps)
        elif code:
            raise RunError(
                f"the training of {name} ended with {code}: {last_line.removeprefix('error: ')}"
            )
        else:
            self._table.set(name, **_scores(self._run / "runs" / name / "metrics.csv", rung))
        self._table.set(name, cpu_seconds=f"{spent:.1f}")

    def _save_winner(self, name: str, file: AnyPath) -> None:
        row = self._table.rows[name]
        architecture = self._table.architecture(name)
        counted = ("filter_multiplier", "params", "multi_adds")
        decided = {
            "candidate": name,
            "rank_by": self._options.rank_by,
            "num_candidates": len(self._table.rows),
            **{key: int(row[key]) for key in counted},
            **{
                score: self._table.score(name, score, self._options.rungs)
                for score in selection.SCORES
            },
        }
        decided = {
            key: value if not isinstance(value, float) or math.isfinite(value) else None
            for key, value in decided.items()
        }
        provenance = {**architecture.provenance, "select": decided}
        # Last: where it exists, the selection is complete.
        dataclasses.replace(architecture, provenance=provenance).save(file)

    def _result(self, winner_file: AnyPath) -> dict[str, Any]:
        return {
            "output_dir": str(self._run.path),
            "architecture": str(winner_file),
            "candidates": str(self._table.path),
            **Architecture.load(winner_file).provenance["select"],
        }

    def _say(self, text: str) -> None:
        if not self._options.json:
            print(text, flush=True)


def _is_of_round(row: Mapping[str, Any], number: int) -> bool:
    return (row["kind"], row["source"]) == ("predicted", str(number))


def _recipe_of(flagfile: str) -> config.TrainConfig:
    """Reads the settings of the trainings; what the selection decides is a placeholder."""
    decided = ["--architecture=auto_deeplab", "--run_dir=."]
    return cli.parse(config.TrainConfig, [f"--flagfile={flagfile}", *decided])


def _recipe_text(training: config.TrainConfig, left_out: Sequence[str] = _DECIDED) -> str:
    """The settings of the trainings as a flag file, without what the selection decides."""
    lines = config.flags_text(training).splitlines(keepends=True)
    return "".join(line for line in lines if line[2:].partition("=")[0] not in left_out)


def _scores(metrics: AnyPath, rung: int) -> dict[str, Any]:
    """The scores of a rung: mean training loss of all steps so far, mIoU on the part held back."""
    from auto_deeplab_tf.training.run_dir import MetricsFile

    rows = MetricsFile(metrics).rows()
    ends = [0, *(int(row["step"]) for row in rows)]
    losses = [
        float(row["loss"]) * (ends[index + 1] - ends[index]) for index, row in enumerate(rows)
    ]
    return {
        f"steps_{rung}": ends[-1],
        f"loss_{rung}": sum(losses) / ends[-1],
        f"val_miou_{rung}": float(rows[-1]["val_miou"]),
    }


def _print(result: dict[str, Any], options: config.SelectConfig) -> None:
    print(f"winner        {result['candidate']} of {result['num_candidates']} candidates")
    print(
        f"network       F {result['filter_multiplier']}, {result['params']:,} parameters, "
        f"{result['multi_adds']:,} Multi-Adds"
    )
    print(
        f"last rung     loss {result['loss']}, mIoU {result['val_miou']} on the part held back "
        f"(ranked by {options.rank_by})"
    )
    print(f"architecture  {result['architecture']}")
    print(f"candidates    {result['candidates']}")


if __name__ == "__main__":
    cli.run(main)
