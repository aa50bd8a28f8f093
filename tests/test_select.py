"""The selection: candidates within a budget, halving, and a command that resumes after any kill."""

import contextlib
import csv
import dataclasses
import functools
import json
import math
import pathlib
import shutil
import types

import numpy as np
import pytest
import tiny_camvid
from commands import run, snapshot

from auto_deeplab_tf import accounting, cli, config, decoding, sampling, select, selection
from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.errors import MissingFileError, RunError, UserError
from auto_deeplab_tf.search_space import OPERATIONS, block_sources

SIZES = config.NetworkSizesConfig(
    filter_multiplier=3, stem_channels=(4, 4, 8), head_channels=8, decoder_channels=4
)
NETWORK = {"num_classes": 5, "input_size": (64, 96)}
RECIPE = (
    "--dataset=camvid\n--crop_size=32x40\n--batch_size=2\n--filter_multiplier=2\n"
    "--stem_channels=4,4,8\n--head_channels=8\n--decoder_channels=4\n--batch_norm_decay=0.9\n"
    "--steps=8\n--steps_per_epoch=2\n--overlays=0\n"
)


def options(**values):
    needed = {"output_dir": "out", "train_flagfile": "train.flags", "num_layers": 4}
    return config.SelectConfig(**needed | {"num_blocks": 2} | values)


def search_run(folder, num_layers=4, num_blocks=2, atrous="separable", seed=0):
    rng = np.random.default_rng(seed)
    edges = sum(len(block_sources(block)) for block in range(num_blocks))
    folder.mkdir()
    decoding.save_logits(
        folder / "logits.npz",
        rng.normal(size=(edges, len(OPERATIONS))),
        rng.normal(size=(num_layers, 4, 3)),
        atrous,
    )
    return str(folder)


def count(candidate, multiplier):
    sizes = {"stem_channels": (4, 4, 8), "head_channels": 8, "decoder_channels": 4}
    return accounting.count(
        candidate.architecture, filter_multiplier=multiplier, **sizes, **NETWORK
    )


def test_candidates_are_the_best_paths_of_searches_and_then_random_draws(tmp_path):
    runs = tuple(search_run(tmp_path / name, seed=seed) for seed, name in enumerate("ab"))
    found = selection.candidates(
        options(search_runs=runs, paths_per_search=2, num_random=3, random_seed=7), SIZES, **NETWORK
    )
    assert [candidate.name for candidate in found] == [
        *("search-0-path-1", "search-0-path-2", "search-1-path-1", "search-1-path-2"),
        *("random-7", "random-8", "random-9"),
    ]
    for number, place in ((0, runs[0]), (2, runs[1])):
        logits = decoding.load_logits(f"{place}/logits.npz")
        best = decoding.decode(logits.alpha, logits.beta, "separable")
        assert found[number].architecture == best
    assert found[5].architecture == sampling.random_architecture(8, 4, 2)
    for candidate in found:
        counted = count(candidate, 3)
        assert (candidate.params, candidate.multi_adds) == (counted.params, counted.multi_adds)


def test_candidates_are_drawn_by_the_probabilities_of_a_search(tmp_path):
    run_dir = search_run(tmp_path / "a")
    found = selection.candidates(
        options(search_runs=(run_dir,), paths_per_search=1, samples_per_search=2, random_seed=5),
        SIZES,
        **NETWORK,
    )
    assert [candidate.name for candidate in found] == [
        *("search-0-path-1", "search-0-sample-5", "search-0-sample-6")
    ]
    logits = decoding.load_logits(f"{run_dir}/logits.npz")
    drawn, log_prob = sampling.sampled_architecture(logits, 6)
    assert (found[2].architecture, found[2].log_prob) == (drawn, log_prob)
    assert (found[2].kind, found[2].source) == ("searched", run_dir)


def test_a_network_that_two_searches_agree_on_is_one_candidate(tmp_path):
    runs = tuple(search_run(tmp_path / name) for name in "ab")
    found = selection.candidates(options(search_runs=runs, paths_per_search=1), SIZES, **NETWORK)
    assert [candidate.name for candidate in found] == ["search-0-path-1"]


