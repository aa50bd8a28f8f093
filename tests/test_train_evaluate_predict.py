"""train, evaluate and predict on tiny images: what they leave, resume, and refuse."""

import csv
import json
import os
import shutil
import signal
import types

import kills
import numpy as np
import pytest
import tiny_camvid
from commands import contents, latest_variables, run, snapshot
from PIL import Image

from auto_deeplab_tf import cli, config, evaluate, overlay, predict, train
from auto_deeplab_tf.architecture import Architecture, Edge
from auto_deeplab_tf.data import image_files, pipeline, sets
from auto_deeplab_tf.served import load_segmenter
from auto_deeplab_tf.training import checkpoints
from auto_deeplab_tf.training.schedules import Poly

ARCHITECTURE = Architecture(
    levels=(1,),
    cell=((Edge("prev", "sep_3x3"), Edge("prev_prev", "max_pool_3x3")),),
    atrous="separable",
)
COUNTS = {"train": 6, "val": 3, "test": 2}
SMALL = (
    "--dataset=camvid --crop_size=32x40 --batch_size=2 --filter_multiplier=1 --head_channels=8 "
    "--decoder_channels=4 --drop_path_keep=0.8 --batch_norm_decay=0.9 --steps=12 "
    "--steps_per_epoch=4 --checkpoint_every_steps=3 --class_weights=sqrt_median_frequency "
    "--overlays=2 --progress=none --seed=3"
).split()


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The data, the folder of their records and the architecture file, as flags."""
    folder = tmp_path_factory.mktemp("data")
    root = tiny_camvid.write(folder / "CamVid", COUNTS)
    ARCHITECTURE.save(folder / "architecture.json")
    return {
        "data_dir": root,
        "cache_dir": folder / "cache",
        "architecture": folder / "architecture.json",
    }


def flags(values):
    return [f"--{name}={value}" for name, value in values.items()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, places):
    """A run that nothing disturbed."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    done = run("train", *SMALL, *flags(places), f"--run_dir={path}", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["model"] == str(path / "model.keras") and result["steps"] == 12
    return path


@pytest.fixture(scope="module")
def model(finished):
    return load_segmenter(finished / "model.keras")


def options(places, run_dir, *more):
    return cli.parse(
        config.TrainConfig,
        [*SMALL, *flags(places), f"--run_dir={run_dir}", "--nodeterministic", *more],
    )


def same_run(places, run_dir, *more):
    """Options that resume a run of `finished`."""
    return cli.parse(
        config.TrainConfig, [*SMALL, *flags(places), f"--run_dir={run_dir}", "--json", *more]
    )


