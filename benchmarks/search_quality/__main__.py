"""Runs what PROTOCOL.md asks for, or what is left of it, and reports from results.csv.

    python -m benchmarks.search_quality --data_dir=/path/to/CamVid --work_dir=DIR [--stage=STAGE]
    python -m benchmarks.search_quality --report [--figures=docs]

Every training is a process of its own, bound to a core; `--cores=0,1` runs two at a time. The same
command after a kill resumes; what a method has found lies in `found/`, so that its trainings can be
run elsewhere. Without `--stage` all of them run, in this order:

- length: six random networks at 600, 1,800 and 5,400 steps (tuning split).
- levers: what searches with one setting changed propose (tuning split); `levers.csv`.
- cost_weights: five small searches (tuning split); `cost_weights.csv`.
- ends: stems and heads (tuning split); `ends.csv`.
- population: 20 random networks, the published one, more seeds for the best, the median and the
  worst (reported split).
- random_search: three, and three seeds of each winner (reported split).
- predicted: three selections of as many networks, most of them by `select --num_predicted`,
  likewise.
- searched: three searches with a selection, together of the same cost, likewise.
- scenes: the second set: all that was found, the published network and ten random ones, one seed
  each, on generated scenes.
- records: what all searches and selections left behind; `searches.csv`, `candidates.csv`.
- opinions: what each search thinks of each network that has a row; `opinions.csv`.
- agreement: how each checkpoint of a search agrees with random networks; `agreement.csv`.
- signal: the gradient of alpha and beta at each checkpoint of a search, as
  `benchmarks.search_signal` measures it; `signal.csv`.
- latencies: of all networks of `ends.csv` and of `results.csv`, on a machine that does nothing
  else.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import functools
import pathlib
import queue
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.sampling import random_architecture
from benchmarks import rows, search_signal
from benchmarks.search_quality import (
    cost_weights,
    ends,
    latency,
    levers,
    methods,
    opinions,
    population,
    records,
)
from benchmarks.search_quality.population import DESIGN, Design
from benchmarks.search_quality.report import SEEDS, report
from benchmarks.search_quality.trainings import Training, pending, train

RESULTS = pathlib.Path(__file__).with_name("results.csv")
# Beside the results.
OPINIONS, PROPOSALS, TRADE_OFF = "opinions.csv", "levers.csv", "cost_weights.csv"
ENDS, AGREEMENT, SIGNAL = "ends.csv", "agreement.csv", "signal.csv"
SIGNAL_BATCHES = 16
LENGTHS = (600, 1800, 5400)
TUNING_NETWORKS = range(100, 106)
REPORTED_NETWORKS = range(20)
SCENES_NETWORKS = [f"random_{n}" for n in range(10)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--report", action="store_true", help="print what results.csv says")
    parser.add_argument("--figures", type=pathlib.Path, help="with --report: folder to draw into")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--data_dir", type=pathlib.Path, help="CamVid")
    parser.add_argument("--work_dir", type=pathlib.Path, help="run folders and records")
    parser.add_argument("--stage", choices=STAGES, help="one alone")
    parser.add_argument(
        "--numbers", default="0,1,2", help="of a method's three: those that run, comma-separated"
    )
    parser.add_argument(
        "--steps", type=int, default=population.STEPS, help="length of the reported trainings"
    )
    parser.add_argument("--cores", default="0", help="cores, comma-separated; a training on each")
    options = parser.parse_args()
    if options.report:
        print(report(rows.read(options.results), rows.read(_beside(OPINIONS, options))))
        print(f"\n{ends.report(rows.read(_beside(ENDS, options)))}")
        candidates = rows.read(_beside(records.CANDIDATES, options))
        for split in ("tuning", "reported"):
            print(opinions.prediction(candidates, split))
        print(f"\n{records.proposals(candidates)}")
        if options.figures is not None:
            of_searches, agreements, signals = (
                rows.read(_beside(name, options)) for name in (records.SEARCHES, AGREEMENT, SIGNAL)
            )
            tables = (of_searches, candidates, agreements, signals)
            records.draw(rows.read(options.results), *tables, options.figures)
        return
    if options.data_dir is None or options.work_dir is None:
        parser.error("--data_dir and --work_dir are needed, or --report")
    if options.stage is None:
        # Each in a process of its own: the latencies want a TensorFlow that has not begun.
        for stage in STAGES:
            command = [sys.executable, "-m", __spec__.parent, *sys.argv[1:], f"--stage={stage}"]
            if code := subprocess.run(command, check=False).returncode:
                raise SystemExit(code)
        return
    STAGES[options.stage](options)


def carry_out(
    plan: Callable[[argparse.Namespace], list[Training]], options: argparse.Namespace
) -> None:
    """Runs the trainings of a plan that have no row in results.csv."""
    # What comes next can depend on what was found: best, median and worst get more seeds.
    while left := pending(plan(options), rows.read(options.results)):
        run_all(left, options.results, options)


def pull(options: argparse.Namespace) -> None:
    """Tries the levers that have no row."""
    file, folders, core = _beside(PROPOSALS, options), _splits(options)[0], _core(options)
    _append(file, levers.left(rows.read(file), folders, options.steps, core))


def weigh(options: argparse.Namespace) -> None:
    """Searches with the cost weights that have no row."""
    file, folders, core = _beside(TRADE_OFF, options), _splits(options)[0], _core(options)
    _append(file, cost_weights.left(rows.read(file), folders, core))


def _splits(options: argparse.Namespace) -> tuple[methods.Folders, methods.Folders]:
    """The tuning split and the reported one."""
    tuning, reported = (
        methods.Folders(split, options.data_dir, options.work_dir)
        for split in ("tuning", "reported")
    )
    return tuning, reported


def _core(options: argparse.Namespace) -> int:
    """The core of what runs by itself."""
    return int(options.cores.split(",")[0])


def _append(file: pathlib.Path, found: Iterable[dict[str, Any]]) -> None:
    for row in found:
        rows.write(file, [*rows.read(file), row])
        print(row, flush=True)


def ask(options: argparse.Namespace) -> None:
    """Writes what each search thinks of each network of the reported split."""
    file = _beside(OPINIONS, options)
    done = {tuple(row[key] for key in opinions.KEY) for row in rows.read(file)}
    reported = [row for row in rows.read(options.results) if row["split"] == "reported"]
    networks = {row["name"]: _architecture(row["kind"], row["name"], options) for row in reported}
    _, folders = _splits(options)
    for run_dir in folders.searches():
        left = {
            name: network
            for name, network in networks.items()
            if (run_dir.name, network.fingerprint) not in done
        }
        for row in opinions.of_search(run_dir, left, **folders.places()) if left else ():
            with open(file, "a", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, list(row), lineterminator="\n")
                if not stream.tell():
                    writer.writeheader()
                writer.writerow(row)
            print(row, flush=True)


def agree(options: argparse.Namespace) -> None:
    """Writes how the searches agree with random networks, checkpoint by checkpoint."""
    candidates = rows.read(_beside(records.CANDIDATES, options))

    def found(folders: methods.Folders, run_dir: pathlib.Path) -> Iterable[dict[str, Any]]:
        losses = opinions.first_losses(candidates, folders.split)
        return opinions.agreement(run_dir, losses, **folders.places()) if losses else ()

    _of_each_search(AGREEMENT, found, options)


def measure_signal(options: argparse.Namespace) -> None:
    """Writes what the gradient of alpha and beta says, checkpoint by checkpoint."""

    def found(folders: methods.Folders, run_dir: pathlib.Path) -> Iterable[dict[str, Any]]:
        for row in search_signal.rows(run_dir, SIGNAL_BATCHES, **folders.places()):
            yield {"search": run_dir.name} | row

    _of_each_search(SIGNAL, found, options)


def _of_each_search(
    name: str,
    found: Callable[[methods.Folders, pathlib.Path], Iterable[dict[str, Any]]],
    options: argparse.Namespace,
) -> None:
    """Adds to a table what is found of each search that has no row there."""
    file = _beside(name, options)
    done = {row["search"] for row in rows.read(file)}
    for folders in _splits(options):
        for run_dir in folders.searches():
            if run_dir.name not in done:
                rows.write(file, [*rows.read(file), *found(folders, run_dir)])


def train_ends(options: argparse.Namespace) -> None:
    """Trains the stems and heads that have no row."""
    file = _beside(ENDS, options)
    run_all(pending(ends.trainings(), rows.read(file)), file, options)


def time_networks(options: argparse.Namespace) -> None:
    """Writes the latency of all networks that have a row, of one CPU thread.

    All anew where one has none: those of two machines do not compare.
    """
    tables = {file: rows.read(file) for file in (_beside(ENDS, options), options.results)}
    if all(row.get(latency.COLUMN) for table in tables.values() for row in table):
        return
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    planned = {training.name: training for training in ends.trainings()}

    def network(row: dict[str, str]) -> tuple[Architecture, Design]:
        if row["name"] in planned:
            return planned[row["name"]].architecture, planned[row["name"]].design
        return _architecture(row["kind"], row["name"], options), DESIGN

    found = latency.measured(network(row) for table in tables.values() for row in table)
    for file, table in tables.items():
        timed = [row | {latency.COLUMN: f"{found[network(row)]:.3f}"} for row in table]
        rows.write(file, timed)


def record(options: argparse.Namespace) -> None:
    """Writes all searches and selections of the work folder into the tables."""
    _replace(_beside(records.SEARCHES, options), "search", records.searches(options.work_dir))
    found = records.candidates(options.work_dir)
    _replace(_beside(records.CANDIDATES, options), "selection", found)


def _replace(file: pathlib.Path, key: str, found: list[dict[str, Any]]) -> None:
    """Writes rows in the place of those of the same keys; the others, of other machines, stay."""
    there = {row[key] for row in found}
    kept = [row for row in rows.read(file) if row[key] not in there]
    rows.write(file, sorted([*kept, *found], key=lambda row: row[key]))


def _beside(name: str, options: argparse.Namespace) -> pathlib.Path:
    return options.results.with_name(name)


def run_all(trainings: list[Training], file: pathlib.Path, options: argparse.Namespace) -> None:
    """Runs trainings, one on each core at a time, and writes each row when it is there."""
    cores: queue.SimpleQueue[int] = queue.SimpleQueue()
    for core in options.cores.split(","):
        cores.put(int(core))

    def one(training: Training) -> dict[str, object]:
        core = cores.get()
        try:
            return train(training, options.data_dir, options.work_dir, core)
        finally:
            cores.put(core)

    pool = concurrent.futures.ThreadPoolExecutor(cores.qsize())
    try:
        for future in concurrent.futures.as_completed([pool.submit(one, t) for t in trainings]):
            row = future.result()
            rows.put(file, row)
            print(row["kind"], row["name"], row["seed"], row["steps"], row["val_miou"], flush=True)
    finally:
        # Where one training fails, the others are not begun.
        pool.shutdown(cancel_futures=True)


def length(options: argparse.Namespace) -> list[Training]:
    """Six random networks at three lengths, on the tuning split."""
    return [
        Training("trial", f"random_{n}", "tuning", random_architecture(n), 0, steps)
        for steps in LENGTHS
        for n in TUNING_NETWORKS
    ]


def random_networks(options: argparse.Namespace) -> list[Training]:
    """The random networks and the published one, on the reported split."""
    drawn = {f"random_{n}": random_architecture(n) for n in REPORTED_NETWORKS}

    def trainings(kind: str, name: str, architecture: Architecture, seeds: range) -> list[Training]:
        return [
            Training(kind, name, "reported", architecture, seed, options.steps) for seed in seeds
        ]

    planned = [t for name, a in drawn.items() for t in trainings("random", name, a, range(1))]
    published = Architecture.preset("auto_deeplab")
    planned += trainings("published", "auto_deeplab", published, range(SEEDS["reported"]))
    first = {
        row["name"]: float(row["val_miou"])
        for row in rows.read(options.results)
        if (row["kind"], row["split"], row["seed"]) == ("random", "reported", "0")
    }
    if len(first) == len(drawn):
        ranked = sorted(first, key=first.__getitem__)
        for name in (ranked[-1], ranked[len(ranked) // 2], ranked[0]):
            planned += trainings("random", name, drawn[name], range(SEEDS["reported"]))
    return planned


def random_search(options: argparse.Namespace) -> list[Training]:
    """Three random searches."""
    return _of_method("random_search", methods.random_search, options)


def predicted(options: argparse.Namespace) -> list[Training]:
    """Three selections of as many networks, most of them predicted."""
    return _of_method("predicted", methods.predicted, options)


def searched(options: argparse.Namespace) -> list[Training]:
    """Three searches with a selection, at the cost of a random search."""
    return _of_method("searched", methods.searched, options)


def scenes(options: argparse.Namespace) -> list[Training]:
    """The networks of the reported split once more, on the second set."""
    return [
        Training(kind, name, "scenes", _architecture(kind, name, options), 0, options.steps)
        for kind, name in dict.fromkeys(
            (row["kind"], row["name"])
            for row in rows.read(options.results)
            if row["split"] == "reported"
        )
        if kind != "random" or name in SCENES_NETWORKS
    ]


def _of_method(
    kind: str, method: Callable[..., methods.Found], options: argparse.Namespace
) -> list[Training]:
    _, folders = _splits(options)
    planned = []
    for number in map(int, options.numbers.split(",")):
        name = f"{kind}_{number}"
        file = _found(name, options)
        if not file.exists():
            method(number, options.steps, folders, _core(options)).save(file)
        found = methods.Found.load(file)
        planned += [
            Training(
                kind,
                name,
                "reported",
                found.architecture,
                seed,
                options.steps,
                round(found.seconds),
            )
            for seed in range(SEEDS["reported"])
        ]
    return planned


def _architecture(kind: str, name: str, options: argparse.Namespace) -> Architecture:
    """The network of a row of the reported split."""
    if kind in ("random", "trial"):
        return random_architecture(int(name.removeprefix("random_")))
    if kind == "published":
        return Architecture.preset(name)
    return methods.Found.load(_found(name, options)).architecture


def _found(name: str, options: argparse.Namespace) -> pathlib.Path:
    return _beside("found", options) / f"{name}.json"


STAGES: dict[str, Callable[[argparse.Namespace], None]] = {
    "length": functools.partial(carry_out, length),
    "levers": pull,
    "cost_weights": weigh,
    "ends": train_ends,
    "population": functools.partial(carry_out, random_networks),
    "random_search": functools.partial(carry_out, random_search),
    "predicted": functools.partial(carry_out, predicted),
    "searched": functools.partial(carry_out, searched),
    "scenes": functools.partial(carry_out, scenes),
    "records": record,
    "opinions": ask,
    "agreement": agree,
    "signal": measure_signal,
    "latencies": time_networks,
}


if __name__ == "__main__":
    main()
