"""Images a second that the input pipeline makes on one core, beside other ways to make them.

    python -m benchmarks.input_pipeline --measurement=pairs --json

Every process measures one thing on one core, from sources that it draws itself, so no data set is
needed:

    pairs               the search's (A, B) pairs of 8 crops of 321x321, from 480x360 JPEGs
    pairs_resize_whole  the same crops, made by resizing the whole image and cutting
    pairs_tf_models     crops of the same images by tf-models-official's segmentation input
                        (decoder and parser; it takes scale and crop otherwise, see docs/data.md)
    records             crops of 321x321 from prepared records of 512x1024
    pngs                crops of the same size and content from the 1024x2048 PNGs themselves
    search_wait         the share of a real search step that is spent waiting for its batch
"""

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import app, flags

from auto_deeplab_tf.process import peak_memory_mib
from benchmarks import rows

FLAGS = flags.FLAGS
MEASUREMENTS = (
    "pairs",
    "pairs_resize_whole",
    "pairs_tf_models",
    "records",
    "pngs",
    "search_wait",
)
flags.DEFINE_enum("measurement", "pairs", MEASUREMENTS, "what is measured")
flags.DEFINE_float("seconds", 10.0, "how long batches are taken", lower_bound=0.1)
flags.DEFINE_integer("steps", 8, "steps of the search that are timed", lower_bound=1)
flags.DEFINE_boolean("json", False, "print one JSON object on one line, nothing else")

CROP_SIZE = (321, 321)
BATCH_SIZE = 8
SMALL, LARGE, PREPARED = (360, 480), (1024, 2048), (512, 1024)
NUM_SMALL, NUM_LARGE = 24, 6


def main(_: list[str]) -> None:
    result = measure(FLAGS.measurement)
    rows.show(result, FLAGS.json)


def measure(measurement: str) -> dict[str, Any]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # TensorFlow sizes its thread pools by the cores that it may use.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        return _MEASUREMENTS[measurement](Path(folder))


# ---- sources


def _scene(index: int, size: tuple[int, int]) -> tuple[Any, Any]:
    """(uint8 image [*size, 3], uint8 label ids): a drawn scene with the noise of a camera."""
    import numpy as np

    from auto_deeplab_tf.data import scenes

    image, label = scenes.render(f"bench_{index:06d}_000019", size)
    noise = np.random.default_rng(index).normal(0.0, 2.0, image.shape)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8), label


def _jpeg(image: Any) -> bytes:
    import tensorflow as tf

    return tf.io.encode_jpeg(image, quality=91).numpy()


def _small_examples() -> Iterator[tuple[str, bytes, bytes]]:
    """(id, JPEG, PNG of label ids) of 480x360 images, as CamVid's users have them."""
    from auto_deeplab_tf.data import image_files

    for index in range(NUM_SMALL):
        image, label = _scene(index, SMALL)
        yield f"bench_{index:03d}", _jpeg(image), image_files.encode_png(label)


def _large_examples() -> Iterator[tuple[str, bytes, bytes]]:
    """(id, PNG, PNG of label ids) of 1024x2048 images, as Cityscapes has them."""
    from auto_deeplab_tf.data import image_files

    for index in range(NUM_LARGE):
        image, label = _scene(index, LARGE)
        yield f"bench_{index:03d}", image_files.encode_png(image), image_files.encode_png(label)


def _source(folder: Path, examples: Any, image_size: tuple[int, int] | None, **description: Any):
    """Prepares records of the examples and opens them."""
    from auto_deeplab_tf.data import records, sets, shards
    from auto_deeplab_tf.data.dataset import RawExample, in_memory
    from auto_deeplab_tf.data.source import Source

    info = dataclasses.replace(sets.describe("scenes"), image_size=None, **description)
    raw = [RawExample(image_id, "bench", *files) for image_id, *files in examples]
    settings = records.Settings(image_size)
    shards.write(folder, in_memory(info, {"train": raw}), settings, fingerprint="none")
    return Source(folder, "train", info)


# ---- measurements


def _rate(dataset: Any, images_per_batch: int, first_image: Callable[[Any], Any]) -> dict[str, Any]:
    """Takes batches for --seconds, after the first few."""
    batches = iter(dataset)
    for _ in range(3):
        shape = list(first_image(next(batches)).shape)
    count, start, start_cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < FLAGS.seconds:
        next(batches)
        count += images_per_batch
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    return {
        "measurement": FLAGS.measurement,
        "images_per_second": round(count / seconds, 1),
        "cpu_ms_per_image": round(1e3 * cpu_seconds / count, 2),
        "images": count,
        "crop_size": shape[-3:-1],
        "peak_rss_mib": round(peak_memory_mib(), 1),
    }