def test_candidates_keep_the_budget_by_being_left_out_or_by_their_f(tmp_path):
    free = selection.candidates(options(num_random=40), SIZES, **NETWORK)
    budget = sorted(candidate.multi_adds for candidate in free)[20]  # that one keeps it too
    kept = selection.candidates(options(num_random=21, max_multi_adds=budget), SIZES, **NETWORK)
    fitting = [candidate.name for candidate in free if candidate.multi_adds <= budget]
    assert [candidate.name for candidate in kept] == fitting[:21]
    fitted = selection.candidates(
        options(num_random=5, max_multi_adds=budget, fit_filter_multiplier=True), SIZES, **NETWORK
    )
    assert [candidate.name for candidate in fitted] == [candidate.name for candidate in free[:5]]
    assert len({candidate.filter_multiplier for candidate in fitted}) > 1
    for candidate in fitted:
        assert candidate.multi_adds <= budget
        assert candidate.multi_adds == count(candidate, candidate.filter_multiplier).multi_adds
        assert count(candidate, candidate.filter_multiplier + 1).multi_adds > budget


@pytest.mark.parametrize("fit", [False, True])
def test_paths_within_the_budget_are_found_wherever_they_rank(tmp_path, monkeypatch, capsys, fit):
    run_dir = search_run(tmp_path / "a", seed=1)
    wanted = {"search_runs": (run_dir,), "paths_per_search": 34, "fit_filter_multiplier": fit}
    sizes = dataclasses.replace(SIZES, filter_multiplier=1 if fit else 3)
    everything = selection.candidates(
        options(search_runs=(run_dir,), paths_per_search=34), sizes, **NETWORK
    )
    assert len(everything) == 34 == decoding.number_of_paths(4) and not capsys.readouterr().err
    # The two cheapest of all; fewer tries than stand before them.
    ranks = sorted(range(34), key=lambda rank: everything[rank].params)[:2]
    assert min(ranks) > 3
    monkeypatch.setattr(selection, "MAX_TRIES", 3)
    budget = max(everything[rank].params for rank in ranks)
    found = selection.candidates(options(**wanted, max_params=budget), sizes, **NETWORK)
    assert [(c.architecture, c.log_prob) for c in found] == [
        (everything[rank].architecture, everything[rank].log_prob) for rank in sorted(ranks)
    ]
    note = f"note: paths_per_search of {run_dir}: 2 found of 34 asked for; a larger budget may"
    assert capsys.readouterr().err.startswith(note)


def test_a_budget_that_nothing_meets_names_the_cheapest(monkeypatch):
    monkeypatch.setattr(selection, "MAX_TRIES", 30)
    cheapest = min(
        selection.candidates(options(num_random=30), SIZES, **NETWORK), key=lambda c: c.params
    )
    for fit, sizes in ((False, SIZES), (True, config.NetworkSizesConfig(**vars(SIZES)))):
        with pytest.raises(UserError) as error:
            selection.candidates(
                options(num_random=3, max_params=100, fit_filter_multiplier=fit), sizes, **NETWORK
            )
        assert "no candidate keeps max_params=100: the cheapest, random-" in str(error.value)
        if not fit:
            text = f"{cheapest.name}, needs {cheapest.params} parameters at filter_multiplier=3"
            assert text in str(error.value)
        else:
            assert "at filter_multiplier=1" in str(error.value)


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"num_layers": 5}, "has 5 layers, 2 blocks, separable"),
        ({"num_blocks": 3}, "has 4 layers, 3 blocks, separable"),
        ({"atrous": "full"}, "has 4 layers, 2 blocks, full"),
    ],
)
def test_searches_of_different_spaces_are_refused_together(tmp_path, other, text):
    runs = search_run(tmp_path / "a"), search_run(tmp_path / "b", **other)
    with pytest.raises(UserError, match=f"search_runs must be of one search space: .*b {text}"):
        selection.candidates(options(search_runs=runs), SIZES, **NETWORK)
    with pytest.raises(FileNotFoundError, match="c has no logits.npz"):
        selection.candidates(options(search_runs=(str(tmp_path / "c"),)), SIZES, **NETWORK)


