"""Commands that are killed again and again at random moments end as those that were not.

KILLS_SEED=N repeats the moments of a run; the seed and every moment are printed.
"""

import json
import os
import random
import signal

import kills
import numpy as np
import pytest
import test_search
import test_select
import test_train_evaluate_predict as trainings
import tiny_camvid
from commands import latest_variables

pytestmark = pytest.mark.slow
SEED = int(os.environ.get("KILLS_SEED", "14"))


def kill_often(module, arguments_in, folder, traps, number, check):
    """Kills a command `number` times, then lets it end; and a new one after each that ended.

    Args:
        arguments_in: folder -> arguments.
        traps: Functions random.Random -> trap. Each is used once before chance chooses.
        check: Called with each folder whose command has ended.
    """
    rng = random.Random(SEED)
    print(f"KILLS_SEED={SEED}")
    killed, tried, runs = [], [], 0
    while len(killed) < number:
        assert len(tried) < 4 * number, "the moments are hardly ever reached"
        choose = traps[len(tried)] if len(tried) < len(traps) else rng.choice(traps)
        tried.append(choose(rng))
        path = folder / f"run-{runs}"
        code, text = kills.run(module, arguments_in(path), tried[-1])
        print(path.name, tried[-1], code, flush=True)
        if code == -signal.SIGKILL:
            killed.append(tried[-1])
            continue
        assert code == 0, text
        check(path)
        runs += 1
    path = folder / f"run-{runs}"
    code, text = kills.run(module, arguments_in(path))
    assert code == 0, text
    check(path)
    return killed


def step(rng):
    return "in_step", rng.randint(1, 5), rng.uniform(0, 0.5)


def checkpoint(rng):
    return "in_checkpoint", rng.randint(1, 2), rng.random()


def validation(rng):
    return "in_validation", rng.randint(1, 4), 0


def writing(*names):
    return lambda rng: ("in_writing", 1, rng.random(), rng.choice(names))


def test_a_search_killed_thirty_times(tmp_path):
    data = test_search.data_in(tmp_path)

    def arguments(path):
        small = [*test_search.SMALL, *test_search.THREADS, *data]
        return [*small, f"--run_dir={path}"]

    whole = tmp_path / "whole"
    code, text = kills.run("search", arguments(whole))
    assert code == 0, text
    killed = kill_often(
        "search",
        arguments,
        tmp_path,
        [
            step,
            checkpoint,
            validation,
            writing("metrics.csv"),
            step,
            writing("architecture.json"),
            writing("checkpoint", "logits.npz", "flags.txt", "architecture.svg"),
        ],
        30,
        lambda path: kills.check_same_search(path, whole),
    )
    kinds = {trap[0] for trap in killed}
    assert kinds == {"in_step", "in_checkpoint", "in_validation", "in_writing"}
    assert any(trap[-1] == "architecture.json" for trap in killed)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    trainings.ARCHITECTURE.save(folder / "architecture.json")
    return {
        "data_dir": tiny_camvid.write(folder / "CamVid", trainings.COUNTS),
        "cache_dir": folder / "cache",
        "architecture": folder / "architecture.json",
    }


@pytest.fixture(scope="module")
def training(places, tmp_path_factory):
    """(arguments of a folder, a training that nothing disturbed)."""

    def arguments(path):
        return [*trainings.SMALL, *trainings.flags(places), f"--run_dir={path}"]

    whole = tmp_path_factory.mktemp("training") / "whole"
    code, text = kills.run("train", arguments(whole))
    assert code == 0, text
    return arguments, whole


def test_a_training_killed_twelve_times(training, tmp_path):
    arguments, whole = training
    names = ("metrics.csv", "model.keras", "last.keras", "epoch_00001.png", "checkpoint")
    killed = kill_often(
        "train",
        arguments,
        tmp_path,
        [step, checkpoint, validation, writing("model.keras"), writing(*names)],
        12,
        lambda path: kills.check_same_training(path, whole),
    )
    assert {trap[0] for trap in killed} >= {"in_step", "in_checkpoint", "in_writing"}


def test_a_training_on_a_full_disk_ends_with_one_line_and_resumes(training, tmp_path):
    arguments, whole = training
    path = tmp_path / "full"
    code, _ = kills.run("train", arguments(path), ("in_step", 5, 0.0))
    assert code == -signal.SIGKILL
    before = latest_variables(path)
    checkpoint_bytes = (path / "checkpoints" / "step-4.data-00000-of-00001").stat().st_size
    for limit in (checkpoint_bytes // 2, 3000):
        code, text = kills.run("train", arguments(path), ("on_small_disk", limit))
        *_, line = text.splitlines()
        assert code == 1 and line.startswith("error: ") and "cannot be written" in line, text
        assert "Traceback" not in text and text.count("error: ") == 1
        after = latest_variables(path)
        assert all(np.array_equal(after[name], value) for name, value in before.items())
        assert not list((path / "checkpoints").glob("*_temp"))
    code, text = kills.run("train", arguments(path))
    assert code == 0, text
    kills.check_same_training(path, whole)


def test_a_preparation_killed_ten_times(tmp_path):
    def arguments(path):
        return ["--dataset=scenes", "--image_size=64x128", f"--cache_dir={path}"]

    def records(path):
        (folder,) = path.iterdir()
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    whole = tmp_path / "whole"
    code, text = kills.run("data.prepare", arguments(whole))
    assert code == 0, text
    expected = records(whole)
    shards = [name for name in expected if name.endswith(".tfrecord")]
    assert len(shards) > 5

    def check(path):
        assert records(path) == expected

    kill_often(
        "data.prepare",
        arguments,
        tmp_path,
        [
            lambda rng: ("in_time", 1, rng.uniform(1, 6)),
            writing(*shards),
            writing(*(name.replace("tfrecord", "json") for name in shards)),
            writing("records.json"),
        ],
        10,
        check,
    )


def test_a_selection_killed_in_a_training_and_beside_its_table(tmp_path):
    data = tiny_camvid.write(tmp_path / "CamVid", {"train": 6, "val": 1})
    recipe = tmp_path / "recipe.flags"
    recipe.write_text(test_select.RECIPE + f"--data_dir={data}\n--cache_dir={tmp_path}/cache\n")

    def arguments(path):
        candidates = ("--num_random=2", "--num_layers=2", "--num_blocks=1", "--hold_back=0.34")
        given = (f"--train_flagfile={recipe}", "--rungs=1", f"--output_dir={path}", "--json")
        return [*candidates, *given]

    def table(path):
        rows = (path / "candidates.csv").read_text().splitlines()
        seconds = rows[0].split(",").index("cpu_seconds")
        return [row.split(",")[:seconds] + row.split(",")[seconds + 1 :] for row in rows]

    whole, path = tmp_path / "whole", tmp_path / "killed"
    code, text = kills.run("select", arguments(whole))
    assert code == 0, text
    for trap in (("in_command", 1, 4.0), ("in_writing", 3, 0.2, "candidates.csv")):
        code, text = kills.run("select", arguments(path), trap)
        print(trap, code, text)
        assert code == -signal.SIGKILL and not (path / "architecture.json").exists()
    code, text = kills.run("select", arguments(path))
    assert code == 0, text
    assert table(path) == table(whole)
    winners = [json.loads((folder / "architecture.json").read_text()) for folder in (path, whole)]
    assert winners[0] == winners[1]
