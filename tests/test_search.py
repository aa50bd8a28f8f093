"""The search command: killed and resumed, finished, and given what it cannot use."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from commands import check_refused, latest_variables, run_and_kill, snapshot
from commands import run as run_command

from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.decoding import decode, load_logits

SMALL = (
    "--dataset=scenes --image_size=64x128 --crop_size=40x48 --batch_size=2 --num_layers=2 "
    "--num_blocks=1 --filter_multiplier=1 --epochs=3 --steps_per_epoch=4 --arch_start_epoch=1 "
    "--validation_images=4 --checkpoint_every_steps=3 --learning_rate=0.05 "
    "--arch_learning_rate=0.1 --progress=none --seed=3"
).split()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def run(run_dir, cache, *more):
    return run_command("search", *SMALL, f"--run_dir={run_dir}", f"--cache_dir={cache}", *more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    path = tmp_path_factory.mktemp("runs") / "whole"
    done = run(path, cache)
    assert done.returncode == 0, done.stderr
    return path


def test_a_search_leaves_what_the_interfaces_promise(finished):
    architecture = Architecture.load(finished / "architecture.json")
    assert "fast_modes" not in architecture.provenance
    with np.load(finished / "logits.npz") as logits:
        assert logits["alpha"].shape == (2, 8)
        assert logits["beta"].shape == (2, 4, 3)
        assert architecture == decode(logits["alpha"], logits["beta"], "separable")
        assert np.abs(logits["alpha"]).max() > 0.1
    rows = (finished / "metrics.csv").read_text().splitlines()
    assert rows[0].startswith("epoch,step,loss,arch_loss,learning_rate,val_miou")
    assert [row.split(",")[0:2] for row in rows[1:]] == [["0", "4"], ["1", "8"], ["2", "12"]]
    arch_loss = [row.split(",")[3] for row in rows[1:]]
    assert arch_loss[0] == "" and float(arch_loss[1]) > 0
    decoded = rows[0].split(",").index("val_decoded_miou")
    assert all(0 < float(row.split(",")[decoded]) < 1 for row in rows[1:])
    members = json.loads((finished / "split.json").read_text())
    assert set(members) == {"train_a", "train_b"}
    assert not set(members["train_a"]) & set(members["train_b"])
    assert abs(len(members["train_a"]) - len(members["train_b"])) <= 1
    for name in ("flags.txt", "architecture.svg", "architecture.png", "logs"):
        assert (finished / name).exists(), name


def test_a_search_killed_twice_ends_at_the_same_bits(finished, cache, tmp_path):
    path = tmp_path / "killed"
    for after_step in (2, 6):
        run_and_kill("search", path, after_step, *SMALL, f"--cache_dir={cache}")
        assert not (path / "architecture.json").exists()
    done = run(path, cache)
    assert done.returncode == 0, done.stderr
    for name in ("metrics.csv", "architecture.json", "split.json"):
        assert (path / name).read_bytes() == (finished / name).read_bytes(), name
    ours, theirs = latest_variables(path), latest_variables(finished)
    assert ours.keys() == theirs.keys() and len(ours) > 20
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def test_a_finished_run_exits_with_0_and_changes_nothing(finished, cache):
    before = snapshot(finished)
    done = run(finished, cache, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["architecture"].endswith("architecture.json")
    assert snapshot(finished) == before


def test_a_longer_search_that_is_killed_does_not_answer_with_the_shorter_ones_result(
    finished, cache, tmp_path
):
    path = tmp_path / "longer"
    shutil.copytree(finished, path)
    # As a version without the score of the decoded network left it.
    rows = [row.split(",") for row in (path / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("val_decoded_miou")
    text = "".join(",".join(row[:column] + row[column + 1 :]) + "\n" for row in rows)
    (path / "metrics.csv").write_text(text)
    flags = (path / "flags.txt").read_text()
    (path / "flags.txt").write_text(flags.replace("--decoded_batches=4\n", ""))
    assert (path / "flags.txt").read_text() != flags
    finished_before = run(path, cache, "--json")
    assert json.loads(finished_before.stdout)["val_decoded_miou"] is None
    longer = ("--epochs=5", f"--cache_dir={cache}")
    run_and_kill("search", path, 13, *SMALL, *longer, seconds_later=0)
    assert not (path / "architecture.json").exists()
    done = run(path, cache, "--epochs=5", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epochs"] == 5
    assert 0 < json.loads(done.stdout)["val_decoded_miou"] < 1
    assert Architecture.load(path / "architecture.json").provenance["steps"] == 20


def test_a_dry_run_measures_what_is_needed_and_leaves_nothing(cache, tmp_path):
    done = run(tmp_path / "run", cache, "--dry_run", "--json")
    assert done.returncode == 0, done.stderr
    needs = json.loads(done.stdout)
    assert not (tmp_path / "run").exists()
    assert needs["steps"] == 12 and needs["num_parameters"] > 1000
    # Between what TensorFlow alone takes and the smallest machine's memory.
    assert 300 < needs["peak_memory_mib"] < 3000
    # The first of three epochs is without architecture steps.
    weights_only, both = needs["seconds_per_weight_step"], needs["seconds_per_step"]
    assert 0.001 < weights_only < 10 and 0.001 < both < 10
    running = 4 * weights_only + 8 * both
    assert needs["total_seconds"] == pytest.approx(needs["compile_seconds"] + running, abs=2)


@pytest.mark.parametrize("more", [("--dry_run",), ("--epochs=1", "--steps_per_epoch=1")])
def test_the_threads_asked_for_are_those_of_tensorflow(cache, tmp_path, more):
    program = (
        "import sys, tensorflow as tf\n"
        "from auto_deeplab_tf import cli, search\n"
        "try: cli.run(search.main)\n"
        "finally: print('threads', tf.config.threading.get_intra_op_parallelism_threads(),\n"
        "    tf.config.threading.get_inter_op_parallelism_threads())\n"
    )
    flags = [*SMALL, *more, "--arch_start_epoch=1", "--intra_op_threads=1", "--inter_op_threads=3"]
    command = [sys.executable, "-c", program, *flags, f"--run_dir={tmp_path}/run"]
    done = subprocess.run(
        [*command, f"--cache_dir={cache}"], capture_output=True, text=True, check=True
    )
    assert "threads 1 3" in done.stdout


def test_a_finished_search_is_decoded_by_perturbation(finished, cache, tmp_path):
    output = tmp_path / "perturbed.json"
    command = ("decode", f"--run_dir={finished}", f"--output={output}", "--json")
    done = run_command(*command, "--selection=perturbation", "--perturbation_batches=1")
    assert done.returncode == 0, done.stderr
    architecture = Architecture.load(output)
    logits = load_logits(finished / "logits.npz")
    assert architecture.levels == decode(logits.alpha, logits.beta, "separable").levels
    assert architecture.provenance["decode"]["selection"] == "perturbation"
    bare = tmp_path / "bare"
    shutil.copytree(finished, bare, ignore=shutil.ignore_patterns("checkpoints"))
    refused = run_command("decode", f"--run_dir={bare}", "--selection=perturbation")
    check_refused(refused, "bare has no checkpoints")


def test_a_collapse_ends_the_run_where_told_and_resumes_where_not(cache, tmp_path):
    """Alpha that may hardly move is a sign after a third of its epochs, here the second."""
    path = tmp_path / "collapsed"
    still = ("--arch_learning_rate=1e-6", "--decoded_batches=0")
    before = {}
    for _ in range(2):  # the same command again ends at once, and changes nothing
        done = run(path, cache, *still, "--stop_on_collapse")
        assert done.returncode == 1 and done.stdout == ""
        *_, last = done.stderr.strip().splitlines()
        assert last.startswith("error: ") and "after epoch 1" in last and "alpha is 2.079" in last
        assert before in ({}, snapshot(path))
        before = snapshot(path)
    assert not (path / "architecture.json").exists()
    done = run(path, cache, *still)
    assert done.returncode == 0, done.stderr
    rows = [row.split(",") for row in (path / "metrics.csv").read_text().splitlines()]
    collapse = rows[0].index("collapse")
    assert [row[collapse] for row in rows[1:]] == ["", "alpha_undecided", "alpha_undecided"]
    decoded = rows[0].index("val_decoded_miou")
    assert [row[decoded] for row in rows[1:]] == ["", "", ""]


def test_a_run_directory_of_another_configuration_is_refused(finished, cache):
    before = snapshot(finished)
    check_refused(run(finished, cache, "--num_layers=3"), "--num_layers=3", "other options")
    check_refused(run(finished, cache, "--noresume"), "already holds a run")
    assert snapshot(finished) == before


def test_a_fast_search_says_so_everywhere_and_decodes_with_its_edges(cache, tmp_path):
    path = tmp_path / "fast"
    modes = ("--filter_multiplier=2", "--partial_channels=2", "--sampled_paths=2")
    done = run(path, cache, *modes)
    assert done.returncode == 0, done.stderr
    assert "fast modes (not the exact search): partial_channels=2, sampled_paths=2" in done.stderr
    architecture = Architecture.load(path / "architecture.json")
    assert architecture.provenance["fast_modes"] == {"partial_channels": 2, "sampled_paths": 2}
    logits = load_logits(path / "logits.npz")
    assert logits.edge.shape == (2,) and np.abs(logits.edge).max() > 0.01
    assert architecture == decode(logits.alpha, logits.beta, "separable", edge_logits=logits.edge)
    before = snapshot(path)
    check_refused(run(path, cache, *modes[:2]), "--sampled_paths=0", "other options")
    check_refused(run(path, cache, modes[0], modes[2]), "--partial_channels=1", "other options")
    assert snapshot(path) == before


@pytest.mark.usefixtures("finished")  # its records are there: preparing them is told on stderr
def test_a_crop_of_mostly_padding_is_refused_and_nothing_is_written(cache, tmp_path):
    path = tmp_path / "run"
    check_refused(run(path, cache, "--crop_size=300x48"), "--crop_size=300x48", "64x128")
    assert not path.exists()


def test_the_plain_formulation_searches_and_says_that_it_is_slow(cache, tmp_path):
    path = tmp_path / "plain"
    few = ("--num_layers=1", "--epochs=1", "--steps_per_epoch=1", "--arch_start_epoch=0")
    done = run(path, cache, *few, "--formulation=plain")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("times as long as a fused one") == 1
    fused = run(tmp_path / "fused", cache, *few)
    assert "plain" not in fused.stderr
    ours, theirs = latest_variables(path), latest_variables(tmp_path / "fused")
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if np.issubdtype(np.asarray(value).dtype, np.floating) and np.size(value):
            np.testing.assert_allclose(value, theirs[name], rtol=1e-3, atol=1e-3, err_msg=name)
    both = run(tmp_path / "both", cache, "--formulation=plain", "--sampled_paths=2")
    assert both.returncode == 2
    assert "--sampled_paths=2 needs --formulation=fused" in both.stderr


def test_missing_data_are_refused_and_nothing_is_written(cache, tmp_path):
    path = tmp_path / "run"
    check_refused(run(path, cache, "--dataset=camvid", f"--data_dir={tmp_path}/none"), "none")
    assert not path.exists()
