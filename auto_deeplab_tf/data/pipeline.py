"""Batches whose every member follows from the seed and its position in the stream.

A training stream is endless. Position p belongs to epoch p // n; the epoch's order is a permutation
that is computed (`index_shuffle`), not a buffer that is filled. So step s starts at position s *
batch_size at no cost, and a resumed run gets the batches that the uninterrupted one would have got,
bit for bit.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from auto_deeplab_tf.data import augment
from auto_deeplab_tf.data.source import Source

# Batches that wait, made, for the consumer; what the pipeline holds in memory is these and one
# example per thread.
_PREFETCH_BATCHES = 2


def training_batches(
    source: Source,
    indices: Sequence[int] | np.ndarray | None = None,
    *,
    batch_size: int,
    crop_size: tuple[int, int],
    seed: int,
    start_step: int = 0,
    scale_range: tuple[float, float] = (0.5, 2.0),
    flip: bool = True,
    stream: int = 0,
    num_parallel_calls: int = tf.data.AUTOTUNE,
) -> tf.data.Dataset:
    """Endless shuffled and augmented batches.

    Every example occurs once per epoch; a batch may reach from one epoch into the next, so none is
    left out.

    Args:
        source: the split.
        indices: examples of the split to draw from; None for all.
        batch_size: images in a batch, over all replicas.
        crop_size: (height, width).
        seed: with `stream`, fixes order and augmentation.
        start_step: number of batches to start after.
        scale_range: smallest and largest factor of the random scale.
        flip: whether to mirror images at random.
        stream: distinguishes streams of one seed, such as those of the two halves.
        num_parallel_calls: examples made at a time; does not change them.

    Returns:
        Dataset of (images float32 [batch_size, *crop_size, 3], 0..255; labels int32 [batch_size,
        *crop_size]).

    Raises:
        ValueError: for an option outside its range, or a crop larger than the images.
    """
    indices = _checked_indices(source, indices)
    if batch_size < 1:
        raise ValueError(f"--batch_size must be 1 or more. Received: {batch_size}")
    if start_step < 0:
        raise ValueError(f"start_step must be 0 or more. Received: {start_step}")
    if not 0 < scale_range[0] <= scale_range[1]:
        raise ValueError(
            f"--scale_min must be above 0 and at most --scale_max. Received: {scale_range}"
        )
    check_crop_size(source, crop_size)
    crop_size = (int(crop_size[0]), int(crop_size[1]))
    num_examples = len(indices)
    with tf.device("CPU:0"):  # where tf.data runs, also on a machine with a GPU
        indices = tf.constant(indices, tf.int64)
        key = tf.random.fold_in(tf.constant([seed, 0], tf.int64), stream)

    def example_at(position):
        epoch = position // num_examples
        epoch_key = tf.random.fold_in(key, epoch)
        place = tf.random.experimental.index_shuffle(
            position % num_examples, epoch_key, num_examples - 1
        )
        index = tf.gather(indices, place)
        image, label = source.example(index)
        return augment.random_crop(
            image,
            label,
            tf.random.fold_in(epoch_key, index),
            crop_size=crop_size,
            scale_range=scale_range,
            flip=flip,
            padding=source.info.mean,
            ignore_label=source.info.ignore_label,
        )

    dataset = tf.data.Dataset.range(start_step * batch_size, np.iinfo(np.int64).max)
    dataset = dataset.map(example_at, num_parallel_calls=num_parallel_calls, deterministic=True)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    return dataset.prefetch(_PREFETCH_BATCHES).with_options(_options())


def search_batches(
    source: Source,
    halves: tuple[np.ndarray, np.ndarray],
    *,
    pairs: bool = True,
    **options,
) -> tf.data.Dataset:
    """Endless batches for the search: of train_a for the weights, of train_b for the architecture.

    Args:
        source: the split.
        halves: indices of train_a and train_b.
        pairs: whether train_b is read at all. The batches of train_a are the same either way.
        **options: those of `training_batches`, for both halves.

    Returns:
        Dataset of ((images_a, labels_a), (images_b, labels_b)), or of (images_a, labels_a).
    """
    batches_a = training_batches(source, halves[0], stream=0, **options)
    if not pairs:
        return batches_a
    batches_b = training_batches(source, halves[1], stream=1, **options)
    return tf.data.Dataset.zip((batches_a, batches_b)).with_options(_options())


def evaluation_batches(
    source: Source,
    batch_size: int,
    indices: Sequence[int] | np.ndarray | None = None,
    *,
    num_parallel_calls: int = tf.data.AUTOTUNE,
) -> tf.data.Dataset:
    """Whole images in the order of the split, each once; the last batch may be smaller.

    Returns:
        Dataset of (images float32 [n, height, width, 3], 0..255; labels int32 [n, height, width]).

    Raises:
        ValueError: for a batch of images whose sizes differ.
    """
    if batch_size < 1:
        raise ValueError(f"--batch_size must be 1 or more. Received: {batch_size}")
    if batch_size > 1 and source.image_size is None:
        raise ValueError(
            f"images of {source.info.name} {source.split} differ in size: evaluate them one by "
            f"one. Received: batch size {batch_size}"
        )
    indices = tf.constant(_checked_indices(source, indices), tf.int64)

    def example_at(index):
        image, label = source.example(index)
        return tf.cast(image, tf.float32), tf.cast(label, tf.int32)

    dataset = tf.data.Dataset.from_tensor_slices(indices)
    dataset = dataset.map(example_at, num_parallel_calls=num_parallel_calls, deterministic=True)
    return dataset.batch(batch_size).prefetch(_PREFETCH_BATCHES).with_options(_options())


def validation_batches(
    source: Source, batch_size: int, number: int | None = None
) -> tf.data.Dataset:
    """`evaluation_batches` of some images of the split; one by one where their sizes differ.

    Args:
        source: the split.
        batch_size: images in a batch.
        number: how many images, evenly spread over the split; None for all.
    """
    count = source.num_examples
    batch_size = batch_size if source.image_size else 1
    return evaluation_batches(source, batch_size, spread(count, number or count))


def spread(count: int, number: int) -> list[int]:
    """Returns the indices of `number` of `count` examples, evenly spread, or of all."""
    number = min(number, count)
    return [(2 * index + 1) * count // (2 * number) for index in range(number)]


def check_crop_size(source: Source, crop_size: tuple[int, int]) -> None:
    """Refuses a crop larger than every image: it would always hold padding, at any scale up to 1.

    Raises:
        ValueError: naming both sizes.
    """
    if len(crop_size) != 2 or min(crop_size) < 1:
        raise ValueError(f"--crop_size must be two positive numbers, HxW. Received: {crop_size!r}")
    height, width = source.max_image_size
    if crop_size[0] > height or crop_size[1] > width:
        raise ValueError(
            f"--crop_size={crop_size[0]}x{crop_size[1]} is larger than the images of "
            f"{source.info.name} ({height}x{width}): make it smaller, or --image_size larger"
        )


def _checked_indices(source: Source, indices: Sequence[int] | np.ndarray | None) -> np.ndarray:
    if indices is None:
        return np.arange(source.num_examples)
    indices = np.asarray(indices)
    if indices.size == 0:
        raise ValueError("indices must name at least one example. Received: none")
    if indices.min() < 0 or indices.max() >= source.num_examples:
        raise ValueError(
            f"indices must lie in 0..{source.num_examples - 1}. "
            f"Received: {indices.min()}..{indices.max()}"
        )
    return indices


def _options() -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    # Workers share out the stream by its elements: there are no input files to share out.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return options
