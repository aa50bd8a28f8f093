"""The search command: killed and resumed, finished, and given what it cannot use."""

import json
import shutil
import signal
import types

import forked
import kills
import numpy as np
import pytest
import tiny_camvid
from commands import call, contents, latest_variables, snapshot

from auto_deeplab_tf import cli, config, search, searcher
from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.data import source
from auto_deeplab_tf.decoding import decode, load_logits
from auto_deeplab_tf.errors import RunError
from auto_deeplab_tf.training import distribution, schedules
from auto_deeplab_tf.training.run_dir import RunDir

SMALL = (
    "--dataset=camvid --crop_size=32x40 --batch_size=2 --num_layers=2 "
    "--num_blocks=1 --filter_multiplier=1 --epochs=3 --steps_per_epoch=4 --arch_start_epoch=1 "
    "--validation_images=4 --checkpoint_every_steps=3 --learning_rate=0.05 "
    "--arch_learning_rate=0.1 --progress=none --seed=3"
).split()
SHORT = "--num_layers=1 --epochs=1 --steps_per_epoch=1 --arch_start_epoch=0".split()
THREADS = ("--intra_op_threads=1", "--inter_op_threads=3")


def data_in(folder):
    """Writes 16 images to search with and 4 to score; returns the flags of both."""
    root = tiny_camvid.write(folder / "CamVid", {"train": 16, "val": 4})
    return [f"--data_dir={root}", f"--cache_dir={folder / 'cache'}"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_in(tmp_path_factory.mktemp("data"))


def run(run_dir, data, *more):
    """Runs the command; checks that TensorFlow has the threads that were asked for."""
    flags = [*SMALL, *THREADS, f"--run_dir={run_dir}", *data, *more]
    done = forked.run("auto_deeplab_tf.search", *flags, trap=("tell_threads",))
    assert done.returncode == 0 and "threads 1 3" in done.stderr, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("runs") / "whole"
    run(path, data)
    return path


@pytest.fixture
def here(monkeypatch, capsys, data):
    """Runs the command in this process; returns what it prints."""
    # TensorFlow has its threads already.
    monkeypatch.setattr(distribution, "set_threads", lambda *threads: None)

    def run_here(run_dir, *more):
        flags = [*SMALL, "--nodeterministic", f"--run_dir={run_dir}", *data, *more]
        call(search, config.SearchConfig, flags, monkeypatch)
        return capsys.readouterr()

    return run_here


@pytest.fixture
def short(tmp_path_factory, here):
    """A run of one step, made once."""
    path = tmp_path_factory.getbasetemp() / "short"
    if not path.exists():
        here(path, *SHORT)
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
    drawings = ("architecture.svg", "architecture.png", "architecture_alpha_beta.svg")
    for name in ("flags.txt", *drawings, "logs"):
        assert (finished / name).exists(), name


def test_a_search_killed_three_times_ends_at_the_same_bits(finished, data, tmp_path):
    """Thirty times, at random moments: test_kills.py."""
    path = tmp_path / "killed"
    arguments = [*SMALL, *THREADS, f"--run_dir={path}", *data]
    for trap in (
        ("in_validation", 1, 0),  # of the warm-up: its epoch is repeated from step 3
        ("in_checkpoint", 2, 0.3),  # of step 6, whose index is torn
        ("in_writing", 1, 0.2, "architecture.json"),
    ):
        assert kills.run("search", arguments, trap)[0] == -signal.SIGKILL
        assert not (path / "architecture.json").exists()
    code, text = kills.run("search", arguments)
    assert code == 0, text
    kills.check_same_search(path, finished)


def test_a_finished_run_is_left_as_it_is(short, here):
    before = snapshot(short)
    result = json.loads(here(short, *SHORT, "--json").out)
    assert result["architecture"].endswith("architecture.json")
    assert snapshot(short) == before


def test_a_longer_search_that_is_stopped_does_not_keep_the_shorter_ones_result(
    short, here, tmp_path, monkeypatch
):
    path = tmp_path / "longer"
    shutil.copytree(short, path)
    # As a version without the score of the decoded network left it.
    rows = [row.split(",") for row in (path / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("val_decoded_miou")
    text = "".join(",".join(row[:column] + row[column + 1 :]) + "\n" for row in rows)
    (path / "metrics.csv").write_text(text)
    flags = (path / "flags.txt").read_text()
    (path / "flags.txt").write_text(flags.replace("--decoded_batches=4\n", ""))
    assert (path / "flags.txt").read_text() != flags
    assert json.loads(here(path, *SHORT, "--json").out)["val_decoded_miou"] is None
    longer = (*SHORT, "--epochs=2", "--json")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(searcher.ArchitectureSearch, "fit", interrupted)
        here(path, *longer)
    assert not (path / "architecture.json").exists() and not (path / "logits.npz").exists()
    printed = here(path, *longer, "--remat=true")
    stretched, rounding = (line for line in printed.err.splitlines() if "warning: " in line)
    assert stretched.startswith(
        "warning: epochs=2 in place of 1: the learning rate's schedule ends after step 2 in place "
        "of 1, and step 1 is taken at 0.0255 in place of 0.001; "
    )
    assert rounding.startswith(
        "warning: remat=true (the run has 'auto'): sums are taken in another"
    )
    result = json.loads(printed.out)
    assert result["epochs"] == 2 and 0 <= result["val_decoded_miou"] < 1
    assert Architecture.load(path / "architecture.json").provenance["steps"] == 2


def test_a_longer_search_updates_alpha_at_the_rate_of_all_its_epochs(here, tmp_path, monkeypatch):
    monkeypatch.setattr(schedules, "LARGEST_ARCH_LEARNING_RATE", 10.0)
    flags = (*SHORT, "--arch_learning_rate=auto", "--decoded_batches=0")
    for more, rate in (((), 9.0), (("--epochs=2",), 4.5)):
        printed = here(tmp_path, *flags, *more)
        numbers = [each for each in latest_variables(tmp_path).values() if np.ndim(each) == 0]
        assert [each for each in (9.0, 4.5) if each in numbers] == [rate]
    assert "up to here. Alpha and beta are updated at 4.5 in place of 9.\n" in printed.err


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_a_single_checkpoint_that_is_damaged_gives_no_weights(short, tmp_path):
    path = tmp_path / "damaged"
    shutil.copytree(short, path)
    (file,) = path.glob("checkpoints/*.data-*")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FileNotFoundError, match="damaged has no checkpoint that can be read"):
        searcher.restored(path)


def test_a_dry_run_measures_what_is_needed_and_leaves_nothing(data, tmp_path):
    needs = json.loads(run(tmp_path / "run", data, "--dry_run", "--json"))
    assert not (tmp_path / "run").exists()
    assert needs["steps"] == 12 and needs["num_parameters"] > 1000
    # Between what TensorFlow alone takes and the smallest machine's memory.
    assert 300 < needs["peak_memory_mib"] < 3000
    # The first of three epochs is without architecture steps.
    weights_only, both = needs["seconds_per_weight_step"], needs["seconds_per_step"]
    assert 0.001 < weights_only < 10 and 0.001 < both < 10
    running = 4 * weights_only + 8 * both
    assert needs["total_seconds"] == pytest.approx(needs["compile_seconds"] + running, abs=2)


def test_a_longer_search_that_is_refused_leaves_the_shorter_one(short, here, tmp_path, monkeypatch):
    path = tmp_path / "other"
    shutil.copytree(short, path)
    longer = (*SHORT, "--epochs=2")
    before = contents(path)
    with monkeypatch.context() as patched, pytest.raises(OSError, match="has 0.0 MiB free"):
        patched.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=0))
        here(path, *longer)
    assert contents(path) == before
    known = json.loads((path / "data.json").read_text())
    (path / "data.json").write_text(json.dumps(known | {"train": "of other images"}))
    before = contents(path)
    with pytest.raises(ValueError, match="the data have changed since the run began"):
        here(path, *longer)
    assert contents(path) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num_layers=3"], "other options: .*num_layers=3"),
        (["--noresume"], "already holds a run"),
        (["--sampled_paths=2"], "other options: .*sampled_paths=2"),
    ],
)
def test_a_run_directory_of_another_configuration_is_refused(short, here, more, message):
    before = snapshot(short)
    with pytest.raises(ValueError, match=message):
        here(short, *SHORT, *more)
    assert snapshot(short) == before