def test_halving_keeps_one_in_so_many_and_doubles_the_steps():
    names = list("abcdefg")
    assert selection.survivors(names, 2) == list("abcd")
    assert selection.survivors(names, 3) == list("abc")
    assert selection.survivors(["a"], 2) == ["a"]
    assert [selection.steps_of_rung(rung, 3, 2, 1800) for rung in (1, 2, 3)] == [225, 450, 900]
    assert selection.steps_of_rung(1, 1, 3, 100) == 34


# ---- the command, with trainings that only write their metrics


class FakeTrainings:
    """Stands for `run_command`: candidate n has the loss 10 - n / 10 and the mIoU n / 100."""

    def __init__(self):
        self.commands, self.fail_at, self.diverging = [], None, ()

    def __call__(self, command):
        values = dict(part[2:].split("=", 1) for part in command[3:])
        folder = values["run_dir"]
        for file in ("flagfile", "architecture"):
            assert pathlib.Path(values[file]).is_file()
        number = int(folder.rpartition("-")[2])
        if self.fail_at == len(self.commands):
            raise KeyboardInterrupt
        self.commands.append((number, int(values["stop_after_steps"])))
        if number in self.diverging:
            return 1, 1.0, "error: loss became nan at step 3 (epoch 0)"
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        rows = ["epoch,step,loss,val_miou"]
        for epoch in range(int(values["stop_after_steps"])):
            loss = 10 - number / 10 - epoch
            rows.append(f"{epoch},{epoch + 1},{loss},{number / 100}")
        (pathlib.Path(folder) / "metrics.csv").write_text("\n".join(rows) + "\n")
        return 0, 1.0, ""


@pytest.fixture
def places(tmp_path):
    root = tiny_camvid.write(tmp_path / "CamVid", {"train": 6, "val": 1})
    flags = tmp_path / "recipe.flags"
    flags.write_text(RECIPE + f"--data_dir={root}\n--cache_dir={tmp_path}/cache\n")
    return tmp_path, [
        f"--train_flagfile={flags}",
        f"--output_dir={tmp_path}/out",
        *("--num_layers=2", "--num_blocks=1", "--hold_back=0.34"),
    ]


def table(folder):
    with open(folder / "out" / "candidates.csv", newline="") as file:
        return {row["candidate"]: row for row in csv.DictReader(file)}


def selected(arguments, *more):
    return select._Selection(cli.parse(config.SelectConfig, [*arguments, *more])).run()


def test_the_best_of_the_last_rung_wins_and_the_others_train_no_further(places, monkeypatch):
    folder, arguments = places
    trainings = FakeTrainings()
    monkeypatch.setattr(select, "run_command", trainings)
    result = selected(arguments, "--num_random=5", "--json")
    # 8 steps in all: rungs after 1, 2 and 4; 5, 3 and 2 candidates. High numbers are good.
    assert trainings.commands == [
        *((number, 1) for number in range(5)),
        *((number, 2) for number in (4, 3, 2)),
        *((number, 4) for number in (4, 3)),
    ]
    winner = Architecture.load(folder / "out" / "architecture.json")
    assert winner == sampling.random_architecture(4, 2, 1)
    assert result["candidate"] == "random-4" and result["num_candidates"] == 5
    assert winner.provenance["select"]["loss"] == pytest.approx(9.6 - 1.5)
    rows = table(folder)
    assert [row["steps_3"] for row in rows.values()] == ["", "", "", "4", "4"]
    assert float(rows["random-2"]["loss_2"]) == pytest.approx(9.8 - 0.5)
    assert float(rows["random-4"]["cpu_seconds"]) == 3.0
    before = snapshot(folder / "out")
    assert selected(arguments, "--num_random=5", "--json") == result
    assert snapshot(folder / "out") == before and len(trainings.commands) == 10


