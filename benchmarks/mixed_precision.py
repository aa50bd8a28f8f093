"""Does a short search in mixed precision end at the architecture of the same search in float32?

    python -m benchmarks.mixed_precision

Protocol, written before the first run: generated scenes prepared at 64x128, crop 48x64, batch 4, L
3, B 2, F 2, 60 steps, alpha and beta updated from step 20 on, learning rates 0.05 and 0.1, seeds 0
to 2; each seed in float32, mixed_bfloat16 and mixed_float16, everything else alike. Reported for
each mixed run: whether the decoded levels equal those of float32, how many of the decoded edges
(source and operation) do, and both losses of the last epoch. No seed is left out. Each search is a
process of its own. Writes results/mixed_precision.csv.
"""

import csv
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from absl import app

from auto_deeplab_tf.architecture import Architecture
from benchmarks import rows as rows_lib

SEEDS = (0, 1, 2)
POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")
SEARCH = (
    "--dataset=scenes --image_size=64x128 --crop_size=48x64 --batch_size=4 --num_layers=3 "
    "--num_blocks=2 --filter_multiplier=2 --epochs=3 --steps_per_epoch=20 --arch_start_epoch=1 "
    "--learning_rate=0.05 --arch_learning_rate=0.1 --validation_images=4 "
    "--validation_every_epochs=3 --progress=none"
).split()


def search(folder: Path, seed: int, policy: str) -> tuple[Architecture, dict[str, str]]:
    """Runs one search; returns what it decoded and the metrics of its last epoch."""
    run_dir = folder / f"{policy}_{seed}"
    command = [sys.executable, "-m", "auto_deeplab_tf.search", *SEARCH]
    command += [f"--run_dir={run_dir}", f"--seed={seed}", f"--dtype_policy={policy}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with (run_dir / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return Architecture.load(run_dir / "architecture.json"), list(csv.DictReader(file))[-1]


def compare(seed: int, policy: str, ours: Any, exact: Architecture) -> dict[str, Any]:
    """The row of one search."""
    architecture, metrics = ours
    edges = [
        (set(block), set(other)) for block, other in zip(architecture.cell, exact.cell, strict=True)
    ]
    return {
        "seed": seed,
        "dtype_policy": policy,
        "same_levels": architecture.levels == exact.levels,
        "same_edges": sum(len(one & other) for one, other in edges),
        "edges": sum(len(other) for _, other in edges),
        "loss": round(float(metrics["loss"]), 4),
        "arch_loss": round(float(metrics["arch_loss"]), 4),
    }


def main(_: list[str]) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            found = {policy: search(Path(folder), seed, policy) for policy in POLICIES}
            for policy in POLICIES:
                rows.append(compare(seed, policy, found[policy], found["float32"][0]))
                print(rows[-1], flush=True)
    rows_lib.write(rows_lib.RESULTS / "mixed_precision.csv", rows)


if __name__ == "__main__":
    app.run(main)
