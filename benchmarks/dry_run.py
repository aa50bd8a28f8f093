"""Does a search need what `search --dry_run` says?

    python -m benchmarks.dry_run

Protocol: the constants of `auto_deeplab_tf/training/prediction.py` were fitted, on this machine, to
the rows of search_step.csv and, after a first trial in which they held at 3 of 4, to those of that
trial, which were these:

    --crop_size=97 --batch_size=4 --threads=2 --num_layers=6 --num_blocks=3
    --crop_size=161 --batch_size=2 --threads=2
    --crop_size=129 --batch_size=4 --threads=2 --num_layers=8 --filter_multiplier=4 --remat=false
    --crop_size=65 --batch_size=8 --threads=1 --num_layers=10

`SETTINGS` were chosen after the fit and before any of them was run, and none is among those rows. A
prediction holds where seconds and peak memory are both within 25 % of what is then measured. Each
setting is a process of its own; rows into results/dry_run.csv.
"""

from typing import Any

from absl import app

from benchmarks import rows

RESULTS = rows.RESULTS / "dry_run.csv"
TOLERANCE = 0.25
SETTINGS = (
    "--crop_size=113 --batch_size=2 --threads=2 --num_layers=9 --num_blocks=4",
    "--crop_size=193 --batch_size=2 --threads=2",
    "--crop_size=97 --batch_size=4 --threads=1 --num_layers=8 --remat=false",
    "--crop_size=81 --batch_size=8 --threads=2 --filter_multiplier=4",
)


def ratios(row: dict[str, Any]) -> tuple[float, float]:
    """Predicted over measured: seconds of an iteration, peak memory."""
    return (
        float(row["predicted_seconds"]) / float(row["seconds_per_iteration"]),
        float(row["predicted_rss_mib"]) / float(row["peak_rss_mib"]),
    )


def holds(row: dict[str, Any]) -> bool:
    return all(abs(ratio - 1) <= TOLERANCE for ratio in ratios(row))


def main(_: list[str]) -> None:
    for setting in SETTINGS:
        row = rows.measure("benchmarks.search_step", f"{setting} --iterations=3 --predict")
        rows.put(RESULTS, row)
        seconds, memory = ratios(row)
        print(f"{setting}: predicted / measured seconds {seconds:.2f}, memory {memory:.2f}")


if __name__ == "__main__":
    app.run(main)
