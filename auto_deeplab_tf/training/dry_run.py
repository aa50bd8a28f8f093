"""What a run needs, measured on its first steps.

A command's `--dry_run` makes its model and data as for the run, hands a `StepTimer` to the training
loop for a few steps, writes nothing, and prints `needs`:

    timer = StepTimer()
    model.fit(..., epochs=1, steps_per_epoch=STEPS, callbacks=[timer])
    dry_run.needs(model, {"step": (timer.epochs[0], number of steps of the run)})
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from auto_deeplab_tf.process import peak_memory_mib

# Of each kind of step: the first one compiles, the shortest of the others is what one takes.
STEPS = 3


class StepTimer(keras.callbacks.Callback):
    """Measures the seconds of every step, its share of the input pipeline included.

    Attributes:
        epochs: For each epoch the seconds of its steps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[list[float]] = []
        self._last = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Starts an epoch."""
        self.epochs.append([])
        self._last = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Ends a step."""
        now = time.perf_counter()
        self.epochs[-1].append(now - self._last)
        self._last = now


def needs(
    model: keras.Model, kinds: Mapping[str, tuple[Sequence[float], int]]
) -> dict[str, int | float]:
    """Returns what a run needs.

    Args:
        model: The model that took the steps.
        kinds: Name of a kind of step -> (its measured seconds, two or more, the first with
            compilation; the number of such steps in the run).

    Returns:
        `peak_memory_mib`, the largest resident size of this process so far; `compile_seconds`;
        `seconds_per_NAME` of each kind; `total_seconds`, without validation; `steps`;
        `num_parameters`, trainable ones.
    """
    seconds = {name: min(measured[1:]) for name, (measured, _) in kinds.items()}
    compiling = sum(measured[0] - seconds[name] for name, (measured, _) in kinds.items())
    running = sum(seconds[name] * steps for name, (_, steps) in kinds.items())
    return {
        "peak_memory_mib": round(peak_memory_mib()),
        "compile_seconds": round(max(compiling, 0.0), 1),
        **{f"seconds_per_{name}": round(value, 3) for name, value in seconds.items()},
        "total_seconds": round(compiling + running),
        "steps": sum(steps for _, steps in kinds.values()),
        "num_parameters": sum(int(np.prod(v.shape)) for v in model.trainable_variables),
    }
