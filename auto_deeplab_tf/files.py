"""Files that are whole or not there, on this machine or on a filesystem that TensorFlow reads."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from auto_deeplab_tf.errors import FieldError, StorageError, UserError

# A `pathlib.Path`, or a `remote.RemotePath`, which has the methods of it that the package uses.
AnyPath = Any


def as_path(path: str | os.PathLike[str]) -> AnyPath:
    """Returns the path of a file or folder: of pathlib, or where its text is a URL, of `remote`.

    Raises:
        UserError: For a URL of a filesystem that TensorFlow does not read.
    """
    text = os.fspath(path)
    if not is_url(text):
        return Path(text)
    # Imports TensorFlow, which a command without URLs may do without.
    from auto_deeplab_tf.remote import RemotePath

    return RemotePath(text)


def is_url(path: str | os.PathLike[str]) -> bool:
    """Tells whether a path is none of this machine's: SCHEME://..."""
    scheme, separator, _ = os.fspath(path).partition("://")
    return bool(separator) and scheme.isalnum()


def absolute(path: str | os.PathLike[str]) -> str:
    """Returns the text of a path that means the same in every working directory; URLs do."""
    return os.fspath(path) if is_url(path) else os.path.abspath(path)


def check_local(name: str, value: str | os.PathLike[str] | None) -> None:
    """Refuses a URL as the value of a setting.

    Raises:
        FieldError: Naming the setting.
    """
    if value is not None and is_url(value):
        raise FieldError(f"{name} must be a path of this machine. Received: {os.fspath(value)}")


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file that holds its old content or the new at any moment; makes its folder.

    Raises:
        StorageError: Where it cannot be written.
    """
    target = as_path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(target) as partial, partial.open("wb") as file:
            file.write(content)
            file.flush()
            if isinstance(target, Path):
                os.fsync(file.fileno())
    except OSError as error:
        remedy = "make room there, or name another folder"
        raise StorageError.of(target, error, remedy, len(content)) from error


@contextlib.contextmanager
def _replacing(target: AnyPath) -> Iterator[AnyPath]:
    """Yields a file to write that takes the place of another at the end of `with`.

    An error in `with` removes it; what a kill leaves is known by `is_partial`.
    """
    # Not longer than the file's own name, which may be as long as the file system allows.
    partial = target.with_name(f".{os.getpid()}-{threading.get_ident()}.partial")
    try:
        yield partial
        partial.replace(target)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def is_partial(name: str) -> bool:
    """Tells whether a file is what a kill left of one that was being written, by its name."""
    return re.fullmatch(r"\.\d+-\d+\.partial", name) is not None


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file in UTF-8, atomically."""
    write_atomically(path, text.encode("utf-8"))


def write_once(path: str | os.PathLike[str], value: Any, refusal: str) -> None:
    """Writes a fact as JSON, or checks that the file holds the same one already.

    Args:
        path: The file.
        value: What JSON can hold.
        refusal: The error's message where the file holds another one.

    Raises:
        UserError: With `refusal`.
    """
    target = as_path(path)
    text = json.dumps(value, indent=1) + "\n"
    if not target.exists():
        write_text(target, text)
    elif target.read_text("utf-8") != text:
        raise UserError(refusal)


@contextlib.contextmanager
def local_input(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a file of this machine to read: the file itself, or a copy for as long as `with`."""
    source = as_path(path)
    if isinstance(source, Path):
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / source.name
        source.download(copy)
        yield copy


@contextlib.contextmanager
def local_output(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a file of this machine to write: the file itself, or one that is copied there.

    The copy is made at the end of `with`, atomically, unless an error ends it.
    """
    target = as_path(path)
    if isinstance(target, Path):
        yield target
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / target.name
        yield copy
        with _replacing(target) as partial:
            partial.upload(copy)


def remove_folder(path: str | os.PathLike[str]) -> None:
    """Removes a folder and all that it holds."""
    folder = as_path(path)
    if isinstance(folder, Path):
        shutil.rmtree(folder)
    else:
        folder.rmtree()


class LiteralPath:
    """A folder for TensorFlow's file functions, which take `[ ] * ?` in a path as a pattern.

    Where its path holds one of these, the folder gets a second name, a symbolic link that lives as
    long as this object.

    Args:
        folder: The folder; made where it does not exist and needs a second name.

    Attributes:
        path: A path of the folder without such characters.

    Raises:
        UserError: For a URL with such characters.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.path = os.fspath(folder)
        if not set(self.path) & set("[]*?\\"):
            return
        if is_url(self.path):
            raise UserError(
                f"{self.path} must hold none of [ ] * ? \\, which TensorFlow takes as a pattern"
            )
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._temporary = tempfile.TemporaryDirectory()
        self.path = os.path.join(self._temporary.name, "folder")
        os.symlink(os.path.abspath(folder), self.path, target_is_directory=True)
