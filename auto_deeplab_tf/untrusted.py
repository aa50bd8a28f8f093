"""Files from elsewhere: what is checked before their content is used.

One function for each kind of file that is handed over. None of them runs anything that a file
names, and none allocates what a file only declares: a size is compared with the bytes that are
there first. SECURITY.md says what is promised. No framework is imported.
"""

from __future__ import annotations

import collections
import contextlib
import io
import json
import math
import os
import re
import stat
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy

from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.files import as_path, local_input

# Far above what the largest of these files has: a few 10 kB.
MAX_JSON_BYTES = 2**22
# A Keras configuration of layers in layers reaches about 20.
_MAX_JSON_DEPTH = 64
# Keras writes archives without compression, and weights hardly shrink when they are packed again;
# the momenta of an optimizer that has not begun do.
_MAX_EXPANSION = 16
_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"


def shown(value: Any) -> str:
    """Returns a refused value on one line, shortened."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


@contextlib.contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a regular file: a pipe would be waited for, a device read without end."""
    source = as_path(path)
    if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):
        raise UserError("not a regular file")
    with local_input(path) as local, open(local, "rb") as file:
        yield file


# ---- JSON


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads a JSON file as `parse_json` does.

    Raises:
        UserError: As `parse_json`, without the file's name; or for more than `MAX_JSON_BYTES`.
    """
    with _open(path) as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise UserError(f"not a JSON file of this kind: it has more than {MAX_JSON_BYTES} bytes.")
    return parse_json(content)


def parse_json(text: str | bytes) -> Any:
    """Parses JSON whose every value can be written again, as UTF-8.

    Raises:
        UserError: Where it is not JSON; for a key that comes twice, a number that is not finite,
            half a surrogate pair, or lists and objects nested more than 64 deep.
    """
    try:
        content = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
        _check_values(content, 0)
    except RecursionError:
        raise UserError("nested too deeply.") from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"not a JSON file: {error}.") from None
    return content


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        counts = collections.Counter(key for key, _ in pairs)
        twice = counts.most_common(1)[0][0]
        raise UserError(f"key {shown(twice)} comes twice: which one holds is not defined.")
    return content


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{shown(text)} is beyond the range of numbers")
    return number


def _check_values(value: Any, depth: int) -> None:
    if depth > _MAX_JSON_DEPTH:
        raise UserError("nested too deeply.")
    if isinstance(value, str):
        value.encode()  # a lone surrogate raises a ValueError here, else where it is written
    elif isinstance(value, (list, dict)):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_values(item, depth + 1)


# ---- zip archives


def _members(archive: zipfile.ZipFile, max_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """The members of an archive by name.

    Raises:
        ValueError: Where two have one name, or they are encrypted, compressed by other means than
            deflate, or larger together than `max_bytes`.
    """
    members = {info.filename: info for info in archive.infolist()}
    if len(members) < len(archive.infolist()):
        raise ValueError("two members of one name")
    for name, info in members.items():
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{shown(name)} is compressed in an unknown way")
        if info.flag_bits & 1:
            raise ValueError(f"{shown(name)} is encrypted")
    size = sum(info.file_size for info in members.values())
    if size > max_bytes:
        raise ValueError(f"its content would take {size} bytes, more than the {max_bytes} allowed")
    return members


def read_npz(path: str | os.PathLike[str], max_bytes: int | None = None) -> dict[str, np.ndarray]:
    """Reads all arrays of an .npz file. Python objects in it are refused, not unpickled.

    Args:
        path: The file.
        max_bytes: Largest size of all members together, unpacked; default: that of the file, which
            holds for what `numpy.savez` writes.

    Returns:
        The arrays by name.

    Raises:
        UserError: For anything else than whole arrays of numbers or texts.
    """
    with _open(path) as file:
        try:
            limit = os.fstat(file.fileno()).st_size if max_bytes is None else max_bytes
            with zipfile.ZipFile(file) as archive:
                members = _members(archive, limit)
                return {
                    name.removesuffix(".npy"): _array(archive.read(info))
                    for name, info in members.items()
                }
        except Exception:  # zipfile and NumPy raise a dozen kinds for damaged files
            raise UserError(f"{path} is not a complete .npz file of numbers.") from None


def _array(content: bytes) -> np.ndarray:
    """Decodes a .npy file whose header declares as many bytes as follow it."""
    stream = io.BytesIO(content)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a header that is written in another way
        shape, _, dtype = readers[npy.read_magic(stream)](stream)
    if min(shape, default=0) < 0 or dtype.kind not in "biufSU":
        raise ValueError("no array of numbers")
    if math.prod(shape) * dtype.itemsize != len(content) - stream.tell():
        raise ValueError("the header declares another size")
    stream.seek(0)
    return npy.read_array(stream, allow_pickle=False)


# ---- .keras files


class KerasFile(NamedTuple):
    """What a .keras file says of itself.

    Attributes:
        class_name: The class of the model, registered name first: `auto_deeplab_tf>Segmenter`.
        num_values: Number of values in all its arrays together.
    """

    class_name: str
    num_values: int


def check_keras_file(path: str | os.PathLike[str]) -> KerasFile:
    """Checks a .keras file before Keras opens it.

    It must be a whole zip archive of `config.json`, `metadata.json` and `model.weights.h5`, each
    once; the configuration must name nothing but classes that compute (`_check_objects`), and the
    arrays must be in the file at the sizes that they declare.

    Raises:
        UserError: Saying what is wrong, without the file's name.
    """
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                members = _members(archive, _MAX_EXPANSION * size)
                _check_names(members)
                contents = {name: archive.read(name) for name in members}
        except Exception as error:  # zipfile and zlib raise a dozen kinds for damaged files
            damaged = re.match(r"Bad CRC-32 for file '(.*)'", str(error))
            if damaged:
                text = f"is damaged (in {damaged[1]}); copy or save it again"
                raise UserError(text) from None
            raise UserError(f"is no .keras file ({' '.join(str(error).split())})") from None
    try:
        config = parse_json(contents[_CONFIG])
        if not isinstance(config, dict):
            raise UserError("its config.json holds no object")
        _check_objects(config)
    except UserError as error:
        raise UserError(f"is no .keras file ({_CONFIG}: {error})") from None
    class_name = config.get("registered_name") or config.get("class_name")
    return KerasFile(str(class_name), _num_values(contents[_WEIGHTS]))


def _check_names(members: Mapping[str, zipfile.ZipInfo]) -> None:
    for name in (_CONFIG, _WEIGHTS):
        if name not in members:
            raise ValueError(f"it has no {name}")
    for name in members:
        if name not in (_CONFIG, _WEIGHTS, "metadata.json"):
            raise ValueError(f"it has another member, {shown(name)}")
    if members[_CONFIG].file_size > MAX_JSON_BYTES:
        raise ValueError(f"its {_CONFIG} has more than {MAX_JSON_BYTES} bytes")


# Where Keras keeps what computes; what reads files or loads programs stands elsewhere, but for:
_KERAS_MODULES = re.compile(
    r"builtins|keras|keras\.(src\.)?(activations|constraints|dtype_policies|initializers|layers"
    r"|losses|metrics|models|ops|optimizers|quantizers|regularizers)(\.\w+)*"
)
_CODE_OR_FILES = re.compile(
    r"__lambda__|__typespec__|Lambda|TFSMLayer|TorchModuleWrapper|JaxLayer|FlaxLayer"
    r"|StringLookup|IntegerLookup|IndexLookup|TextVectorization|FeatureSpace"
)
_OTHER_LIBRARIES = re.compile(r"(keras_hub|keras_nlp|keras_cv|tf_keras|official)\b.*", re.DOTALL)
_NUMBERS = re.compile(r"(bool|u?int\d+|b?float\d+)")


def _check_objects(config: Any) -> None:
    """Refuses a Keras configuration that names what runs code or reads files.

    Keras' `safe_mode` refuses lambdas. This refuses them too, and of Keras everything outside of
    layers, losses and the like, layers that read files, and the classes of other libraries. What is
    left is what Keras finds by name: its own classes, and those that this program registered.
    """
    if isinstance(config, list):
        for item in config:
            _check_objects(item)
    if not isinstance(config, dict):
        return
    for value in config.values():
        _check_objects(value)
    if "class_name" not in config:
        return
    class_name, module, settings = (config.get(key) for key in ("class_name", "module", "config"))
    # The settings of a function are its name.
    for name in (class_name, config.get("registered_name"), settings, module):
        if isinstance(name, str) and (
            _CODE_OR_FILES.fullmatch(name) or _OTHER_LIBRARIES.match(name)
        ):
            raise UserError(f"it names {shown(name)}, which may run code or read files")
    if isinstance(module, str) and module.partition(".")[0] in ("keras", "builtins"):
        if not _KERAS_MODULES.fullmatch(module):
            raise UserError(f"it names {shown(module)}, which holds more than layers")
    if class_name in ("__numpy__", "__tensor__"):
        dtype = settings.get("dtype") if isinstance(settings, dict) else None
        if not isinstance(dtype, str) or not _NUMBERS.fullmatch(dtype):
            raise UserError(f"it holds an array of {shown(dtype)}, not of numbers")


def _num_values(content: bytes) -> int:
    """The number of values in an HDF5 file, all of whose arrays are in it.

    Raises:
        UserError: For links out of the file or along it, objects, or arrays that declare more bytes
            than the file has: Keras writes none of these.
    """
    import h5py

    links: list[Any] = []
    arrays: list[Any] = []
    try:
        with h5py.File(io.BytesIO(content)) as file:
            file.visititems_links(lambda name, link: links.append(link))
            file.visititems(
                lambda name, item: arrays.append(item) if isinstance(item, h5py.Dataset) else None
            )
            plain = all(
                not (array.dtype.hasobject or array.external or array.is_virtual)
                for array in arrays
            ) and all(isinstance(link, h5py.HardLink) for link in links)
            num_bytes = sum(int(array.nbytes) for array in arrays)
            num_values = sum(int(array.size) for array in arrays)
    except Exception as error:  # h5py raises what its C library says as any kind
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot be read: its {_WEIGHTS} is no HDF5 file ({reason})") from None
    if not plain:
        raise UserError(f"cannot be read: its {_WEIGHTS} holds links or objects, not only arrays")
    if num_bytes > len(content):
        raise UserError(
            f"cannot be read: the arrays of its {_WEIGHTS} would take {num_bytes} bytes, and it "
            f"has {len(content)}"
        )
    return num_values
