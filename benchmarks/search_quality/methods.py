"""The two methods of PROTOCOL.md that spend core-hours before a training: search, random search."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

from auto_deeplab_tf.architecture import Architecture
from benchmarks import rows
from benchmarks.search_quality import population, trainings

SEARCH = trainings.FOLDER / "search.flags"
PATHS_PER_SEARCH = 4
SAMPLES_PER_SEARCH = 12
# The halving of `select` by its defaults trains all candidates for an eighth of the steps, half of
# them for as many again, and half of these up to the half: in all a quarter of full trainings.
SHARE_OF_TRAINING = 1 / 8 + 1 / 16 + 1 / 16


@dataclasses.dataclass(frozen=True)
class Found:
    """What a method found.

    Args:
        architecture: The network that it decides for.
        seconds: CPU seconds that it took, the trainings of its selection included.
    """

    architecture: Architecture
    seconds: float


@dataclasses.dataclass(frozen=True)
class Folders:
    """Where a split of CamVid and all that is made of it lies.

    Args:
        split: `tuning` or `reported`.
        data: Folder of CamVid.
        work: Folder of runs and records.
    """

    split: str
    data: pathlib.Path
    work: pathlib.Path

    def places(self) -> dict[str, str]:
        """Returns the folders of images and records."""
        data = trainings.split_folder(self.split, self.data, self.work)
        return {"data_dir": str(data), "cache_dir": str(self.work / "cache")}

    def flags(self) -> list[str]:
        """Returns the flags that every command takes."""
        return [f"--{name}={place}" for name, place in self.places().items()]


def search(
    run_dir: pathlib.Path,
    seed: int,
    folders: Folders,
    core: int | None,
    changed: Sequence[str] = (),
) -> float:
    """Searches by search.flags, some of them changed; returns the CPU seconds."""
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    command = [
        "python",
        "-m",
        "auto_deeplab_tf.search",
        f"--flagfile={SEARCH}",
        f"--seed={seed}",
        f"--run_dir={run_dir}",
        *changed,
        *folders.flags(),
    ]
    return _once(command, run_dir, core)


def searched(number: int, steps: int, folders: Folders, core: int | None) -> Found:
    """Searches with seed `number`, then selects among best paths and draws of that search."""
    run_dir = folders.work / "searches" / f"{folders.split}-{number}"
    spent = search(run_dir, number, folders, core)
    selection = run_dir.with_name(f"{run_dir.name}-{steps}")
    chosen = [
        f"--search_runs={run_dir}",
        f"--paths_per_search={PATHS_PER_SEARCH}",
        f"--samples_per_search={SAMPLES_PER_SEARCH}",
        f"--random_seed={1000 * (number + 1)}",
    ]
    seconds = spent + _select(selection, chosen, steps, folders, core)
    return Found(_winner(selection), seconds)


def random_search(number: int, draws: int, steps: int, folders: Folders, core: int | None) -> Found:
    """Selects among so many random networks, other ones for every `number`."""
    folder = folders.work / "searches" / f"{folders.split}-random-{number}-{steps}"
    chosen = [f"--num_random={draws}", f"--random_seed={1000 * (number + 1)}"]
    seconds = _select(folder, chosen, steps, folders, core)
    return Found(_winner(folder), seconds)


def first_rung(
    folder: pathlib.Path, chosen: list[str], steps: int, folders: Folders, core: int | None
) -> list[dict[str, str]]:
    """Trains candidates for an eighth of the steps; returns the rows of candidates.csv."""
    chosen = [*chosen, "--rungs=1", f"--reduction={trainings.PARTS}", "--paths_per_search=1"]
    _select(folder, chosen, steps, folders, core)
    return rows.read(folder / "candidates.csv")


def affordable_draws(seconds: float, seconds_per_training: float) -> int:
    """Returns how many random networks `select` can halve in so many CPU seconds."""
    return max(1, round(seconds / (SHARE_OF_TRAINING * seconds_per_training)))


def _select(
    folder: pathlib.Path, chosen: list[str], steps: int, folders: Folders, core: int | None
) -> float:
    """Selects by `recipe.flags` among networks of equal cost; returns the CPU seconds.

    A budget in `chosen` replaces the one of PROTOCOL.md: of a flag given twice the last counts.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    recipe = folder.with_suffix(".flags")
    flags = [f"--steps={steps}", f"--steps_per_epoch={steps // trainings.PARTS}"]
    lines = [f"--flagfile={trainings.RECIPE}", *folders.flags(), *flags]
    recipe.write_text("\n".join(lines) + "\n")
    command = [
        "python",
        "-m",
        "auto_deeplab_tf.select",
        f"--train_flagfile={recipe}",
        f"--output_dir={folder}",
        f"--max_multi_adds={population.MULTI_ADDS}",
        "--fit_filter_multiplier",
        *chosen,
    ]
    return _once(command, folder, core)


def _winner(folder: pathlib.Path) -> Architecture:
    return Architecture.load(folder / "architecture.json")


def _once(command: list[str], folder: pathlib.Path, core: int | None) -> float:
    """Runs the command that fills a folder unless it has ended; returns its CPU seconds."""
    done = folder.with_suffix(".done")
    if not done.exists():
        done.write_text(f"{trainings.run(command, folder.with_suffix('.seconds'), core)}\n")
    return float(done.read_text())
