"""Two workers, each a process, do what one device does: search, train and evaluate."""

import csv
import json
import signal
import time

import numpy as np
import pytest
import tiny_camvid
import workers
from commands import call, latest_variables, run

from auto_deeplab_tf import config, evaluate, search, train
from auto_deeplab_tf.architecture import Architecture, Edge
from auto_deeplab_tf.decoding import load_logits
from auto_deeplab_tf.served import load_segmenter

pytestmark = pytest.mark.slow

SECONDS = 900  # of the pair, on cores that others use too
DATA = "--dataset=camvid --batch_size=2 --json".split()
RUN = "--crop_size=33x41 --steps_per_epoch=2 --checkpoint_every_steps=3 --seed=3".split()
SEARCH = (
    "--num_layers=1 --num_blocks=1 --filter_multiplier=2 --stem_channels=4,4,4 --epochs=2 "
    "--arch_start_epoch=0 --arch_learning_rate=0.1 --decoded_batches=1"
).split()
TRAIN = (
    "--filter_multiplier=1 --head_channels=8 --decoder_channels=4 --drop_path_keep=0.5 "
    "--batch_norm_decay=0.9 --steps=4 --overlays=1"
).split()
# 5 images in batches of 2: the workers get 3 and 2.
COUNTS = {"train": 8, "val": 5}

