"""Paths with any characters, and runs that resume under another name of the same files."""

import os

import numpy as np
import pytest

from auto_deeplab_tf import cli, config, decode, decoding, predict
from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.data import source
from auto_deeplab_tf.training.run_dir import RunDir

NAMES = ["set [1]", "a*b?", "数据 é", "with space"]


@pytest.mark.parametrize("name", NAMES)
def test_images_are_found_in_a_folder_of_any_name(tmp_path, monkeypatch, name):
    folder = tmp_path / name / "sub[a]"
    folder.mkdir(parents=True)
    first, second = folder / "x[1].png", folder / "y.JPG"
    for path in (first, second, folder / "notes.txt", folder / "._y.JPG"):
        path.write_bytes(b"")
    assert predict.find_images(str(folder)) == [first, second]
    assert predict.find_images(str(first)) == [first]
    assert predict.find_images(f"{folder}/*.png") == [first]
    assert predict.find_images(f"{tmp_path}/{name}/**/*.JPG") == [second]
    monkeypatch.chdir(folder)
    assert [path.name for path in predict.find_images("y.*")] == ["y.JPG"]
    for nothing in ("*.gif", f"{tmp_path}/none/*.png"):
        with pytest.raises(FileNotFoundError, match="image=.*no file has that name or matches"):
            predict.find_images(nothing)


@pytest.mark.parametrize("name", NAMES[:3])
def test_a_search_is_decoded_in_a_folder_of_any_name(tmp_path, monkeypatch, name):
    rng = np.random.default_rng(0)
    alpha, beta = rng.normal(size=(5, 8)), rng.normal(size=(3, 4, 3))
    decoding.save_logits(tmp_path / name / "logits.npz", alpha, beta, "full")
    monkeypatch.setenv("HOME", str(tmp_path))
    output = f"~/{name}/{name}.json"
    options = config.DecodeConfig(logits=f"~/{name}/logits.npz", output=output, top_k=2)
    monkeypatch.setattr(cli, "read", lambda _: options)
    decode.main()
    written = sorted(path.name for path in (tmp_path / name).iterdir())
    endings = (".json", ".csv", ".svg", ".png", "_alpha_beta.svg")
    assert written == sorted(["logits.npz", *(name + ending for ending in endings)])
    assert Architecture.load(tmp_path / name / f"{name}.json").atrous == "full"


def test_a_home_that_cannot_be_written_asks_for_a_cache_folder(tmp_path, monkeypatch):
    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(ValueError, match="^cache_dir must name a folder .*Not a directory"):
        source.open_split("scenes", "val")


@pytest.mark.parametrize("name", NAMES)
def test_a_run_resumes_from_another_working_directory(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "m.keras").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)

    def resume(**changes):
        settings = {"run_dir": f"{name}/run", "architecture": "auto_deeplab"} | changes
        options = config.TrainConfig(**settings)
        with RunDir(options.run_dir, options) as run:
            return (run / "flags.txt").read_text("utf-8")

    text = resume(init_from="m.keras")
    assert f"--run_dir={tmp_path}/{name}/run\n" in text
    assert f"--init_from={tmp_path}/m.keras\n" in text
    monkeypatch.chdir(tmp_path / "other")
    assert resume(run_dir=f"../{name}/run", init_from="../m.keras") == text
    # As an older version wrote it, from the working directory of its own.
    monkeypatch.chdir(tmp_path)
    (tmp_path / name / "run" / "flags.txt").write_text(
        text.replace(f"{tmp_path}{os.sep}", ""), "utf-8"
    )
    assert resume(init_from="m.keras") == text
    with pytest.raises(ValueError, match="init_from= .* steps=3 .the run has '1500000'"):
        resume(steps=3)
