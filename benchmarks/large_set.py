"""Start-up time and memory of the data pipeline on a set of a million examples.

    python -m benchmarks.large_set --num_examples=1000000 [--records_dir=DIR] --json

Writes records of tiny images (16x24, noise, 256 different ones in turn) into shards, unless
DIR holds them already, and measures in this process, which did not write them: opening the split,
halving it, listing its members as a search records them, and the first pair of batches of a search
(8 crops of each half) at step 0 and at a step of the tenth epoch. `--verify` also reads all of it.
Resident memory is that of the process beyond what it was when the libraries were imported.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags

from auto_deeplab_tf.process import peak_memory_mib
from benchmarks import process, rows

FLAGS = flags.FLAGS
flags.DEFINE_integer("num_examples", 1_000_000, "examples of the set", lower_bound=64)
flags.DEFINE_string("records_dir", None, "folder for the records; none: a temporary one")
flags.DEFINE_boolean("verify", True, "also time the comparison of every checksum")
flags.DEFINE_boolean("write_only", False, "write the records, and measure nothing")
flags.DEFINE_boolean("json", False, "print one JSON object on one line, nothing else")

SIZE = (16, 24)
BATCH_SIZE = 8
_VARIANTS = 256
_CITIES = 50


def main(_: list[str]) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(FLAGS.records_dir or temporary) / f"large-{FLAGS.num_examples}"
        if FLAGS.write_only:
            write(folder, FLAGS.num_examples)
            return
        if not (folder / "records.json").exists():
            arguments = [f"--num_examples={FLAGS.num_examples}", f"--records_dir={folder.parent}"]
            command = [sys.executable, "-m", "benchmarks.large_set", "--write_only", *arguments]
            subprocess.run(command, check=True)
        result = measure(folder)
    rows.show(result, FLAGS.json)


def write(folder: Path, num_examples: int) -> None:
    """Writes the records of a split `train`, without preparing each example."""
    import numpy as np
    import tensorflow as tf

    from auto_deeplab_tf.data import image_files, records, sets, shards
    from auto_deeplab_tf.data.index import Index, Texts

    rng = np.random.default_rng(0)
    num_classes = sets.describe("cityscapes").num_classes
    contents, pixels = [], np.zeros((_VARIANTS, num_classes), np.int64)
    for variant in range(_VARIANTS):
        label = np.kron(
            rng.integers(0, num_classes, (2, 3)), np.ones((SIZE[0] // 2, SIZE[1] // 3))
        ).astype(np.uint8)
        pixels[variant] = np.bincount(label.ravel(), minlength=num_classes)
        image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        features = {
            name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
            for name, value in (
                ("image", image_files.encode_png(image)),
                ("label", image_files.encode_png(label)),
            )
        }
        example = tf.train.Example(features=tf.train.Features(feature=features))
        contents.append(example.SerializeToString(deterministic=True))

    folder.mkdir(parents=True, exist_ok=True)
    spans = shards.spans(num_examples)
    names = [f"train-{number:05d}.tfrecord" for number in range(len(spans))]
    offsets = np.zeros(num_examples, np.int64)
    for name, span in zip(names, spans, strict=True):
        offset = 0
        with tf.io.TFRecordWriter(str(folder / name)) as writer:
            for i in span:
                offsets[i] = offset
                content = contents[i % _VARIANTS]
                writer.write(content)
                offset += len(content) + records.RECORD_OVERHEAD
    cities = np.sort(rng.integers(0, _CITIES, num_examples))
    ids = np.array([f"city{city:02d}_{i:07d}".encode() for i, city in enumerate(cities)])
    Index(
        ids=Texts(ids),
        groups=Texts.of([f"city{city:02d}" for city in cities]),
        shards=np.repeat(np.arange(len(spans)), [len(span) for span in spans]),
        offsets=offsets,
        sizes=np.tile(SIZE, (num_examples, 1)),
    ).save(folder / "train.index.npz")
    counts = np.bincount(np.arange(num_examples) % _VARIANTS, minlength=_VARIANTS)
    entry = {
        "num_examples": num_examples,
        "files": {
            name: records.describe_file(folder / name) for name in [*names, "train.index.npz"]
        },
        "shards": names,
        "index": "train.index.npz",
        "class_pixels": (counts @ pixels).tolist(),
        "present_pixels": (counts @ (pixels > 0)).tolist(),
        "ignored_pixels": 0,
    }
    records.write_manifest(
        folder,
        {
            "dataset": "cityscapes",
            "settings": records.Settings().as_json(),
            "fingerprint": "benchmark",
            "splits": {"train": entry},
        },
    )


def measure(folder: Path) -> dict[str, Any]:
    """Times what a search does before its first step."""
    import keras  # noqa: F401 -- what a search has imported, so that its time is not counted

    from auto_deeplab_tf.data import pipeline, sets, split
    from auto_deeplab_tf.data.source import Source

    result: dict[str, Any] = {"num_examples": FLAGS.num_examples}
    imported = process.rss_mib()

    def timed(name: str, function: Any) -> Any:
        start = time.perf_counter()
        value = function()
        result[f"{name}_seconds"] = round(time.perf_counter() - start, 3)
        result[f"{name}_rss_mib"] = round(process.rss_mib() - imported, 1)
        return value

    source = timed("open", lambda: Source(folder, "train", sets.describe("cityscapes")))
    result["records_mib"] = round(source.num_bytes / 2**20, 1)
    halves = timed("halves", lambda: split.source_halves(source))
    timed("members", lambda: [[source.ids[i] for i in half] for half in halves])

    def first_pair(step: int) -> Any:
        batches = pipeline.search_batches(
            source, halves, batch_size=BATCH_SIZE, crop_size=SIZE, seed=0, start_step=step
        )
        (images, labels), _ = next(iter(batches))
        return images.numpy(), labels.numpy()

    late = 10 * FLAGS.num_examples // (2 * BATCH_SIZE)
    first_pair(0)  # what is traced once a process
    timed("first_batch_step_0", lambda: first_pair(0))
    timed("first_batch_late", lambda: first_pair(late))
    result["late_step"] = late
    result["peak_rss_mib"] = round(peak_memory_mib(), 1)
    result["imported_rss_mib"] = round(imported, 1)
    if FLAGS.verify:
        timed("verify", source.verify)
    return result


if __name__ == "__main__":
    app.run(main)
