"""Candidates of a selection: found within a budget, scored, halved; the table that says how far."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from auto_deeplab_tf import accounting, config, decoding, predictor, sampling
from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.errors import FieldError, MissingFileError, RunError, UserError
from auto_deeplab_tf.files import AnyPath, as_path, write_text

# Of paths of one search, or of random draws, that are counted to find those within the budget.
MAX_TRIES = 10_000
# Draws of each kind, beyond the candidates, that a prediction ranks.
POOL = 1_000
# Fewer trained networks teach a prediction nothing.
MIN_TO_PREDICT = 8
SCORES = ("loss", "val_miou")
_WORST = {"loss": math.inf, "val_miou": 0.0}
_WORDS = {"multi_adds": "Multi-Adds", "params": "parameters"}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A network that a selection may choose.

    Attributes:
        name: Unique in the selection; the name of its files.
        kind: "searched", "random" or "predicted".
        source: Folder of the search, the seed of the draw, or the round of the prediction.
        architecture: Its architecture.
        filter_multiplier: F of its trainings.
        params: Trainable parameters at that F; likewise:
        multi_adds: Multi-Adds for one image.
        log_prob: Of the path under beta, None of a random one.
        predicted: Score of the first rung that was predicted, None of one that was not.
    """

    name: str
    kind: str
    source: str
    architecture: Architecture
    filter_multiplier: int = 0
    params: int = 0
    multi_adds: int = 0
    log_prob: float | None = None
    predicted: float | None = None

    def row(self) -> dict[str, Any]:
        """Returns the first columns of its row in candidates.csv."""
        row = {"candidate": self.name, "kind": self.kind, "source": self.source}
        row["levels"] = "-".join(map(str, self.architecture.levels))
        row["fingerprint"] = self.architecture.fingerprint
        for name in ("filter_multiplier", "params", "multi_adds", "log_prob", "predicted"):
            row[name] = getattr(self, name)
        return row


def candidates(
    options: config.SelectConfig,
    sizes: config.NetworkSizesConfig,
    **network: Any,
) -> list[Candidate]:
    """Returns the candidates within the budget: paths and samples of each search, then random ones.

    Args:
        options: How many of each, and the budget.
        sizes: Channels of the networks.
        **network: More arguments of `accounting.count`.

    Raises:
        FieldError: If searches of different search spaces are given together, or num_predicted has
            too few candidates to learn from.
        UserError: If no candidate keeps the budget, with what the cheapest needs.
    """
    draws = _Draws(options, sizes, network)
    drawn: dict[str, tuple[int, list[Candidate]]] = {}
    for number, run in enumerate(draws.searches):
        prefix = prefix_of_search(number)
        count = options.paths_per_search
        drawn[f"paths_per_search of {run}"] = count, draws.paths(f"{prefix}path", run, count)
        count = options.samples_per_search
        drawn[f"samples_per_search of {run}"] = count, draws.samples(f"{prefix}sample", run, count)
    drawn["num_random"] = options.num_random, draws.random(options.num_random)
    found = [candidate for _, some in drawn.values() for candidate in some]
    if not found:
        raise draws.budget.error()
    for kind, (asked, some) in drawn.items():
        if len(some) < asked:
            print(
                f"note: {kind}: {len(some)} found of {asked} asked for; a larger budget may allow "
                "more.",
                file=sys.stderr,
            )
    found = _different(found)
    if options.num_predicted and len(found) < MIN_TO_PREDICT:
        raise FieldError(
            f"num_predicted needs {MIN_TO_PREDICT} other candidates to learn from. Received: "
            f"{len(found)}; give a larger num_random.",
            "num_predicted",
            "num_random",
        )
    return found


