"""The checkpoints of a run: read completely or not at all, and only into what they belong to."""

import os
import re
import shutil
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from auto_deeplab_tf.errors import StorageError, UserError
from auto_deeplab_tf.files import AnyPath, LiteralPath, as_path, remove_folder, write_text
from auto_deeplab_tf.training import distribution

# Room for what a run writes beside its checkpoints and models: logs, metrics, drawings.
_LOGS_BYTES = 32 * 2**20


class Checkpoints:
    """The last checkpoints of a run: variables by name, and the fingerprint of what they belong to.

    A checkpoint is read completely or not at all: one that lacks a variable, has another too many,
    or carries another fingerprint is refused. One whose files are damaged is passed over.

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
        self._keep = keep
        self._latest: int | None = None
        self._damaged: set[int] = set()
        self._former = former_fingerprint
        with distribution.own_variables():
            self._fingerprint = tf.Variable(fingerprint, trainable=False)
        # Numbered, not named: the names that Keras makes up depend on what else a process made.
        by_name = {
            f"v{index:05d}": variable if isinstance(variable, tf.Variable) else variable.value
            for index, variable in enumerate(variables)
        }
        # Metrics are sums over replicas: reading one asks all workers, of which one alone writes.
        self._sums = {
            name: variable
            for name, variable in by_name.items()
            if isinstance(variable, tf.distribute.DistributedValues)
            and variable.synchronization == tf.VariableSynchronization.ON_READ
        }
        with distribution.own_variables():
            by_name |= {
                name: tf.Variable(tf.zeros(variable.shape, variable.dtype), trainable=False)
                for name, variable in self._sums.items()
            }
        self._by_name = by_name
        self._num_bytes = sum(
            int(np.prod(variable.shape)) * variable.dtype.size for variable in by_name.values()
        )
        self._checkpoint = tf.train.Checkpoint(
            fingerprint=self._fingerprint, variables=_Holder(by_name)
        )
        with distribution.own_variables():
            self._checkpoint.save_counter  # noqa: B018  # else made when it saves or restores
        self._literal = LiteralPath(self._directory)

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints in the folder, the oldest first."""
        return steps_in(self._directory)

    @property
    def latest(self) -> str | None:
        """The path of the checkpoint last read or written, else of the newest; None: there is none.

        That of a damaged one is given only before `restore` has found it so.
        """
        if self._latest is not None:
            return self._path(self._latest)
        steps = self._whole()
        return self._path(steps[-1]) if steps else None

    def _whole(self) -> list[int]:
        """The steps of the checkpoints that `restore` has not found damaged."""
        return [step for step in self.steps if step not in self._damaged]

    def _path(self, step: int) -> str:
        return str(self._directory / f"step-{step}")

    def check_space(self, other_bytes: int = 0) -> None:
        """Refuses to begin a run for whose files the disk has no room.

        That are the checkpoints kept, one more while it is written, and other files. Filesystems
        behind a URL are not looked at.

        Args:
            other_bytes: Size of the other files that the run will write.

        Raises:
            StorageError: With the bytes needed and free.
        """
        if not isinstance(self._directory, Path):
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._directory).free
        number = max(1, self._keep + 1 - len(self.steps))
        needed = number * self._num_bytes + other_bytes + _LOGS_BYTES
        if free < needed:
            raise StorageError(
                f"{self._directory} has {_mib(free)} free, and the run needs {_mib(needed)} "
                f"(checkpoints: {number} of {_mib(self._num_bytes)}, one of them while it is "
                f"written; other files: {_mib(other_bytes + _LOGS_BYTES)}): make room, "
                "lower keep_checkpoints, or name another run_dir."
            )

    def save(self, step: int) -> str:
        """Writes a checkpoint of that step and returns its path.

        Every worker calls it; the chief writes.

        Raises:
            StorageError: If it cannot be written, as on a full disk; nothing of it is left.
        """
        path = self._path(step)
        for name, variable in self._sums.items():
            self._by_name[name].assign(variable.read_value())
        if not distribution.workers().is_chief:
            self._latest = step
            return path
        try:
            self._checkpoint.save_counter.assign_add(1)
            self._checkpoint.write(os.path.join(self._literal.path, f"step-{step}"))
        except (tf.errors.OpError, OSError) as error:
            self._remove({step})
            resumes = f"make room, and the same command resumes from {self.latest or 'the start'}"
            raise StorageError.of(path, error, resumes, self._num_bytes) from error
        self._latest = step
        self._damaged.discard(step)
        kept = self._whole()[-self._keep :]
        self._write_list(kept)
        self._remove(_files(self._directory).keys() - kept)
        return path

    def _write_list(self, steps: list[int]) -> None:
        """Writes the file that `tf.train.latest_checkpoint` and `CheckpointManager` read.

        A file that says the same stays.
        """
        path = self._directory / "checkpoint"
        lines = [f'model_checkpoint_path: "step-{steps[-1]}"']
        lines += [f'all_model_checkpoint_paths: "step-{step}"' for step in steps]
        named, key = "\n".join(lines) + "\n", "all_model_checkpoint_timestamps: "
        before = path.read_bytes() if path.is_file() else b""
        if not before.startswith(named.encode()) or before.count(key.encode()) != len(steps):
            write_text(path, named + f"{key}{time.time()!r}\n" * len(steps))

    def _remove(self, steps: set[int]) -> None:
        """Deletes all files of some steps."""
        files = _files(self._directory)
        for step in steps:
            for path in files.get(step, ()):
                remove_folder(path) if path.is_dir() else path.unlink()

    def restore(self, step: int | None = None) -> bool:
        """Reads a checkpoint; returns False where there is none.

        All of its tensors are read and compared with their checksums first. Where a file of it is
        missing, cut or changed, a line on stderr says so, and the one before is taken.

        Every worker calls it: the chief chooses, and the others read the checkpoint of that step.

        Args:
            step: Which, one of `steps`; None: the newest that is whole.

        Raises:
            UserError: If it belongs to something else, does not fit the variables, or several are
                there and all damaged. A single one that is damaged was the first: the run begins
                again. In every worker, if one has read other values.
        """
        own = distribution.workers()
        found = self._newest_whole(step) if own.is_chief else None
        chosen = distribution.of_chief(-1 if found is None else found)
        if chosen < 0:
            return False
        self._read(chosen)
        self._latest = chosen
        if own.is_chief and step is None:
            # A kill may have come between a checkpoint and the list.
            self._write_list([each for each in self._whole() if each <= chosen][-self._keep :])
        for name, variable in self._sums.items():
            whole = self._by_name[name].read_value()
            parts = tf.distribute.get_strategy().experimental_local_results(variable)
            for index, part in enumerate(parts):
                part.assign(whole if own.is_chief and index == 0 else tf.zeros_like(whole))
        if own.count > 1:
            distribution.check_equal(checkpoint=(chosen, self._digest()))
        return True

    def _digest(self) -> int:
        """A checksum of all values."""
        digest = 0
        for variable in self._by_name.values():
            digest = zlib.crc32(variable.numpy().tobytes(), digest)
        return digest

    def _newest_whole(self, step: int | None) -> int | None:
        """The step of the newest checkpoint that is whole; tells of those passed over."""
        found, damaged = newest_whole(self._directory, step)
        first_is_damaged = step is None and len(damaged) == 1
        if found is None and damaged and not first_is_damaged:
            raise UserError(
                f"no checkpoint in {self._directory} can be read: delete that folder to begin from "
                "the start, or name another run_dir."
            )
        in_its_place = "the start" if found is None else self._path(found)
        for other, reason in damaged.items():
            line = f"{self._path(other)} is damaged ({reason}); resuming from {in_its_place}"
            print(f"warning: {line}", file=sys.stderr)
        self._damaged = set(damaged)
        return found

    def _read(self, step: int) -> None:
        """Reads a checkpoint that is whole."""
        name, path = self._path(step), os.path.join(self._literal.path, f"step-{step}")
        expected = self._fingerprint.numpy()
        reader = _reader(path)
        key = "fingerprint/.ATTRIBUTES/VARIABLE_VALUE"
        found = reader.get_tensor(key).decode() if reader.has_tensor(key) else "another program"
        if found not in (expected.decode(), self._former):
            raise UserError(
                f"{name} belongs to {found[:16]}, not to {expected.decode()[:16]}: a checkpoint is "
                "never read into another architecture, search space or layout of weights."
            )
        try:
            self._checkpoint.restore(path).assert_consumed()
        except (AssertionError, tf.errors.OpError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{name} does not fit this program ({reason}): use the version that wrote it, or "
                "another run_dir."
            ) from error
        self._fingerprint.assign(expected)


