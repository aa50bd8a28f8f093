"""Records and run folders on filesystems of TensorFlow's: ram:// here; gs:// was not run."""

import csv
import io
import json
import uuid

import numpy as np
import pytest
import tiny_camvid
from commands import call, run

from auto_deeplab_tf import cli, config, decode, evaluate, files, predict, search, select, train
from auto_deeplab_tf.architecture import Architecture, Edge
from auto_deeplab_tf.data import shards
from auto_deeplab_tf.data import source as source_lib
from auto_deeplab_tf.errors import StorageError
from auto_deeplab_tf.served import load_segmenter

TRAIN = (
    "--dataset=camvid --crop_size=32x40 --batch_size=2 --filter_multiplier=1 --head_channels=8 "
    "--decoder_channels=4 --steps=4 --steps_per_epoch=2 --checkpoint_every_steps=1 --overlays=1 "
    "--progress=none --nodeterministic --json"
).split()
SEARCH = (
    "--dataset=camvid --crop_size=32x40 --batch_size=2 --num_layers=1 --num_blocks=1 "
    "--filter_multiplier=1 --epochs=1 --steps_per_epoch=1 --arch_start_epoch=0 "
    "--decoded_batches=1 --validation_images=1 --progress=none --nodeterministic --json"
).split()


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    return tiny_camvid.write(
        tmp_path_factory.mktemp("data") / "CamVid", {"train": 6, "val": 3, "test": 2}
    )


@pytest.fixture
def ram():
    return files.as_path(f"ram://{uuid.uuid4()}/a b")


def names(folder):
    """Paths of all files below a folder."""
    found = set()
    for path in folder.iterdir():
        found |= {f"{path.name}/{name}" for name in names(path)} if path.is_dir() else {path.name}
    return found


def without(found, *parts):
    return {name for name in found if not any(part in name for part in parts)}


@pytest.mark.parametrize("kind", ["local", "file", "ram"])
def test_a_remote_path_does_what_a_local_one_does(tmp_path, kind):
    prefix = {"local": "", "file": "file://", "ram": "ram://"}[kind]
    folder = files.as_path(f"{prefix}{tmp_path}/sub")
    assert str(folder) == f"{prefix}{tmp_path}/sub"
    assert folder.parent / "sub" == folder and hash(folder.parent / "sub") == hash(folder)
    file = folder / "a.b.txt"
    assert (file.name, file.stem, file.suffix) == ("a.b.txt", "a.b", ".txt")
    assert file.with_suffix(".png") == folder / "a.b.png" == file.with_name("a.b.png")
    assert not folder.exists() and not folder.is_dir() and not file.is_file()
    for missing in (file.read_bytes, file.unlink, file.stat, lambda: list(folder.iterdir())):
        with pytest.raises(FileNotFoundError) as caught:
            missing()
        assert caught.value.strerror == "No such file or directory"
    file.unlink(missing_ok=True)
    folder.mkdir(parents=True)
    with pytest.raises(FileExistsError):
        folder.mkdir()
    folder.mkdir(exist_ok=True)
    files.write_text(file, "old é")
    files.write_text(file, "new é")
    assert file.read_text("utf-8") == "new é" and file.stat().st_size == 6
    assert file.is_file() and folder.is_dir() and not file.is_dir()
    (folder / "b.part").write_bytes(b"longer")
    (folder / "b.part").write_bytes(b"1")
    (folder / "b.part").replace(folder / "b[1].txt")
    assert sorted(folder.iterdir()) == sorted([file, folder / "b[1].txt"])
    assert list(folder.glob("*1*")) == [folder / "b[1].txt"]
    assert (folder / "b[1].txt").read_bytes() == b"1"
    with files.local_input(file) as local:
        assert local.read_text("utf-8") == "new é"
    with pytest.raises(ValueError, match="stopped"), files.local_output(folder / "c") as local:
        local.with_name("d").write_text("3")
        raise ValueError("stopped")
    with files.local_output(folder / "c") as local:
        local.write_text("2")
    assert (folder / "c").read_bytes() == b"2"
    files.remove_folder(folder)
    assert not folder.exists()


def test_an_upload_that_fails_leaves_the_old_file_and_nothing_else(ram, monkeypatch):
    (ram / "mask.png").write_bytes(b"old")

    def fails(self, local):
        self.write_bytes(local.read_bytes()[:1])
        assert files.is_partial(self.name)
        raise OSError("connection lost")

    monkeypatch.setattr(type(ram), "upload", fails)
    with pytest.raises(OSError, match="lost"), files.local_output(ram / "mask.png") as local:
        local.write_bytes(b"new")
    assert names(ram) == {"mask.png"} and (ram / "mask.png").read_bytes() == b"old"