def more_draws(
    options: config.SelectConfig, sizes: config.NetworkSizesConfig, **network: Any
) -> list[Candidate]:
    """Returns what predictions choose from: many draws within the budget.

    They are those that come next behind the ones of `candidates`: `POOL` at random, and `POOL` of
    each search by its probabilities. Each is counted, which takes a while: call it once.

    Args:
        options: See `candidates`; likewise:
        sizes: See there; likewise:
        **network: See there.
    """
    draws = _Draws(options, sizes, network)
    found = draws.random(options.num_random + POOL)
    for number, run in enumerate(draws.searches):
        name = f"{prefix_of_search(number)}sample"
        found += draws.samples(name, run, options.samples_per_search + POOL)
    return _different(found)


def prefix_of_search(number: int) -> str:
    """Returns what the names of the candidates of a search begin with, and no others."""
    return f"search-{number}-"


def predicted_candidates(
    drawn: Sequence[Candidate],
    number: int,
    count: int,
    trained: Sequence[tuple[Candidate, float | None]],
    rank_by: str,
) -> list[Candidate]:
    """Returns the candidates of a round: the best of many draws, as a regression predicts them.

    Args:
        drawn: What it chooses from, without those that are trained: see `more_draws`.
        number: Of the round, from 1; the source of its candidates.
        count: How many.
        trained: All candidates so far and their scores of the first rung; None: the training
            diverged.
        rank_by: Which score that is: "loss" or "val_miou".

    Raises:
        RunError: If fewer than two have a score.
    """
    known = {candidate.architecture for candidate, _ in trained}
    others = [candidate for candidate in drawn if candidate.architecture not in known]
    scored = [(candidate, score) for candidate, score in trained if score is not None]
    if len(scored) < 2:
        raise diverged_error(
            "nearly all trainings of the first rung diverged, nothing can be predicted from them"
        )
    scores = predictor.predicted_scores(
        [_features(candidate) for candidate, _ in scored],
        [score for _, score in scored],
        [_features(candidate) for candidate in others],
    )
    sign = 1 if rank_by == "loss" else -1
    best = sorted(zip(others, scores, strict=True), key=lambda pair: sign * pair[1])[:count]
    return [
        dataclasses.replace(
            candidate,
            name=f"predicted-{number}-{candidate.name}",
            kind="predicted",
            source=str(number),
            predicted=score,
        )
        for candidate, score in best
    ]


def diverged_error(text: str) -> RunError:
    """Returns the error where too many trainings diverged, with what to do."""
    return RunError(
        f"{text}: change the recipe (a smaller learning_rate) and name another output_dir."
    )


def _features(candidate: Candidate) -> list[float]:
    return predictor.features(candidate.architecture, candidate.filter_multiplier, candidate.params)


def _different(found: Sequence[Candidate]) -> list[Candidate]:
    """The candidates without repetitions: two searches may agree; a network is trained once."""
    return list({candidate.architecture: candidate for candidate in reversed(found)}.values())[::-1]


class _Draws:
    """Paths and samples of searches, and random draws: those within the budget.

    Attributes:
        searches: Folder -> what its search left.
        budget: What has been counted so far.
    """

    def __init__(
        self,
        options: config.SelectConfig,
        sizes: config.NetworkSizesConfig,
        network: Mapping[str, Any],
    ):
        self.searches = {run: _search(run) for run in options.search_runs or ()}
        self.budget = _Budget(options, sizes, network)
        self._seed = options.random_seed
        self._space = _Space(options.num_layers, options.num_blocks, options.atrous)
        if self.searches:
            self._space = _common_space(self.searches)

    def paths(self, name: str, run: str, count: int) -> list[Candidate]:
        """Returns the most probable paths of a search, with its cell."""
        logits, atrous = self.searches[run], self._space.atrous
        cell = decoding.decode_cell(logits.alpha, logits.edge)
        fits = self.budget.of_paths(len(logits.beta), cell, atrous)
        found = self._first(_paths(name, run, logits, cell, atrous, fits), count)
        # Where none fits, all are counted: the error names the cheapest.
        return found or self._first(_paths(name, run, logits, cell, atrous), count)

    def samples(self, name: str, run: str, count: int) -> list[Candidate]:
        """Returns draws by the probabilities of a search."""
        drawn = _samples(name, run, self.searches[run], self._seed, self._space.atrous)
        return self._first(drawn, count)

    def random(self, count: int) -> list[Candidate]:
        """Returns random draws."""
        drawn = (
            Candidate(
                f"random-{seed}",
                "random",
                str(seed),
                sampling.random_architecture(seed, *self._space),
            )
            for seed in itertools.count(self._seed)
        )
        return self._first(drawn, count)

    def _first(self, drawn: Iterator[Candidate], count: int) -> list[Candidate]:
        return list(itertools.islice(self.budget.within(drawn), count))