def test_a_selection_killed_at_any_training_ends_as_one_that_was_not(places, monkeypatch):
    folder, arguments = places
    arguments = [*arguments, "--num_random=3", "--rungs=2", "--rank_by=val_miou", "--json"]
    whole = FakeTrainings()
    monkeypatch.setattr(select, "run_command", whole)
    selected(arguments)
    expected = (folder / "out" / "candidates.csv").read_bytes()
    for killed_at in range(len(whole.commands)):
        (folder / "out").rename(folder / f"old{killed_at}")
        trainings = FakeTrainings()
        monkeypatch.setattr(select, "run_command", trainings)
        trainings.fail_at = killed_at
        with pytest.raises(KeyboardInterrupt):
            selected(arguments)
        assert not (folder / "out" / "architecture.json").exists()
        trainings.fail_at = None
        assert selected(arguments)["candidate"] == "random-2"
        assert trainings.commands == whole.commands, "none is repeated"
        assert (folder / "out" / "candidates.csv").read_bytes() == expected


class SkipsAreGood(FakeTrainings):
    """A candidate has the loss 10 - the number of skips in its cell; one of no skip diverges."""

    def __call__(self, command):
        values = dict(part[2:].split("=", 1) for part in command[3:])
        architecture = Architecture.load(values["architecture"])
        skips = sum(edge.op == "skip" for block in architecture.cell for edge in block)
        folder = pathlib.Path(values["run_dir"])
        if self.fail_at == len(self.commands):
            raise KeyboardInterrupt
        self.commands.append((folder.name, int(values["stop_after_steps"])))
        if not skips:
            return 1, 1.0, "error: loss became nan at step 1 (epoch 0)"
        folder.mkdir(parents=True, exist_ok=True)
        row = f"0,{values['stop_after_steps']},{10 - skips},{skips / 10}\n"
        (folder / "metrics.csv").write_text("epoch,step,loss,val_miou\n" + row)
        return 0, 1.0, ""


@pytest.mark.parametrize("rank_by", ["loss", "val_miou"])
def test_predicted_candidates_are_the_best_of_many_draws(places, monkeypatch, rank_by):
    folder, arguments = places
    monkeypatch.setattr(selection, "POOL", 200)
    arguments += ["--num_blocks=5", "--num_random=24", "--num_predicted=3,2", "--rungs=2"]
    arguments += [f"--rank_by={rank_by}", "--json"]
    trainings = SkipsAreGood()
    monkeypatch.setattr(select, "run_command", trainings)
    result = selected(arguments)
    rows = table(folder)
    rounds = [(row["kind"], row["source"]) for row in rows.values()][24:]
    assert rounds == [("predicted", "1")] * 3 + [("predicted", "2")] * 2
    skips = {}
    for name in rows:
        cell = Architecture.load(folder / "out" / "candidates" / f"{name}.json").cell
        skips[name] = sum(edge.op == "skip" for block in cell for edge in block)
    drawn = [sampling.random_architecture(seed, 2, 5) for seed in range(224)]
    counts = sorted(sum(e.op == "skip" for b in a.cell for e in b) for a in drawn)
    predicted = list(rows)[24:]
    assert 0 in skips.values(), "one diverges, and teaches nothing"
    assert min(skips[name] for name in predicted) >= counts[-15]
    for name in predicted:
        expected = 10 - skips[name] if rank_by == "loss" else skips[name] / 10
        assert float(rows[name]["predicted"]) == pytest.approx(expected, rel=0.2)
        assert float(rows[name][f"{rank_by}_1"]) == pytest.approx(expected)
    assert not any(rows[name]["predicted"] for name in list(rows)[:24])
    assert skips[result["candidate"]] == max(skips.values())
    expected = (folder / "out" / "candidates.csv").read_bytes()
    for killed_at in (3, 25, 27, 28, 29):  # in the first rung, in each round, in the second rung
        (folder / "out").rename(folder / f"old{killed_at}")
        again = SkipsAreGood()
        again.fail_at = killed_at
        monkeypatch.setattr(select, "run_command", again)
        with pytest.raises(KeyboardInterrupt):
            selected(arguments)
        again.fail_at = None
        assert selected(arguments) == result
        assert again.commands == trainings.commands, "none is repeated"
        assert (folder / "out" / "candidates.csv").read_bytes() == expected


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ("--max_params=100", "no candidate keeps max_params=100"),
        ("--search_runs=none", "none has no logits.npz"),
        ("--hold_back_groups=none", "the training set has no none"),
        ("--num_predicted=1", "needs 8 other candidates"),
        ("--data_dir=none", "none"),
    ],
)
def test_a_first_command_that_is_refused_leaves_the_folder_to_the_corrected_one(
    places, monkeypatch, wrong, text
):
    folder, arguments = places
    arguments = [*arguments, "--num_random=2", "--rungs=1", "--json"]
    monkeypatch.setattr(select, "run_command", FakeTrainings())
    monkeypatch.setattr(selection, "MAX_TRIES", 30)
    with pytest.raises((UserError, MissingFileError), match=text):
        selected(arguments, wrong)
    assert not (folder / "out").exists()
    assert selected(arguments)["candidate"] == "random-1"


