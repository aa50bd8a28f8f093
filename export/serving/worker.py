"""The process that holds one version of a model: requests come and responses leave by a pipe.

    python -m export.serving.worker DESCRIPTOR FOLDER THREADS

is started by `versions`. Python TensorFlow is not imported here.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing.connection
import pathlib
import sys
import threading
from typing import Any

from export.serving import native

CONCURRENT_REQUESTS = 4


def serve(connection: multiprocessing.connection.Connection, folder: str, threads: int) -> None:
    """Loads the model and runs requests until None is received or the pipe is closed.

    The first message sent is (signatures, whether Python TensorFlow is in this process), or (code,
    message) where the model cannot be loaded. Then, for each (number, signature, inputs) received,
    (number, outputs) is sent, or (number, (code, message)).
    """
    try:
        model = native.SavedModel(pathlib.Path(folder), threads)
    except native.NativeError as error:
        connection.send((error.code, error.message))
        return
    connection.send((model.signatures, "tensorflow" in sys.modules))
    lock = threading.Lock()

    def run(number: int, signature: str, inputs: dict[str, Any]) -> None:
        result: Any
        try:
            result = model.run(signature, inputs)
        except native.NativeError as error:
            result = (error.code, error.message)
        except Exception as error:  # the request must be told, whatever it is
            result = (13, f"{type(error).__name__}: {error}")
        with lock:
            connection.send((number, result))

    with concurrent.futures.ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
        while True:
            try:
                request = connection.recv()
            except EOFError:
                break
            if request is None:
                break
            pool.submit(run, *request)


if __name__ == "__main__":
    serve(multiprocessing.connection.Connection(int(sys.argv[1])), sys.argv[2], int(sys.argv[3]))
