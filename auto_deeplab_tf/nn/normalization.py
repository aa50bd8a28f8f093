"""Batch normalisation: the layer, the factory that networks hand down, the moving statistics."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from typing import Any

import keras
from keras import ops

from auto_deeplab_tf.config import NetworkConfig
from auto_deeplab_tf.nn import backend
from auto_deeplab_tf.nn.backend import Tensor
from auto_deeplab_tf.nn.serialization import Configured, register

BATCH_NORM_EPSILON = 1e-3
BATCH_NORM_DECAY: float = NetworkConfig.batch_norm_decay

_updates: contextvars.ContextVar[Any] = contextvars.ContextVar("updates", default=None)


def update_weights(decay: float, updates: Any = None) -> tuple[Any, Any]:
    """Returns the weights of a moving average and of the value that it takes in.

        average <- kept * average + added * value,   kept = min(decay, (1 + n) / (10 + n)),
                                                     added = 1 - kept

    So an average is right from its first steps, when a decay near 1 would leave it at its initial
    value: after 60 updates 0.9997**60 = 98 % of that value would remain. The limit is reached at
    n = (10 * decay - 1) / (1 - decay): 80 updates for a decay of 0.9, 29,990 for 0.9997; from then
    on the update is, to the bit, the one with a constant decay.

    Args:
        decay: The limit, in [0, 1).
        updates: n, the number of updates so far, a scalar; None: the limit is reached.

    Returns:
        (kept, added): two floats, or two float32 scalars.

    Reference: `tf.train.ExponentialMovingAverage`, `num_updates`.
    """
    if updates is None:
        return decay, 1.0 - decay
    count = ops.cast(updates, "float32")
    return ops.minimum(decay, (1.0 + count) / (10.0 + count)), ops.maximum(
        1.0 - decay, 9.0 / (10.0 + count)
    )


def counted_updates(updates: Any) -> contextlib.AbstractContextManager[None]:
    """A context in which moving statistics are those of a network after `updates` updates."""
    return backend.setting(_updates, updates)


@register
class BatchNormalization(Configured, keras.layers.BatchNormalization):
    """Keras' batch normalisation with statistics over all replicas, on any backend.

    Keras' own `synchronized=True` is for TensorFlow alone and takes E[x^2] - E[x]^2 even on one
    device; here the variance is the mean of (x - mean)^2. On CPU the fused kernel serves.

    Moving statistics decay by `momentum`; inside of a network, less during its first updates: see
    `update_weights`.

    Args: see `keras.layers.BatchNormalization`.

    Input shape: float [N, h, w, C].
    Output shape: The same.

    Reference: Ioffe and Szegedy 2015, arXiv:1502.03167.
    """

    def call(self, inputs: Tensor, training: bool | None = None, mask: Any = None) -> Tensor:
        """Normalises by the batch in training, by the moving statistics otherwise."""
        if not self.takes_batch_statistics(training):
            return super().call(inputs, training=False)
        # The fused kernel's variance is corrected by the number of positions, an int.
        has_size = None not in inputs.shape[1:3]
        normalize = backend.normalize_batch if has_size else backend.plain_normalize_batch
        gamma, beta = ops.convert_to_tensor(self.gamma), ops.convert_to_tensor(self.beta)
        normalized, mean, variance = normalize(inputs, gamma, beta, self.epsilon)
        kept, added = update_weights(self.momentum, _updates.get())
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * kept + value * added)
        return normalized

    def takes_batch_statistics(self, training: bool | None) -> bool:
        """Tells whether a call normalises by its batch: in training, unless it is frozen."""
        return bool(training and self.trainable)

    def scale_and_offset(self) -> tuple[Tensor, Tensor]:
        """Returns what a call with moving statistics multiplies by and adds, float32 [C] each."""
        gamma, beta, mean, variance = map(
            backend.read, (self.gamma, self.beta, self.moving_mean, self.moving_variance)
        )
        scale = gamma * ops.rsqrt(variance + self.epsilon)
        return scale, beta - mean * scale


@dataclasses.dataclass(frozen=True)
class Normalization:
    """Makes the normalisation layers of a network, all with the same settings.

    Attributes:
        decay: Limit of the moving statistics' decay, in [0, 1).
        epsilon: Added to the variance.
    """

    decay: float = BATCH_NORM_DECAY
    epsilon: float = BATCH_NORM_EPSILON

    def __call__(self, name: str, dtype: Any = None) -> BatchNormalization:
        """Returns a new layer of that name and dtype policy."""
        return BatchNormalization(momentum=self.decay, epsilon=self.epsilon, name=name, dtype=dtype)
