"""The versions of the models that the stand-in serves, one worker process each.

A newer version takes over once it is loaded and warm; an older one ends after its last request. So
no request is lost by a roll-over, nor by a roll-back (the newest folder is removed, or the
configuration names another).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import pathlib
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from auto_deeplab_tf.errors import MissingFileError, UserError
from export.serving import protos
from export.serving.native import NativeError, Signature

# Codes of gRPC.
DEADLINE_EXCEEDED, NOT_FOUND, INTERNAL, UNAVAILABLE = 4, 5, 13, 14
LOAD_SECONDS = 300.0
REQUEST_SECONDS = 600.0
WARMUP_FILE = "tf_serving_warmup_requests"
# States of ModelVersionStatus.
LOADING, AVAILABLE, UNLOADING, END = 20, 30, 40, 50


class Version:
    """One version in a process of its own.

    Args:
        number: Its number.
        folder: Its SavedModel.
        threads: Threads of one operation; 0: as many as cores.

    Raises:
        NativeError: If it cannot be loaded.
    """

    def __init__(self, number: int, folder: pathlib.Path, threads: int) -> None:
        self.number = number
        self.folder = folder
        self.in_flight = 0
        self._pending: dict[int, concurrent.futures.Future[Any]] = {}
        self._count = 0
        self._lock = threading.Lock()
        self.dead = False
        self._connection, child = multiprocessing.Pipe()
        command = [sys.executable, "-m", "export.serving.worker"]
        command += [str(child.fileno()), str(folder), str(threads)]
        # In a session of its own: Ctrl-C ends the front, which ends its workers.
        self.process = subprocess.Popen(
            command, pass_fds=[child.fileno()], start_new_session=True, stdin=subprocess.DEVNULL
        )
        child.close()
        try:
            if not self._connection.poll(LOAD_SECONDS):
                raise NativeError(UNAVAILABLE, f"not loaded within {LOAD_SECONDS:.0f} s")
            first, second = self._connection.recv()
            if isinstance(first, int):
                raise NativeError(first, second)
        except (NativeError, EOFError, OSError) as error:
            self._kill()
            if isinstance(error, NativeError):
                raise
            raise NativeError(UNAVAILABLE, f"{folder}: the worker ended while loading") from error
        self.signatures: Mapping[str, Signature] = first
        self.has_python_tensorflow: bool = second
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def predict(
        self, signature: str, inputs: Mapping[str, Any], seconds: float | None = None
    ) -> dict[str, np.ndarray]:
        """Runs a signature in the worker.

        Raises:
            NativeError: For what TensorFlow refuses, a deadline that has passed, and a worker that
                ended.
        """
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        with self._lock:
            if self.dead:
                raise NativeError(UNAVAILABLE, "the worker has ended; try again")
            self._count += 1
            number = self._count
            self._pending[number] = future
            try:
                self._connection.send((number, signature, dict(inputs)))
            except OSError as error:
                del self._pending[number]
                raise NativeError(UNAVAILABLE, "the worker has ended; try again") from error
        try:
            result = future.result(
                min(REQUEST_SECONDS if seconds is None else seconds, REQUEST_SECONDS)
            )
        except concurrent.futures.TimeoutError as error:
            with self._lock:
                self._pending.pop(number, None)
            raise NativeError(DEADLINE_EXCEEDED, "the deadline has passed") from error
        if isinstance(result, tuple):
            raise NativeError(*result)
        outputs: dict[str, np.ndarray] = result
        return outputs

    def warm_up(self) -> int:
        """Replays the warm-up requests, if there are any; returns their number."""
        path = self.folder / "assets.extra" / WARMUP_FILE
        if not path.is_file():
            return 0
        logs = protos.load("tensorflow_serving.apis.prediction_log_pb2")
        count = 0
        for record in _records(path.read_bytes()):
            request = logs.PredictionLog.FromString(record).predict_log.request
            inputs = {key: protos.to_array(value) for key, value in request.inputs.items()}
            self.predict(request.model_spec.signature_name, inputs)
            count += 1
        return count

    def close(self) -> None:
        """Ends the worker."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._kill(after_seconds=10.0)

    def _kill(self, after_seconds: float = 0.0) -> None:
        try:
            self.process.wait(after_seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _read(self) -> None:
        while True:
            try:
                number, result = self._connection.recv()
            except (EOFError, OSError):
                break
            with self._lock:
                future = self._pending.pop(number, None)
            if future is not None:
                future.set_result(result)
        with self._lock:
            self.dead = True
            pending = list(self._pending.values())
            self._pending.clear()
        for future in pending:
            future.set_result((UNAVAILABLE, "the worker ended during the request; try again"))


class Models:
    """The models of a configuration, and which of their versions are served.

    Args:
        server_config: ModelServerConfig, or a file that holds one as text.
        threads: Threads of one operation in a worker; 0: as many as cores.
        warm_up: Whether warm-up requests are replayed before a version is used.
    """

    def __init__(self, server_config: Any, threads: int = 0, warm_up: bool = True) -> None:
        self._source = server_config
        self._threads = threads
        self._warm_up = warm_up
        self._lock = threading.Condition()
        self._configs: dict[str, Any] = {}
        self._served: dict[str, dict[int, Version]] = {}
        self._states: dict[str, dict[int, tuple[int, str]]] = {}
        self._failed: dict[pathlib.Path, float] = {}

    def poll(self) -> None:
        """Loads what the folders and the configuration ask for, then unloads the others.

        Raises:
            UserError: For a configuration file that cannot be read.
        """
        config = read_config(self._source) if isinstance(self._source, str) else self._source
        self._configs = {each.name: each for each in config.model_config_list.config}
        for name, each in self._configs.items():
            self._poll(name, each)
        for name in [name for name in self._served if name not in self._configs]:
            self._unload(name, list(self._served[name]))

    @contextlib.contextmanager
    def use(
        self, name: str, version: int | None = None, label: str | None = None
    ) -> Iterator[Version]:
        """Gives a version that is not unloaded before the block ends.

        Raises:
            NativeError: If it is not served.
        """
        with self._lock:
            served = self._served.get(name, {})
            if label:
                labels = self._configs[name].version_labels if name in self._configs else {}
                version = labels[label] if label in labels else -1
            number = max(served, default=None) if version is None else version
            if number is None or number not in served:
                wanted = "Latest" if version is None else f"Specific version {label or version}"
                raise NativeError(NOT_FOUND, f"Servable not found for request: {wanted} of {name}")
            found = served[number]
            found.in_flight += 1
        try:
            yield found
        finally:
            with self._lock:
                found.in_flight -= 1
                self._lock.notify_all()

    def states(self, name: str, version: int | None = None) -> dict[int, tuple[int, str]]:
        """Returns the state of each version of a model, and the error of one that failed.

        Raises:
            NativeError: If there is no such model, or no such version.
        """
        with self._lock:
            states = dict(self._states.get(name, {}))
        if version is not None:
            states = {number: state for number, state in states.items() if number == version}
        if not states:
            raise NativeError(NOT_FOUND, f"Could not find any versions of model {name}")
        return states

    def close(self) -> None:
        """Ends every worker at once."""
        with self._lock:
            versions = [one for served in self._served.values() for one in served.values()]
            self._served.clear()
        for version in versions:
            version.close()

    def _poll(self, name: str, config: Any) -> None:
        base = pathlib.Path(config.base_path)
        there = {}
        if base.is_dir():
            for entry in base.iterdir():
                if entry.name.isdecimal() and (entry / "saved_model.pb").is_file():
                    there[int(entry.name)] = entry
        wanted = _wanted(config.model_version_policy, there)
        served = self._served.setdefault(name, {})
        for number in [number for number, each in served.items() if each.dead]:
            self._unload(name, [number])
        for number in sorted(wanted - served.keys()):
            self._load(name, number, there[number])
        # Nothing to serve is no reason to stop; a version that failed keeps the others.
        if wanted and wanted <= served.keys():
            self._unload(name, list(served.keys() - wanted))

    def _load(self, name: str, number: int, folder: pathlib.Path) -> None:
        stamp = (folder / "saved_model.pb").stat().st_mtime
        if self._failed.get(folder) == stamp:
            return
        self._set_state(name, number, LOADING)
        try:
            version = Version(number, folder, self._threads)
            try:
                if self._warm_up:
                    version.warm_up()
            except BaseException:
                version.close()
                raise
        except (NativeError, UserError) as error:
            message = " ".join(str(getattr(error, "message", error)).split())
            print(f"{folder} cannot be served: {message}", file=sys.stderr, flush=True)
            self._failed[folder] = stamp
            self._set_state(name, number, END, message)
            return
        with self._lock:
            self._served[name][number] = version
        self._set_state(name, number, AVAILABLE)

    def _unload(self, name: str, numbers: list[int]) -> None:
        for number in numbers:
            with self._lock:
                version = self._served[name].pop(number)
                self._states[name][number] = (UNLOADING, "")
                while version.in_flight:
                    self._lock.wait()
            version.close()
            self._set_state(name, number, END)

    def _set_state(self, name: str, number: int, state: int, message: str = "") -> None:
        with self._lock:
            self._states.setdefault(name, {})[number] = (state, message)


def read_config(path: str) -> Any:
    """Reads a ModelServerConfig from a text file.

    Raises:
        MissingFileError: If there is none.
        UserError: If it does not parse.
    """
    from google.protobuf import text_format

    module = protos.load("tensorflow_serving.config.model_server_config_pb2")
    try:
        text = pathlib.Path(path).read_text("utf-8")
    except FileNotFoundError as error:
        raise MissingFileError(f"model_config_file={path}: no such file.") from error
    try:
        return text_format.Parse(text, module.ModelServerConfig())
    except text_format.ParseError as error:
        raise UserError(f"model_config_file={path} is no ModelServerConfig: {error}") from error


def make_config(name: str, base_path: str) -> Any:
    """Returns the ModelServerConfig of one model, whose highest version is served."""
    module = protos.load("tensorflow_serving.config.model_server_config_pb2")
    config = module.ModelServerConfig()
    config.model_config_list.config.add(name=name, base_path=base_path, model_platform="tensorflow")
    return config


def _wanted(policy: Any, there: Mapping[int, pathlib.Path]) -> set[int]:
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        return set(there)
    if kind == "specific":
        return set(policy.specific.versions) & there.keys()
    return set(sorted(there)[-max(policy.latest.num_versions, 1) :])


def _records(content: bytes) -> Iterator[bytes]:
    """Yields the records of a TFRecord file: size, its checksum, data, its checksum."""
    position = 0
    while position < len(content):
        (size,) = struct.unpack_from("<Q", content, position)
        yield content[position + 12 : position + 12 + size]
        position += 16 + size
