"""The data that Keras' `fit` takes, as batches of one epoch after the other for the training loop.

Arrays, `tf.data.Dataset`, `keras.utils.PyDataset` and generators are read by Keras' own adapters,
which have no public name; this file is the only one that uses them.
"""

from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from keras.src.trainers import data_adapters


class KerasData:
    """The batches of a training, epoch by epoch.

    Without `steps_per_epoch` an epoch is one pass over the data. With it an epoch continues where
    the one before stopped, and the data begin again where they end, except those of a generator.

    Args:
        x: Images, or all of the data: what `keras.Model.fit` takes.
        y: Masks, where `x` is an array.
        batch_size: Number of images of a batch of arrays; None: 32.
        steps_per_epoch: Batches of an epoch.
        shuffle: Whether arrays and `PyDataset`s are shuffled in every epoch.
        ignore_label: Label of the pixels that count nowhere. On several devices a batch that they
            cannot share equally is filled by repeating its first image under this label.

    Attributes:
        dataset: The batches of one pass.
        steps_per_epoch: Batches of an epoch; None where it cannot be known before the data end.
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        batch_size: int | None = None,
        steps_per_epoch: int | None = None,
        shuffle: bool = True,
        ignore_label: int = 255,
    ):
        self._once = isinstance(x, Iterator)
        finite = hasattr(x, "shape") or getattr(x, "num_batches", None) is not None
        self._adapter = data_adapters.get_data_adapter(
            x, y, batch_size=batch_size, steps_per_epoch=steps_per_epoch, shuffle=shuffle and finite
        )
        self._pass = None if steps_per_epoch is None else self._endless()
        self.steps_per_epoch = steps_per_epoch or self._adapter.num_batches
        self.dataset = self._adapter.get_tf_dataset()
        self._limit = steps_per_epoch
        strategy = tf.distribute.get_strategy()
        replicas = strategy.num_replicas_in_sync
        if replicas > 1 and isinstance(self.dataset, tf.data.Dataset):
            filled = self.dataset.map(lambda *batch: _filled(batch, replicas, ignore_label))
            self.dataset = strategy.experimental_distribute_dataset(filled)

    def __call__(self, step: int) -> Iterator[Any]:
        """Yields the batches of the next epoch; `step` is where the loop is."""
        self._adapter.on_epoch_begin()
        batches = iter(self.dataset) if self._pass is None else self._pass
        try:
            for index, batch in enumerate(batches, start=1):
                yield batch
                if index == self._limit:
                    break
        finally:
            self._adapter.on_epoch_end()

    def _endless(self):
        """All batches again and again; those of a generator, which has only one pass, once."""
        while True:
            yield from self.dataset
            if self._once:
                return


def _filled(batch, replicas, ignore_label):
    """(images, masks) with so many images that every replica gets as many as the others."""
    if len(batch) != 2:
        return batch
    images, masks = batch
    missing = -tf.shape(images)[0] % replicas
    images = tf.concat([images, tf.repeat(images[:1], missing, axis=0)], axis=0)
    ignored = tf.fill(tf.shape(masks[:1]), tf.cast(ignore_label, masks.dtype))
    return images, tf.concat([masks, tf.repeat(ignored, missing, axis=0)], axis=0)