def test_a_selection_is_made_and_resumes_behind_a_url(camvid, tmp_path, ram, monkeypatch):
    recipe = tmp_path / "recipe.flags"
    recipe.write_text("\n".join([*TRAIN, f"--data_dir={camvid}", f"--cache_dir={tmp_path}/cache"]))
    trained = []

    def run_command(command):
        assert command[1:3] == ["-m", "auto_deeplab_tf.train"]
        options = cli.parse(config.TrainConfig, command[3:])
        assert (options.crop_size, options.steps) == ((32, 40), 4)
        trained.append(Architecture.load(options.architecture))
        row = f"0,{options.stop_after_steps},{len(trained)},0.5\n"
        metrics = files.as_path(options.run_dir) / "metrics.csv"
        files.write_text(metrics, "epoch,step,loss,val_miou\n" + row)
        return 0, 1.0, ""

    monkeypatch.setattr(select, "run_command", run_command)
    flags = [f"--train_flagfile={recipe}", f"--output_dir={ram}", "--hold_back=0.34", "--rungs=1"]
    flags += ["--num_layers=2", "--num_blocks=1", "--num_random=2", "--json"]
    options = cli.parse(config.SelectConfig, flags)
    result = select._Selection(options).run()
    assert result["candidate"] == "random-0" and len(trained) == 2
    (ram / "architecture.json").unlink()
    assert select._Selection(options).run() == result and len(trained) == 2


def test_flag_files_are_read_behind_a_url(ram):
    files.write_text(ram / "common.flags", "--steps=7\n")
    files.write_text(ram / "train.flags", "--flagfile=common.flags\r\n# more\r\n--run_dir=a\r\n")
    arguments = [f"--flagfile={ram / 'train.flags'}", "--architecture=auto_deeplab"]
    assert cli.parse(config.TrainConfig, arguments).steps == 7
    with pytest.raises(ValueError, match="^--flagfile=ram://.*none: No such file"):
        cli.parse(config.TrainConfig, [f"--flagfile={ram / 'none'}"])
    with pytest.raises(cli.FlagsError, match="^--flagfile=nosuch://a: this TensorFlow reads no"):
        cli.parse(config.TrainConfig, ["--flagfile=nosuch://a"])


def test_a_filesystem_that_tensorflow_does_not_have_is_named(tmp_path):
    done = run("decode", "--run_dir=nosuch://bucket/run")
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: nosuch://bucket/run: this TensorFlow reads no nosuch://")
    with pytest.raises(ValueError, match="^data_dir must be a path of this machine. .* ram://x$"):
        source_lib.open_split("camvid", "train", data_dir="ram://x", cache_dir=tmp_path)


def test_a_url_that_is_a_pattern_is_refused():
    with pytest.raises(ValueError, match=r"^ram://a/run\[1\] must hold none of \[ \] \* \?"):
        files.LiteralPath("ram://a/run[1]")


def test_records_are_those_of_a_local_folder_and_resume(camvid, tmp_path, ram, monkeypatch):
    local = source_lib.open_split("camvid", "train", data_dir=camvid, cache_dir=tmp_path)
    write, written = shards._write_shard, []

    def stopped(path, *rest):
        if written:
            raise OSError(28, "No space left on device")
        written.append(path.name)
        return write(path, *rest)

    monkeypatch.setattr(shards, "_write_shard", stopped)
    with pytest.raises(StorageError, match="resumes from its 1 finished shards"):
        source_lib.open_split("camvid", "train", data_dir=camvid, cache_dir=ram)
    written.clear()
    monkeypatch.setattr(
        shards,
        "_write_shard",
        lambda path, *rest: (written.append(path.name), write(path, *rest))[1],
    )
    source = source_lib.open_split("camvid", "train", data_dir=camvid, cache_dir=ram)
    assert written == ["val-00000.tfrecord", "test-00000.tfrecord"]
    assert source.directory == ram / local.directory.name
    assert names(source.directory) == names(local.directory)
    for name in names(local.directory):
        assert (source.directory / name).read_bytes() == (local.directory / name).read_bytes()
    for index in range(local.num_examples):
        for ours, theirs in zip(source.example(index), local.example(index), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    source.verify()
    # The records alone, named as such: no machine but the one that prepared needs the files.
    alone = source_lib.open_split("camvid", "train", cache_dir=source.directory)
    assert (alone.ids, alone.fingerprint) == (source.ids, source.fingerprint)
    with pytest.raises(ValueError, match="made with dataset=camvid, and this run is to have .*8x8"):
        source_lib.open_split("camvid", "train", cache_dir=source.directory, image_size=(8, 8))
    with pytest.raises(ValueError, match="holds records of camvid, version .* wanted is ade20k"):
        source_lib.open_split("ade20k", "train", cache_dir=source.directory)
    (source.directory / "train-00000.tfrecord").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"ram://.*train-00000.tfrecord is damaged"):
        source_lib.open_split("camvid", "train", data_dir=camvid, cache_dir=ram)


