"""What a stem and a head are worth in small networks: trainings, latencies and their comparison.

Each design of `DESIGNS` is trained with each architecture at each budget, on the tuning split, into
`ends.csv`. Of two designs the better one has the higher mean mIoU, at equal Multi-Adds and at equal
latency, which is read off between the two budgets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats

from auto_deeplab_tf.sampling import random_architecture
from benchmarks import process
from benchmarks.search_quality import population
from benchmarks.search_quality.population import DESIGN
from benchmarks.search_quality.report import Rows, grouped
from benchmarks.search_quality.trainings import Training

KIND = "ends"
STEPS = 600
NETWORKS = range(100, 103)
BUDGETS = (DESIGN.multi_adds // 2, DESIGN.multi_adds)
DESIGNS = (
    DESIGN,
    dataclasses.replace(DESIGN, stem_channels=(8, 8, 16)),
    dataclasses.replace(DESIGN, stem_channels=(16, 16, 32)),
    dataclasses.replace(DESIGN, stem_channels=(24, 24, 48)),
    dataclasses.replace(DESIGN, head_channels=8, decoder_channels=4),
    dataclasses.replace(DESIGN, head_channels=32, decoder_channels=16),
)
LATENCY = "latency_ms"
ROUNDS, CALLS = 7, 15


def trainings() -> list[Training]:
    """Returns all of them, architecture by architecture."""
    return [
        Training(
            KIND,
            _name(number, design),
            "tuning",
            random_architecture(number),
            0,
            STEPS,
            design=design,
        )
        for number in NETWORKS
        for each in DESIGNS
        for design in (dataclasses.replace(each, multi_adds=budget) for budget in BUDGETS)
    ]


def _name(number: int, design: population.Design) -> str:
    stem, *head = (text.replace(",", "_") for text in design.flags.values())
    return "-".join([f"random_{number}", f"{design.multi_adds // 10**6}M", stem, *head])


def latencies(rows: Rows) -> Rows:
    """Returns the rows with the latency of each network, in milliseconds of this process.

    That is from one image to its class ids. All networks take turns: the median of some calls of
    each, then the median of some such rounds.

    Args:
        rows: Of `ends.csv`.
    """
    import tensorflow as tf

    image = tf.random.uniform([1, *population.TASK["input_size"], 3], 0, 255)
    planned = {training.name: training for training in trainings()}
    calls = [_forward(planned[row["name"]], image) for row in rows]
    rounds = [[process.median_seconds(call, CALLS) for call in calls] for _ in range(ROUNDS)]
    found = 1000 * np.median(rounds, axis=0)
    return [row | {LATENCY: f"{ms:.3f}"} for row, ms in zip(rows, found, strict=True)]


def _forward(training: Training, image: Any) -> Callable[[], Any]:
    import tensorflow as tf

    from auto_deeplab_tf.nn.network import build_network
    from auto_deeplab_tf.segmenter import Segmenter

    multiplier = population.filter_multiplier(training.architecture, training.design)
    classes = population.TASK["num_classes"]
    channels = training.design.channels
    model = Segmenter(build_network(training.architecture, classes, multiplier, **channels))
    forward = tf.function(model.class_ids, autograph=False)
    return lambda: forward(image).numpy()


def report(rows: Rows) -> str:
    """Returns the comparison of the designs, from `ends.csv`; nothing without rows.

    Compared are the architectures that all designs were trained with. The latency of the comparison
    lies in the middle between those of the first design's budgets.
    """
    each = len(DESIGNS) * len(BUDGETS)
    whole = [g for g in grouped(rows, lambda row: row["architecture"]).values() if len(g) == each]
    if not whole:
        return ""
    compared = [row for group in whole for row in group]
    timed = all(row.get(LATENCY) for row in compared)
    header = (
        f"Stems and heads, mean mIoU of {len(whole)} architectures after {STEPS} steps at each "
        "budget; difference to the first (standard error)"
    )
    lines, latency, first = [], None, None
    for (stem, head, decoder), of_design in grouped(compared, _channels).items():
        scores = {(r["architecture"], _budget(r)): float(r["val_miou"]) for r in of_design}
        line = f"stem {stem:9} head {head:>2} decoder {decoder:>2}"
        mious, times = [], []
        for budget, group in sorted(grouped(of_design, _budget).items()):
            mious.append(np.mean([float(row["val_miou"]) for row in group]))
            line += f"   {budget // 10**6:3} M {mious[-1]:.3f}"
            if timed:
                times.append(np.mean([float(row[LATENCY]) for row in group]))
                line += f" in {times[-1]:.2f} ms"
        first = first or scores
        if scores is not first:
            differences = [score - first[pair] for pair, score in scores.items()]
            line += f"   {np.mean(differences):+.4f} ({scipy.stats.sem(differences):.4f})"
        if timed:
            latency = latency or np.mean(times)
            slope = (mious[1] - mious[0]) / (times[1] - times[0])
            line += f"   {mious[0] + slope * (latency - times[0]):.3f}"
        lines.append(line)
    if timed:
        header += f"; at a latency of {latency:.2f} ms"
    return "\n".join([header, *lines])


def _channels(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in DESIGN.channels)


def _budget(row: dict[str, str]) -> int:
    """The budget that a row's Multi-Adds are nearest to."""
    return min(BUDGETS, key=lambda budget: abs(budget - int(row["multi_adds"])))
