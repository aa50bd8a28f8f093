"""Reruns the measurements that fit in ten minutes: search_step.csv and large_set.csv of
benchmarks/results.

    python -m benchmarks.run_all

Every row names its command, the commit, the processor and the versions. Run it on a machine that
does nothing else.
"""

import csv
import importlib.metadata
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import app

from benchmarks import process
from benchmarks import rows as rows_lib

RESULTS = Path(__file__).parent / "results" / "search_step.csv"

# The paper's supernet at two crops; then the fused formulation beside the plain one, where that one
# can be run.
SETTINGS = (
    "--crop_size=65 --batch_size=2 --threads=1 --iterations=5",
    "--crop_size=129 --batch_size=2 --threads=1 --iterations=3",
    "--crop_size=321 --batch_size=2 --threads=2 --iterations=1",
    "--crop_size=65 --batch_size=2 --threads=1 --num_layers=2 --iterations=5",
    "--crop_size=65 --batch_size=2 --threads=1 --num_layers=2 --iterations=5 --formulation=plain",
)
LARGE_SETS = ("--num_examples=1000", "--num_examples=1000000")


def measure(setting: str) -> dict[str, Any]:
    """Runs one setting in a process of its own; returns its row."""
    command = ["-m", "benchmarks.search_step", *setting.split(), "--json"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"python {' '.join(command)} failed:\n{done.stderr}")
    return {
        "command": f"python {' '.join(command)}",
        **json.loads(done.stdout),
        **machine(),
    }


def machine() -> dict[str, str]:
    """What a figure depends on beside its command."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()
    versions = [
        f"{name} {importlib.metadata.version(name)}" for name in ("tensorflow", "keras", "numpy")
    ]
    return {"commit": commit, "cpu": process.cpu_model(), "versions": ", ".join(versions)}


def write(rows: list[dict[str, Any]], path: Path = RESULTS) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text.getvalue(), encoding="utf-8")


def main(_: list[str]) -> None:
    rows = []
    for setting in SETTINGS:
        rows.append(measure(setting))
        row = rows[-1]
        print(
            f"{setting}\n    {row['seconds_per_iteration']} s an iteration, "
            f"{row['peak_rss_mib']} MiB, first after {row['seconds_to_first_iteration']} s",
            flush=True,
        )
    write(rows)
    print(f"written: {RESULTS}")
    measure_large_sets()


def measure_large_sets() -> None:
    """Replaces the rows of `benchmarks.large_set`."""
    path = rows_lib.RESULTS / "large_set.csv"
    for setting in LARGE_SETS:
        rows_lib.put(path, rows_lib.measure("benchmarks.large_set", setting))
    print(f"written: {path}")


if __name__ == "__main__":
    app.run(main)
