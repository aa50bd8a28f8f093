"""Runs a SavedModel by the C API of TensorFlow's shared library, as TensorFlow Serving loads it.

    python -m export.serving.native --model=served/1 --input_size=513x513 --requests=20

prints the seconds that loading and each request of serving_default take. Python TensorFlow is never
imported: a graph that only Python could run would fail here.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib  # noqa: F401  (with ssl before the library, which brings the same symbols)
import importlib.util
import pathlib
import ssl  # noqa: F401
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from auto_deeplab_tf import cli, config
from auto_deeplab_tf.errors import MissingExtraError, MissingFileError, UserError

cli.define(config.NativeConfig)

LIBRARY = "libtensorflow_cc.so.2"
INVALID_ARGUMENT = 3  # the numbers of TF_Code are those of gRPC
FAILED_PRECONDITION = 9
STRING = 7
# Numbers of DataType in types.proto; strings are arrays of `bytes` objects.
DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.float32),
    2: np.dtype(np.float64),
    3: np.dtype(np.int32),
    4: np.dtype(np.uint8),
    5: np.dtype(np.int16),
    6: np.dtype(np.int8),
    STRING: np.dtype(object),
    9: np.dtype(np.int64),
    10: np.dtype(np.bool_),
    17: np.dtype(np.uint16),
    19: np.dtype(np.float16),
    22: np.dtype(np.uint32),
    23: np.dtype(np.uint64),
}
_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}
_POINTER, _TEXT, _INT = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
_SIZE, _INT64 = ctypes.c_size_t, ctypes.c_int64
_STRING_BYTES = 24  # of a TF_TString
# Result and arguments of each function that is called.
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "TF_NewStatus": (_POINTER, []),
    "TF_DeleteStatus": (None, [_POINTER]),
    "TF_GetCode": (_INT, [_POINTER]),
    "TF_Message": (_TEXT, [_POINTER]),
    "TF_NewGraph": (_POINTER, []),
    "TF_DeleteGraph": (None, [_POINTER]),
    "TF_NewBuffer": (_POINTER, []),
    "TF_DeleteBuffer": (None, [_POINTER]),
    "TF_NewSessionOptions": (_POINTER, []),
    "TF_DeleteSessionOptions": (None, [_POINTER]),
    "TF_SetConfig": (None, [_POINTER, _TEXT, _SIZE, _POINTER]),
    "TF_LoadSessionFromSavedModel": (
        _POINTER,
        [_POINTER, _POINTER, _TEXT, _POINTER, _INT, _POINTER, _POINTER, _POINTER],
    ),
    "TF_CloseSession": (None, [_POINTER, _POINTER]),
    "TF_DeleteSession": (None, [_POINTER, _POINTER]),
    "TF_SessionRun": (
        None,
        [_POINTER, _POINTER]
        + [_POINTER, _POINTER, _INT]
        + [_POINTER, _POINTER, _INT]
        + [_POINTER, _INT, _POINTER, _POINTER],
    ),
    "TF_GraphOperationByName": (_POINTER, [_POINTER, _TEXT]),
    "TF_AllocateTensor": (_POINTER, [_INT, _POINTER, _INT, _SIZE]),
    "TF_DeleteTensor": (None, [_POINTER]),
    "TF_TensorData": (_POINTER, [_POINTER]),
    "TF_TensorType": (_INT, [_POINTER]),
    "TF_NumDims": (_INT, [_POINTER]),
    "TF_Dim": (_INT64, [_POINTER, _INT]),
    "TF_StringInit": (None, [_POINTER]),
    "TF_StringCopy": (None, [_POINTER, _TEXT, _SIZE]),
    "TF_StringGetDataPointer": (_POINTER, [_POINTER]),
    "TF_StringGetSize": (_SIZE, [_POINTER]),
    "TF_StringDealloc": (None, [_POINTER]),
}


class NativeError(Exception):
    """An error of TensorFlow.

    Args:
        code: TF_Code, the same number as gRPC's status code.
        message: TensorFlow's message.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """A tensor of a signature.

    Attributes:
        name: Its name in the graph, `OPERATION:INDEX`.
        dtype: Its NumPy dtype; `object` for strings.
        shape: -1 where a side is free; None if the rank is.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class Signature:
    """A signature: its inputs and outputs by key, and the proto SignatureDef as bytes."""

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    proto: bytes