def test_a_collapse_ends_the_run_where_told_and_resumes_where_not(here, tmp_path):
    """Alpha that may hardly move is a sign after a third of its epochs, here the second."""
    path = tmp_path / "collapsed"
    still = ("--arch_learning_rate=1e-6", "--decoded_batches=0")
    before = {}
    for _ in range(2):  # the same command again ends at once, and changes nothing
        with pytest.raises(RunError, match=r"after epoch 1.*alpha is 2\.079"):
            here(path, *still, "--stop_on_collapse")
        assert before in ({}, snapshot(path))
        before = snapshot(path)
    assert not (path / "architecture.json").exists()
    here(path, *still)
    rows = [row.split(",") for row in (path / "metrics.csv").read_text().splitlines()]
    collapse = rows[0].index("collapse")
    assert [row[collapse] for row in rows[1:]] == ["", "alpha_undecided", "alpha_undecided"]
    decoded = rows[0].index("val_decoded_miou")
    assert [row[decoded] for row in rows[1:]] == ["", "", ""]


def test_the_learning_rate_of_alpha_follows_from_the_number_of_its_updates(finished, data):
    flags = [*SMALL, f"--run_dir={finished}", *data, "--arch_learning_rate=auto"]
    options = cli.parse(config.SearchConfig, flags)
    train = source.open_for(options, "train")
    for updates, total_steps in ((100, 150), (1000, 1500)):
        model = searcher.from_options(options, train, total_steps).model
        assert float(model.architecture_optimizer.learning_rate) == pytest.approx(9 / updates)