def test_a_prediction_needs_candidates_to_learn_from(places, monkeypatch):
    folder, arguments = places
    with pytest.raises(UserError, match="needs 8 other candidates to learn from. Received: 7;"):
        selected(arguments, "--num_random=7", "--num_predicted=2")
    trainings = FakeTrainings()
    trainings.diverging = range(7)
    monkeypatch.setattr(select, "run_command", trainings)
    with pytest.raises(RunError, match="nearly all trainings of the first rung diverged"):
        selected(arguments, "--num_random=8", "--num_predicted=2")


def test_the_draws_of_a_search_are_predicted_too(tmp_path):
    run_dir = search_run(tmp_path / "a")
    given = options(search_runs=(run_dir,), samples_per_search=9, num_random=2, num_predicted=(30,))
    found = selection.candidates(given, SIZES, **NETWORK)
    trained = [(candidate, float(candidate.params)) for candidate in found]
    drawn = selection.more_draws(given, SIZES, **NETWORK)
    predicted = selection.predicted_candidates(drawn, 1, 30, trained, "loss")
    assert {candidate.name.split("-")[2] for candidate in predicted} == {"random", "search"}
    assert not {c.architecture for c in predicted} & {c.architecture for c in found}
    small = np.quantile([candidate.params for candidate in found], 0.25)
    assert np.mean([candidate.params for candidate in predicted]) < small


def test_a_candidate_that_diverges_comes_last_and_another_failure_ends_the_run(places, monkeypatch):
    folder, arguments = places
    trainings = FakeTrainings()
    trainings.diverging = (2,)
    monkeypatch.setattr(select, "run_command", trainings)
    result = selected(arguments, "--num_random=3", "--rungs=1", "--json")
    assert result["candidate"] == "random-1"
    assert float(table(folder)["random-2"]["loss_1"]) == math.inf
    (folder / "out").rename(folder / "old")
    monkeypatch.setattr(select, "run_command", lambda command: (1, 0.0, "note\nerror: no room\n"))
    with pytest.raises(RunError, match="the training of random-0 ended with 1: no room"):
        selected(arguments, "--num_random=3", "--json")


def test_where_all_trainings_diverge_none_wins(places, monkeypatch):
    folder, arguments = places
    arguments += ["--num_random=4", "--rungs=2", "--rank_by=val_miou", "--json"]
    trainings = FakeTrainings()
    trainings.diverging = range(4)
    monkeypatch.setattr(select, "run_command", trainings)
    for _ in range(2):  # the same command again does not find a winner either
        with pytest.raises(RunError, match="all trainings of rung 1 diverged: change the recipe"):
            selected(arguments)
    assert trainings.commands == [(number, 2) for number in range(4)]
    assert not (folder / "out" / "architecture.json").exists()


def test_a_candidate_that_diverged_is_not_trained_again(places, monkeypatch):
    _, arguments = places
    arguments += ["--num_random=4", "--rungs=2", "--rank_by=val_miou", "--json"]
    trainings = FakeTrainings()
    trainings.diverging = (1, 2, 3)
    monkeypatch.setattr(select, "run_command", trainings)
    # Candidate 0 has the mIoU 0, which those that diverged are given too.
    assert selected(arguments)["candidate"] == "random-0"
    assert trainings.commands == [*((number, 2) for number in range(4)), (0, 4)]