class _Port(ctypes.Structure):  # TF_Output: one output of an operation
    _fields_ = [("operation", _POINTER), ("index", _INT)]


class _Buffer(ctypes.Structure):  # TF_Buffer
    _fields_ = [("data", _POINTER), ("length", _SIZE), ("deallocator", _POINTER)]


class SavedModel:
    """A loaded SavedModel; `run` may be called from several threads at once.

    Args:
        folder: The folder with saved_model.pb.
        threads: Threads of one operation and operations at the same time; 0: as many as cores.

    Raises:
        MissingFileError: If there is no SavedModel.
        MissingExtraError: If TensorFlow, whose library this needs, is not installed.
        NativeError: If TensorFlow cannot load it.
    """

    def __init__(self, folder: pathlib.Path, threads: int = 0) -> None:
        if not (folder / "saved_model.pb").is_file():
            raise MissingFileError(f"model={folder} is no SavedModel: it has no saved_model.pb.")
        self._library = _load_library()
        library = self._library
        self._graph = library.TF_NewGraph()
        options = library.TF_NewSessionOptions()
        meta_graph = library.TF_NewBuffer()
        status = library.TF_NewStatus()
        try:
            # ConfigProto: intra_op_parallelism_threads is field 2, inter_op_... field 5.
            settings = b"\x10" + _varint(threads) + b"\x28" + _varint(threads)
            library.TF_SetConfig(options, settings, len(settings), status)
            self._check(status)
            tags = (_TEXT * 1)(b"serve")
            self._session = library.TF_LoadSessionFromSavedModel(
                options, None, str(folder).encode(), tags, 1, self._graph, meta_graph, status
            )
            self._check(status)
            buffer = ctypes.cast(meta_graph, ctypes.POINTER(_Buffer)).contents
            self.signatures = _signatures(ctypes.string_at(buffer.data, buffer.length))
        finally:
            library.TF_DeleteStatus(status)
            library.TF_DeleteBuffer(meta_graph)
            library.TF_DeleteSessionOptions(options)

    def run(self, name: str, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Runs a signature.

        Args:
            name: Name of the signature.
            inputs: One array per input, of its dtype; strings as an array of `bytes`.

        Returns:
            The outputs by key.

        Raises:
            NativeError: For an unknown signature, other inputs than the signature's, and whatever
                TensorFlow refuses.
        """
        signature = self.signatures.get(name)
        if signature is None:
            known = ", ".join(sorted(self.signatures))
            raise NativeError(
                FAILED_PRECONDITION, f'Serving signature key "{name}" not found; there are {known}.'
            )
        if inputs.keys() != signature.inputs.keys():
            raise NativeError(
                INVALID_ARGUMENT,
                f"inputs must be {sorted(signature.inputs)}, but are {sorted(inputs)}.",
            )
        library = self._library
        keys = list(signature.inputs)
        feeds: list[int] = []
        fetched = (_POINTER * len(signature.outputs))()
        status = library.TF_NewStatus()
        try:
            for key in keys:
                feeds.append(self._to_tensor(key, signature.inputs[key], inputs[key]))
            library.TF_SessionRun(
                self._session,
                None,
                self._ports([signature.inputs[key] for key in keys]),
                (_POINTER * len(feeds))(*feeds),
                len(feeds),
                self._ports(list(signature.outputs.values())),
                fetched,
                len(fetched),
                None,
                0,
                None,
                status,
            )
            self._check(status)
            return {
                key: self._to_array(tensor)
                for key, tensor in zip(signature.outputs, fetched, strict=True)
            }
        finally:
            for tensor in filter(None, fetched):
                library.TF_DeleteTensor(tensor)
            for tensor in feeds:
                self._delete_input(tensor)
            library.TF_DeleteStatus(status)

    def close(self) -> None:
        """Frees the memory; no `run` may be under way or follow."""
        status = self._library.TF_NewStatus()
        self._library.TF_CloseSession(self._session, status)
        self._library.TF_DeleteSession(self._session, status)
        self._library.TF_DeleteGraph(self._graph)
        self._library.TF_DeleteStatus(status)

    def _check(self, status: int) -> None:
        code = self._library.TF_GetCode(status)
        if code:
            raise NativeError(code, self._library.TF_Message(status).decode("utf-8", "replace"))

    def _ports(self, tensors: Sequence[TensorInfo]) -> Any:
        ports = (_Port * len(tensors))()
        for port, tensor in zip(ports, tensors, strict=True):
            name, _, index = tensor.name.partition(":")
            port.operation = self._library.TF_GraphOperationByName(self._graph, name.encode())
            port.index = int(index or 0)
        return ports

    def _to_tensor(self, key: str, info: TensorInfo, value: Any) -> int:
        array = np.asarray(value)
        if array.dtype.kind in "SU":
            array = array.astype(object)
        if array.dtype != info.dtype:
            raise NativeError(
                INVALID_ARGUMENT,
                f"{key} must be {_name(info.dtype)}, but is {_name(array.dtype)}.",
            )
        if info.shape is not None and (
            len(info.shape) != array.ndim
            or any(
                side not in (-1, found) for side, found in zip(info.shape, array.shape, strict=True)
            )
        ):
            raise NativeError(
                INVALID_ARGUMENT,
                f"{key} must have shape {list(info.shape)} (-1: any), but has {list(array.shape)}.",
            )
        library = self._library
        shape = (_INT64 * array.ndim)(*array.shape)
        if info.dtype.kind != "O":
            array = np.ascontiguousarray(array)
            tensor: int = library.TF_AllocateTensor(
                _NUMBERS[info.dtype], shape, array.ndim, array.nbytes
            )
            ctypes.memmove(library.TF_TensorData(tensor), array.ctypes.data, array.nbytes)
            return tensor
        strings = [text.encode() if isinstance(text, str) else bytes(text) for text in array.flat]
        tensor = library.TF_AllocateTensor(STRING, shape, array.ndim, len(strings) * _STRING_BYTES)
        place = library.TF_TensorData(tensor)
        for index, text in enumerate(strings):
            library.TF_StringInit(place + index * _STRING_BYTES)
            library.TF_StringCopy(place + index * _STRING_BYTES, text, len(text))
        return tensor

    def _to_array(self, tensor: int) -> np.ndarray:
        library = self._library
        rank = library.TF_NumDims(tensor)
        shape = [library.TF_Dim(tensor, axis) for axis in range(rank)]
        dtype = DTYPES[library.TF_TensorType(tensor)]
        array: np.ndarray = np.empty(shape, dtype)
        place = library.TF_TensorData(tensor)
        if dtype.kind != "O":
            ctypes.memmove(array.ctypes.data, place, array.nbytes)
            return array
        for index in range(array.size):
            text = place + index * _STRING_BYTES
            size = library.TF_StringGetSize(text)
            array.flat[index] = ctypes.string_at(library.TF_StringGetDataPointer(text), size)
        return array

    def _delete_input(self, tensor: int) -> None:
        library = self._library
        # A tensor of ours does not own its strings; one of TensorFlow does, or shares a constant's.
        if library.TF_TensorType(tensor) == STRING:
            sides = [library.TF_Dim(tensor, axis) for axis in range(library.TF_NumDims(tensor))]
            place = library.TF_TensorData(tensor)
            for index in range(int(np.prod(sides, dtype=np.int64))):
                library.TF_StringDealloc(place + index * _STRING_BYTES)
        library.TF_DeleteTensor(tensor)


def library_path() -> pathlib.Path | None:
    """Returns the path of the installed TensorFlow's library; None where it has none."""
    spec = importlib.util.find_spec("tensorflow")  # found, not imported
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := pathlib.Path(folder) / LIBRARY).is_file():
            return path
    return None


