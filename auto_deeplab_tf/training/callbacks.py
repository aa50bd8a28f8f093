"""Keras callbacks of the commands: a row per epoch, and text for TensorBoard."""

import os
import sys
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from auto_deeplab_tf import config
from auto_deeplab_tf.errors import StorageError
from auto_deeplab_tf.training.run_dir import MetricsFile

_VERBOSE = {"bar": 1, "epochs": 2, "none": 0}


def verbosity(options: config.RunConfig) -> int:
    """Returns Keras' `verbose` for `--progress`: 0 silent, 1 a bar, 2 a line per epoch.

    `auto` is a bar on a terminal, else a line per epoch; `--json` leaves stdout to the result.
    """
    if options.json:
        return 0
    if options.progress == "auto":
        return 1 if sys.stdout.isatty() else 2
    return _VERBOSE[options.progress]


class MetricsRow(keras.callbacks.Callback):
    """Writes the logs of each epoch as a row of a CSV file: epoch, step, then the columns named.

    Args:
        path: The file.
        columns: Names of the logs; a log that an epoch lacks (no validation) is left empty.
    """

    def __init__(self, path: str | os.PathLike[str], columns: Sequence[str]):
        super().__init__()
        self._file = MetricsFile(path)
        self._columns = tuple(columns)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the epoch's values."""
        logs = logs or {}
        row = {"epoch": epoch, "step": int(self.model.completed_steps.numpy())}
        self._file.write(row | {name: logs.get(name, "") for name in self._columns})


class TensorBoardLogs(keras.callbacks.Callback):
    """Writes the logs of each epoch for TensorBoard: numbers as curves, texts as texts.

    Args:
        directory: Folder of the event files.

    Raises:
        StorageError: If an epoch's logs cannot be written.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        super().__init__()
        self._directory = str(directory)
        self._writer: Any = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Opens the log."""
        self._writer = tf.summary.create_file_writer(self._directory)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the epoch's values."""
        try:
            with self._writer.as_default(step=epoch):
                for name, value in (logs or {}).items():
                    if isinstance(value, str):
                        tf.summary.text(name, value)
                    elif value is not None:
                        tf.summary.scalar(name, value)
            self._writer.flush()
        except tf.errors.OpError as error:
            resumes = "make room, and the same command resumes from the last checkpoint"
            raise StorageError.of(self._directory, error, resumes) from error

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Closes the log."""
        self._writer.close()
