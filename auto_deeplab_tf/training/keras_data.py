"""The data that Keras' `fit` takes, as batches of one epoch after the other for the training loop.

Arrays, `tf.data.Dataset`, `keras.utils.PyDataset` and generators are read by Keras' own adapters,
which have no public name; this file is the only one that uses them.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.trainers import data_adapters

from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.training import inputs


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
        predicts: On several devices, replace the masks by int32 [N], 0 for an image that a batch
            was filled with, else 1.

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
        predicts: bool = False,
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
            if predicts:
                ignore_label = 0
                self.dataset = self.dataset.map(
                    lambda images, *_: (images, tf.ones(tf.shape(images)[:1], tf.int32))
                )
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


def split_off(x: Any, y: Any, share: float) -> tuple[Any, Any, tuple[Any, Any]]:
    """(x, y, (val_x, val_y)): the last images of arrays, as Keras' `validation_split` does."""
    if not hasattr(x, "shape") or not 0.0 < share < 1.0:
        raise UserError(
            "validation_split must lie between 0 and 1, and takes images and masks as arrays. "
            f"Received: {share} of {type(x).__name__}"
        )
    first = math.floor(len(x) * (1.0 - share))
    if not 0 < first < len(x):
        raise UserError(
            f"validation_split={share} of {len(x)} images leaves no image to train or to validate"
        )
    return x[:first], y[:first], (x[first:], y[first:])


def validation(
    evaluate: Callable[..., dict[str, float]],
    data: Any,
    freq: int | Sequence[int],
    **arguments: Any,
) -> Callable[[int], dict[str, Any]]:
    """Returns a function epoch -> logs of the validation, empty in an epoch that has none.

    Args:
        evaluate: `keras.Model.evaluate` of the model.
        data: `validation_data` of `keras.Model.fit`, or such a function.
        freq: Its `validation_freq`.
        **arguments: Of `evaluate`; `steps` among them.
    """

    def is_due(epoch):
        return (epoch + 1) % freq == 0 if isinstance(freq, int) else epoch + 1 in freq

    if data is None:
        return lambda epoch: {}
    if callable(data):
        return lambda epoch: data(epoch) if is_due(epoch) else {}
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    inputs.refuse_weights(sample_weight=sample_weight)
    iterates = isinstance(x, Iterator)
    steps = arguments["steps"]

    def validate(epoch):
        if not is_due(epoch):
            return {}
        # A generator is read on from epoch to epoch; Keras would take some batches ahead.
        part = (batch for batch in itertools.islice(x, steps)) if iterates else x
        logs = evaluate(part, y, return_dict=True, **arguments)
        return {f"val_{name}": value for name, value in logs.items()}

    return validate
