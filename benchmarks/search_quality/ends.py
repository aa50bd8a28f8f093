"""What a stem and a head are worth in small networks: trainings and their comparison.

Each design of `DESIGNS` is trained with each architecture at each budget, on the tuning split, into
`ends.csv`. Of two designs the better one has the higher mean mIoU, at equal Multi-Adds and at equal
latency, which is read off between the two budgets.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.stats

from auto_deeplab_tf.sampling import random_architecture
from benchmarks.search_quality import latency, population
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
    timed = all(row.get(latency.COLUMN) for row in compared)
    header = (
        f"Stems and heads, mean mIoU of {len(whole)} architectures after {STEPS} steps at each "
        "budget; difference to the first (standard error)"
    )
    designs = grouped(compared, _channels)
    scores = [
        {(row["architecture"], _budget(row)): float(row["val_miou"]) for row in of_design}
        for of_design in designs.values()
    ]
    mious = [_at_budgets(of_design, "val_miou") for of_design in designs.values()]
    times = [_at_budgets(of_design, latency.COLUMN) for of_design in designs.values() if timed]
    middle = np.mean(times[0]) if timed else 0.0
    lines = []
    for index, (stem, head, decoder) in enumerate(designs):
        line = f"stem {stem:9} head {head:>2} decoder {decoder:>2}"
        for place, budget in enumerate(BUDGETS):
            line += f"   {budget // 10**6:3} M {mious[index][place]:.3f}"
            if timed:
                line += f" in {times[index][place]:.2f} ms"
        if index:
            differences = [score - scores[0][pair] for pair, score in scores[index].items()]
            line += f"   {np.mean(differences):+.4f} ({scipy.stats.sem(differences):.4f})"
        if timed:
            slope = np.diff(mious[index]) / np.diff(times[index])
            line += f"   {mious[index][0] + slope.item() * (middle - times[index][0]):.3f}"
        lines.append(line)
    if timed:
        header += f"; at a latency of {middle:.2f} ms"
    return "\n".join([header, *lines])


def _at_budgets(rows: Rows, column: str) -> list[float]:
    """The mean of a column at each of `BUDGETS`."""
    of_budget = grouped(rows, _budget)
    return [float(np.mean([float(row[column]) for row in of_budget[b]])) for b in BUDGETS]


def _channels(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in DESIGN.channels)


def _budget(row: dict[str, str]) -> int:
    """The budget that a row's Multi-Adds are nearest to."""
    return min(BUDGETS, key=lambda budget: abs(budget - int(row["multi_adds"])))
