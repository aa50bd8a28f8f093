"""What version 0.1.0 wrote is read, and run folders resume, as they did then (tests/fixtures)."""

import pathlib
import shutil
import tarfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from commands import call, contents, run
from PIL import Image

from auto_deeplab_tf import baselines, cli, config, evaluate, predict, search
from auto_deeplab_tf import decode as decode_command
from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.decoding import decode, load_logits
from auto_deeplab_tf.nn.supernet import Supernet
from auto_deeplab_tf.served import load_segmenter
from export.tensorrt import export_tensorrt

FIXTURES = pathlib.Path(__file__).parent / "fixtures/0.1.0"
SMALL_BASELINES = (
    "deeplabv3plus_xception65",
    "dpc_xception65",
    "frrn_a",
    "frrn_b",
    "pspnet_resnet101",
)


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """The folder of the old files."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(FIXTURES / "files.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def expected(old):
    """What the old version computed: `images`, and the logits of each network for them."""
    with np.load(old / "expected.npz") as arrays:
        return dict(arrays)


def resumed(command, old, tmp_path, *flags):
    """Runs the flags.txt of an old run again, in a copy of its folder.

    Returns:
        (the finished process, the copy).
    """
    copy = tmp_path / command
    shutil.copytree(old / command, copy, dirs_exist_ok=True)
    done = run(
        command,
        f"--flagfile={copy}/flags.txt",
        f"--run_dir={copy}",
        f"--data_dir={old}/data",
        f"--cache_dir={old}/cache",
        *flags,
    )
    return done, copy


def last_row(path):
    """The numbers of the last row of a metrics.csv, by column."""
    header, *_, last = path.read_text().splitlines()
    row = dict(zip(header.split(","), last.split(","), strict=True))
    texts = ("levels", "cell", "collapse")
    return {name: float(value) for name, value in row.items() if value and name not in texts}


def check_logits(model, images, expected):
    logits = np.asarray(model(images))
    assert expected.std() > 0.01
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


def test_a_searched_network(old, expected):
    model = load_segmenter(old / "train/model.keras")
    check_logits(model, expected["images"], expected["searched"])
    assert model.fingerprint == Architecture.load(old / "search/architecture.json").fingerprint
    assert model.class_names[:2] == ("Sky", "Building")


@pytest.mark.parametrize("name", SMALL_BASELINES)
def test_a_baseline(old, expected, name):
    model = load_segmenter(old / f"baselines/{name}.keras")
    assert model.network.mean == (100.0, 110.0, 120.0)
    check_logits(model, expected["images"], expected[name])


def test_every_baseline_of_a_class_of_its_own_is_among_them():
    kept = {(baselines.BASELINES[name].module) for name in SMALL_BASELINES}
    ours = {baseline.module for baseline in baselines.BASELINES.values() if not baseline.package}
    assert kept == ours


def test_a_supernet(old, expected):
    supernet = keras.saving.load_model(old / "supernet.keras")
    assert isinstance(supernet, Supernet)
    check_logits(supernet, expected["images"], expected["supernet"])
    assert tuple(supernet.alpha_logits.shape) == (2, 8)


def test_a_search_resumes_as_it_did(old, tmp_path):
    done, folder = resumed("search", old, tmp_path, "--epochs=3")
    assert done.returncode == 0, done.stderr
    ours, then = last_row(folder / "metrics.csv"), last_row(old / "resumed/search/metrics.csv")
    # A search scores more now.
    assert ours.keys() >= then.keys() and ours["epoch"] == 2
    for name in ("step", "loss", "arch_loss", "learning_rate", "alpha_entropy", "beta_entropy"):
        assert ours[name] == pytest.approx(then[name], rel=1e-3), name
    with np.load(old / "resumed/search/logits.npz") as logits:
        for name, value in zip(("alpha", "beta"), load_logits(folder / "logits.npz"), strict=False):
            np.testing.assert_allclose(value, logits[name], atol=2e-3, err_msg=name)


def test_a_training_resumes_as_it_did(old, tmp_path, monkeypatch):
    monkeypatch.chdir(old)  # its flags.txt names search/architecture.json
    done, folder = resumed("train", old, tmp_path, "--steps=9")
    assert done.returncode == 0, done.stderr
    assert "resumes without checking that its data are unchanged" in done.stderr
    ours, then = last_row(folder / "metrics.csv"), last_row(old / "resumed/train/metrics.csv")
    assert ours.keys() == then.keys() and ours["epoch"] == 2
    # Not val_loss: moving statistics are right earlier now, and the first epochs score otherwise.
    for name in ("step", "loss", "learning_rate"):
        assert ours[name] == pytest.approx(then[name], rel=1e-3), name


def test_a_finished_search_stays_as_it_is(old, tmp_path, monkeypatch):
    shutil.copytree(old / "search", tmp_path / "search")
    Architecture.load(old / "search/architecture.json")
    before = contents(tmp_path)
    flags = [f"--flagfile={tmp_path}/search/flags.txt", f"--run_dir={tmp_path}/search"]
    call(search, config.SearchConfig, flags, monkeypatch)
    assert contents(tmp_path) == before


def test_logits_decode_to_the_architecture_of_then(old, tmp_path, monkeypatch):
    alpha, beta, *_ = load_logits(old / "search/logits.npz")
    architecture = Architecture.load(old / "search/architecture.json")
    assert decode(alpha, beta, "separable") == architecture
    flags = [f"--run_dir={old}/search", f"--output={tmp_path}/architecture.json"]
    call(decode_command, config.DecodeConfig, flags, monkeypatch)
    assert Architecture.load(tmp_path / "architecture.json") == architecture


def test_a_served_version(old, expected, tmp_path):
    served = tf.saved_model.load(str(old / "saved_model/1")).signatures["serving_default"]
    class_ids = served(images=tf.constant(expected["images"]))["class_ids"]
    assert np.mean(class_ids == expected["searched"].argmax(-1)) > 0.999
    scores = {}
    for name, model in (("folder", "saved_model"), ("file", "train/model.keras")):
        flags = [f"--model={old}/{model}", f"--output_dir={tmp_path}/{name}", "--dataset=camvid"]
        flags += [f"--data_dir={old}/data", f"--cache_dir={old}/cache"]
        scores[name] = evaluate.evaluate(cli.parse(config.EvaluateConfig, flags))["miou"]
    assert scores["folder"] == pytest.approx(scores["file"], abs=1e-3)
    assert scores["file"] == pytest.approx(
        last_row(old / "train/metrics.csv")["val_miou"], abs=0.02
    )


def test_predict_and_export_read_an_old_model(old, expected, tmp_path):
    Image.fromarray(expected["images"][0].astype("uint8")).save(tmp_path / "a.png")
    model = f"{old}/train/model.keras"
    flags = [f"--model={model}", f"--image={tmp_path}/a.png", f"--output_dir={tmp_path}/out"]
    predict.predict(cli.parse(config.PredictConfig, flags))
    mask = np.asarray(Image.open(tmp_path / "out/a_mask.png"))
    assert np.mean(mask == expected["searched"][0].argmax(-1)) > 0.999
    export_tensorrt(model, tmp_path / "m.onnx", (40, 56))


def test_a_run_of_a_retired_mode_is_named(old, tmp_path):
    """flags.txt holds --mix_predecessors=false, which resumes (above); true does not."""
    flags = old / "search/flags.txt"
    assert "--mix_predecessors=false" in flags.read_text()
    copy = tmp_path / "search"
    shutil.copytree(old / "search", copy)
    text = flags.read_text().replace("--mix_predecessors=false", "--mix_predecessors=true")
    (copy / "flags.txt").write_text(text)
    flags = [f"--flagfile={copy}/flags.txt", f"--run_dir={copy}", "--epochs=3"]
    with pytest.raises(
        cli.FlagsError, match="--mix_predecessors=true: this version has no mix_predecessors"
    ):
        cli.parse(config.SearchConfig, flags)