def metrics_of(run_dir):
    with open(run_dir / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_train_leaves_what_the_interfaces_promise(finished, places):
    rows = metrics_of(finished)
    assert tuple(rows[0]) == ("epoch", "step", *train.METRICS)
    assert [(row["epoch"], row["step"]) for row in rows] == [("0", "4"), ("1", "8"), ("2", "12")]
    assert all(float(value) >= 0 for row in rows for value in row.values())
    assert float(rows[-1]["learning_rate"]) == pytest.approx(0, abs=1e-8)
    assert Architecture.load(finished / "architecture.json") == ARCHITECTURE
    read = config.from_flags_text(config.TrainConfig, (finished / "flags.txt").read_text())
    assert read == same_run(places, finished)
    sheets = sorted(path.name for path in (finished / "overlays").iterdir())
    assert sheets == [f"epoch_{epoch:05d}.png" for epoch in range(3)]
    assert len(list((finished / "logs").iterdir())) == 1

    best, last = (load_segmenter(finished / name) for name in ("model.keras", "last.keras"))
    info = sets.describe("camvid")
    assert best.class_names == info.class_names and best.ignore_label == 255
    np.testing.assert_array_equal(best.palette, info.palette)
    assert best.architecture.fingerprint == ARCHITECTURE.fingerprint
    assert best.network.get_config()["fingerprint"] == ARCHITECTURE.fingerprint
    saved = latest_variables(finished)
    for variable in last.variables:
        assert any(
            np.shape(value) == variable.shape and np.array_equal(value, variable)
            for value in saved.values()
        ), variable.path


def test_a_training_stopped_in_every_way_ends_at_the_same_bits(finished, places, tmp_path):
    path = tmp_path / "killed"
    arguments = [*SMALL, *flags(places), f"--run_dir={path}"]
    reasons = {143: "terminated", 130: "interrupted", 75: "max_hours is over"}
    for code, trap, more, saved in (
        (143, ("in_step", 2, 0.0, signal.SIGTERM), (), (2, 3)),
        (130, ("in_step", 2, 0.0, signal.SIGINT), (), (4, 5)),
        (75, None, ("--max_hours=1e-6",), (5, 6)),
        (-9, ("in_step", 3, 0.1), (), ()),
    ):
        found, text = kills.run("train", [*arguments, *more], trap)
        assert found == code, text
        if saved:
            # After the step that the signal came in, or where it came late after the next.
            line = text.splitlines()[-1]
            reason, _, rest = line.partition(": ")
            checkpoint, _, rest = rest.partition(" ")
            assert reason == reasons[code] and int(checkpoint.rpartition("-")[2]) in saved, text
            assert rest == "is saved; the same command resumes from it"
        assert not (path / "last.keras").exists()
    code, text = kills.run("train", arguments)
    assert code == 0, text
    kills.check_same_training(path, finished)


def test_a_training_that_stops_early_resumes_on_the_schedule_of_all_steps(
    finished, places, tmp_path
):
    path = tmp_path / "stopped"
    command = ("train", *SMALL, *flags(places), f"--run_dir={path}", "--json")
    for _ in range(2):  # the same command again changes nothing
        done = run(*command, "--stop_after_steps=5")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["steps"] == 8
        assert not (path / "last.keras").exists()
        assert metrics_of(path) == metrics_of(finished)[:2]
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert (path / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()
    ours, theirs = latest_variables(path), latest_variables(finished)
    assert all(np.array_equal(value, theirs[name]) for name, value in ours.items())


def test_a_training_killed_between_a_row_and_its_checkpoint_has_not_stopped(places, tmp_path):
    stopped = options(places, tmp_path, "--steps_per_epoch=1", "--stop_after_steps=1")
    train.train(stopped)
    rows = metrics_of(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "model.keras").unlink()
    train.train(stopped)
    assert checkpoints.steps_in(tmp_path / "checkpoints") == [1]
    assert (tmp_path / "model.keras").exists() and len(metrics_of(tmp_path)) == len(rows) == 1


def test_a_training_without_a_validated_epoch_has_no_result(places, tmp_path):
    every = ("--steps_per_epoch=1", "--validation_every_epochs=5")
    train.train(options(places, tmp_path, *every, "--stop_after_steps=1"))
    # As where it was to run on, and was stopped after the first epoch.
    metrics = metrics_of(tmp_path)[0]
    row = metrics | {name: "" for name in metrics if name.startswith("val_")}
    (tmp_path / "metrics.csv").write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
    (tmp_path / "model.keras").unlink()
    with pytest.raises(ValueError, match="^stop_after_steps=1 must be greater than 1: .*no model"):
        train.train(options(places, tmp_path, *every, "--stop_after_steps=1"))


def test_checkpoints_belong_to_the_order_of_the_weights_not_to_the_networks_number():
    def model(number, *weights):
        named = [
            types.SimpleNamespace(path=f"network_{number}/{name}", shape=(size, 3))
            for name, size in weights
        ]
        architecture = types.SimpleNamespace(fingerprint="a" * 64)
        network = types.SimpleNamespace(weights=named)
        return types.SimpleNamespace(architecture=architecture, network=network)

    found = train._layout_fingerprint(model(0, ("a", 2), ("b", 2)))
    assert found == train._layout_fingerprint(model(7, ("a", 2), ("b", 2)))
    for other in ((("b", 2), ("a", 2)), (("a", 2), ("b", 4)), (("a", 2),)):
        assert train._layout_fingerprint(model(0, *other)) != found


def test_a_copied_set_resumes_and_a_changed_one_does_not(places, tmp_path, capsys):
    path, copy = tmp_path / "run", tmp_path / "copy"
    train.train(options(places, path, "--steps=4"))
    shutil.copytree(places["data_dir"], copy, copy_function=shutil.copyfile)
    for file in copy.rglob("*"):
        os.utime(file, (1, 1))
    elsewhere = {**places, "data_dir": copy, "cache_dir": tmp_path / "cache"}
    capsys.readouterr()
    assert train.train(options(elsewhere, path, "--steps=8"))["steps"] == 8
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning: " in line]
    (line,) = warnings
    rate = float(Poly(0.05, 8)(4))
    assert line.startswith(
        "warning: steps=8 in place of 4: the learning rate's schedule ends after step 8 in place "
        f"of 4, and step 4 is taken at {rate:.3g} in place of 0; "
    )
    image = next((copy / "train").iterdir())
    pixels = np.array(Image.open(image))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(image)
    with pytest.raises(ValueError, match="the data have changed since the run began"):
        train.train(options(elsewhere, path, "--steps=12"))


def test_a_run_that_began_with_less_than_an_epoch_keeps_its_epochs(places, tmp_path):
    train.train(options(places, tmp_path, "--steps=2"))
    before = metrics_of(tmp_path)
    for steps in ("--steps=5", "--steps=6"):  # the same plan also where flags.txt has grown
        result = train.train(options(places, tmp_path, steps))
        assert (result["steps"], result["epochs"]) == (6, 3)
        rows = metrics_of(tmp_path)
        assert rows[:1] == before and [row["step"] for row in rows] == ["2", "4", "6"]


def test_a_part_of_train_is_held_back_and_validated_on(places, tmp_path, monkeypatch):
    seen = {}
    for name in ("training_batches", "validation_batches"):
        called = getattr(pipeline, name)

        def spy(*arguments, name=name, called=called, **keywords):
            seen[name] = arguments
            return called(*arguments, **keywords)

        monkeypatch.setattr(pipeline, name, spy)
    held = ("--hold_back=0.34", "--steps=1", "--steps_per_epoch=1")
    train.train(options(places, tmp_path / "run", *held))
    source, kept = seen["training_batches"]
    scored_source, _, _, scored = seen["validation_batches"]
    assert scored_source is source and source.split == "train"
    assert sorted([*kept, *scored]) == list(range(6)) and len(scored) == 2
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert data["val"] == data["train"]


def test_a_dry_run_measures_what_is_needed_and_leaves_nothing(places, tmp_path):
    needs = train.train(options(places, tmp_path / "run", "--dry_run"))
    assert not (tmp_path / "run").exists()
    assert needs["steps"] == 12 and needs["num_parameters"] > 1000
    assert needs["total_seconds"] == pytest.approx(
        needs["compile_seconds"] + 12 * needs["seconds_per_step"], abs=1
    )


def test_masks_that_are_all_ignored_give_no_score(finished, places, tmp_path):
    root = tmp_path / "CamVid"
    shutil.copytree(places["data_dir"], root)
    void = Image.fromarray(np.full(tiny_camvid.SIZE, tiny_camvid.VOID, np.uint8))
    for path in (root / "valannot").iterdir():
        void.save(path)
    folders = places | {"data_dir": root, "cache_dir": tmp_path / "cache"}
    with pytest.raises(ValueError, match="val of camvid has no labelled pixel"):
        train.train(options(folders, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="no score: all pixels .* ignore label 255"):
        evaluate.evaluate(evaluation(folders, finished, tmp_path / "out"))
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_a_bare_network_is_evaluated_and_predicts(finished, model, places, pictures, tmp_path):
    """Class names are those of the data set, and numbers where there is none."""
    folder, _ = pictures
    (tmp_path / "bare").mkdir()
    model.network.save(tmp_path / "bare" / "model.keras")
    found = evaluate.evaluate(evaluation(places, tmp_path / "bare", tmp_path / "out"))
    expected = evaluate.evaluate(evaluation(places, finished, tmp_path / "expected"))
    assert found["per_class_iou"] == expected["per_class_iou"] and found["miou"] > 0
    predict.predict(prediction(tmp_path / "bare", folder / "rgb.png", tmp_path / "masks"))
    mask = np.asarray(Image.open(tmp_path / "masks" / "rgb_mask.png"))
    np.testing.assert_array_equal(
        mask, model.predict_class_ids(np.asarray(Image.open(folder / "rgb.png")))
    )


def test_a_finished_run_is_left_as_it_is(finished, places):
    before = snapshot(finished)
    result = train.train(same_run(places, finished))
    best = max(metrics_of(finished), key=lambda row: float(row["val_miou"]))
    assert result["val_miou"] == float(best["val_miou"])
    assert result["best_epoch"] == int(best["epoch"]) + 1
    assert snapshot(finished) == before


def test_a_longer_run_that_is_refused_leaves_the_shorter_one(
    finished, places, tmp_path, monkeypatch
):
    path = tmp_path / "longer"
    shutil.copytree(finished, path)
    before = contents(path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=0))
    with pytest.raises(OSError, match="has 0.0 MiB free"):
        train.train(same_run(places, path, "--steps=16"))
    assert contents(path) == before


def test_a_run_of_other_options_or_another_architecture_is_refused(finished, places, tmp_path):
    before = snapshot(finished)
    for more, words in (
        (["--filter_multiplier=2"], r"other options: filter_multiplier=2 \(the run has '1'\)"),
        (["--steps=8"], r"steps=8 \(the run has '12'\)"),
        (["--noresume"], "already holds a run"),
    ):
        with pytest.raises(ValueError, match=words):
            train.train(same_run(places, finished, *more))
    file = places["architecture"]
    kept = file.read_bytes()
    try:
        Architecture((0, 1), ARCHITECTURE.cell, "separable").save(file)
        with pytest.raises(ValueError, match="trains another architecture than the file"):
            train.train(same_run(places, finished))
    finally:
        file.write_bytes(kept)
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        train.train(same_run(places, strange))
    assert snapshot(finished) == before
    assert [path.name for path in strange.iterdir()] == ["notes.txt"]


def edited(change):
    """Writes an architecture file whose content was changed."""

    def write(folder):
        content = ARCHITECTURE.to_dict()
        change(content)
        (folder / "wrong.json").write_text(json.dumps(content))
        return {"architecture": folder / "wrong.json"}

    return write


def strange_label(folder):
    root = tiny_camvid.write(folder / "strange", COUNTS)
    label = np.zeros(tiny_camvid.SIZE, np.uint8)
    label[3, 4] = 200
    Image.fromarray(label).save(root / "trainannot" / "0016E5_00001.png")
    return {"data_dir": root, "cache_dir": folder / "cache"}


REFUSED = {
    "rule": (edited(lambda c: c.update(levels=[0, 2])), r"wrong.json: levels\[1\] = 2 cannot"),
    "preset": (lambda folder: {"architecture": "auto_deeplap"}, "auto_deeplap"),
    "crop": (lambda folder: {"crop_size": "150x40"}, r"crop_size=150x40 .* \(at most 32x48\)"),
    "label ids": (strange_label, "0016E5_00001.* 200"),
    "baseline": (
        lambda folder: {"architecture": "", "network": "resnet"},
        "network=resnet: no baseline of that name",
    ),
    "batch": (
        lambda folder: {"batch_size": 3, "distribution_strategy": "mirrored"},
        "batch_size=3 must be a multiple of the 2 devices",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_answered_by_one_line_and_nothing_is_written(case, places, tmp_path, mirrored):
    make, words = REFUSED[case]
    with pytest.raises((ValueError, OSError), match=words) as refused:
        train.train(options(places | make(tmp_path), tmp_path / "run"))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()
    cache = tmp_path / "cache"
    assert not cache.exists() or not any(cache.iterdir())


@pytest.mark.slow
def test_a_baseline_is_trained_by_its_name(places, tmp_path):
    others = {name: value for name, value in places.items() if name != "architecture"}
    more = ["--steps=2", "--steps_per_epoch=1", "--drop_path_keep=1", "--overlays=0"]
    result = train.train(options(others, tmp_path, *more, "--network=frrn_a"))
    assert result["steps"] == 2 and 0 <= result["val_miou"] <= 1
    model = load_segmenter(tmp_path / "model.keras")
    assert model.architecture is None and model.network.variant == "a"
    assert not (tmp_path / "architecture.json").exists()


@pytest.mark.slow
def test_a_longer_run_goes_on_from_a_finished_one(finished, places, tmp_path):
    path = tmp_path / "longer"
    shutil.copytree(finished, path)
    result = train.train(same_run(places, path, "--steps=16"))
    assert result["steps"] == 16 and result["epochs"] == 4
    rows = metrics_of(path)
    assert rows[:3] == metrics_of(finished)
    assert (rows[3]["epoch"], rows[3]["step"]) == ("3", "16")


def evaluation(places, finished, output_dir, *more):
    return cli.parse(
        config.EvaluateConfig,
        [
            f"--model={finished / 'model.keras'}",
            "--dataset=camvid",
            f"--data_dir={places['data_dir']}",
            f"--cache_dir={places['cache_dir']}",
            f"--output_dir={output_dir}",
            *more,
        ],
    )


def labels_of(places, split):
    """Label maps of a split, straight from the files; void is 255."""
    for path in sorted((places["data_dir"] / f"{split}annot").iterdir()):
        labels = np.asarray(Image.open(path)).astype("int64")
        yield path.stem, np.where(labels == tiny_camvid.VOID, 255, labels)


def scores_by_hand(pairs):
    """(mIoU, {class: IoU}, pixel accuracy) of (labels, prediction) pairs, class by class."""
    labels = np.concatenate([labels.ravel() for labels, _ in pairs])
    predictions = np.concatenate([prediction.ravel() for _, prediction in pairs])
    labels, predictions = labels[labels != 255], predictions[labels != 255]
    iou = {}
    for index, name in enumerate(sets.describe("camvid").class_names):
        union = ((labels == index) | (predictions == index)).sum()
        both = ((labels == index) & (predictions == index)).sum()
        iou[name] = both / union if union else None
    present = [value for value in iou.values() if value is not None]
    return np.mean(present), iou, (labels == predictions).mean()


def test_evaluate_counts_each_pixel_of_the_split_once(finished, model, places, tmp_path):
    output = tmp_path / "out"
    # Three images in batches of two: the last batch is a partial one.
    more = ["--batch_size=2", "--trivial_predictors", "--overlays=2"]
    result = evaluate.evaluate(evaluation(places, finished, output, *more))
    assert json.loads((output / "metrics.json").read_text()) == result
    assert {
        "miou",
        "per_class_iou",
        "pixel_accuracy",
        "mean_of_miou_and_pixel_accuracy",
        "num_images",
    } <= set(result)
    assert result["num_images"] == 3 and result["split"] == "val"
    assert result["architecture_fingerprint"] == ARCHITECTURE.fingerprint
    assert len(result["per_class_iou"]) == 11

    pairs = []
    for stem, labels in labels_of(places, "val"):
        image = np.asarray(Image.open(places["data_dir"] / "val" / f"{stem}.png"))
        pairs.append((labels, model.predict_class_ids(image)))
    miou, per_class, accuracy = scores_by_hand(pairs)
    assert result["miou"] == pytest.approx(miou)
    assert result["pixel_accuracy"] == pytest.approx(accuracy)
    assert result["mean_of_miou_and_pixel_accuracy"] == pytest.approx((miou + accuracy) / 2)
    assert result["per_class_iou"] == {
        name: None if value is None else pytest.approx(value) for name, value in per_class.items()
    }
    assert None in result["per_class_iou"].values()
    best = max(float(row["val_miou"]) for row in metrics_of(finished))
    assert result["miou"] == pytest.approx(best)

    counts = np.zeros((11, *tiny_camvid.SIZE), "int64")
    for _, labels in labels_of(places, "train"):
        counts += np.arange(11)[:, None, None] == labels
    most_frequent = np.full(tiny_camvid.SIZE, counts.sum((1, 2)).argmax())
    per_position = np.where(counts.sum(0) > 0, counts.argmax(0), most_frequent)
    for name, prediction in (
        ("most_frequent_class", most_frequent),
        ("position_majority", per_position),
    ):
        expected = scores_by_hand([(labels, prediction) for _, labels in labels_of(places, "val")])
        assert result["trivial_predictors"][name]["miou"] == pytest.approx(expected[0])
        assert result["trivial_predictors"][name]["pixel_accuracy"] == pytest.approx(expected[2])

    drawn = sorted(path.name for path in (output / "overlays").iterdir())
    assert len(drawn) == 3 and "sheet.png" in drawn


def test_evaluate_takes_images_of_every_size(finished, model, places, tmp_path):
    root = tmp_path / "CamVid"
    shutil.copytree(places["data_dir"], root)
    pairs = []
    # Below what the network takes, odd, and as they are; --batch_size=3 makes no batch of them.
    for (stem, labels), (height, width) in zip(
        labels_of(places, "val"), ((20, 45), (31, 48), (32, 33)), strict=True
    ):
        for folder in ("val", "valannot"):
            path = root / folder / f"{stem}.png"
            Image.open(path).crop((0, 0, width, height)).save(path)
        image = np.asarray(Image.open(root / "val" / f"{stem}.png"))
        pairs.append((labels[:height, :width], model.predict_class_ids(image)))
    more = ["--batch_size=3", "--overlays=3"]
    folders = places | {"data_dir": root}
    result = evaluate.evaluate(evaluation(folders, finished, tmp_path / "out", *more))
    assert result["num_images"] == 3 and result["input_size"] is None
    miou, _, accuracy = scores_by_hand(pairs)
    assert result["miou"] == pytest.approx(miou)
    assert result["pixel_accuracy"] == pytest.approx(accuracy)
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 4


def test_evaluate_takes_scales_flip_size_and_split(finished, model, places, tmp_path):
    more = ["--split=test", "--scales=1.5", "--flip", "--input_size=40x60", "--overlays=0"]
    result = evaluate.evaluate(evaluation(places, finished, tmp_path / "out", *more))
    assert result["num_images"] == 2 and result["input_size"] == [40, 60]
    assert result["scales"] == [1.5] and result["flip"] is True
    pairs = []
    for stem, labels in labels_of(places, "test"):
        image = np.asarray(Image.open(places["data_dir"] / "test" / f"{stem}.png"))
        prediction = model.predict_class_ids(image, input_size=(40, 60), scales=[1.5], flip=True)
        pairs.append((labels, prediction))
    assert result["miou"] == pytest.approx(scores_by_hand(pairs)[0])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["metrics.json"]


def test_evaluate_refuses_what_does_not_fit(finished, places, tmp_path):
    output = tmp_path / "out"
    generated = places | {"data_dir": ""}
    for folders, flag, message in (
        (generated, "--dataset=scenes", "class 0 of model=.* is Sky, of dataset=scenes "),
        (places, "--split=training", "split of camvid must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate.evaluate(evaluation(folders, finished, output, flag))
    assert not output.exists()


def test_label_ids_are_written_under_names_that_an_evaluation_finds(finished, model, tmp_path):
    """The official Cityscapes evaluation looks for one CITY_SEQUENCE_FRAME*.png."""
    mine = as_folder(tmp_path / "mine", masks=[7, 26, *range(100, 109)], names=model.class_names)
    output = tmp_path / "out"
    flags = ["--dataset=folder", f"--data_dir={mine}", f"--cache_dir={tmp_path / 'cache'}"]
    result = evaluate.evaluate(
        evaluation({"data_dir": "", "cache_dir": ""}, finished, output, *flags, "--write_label_ids")
    )
    stems = [path.stem for path in sorted((mine / "images").iterdir())]
    assert result["num_images"] == len(stems) == 3
    names = sorted(path.name for path in (output / "label_ids").iterdir())
    assert names == [f"{stem}_pred_labelIds.png" for stem in stems]
    table = np.array([7, 26, *range(100, 109)])
    for stem, name in zip(stems, names, strict=True):
        written = Image.open(output / "label_ids" / name)
        assert written.mode == "L"
        image = np.asarray(Image.open(mine / "images" / f"{stem}.png"))
        np.testing.assert_array_equal(written, table[model.predict_class_ids(image)])
    with pytest.raises(ValueError, match="leave image_size and max_image_side out"):
        more = ["--write_label_ids", "--image_size=32x48"]
        evaluate.evaluate(
            evaluation({"data_dir": "", "cache_dir": ""}, finished, output, *flags, *more)
        )


def as_folder(root, masks, names):
    """Three images for `--dataset=folder`, all in val and train; class i has the id masks[i]."""
    rng = np.random.default_rng(1)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    stems = [f"berlin_{index:06d}_000019" for index in range(3)]
    for stem in stems:
        image = rng.integers(0, 256, (*tiny_camvid.SIZE, 3), dtype=np.uint8)
        label = np.array(masks, np.uint8)[rng.integers(0, len(masks), tiny_camvid.SIZE)]
        Image.fromarray(image).save(root / "images" / f"{stem}.png")
        Image.fromarray(label).save(root / "masks" / f"{stem}.png")
    for split in ("train", "val"):
        (root / f"{split}.txt").write_text("\n".join(stems))
    classes = [{"name": name, "ids": [i]} for name, i in zip(names, masks, strict=True)]
    (root / "dataset.json").write_text(json.dumps({"classes": classes}))
    return root


def test_init_from_takes_all_but_the_class_layer(finished, model, places, tmp_path, monkeypatch):
    mine = as_folder(tmp_path / "mine", masks=[0, 1], names=["low", "high"])
    source = tmp_path / "source.keras"
    shutil.copy(finished / "model.keras", source)
    path = tmp_path / "run"
    flags = [
        *("--dataset=folder", f"--data_dir={mine}", f"--init_from={source}", "--steps=2"),
        *("--steps_per_epoch=2", "--learning_rate=1e-30", "--class_weights=none", "--power=0.1"),
    ]
    train.train(options(places, path, *flags))
    found = json.loads((path / "init.json").read_text())
    assert found["model"] == str(source) and found["new"] == [
        "decoder/classes/bias",
        "decoder/classes/kernel",
    ]
    # With a learning rate of nothing, what was taken is what comes out.
    ours = load_segmenter(path / "last.keras")
    assert ours.class_names == ("low", "high")

    def num_taken():
        weights = load_segmenter(path / "last.keras").network.trainable_variables
        pairs = zip(weights, model.network.trainable_variables, strict=True)
        equal = [np.array_equal(a, b) for a, b in pairs]
        assert equal.count(False) == 2 and len(equal) > 20
        return equal.count(True)

    assert found["taken"] >= num_taken()
    # A run whose only checkpoint is damaged begins with that file again.
    (data,) = (path / "checkpoints").glob("step-2.data-*")
    data.write_bytes(data.read_bytes()[:-9])
    train.train(options(places, path, *flags, "--steps=4"))
    num_taken()
    # A resumed run has its own weights, and does not need the file any more.
    source.unlink()
    damage, read = checkpoints._damage, []
    monkeypatch.setattr(checkpoints, "_damage", lambda path: read.append(path) or damage(path))
    train.train(options(places, path, *flags, "--steps=6"))
    assert read == [f"{path}/checkpoints/step-4"]
    with pytest.raises(FileNotFoundError, match="init_from=.*source.keras: no such file"):
        train.train(options(places, tmp_path / "new", *flags))
    assert not (tmp_path / "new").exists()


def test_init_from_another_network_is_refused(finished, places, tmp_path):
    source = f"--init_from={finished / 'model.keras'}"
    with pytest.raises(ValueError, match=r"has filter_multiplier 1, .* give filter_multiplier=1"):
        train.train(options(places, tmp_path / "run", source, "--filter_multiplier=2"))
    other = tmp_path / "other.json"
    Architecture((0, 1), ARCHITECTURE.cell, "separable").save(other)
    with pytest.raises(ValueError, match="has another architecture than this training"):
        train.train(options(places | {"architecture": other}, tmp_path / "run", source))
    assert not (tmp_path / "run").exists()


@pytest.fixture
def pictures(tmp_path):
    """The same 40x52 picture as the kinds of files that occur, in a folder of their own."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (40, 52, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(folder / "rgb.png")
    Image.fromarray(rgb[..., 0]).save(folder / "grey.png")
    alpha = rng.integers(0, 256, (40, 52, 1), dtype=np.uint8)
    Image.fromarray(np.concatenate([rgb, alpha], axis=-1)).save(folder / "rgba.png")
    wide = rgb[..., 0].astype("uint16") * 256 + rng.integers(0, 256, (40, 52)).astype("uint16")
    Image.fromarray(wide).save(folder / "wide.png")
    Image.fromarray(rgb).save(folder / "photo.JPG", quality=95)
    (folder / "notes.txt").write_text("no image")
    return folder, rgb


def prediction(finished, image, output_dir, *more):
    return cli.parse(
        config.PredictConfig,
        [
            f"--model={finished / 'model.keras'}",
            f"--image={image}",
            f"--output_dir={output_dir}",
            *more,
        ],
    )


def test_one_channel_of_16_bits_from_training_to_prediction(places, tmp_path):
    mine = as_folder(tmp_path / "mine", masks=[0, 1], names=["low", "high"])
    rng = np.random.default_rng(2)
    for path in (mine / "images").iterdir():
        pixels = rng.integers(0, 2**16, tiny_camvid.SIZE, dtype=np.uint16)
        Image.fromarray(pixels).save(path)
    data = {"data_dir": mine, "cache_dir": tmp_path / "cache"}
    flags = ["--dataset=folder", "--steps=2", "--steps_per_epoch=2", "--normalization=dataset"]
    run_dir = tmp_path / "run"
    train.train(options(places | data, run_dir, *flags))
    model = load_segmenter(run_dir / "model.keras")
    assert model.input_channels == 1 and len(model.network.mean) == 1
    assert 120 < model.network.mean[0] < 135  # of values spread evenly over 0..65535, by 257
    output = tmp_path / "out"
    more = ["--dataset=folder", "--write_label_ids", "--overlays=1"]
    evaluate.evaluate(evaluation(data, run_dir, output, *more))
    predict.predict(prediction(run_dir, mine / "images", tmp_path / "masks"))
    for path in (mine / "images").iterdir():
        evaluated = Image.open(output / "label_ids" / f"{path.stem}_pred_labelIds.png")
        predicted = Image.open(tmp_path / "masks" / f"{path.stem}_mask.png")
        np.testing.assert_array_equal(evaluated, predicted)


def test_predict_writes_a_mask_and_an_overlay_of_each_image(finished, model, pictures, tmp_path):
    folder, _ = pictures
    output = tmp_path / "out"
    result = predict.predict(prediction(finished, folder, output))
    assert result["num_images"] == 5 and result["failures"] == []
    stems = ("grey", "photo", "rgb", "rgba", "wide")
    assert sorted(path.name for path in output.iterdir()) == sorted(
        f"{stem}_{kind}.png" for stem in stems for kind in ("mask", "overlay")
    )
    for row, stem in zip(result["images"], stems, strict=True):
        image = image_files.read_photograph((folder / row["image"]).read_bytes(), channels=3)
        mask = np.asarray(Image.open(output / f"{stem}_mask.png"))
        assert mask.dtype == np.uint8 and row["size"] == [40, 52]
        np.testing.assert_array_equal(mask, model.predict_class_ids(image))
        drawing = np.asarray(Image.open(output / f"{stem}_overlay.png")).astype("int64")
        mixed = (overlay.displayable(image).astype("int64") + model.palette[mask]) / 2
        assert np.abs(drawing - mixed).max() <= 0.5

    some = predict.predict(
        prediction(finished, folder / "rgb*.png", tmp_path / "some", "--input_size=64x64")
    )
    assert [row["input_size"] for row in some["images"]] == [[64, 64]] * 2
    assert np.asarray(Image.open(tmp_path / "some" / "rgb_mask.png")).shape == (40, 52)


def test_an_image_that_cannot_be_read_does_not_keep_the_others(finished, pictures, tmp_path):
    folder, _ = pictures
    whole = (folder / "rgb.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no picture")
    output = tmp_path / "out"
    done = run(
        "predict",
        f"--model={finished / 'model.keras'}",
        f"--image={folder}",
        f"--output_dir={output}",
    )
    assert done.returncode == 1
    summary, left_out = done.stdout.splitlines()
    assert summary == f"5 of 7 images: masks and overlays in {output}"
    assert left_out == "left out, not .png, .jpg, .jpeg, .tif, .tiff: 1 files"
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: 2 images could not be segmented: ")
    assert str(folder / "cut.png") in lines[0] and str(folder / "text.jpg") in lines[0]
    assert len(list(output.iterdir())) == 10


def test_predict_refuses_what_it_cannot_do(finished, pictures, tmp_path):
    folder, rgb = pictures
    output = tmp_path / "out"
    Image.fromarray(rgb).save(folder / "photo.png")
    with pytest.raises(ValueError, match="would both be written as photo_mask.png"):
        predict.predict(prediction(finished, folder, output))
    Image.fromarray(rgb).save(folder / "rgb_mask.png")
    with pytest.raises(ValueError, match="rgb_mask.png is one of the images") as error:
        predict.predict(prediction(finished, folder / "rgb*.png", folder))
    assert error.value.names == ("output_dir",)
    assert not output.exists()
    (tmp_path / "empty").mkdir()
    words = "the folder has no .png, .jpg, .jpeg, .tif, .tiff file"
    with pytest.raises(FileNotFoundError, match=words):
        predict.predict(prediction(finished, tmp_path / "empty", output))


def test_a_tile_as_large_as_the_image_predicts_the_same(finished, pictures, tmp_path):
    folder, _ = pictures
    for more in ([], ["--input_size=64x48"]):
        plain, tiled = tmp_path / f"plain{len(more)}", tmp_path / f"tiled{len(more)}"
        predict.predict(prediction(finished, folder, plain, *more))
        result = predict.predict(prediction(finished, folder, tiled, "--tile=64x64", *more))
        assert result["failures"] == []
        assert all(row["tile"] == [40, 52] and row["overlap"] == 8 for row in result["images"])
        for path in plain.iterdir():
            np.testing.assert_array_equal(Image.open(path), Image.open(tiled / path.name))


def test_an_image_in_tiles(finished, model, tmp_path):
    """Where a pixel belongs to one tile, its class is that of the tile alone."""
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "image.tif")
    done = run(
        "predict",
        f"--model={finished / 'model.keras'}",
        f"--image={tmp_path / 'image.tif'}",
        f"--output_dir={tmp_path / 'out'}",
        *("--tile=50x40", "--overlap=10", "--max_image_pixels=1024", "--json"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"][0]["overlap"] == 10
    mask = np.asarray(Image.open(tmp_path / "out" / "image_mask.png"))
    for start, part in ((0, slice(0, 30)), (30, slice(40, 70))):
        alone = model.predict_class_ids(image[:, start : start + 40])
        np.testing.assert_array_equal(mask[:, part], alone[:, part.start - start :][:, :30])


def test_a_video_is_drawn_frame_by_frame(finished, model, tmp_path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "drive.mp4"
    writer = imageio_ffmpeg.write_frames(str(path), (64, 48), fps=5, macro_block_size=2)
    writer.send(None)
    for value in (30, 120, 220):
        writer.send(np.full((48, 64, 3), value, np.uint8))
    writer.close()
    result = predict.predict(prediction(finished, path, tmp_path / "out"))
    (row,) = result["videos"]
    assert (row["num_frames"], row["size"], row["fps"]) == (3, [48, 64], 5)
    assert row["frames_per_second"] > 0 and result["num_images"] == 0

    def frames(file):
        _, *content = imageio_ffmpeg.read_frames(str(file))
        return [np.frombuffer(frame, np.uint8).reshape(48, 64, 3) for frame in content]

    for frame, drawn in zip(frames(path), frames(row["overlay"]), strict=True):
        expected = overlay.overlay(frame, model.predict_class_ids(frame), model.palette)
        assert np.abs(drawn.astype(int) - expected).mean() < 12
    failed = predict.predict(prediction(finished, path, tmp_path / "out", "--tile=64x64"))
    assert "tile is for images" in failed["failures"][0]


@pytest.mark.slow
def test_a_training_resumes_on_two_devices_and_then_on_one(places, tmp_path, mirrored, finished):
    for strategy, until in (("one_device", 4), ("mirrored", 8), ("one_device", 12)):
        more = [f"--distribution_strategy={strategy}", f"--stop_after_steps={until}"]
        result = train.train(options(places, tmp_path / "run", *more))
        assert result["steps"] == until
    one, two = (load_segmenter(path / "last.keras") for path in (finished, tmp_path / "run"))
    assert two.architecture == ARCHITECTURE
    for ours, theirs in zip(one.network.weights, two.network.weights, strict=True):
        scale = max(np.abs(ours).max(), 0.1)
        np.testing.assert_allclose(theirs, ours, atol=1e-3 * scale, err_msg=ours.path)