@pytest.mark.slow
def test_a_training_on_ram_resumes_and_its_model_is_evaluated_there(camvid, tmp_path, ram, capsys):
    cell = ((Edge("prev", "sep_3x3"), Edge("prev_prev", "max_pool_3x3")),)
    results = {}
    for place in (tmp_path, ram):
        Architecture((1,), cell, "separable").save(place / "architecture.json")
        flags = [*TRAIN, f"--data_dir={camvid}", f"--cache_dir={place}/cache"]
        flags += [f"--architecture={place}/architecture.json", f"--run_dir={place}/run"]
        for steps in (2, 4) if place is ram else (4,):
            train.train(cli.parse(config.TrainConfig, [*flags, f"--stop_after_steps={steps}"]))
        model = f"{place}/run/model.keras"
        scored = evaluate.evaluate(
            cli.parse(
                config.EvaluateConfig,
                [
                    *("--dataset=camvid", f"--data_dir={camvid}", f"--cache_dir={place}/cache"),
                    *(f"--model={model}", f"--output_dir={place}/scores", "--overlays=1"),
                ],
            )
        )
        assert json.loads((place / "scores" / "metrics.json").read_text()) == scored
        image = next((camvid / "val").iterdir())
        (place / "images").mkdir()
        (place / "images" / image.name).write_bytes(image.read_bytes())
        predicted = predict.predict(
            config.PredictConfig(
                model=model, image=f"{place}/images", output_dir=f"{place}/masks", tile=(32, 32)
            )
        )
        assert predicted["num_images"] == 1 and not predicted["failures"]
        rows = list(csv.DictReader(io.StringIO((place / "run" / "metrics.csv").read_text())))
        results[place] = rows, scored["miou"], load_segmenter(model).get_weights()
    assert without(names(ram), "events.out") == without(names(tmp_path), "events.out", ".lock")
    notes = capsys.readouterr().err.splitlines()
    assert sum(f"{ram}/run is not locked" in line for line in notes) == 2
    ours, theirs = results[ram], results[tmp_path]
    assert [row["step"] for row in ours[0]] == ["2", "4"]
    for row, other in zip(ours[0], theirs[0], strict=True):
        assert float(row["loss"]) == pytest.approx(float(other["loss"]), rel=1e-5)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-5)
    for weight, other in zip(ours[2], theirs[2], strict=True):
        np.testing.assert_allclose(weight, other, atol=1e-5)


def test_a_search_on_ram_is_decoded_there(camvid, ram, monkeypatch, capsys):
    monkeypatch.setattr("auto_deeplab_tf.training.distribution.set_threads", lambda *_: None)
    flags = [*SEARCH, f"--data_dir={camvid}", f"--cache_dir={ram}/cache", f"--run_dir={ram}/run"]
    call(search, config.SearchConfig, flags, monkeypatch)
    found = without(names(ram / "run"), "events.out", "checkpoints/")
    assert found == {
        *("architecture.json", "architecture.png", "architecture.svg", "flags.txt", "logits.npz"),
        *("architecture_alpha_beta.svg", "data.json", "metrics.csv", "split.json"),
    }
    searched = Architecture.load(ram / "run" / "architecture.json")
    again = [f"--run_dir={ram}/run", f"--output={ram}/decoded.json"]
    call(decode, config.DecodeConfig, again, monkeypatch)
    assert Architecture.load(ram / "decoded.json") == searched
    # A finished run is not begun again: nothing is written.
    before = (ram / "run" / "flags.txt").read_bytes()
    capsys.readouterr()
    call(search, config.SearchConfig, flags, monkeypatch)
    assert "not locked" not in capsys.readouterr().err
    assert (ram / "run" / "flags.txt").read_bytes() == before