def _halves(source: Any) -> tuple[Any, Any]:
    import numpy as np

    order = np.arange(source.num_examples)
    return order[::2], order[1::2]


def _pairs(folder: Path) -> dict[str, Any]:
    from auto_deeplab_tf.data import pipeline

    source = _source(folder, _small_examples(), None)
    dataset = pipeline.search_batches(
        source, _halves(source), batch_size=BATCH_SIZE, crop_size=CROP_SIZE, seed=0
    )
    return _rate(dataset, 2 * BATCH_SIZE, lambda batch: batch[0][0])


def _records(folder: Path) -> dict[str, Any]:
    from auto_deeplab_tf.data import pipeline

    source = _source(folder, _large_examples(), PREPARED, image_format="jpeg")
    dataset = pipeline.training_batches(source, batch_size=BATCH_SIZE, crop_size=CROP_SIZE, seed=0)
    return _rate(dataset, BATCH_SIZE, lambda batch: batch[0])


def _pairs_resize_whole(folder: Path) -> dict[str, Any]:
    """What a pipeline is usually made of; with the product's sampling of examples."""
    import tensorflow as tf

    source = _source(folder, _small_examples(), None)
    mean, ignore_label = source.info.mean, source.info.ignore_label

    def crop(index, key):
        image, label = source.example(index)
        uniform = tf.random.stateless_uniform([4], key)
        size = tf.cast(tf.shape(label), tf.float32) * (0.5 + 1.5 * uniform[0])
        size = tf.cast(tf.round(size), tf.int32)
        image = tf.image.resize(image, size) - mean
        label = tf.image.resize(label[..., None], size, method="nearest")
        missing = tf.maximum(tf.constant(CROP_SIZE) - size, 0)
        image = tf.pad(image, [(0, missing[0]), (0, missing[1]), (0, 0)]) + mean
        label = tf.pad(
            label, [(0, missing[0]), (0, missing[1]), (0, 0)], constant_values=ignore_label
        )
        room = tf.cast(tf.shape(label)[:2] - CROP_SIZE + 1, tf.float32)
        start = tf.concat([tf.cast(uniform[1:3] * room, tf.int32), [0]], axis=0)
        image = tf.slice(image, start, [*CROP_SIZE, 3])
        label = tf.slice(label, start, [*CROP_SIZE, 1])
        flip = uniform[3] < 0.5
        image = tf.cond(flip, lambda: image[:, ::-1], lambda: image)
        label = tf.cond(flip, lambda: label[:, ::-1], lambda: label)
        return image, tf.cast(label[..., 0], tf.int32)

    def stream(half, seed):
        indices = tf.data.Dataset.from_tensor_slices(half).repeat().shuffle(len(half), seed=seed)
        keys = tf.data.Dataset.random(seed).batch(2, drop_remainder=True)
        dataset = tf.data.Dataset.zip((indices, keys))
        dataset = dataset.map(crop, num_parallel_calls=tf.data.AUTOTUNE)
        return dataset.batch(BATCH_SIZE, drop_remainder=True).prefetch(2)

    halves = (stream(half, seed) for seed, half in enumerate(_halves(source)))
    return _rate(tf.data.Dataset.zip(tuple(halves)), 2 * BATCH_SIZE, lambda batch: batch[0][0])


def _pairs_tf_models(folder: Path) -> dict[str, Any]:
    """Its decoder and parser as its own configurations for Cityscapes use them."""
    import tensorflow as tf
    from official.vision.dataloaders import segmentation_input

    path = str(folder / "examples.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for _, image, label in _small_examples():
            values: dict[str, Any] = {
                "image/encoded": tf.train.BytesList(value=[image]),
                "image/segmentation/class/encoded": tf.train.BytesList(value=[label]),
            }
            features = {key: tf.train.Feature(bytes_list=v) for key, v in values.items()}
            for key, side in zip(("image/height", "image/width"), SMALL, strict=True):
                number = tf.train.Int64List(value=[side])
                features[key] = tf.train.Feature(int64_list=number)
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())
    decoder = segmentation_input.Decoder()
    parse = segmentation_input.Parser(
        output_size=None,
        crop_size=list(CROP_SIZE),
        aug_rand_hflip=True,
        aug_scale_min=0.5,
        aug_scale_max=2.0,
    ).parse_fn(is_training=True)
    dataset = tf.data.TFRecordDataset(path).repeat().shuffle(NUM_SMALL)
    dataset = dataset.map(
        lambda record: parse(decoder.decode(record)), num_parallel_calls=tf.data.AUTOTUNE
    )
    dataset = dataset.batch(BATCH_SIZE, drop_remainder=True).prefetch(2)
    return _rate(dataset, BATCH_SIZE, lambda batch: batch[0])


