"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from pathlib import Path

from auto_deeplab_tf.errors import StorageError


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file that holds its old content or the new at any moment; makes its folder.

    Raises:
        StorageError: Where it cannot be written.
    """
    path = Path(path)
    # Not longer than the file's own name, which may be as long as the file system allows.
    partial = path.with_name(f".{os.getpid()}-{threading.get_ident()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        remedy = "make room there, or name another folder"
        raise StorageError.of(path, error, remedy, len(content)) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file in UTF-8, atomically."""
    write_atomically(path, text.encode("utf-8"))


class LiteralPath:
    """A folder for TensorFlow's file functions, which take `[ ] * ?` in a path as a pattern.

    Where its path holds one of these, the folder gets a second name, a symbolic link that lives as
    long as this object.

    Args:
        folder: The folder; made where it does not exist and needs a second name.

    Attributes:
        path: A path of the folder without such characters.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.path = os.fspath(folder)
        if not set(self.path) & set("[]*?\\"):
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._temporary = tempfile.TemporaryDirectory()
        self.path = os.path.join(self._temporary.name, "folder")
        os.symlink(os.path.abspath(folder), self.path, target_is_directory=True)
