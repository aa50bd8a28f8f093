"""Answers one batch by the C API of TensorFlow's shared library, as TensorFlow Serving loads it.

No Python TensorFlow takes part: what only Python could run would show.

    python native_client.py LIBRARY FOLDER INPUT_TENSOR OUTPUT_TENSOR IMAGES.npy CLASS_IDS.npy
"""

import ctypes
import hashlib  # noqa: F401  (with ssl before the library, which brings the same symbols)
import ssl  # noqa: F401
import sys

import numpy as np

POINTER, TEXT, INT = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
FLOAT = 1  # TF_FLOAT


class Port(ctypes.Structure):
    """TF_Output: one output of an operation."""

    _fields_ = [("operation", POINTER), ("index", INT)]


class Library:
    """The functions of the C API, typed as they are called."""

    def __init__(self, path):
        self.library = ctypes.CDLL(path, mode=ctypes.RTLD_LOCAL)
        self.status = self.call("TF_NewStatus", POINTER)

    def call(self, name, result, *arguments):
        function = getattr(self.library, name)
        function.restype = result
        function.argtypes = [kind for kind, _ in arguments]
        return function(*(value for _, value in arguments))

    def check(self):
        status = (POINTER, self.status)
        if self.call("TF_GetCode", INT, status):
            sys.exit(self.call("TF_Message", TEXT, status).decode())


def answer(library, folder, feed, fetch, images):
    """Loads the SavedModel and gives the int32 tensor `fetch` for a float32 tensor `feed`."""
    graph = library.call("TF_NewGraph", POINTER)
    session = library.call(
        "TF_LoadSessionFromSavedModel",
        POINTER,
        (POINTER, library.call("TF_NewSessionOptions", POINTER)),
        (POINTER, None),
        (TEXT, folder.encode()),
        (ctypes.POINTER(TEXT), (TEXT * 1)(b"serve")),
        (INT, 1),
        (POINTER, graph),
        (POINTER, None),
        (POINTER, library.status),
    )
    library.check()

    def port(tensor):
        name, _, index = tensor.partition(":")
        operation = library.call(
            "TF_GraphOperationByName", POINTER, (POINTER, graph), (TEXT, name.encode())
        )
        return (Port * 1)(Port(operation, int(index)))

    given = library.call(
        "TF_AllocateTensor",
        POINTER,
        (INT, FLOAT),
        (ctypes.POINTER(ctypes.c_int64), (ctypes.c_int64 * images.ndim)(*images.shape)),
        (INT, images.ndim),
        (ctypes.c_size_t, images.nbytes),
    )
    data = library.call("TF_TensorData", POINTER, (POINTER, given))
    ctypes.memmove(data, images.ctypes.data, images.nbytes)
    answered = (POINTER * 1)()
    library.call(
        "TF_SessionRun",
        None,
        (POINTER, session),
        (POINTER, None),
        (ctypes.POINTER(Port), port(feed)),
        (ctypes.POINTER(POINTER), (POINTER * 1)(given)),
        (INT, 1),
        (ctypes.POINTER(Port), port(fetch)),
        (ctypes.POINTER(POINTER), answered),
        (INT, 1),
        (POINTER, None),
        (INT, 0),
        (POINTER, None),
        (POINTER, library.status),
    )
    library.check()
    tensor = (POINTER, answered[0])
    rank = library.call("TF_NumDims", INT, tensor)
    shape = [library.call("TF_Dim", ctypes.c_int64, tensor, (INT, axis)) for axis in range(rank)]
    class_ids = np.empty(shape, np.int32)
    data = library.call("TF_TensorData", POINTER, tensor)
    ctypes.memmove(class_ids.ctypes.data, data, class_ids.nbytes)
    return class_ids


if __name__ == "__main__":
    path, folder, feed, fetch, source, target = sys.argv[1:]
    assert "tensorflow" not in sys.modules
    images = np.ascontiguousarray(np.load(source), np.float32)
    np.save(target, answer(Library(path), folder, feed, fetch, images))