class _Space(tuple[int, int, str]):
    """(num_layers, num_blocks, atrous) of a search space."""

    def __new__(cls, num_layers: int, num_blocks: int, atrous: str) -> _Space:
        return super().__new__(cls, (num_layers, num_blocks, atrous))

    @property
    def atrous(self) -> str:
        return self[2]

    def __str__(self) -> str:
        return f"{self[0]} layers, {self[1]} blocks, {self[2]} atrous operation"


def _search(run: str) -> decoding.Logits:
    path = as_path(run) / "logits.npz"
    if not path.is_file():
        raise MissingFileError(
            f"search_runs: {run} has no logits.npz: it is not the folder of a search, or the "
            "search has not ended; the same search command resumes it."
        )
    return decoding.load_logits(path)


def _common_space(searches: Mapping[str, decoding.Logits]) -> _Space:
    spaces = {
        run: _Space(
            len(logits.beta), decoding.num_blocks_of(logits.alpha), logits.atrous or "separable"
        )
        for run, logits in searches.items()
    }
    first = next(iter(spaces))
    for run, space in spaces.items():
        if space != spaces[first]:
            raise FieldError(
                f"search_runs must be of one search space: {first} has {spaces[first]}, {run} has "
                f"{space}; select from each by itself."
            )
    return spaces[first]


def _paths(
    name: str,
    run: str,
    logits: decoding.Logits,
    cell: Any,
    atrous: str,
    fits: Callable[[tuple[int, ...]], bool] | None = None,
) -> Iterator[Candidate]:
    """The paths of a search with its cell, the most probable first.

    Their ranks are those among the paths that `fits`, as `best_paths` takes it, lets through.
    """
    log_beta = decoding.log_softmax_beta(logits.beta)
    for rank, (levels, log_prob) in enumerate(decoding.best_paths(log_beta, fits), start=1):
        provenance = {"search": {"run_dir": run, "rank": rank, "log_prob": log_prob}}
        architecture = Architecture(levels, cell, atrous, provenance)
        yield Candidate(f"{name}-{rank}", "searched", run, architecture, log_prob=log_prob)


def _samples(
    name: str, run: str, logits: decoding.Logits, first_seed: int, atrous: str
) -> Iterator[Candidate]:
    """Architectures drawn by the probabilities of a search."""
    for seed in itertools.count(first_seed):
        architecture, log_prob = sampling.sampled_architecture(logits, seed, atrous)
        provenance = {"search": {"run_dir": run, "seed": seed, "log_prob": log_prob}}
        architecture = dataclasses.replace(architecture, provenance=provenance)
        yield Candidate(f"{name}-{seed}", "searched", run, architecture, log_prob=log_prob)


