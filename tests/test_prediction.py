"""Predictions of many files, with the model replaced: what one failure leaves of the others."""

import sys
import types

import pytest

from auto_deeplab_tf import cli, config, predict, prediction
from auto_deeplab_tf.errors import MissingExtraError


class ResourceExhaustedError(Exception):
    """As TensorFlow calls its own."""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs `predict` on files of these names, whose results are written by `write(path)`."""
    served = types.SimpleNamespace(load_segmenter=lambda path: None)
    monkeypatch.setitem(sys.modules, "auto_deeplab_tf.served", served)
    (tmp_path / "in").mkdir()

    def run(names, write, model="a", **more):
        for name in names:
            (tmp_path / "in" / name).touch()
        for kind in ("", "_tiled", "_video"):
            monkeypatch.setattr(
                prediction, f"_predict{kind}", lambda model, path, *_: write(path) or {}
            )
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
    shown = cli._message(predict.UserError(failure), config.PredictConfig)
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