def test_a_recipe_that_an_older_version_wrote_resumes(places, monkeypatch):
    folder, arguments = places
    monkeypatch.setattr(select, "run_command", FakeTrainings())
    result = selected(arguments, "--num_random=2", "--rungs=1", "--json")
    (folder / "out" / "architecture.json").unlink()
    file = folder / "out" / "train.flags"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith("--log_every_steps")))
    assert len(file.read_text().splitlines()) == len(lines) - 1
    assert selected(arguments, "--num_random=2", "--rungs=1", "--json") == result


def test_a_clock_is_handed_on_to_trainings_and_ends_the_selection(places, monkeypatch, capsys):
    _, arguments = places
    arguments = [*arguments, "--num_random=2", "--rungs=1", "--json", "--max_hours=2"]
    hours, given = 0.5, []
    monkeypatch.setattr(select, "seconds_since_start", lambda: 3600 * hours)
    monkeypatch.setattr(
        select, "run_command", lambda command: given.append(command[-1]) or (75, 1.0, "")
    )
    for line in ("the training of random-0", "candidates.csv"):
        with pytest.raises(SystemExit) as e:
            selected(arguments)
        assert e.value.code == 75
        assert f"{line} is saved; the same command resumes" in capsys.readouterr().err
        hours = 2.0  # over before the training is started
    assert given == ["--max_hours=1.5"]
    hours = 0.0
    monkeypatch.setattr(select, "run_command", FakeTrainings())
    assert selected(arguments)["candidate"] == "random-1"


class FakeRay:
    """A cluster of two workers: a training runs when it is waited for, the first first."""

    def __init__(self):
        self.most_at_a_time, self.running = 0, []

    def cluster_resources(self):
        return {"CPU": 2.0}

    def remote(self, **resources):
        return lambda function: types.SimpleNamespace(
            remote=lambda command: self.submit(functools.partial(function, command))
        )

    def submit(self, task):
        self.running.append(task)
        self.most_at_a_time = max(self.most_at_a_time, len(self.running))
        return task

    def wait(self, tasks):
        return [self.running.pop(0)], self.running

    def get(self, task):
        return task()


def test_trainings_on_a_cluster_get_the_hours_left_and_none_starts_after_the_end(
    places, monkeypatch
):
    folder, arguments = places
    arguments += ["--num_random=6", "--rungs=1", "--json", "--max_hours=2", "--ray_address=auto"]
    ray, trainings = FakeRay(), FakeTrainings()
    monkeypatch.setattr(
        select.ray_cluster, "connected", lambda address: contextlib.nullcontext(ray)
    )
    hours, given = [0.0], []

    def run_command(command):
        hours[0] += 0.25
        if hours[0] == 1.0:
            return 75, 1.0, ""
        given.append(float(command[-1].removeprefix("--max_hours=")))
        return trainings(command)

    monkeypatch.setattr(select, "run_command", run_command)
    monkeypatch.setattr(select, "seconds_since_start", lambda: 3600 * hours[0])
    with pytest.raises(SystemExit) as ended:
        selected(arguments)
    assert ended.value.code == 75 and ray.most_at_a_time == 2
    # The fourth of six is told that the time is up: the fifth, which runs, ends; no sixth starts.
    assert given == [2.0, 2.0, 1.75, 1.25] and not ray.running
    assert [number for number, _ in trainings.commands] == [0, 1, 2, 4]

    # Over as one of them has ended: the other that runs ends too, and no further one starts.
    hours[0], trainings.commands[:] = 1.6, []
    with pytest.raises(SystemExit):
        selected([*arguments, "--max_hours=1.7", f"--output_dir={folder}/other"])
    assert [number for number, _ in trainings.commands] == [0, 1]


def test_a_training_may_run_in_another_working_directory(places, monkeypatch):
    folder, arguments = places
    monkeypatch.chdir(folder)
    arguments += ["--output_dir=out", "--num_random=2", "--rungs=1", "--json"]
    trainings = FakeTrainings()

    def run_command(command):
        with contextlib.chdir("/"):
            return trainings(command)

    monkeypatch.setattr(select, "run_command", run_command)
    result = selected(arguments)
    assert result["candidate"] == "random-1" and result["output_dir"] == "out"


