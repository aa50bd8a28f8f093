"""Full trainings of PROTOCOL.md: a process of `auto_deeplab_tf.train` and a row of results each.

A training that was killed resumes from its checkpoint; one that has its row is not repeated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.process import run_command
from auto_deeplab_tf.search_space import operation
from benchmarks import rows
from benchmarks.search_quality import population

FOLDER = pathlib.Path(__file__).parent
RESULTS = FOLDER / "results.csv"
RECIPE = FOLDER / "recipe.flags"
# The second set of PROTOCOL.md, in place of the recipe's CamVid.
SCENES = ("--dataset=scenes", "--image_size=64x128", "--crop_size=64x128")
PARTS = 8  # Epochs of a training; after each, the mean training loss and val mIoU are on record.
RESAMPLES = 1000

_KEY = ("kind", "name", "split", "seed", "steps")


@dataclasses.dataclass(frozen=True)
class Training:
    """One full training.

    Args:
        kind: `random`, `searched`, `random_search`, `predicted`, `published`, or `trial` (tuning
            split only).
        name: The network among those of its kind.
        split: `tuning` or `reported` of CamVid, or `scenes`.
        architecture: What is trained.
        seed: Seed of weights, batches and augmentation.
        steps: Number of steps, a multiple of `PARTS`.
        search_seconds: CPU seconds spent to find the architecture.
        design: Stem, head and Multi-Adds. Networks of one kind that differ in it have other names.
    """

    kind: str
    name: str
    split: str
    architecture: Architecture
    seed: int
    steps: int
    search_seconds: int = 0
    design: population.Design = population.DESIGN

    @property
    def key(self) -> tuple[str, ...]:
        """What a row of it is found by."""
        return tuple(str(getattr(self, name)) for name in _KEY)


def split_folder(split: str, data_dir: pathlib.Path, work_dir: pathlib.Path) -> pathlib.Path:
    """Returns the folder of a split of CamVid.

    `tuning` is made of links to images of train, as `population.tuning_split` parts them.
    """
    if split == "reported":
        return data_dir
    folder = work_dir / split
    parts = population.tuning_split(file.stem for file in (data_dir / "trainannot").iterdir())
    for kind in ("", "annot"):
        for file in sorted((data_dir / f"train{kind}").iterdir()):
            if file.stem in parts:
                link = folder / (parts[file.stem] + kind) / file.name
                link.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileExistsError):
                    link.symlink_to(file.resolve())
    return folder


def data_flags(split: str, data_dir: pathlib.Path, work_dir: pathlib.Path) -> Sequence[str]:
    """Returns the flags of `train` that name the images of a split."""
    return (
        SCENES if split == "scenes" else [f"--data_dir={split_folder(split, data_dir, work_dir)}"]
    )


def train(
    training: Training, data_dir: pathlib.Path, work_dir: pathlib.Path, core: int | None
) -> dict[str, Any]:
    """Trains, or resumes, in a process of its own; returns the row.

    Args:
        training: What to train.
        data_dir: CamVid.
        work_dir: Where run folders, records and links lie.
        core: The core that the process is bound to; None for all.
    """
    run_dir = work_dir / "runs" / "-".join(training.key)
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    file = work_dir / "architectures" / f"{training.architecture.fingerprint}.json"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        training.architecture.save(file)
    cost = population.cost(training.architecture, training.design)
    command = [
        "python",
        "-m",
        "auto_deeplab_tf.train",
        f"--flagfile={RECIPE.relative_to(FOLDER.parents[1])}",
        f"--architecture={file}",
        f"--filter_multiplier={cost['filter_multiplier']}",
        *(f"--{name}={value}" for name, value in training.design.flags.items()),
        f"--seed={training.seed}",
        f"--steps={training.steps}",
        f"--steps_per_epoch={training.steps // PARTS}",
        *data_flags(training.split, data_dir, work_dir),
        f"--cache_dir={work_dir / 'cache'}",
        f"--run_dir={run_dir}",
    ]
    log = work_dir / "runs" / f"{run_dir.name}.seconds"
    seconds = run(command, log, core)
    epochs = rows.read(run_dir / "metrics.csv")
    losses = np.array([float(epoch["loss"]) for epoch in epochs])
    mious = [float(epoch["val_miou"]) for epoch in epochs]
    matrices = run_dir / "confusion.npy"
    if not matrices.exists():
        module = "benchmarks.search_quality.image_matrices"
        run(["python", "-m", module, str(run_dir), str(matrices)], log, core)
    low, high = bootstrap(np.load(matrices))
    parts = {"1_8": 1, "1_4": 2, "1_2": 4}
    row = {name: getattr(training, name) for name in _KEY}
    row |= {"architecture": training.architecture.fingerprint, **training.design.flags, **cost}
    row |= {
        "levels": "".join(map(str, training.architecture.levels)),
        "num_skips": operations_of_kind(training.architecture, "skip"),
        "num_pools": operations_of_kind(training.architecture, "pool"),
        "depth": cell_depth(training.architecture),
        "shortest_chain": shortest_chain(training.architecture),
        "val_miou": mious[-1],
        "val_miou_low": low,
        "val_miou_high": high,
    }
    row |= {f"val_miou_{name}": mious[n - 1] for name, n in parts.items()}
    row |= {f"loss_{name}": losses[:n].mean() for name, n in parts.items()}
    row |= {
        "seconds": round(seconds),
        "search_seconds": training.search_seconds,
        "command": _portable(command, {"WORK": work_dir, "DATA": data_dir}),
        "commit": rows.machine()["commit"],
    }
    return {k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()}


def _portable(command: Sequence[str], places: Mapping[str, pathlib.Path]) -> str:
    """Returns a command with names in place of this machine's folders."""
    parts = list(command)
    for name, place in places.items():
        parts = [part.replace(str(place), name) for part in parts]
    return shlex.join(parts)


