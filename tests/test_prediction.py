"""Predictions of many files, with the model replaced: failures, and what counts as written."""

import sys
import types

import pytest

from auto_deeplab_tf import cli, config, files, predict, prediction
from auto_deeplab_tf.errors import MissingExtraError, UserError
from auto_deeplab_tf.image_results import results_of


class ResourceExhaustedError(Exception):
    """As TensorFlow calls its own."""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs `predict` on files of these names, whose results are empty; `write(path)` may fail."""
    served = types.SimpleNamespace(load_segmenter=lambda path: None)
    monkeypatch.setitem(sys.modules, "auto_deeplab_tf.served", served)
    (tmp_path / "in").mkdir()

    def run(names, write=lambda path: None, model="a", **more):
        def predicted(model, path, output_dir, options):
            write(path)
            for result in results_of(output_dir, path):
                result.touch()
            return {}

        for name in names:
            (tmp_path / "in" / name).touch()
        for kind in ("", "_tiled", "_video"):
            monkeypatch.setattr(prediction, f"_predict{kind}", predicted)
        folders = {"image": f"{tmp_path}/in/*", "output_dir": f"{tmp_path}/out"}
        return predict.predict(config.PredictConfig(model=model, **folders, **more))

    return run


@pytest.mark.parametrize("kind", [MemoryError, ResourceExhaustedError])
@pytest.mark.parametrize(
    ("name", "more", "remedy"),
    [
        ("b.png", {}, "use --tile=HxW"),
        ("b.png", {"tile": (64, 64)}, "use a smaller tile"),
        ("b.mp4", {}, "use a smaller input_size"),
    ],
)
def test_what_is_too_large_for_the_memory_fails_alone(command, kind, name, more, remedy):
    def write(path):
        if path.name == name:
            raise kind("failed to allocate\nmemory for a tensor")

    result = command(["a.png", name, "c.png"], write, **more)
    assert result["num_images"] == 2
    (failure,) = result["failures"]
    shown = cli._message(UserError(failure), config.PredictConfig)
    assert shown.endswith(f"/{name} (out of memory: {remedy})")


def test_what_needs_an_extra_fails_alone(command):
    def write(path):
        if path.suffix == ".tif":
            raise MissingExtraError("tiles of a TIFF need tifffile: pip install it")

    result = command(["a.png", "b.tif", "c.png"], write)
    assert result["num_images"] == 2
    assert result["failures"][0].endswith("/b.tif (tiles of a TIFF need tifffile: pip install it)")


def test_an_error_that_is_none_of_the_file_s_keeps_its_traceback(command):
    def write(path):
        raise RuntimeError("a fault of the program")

    with pytest.raises(RuntimeError, match="a fault of the program"):
        command(["a.png"], write)


def on_ray(command, names, model):
    """Names of the files that a prediction on Ray does not take for written."""
    left = []

    def spread(paths, options):
        left.extend(path.name for path in paths)
        for path in paths:
            prediction.predict(None, path, files.as_path(options.output_dir), options)
            yield ""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction, "on_ray", spread)
        command(names, model=model, ray_address="local")
    return left


def test_masks_of_a_plain_predict_are_none_of_ray_s(command, tmp_path):
    names = ["a.png", "b.png", "c.mp4"]
    command(names, model="a")
    with pytest.raises(UserError, match="out holds results and no prediction.json that says of"):
        on_ray(command, names, "b")
    # Nor are they those of other images of the folder.
    for path in (tmp_path / "in").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="name another output_dir"):
        on_ray(command, ["d.png"], "b")


@pytest.mark.parametrize("model", ["a", "b"])
def test_a_plain_predict_into_a_folder_of_ray_s_ends_its_resuming(command, tmp_path, model):
    names = ["a.png", "b.png", "c.mp4"]
    assert on_ray(command, names[:2], "a") == names[:2]
    assert on_ray(command, names, "a") == names[2:]
    with pytest.raises(UserError, match="holds results of another model"):
        on_ray(command, names, "b")
    command(names[:1], model=model)
    assert not (tmp_path / "out" / "prediction.json").exists()
    with pytest.raises(UserError, match="holds results and no prediction.json"):
        on_ray(command, names, "a")


def test_a_folder_of_other_files_is_no_folder_of_results(command, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes_on_a.png").touch()
    assert on_ray(command, ["a.png"], "a") == ["a.png"]
