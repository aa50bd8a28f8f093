"""Rows of benchmarks/results: a measurement in a process of its own, with all it depends on."""

import csv
import importlib.metadata
import io
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from auto_deeplab_tf.files import write_text
from benchmarks import process

RESULTS = Path(__file__).parent / "results"


def command_of(module: str, setting: str) -> str:
    """The command of a row, as a reader would type it."""
    return f"python -m {module} {setting} --json"


def run(command: str, timeout_seconds: float | None = None) -> str:
    """Runs `python ...` by this interpreter; returns what it prints.

    Raises:
        RuntimeError: where it fails.
        subprocess.TimeoutExpired: where it takes longer.
    """
    arguments = [sys.executable, *shlex.split(command)[1:]]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=timeout_seconds)
    if done.returncode:
        raise RuntimeError(f"{command} failed ({done.returncode}):\n{done.stderr[-2000:]}")
    return done.stdout


def measure(module: str, setting: str, timeout_seconds: float | None = None) -> dict[str, Any]:
    """Runs one setting in a process of its own, as `run` does; returns its row."""
    command = command_of(module, setting)
    return {"command": command, **json.loads(run(command, timeout_seconds)), **machine()}


def show(result: dict[str, Any], as_json: bool) -> None:
    """Prints what a measurement found: one JSON object on one line, or a line each."""
    if as_json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:28} {value}")


def machine() -> dict[str, str]:
    """What a figure depends on beside its command."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()
    versions = [
        f"{name} {importlib.metadata.version(name)}" for name in ("tensorflow", "keras", "numpy")
    ]
    return {"commit": commit, "cpu": process.cpu_model(), "versions": ", ".join(versions)}


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a file; none where it is not there."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows with all their columns; what a row lacks stays empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(exist_ok=True)
    write_text(path, text.getvalue())


def put(path: Path, row: dict[str, Any], key: str = "command") -> None:
    """Writes a row in the place of the one with the same key, or behind the others."""
    rows: list[dict[str, Any]] = list(read(path))
    places = [index for index, old in enumerate(rows) if old[key] == row[key]]
    if places:
        rows[places[0]] = row
    else:
        rows.append(row)
    write(path, rows)
