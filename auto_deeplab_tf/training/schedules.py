"""Learning rates: the paper's poly (networks) and cosine (search); that of alpha and beta."""

import math
from typing import Any

import keras
from keras import ops

from auto_deeplab_tf.config import SearchConfig, TrainConfig
from auto_deeplab_tf.errors import UserError

# The paper's, in its 14,880 updates of alpha and beta.
ARCH_LEARNING_RATE = 0.003
# Adam moves a logit by at most its learning rate per update. A logit that is ahead of seven others
# by 9 has a probability of 0.999; in the paper's search it can move by 45.
REACH = 9.0
LARGEST_ARCH_LEARNING_RATE = 0.15  # Of what has been tried, in 60 updates.


def arch_learning_rate(updates: int) -> float:
    """Returns the learning rate of alpha and beta that lets so many updates of Adam decide."""
    return min(max(ARCH_LEARNING_RATE, REACH / max(updates, 1)), LARGEST_ARCH_LEARNING_RATE)


class _Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate as a function of progress, min(step / steps, 1)."""

    def __init__(self, initial: float, steps: int):
        if not initial > 0.0 or not math.isfinite(initial):
            raise UserError(f"the initial learning rate must be > 0. Received: {initial}")
        if int(steps) != steps or steps < 1:
            raise UserError(
                f"steps of a schedule must be a whole number of at least 1. Received: {steps}"
            )
        self.initial = float(initial)
        self.steps = int(steps)

    def _progress(self, step):
        return ops.minimum(ops.cast(step, "float32") / float(self.steps), 1.0)

    def get_config(self) -> dict[str, Any]:
        return {"initial": self.initial, "steps": self.steps}


def current_rate(optimizer: keras.optimizers.Optimizer) -> float:
    """Returns the learning rate of the next step.

    `float(optimizer.learning_rate)` fails where a strategy copies the variable of a constant rate.
    """
    return float(ops.convert_to_numpy(optimizer.learning_rate))


def stretched(
    setting: str, before: Any, after: Any, old: _Schedule, new: _Schedule, step: int
) -> str:
    """Returns the line that says what a resumed run with more steps changes in its schedule.

    Args:
        setting: Name of the setting that has grown; likewise:
        before: Its value so far.
        after: Its value from here on.
        old: The schedule so far.
        new: The schedule from here on.
        step: The first step that follows it.
    """
    return (
        f"warning: {setting}={after} in place of {before}: the learning rate's schedule ends after "
        f"step {new.steps} in place of {old.steps}, and step {step} is taken at "
        f"{float(new(step)):.3g} in place of {float(old(step)):.3g}; a run begun with "
        f"{setting}={after} would have had other rates up to here."
    )


@keras.saving.register_keras_serializable(package="auto_deeplab_tf")
class Poly(_Schedule):
    """lr(step) = initial * (1 - step / steps) ** power, and 0 from `steps` on.

    Args:
        initial: Learning rate of step 0.
        steps: Number of steps of the run.
        power: Exponent, > 0.

    Reference: the paper, sec. 4 (retraining): initial 0.05, power 0.9.
    """

    def __init__(
        self,
        initial: float = TrainConfig.learning_rate,
        steps: int = TrainConfig.steps,
        power: float = TrainConfig.power,
    ):
        super().__init__(initial, steps)
        if not power > 0.0:
            raise UserError(f"power of a poly schedule must be > 0. Received: {power}")
        self.power = float(power)

    def __call__(self, step: Any) -> Any:
        """Returns the learning rate at a step."""
        return self.initial * ops.power(1.0 - self._progress(step), self.power)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor, as JSON values."""
        return {**super().get_config(), "power": self.power}


@keras.saving.register_keras_serializable(package="auto_deeplab_tf")
class Cosine(_Schedule):
    """lr(step) = final + (initial - final) * (1 + cos(pi * step / steps)) / 2.

    From `steps` on it stays at `final`.

    Args:
        initial: Learning rate of step 0.
        final: Learning rate of the end, >= 0 and at most `initial`.
        steps: Number of steps of the run.

    Reference: the paper, sec. 4 (search): 0.025 to 0.001.
    """

    def __init__(
        self,
        initial: float = SearchConfig.learning_rate,
        final: float = SearchConfig.min_learning_rate,
        steps: int = 29_760,
    ):
        super().__init__(initial, steps)
        if not 0.0 <= final <= initial:
            raise UserError(
                "the final learning rate of a cosine schedule must lie between 0 and "
                f"the initial one ({initial}). Received: {final}"
            )
        self.final = float(final)

    def __call__(self, step: Any) -> Any:
        """Returns the learning rate at a step."""
        wave = (1.0 + ops.cos(math.pi * self._progress(step))) / 2.0
        return self.final + (self.initial - self.final) * wave

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor, as JSON values."""
        return {**super().get_config(), "final": self.final}