def test_folders_of_the_data_may_be_given_beside_the_recipe(places, monkeypatch):
    folder, arguments = places
    given = []
    trainings = FakeTrainings()
    monkeypatch.setattr(
        select, "run_command", lambda command: given.append(command) or trainings(command)
    )
    (folder / "recipe.flags").write_text(RECIPE)
    places = (f"--data_dir={folder}/CamVid", f"--cache_dir={folder}/cache")
    selected(arguments, "--num_random=1", "--rungs=1", "--json", *places)
    flags = [word for word in given[0] if word.startswith("--flagfile=")]
    needed = ["--architecture=auto_deeplab", "--run_dir=a"]
    training = cli.parse(config.TrainConfig, [*flags, *needed])
    assert [training.data_dir, training.cache_dir] == [f"{folder}/CamVid", f"{folder}/cache"]


def test_a_selection_resumes_where_its_data_have_moved(places, monkeypatch):
    folder, arguments = places
    monkeypatch.setattr(select, "run_command", FakeTrainings())
    few = ("--num_random=2", "--rungs=1", "--json")
    result = selected(arguments, *few)
    (folder / "out" / "architecture.json").unlink()
    (folder / "CamVid").rename(folder / "moved")
    moved = (f"--data_dir={folder}/moved", f"--cache_dir={folder}/other_cache")
    assert selected(arguments, *few, *moved) == result
    assert f"--data_dir={folder}/moved\n" in (folder / "out" / "train.flags").read_text()


def test_a_selection_resumes_where_it_has_moved_and_its_searches_are_named_otherwise(
    places, monkeypatch
):
    folder, arguments = places
    for seed in (0, 1):
        search_run(folder / f"search{seed}", 2, 1, seed=seed)
    scored = []

    def inherited_scores(run, architectures, *_):
        scored.append((run, list(architectures)))
        return [(name, 0.5) for name in architectures]

    monkeypatch.setattr(selection, "inherited_scores", inherited_scores)
    trainings = FakeTrainings()
    monkeypatch.setattr(select, "run_command", trainings)
    monkeypatch.chdir(folder)
    few = ("--rungs=1", "--paths_per_search=1", "--json")
    result = selected(arguments, *few, "--search_runs=search0,./search1")
    names = [["search-0-path-1"], ["search-1-path-1"]]
    assert scored == [("search0", names[0]), ("./search1", names[1])]

    # As a kill before the second score leaves it; an older version wrote the paths as given.
    (folder / "out" / "architecture.json").unlink()
    flags = folder / "out" / "flags.txt"
    line = f"--search_runs={folder}/search0,{folder}/search1\n"
    assert line in flags.read_text()
    flags.write_text(flags.read_text().replace(line, "--search_runs=search0,./search1\n"))
    file = folder / "out" / "candidates.csv"
    first, second, third = file.read_text().splitlines()
    file.write_text("\n".join([first, second, third.replace(",0.5,", ",,")]) + "\n")
    (folder / "out").rename(folder / "moved")
    arguments = [*arguments, f"--output_dir={folder}/moved"]
    for others in ("search1,search0", "search0"):
        with pytest.raises(
            UserError, match=f"search_runs={others} .the run has 'search0,./search1'"
        ):
            selected(arguments, *few, f"--search_runs={others}")
    monkeypatch.setenv("HOME", str(folder))
    del scored[:]
    again = selected(arguments, *few, f"--search_runs=~/search0,{folder}/search1")
    assert again["candidate"] == result["candidate"] and len(trainings.commands) == 2
    assert scored == [(f"{folder}/search1", names[1])]