def steps_in(directory: str | os.PathLike[str]) -> list[int]:
    """Returns the steps of the checkpoints in a folder, the oldest first."""
    return sorted(
        step
        for step, files in _files(directory).items()
        if any(file.name == f"step-{step}.index" for file in files)
    )


def newest_whole(
    directory: str | os.PathLike[str], step: int | None = None
) -> tuple[int | None, dict[int, str]]:
    """Finds the newest checkpoint whose files are all there and as they were written.

    Args:
        directory: Folder of the checkpoints.
        step: The only one to look at; None: all.

    Returns:
        (its step, None where there is none; what is wrong with each newer one, by its step).
    """
    files = _files(directory)
    damaged: dict[int, str] = {}
    if not files:
        return None, damaged
    literal = LiteralPath(directory)
    for number in sorted(files, reverse=True) if step is None else [step]:
        # A folder step-N_temp alone is what a kill left of one that was not there yet.
        if step is None and all(file.name == f"step-{number}_temp" for file in files[number]):
            continue
        reason = _damage(os.path.join(literal.path, f"step-{number}"))
        if reason is None:
            return number, damaged
        damaged[number] = reason
    return None, damaged


def _files(directory: str | os.PathLike[str]) -> dict[int, list[AnyPath]]:
    """The files and folders of checkpoints, also unfinished ones, by their step."""
    folder = as_path(directory)
    found: dict[int, list[AnyPath]] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        match = re.match(r"step-(\d+)[._]", path.name)
        if match:
            found.setdefault(int(match[1]), []).append(path)
    return found


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"


def _reader(path: str) -> Any:
    # tf.train.load_checkpoint takes a prefix on ram:// for a folder.
    return tf.compat.v1.train.NewCheckpointReader(path)


def _damage(path: str) -> str | None:
    """What is wrong with the files of a checkpoint; None where every tensor has its checksum."""
    try:
        reader = _reader(path)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except Exception as error:  # of many kinds: IndexError for a file that is cut
        message = getattr(error, "message", None) or str(error)
        return " ".join(message.split())[:200]
    return None


class _Holder(tf.Module):
    """Variables by name, as a checkpoint wants them."""

    def __init__(self, by_name: Mapping[str, tf.Variable]):
        super().__init__()
        for name, variable in by_name.items():
            setattr(self, name, variable)
