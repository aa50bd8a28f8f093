import itertools
import re
import types

import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab_tf import config
from auto_deeplab_tf.data import pipeline

PLAIN = {"crop_size": (12, 20), "scale_range": (1.0, 1.0), "flip": False}


def _take(dataset, count):
    return [tf.nest.map_structure(lambda x: x.numpy(), batch) for batch in dataset.take(count)]


def _equal(batches, others):
    left, right = tf.nest.flatten(batches), tf.nest.flatten(others)
    return len(left) == len(right) and all(
        (a == b).all() and a.dtype == b.dtype for a, b in zip(left, right, strict=True)
    )


def _numbers(images):
    """Which examples of `numbered_source` a batch holds."""
    return np.rint(images[:, 6, 10, 0]).astype(int).tolist()


@pytest.fixture
def textured_source(make_source):
    rng = np.random.default_rng(0)
    return make_source(
        [
            (
                f"{'ab'[i % 2]}_{i:03d}",
                rng.integers(0, 256, (24, 32, 3), dtype=np.uint8),
                rng.integers(0, 3, (24, 32), dtype=np.uint8),
            )
            for i in range(9)
        ],
        name="textured",
    )


def test_each_epoch_holds_each_example_once(numbered_source):
    dataset = pipeline.training_batches(numbered_source, batch_size=3, seed=1, **PLAIN)
    order = list(itertools.chain(*(_numbers(images) for images, _ in _take(dataset, 14))))
    epochs = [order[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3
    other = pipeline.training_batches(numbered_source, batch_size=3, seed=2, **PLAIN)
    assert order != list(itertools.chain(*(_numbers(images) for images, _ in _take(other, 14))))


VARIED = {"crop_tries": 3, "color_jitter": 0.4}


@pytest.mark.parametrize(("batch_size", "more"), [(1, {}), (4, {}), (3, VARIED)])
def test_a_stream_started_at_a_step_is_the_rest_of_the_whole_one(textured_source, batch_size, more):
    options = {"batch_size": batch_size, "crop_size": (17, 21), "seed": 3, **more}
    whole = _take(pipeline.training_batches(textured_source, **options), 12)
    assert len({batch[0].tobytes() for batch in whole}) == 12
    for step in (1, 5, 11):
        rest = pipeline.training_batches(textured_source, start_step=step, **options)
        assert _equal(_take(rest, 12 - step), whole[step:])
    # Far into a run it starts as quickly.
    assert (
        len(_take(pipeline.training_batches(textured_source, start_step=10**9, **options), 1)) == 1
    )


@pytest.mark.parametrize("more", [{}, VARIED])
def test_parallelism_changes_nothing(textured_source, more):
    options = {"batch_size": 4, "crop_size": (17, 21), "seed": 3, **more}
    first, second = (
        _take(pipeline.training_batches(textured_source, num_parallel_calls=n, **options), 8)
        for n in (1, 5)
    )
    assert _equal(first, second)


def test_form_of_the_batches(textured_source):
    dataset = pipeline.training_batches(textured_source, batch_size=4, crop_size=(17, 21), seed=0)
    assert dataset.element_spec == (
        tf.TensorSpec([4, 17, 21, 3], tf.float32),
        tf.TensorSpec([4, 17, 21], tf.int32),
    )
    for images, labels in _take(dataset, 6):
        assert images.min() >= 0.0 and images.max() <= 255.0
        assert set(np.unique(labels)) <= {0, 1, 2, 255}


def test_no_iterator_is_tuned(textured_source):
    """Whoever deleted one would wait for its thread, up to a minute."""
    halves = (np.arange(4), np.arange(4, 8))
    for dataset in (
        pipeline.training_batches(textured_source, batch_size=4, crop_size=(17, 21), seed=0),
        pipeline.search_batches(textured_source, halves, batch_size=2, seed=0, **PLAIN),
        pipeline.evaluation_batches(textured_source, 4),
        pipeline.validation_batches(textured_source, 4, 3),
    ):
        assert dataset.options().autotune.enabled is False


def test_the_two_halves_stay_apart(numbered_source):
    halves = (np.array([0, 2, 4, 6]), np.array([1, 3, 5]))
    options = {"batch_size": 2, "seed": 5, **PLAIN}
    pairs = _take(pipeline.search_batches(numbered_source, halves, **options), 12)
    numbers_a = [n for (images, _), _ in pairs for n in _numbers(images)]
    numbers_b = [n for _, (images, _) in pairs for n in _numbers(images)]
    assert set(numbers_a) == {0, 2, 4, 6} and set(numbers_b) == {1, 3, 5}
    assert all(sorted(numbers_a[i : i + 4]) == [0, 2, 4, 6] for i in range(0, 24, 4))
    assert all(sorted(numbers_b[i : i + 3]) == [1, 3, 5] for i in range(0, 24, 3))
    # While the architecture rests, the weights see the same batches.
    only_a = pipeline.search_batches(numbered_source, halves, pairs=False, **options)
    assert _equal(_take(only_a, 12), [a for a, _ in pairs])
    resumed = pipeline.search_batches(numbered_source, halves, start_step=7, **options)
    assert _equal(_take(resumed, 5), pairs[7:])


def test_equal_halves_are_shuffled_differently(numbered_source):
    everything = np.arange(7)
    dataset = pipeline.search_batches(
        numbered_source, (everything, everything), batch_size=7, seed=5, **PLAIN
    )
    assert any(_numbers(a[0]) != _numbers(b[0]) for a, b in _take(dataset, 3))


def test_evaluation_sees_each_example_once_as_it_is(textured_source):
    batches = _take(pipeline.evaluation_batches(textured_source, 4), 10)
    assert [len(images) for images, _ in batches] == [4, 4, 1]
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    assert images.dtype == np.float32 and labels.dtype == np.int32
    for i in range(9):
        image, label = textured_source.example(tf.constant(i, tf.int64))
        assert (images[i] == image.numpy()).all() and (labels[i] == label.numpy()).all()
    some = _take(pipeline.evaluation_batches(textured_source, 4, [3, 1]), 10)
    assert (some[0][0] == images[[3, 1]]).all()


def test_validation_sees_images_spread_over_the_split(numbered_source):
    for number, expected in ((None, range(7)), (7, range(7)), (1, [3]), (3, [1, 3, 5])):
        batches = _take(pipeline.validation_batches(numbered_source, 2, number), 10)
        seen = [int(image[0, 0, 0]) for images, _ in batches for image in images]
        assert seen == list(expected), number


def test_images_of_different_sizes(make_source):
    sizes = [(10, 20), (16, 12)]
    source = make_source(
        [(f"a_{i}", np.zeros((*s, 3), np.uint8), np.ones(s, np.uint8)) for i, s in enumerate(sizes)]
    )
    assert source.image_size is None and source.max_image_size == (16, 20)
    batches = _take(pipeline.evaluation_batches(source, 1), 3)
    assert [images.shape[1:3] for images, _ in batches] == sizes
    # Larger batches are asked for in vain: each image is one, at its own size.
    for batches in (pipeline.evaluation_batches(source, 2), pipeline.validation_batches(source, 2)):
        assert [images.shape for images, _ in _take(batches, 3)] == [(1, *s, 3) for s in sizes]
    # Crops larger than every image hold all of it, and padding.
    options = {"batch_size": 2, "scale_range": (1.0, 1.0), "seed": 0}
    dataset = pipeline.training_batches(source, crop_size=(17, 23), **options)
    for images, labels in _take(dataset, 3):
        assert images.shape == (2, 17, 23, 3)
        assert sorted((labels == 1).sum(axis=(1, 2))) == [16 * 12, 10 * 20]
        assert set(np.unique(labels)) == {1, 255}
        np.testing.assert_array_equal(
            images[labels == 255], np.float32([source.info.mean] * (labels == 255).sum())
        )


def test_options_of_the_flags(numbered_source):
    options = config.SearchConfig(
        run_dir="run", crop_size=(40, 48), batch_size=3, scale_min=0.75, scale_max=1.5, flip=False,
        seed=7, crop_tries=4, color_jitter=0.25,
    )  # fmt: skip
    assert pipeline.batch_options(options) == {
        "crop_size": (40, 48), "batch_size": 3, "scale_range": (0.75, 1.5), "flip": False,
        "seed": 7, "crop_tries": 4, "color_jitter": 0.25, "data_service": None, "shard_by": "rows",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("size", "crop_size", "scale_max", "filled"),
    [
        ((375, 500), (513, 513), 2.0, None),  # VOC, the usual recipe
        ((375, 500), (513, 513), 1.0, None),
        ((360, 480), (1024, 2048), 2.0, "33"),
        ((12, 20), (13, 39), 1.0, "47"),
        ((12, 20), (13, 36), 1.0, None),
    ],
)
def test_only_crops_that_are_mostly_padding_are_refused(size, crop_size, scale_max, filled):
    info = types.SimpleNamespace(name="toy")
    source = types.SimpleNamespace(max_image_size=size, info=info)
    if filled is None:
        return pipeline.check_crop_size(source, crop_size, scale_max)
    text = (
        f"crop_size={crop_size[0]}x{crop_size[1]} is too large for the images of toy (at most "
        f"{size[0]}x{size[1]}): even at scale_max={scale_max:g} they fill only {filled} % of it"
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        pipeline.check_crop_size(source, crop_size, scale_max)


def test_bad_options(numbered_source):
    good = {"batch_size": 2, "crop_size": (9, 9), "seed": 0}
    for change, message in [
        (
            {"crop_size": (49, 40)},
            r"crop_size=49x40 is too large for the images of toy \(at most",
        ),
        ({"crop_tries": 0}, "crop_tries must be 1 or more. Received: 0"),
        ({"color_jitter": 1.5}, r"color_jitter must lie in 0\.\.1. Received: 1.5"),
        ({"crop_size": (0, 20)}, "crop_size must be two positive numbers"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"start_step": -1}, "start_step must be 0 or more"),
        ({"scale_range": (2.0, 0.5)}, "scale_min must be above 0 and at most scale_max"),
        ({"scale_range": (0.0, 0.5)}, "scale_min must be above 0"),
        ({"indices": []}, "at least one example"),
        ({"indices": [0, 7]}, r"indices must lie in 0\.\.6"),
    ]:
        with pytest.raises(ValueError, match=message):
            pipeline.training_batches(numbered_source, **{**good, **change})
    with pytest.raises(TypeError):
        pipeline.search_batches(numbered_source, ([0], [1]), crop=(9, 9), **good)


def test_replicas_share_out_every_batch(textured_source, mirrored):
    options = {"batch_size": 4, "crop_size": (17, 21), "seed": 3}
    whole = _take(pipeline.training_batches(textured_source, **options), 5)
    shared = mirrored.experimental_distribute_dataset(
        pipeline.training_batches(textured_source, **options)
    )
    iterator = iter(shared)
    for images, labels in whole:
        parts = [mirrored.experimental_local_results(part) for part in next(iterator)]
        assert all(len(part) == 2 for part in parts)
        assert (np.concatenate([p.numpy() for p in parts[0]]) == images).all()
        assert (np.concatenate([p.numpy() for p in parts[1]]) == labels).all()


@pytest.mark.parametrize("share", [(1, 1), (2, 2), (2, 4), (4, 4)])
def test_workers_read_their_own_rows_of_the_batches_that_one_device_has(share, textured_source):
    workers, replicas = share
    options = {"batch_size": 4, "crop_size": (17, 21), "seed": 3, "start_step": 2, **VARIED}
    whole = _take(pipeline.training_batches(textured_source, **options), 5)
    local = replicas // workers
    parts = []
    for worker in range(workers):
        batches = pipeline.training_batches(
            textured_source, share=pipeline.Share(worker, workers, replicas), **options
        )
        assert batches.cardinality() == tf.data.INFINITE_CARDINALITY
        parts.append(_take(batches, 5 * local))
    for step, (images, labels) in enumerate(whole):
        rows = [part[step * local + replica] for part in parts for replica in range(local)]
        assert all(len(images) == 4 // replicas for images, _ in rows)
        assert (np.concatenate([part for part, _ in rows]) == images).all()
        assert (np.concatenate([part for _, part in rows]) == labels).all()
    with pytest.raises(ValueError, match="batch_size=4 must be a multiple of the 3 devices"):
        pipeline.training_batches(textured_source, share=pipeline.Share(0, 3, 3), **options)


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_every_image_is_scored_by_one_worker_in_a_batch_that_one_device_has(
    workers, numbered_source
):
    whole = list(map(_numbers, (i for i, _ in pipeline.evaluation_batches(numbered_source, 2))))
    assert whole == [[0, 1], [2, 3], [4, 5], [6]]
    found = []
    for worker in range(workers):
        share = pipeline.Share(worker, workers, workers)
        batches = pipeline.evaluation_batches(numbered_source, 2, share=share)
        found += [_numbers(images.numpy()) for images, _ in batches]
    assert sorted(found) == whole