def test_a_fast_search_says_so_everywhere_and_decodes_with_its_edges(here, tmp_path):
    path = tmp_path / "fast"
    modes = ("--filter_multiplier=2", "--partial_channels=2", "--sampled_paths=2")
    printed = here(path, "--epochs=2", *modes)
    assert "a short search: alpha and beta are updated 4 times" in printed.err
    assert "fast modes (not the exact search): partial_channels=2, sampled_paths=2" in printed.err
    architecture = Architecture.load(path / "architecture.json")
    assert architecture.provenance["fast_modes"] == {"partial_channels": 2, "sampled_paths": 2}
    logits = load_logits(path / "logits.npz")
    assert logits.edge.shape == (2,) and np.abs(logits.edge).max() > 0.01
    assert architecture == decode(logits.alpha, logits.beta, "separable", edge_logits=logits.edge)
    with pytest.raises(ValueError, match="other options: .*partial_channels=1"):
        here(path, "--epochs=2", modes[0], modes[2])


def test_the_plain_formulation_searches_and_says_that_it_is_slow(short, here, tmp_path):
    path = tmp_path / "plain"
    printed = here(path, *SHORT, "--formulation=plain")
    assert printed.err.count("times as long as a fused one") == 1
    ours, theirs = latest_variables(path), latest_variables(short)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if np.issubdtype(np.asarray(value).dtype, np.floating) and np.size(value):
            np.testing.assert_allclose(value, theirs[name], rtol=1e-3, atol=1e-3, err_msg=name)
    with pytest.raises(ValueError, match="sampled_paths=2 needs .*formulation=fused"):
        here(tmp_path / "both", "--formulation=plain", "--sampled_paths=2")


def test_a_folder_whose_alpha_was_never_updated_can_be_extended(data, tmp_path):
    flags = [*SMALL, f"--run_dir={tmp_path}", *data]
    with RunDir(tmp_path, cli.parse(config.SearchConfig, [*flags, "--epochs=1"])):
        pass
    assert RunDir(tmp_path, cli.parse(config.SearchConfig, flags)).before.epochs == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--epochs=1"], "arch_start_epoch=1 must be smaller than epochs=1: .*never be updated"),
        (["--crop_size=300x48"], "crop_size=300x48 .*32x48"),
        (["--dataset=camvid", "--data_dir=none"], "none"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(here, tmp_path, more, message):
    with pytest.raises((ValueError, OSError), match=message):
        here(tmp_path / "run", *more)
    assert not (tmp_path / "run").exists()
