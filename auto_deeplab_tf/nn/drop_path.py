"""ScheduledDropPath: drops whole operations of a cell, more often in later cells and steps."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.nn import backend
from auto_deeplab_tf.nn.backend import Tensor
from auto_deeplab_tf.nn.serialization import Configured, register


@register
class ScheduledDropPath(Configured, keras.layers.Layer):
    """Draws, for all cells at once, which operations each sample keeps.

        keep(n) = 1 - progress * (n + 1) / L * (1 - keep_final)        for cell n = 0..L-1
        factor  = floor(keep(n) + U[0, 1)) / keep(n)

    An operation's result times its factor has the same expectation as without dropping.

    Args:
        num_layers: L.
        num_paths: Operations of one cell that may be dropped (all but skip).
        keep_final: keep of the last cell at progress 1, in (0, 1].
        seed: The draws are a function of the seed and of the number of draws so far, a weight of
            this layer: a resumed training draws what an uninterrupted one draws. (A
            `keras.random.SeedGenerator` would be saved in no checkpoint.) Replicas that hold the
            same number of samples each draw what one would draw for all of them.

    Input shape: [N, ...]; only N matters.
    Output shape: float32 [num_layers, num_paths, N, 1, 1, 1].

    Attributes:
        progress: float32 variable, step / steps in 0..1, for the training loop to set; at 0
            nothing is dropped.

    Reference: Zoph et al., CVPR 2018, arXiv:1707.07012; formula as in the authors' TF1 code.
    """

    def __init__(
        self,
        num_layers: int,
        num_paths: int,
        keep_final: float,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 < keep_final <= 1:
            raise UserError(
                f"drop_path_keep must be above 0 and at most 1. Received: {keep_final}."
            )
        if not 0 <= seed < 2**31:
            raise UserError(f"seed must lie in 0..2**31 - 1. Received: {seed}.")
        self.num_layers = num_layers
        self.num_paths = num_paths
        self.keep_final = keep_final
        self.seed = seed
        self.progress = self.add_weight(
            name="progress", shape=(), initializer="zeros", trainable=False, dtype="float32"
        )
        self.num_draws = self.add_weight(
            name="num_draws", shape=(), initializer="zeros", trainable=False, dtype="int32"
        )
        self.built = True

    def call(self, inputs: Tensor) -> Tensor:
        """Draws the factors of a batch, and counts the draw."""
        layers = ops.arange(1, self.num_layers + 1, dtype="float32") / self.num_layers
        keep = 1.0 - self.progress * layers * (1.0 - self.keep_final)
        keep = ops.reshape(keep, (self.num_layers, 1, 1, 1, 1, 1))
        seed = ops.stack([ops.convert_to_tensor(self.seed, "int32"), self.num_draws.value])

        def draw(samples: Any) -> Tensor:
            shape = (self.num_layers, self.num_paths, samples, 1, 1, 1)
            return keras.random.uniform(shape, dtype="float32", seed=_HeldSeed(seed))

        uniform = backend.replica_part(draw, ops.shape(inputs)[0], axis=2)
        self.num_draws.assign(self.num_draws + 1)
        return ops.floor(keep + uniform) / keep


class _HeldSeed(keras.random.SeedGenerator):
    """Hands a given seed to `keras.random`, which takes no tensor; it has no state of its own."""

    def __init__(self, seed: Tensor) -> None:
        self._seed = seed

    def next(self, ordered: bool = True) -> Tensor:
        """Returns the seed, int [2]."""
        return ops.cast(self._seed, "uint32" if keras.backend.backend() == "jax" else "int32")
