"""The checkpoints of a run: read completely or not at all, and only into what they belong to."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from auto_deeplab_tf.errors import StorageError, UserError
from auto_deeplab_tf.files import LiteralPath, as_path, remove_folder


class Checkpoints:
    """The last checkpoints of a run: variables by name, and the fingerprint of what they belong to.

    A checkpoint is read completely or not at all: one that lacks a variable, has another too many,
    or carries another fingerprint is refused.

    Args:
        directory: Folder of the checkpoints.
        variables: Keras or TensorFlow variables, in a fixed order; all must exist already.
        fingerprint: What the variables belong to (the architecture or search space, their layout).
        keep: Number of checkpoints kept.
        former_fingerprint: What an earlier version wrote in its place; accepted too.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        variables: Sequence[Any],
        fingerprint: str,
        keep: int = 3,
        former_fingerprint: str | None = None,
    ):
        self._directory = as_path(directory)
        self._former = former_fingerprint
        self._fingerprint = tf.Variable(fingerprint, trainable=False)
        # Numbered, not named: the names that Keras makes up depend on what else a process made.
        by_name = {
            f"v{index:05d}": variable if isinstance(variable, tf.Variable) else variable.value
            for index, variable in enumerate(variables)
        }
        self._num_bytes = sum(
            int(np.prod(variable.shape)) * variable.dtype.size for variable in by_name.values()
        )
        self._checkpoint = tf.train.Checkpoint(
            fingerprint=self._fingerprint, variables=_Holder(by_name)
        )
        self._literal = LiteralPath(self._directory)
        self._manager = tf.train.CheckpointManager(
            self._checkpoint, self._literal.path, max_to_keep=keep, checkpoint_name="step"
        )

    @property
    def latest(self) -> str | None:
        """The path of the newest checkpoint, None where there is none."""
        path = self._manager.latest_checkpoint
        return None if path is None else str(self._directory / os.path.basename(path))

    def save(self, step: int) -> str:
        """Writes a checkpoint of that step and returns its path.

        Raises:
            StorageError: If it cannot be written, as on a full disk; nothing of it is left.
        """
        path = self._directory / f"step-{step}"
        try:
            self._manager.save(checkpoint_number=step)
        except (tf.errors.OpError, OSError) as error:
            for left in self._directory.iterdir():
                if left.name.startswith((f"{path.name}.", f"{path.name}_")):
                    remove_folder(left) if left.is_dir() else left.unlink()
            resumes = f"make room, and the same command resumes from {self.latest or 'the start'}"
            raise StorageError.of(path, error, resumes, self._num_bytes) from error
        return str(path)

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints, the oldest first."""
        return [int(path.rpartition("-")[2]) for path in self._manager.checkpoints]

    def restore(self, step: int | None = None) -> bool:
        """Reads a checkpoint; returns False where there is none.

        Args:
            step: Which, one of `steps`; None: the newest.

        Raises:
            UserError: If it belongs to something else, or does not fit the variables.
        """
        path = self._manager.latest_checkpoint
        if path is None:
            return False
        if step is not None:
            path = os.path.join(os.path.dirname(path), f"step-{step}")
        try:
            # tf.train.load_checkpoint takes a prefix on ram:// for a folder.
            reader = tf.compat.v1.train.NewCheckpointReader(path)
            found = reader.get_tensor("fingerprint/.ATTRIBUTES/VARIABLE_VALUE")
        except (tf.errors.OpError, KeyError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{self.latest} cannot be read ({error}); delete it and its line in "
                f"{self._directory}/checkpoint to resume from the one before."
            ) from error
        expected = self._fingerprint.numpy()
        if found.decode() not in (expected.decode(), self._former):
            raise UserError(
                f"{self.latest} belongs to {found.decode()[:16]}, not to {expected.decode()[:16]}: "
                "a checkpoint is never read into another architecture, search space or layout of "
                "weights."
            )
        try:
            self._checkpoint.restore(path).assert_consumed()
        except (AssertionError, tf.errors.OpError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{self.latest} does not fit this program ({reason}): use the version that wrote "
                "it, or another run_dir."
            ) from error
        self._fingerprint.assign(expected)
        return True


class _Holder(tf.Module):
    """Variables by name, as a checkpoint wants them."""

    def __init__(self, by_name: Mapping[str, tf.Variable]):
        super().__init__()
        for name, variable in by_name.items():
            setattr(self, name, variable)
