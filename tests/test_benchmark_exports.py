"""The benchmark of every export: its rows, and that mIoU is the one that `evaluate` finds."""

import csv
import shlex
import sys

import forked
import pytest
import tiny_camvid

from auto_deeplab_tf import config, evaluate
from auto_deeplab_tf.architecture import Architecture, Edge
from benchmarks import exports
from benchmarks import rows as rows_lib

SIZE = (32, 48)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    from auto_deeplab_tf.segmenter import Segmenter

    folder = tmp_path_factory.mktemp("exports")
    cell = ((Edge("prev", "sep_3x3"), Edge("prev_prev", "skip")),)
    segmenter = Segmenter(
        Architecture((0,), cell, "separable"),
        num_classes=11,
        filter_multiplier=2,
        stem_channels=(4, 4, 8),
        head_channels=8,
        decoder_channels=4,
    )
    segmenter.save(folder / "model.keras")
    tiny_camvid.write(folder / "camvid", {"train": 3, "val": 3})
    return folder


def run_forked(command):
    """As `rows.run`, without the import of TensorFlow."""
    _, option, *arguments = shlex.split(command)
    done = forked.run(*([option] if option == "-c" else []), *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_each_row_has_the_score_of_the_model(places, monkeypatch):
    monkeypatch.setattr(rows_lib, "run", run_forked)
    rows_file = places / "rows.csv"
    flags = [
        "--name=tiny",
        f"--model={places / 'model.keras'}",
        f"--work_dir={places / 'work'}",
        "--input_size=32x48",
        "--dataset=camvid",
        f"--data_dir={places / 'camvid'}",
        f"--cache_dir={places / 'cache'}",
        "--runtimes=onnxruntime,litert float32",
        "--threads=1",
        "--iterations=1",
        f"--results={rows_file}",
    ]
    monkeypatch.setattr(sys, "argv", ["exports", *flags])
    exports.main()
    with open(rows_file, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["runtime"] for row in rows] == ["onnxruntime", "litert float32"]
    expected = evaluate.evaluate(
        config.EvaluateConfig(
            model=str(places / "model.keras"),
            dataset="camvid",
            data_dir=str(places / "camvid"),
            cache_dir=str(places / "cache"),
            image_size=SIZE,
            output_dir=str(places / "evaluated"),
        )
    )
    for row in rows:
        assert float(row["miou"]) == pytest.approx(expected["miou"], abs=1e-3)
        assert float(row["ms"]) > 0 and float(row["peak_mib"]) > float(row["file_mib"]) > 0
        found = 1e3 * 2 * int(row["multi_adds"]) / 1e9 / float(row["matmul_gflops"])
        assert float(row["times_arithmetic"]) == pytest.approx(float(row["ms"]) / found, rel=0.02)
    # A row that is there is not measured again.
    monkeypatch.setattr(exports, "_row", None)
    exports.main()
