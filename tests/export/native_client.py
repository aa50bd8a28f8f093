"""Runs signatures through `export.serving.native`, in a process without Python TensorFlow.

    python native_client.py FOLDER REQUESTS RESPONSES

REQUESTS holds a pickled list of (signature, inputs); RESPONSES gets the outputs or the error's
(code, message) of each. Prints the seconds of loading and of every request.
"""

import pathlib
import pickle
import sys
import time

from export.serving import native

if __name__ == "__main__":
    folder, requests, responses = map(pathlib.Path, sys.argv[1:])
    start = time.perf_counter()
    model = native.SavedModel(folder)
    print(f"load: {time.perf_counter() - start:.3f} s")
    found = []
    for name, inputs in pickle.loads(requests.read_bytes()):
        start = time.perf_counter()
        try:
            found.append(model.run(name, inputs))
        except native.NativeError as error:
            found.append((error.code, error.message))
        print(f"{name}: {time.perf_counter() - start:.3f} s")
    model.close()
    assert not [name for name in sys.modules if name.partition(".")[0] in ("tensorflow", "keras")]
    responses.write_bytes(pickle.dumps(found))