def _load_library() -> Any:
    path = library_path()
    if path is None:
        raise MissingExtraError(
            f"the TensorFlow that is installed has no {LIBRARY}: install TensorFlow for Linux."
        )
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL)
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _name(dtype: np.dtype[Any]) -> str:
    return "string" if dtype.kind == "O" else dtype.name


# ---- the few fields of MetaGraphDef that are needed, in protobuf's wire format


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yields the number and the value of each field: an int, or the bytes of a length."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(message):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        size = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        yield key >> 3, message[position : position + size]
        position += size


def _entries(message: bytes, number: int) -> dict[str, bytes]:
    """Returns a map field with string keys: each entry is a message of key (1) and value (2)."""
    found = {}
    for field, value in _fields(message):
        if field == number:
            entry = dict(_fields(value))
            found[entry.get(1, b"").decode()] = entry.get(2, b"")
    return found


def _signatures(meta_graph: bytes) -> dict[str, Signature]:
    found = {}
    for name, proto in _entries(meta_graph, 5).items():  # MetaGraphDef.signature_def
        if name.startswith("__"):  # of the loader itself
            continue
        inputs, outputs = (
            {key: _tensor_info(info) for key, info in _entries(proto, number).items()}
            for number in (1, 2)
        )
        found[name] = Signature(inputs, outputs, proto)
    return found