def _pngs(folder: Path) -> dict[str, Any]:
    """The product's crops, cut from the files; label ids are mapped after the cut."""
    import numpy as np
    import tensorflow as tf

    from auto_deeplab_tf.data import augment, sets

    info = sets.describe("scenes")
    for image_id, image, label in _large_examples():
        (folder / f"{image_id}_image.png").write_bytes(image)
        (folder / f"{image_id}_label.png").write_bytes(label)
    table = tf.constant([info.label_ids.get(i, info.ignore_label) for i in range(256)], tf.int32)
    # At these scales the crops show what those of records of half the size show.
    scale_range = tuple(scale * PREPARED[0] / LARGE[0] for scale in (0.5, 2.0))

    def crop(image_file, label_file, key):
        image = tf.io.decode_png(tf.io.read_file(image_file), channels=3)
        label = tf.io.decode_png(tf.io.read_file(label_file), channels=1)[:, :, 0]
        image, label = augment.random_crop(
            image,
            label,
            key,
            crop_size=CROP_SIZE,
            scale_range=scale_range,
            flip=True,
            padding=info.mean,
            ignore_label=info.ignore_label,
        )
        return image, tf.gather(table, label)

    files = [np.array(sorted(map(str, folder.glob(f"*_{kind}.png")))) for kind in _KINDS]
    dataset = tf.data.Dataset.from_tensor_slices(tuple(files)).repeat().shuffle(NUM_LARGE, seed=0)
    keys = tf.data.Dataset.random(0).batch(2, drop_remainder=True)
    dataset = tf.data.Dataset.zip((dataset, keys)).map(
        lambda pair, key: crop(*pair, key), num_parallel_calls=tf.data.AUTOTUNE
    )
    dataset = dataset.batch(BATCH_SIZE, drop_remainder=True).prefetch(2)
    return _rate(dataset, BATCH_SIZE, lambda batch: batch[0])


_KINDS = ("image", "label")


class _Timed:
    """Batches, and the seconds that the consumer was blocked for each."""

    def __init__(self, dataset: Any, waits: list[float]):
        self._dataset = dataset
        self._waits = waits

    def take(self, count: int) -> "_Timed":
        return _Timed(self._dataset.take(count), self._waits)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._dataset)
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waits.append(time.perf_counter() - start)
            yield batch


def _search_wait(folder: Path) -> dict[str, Any]:
    """configs/camvid_search.flags with batches of 2: steps that update weights and architecture."""
    import keras

    from auto_deeplab_tf.data import pipeline
    from auto_deeplab_tf.searcher import ArchitectureSearch

    source = _source(folder, _small_examples(), (180, 240))
    waits: list[float] = []
    starts: list[float] = []

    class Starts(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            starts.append(time.perf_counter())

    search = ArchitectureSearch(source.info.num_classes, filter_multiplier=4)
    search.fit(
        lambda step, pairs: _Timed(
            pipeline.search_batches(
                source,
                _halves(source),
                pairs=pairs,
                start_step=step,
                batch_size=2,
                crop_size=(97, 129),
                scale_range=(0.75, 1.5),
                seed=0,
            ),
            waits,
        ),
        epochs=1,
        steps_per_epoch=FLAGS.steps + 2,
        callbacks=[Starts()],
        verbose=0,
    )
    # The first two steps compile.
    seconds = starts[-1] - starts[1]
    waited = sum(waits[2:])
    return {
        "measurement": FLAGS.measurement,
        "seconds_per_step": round(seconds / FLAGS.steps, 3),
        "waiting_ms_per_step": round(1e3 * waited / FLAGS.steps, 3),
        "longest_wait_ms": round(1e3 * max(waits[2:]), 3),
        "waiting_percent": round(100 * waited / seconds, 3),
        "seconds_to_first_batch": round(waits[0], 3),
        "peak_rss_mib": round(peak_memory_mib(), 1),
    }


_MEASUREMENTS = {
    "pairs": _pairs,
    "pairs_resize_whole": _pairs_resize_whole,
    "pairs_tf_models": _pairs_tf_models,
    "records": _records,
    "pngs": _pngs,
    "search_wait": _search_wait,
}

if __name__ == "__main__":
    app.run(main)
