"""Every export of one model: mIoU, size, time and memory, in a process of its own for each row.

    python -m benchmarks.exports --model=RUN/model.keras --work_dir=DIR --input_size=180x240 \
        --dataset=camvid --data_dir=CAMVID --name=searched
    python -m benchmarks.exports --preset=auto_deeplab --filter_multiplier=20 --work_dir=DIR \
        --input_size=513x513 --name=S

exports what is missing in --work_dir, then measures each of --runtimes at each of --threads, and
writes a row into results/exports.csv; rows that are there already stay (--redo measures them anew).
With a data set, mIoU is scored on its val split, resized to --input_size, and int8 is calibrated on
its train split; without, on noise. A row's time is the median of one image from float32 in memory
to class ids in memory. `times_arithmetic` divides it by the seconds that the network's Multi-Adds
take in matrix products on as many threads. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import shlex
from collections.abc import Callable
from typing import Any

import numpy as np

from auto_deeplab_tf.files import write_text
from auto_deeplab_tf.process import peak_memory_mib
from benchmarks import process, rows, scoring

RESULTS = rows.RESULTS / "exports.csv"
MODULE = "benchmarks.exports"
CALIBRATION_IMAGES = 100
Predict = Callable[[np.ndarray], np.ndarray]


def _segmenter(places: Places, threads: int) -> Any:
    from auto_deeplab_tf.training import distribution
    from export.model import load

    distribution.set_threads(threads, threads)
    return load(places.model)


def keras_predict(places: Places, threads: int) -> Predict:
    """`Segmenter.predict_class_ids`, as `predict` and `evaluate` call it."""
    segmenter = _segmenter(places, threads)
    return lambda image: segmenter.predict_class_ids(image)[0]


def tf_function(places: Places, threads: int, jit_compile: bool = False) -> Predict:
    """The network and its argmax as one traced function of a fixed size."""
    import tensorflow as tf

    segmenter = _segmenter(places, threads)
    function = tf.function(segmenter.class_ids, autograph=False, jit_compile=jit_compile)
    return lambda image: function(tf.constant(image)).numpy()[0]


def xla(places: Places, threads: int) -> Predict:
    """The same, compiled by XLA."""
    return tf_function(places, threads, jit_compile=True)


def saved_model(places: Places, threads: int) -> Predict:
    """serving_default through TensorFlow's C API, without Python TensorFlow."""
    from export.serving.native import SavedModel

    model = SavedModel(places.folder / "served" / "1", threads)
    return lambda image: model.run("serving_default", {"images": image})["class_ids"][0]


def onnxruntime(file: str) -> Callable[[Places, int], Predict]:
    """ONNX Runtime's CPU provider."""

    def load(places: Places, threads: int) -> Predict:
        import onnxruntime as runtime

        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        session = runtime.InferenceSession(
            str(places.folder / file), options, providers=["CPUExecutionProvider"]
        )
        return lambda image: session.run(None, {"images": image})[0][0]

    return load