def _tensor_info(proto: bytes) -> TensorInfo:
    fields = dict(_fields(proto))  # TensorInfo: name 1, dtype 2, tensor_shape 3
    sides, unknown = [], False
    for number, value in _fields(fields.get(3, b"")):  # TensorShapeProto: dim 2, unknown_rank 3
        if number == 2:
            size = dict(_fields(value)).get(1, 0)
            sides.append(size - 2**64 if size >= 2**63 else size)
        elif number == 3:
            unknown = bool(value)
    shape = None if unknown else tuple(sides)
    return TensorInfo(fields.get(1, b"").decode(), DTYPES[fields[2]], shape)


# ---- the command


def main() -> None:
    """Measures as the flags say and prints the latencies."""
    options = cli.read(config.NativeConfig)
    start = time.perf_counter()
    try:
        model = SavedModel(pathlib.Path(options.model), options.intra_op_threads)
    except NativeError as error:
        raise UserError(f"model={options.model} cannot be loaded: {error.message}") from error
    load_seconds = time.perf_counter() - start
    shape = model.signatures["serving_default"].inputs["images"].shape
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (1, *options.input_size, (shape or (3,))[-1])).astype(np.float32)
    seconds = []
    for _ in range(options.requests + 1):
        start = time.perf_counter()
        try:
            model.run("serving_default", {"images": images})
        except NativeError as error:
            raise UserError(
                f"input_size={options.input_size}: the model refuses the image: {error.message}"
            ) from error
        seconds.append(time.perf_counter() - start)
    model.close()
    result = {
        "model": options.model,
        "input_size": list(options.input_size),
        "requests": options.requests,
        "load_seconds": load_seconds,
        "first_request_seconds": seconds[0],
        "p50_seconds": float(np.median(seconds[1:])),
        "min_seconds": min(seconds[1:]),
    }
    if options.json:
        cli.print_json(result)
        return
    print(
        f"loaded in {load_seconds:.2f} s; first request {1000 * seconds[0]:.1f} ms, then "
        f"{1000 * result['p50_seconds']:.1f} ms (median of {options.requests})"
    )


if __name__ == "__main__":
    cli.run(main)
