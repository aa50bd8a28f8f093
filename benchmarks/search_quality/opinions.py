"""What a search thinks of the networks that were trained.

Of each search and each network, into opinions.csv, for `--report`: the log-probability of its cell
under alpha (of the operations on its edges) and of its path under beta, and its mIoU with the
supernet's weights on images of train_b, whose labels these weights have not seen.

Of each checkpoint of a search, into agreement.csv: Kendall's tau of these log-probabilities with
the losses (negated) of the random networks of a split after their first rung. Beside it, for
`--report`: what a regression on some of these losses says of the others.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import scipy.stats

from auto_deeplab_tf import decoding, predictor
from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.sampling import random_architecture
from auto_deeplab_tf.search_space import OPERATIONS
from benchmarks.search_quality.report import Rows

KEY = ("search", "architecture")
COLUMNS = ("log_prob_cell", "log_prob_path", "inherited_miou")
STATISTICS_BATCHES = 4
SCORED_IMAGES = 40
TAUGHT, CHOICES = (8, 12, 16), 40


def log_probs(logits: decoding.Logits, architecture: Architecture) -> tuple[float, float]:
    """Returns the log-probabilities of a cell, `none` left aside, and of a path."""
    alpha, beta = decoding.one_hot(architecture)
    alpha[:, OPERATIONS.index("none")] = 0.0
    cell = np.sum(decoding.log_softmax_alpha(logits.alpha)[alpha == 1.0])
    path = np.sum(decoding.log_softmax_beta(logits.beta)[beta == 1.0])
    return float(cell), float(path)


def of_search(
    run_dir: pathlib.Path, networks: Mapping[str, Architecture], **places: str
) -> Iterator[dict[str, Any]]:
    """Yields a row for each network, by its fingerprint.

    Args:
        run_dir: Folder of a search that has ended.
        networks: By name.
        **places: `data_dir` and `cache_dir` where they are not the run's.
    """
    from auto_deeplab_tf import searcher
    from auto_deeplab_tf.data import pipeline, split

    search, settings, train = searcher.restored(run_dir, **places)
    _, train_b = split.source_halves(train)
    images = pipeline.validation_batches(train, settings.batch_size, SCORED_IMAGES, train_b)
    statistics = pipeline.training_batches(train, **pipeline.batch_options(settings))
    logits = decoding.load_logits(run_dir / "logits.npz")
    for name, architecture in networks.items():
        score = search.model.score_decoded(
            architecture, statistics.take(STATISTICS_BATCHES), images
        )
        row = {"search": run_dir.name, "architecture": architecture.fingerprint, "name": name}
        values = (*log_probs(logits, architecture), score["val_decoded_miou"])
        yield row | dict(zip(COLUMNS, values, strict=True))


def first_losses(candidates: Rows, split: str) -> dict[Architecture, float]:
    """Returns the random networks of a split and their losses of the first rung.

    Args:
        candidates: Rows of candidates.csv.
        split: `tuning` or `reported`. Networks of half the cost are left aside.
    """
    return {_drawn(row): float(row["loss_1"]) for row in _random(candidates, split)}


def prediction(candidates: Rows, split: str) -> str:
    """Returns how `select --num_predicted` agrees with random networks that it has not learnt from.

    The regression is taught by some of them, chosen at random `CHOICES` times; the mean correlation
    of what it says of the others with their losses of the first rung. Empty where they are few.

    Args:
        candidates: See `first_losses`; likewise:
        split: See there.
    """
    found = _random(candidates, split)
    losses = np.array([float(row["loss_1"]) for row in found])
    features = np.array(
        [
            predictor.features(_drawn(row), int(row["filter_multiplier"]), int(row["params"]))
            for row in found
        ]
    )
    parts = []
    for taught in TAUGHT if len(found) > max(TAUGHT) + 2 else ():
        generator, correlations = np.random.default_rng(0), []
        for _ in range(CHOICES):
            learnt, others = np.split(generator.permutation(len(found)), [taught])
            said = predictor.predicted_scores(features[learnt], losses[learnt], features[others])
            correlations.append(np.corrcoef(said, losses[others])[0, 1])
        parts.append(f"{np.mean(correlations):.2f} from {taught}")
    if not parts:
        return ""
    title = f"Prediction, {split} split, {len(found)} random networks"
    return f"{title}: correlation with the others {', '.join(parts)}"


def _random(candidates: Rows, split: str) -> Rows:
    """The rows of a split's random networks, one of each."""
    found = {
        row["candidate"]: row
        for row in candidates
        if row["selection"].startswith(f"{split}-")
        and "random_half" not in row["selection"]
        and row["kind"] == "random"
    }
    return list(found.values())


def _drawn(row: dict[str, str]) -> Architecture:
    return random_architecture(int(row["candidate"].removeprefix("random-")))


def agreement(
    run_dir: pathlib.Path, losses: Mapping[Architecture, float], **places: str
) -> Iterator[dict[str, Any]]:
    """Yields a row for each checkpoint; before alpha learns, its noise at the start is asked.

    Args:
        run_dir: Folder of a search.
        losses: See `first_losses`.
        **places: See `of_search`.
    """
    from auto_deeplab_tf import searcher

    search, _, _ = searcher.restored(run_dir, **places)
    checkpoints = search.checkpoints(run_dir / "checkpoints")
    good = [-loss for loss in losses.values()]
    for step in checkpoints.steps:
        checkpoints.restore(step)
        logits = decoding.Logits(*search.logits, None, None)
        row: dict[str, Any] = {"search": run_dir.name, "step": step, "networks": len(losses)}
        opinions = np.array([log_probs(logits, network) for network in losses])
        for name, opinion in zip(("cell", "path"), opinions.T, strict=True):
            tau = scipy.stats.kendalltau(opinion, good)
            row |= {f"tau_{name}": f"{tau.statistic:.3f}", f"p_{name}": f"{tau.pvalue:.3f}"}
        yield row