class _Budget:
    """What candidates may cost, and the cheapest seen so far."""

    def __init__(
        self,
        options: config.SelectConfig,
        sizes: config.NetworkSizesConfig,
        network: Mapping[str, Any],
    ):
        self._limits = {
            name: getattr(options, f"max_{name}")
            for name in _WORDS
            if getattr(options, f"max_{name}") is not None
        }
        self._choose = options.fit_filter_multiplier
        self._multiplier = sizes.filter_multiplier
        self._network = dataclasses.asdict(sizes) | dict(network)
        del self._network["filter_multiplier"]
        self._cheapest: Candidate | None = None

    def of_paths(
        self, num_layers: int, cell: Any, atrous: str
    ) -> Callable[[tuple[int, ...]], bool] | None:
        """Returns which paths may keep the budget, as `decoding.best_paths` asks; None: all."""
        if not self._limits:
            return None
        multiplier = 1 if self._choose else self._multiplier
        costs = decoding.path_costs(
            num_layers, cell, atrous, [*self._limits], filter_multiplier=multiplier, **self._network
        )
        return functools.partial(costs.can_keep, [*self._limits.values()])

    def within(self, drawn: Iterator[Candidate]) -> Iterator[Candidate]:
        """Yields the candidates that keep the budget, with F and costs."""
        for candidate in itertools.islice(drawn, MAX_TRIES):
            multiplier = self._multiplier
            if self._choose:
                largest = accounting.largest_filter_multiplier(
                    candidate.architecture,
                    max_multi_adds=self._limits.get("multi_adds"),
                    max_params=self._limits.get("params"),
                    **self._network,
                )
                multiplier = max(largest, 1)
            counted = accounting.count(
                candidate.architecture, filter_multiplier=multiplier, **self._network
            )
            candidate = dataclasses.replace(
                candidate,
                filter_multiplier=multiplier,
                params=counted.params,
                multi_adds=counted.multi_adds,
            )
            if all(getattr(candidate, name) <= limit for name, limit in self._limits.items()):
                yield candidate
            elif self._cheapest is None or self._excess(candidate) < self._excess(self._cheapest):
                self._cheapest = candidate

    def _excess(self, candidate: Candidate) -> float:
        return max(getattr(candidate, name) / limit for name, limit in self._limits.items())

    def error(self) -> UserError:
        """The error where nothing was found."""
        cheapest = self._cheapest
        if cheapest is None:
            return UserError("there is no candidate: give search_runs or num_random.")
        limits = " and ".join(f"max_{name}={limit}" for name, limit in self._limits.items())
        needs = " and ".join(f"{getattr(cheapest, name)} {_WORDS[name]}" for name in self._limits)
        return UserError(
            f"no candidate keeps {limits}: the cheapest, {cheapest.name}, needs {needs} at "
            f"filter_multiplier={cheapest.filter_multiplier}. Allow more, or give a smaller "
            "multiplier, stem or head."
        )


