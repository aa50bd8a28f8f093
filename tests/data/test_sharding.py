"""By file: each file is read by one worker, each image comes once in a pass, from any step."""

import numpy as np
import pytest

from auto_deeplab_tf.data import pipeline, records, sharding, shards
from auto_deeplab_tf.data.dataset import RawExample, in_memory
from auto_deeplab_tf.data.image_files import encode_png
from auto_deeplab_tf.data.source import Source
from tests.data.conftest import TOY


@pytest.fixture
def source(tmp_path):
    """99 examples in 4 files of 32, 32, 32 and 3; every pixel of example i has the value i."""
    label = encode_png(np.zeros((8, 10), np.uint8))
    examples = [
        RawExample(f"a_{i:03d}", "a", encode_png(np.full((8, 10, 3), i, np.uint8)), label)
        for i in range(99)
    ]
    raw = in_memory(TOY, {"train": examples})
    shards.write(tmp_path, raw, records.Settings(), fingerprint="none")
    return Source(tmp_path, "train", TOY)


@pytest.mark.parametrize("seed", range(20))
def test_every_file_has_one_owner_and_the_loads_differ_by_one_file(seed):
    rng = np.random.default_rng(seed)
    workers = int(rng.integers(1, 6))
    numbers = rng.permutation(np.repeat(np.arange(9), rng.integers(1, 40, 9)))
    indices = rng.permutation(len(numbers))[: len(numbers) // 2 + 9]
    parts = [sharding.of_worker(numbers, indices, w, workers) for w in range(workers)]
    assert sorted(np.concatenate(parts)) == sorted(indices)
    files = [set(numbers[part]) for part in parts]
    assert sum(map(len, files)) == len(set.union(*files))
    loads = np.bincount(sharding.owners(numbers, workers), np.bincount(numbers), workers)
    assert loads.max() - loads.min() <= np.bincount(numbers).max()


def test_each_worker_sees_its_files_once_in_a_pass(source):
    def seen(worker, seed=1, start_step=0, steps=None, batch_size=2):
        share = pipeline.Share(worker, 3, 3)
        batches = pipeline.training_batches(
            source,
            shard_by="files",
            share=share,
            batch_size=3 * batch_size,
            crop_size=(8, 10),
            scale_range=(1.0, 1.0),
            seed=seed,
            start_step=start_step,
        )
        own = (35, 32, 32)[worker]
        steps = own // batch_size if steps is None else steps
        return [int(image[4, 5, 0]) for images, _ in batches.take(steps) for image in images]

    whole = [seen(worker, batch_size=1) for worker in range(3)]
    assert sorted(sum(whole, [])) == list(range(99))
    files = [set(source.shards[part].tolist()) for part in whole]
    assert files == [{0, 3}, {1}, {2}]
    assert seen(1, start_step=5, steps=3) == seen(1, steps=8)[10:]
    assert seen(1, steps=8) != seen(1, seed=2, steps=8)


def test_too_few_files_are_refused(source):
    with pytest.raises(ValueError, match="^shard_by=files needs examples in at least 5 files"):
        sharding.of_worker(source.shards, range(99), 4, 5)
