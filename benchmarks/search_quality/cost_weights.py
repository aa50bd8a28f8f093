"""What --cost_weight trades: small searches of the tuning split, one for each weight.

They are search.flags with a smaller trellis and cell, so that five take half an hour.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from auto_deeplab_tf import accounting
from auto_deeplab_tf.architecture import Architecture
from benchmarks import rows
from benchmarks.search_quality import methods, population

SEED = 100
WEIGHTS = (0.0, 0.03, 0.1, 0.3, 1.0)
SMALLER = "--num_layers=6 --num_blocks=3 --crop_size=65x97 --epochs=30 --arch_start_epoch=10"
FILTER_MULTIPLIER = 8  # Of the decoded networks that are counted.
SEEN = ("expected_cost", "alpha_entropy", "arch_loss", "val_miou", "val_decoded_miou")


def left(
    done: list[dict[str, str]], folders: methods.Folders, core: int | None
) -> Iterator[dict[str, Any]]:
    """Runs the searches that have no row; yields the rows.

    Args:
        done: Rows that are there.
        folders: Of the tuning split.
        core: The core that all processes are bound to.
    """
    there = {float(row["cost_weight"]) for row in done}
    for weight in WEIGHTS:
        if weight in there:
            continue
        run_dir = folders.work / "cost_weights" / str(weight)
        flags = [*SMALLER.split(), f"--cost_weight={weight}"]
        seconds = methods.search(run_dir, SEED, folders, core, flags)
        last = rows.read(run_dir / "metrics.csv")[-1]
        counted = accounting.count(
            Architecture.load(run_dir / "architecture.json"),
            filter_multiplier=FILTER_MULTIPLIER,
            **population.SETTINGS,
        )
        yield {
            "cost_weight": weight,
            **{name: last[name] for name in SEEN},
            "decoded_multi_adds": counted.multi_adds,
            "seconds": round(seconds),
            "flags": SMALLER,
            "commit": rows.machine()["commit"],
        }
