"""Does a short search in mixed precision end at the architecture of the same search in float32?

    python -m benchmarks.mixed_precision

Protocol, written before the first run: generated scenes prepared at 64x128, crop 48x64, batch 4, L
3, B 2, F 2, 60 steps, alpha and beta updated from step 20 on, learning rates 0.05 and 0.1, `SEEDS`;
each seed in float32, mixed_bfloat16 and mixed_float16, everything else alike. The yardstick is
float32 in one graph (`--step_mode=traced`): the same arithmetic, rounded in another order. Reported
for each: whether the decoded levels equal those of float32, how many of the decoded edges (source
and operation) do, and both losses of the last epoch. No seed is left out.

A mixed policy is said to "end where float32 does" where over all seeds it keeps at least as many
levels and as many edges as the yardstick does; else that is "not shown".

Each search is a process of its own. Writes results/mixed_precision.csv; seeds that are there
already are not repeated.
"""

import csv
import tempfile
from pathlib import Path
from typing import Any

from absl import app

from auto_deeplab_tf.architecture import Architecture
from benchmarks import rows

SEEDS = (0, 1, 2, 3, 4)
EXACT, YARDSTICK = "float32", "float32, traced"
VARIANTS = {
    EXACT: "--dtype_policy=float32",
    YARDSTICK: "--dtype_policy=float32 --step_mode=traced",
    "mixed_bfloat16": "--dtype_policy=mixed_bfloat16",
    "mixed_float16": "--dtype_policy=mixed_float16",
}
RESULTS = rows.RESULTS / "mixed_precision.csv"
SEARCH = (
    "--dataset=scenes --image_size=64x128 --crop_size=48x64 --batch_size=4 --num_layers=3 "
    "--num_blocks=2 --filter_multiplier=2 --epochs=3 --steps_per_epoch=20 --arch_start_epoch=1 "
    "--learning_rate=0.05 --arch_learning_rate=0.1 --validation_images=4 "
    "--validation_every_epochs=3 --progress=none"
)


def search(folder: Path, seed: int, variant: str) -> tuple[Architecture, dict[str, str]]:
    """Runs one search; returns what it decoded and the metrics of its last epoch."""
    run_dir = folder / f"{list(VARIANTS).index(variant)}_{seed}"
    rows.run(
        f"python -m auto_deeplab_tf.search {SEARCH} {VARIANTS[variant]} --run_dir={run_dir} "
        f"--seed={seed}"
    )
    with (run_dir / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return Architecture.load(run_dir / "architecture.json"), list(csv.DictReader(file))[-1]


def compare(seed: int, variant: str, ours: Any, exact: Architecture) -> dict[str, Any]:
    """The row of one search."""
    architecture, metrics = ours
    edges = [
        (set(block), set(other)) for block, other in zip(architecture.cell, exact.cell, strict=True)
    ]
    return {
        "seed": seed,
        "variant": variant,
        "same_levels": architecture.levels == exact.levels,
        "same_edges": sum(len(one & other) for one, other in edges),
        "edges": sum(len(other) for _, other in edges),
        "loss": round(float(metrics["loss"]), 4),
        "arch_loss": round(float(metrics["arch_loss"]), 4),
    }


def verdicts(found: list[dict[str, str]]) -> list[str]:
    """One line for the yardstick and for each mixed policy, by the rule of the protocol."""
    kept, lines = {}, []
    for variant in list(VARIANTS)[1:]:
        of_variant = [row for row in found if row["variant"] == variant]
        kept[variant] = (
            sum(str(row["same_levels"]) == "True" for row in of_variant),
            sum(int(row["same_edges"]) for row in of_variant),
        )
        edges = sum(int(row["edges"]) for row in of_variant)
        line = (
            f"{variant}: the levels of {kept[variant][0]} of {len(of_variant)} seeds and "
            f"{kept[variant][1]} of {edges} edges are those of {EXACT}"
        )
        if variant != YARDSTICK:
            pairs = zip(kept[variant], kept[YARDSTICK], strict=True)
            ends_there = all(ours >= yardstick for ours, yardstick in pairs)
            line += f": {'it ends' if ends_there else 'not shown that it ends'} where float32 does"
        lines.append(line)
    return lines


def main(_: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            before = rows.read(RESULTS)
            if any(row["seed"] == str(seed) for row in before):
                continue
            found = {variant: search(Path(folder), seed, variant) for variant in VARIANTS}
            compared = [compare(seed, v, found[v], found[EXACT][0]) for v in VARIANTS]
            machine = rows.machine()
            rows.write(RESULTS, [*before, *({**row, **machine} for row in compared)])
            print(*compared, sep="\n", flush=True)
    print("\n".join(verdicts(rows.read(RESULTS))))


if __name__ == "__main__":
    app.run(main)
