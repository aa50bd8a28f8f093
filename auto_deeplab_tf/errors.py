"""Errors meant for the user: the message says the rule, what came, and what to do.

The command line turns these into one line on stderr; any other exception keeps its traceback. Their
messages name settings as Python does, `batch_size=3`; the command line writes `--batch_size=3`.
"""

from __future__ import annotations

import errno
import os


class UserError(ValueError):
    """Something that the user can fix: a value, a file's content, a combination of settings."""


class FieldError(UserError):
    """A setting that breaks a rule: the message begins with its name.

    Args:
        message: The message.
        *names: The settings that it names; left out, the one whose name it begins with.
    """

    def __init__(self, message: str, *names: str) -> None:
        super().__init__(message)
        self.names = names or (message.replace("=", " ").partition(" ")[0],)


class MissingFileError(FileNotFoundError):
    """A file or folder that is not there."""


class StorageError(OSError):
    """A file that could not be written: no space left, or no permission."""

    @classmethod
    def of(
        cls,
        path: str | os.PathLike[str],
        error: Exception,
        remedy: str,
        num_bytes: int | None = None,
    ) -> StorageError:
        """Returns the error in one line: the file, the reason, the bytes needed, what to do.

        Args:
            path: The file or folder.
            error: What writing it raised, of Python, TensorFlow or HDF5.
            remedy: What to do, without a full stop.
            num_bytes: The size of the file, where it is known.
        """
        text = " ".join(str(getattr(error, "strerror", None) or error).split())
        full = os.strerror(errno.ENOSPC)
        reason = full if full.lower() in text.lower() else text[:200]
        needs = "" if num_bytes is None else f"; it needs {num_bytes:,} bytes"
        return cls(f"{path} cannot be written ({reason}{needs}): {remedy}")


class MissingExtraError(ImportError):
    """A package that is not installed: the message says which extra has it."""


class RunError(RuntimeError):
    """A run had to stop for a reason that its user can fix: the message says which, and how."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether an error is Python's or TensorFlow's for memory that is not there."""
    # TensorFlow is not imported for this: the error's class tells.
    names = {base.__name__ for base in type(error).__mro__}
    return bool(names & {"MemoryError", "ResourceExhaustedError"})