def openvino(places: Places, threads: int) -> Predict:
    """OpenVINO, from the ONNX file, in float32."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = openvino.Core().compile_model(str(places.folder / "model.onnx"), "CPU", settings)
    return lambda image: model(image)[0][0]


def litert(file: str) -> Callable[[Places, int], Predict]:
    """LiteRT with XNNPACK."""

    def load(places: Places, threads: int) -> Predict:
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(places.folder / file), num_threads=threads)
        interpreter.allocate_tensors()
        (entry,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()

        def predict(image: np.ndarray) -> np.ndarray:
            interpreter.set_tensor(entry["index"], image.astype(entry["dtype"]))
            interpreter.invoke()
            return interpreter.get_tensor(output["index"])[0]

        return predict

    return load


# Name of a row -> what loads it, and the name of the file or folder that it loads.
RUNTIMES: dict[str, tuple[Callable[[Places, int], Predict], str]] = {
    "keras": (keras_predict, "model.keras"),
    "tf.function": (tf_function, "model.keras"),
    "xla": (xla, "model.keras"),
    "saved_model": (saved_model, "served/1"),
    "onnxruntime": (onnxruntime("model.onnx"), "model.onnx"),
    "onnxruntime int8": (onnxruntime("int8.onnx"), "int8.onnx"),
    "openvino": (openvino, "model.onnx"),
    **{
        f"litert {precision}": (litert(f"{precision}.tflite"), f"{precision}.tflite")
        for precision in ("float32", "float16", "dynamic", "int8")
    },
}


class Places:
    """The files of one model at one size.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.model = folder / "model.keras"
        self.calibration = folder / "calibration"
        self.data = folder / "data.npz"
        self.facts = folder / "facts.json"

    def export(self, name: str, size: tuple[int, ...]) -> None:
        """Writes an export that is not there yet."""
        from export.saved_model import export_saved_model
        from export.tensorrt import export_tensorrt
        from export.tflite import export_tflite

        path = self.folder / name
        if path.exists():
            return
        quantized = {"calibration_dir": self.calibration} if path.stem == "int8" else {}
        if path.suffix == ".onnx":
            precision = "int8" if quantized else "float32"
            export_tensorrt(self.model, path, size, precision=precision, **quantized)
        elif path.suffix == ".tflite":
            export_tflite(self.model, path, size, path.stem, **quantized)
        else:
            export_saved_model(self.model, path.parent, size)


def main() -> None:
    """Measures as the flags say."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--name", required=True, help="name of the network in the table")
    parser.add_argument("--work_dir", type=pathlib.Path, required=True, help="its exports")
    parser.add_argument("--model", type=pathlib.Path, help="model.keras of a training")
    parser.add_argument("--preset", help="or an architecture, untrained: its speed alone counts")
    parser.add_argument("--filter_multiplier", type=int, default=20, help="F of --preset")
    parser.add_argument("--num_classes", type=int, default=19, help="classes of --preset")
    parser.add_argument("--input_size", default="513x513", help="HxW of the images")
    parser.add_argument("--dataset", help="scores mIoU on its val split")
    parser.add_argument("--data_dir", help="folder of the data set")
    parser.add_argument("--cache_dir", help="folder of its records")
    parser.add_argument("--runtimes", default=",".join(RUNTIMES), help="rows, comma-separated")
    parser.add_argument("--threads", default="1,2", help="thread counts, comma-separated")
    parser.add_argument("--iterations", type=int, default=10, help="timed calls, after the first")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--redo", action="store_true", help="also the rows that are there")
    parser.add_argument("--runtime", choices=list(RUNTIMES), help="measure this one here, as JSON")
    options = parser.parse_args()
    places = Places(options.work_dir)
    if options.runtime:
        print(json.dumps(measure(places, options)))
        return
    size = tuple(int(side) for side in options.input_size.split("x"))
    if not places.facts.exists():
        prepare(places, size, options)
    for runtime in options.runtimes.split(","):
        places.export(RUNTIMES[runtime][1], size)
    for threads in options.threads.split(","):
        for runtime in options.runtimes.split(","):
            key = f"{options.name} {options.input_size} {runtime} {threads}"
            if options.redo or all(row["key"] != key for row in rows.read(options.results)):
                row = _row(key, runtime, int(threads), options)
                rows.put(options.results, row, key="key")
                print(json.dumps(row), flush=True)


def prepare(places: Places, size: tuple[int, ...], options: argparse.Namespace) -> None:
    """Writes the model, the images, and what is known of the network."""
    from auto_deeplab_tf import accounting, config
    from auto_deeplab_tf.segmenter import Segmenter
    from export.model import load

    places.folder.mkdir(parents=True, exist_ok=True)
    if options.model:
        places.model.write_bytes(options.model.read_bytes())
    else:
        Segmenter(
            options.preset,
            num_classes=options.num_classes,
            filter_multiplier=options.filter_multiplier,
        ).save(places.model)
    images, labels = _data(options, size, places.calibration)
    np.savez(places.data, images=images, labels=labels)
    segmenter = load(places.model)
    network = segmenter.network
    counted = accounting.count(
        network.architecture,
        network.settings.part(config.NetworkSizesConfig),
        num_classes=segmenter.num_classes,
        input_channels=segmenter.input_channels,
        input_size=size,
    )
    facts = {
        "params": counted.params,
        "multi_adds": counted.multi_adds,
        "num_classes": segmenter.num_classes,
        "ignore_label": segmenter.ignore_label,
    }
    write_text(places.facts, json.dumps(facts))


def _data(
    options: argparse.Namespace, size: tuple[int, int], calibration: pathlib.Path
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 and labels of the val split; writes images of train for the calibration."""
    from auto_deeplab_tf import overlay

    calibration.mkdir(exist_ok=True)
    if not options.dataset:
        images = np.random.default_rng(0).integers(0, 256, (8, *size, 3), np.uint8)
        for index, image in enumerate(images):
            overlay.save_png(calibration / f"{index}.png", image)
        return images[:1], np.zeros((0, *size), np.uint8)
    (train, _), (val, labels) = (
        scoring.read_split(options.dataset, split, options.data_dir, options.cache_dir, size)
        for split in ("train", "val")
    )
    for index in np.linspace(0, len(train) - 1, CALIBRATION_IMAGES).astype(int):
        overlay.save_png(calibration / f"{index:05}.png", train[index].astype(np.uint8))
    return val.astype(np.uint8), labels.astype(np.uint8)


