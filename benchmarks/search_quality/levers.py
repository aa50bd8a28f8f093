"""Levers of PROTOCOL.md: what a search with one setting changed proposes, on the tuning split.

A proposal is a draw by the search's alpha and beta, with the F that the budget pays. It is trained
for an eighth of a training; the mean loss of these steps is what `select` ranks by. The proposals
of each lever stand against as many random draws, in `levers.csv`, and so do those of a regression
on random draws (`select --num_predicted`).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks import rows
from benchmarks.search_quality import methods, population

SEED = 100
DRAWS = 8
# Flags of `select`. A prediction learns from other random draws than those that stand beside.
DRAWN = {
    "random": [f"--num_random={DRAWS}", f"--random_seed={SEED}"],
    "random_half": [
        f"--num_random={DRAWS}",
        f"--random_seed={SEED}",
        f"--max_multi_adds={population.MULTI_ADDS // 2}",
    ],
    "predicted": [
        f"--num_random={2 * DRAWS}",
        f"--random_seed={SEED + DRAWS}",
        f"--num_predicted={DRAWS}",
    ],
}
_ADAM = " ".join(methods.ADAM)
LEVERS = {
    "none": "",
    "sampled_paths": "--sampled_paths=2 --epochs=105 --arch_start_epoch=35",
    "adam": _ADAM,
    "adam_fast_alpha": f"{_ADAM} --arch_learning_rate=0.06",
    "adam_no_decay": f"{_ADAM} --arch_weight_decay=0",
}


def left(
    done: list[dict[str, str]], folders: methods.Folders, steps: int, core: int | None
) -> Iterator[dict[str, Any]]:
    """Runs what has no row yet; yields the rows.

    Args:
        done: Rows that are there.
        folders: Of the tuning split.
        steps: Length of a whole training.
        core: The core that all processes are bound to.
    """
    there = {row["lever"] for row in done}
    for name, chosen in DRAWN.items():
        if name not in there:
            folder = folders.work / "searches" / f"{folders.split}-{name}-{steps}"
            candidates = methods.first_rung(folder, chosen, steps, folders, core)
            # Of a prediction the draws that it has learnt from do not count.
            kind = "predicted" if name == "predicted" else "random"
            proposed = [row for row in candidates if row["kind"] == kind]
            seconds = sum(float(row["cpu_seconds"]) for row in candidates)
            yield _row(name, "", proposed) | {"seconds": round(seconds)}
    for name, flags in LEVERS.items():
        if name in there:
            continue
        search = folders.work / "searches" / f"{folders.split}-{name}"
        seconds = methods.search(search, SEED, folders, core, flags.split())
        chosen = [f"--search_runs={search}", f"--samples_per_search={DRAWS}"]
        folder = search.with_name(f"{search.name}-{steps}")
        candidates = methods.first_rung(folder, chosen, steps, folders, core)
        last = rows.read(search / "metrics.csv")[-1]
        seen = ("alpha_entropy", "beta_entropy", "val_miou", "val_decoded_miou")
        yield _row(name, flags, candidates) | {
            "seconds": round(seconds),
            **{key: last[key] for key in seen},
        }


def _row(name: str, flags: str, candidates: list[dict[str, str]]) -> dict[str, Any]:
    """The row of a lever, from the rows of its candidates; the best path stands by itself."""
    drawn = [row for row in candidates if "-path-" not in row["candidate"]]
    losses = [float(row["loss_1"]) for row in drawn]
    row = {
        "lever": name,
        "flags": flags,
        "loss": statistics.mean(losses),
        "loss_deviation": statistics.stdev(losses),
        "filter_multiplier": statistics.mean(int(row["filter_multiplier"]) for row in drawn),
        "commit": rows.machine()["commit"],
    }
    for path in (row for row in candidates if "-path-" in row["candidate"]):
        row |= {"decoded_loss": float(path["loss_1"])}
        row |= {"decoded_filter_multiplier": int(path["filter_multiplier"])}
    return row
