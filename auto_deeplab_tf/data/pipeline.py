"""Batches that are a function of the seed and of their position in the stream.

A training stream is endless. Position p belongs to epoch p // n; the epoch's order is a permutation
that is computed (`index_shuffle`), not a shuffle buffer. So step s starts at position
s * batch_size at no cost, and a resumed run gets the batches of the uninterrupted one, bit for bit.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from auto_deeplab_tf import config
from auto_deeplab_tf.data import augment, service, sharding
from auto_deeplab_tf.data.source import Source
from auto_deeplab_tf.errors import UserError

# Batches that are ready for the consumer; the pipeline holds these and one example per thread in
# memory.
_PREFETCH_BATCHES = 2


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of every batch that one worker of several takes; by default, all of it.

    Attributes:
        worker: Which worker, from 0.
        workers: Number of workers.
        replicas: Number of replicas of all workers together, a multiple of it: a worker takes
            its rows of a batch in as many batches as it has replicas.
    """

    worker: int = 0
    workers: int = 1
    replicas: int = 1

    def sizes(self, batch_size: int) -> tuple[int, int]:
        """Returns how many images of a batch this worker takes, and how many one replica.

        Raises:
            UserError: If the replicas cannot share the batch equally.
        """
        if batch_size % self.replicas:
            raise UserError(
                f"batch_size={batch_size} must be a multiple of the {self.replicas} devices: "
                "every replica takes the same number of images."
            )
        return batch_size // self.workers, batch_size // self.replicas

    def batches(self, indices: np.ndarray, batch_size: int) -> np.ndarray:
        """Returns the indices of every `workers`-th whole batch of them, from `worker` on."""
        starts = range(self.worker * batch_size, len(indices), self.workers * batch_size)
        return np.concatenate([indices[:0], *(indices[s : s + batch_size] for s in starts)])


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
    crop_tries: int = 1,
    color_jitter: float = 0.0,
    stream: int = 0,
    data_service: str | None = None,
    share: Share | None = None,
    shard_by: str = "rows",
    num_parallel_calls: int = tf.data.AUTOTUNE,
) -> tf.data.Dataset:
    """Endless shuffled and augmented batches.

    Every example occurs once per epoch; a batch may reach from one epoch into the next, so none is
    left out.

    Args:
        source: the split.
        indices: examples of the split to draw from; None for all.
        batch_size: images in a batch, over all replicas.
        crop_size: (height, width); where a scaled image is smaller, the rest has the mean colour
            and is ignored.
        seed: determines, with `stream`, order and augmentation.
        start_step: number of batches to skip.
        scale_range: smallest and largest factor of the random scale.
        flip: whether to flip horizontally with probability 0.5.
        crop_tries: maximum crop attempts; accept the first where no class covers 75 % of the
            labelled pixels or more.
        color_jitter: strength of random brightness, contrast and saturation, 0..1.
        stream: distinguishes streams of one seed, such as those of the two halves.
        data_service: grpc://HOST:PORT of a tf.data service whose workers make the batches; the
            same ones.
        share: the part of every batch that this worker takes, image by image as in the whole batch;
            only these images are read. None: all.
        shard_by: "files" for a share of as many images, but of a stream of its own: those of the
            worker's own files (`sharding`).
        num_parallel_calls: examples made at a time; does not change them.

    Returns:
        Endless dataset of (images float32 [batch_size, *crop_size, channels], 0..255; labels int32
        [batch_size, *crop_size]); of a share, with the images of one replica.

    Raises:
        ValueError: for an option outside its range, or a crop that would be padding mostly.
    """
    indices = _checked_indices(source, indices)
    if batch_size < 1:
        raise UserError(f"batch_size must be 1 or more. Received: {batch_size}")
    if start_step < 0:
        raise UserError(f"start_step must be 0 or more. Received: {start_step}")
    if not 0 < scale_range[0] <= scale_range[1]:
        raise UserError(f"scale_min must be above 0 and at most scale_max. Received: {scale_range}")
    if crop_tries < 1:
        raise UserError(f"crop_tries must be 1 or more. Received: {crop_tries}")
    if not 0.0 <= color_jitter <= 1.0:
        raise UserError(f"color_jitter must lie in 0..1. Received: {color_jitter}")
    check_crop_size(source, crop_size, scale_range[1])
    crop_size = (int(crop_size[0]), int(crop_size[1]))
    share = share or Share()
    of_worker, of_replica = share.sizes(batch_size)
    if shard_by == "files":
        indices = sharding.of_worker(source.shards, indices, share.worker, share.workers)
        batch_size, share = of_worker, Share()
    num_examples = len(indices)
    with tf.device("CPU:0"):  # where tf.data runs, also on a machine with a GPU
        indices = tf.constant(indices, tf.int64)
        key = tf.random.fold_in(tf.constant([seed, 0], tf.int64), stream)

    def example_at(row):
        step = row // of_worker
        position = step * batch_size + share.worker * of_worker + row % of_worker
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
            crop_tries=crop_tries,
            color_jitter=color_jitter,
        )

    def batches_from(number):
        # Endless by its own account too: else replicas would ask each other in every step whether
        # their data have ended.
        rows = tf.data.Dataset.counter(tf.constant(number * of_replica, tf.int64))
        dataset = rows.map(example_at, num_parallel_calls=num_parallel_calls, deterministic=True)
        return dataset.batch(of_replica, drop_remainder=True)

    first = start_step * (of_worker // of_replica)
    if data_service is None:
        dataset = batches_from(first)
    else:
        dataset = service.batches(example_at, of_replica, first, batches_from, data_service)
    return dataset.prefetch(_PREFETCH_BATCHES).with_options(iteration_options())


def search_batches(
    source: Source,
    halves: tuple[np.ndarray, np.ndarray],
    *,
    pairs: bool = True,
    **options,
) -> tf.data.Dataset:
    """Endless batches for the search: train_a for the weights, train_b for the architecture.

    Args:
        source: the split.
        halves: indices of train_a and train_b.
        pairs: whether to read train_b. The batches of train_a are the same either way.
        **options: those of `training_batches`, for both halves.

    Returns:
        Dataset of ((images_a, labels_a), (images_b, labels_b)), or of (images_a, labels_a).
    """
    batches_a = training_batches(source, halves[0], stream=0, **options)
    if not pairs:
        return batches_a
    batches_b = training_batches(source, halves[1], stream=1, **options)
    return tf.data.Dataset.zip((batches_a, batches_b)).with_options(iteration_options())


def evaluation_batches(
    source: Source,
    batch_size: int,
    indices: Sequence[int] | np.ndarray | None = None,
    *,
    share: Share | None = None,
    num_parallel_calls: int = tf.data.AUTOTUNE,
) -> tf.data.Dataset:
    """Whole images in the order of the split, each once; the last batch may be smaller.

    Images are not brought to one size to make a batch: where their sizes differ, each is a batch.

    Args:
        source: the split.
        batch_size: images in a batch, where they have one size.
        indices: examples to read; None for all.
        share: the whole batches that this worker takes; None: all.
        num_parallel_calls: examples made at a time; does not change them.

    Returns:
        Dataset of (images float32 [n, height, width, channels], 0..255; labels int32 [n, height,
        width]).
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be 1 or more. Received: {batch_size}")
    indices = evaluation_indices(source, batch_size, share, indices)
    batch_size = batch_size if source.image_size else 1

    def example_at(index):
        image, label = source.example(index)
        return tf.cast(image, tf.float32), tf.cast(label, tf.int32)

    dataset = tf.data.Dataset.from_tensor_slices(indices.astype("int64"))
    dataset = dataset.map(example_at, num_parallel_calls=num_parallel_calls, deterministic=True)
    return dataset.batch(batch_size).prefetch(_PREFETCH_BATCHES).with_options(iteration_options())


def evaluation_indices(
    source: Source,
    batch_size: int,
    share: Share | None = None,
    indices: Sequence[int] | np.ndarray | None = None,
) -> np.ndarray:
    """Returns the indices of the images of `evaluation_batches`, in their order."""
    batch_size = batch_size if source.image_size else 1
    return (share or Share()).batches(_checked_indices(source, indices), batch_size)


def validation_batches(
    source: Source,
    batch_size: int,
    number: int | None = None,
    indices: Sequence[int] | np.ndarray | None = None,
    share: Share | None = None,
) -> tf.data.Dataset:
    """`evaluation_batches` of some images of the split.

    Args:
        source: the split.
        batch_size: images in a batch.
        number: how many images, evenly spread over the split; None for all.
        indices: examples to choose from; None for all.
        share: see `evaluation_batches`.
    """
    indices = _checked_indices(source, indices)
    chosen = indices[spread(len(indices), number or len(indices))]
    return evaluation_batches(source, batch_size, chosen, share=share)


def spread(count: int, number: int) -> list[int]:
    """Returns the indices of `number` of `count` examples, evenly spread, or of all."""
    number = min(number, count)
    return [(2 * index + 1) * count // (2 * number) for index in range(number)]


def batch_options(options: config.DataConfig) -> dict[str, Any]:
    """Returns the arguments of `training_batches` that a command's options give."""
    return {
        "batch_size": options.batch_size,
        "crop_size": options.crop_size,
        "seed": options.seed,
        "scale_range": (options.scale_min, options.scale_max),
        "flip": options.flip,
        "crop_tries": options.crop_tries,
        "color_jitter": options.color_jitter,
        "data_service": options.data_service,
        "shard_by": options.shard_by,
    }


def check_crop_size(source: Source, crop_size: tuple[int, int], scale_max: float) -> None:
    """Refuses a crop of which even the largest image, at the largest scale, fills less than half.

    A crop that is larger than the images is padded; common recipes rely on it (513x513 on VOC's
    500x375). One that is mostly padding is a mistake: it costs the full price and trains on little.

    Raises:
        ValueError: naming both sizes.
    """
    if len(crop_size) != 2 or min(crop_size) < 1:
        raise UserError(f"crop_size must be two positive numbers, HxW. Received: {crop_size!r}")
    height, width = source.max_image_size
    filled = min(1.0, height * scale_max / crop_size[0]) * min(
        1.0, width * scale_max / crop_size[1]
    )
    if filled < 0.5:
        raise UserError(
            f"crop_size={crop_size[0]}x{crop_size[1]} is too large for the images of "
            f"{source.info.name} (at most {height}x{width}): even at scale_max={scale_max:g} "
            f"they fill only {100 * filled:.0f} % of it, and the rest is padding. Make it smaller, "
            "or image_size or scale_max larger"
        )


def _checked_indices(source: Source, indices: Sequence[int] | np.ndarray | None) -> np.ndarray:
    if indices is None:
        return np.arange(source.num_examples)
    indices = np.asarray(indices)
    if indices.size == 0:
        raise UserError("indices must name at least one example. Received: none")
    if indices.min() < 0 or indices.max() >= source.num_examples:
        raise UserError(
            f"indices must lie in 0..{source.num_examples - 1}. "
            f"Received: {indices.min()}..{indices.max()}"
        )
    return indices


def iteration_options() -> tf.data.Options:
    """Returns the options of every data set that is iterated here."""
    result = tf.data.Options()
    result.deterministic = True
    # The thread that tunes an iterator looks up at ever longer intervals, up to a minute, and
    # whoever deletes the iterator waits for it: at the end of every epoch and validation.
    result.autotune.enabled = False
    # Workers split the stream by its elements: there are no input files to split.
    result.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return result
