"""The methods of PROTOCOL.md that spend core-hours before a training: all the same number of them.

That is what the halving of `DRAWS` random networks takes.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.files import write_text
from benchmarks import rows
from benchmarks.search_quality import population, trainings

SEARCH = trainings.FOLDER / "search.flags"
# What helped of the levers, and as many steps as alpha learns something in.
ADAM = ("--optimizer=adam", "--learning_rate=0.004", "--min_learning_rate=0.0002")
OF_LEVERS = (*ADAM, "--arch_learning_rate=0.06", "--arch_weight_decay=0", "--epochs=30")
DRAWS = 24
# What a search takes, in draws with their share of the halving; its selection has the others.
DRAWS_OF_SEARCH = 8
PATHS_PER_SEARCH = 2
# Networks that a prediction learns from at first, and those of each of its rounds.
DRAWN_FIRST, ROUND = 8, 4


@dataclasses.dataclass(frozen=True)
class Found:
    """What a method found.

    Args:
        architecture: The network that it decides for.
        seconds: CPU seconds that it took, the trainings of its selection included.
    """

    architecture: Architecture
    seconds: float

    def save(self, file: pathlib.Path) -> None:
        """Writes it as JSON, without the folder of its search: it may be read elsewhere."""
        provenance = {k: v for k, v in self.architecture.provenance.items() if k != "search"}
        architecture = dataclasses.replace(self.architecture, provenance=provenance)
        content = {"seconds": self.seconds, "architecture": architecture.to_dict()}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(content) + "\n")

    @classmethod
    def load(cls, file: pathlib.Path) -> Found:
        """Reads what `save` wrote."""
        content = json.loads(file.read_text())
        return cls(Architecture.from_dict(content["architecture"]), content["seconds"])


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

    def searches(self) -> list[pathlib.Path]:
        """Returns the folders of the split's searches that have ended."""
        found = sorted(self.work.glob(f"searches/{self.split}-*/architecture.json"))
        return [file.parent for file in found if (file.parent / "checkpoints").exists()]


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


def random_search(number: int, steps: int, folders: Folders, core: int | None) -> Found:
    """Selects among `DRAWS` random networks, other ones for every `number`."""
    return _selected(f"random-{number}", [f"--num_random={DRAWS}"], number, steps, folders, core)


def predicted(number: int, steps: int, folders: Folders, core: int | None) -> Found:
    """Selects among some of those draws, and for the others networks predicted to be better."""
    rounds = (DRAWS - DRAWN_FIRST) // ROUND
    chosen = [f"--num_random={DRAWN_FIRST}", f"--num_predicted={_rounds(rounds)}"]
    return _selected(f"predicted-{number}", chosen, number, steps, folders, core)


def searched(number: int, steps: int, folders: Folders, core: int | None) -> Found:
    """Searches, then selects among best paths and draws of that search, and predicted networks.

    Args:
        number: Seed of the search.
        steps: Length of a whole training.
        folders: Of the split.
        core: The core that all processes are bound to.
    """
    run_dir = folders.work / "searches" / f"{folders.split}-{number}"
    spent = search(run_dir, number, folders, core, OF_LEVERS)
    rounds = (DRAWS - DRAWS_OF_SEARCH - DRAWN_FIRST) // ROUND
    chosen = [f"--search_runs={run_dir}", f"--paths_per_search={PATHS_PER_SEARCH}"]
    chosen.append(f"--samples_per_search={DRAWN_FIRST - PATHS_PER_SEARCH}")
    chosen.append(f"--num_predicted={_rounds(rounds)}")
    found = _selected(str(number), chosen, number, steps, folders, core)
    return dataclasses.replace(found, seconds=spent + found.seconds)


def _rounds(number: int) -> str:
    return ",".join([str(ROUND)] * number)


def _selected(
    name: str, chosen: list[str], number: int, steps: int, folders: Folders, core: int | None
) -> Found:
    folder = folders.work / "searches" / f"{folders.split}-{name}-{steps}"
    chosen = [*chosen, f"--random_seed={1000 * (number + 1)}"]
    seconds = _select(folder, chosen, steps, folders, core)
    return Found(Architecture.load(folder / "architecture.json"), seconds)


def first_rung(
    folder: pathlib.Path, chosen: list[str], steps: int, folders: Folders, core: int | None
) -> list[dict[str, str]]:
    """Trains candidates for an eighth of the steps; returns the rows of candidates.csv."""
    chosen = [*chosen, "--rungs=1", f"--reduction={trainings.PARTS}", "--paths_per_search=1"]
    _select(folder, chosen, steps, folders, core)
    return rows.read(folder / "candidates.csv")


def _select(
    folder: pathlib.Path, chosen: list[str], steps: int, folders: Folders, core: int | None
) -> float:
    """Selects by `recipe.flags` among networks of equal cost; returns the CPU seconds.

    A budget in `chosen` replaces the one of PROTOCOL.md: of a flag given twice the last counts.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    recipe = _with_ending(folder, ".flags")
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


def _once(command: list[str], folder: pathlib.Path, core: int | None) -> float:
    """Runs the command that fills a folder unless it has ended; returns its CPU seconds."""
    done = _with_ending(folder, ".done")
    if not done.exists():
        done.write_text(f"{trainings.run(command, _with_ending(folder, '.seconds'), core)}\n")
    return float(done.read_text())


def _with_ending(folder: pathlib.Path, ending: str) -> pathlib.Path:
    """A file named like a folder, which may have a dot in its name."""
    return folder.with_name(folder.name + ending)
