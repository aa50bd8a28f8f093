"""Paths on other filesystems: gs://, hdfs://, ram:// and whatever else this TensorFlow reads.

`files.as_path` makes one of a text with a scheme. It has the methods of pathlib that the package
uses, by tf.io.gfile, and they raise Python's errors. (`etils.epath` is such a class too, but only
for gs://, s3:// and az://.)
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import functools
import os
import types
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import tensorflow as tf

from auto_deeplab_tf.errors import UserError

_gfile = tf.io.gfile


@functools.total_ordering
class RemotePath:
    """A path on a filesystem of TensorFlow's.

    Args:
        text: SCHEME://HOST/PATH.

    Raises:
        UserError: If TensorFlow has no such filesystem.
    """

    def __init__(self, text: str):
        scheme, _, rest = text.partition("://")
        if scheme not in _gfile.get_registered_schemes():
            known = ", ".join(f"{name}://" for name in _gfile.get_registered_schemes() if name)
            raise UserError(
                f"{text}: this TensorFlow reads no {scheme}:// (it reads {known}): give a local "
                "path, or install the package that adds this filesystem to TensorFlow"
            )
        host, _, inside = rest.partition("/")
        self._root = f"{scheme}://{host}"
        self._inside = PurePosixPath(f"/{inside.strip('/')}")

    def __str__(self) -> str:
        inside = str(self._inside)
        return self._root if inside == "/" and not self._root.endswith("/") else self._root + inside

    __fspath__ = __str__

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __lt__(self, other: RemotePath) -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def _at(self, inside: PurePosixPath) -> RemotePath:
        return RemotePath(self._root + str(inside))

    def __truediv__(self, name: str) -> RemotePath:
        return self._at(self._inside / name)

    @property
    def name(self) -> str:
        """The last part."""
        return self._inside.name

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return self._inside.stem

    @property
    def suffix(self) -> str:
        """The suffix, with its point."""
        return self._inside.suffix

    @property
    def parent(self) -> RemotePath:
        """The folder that holds it."""
        return self._at(self._inside.parent)

    def with_name(self, name: str) -> RemotePath:
        """Returns the path with another last part."""
        return self._at(self._inside.with_name(name))

    def with_suffix(self, suffix: str) -> RemotePath:
        """Returns the path with another suffix."""
        return self._at(self._inside.with_suffix(suffix))

    def resolve(self) -> RemotePath:
        """Returns the path as it is: there is no working directory."""
        return self

    def exists(self) -> bool:
        """Tells whether there is a file or folder."""
        with _python_errors(self):
            return bool(_gfile.exists(str(self)))

    def is_dir(self) -> bool:
        """Tells whether there is a folder."""
        with _python_errors(self):
            return bool(_gfile.isdir(str(self)))

    def is_file(self) -> bool:
        """Tells whether there is a file."""
        return self.exists() and not self.is_dir()

    def iterdir(self) -> Iterator[RemotePath]:
        """Yields what a folder holds."""
        with _python_errors(self):
            names = _gfile.listdir(str(self))
        # Object stores end the names of folders with a slash.
        return (self / name.strip("/") for name in sorted(names))

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Yields what a folder holds under names that match."""
        return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def stat(self) -> Any:
        """Returns the size of a file as `st_size`."""
        with _python_errors(self):
            return types.SimpleNamespace(st_size=_gfile.stat(str(self)).length)

    def mkdir(self, parents: bool = True, exist_ok: bool = False) -> None:
        """Makes a folder, and those above it."""
        if not exist_ok and self.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self))
        with _python_errors(self):
            _gfile.makedirs(str(self))

    @contextlib.contextmanager
    def open(self, mode: str = "rb") -> Iterator[Any]:
        """Opens a file in `with`; "rb" or "wb"."""
        if mode == "wb":
            self.unlink(missing_ok=True)  # ram:// would write behind what is there
        with _python_errors(self), _gfile.GFile(str(self), mode) as file:
            yield file

    def read_bytes(self) -> bytes:
        """Returns the content of a file."""
        with self.open("rb") as file:
            return file.read()

    def read_text(self, encoding: str = "utf-8") -> str:
        """Returns the content of a text file."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        """Writes a file, in place."""
        with self.open("wb") as file:
            file.write(content)

    def download(self, local: Path) -> None:
        """Copies the file into a file of this machine."""
        with _python_errors(self):
            _gfile.copy(str(self), str(local), overwrite=True)

    def upload(self, local: Path) -> None:
        """Writes the file, in place, as a copy of one of this machine."""
        self.unlink(missing_ok=True)  # as in `open`
        with _python_errors(self):
            _gfile.copy(str(local), str(self), overwrite=True)

    def replace(self, target: RemotePath) -> None:
        """Renames a file, in place of one that has that name."""
        with _python_errors(self):
            _gfile.rename(str(self), str(target), overwrite=True)

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes a file."""
        try:
            with _python_errors(self):
                _gfile.remove(str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmtree(self) -> None:
        """Removes a folder and all that it holds."""
        with _python_errors(self):
            _gfile.rmtree(str(self))


@contextlib.contextmanager
def _python_errors(path: RemotePath) -> Iterator[None]:
    """Raises TensorFlow's errors of files as Python's, with the path and the reason."""
    try:
        yield
    except tf.errors.NotFoundError as error:
        reason = os.strerror(errno.ENOENT)
        raise FileNotFoundError(errno.ENOENT, reason, str(path)) from error
    except tf.errors.OpError as error:
        reason = " ".join((error.message or type(error).__name__).split())
        raise OSError(errno.EIO, reason, str(path)) from error