class Table:
    """DIR/candidates.csv: a row for each candidate, and all that is known of it.

    It is written anew after every score, whole or not at all, and is what a selection that was
    killed resumes from.

    Args:
        directory: Folder of the selection.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self._directory = as_path(directory)
        self.path = self._directory / "candidates.csv"
        self.rows: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            text = io.StringIO(self.path.read_text("utf-8"), newline="")
            self.rows = {row["candidate"]: dict(row) for row in csv.DictReader(text)}

    def add(self, found: Sequence[Candidate], rungs: int) -> None:
        """Writes the architectures, then the table, in which they have no scores."""
        for candidate in found:
            candidate.architecture.save(self.architecture_file(candidate.name))
        scores = [f"{name}_{rung}" for rung in range(1, rungs + 1) for name in ("steps", *SCORES)]
        empty = dict.fromkeys(["inherited_miou", *scores, "cpu_seconds"], "")
        self.rows |= {candidate.name: candidate.row() | empty for candidate in found}
        self._write()

    def trained(self, score: str) -> list[tuple[Candidate, float | None]]:
        """Returns the candidates and their scores of the first rung; None where it diverged."""
        found = []
        for name, row in self.rows.items():
            counted = (int(row[key]) for key in ("filter_multiplier", "params", "multi_adds"))
            architecture = self.architecture(name)
            candidate = Candidate(name, row["kind"], row["source"], architecture, *counted)
            diverged = self.has_diverged(name, 1)
            found.append((candidate, None if diverged else self.score(name, score, 1)))
        return found

    def architecture_file(self, name: str) -> AnyPath:
        """Returns the file of a candidate's architecture."""
        return self._directory / "candidates" / f"{name}.json"

    def architecture(self, name: str) -> Architecture:
        """Reads the architecture of a candidate.

        Raises:
            UserError: If its file is not the one that the table was made with.
        """
        file = self.architecture_file(name)
        found = Architecture.load(file)
        if found.fingerprint != self.rows[name]["fingerprint"]:
            raise UserError(f"{file} has changed since {self.path} was written: name a new folder.")
        return found

    def set(self, name: str, **values: Any) -> None:
        """Sets values of a candidate and writes the table."""
        unknown = values.keys() - self.rows[name].keys()
        if unknown:
            raise ValueError(f"{self.path} has no columns {sorted(unknown)}")
        self.rows[name] |= values
        self._write()

    def score(self, name: str, score: str, rung: int) -> float | None:
        """Returns a score of a candidate on a rung, None where it has none."""
        text = self.rows[name][f"{score}_{rung}"]
        return None if text == "" else float(text)

    def set_diverged(self, name: str, rung: int, steps: int) -> None:
        """Gives a candidate the worst scores of a rung."""
        self.set(
            name,
            **{f"steps_{rung}": steps, **{f"{key}_{rung}": worst for key, worst in _WORST.items()}},
        )

    def has_diverged(self, name: str, rung: int) -> bool:
        """Tells whether the training of a candidate diverged on a rung."""
        return self.score(name, "loss", rung) == math.inf

    def best(self, names: Sequence[str], score: str, rung: int) -> list[str]:
        """Returns candidates by a score of a rung, the best first; of equal ones the earlier.

        Those that diverged come last, behind one that has the worst score too.
        """
        sign = 1 if score == "loss" else -1
        keys = {
            name: (self.has_diverged(name, rung), sign * self.score(name, score, rung))  # type: ignore[operator]
            for name in names
        }
        return sorted(names, key=keys.__getitem__)

    def _write(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(next(iter(self.rows.values()))), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: "" if value is None else value for key, value in row.items()}
            for row in self.rows.values()
        )
        write_text(self.path, text.getvalue())


def survivors(ranked: Sequence[str], reduction: int) -> list[str]:
    """Returns the part of a ranking that goes to the next rung: one in `reduction`, rounded up."""
    return list(ranked[: -(-len(ranked) // reduction)])


def steps_of_rung(rung: int, rungs: int, reduction: int, total_steps: int) -> int:
    """Returns the steps after which a rung compares: total / reduction**(rungs + 1 - rung)."""
    return -(-total_steps // reduction ** (rungs + 1 - rung))


def inherited_scores(
    run: str,
    architectures: Mapping[str, Architecture],
    training: config.TrainConfig,
    options: config.SelectConfig,
) -> Iterator[tuple[str, float | None]]:
    """Yields name and mIoU of architectures with the weights of a search, on the part held back.

    Args:
        run: Folder of the search.
        architectures: By name.
        training: Where the data are now.
        options: What is held back; the batches that estimate statistics.

    Raises:
        MissingFileError: If the run has no checkpoint.
    """
    from auto_deeplab_tf import searcher
    from auto_deeplab_tf.data import hold_back, pipeline

    try:
        search, settings, train = searcher.restored(
            run, data_dir=training.data_dir, cache_dir=training.cache_dir
        )
    except MissingFileError as error:
        raise MissingFileError(
            f"search_runs: {error} Give inherited_batches=0 to do without their scores."
        ) from None
    _, held_back = hold_back.of_source(train, options.hold_back, options.hold_back_groups)
    batches = pipeline.validation_batches(
        train, settings.batch_size, training.validation_images, held_back
    )
    statistics = pipeline.training_batches(train, **pipeline.batch_options(settings))
    for name, architecture in architectures.items():
        scores = search.model.score_decoded(
            architecture, statistics.take(options.inherited_batches), batches
        )
        yield name, scores["val_decoded_miou"]