ARCHITECTURE = Architecture(
    levels=(1,),
    cell=((Edge("prev", "sep_3x3"), Edge("prev_prev", "max_pool_3x3")),),
    atrous="separable",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of runs on one device, one, and of the same on two workers, two."""
    folder = tmp_path_factory.mktemp("workers")
    data = tiny_camvid.write(folder / "CamVid", COUNTS)
    ARCHITECTURE.save(folder / "architecture.json")
    places = [*DATA, f"--data_dir={data}", f"--cache_dir={folder / 'cache'}"]

    def commands(name, *more):
        architecture = f"--architecture={folder / 'architecture.json'}"
        return [
            ["search", [*places, *RUN, *SEARCH, f"--run_dir={folder / name / 'search'}", *more]],
            [
                "train",
                [
                    *places,
                    *RUN,
                    *TRAIN,
                    architecture,
                    f"--run_dir={folder / name / 'train'}",
                    *more,
                ],
            ],
            [
                "evaluate",
                [
                    *places,
                    "--write_label_ids",
                    "--overlays=4",
                    f"--model={folder / 'one' / 'train' / 'model.keras'}",
                    f"--output_dir={folder / name / 'evaluation'}",
                    *more,
                ],
            ],
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("auto_deeplab_tf.training.distribution.set_threads", lambda *_: None)
        configs = config.SearchConfig, config.TrainConfig, config.EvaluateConfig
        for (_, arguments), module, of_command in zip(
            commands("one"), (search, train, evaluate), configs, strict=True
        ):
            call(module, of_command, arguments, patch)
    several = commands("two", "--distribution_strategy=multi_worker_mirrored")
    with workers.Pair.of_commands(folder, several) as pair:
        codes = pair.wait(SECONDS)
        assert codes == [0, 0], pair.output(0)[-3000:] + pair.output(1)[-3000:]
        # Results are the chief's to print.
        assert pair.output(0).count('"val_miou"') == 2 and "{" not in pair.output(1)
    return folder


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def weights(path):
    """The weights of a model file by their paths."""
    # Without the network's own name, which counts the networks of the process that made it.
    return {v.path.partition("/")[2]: np.asarray(v) for v in load_segmenter(path).network.weights}


def check_close(two, one, tolerance, smallest=0.0):
    """Compares the variables of two runs, relative to the largest value of each."""
    assert one.keys() == two.keys()
    for name, value in one.items():
        if np.asarray(value).dtype.kind == "f":
            atol = tolerance * max(np.abs(value).max(), smallest)
            np.testing.assert_allclose(two[name], value, rtol=0, atol=atol, err_msg=name)
        else:
            np.testing.assert_array_equal(two[name], value, err_msg=name)


# Momentum of a training is a sum of small differences.
@pytest.mark.parametrize(("command", "tolerance"), [("search", 1e-5), ("train", 1e-3)])
def test_two_workers_end_with_the_state_of_one_device(runs, command, tolerance):
    one, two = (latest_variables(runs / name / command) for name in ("one", "two"))
    check_close(two, one, tolerance)


def test_two_workers_train_the_weights_of_one_device(runs):
    one, two = (weights(runs / name / "train" / "last.keras") for name in ("one", "two"))
    assert sum(value.std() > 1e-3 for value in one.values()) > 10
    # As `test_two_devices_equal_one`: the first offsets are sums of small differences.
    check_close(two, one, 1e-5, smallest=0.1)


def test_two_workers_search_what_one_device_searches(runs):
    for ours, theirs in zip(
        *(load_logits(runs / name / "search" / "logits.npz")[:2] for name in ("one", "two")),
        strict=True,
    ):
        assert ours.std() > 0.01
        np.testing.assert_allclose(theirs, ours, atol=1e-4)
    architectures = [
        Architecture.load(runs / name / "search" / "architecture.json") for name in ("one", "two")
    ]
    assert architectures[0] == architectures[1]


@pytest.mark.parametrize("command", ["search", "train"])
def test_two_workers_write_the_metrics_of_one_device_once(runs, command):
    one, two = (rows(runs / name / command / "metrics.csv") for name in ("one", "two"))
    assert len(one) == len(two) == 2
    for ours, theirs in zip(one, two, strict=True):
        for name, value in ours.items():
            if name.endswith(("miou", "pixel_accuracy")) and command == "search":
                assert theirs[name] == value, name
            elif name.endswith(("miou", "pixel_accuracy")):
                # A pixel whose two best classes are level may change its class.
                assert float(theirs[name]) == pytest.approx(float(value), abs=1e-3)
            elif name in ("levels", "cell", "collapse"):
                assert theirs[name] == value
            else:
                assert float(theirs[name]) == pytest.approx(float(value), rel=1e-5), name
    assert len(list((runs / "two" / command / "logs").iterdir())) == 1


def test_two_workers_score_what_one_device_scores_and_write_each_image_once(runs):
    one, two = (runs / name / "evaluation" for name in ("one", "two"))
    scores = [json.loads((folder / "metrics.json").read_text()) for folder in (one, two)]
    assert scores[0] == scores[1] and scores[0]["num_images"] == COUNTS["val"]
    files = [sorted(p.relative_to(f) for p in f.rglob("*.png")) for f in (one, two)]
    assert files[0] == files[1] and len(files[0]) == COUNTS["val"] + 4 + 1
    for name in files[0]:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.mark.parametrize("command", [search, train, evaluate])
def test_a_command_without_its_worker_is_refused(command, tmp_path, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    name = command.__name__.rpartition(".")[2]
    flags = {"search": [], "train": ["--architecture=auto_deeplab"], "evaluate": ["--model=a"]}
    folder = "output_dir" if name == "evaluate" else "run_dir"
    with pytest.raises(ValueError, match="needs the environment variable TF_CONFIG"):
        call(
            command,
            getattr(config, f"{name.capitalize()}Config"),
            [
                *flags[name],
                "--distribution_strategy=multi_worker_mirrored",
                f"--{folder}={tmp_path / 'out'}",
            ],
            monkeypatch,
        )
    assert not (tmp_path / "out").exists()


def test_a_tpu_that_is_not_there_is_named(tmp_path):
    done = run(
        "evaluate",
        "--model=a",
        "--distribution_strategy=tpu",
        f"--output_dir={tmp_path / 'out'}",
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: --tpu=local: no TPU was found there")


def wait_for_step(run_dir, step, pair, seconds=SECONDS):
    """Waits until a run has a checkpoint past a step; returns the step of that."""
    import tensorflow as tf

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert None in [p.poll() for p in pair.processes], pair.output(0)[-2000:]
        latest = tf.train.latest_checkpoint(run_dir / "checkpoints") or "step-0"
        if (found := int(latest.rsplit("-", 1)[1])) > step:
            return found
        time.sleep(0.05)
    raise AssertionError("the run does not get there")


def test_workers_that_are_killed_or_told_to_end_resume_on_one_device(tmp_path):
    """One of two is killed, then one is told to end; one device does the rest.

    What each leaves is the state that one device has after as many steps. From there on roundings
    grow: once a maximum or a ReLU falls the other way, 1e-6 becomes 1e-3 within 40 steps.
    """
    data = tiny_camvid.write(tmp_path / "CamVid", COUNTS)
    ARCHITECTURE.save(tmp_path / "architecture.json")
    arguments = [
        *DATA,
        *TRAIN,
        f"--architecture={tmp_path / 'architecture.json'}",
        f"--data_dir={data}",
        f"--cache_dir={tmp_path / 'cache'}",
        *"--crop_size=33x41 --steps=90 --steps_per_epoch=45 --checkpoint_every_steps=3".split(),
        # At the default, 90 steps make 1e-2 of a rounding.
        "--learning_rate=0.0005",
    ]
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    done = run("train", *arguments, f"--run_dir={whole}", "--keep_checkpoints=100")
    assert done.returncode == 0, done.stderr
    command = ["-m", "auto_deeplab_tf.train", *arguments, f"--run_dir={run_dir}"]
    several = [*command, "--distribution_strategy=multi_worker_mirrored"]

    with workers.Pair(tmp_path, *several) as pair:
        killed_after = wait_for_step(run_dir, 3, pair)
        pair.processes[1].send_signal(signal.SIGKILL)
        assert pair.wait(60) == [1, -signal.SIGKILL], pair.output(0)[-2000:]
        lines = pair.output(0).strip().splitlines()
        assert "stopped because another worker has gone" in lines[-1], lines[-3:]
        assert "Start all workers again with the same command" in lines[-1]
    assert check_checkpoint(run_dir, whole) >= killed_after

    with workers.Pair(tmp_path, *several) as pair:
        ended_after = wait_for_step(run_dir, killed_after + 6, pair)
        pair.processes[1].send_signal(signal.SIGTERM)
        assert pair.wait(60) == [143, 143], pair.output(0)[-2000:] + pair.output(1)[-2000:]
    assert ended_after <= check_checkpoint(run_dir, whole) < 90

    done = run("train", *command[2:])
    assert done.returncode == 0, done.stderr
    check_close(*(weights(path / "last.keras") for path in (run_dir, whole)), 2e-2, 0.1)
    one, two = (latest_variables(path) for path in (whole, run_dir))
    counts = [name for name, value in one.items() if np.shape(value) == (11, 11)]
    assert len(counts) == 1  # of all pixels of the last epoch, whoever has seen them
    assert one[counts[0]].sum() == two[counts[0]].sum() > 0


def check_checkpoint(run_dir, whole):
    """Compares the newest checkpoint with a whole run's of the same step; returns the step."""
    import tensorflow as tf

    step = int(tf.train.latest_checkpoint(run_dir / "checkpoints").rpartition("-")[2])
    two, one = latest_variables(run_dir), latest_variables(whole, step)
    counts = [name for name, value in one.items() if np.shape(value) == (11, 11)]
    for name in counts:  # a pixel whose two best classes are level may change its class
        assert one.pop(name).sum() == two.pop(name).sum()
    check_close(two, one, 2e-5, 0.1)
    return step