def test_another_recipe_or_other_candidates_do_not_resume(places, monkeypatch):
    folder, arguments = places
    monkeypatch.setattr(select, "run_command", FakeTrainings())
    selected(arguments, "--num_random=2", "--rungs=1", "--json")
    with pytest.raises(UserError, match="num_random=3 .*Name another output_dir"):
        selected(arguments, "--num_random=3", "--rungs=1", "--json")
    file = folder / "out" / "candidates" / "random-0.json"
    file.write_text((folder / "out" / "candidates" / "random-1.json").read_text())
    (folder / "out" / "architecture.json").unlink()
    rows = (folder / "out" / "candidates.csv").read_text().splitlines()
    recipe = folder / "recipe.flags"
    recipe.write_text(recipe.read_text().replace("--steps=8", "--steps=16"))
    with pytest.raises(UserError, match="another recipe than train_flagfile"):
        selected(arguments, "--num_random=2", "--rungs=1", "--json")
    recipe.write_text(recipe.read_text().replace("--steps=16", "--steps=8"))
    blank = rows[1].split(",")
    blank[10:] = [""] * len(blank[10:])
    (folder / "out" / "candidates.csv").write_text("\n".join([rows[0], ",".join(blank), rows[2]]))
    with pytest.raises(UserError, match="random-0.json has changed"):
        selected(arguments, "--num_random=2", "--rungs=1", "--json")


@pytest.mark.parametrize("fit", [False, True])
def test_a_recipe_of_another_f_resumes_only_where_the_budget_decides_it(places, monkeypatch, fit):
    folder, arguments = places
    monkeypatch.setattr(select, "run_command", FakeTrainings())
    arguments += ["--num_random=2", "--rungs=1", "--json", "--max_multi_adds=1e9"]
    arguments.append(f"--fit_filter_multiplier={fit}")
    result = selected(arguments)
    (folder / "out" / "architecture.json").unlink()
    assert selected(arguments) == result
    (folder / "out" / "architecture.json").unlink()
    recipe = folder / "recipe.flags"
    recipe.write_text(recipe.read_text().replace("multiplier=2", "multiplier=3"))
    if fit:
        assert selected(arguments) == result
    else:
        with pytest.raises(UserError, match="of filter_multiplier=2, and train_flagfile=.* has 3"):
            selected(arguments)


def test_the_command_scores_a_search_and_trains_on_one_part_of_the_data(places):
    folder, arguments = places
    searched = folder / "search"
    space = ("--num_layers=2", "--num_blocks=1", "--filter_multiplier=1", "--crop_size=32x40")
    data = (f"--data_dir={folder}/CamVid", f"--cache_dir={folder}/cache", "--dataset=camvid")
    steps = ("--epochs=1", "--steps_per_epoch=1", "--arch_start_epoch=0", "--decoded_batches=0")
    done = run("search", *space, *data, *steps, f"--run_dir={searched}")
    assert done.returncode == 0, done.stderr
    few = ("--paths_per_search=1", "--num_random=1", "--rungs=1", f"--search_runs={searched}")
    done = run("select", *arguments, *few, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    rows = table(folder)
    assert [*rows] == ["search-0-path-1", "random-0"]
    assert {row["steps_1"] for row in rows.values()} == {"4"}
    losses = {name: float(row["loss_1"]) for name, row in rows.items()}
    assert min(losses, key=losses.get) == result["candidate"] and len(set(losses.values())) == 2
    assert 0 <= float(rows["search-0-path-1"]["inherited_miou"]) < 1
    assert rows["random-0"]["inherited_miou"] == ""
    for name in rows:
        flags = (folder / "out" / "runs" / name / "flags.txt").read_text()
        assert "--hold_back=0.34\n" in flags and "--steps=8\n" in flags
    other = f"--output_dir={folder}/other"
    refused = run("select", *arguments, *few, other, "--hold_back=0.1")
    check_last_line(refused, "hold_back=0.1 of 6 training images", "too small")
    shutil.rmtree(searched / "checkpoints")
    refused = run("select", *arguments, *few, f"{other}2")
    check_last_line(refused, "search has no checkpoints", "--inherited_batches=0")


def check_last_line(done, *words):
    """As `check_refused`; a note on the classes of this small set may stand before the error."""
    *notes, last = done.stderr.splitlines()
    assert (done.returncode, done.stdout, len(notes) <= 1) == (1, "", True), done.stderr
    assert last.startswith("error: ") and all(word in last for word in words), last