def measure(places: Places, options: argparse.Namespace) -> dict[str, Any]:
    """Loads one runtime in this process; returns its mIoU, time and memory."""
    threads = int(options.threads)
    _bind(threads)
    load, name = RUNTIMES[options.runtime]
    facts = json.loads(places.facts.read_text("utf-8"))
    data = np.load(places.data)
    images, labels = data["images"], data["labels"]
    predict = load(places, threads)
    first = images[:1].astype(np.float32)
    seconds = process.median_seconds(lambda: predict(first), options.iterations)
    peak_mib = peak_memory_mib()
    matrix = scoring.confusion_matrix(
        # Without labels there are no pairs, and no score.
        (
            (label, predict(image[None].astype(np.float32)))
            for image, label in zip(images, labels, strict=False)
        ),
        facts["num_classes"],
        facts["ignore_label"],
    )
    return {
        "matrix": matrix.tolist(),
        "ms": round(1000 * seconds, 2),
        "peak_mib": round(peak_mib),
        "file_mib": round(sum(f.stat().st_size for f in _files(places.folder / name)) / 2**20, 2),
    }


def _files(place: pathlib.Path) -> list[pathlib.Path]:
    return [f for f in place.rglob("*") if f.is_file()] if place.is_dir() else [place]


def _row(key: str, runtime: str, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measures a row in a process of its own."""
    from auto_deeplab_tf.training.metrics import scores

    command = ["python", "-m", MODULE, f"--name={options.name}", f"--work_dir={options.work_dir}"]
    command += [f"--threads={threads}", f"--iterations={options.iterations}"]
    found = json.loads(rows.run(shlex.join([*command, f"--runtime={runtime}"])))
    gflops = _matmul_gflops(threads)
    miou = scores(np.array(found.pop("matrix")))["miou"]
    facts = json.loads(Places(options.work_dir).facts.read_text("utf-8"))
    arithmetic = 2e-6 * facts["multi_adds"] / gflops
    return {
        "key": key,
        "network": options.name,
        "input_size": options.input_size,
        "runtime": runtime,
        "threads": threads,
        "miou": "" if miou is None else round(miou, 4),
        **found,
        "params": facts["params"],
        "multi_adds": facts["multi_adds"],
        "matmul_gflops": round(gflops, 1),
        "times_arithmetic": round(found["ms"] / arithmetic, 3),
        **rows.machine(),
    }


@functools.cache
def _matmul_gflops(threads: int) -> float:
    """Speed of matrix products in a process of their own."""
    code = (
        f"from benchmarks import exports as e; e._bind({threads}); print(e.process.matmul_gflops())"
    )
    return float(rows.run(shlex.join(["python", "-c", code])))


def _bind(threads: int) -> None:
    """Leaves this process as many cores as threads."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:threads]))


if __name__ == "__main__":
    main()