def operations_of_kind(architecture: Architecture, kind: str) -> int:
    """Returns how many edges of the cell have an operation of a kind, such as `skip`."""
    return sum(operation(edge.op).kind == kind for block in architecture.cell for edge in block)


def cell_depth(architecture: Architecture) -> int:
    """Returns the blocks on the longest way through a cell, from an input to a block's output."""
    depth: dict[str, int] = {}
    for index, block in enumerate(architecture.cell):
        depth[f"block_{index}"] = 1 + max(depth.get(edge.source, 0) for edge in block)
    return max(depth.values())


def shortest_chain(architecture: Architecture) -> float:
    """Returns the convolutions on the shorter edge of a block, the mean over blocks.

    They are counted from an input of the cell: a block that is read has those of its longer edge.
    Pooling and skip have none, an atrous operation one, a separable one two.
    """
    longest: dict[str, int] = {}
    shorter = []
    for index, block in enumerate(architecture.cell):
        chains = [longest.get(edge.source, 0) + operation(edge.op).repeats for edge in block]
        longest[f"block_{index}"] = max(chains)
        shorter.append(min(chains))
    return sum(shorter) / len(shorter)


def run(command: Sequence[str], log: pathlib.Path, core: int | None) -> float:
    """Runs a command to its end; returns its CPU seconds, of all attempts together.

    Raises:
        RuntimeError: If it fails, with the end of what it wrote.
    """

    result = run_command(
        [sys.executable, *command[1:]],
        with_stdout=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"},
        cwd=FOLDER.parents[1],
        core=core,
    )
    with log.open("a") as file:
        file.write(f"{result.cpu_seconds:.3f}\n")
    if result.code:
        raise RuntimeError(
            f"{shlex.join(command)} ended with {result.code}:\n{result.output[-2000:]}"
        )
    return sum(map(float, log.read_text().split()))


def bootstrap(matrices: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % interval of mIoU under resampling of the images.

    Args:
        matrices: int [images, C, C], a confusion matrix of each image.
        seed: Seed of the resampling.
    """
    generator = np.random.default_rng(seed)
    count = len(matrices)
    weights = generator.multinomial(count, np.full(count, 1 / count), RESAMPLES)
    totals = np.einsum("ri,iyp->ryp", weights, matrices)
    hits = np.diagonal(totals, axis1=1, axis2=2).astype("float64")
    union = totals.sum(1) + totals.sum(2) - hits
    iou = np.divide(hits, union, out=np.full(hits.shape, np.nan), where=union > 0)
    low, high = np.quantile(np.nanmean(iou, 1), (0.025, 0.975))
    return float(low), float(high)


def pending(trainings: Iterable[Training], rows: Iterable[dict[str, str]]) -> list[Training]:
    """Returns the trainings that have no row."""
    done = {tuple(row[name] for name in _KEY) for row in rows}
    return [training for training in trainings if training.key not in done]
