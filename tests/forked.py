"""Programs in processes of their own that do not pay for the import of TensorFlow.

    python tests/forked.py       reads requests as JSON lines, writes the exit status of each

One process imports TensorFlow, 5 s of a core, and is forked for every program. A fork has the
arguments, environment, folder and output files of its own, as `python -m MODULE` has.
"""

import atexit
import functools
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path


def run(module, *arguments, trap=None):
    """Runs `python -m MODULE`, `python FILE` or `python -c CODE` to its end.

    Args:
        module: The full name of a module; a file, which is what has a `/`; or "-c".
        *arguments: Its flags; or the code.
        trap: Function of `kills` and its arguments, called first; None: none.

    Returns:
        A `subprocess.CompletedProcess` with `stdout` and `stderr` as text.
    """
    server, module = _server(), str(module)
    # With TensorFlow's start-up lines as a user has them, not as `conftest` sets them.
    env = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    with tempfile.TemporaryDirectory() as folder:
        request = {
            "module": module,
            "arguments": [*map(str, arguments)],
            "trap": trap,
            "outputs": [f"{folder}/stdout", f"{folder}/stderr"],
            "env": env,
            "cwd": os.getcwd(),
        }
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        # Where a process is killed, its last line may end within a character.
        texts = [Path(path).read_text(errors="replace") for path in request["outputs"]]
    return subprocess.CompletedProcess([module, *request["arguments"]], code, *texts)


@functools.cache
def _server():
    """Starts the process that is forked, one for all tests of this one."""
    process = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"},
    )
    atexit.register(process.stdin.close)
    return process


def _program(module, arguments, trap, outputs, env, cwd):
    """What a fork does."""
    for number, path in enumerate((os.devnull, *outputs)):
        with open(path, "w" if number else "r") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    # As `-m` puts it there, in place of the folder of this file, which tests' programs import from.
    sys.path.append(sys.path[0])
    sys.path[0] = cwd
    sys.argv = [module, *arguments]
    if trap:
        name, *values = trap
        getattr(importlib.import_module("kills"), name)(*values)
    if module == "-c":
        exec(arguments[0], {"__name__": "__main__"})
    elif "/" in module:
        runpy.run_path(module, run_name="__main__")
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def _serve():
    from auto_deeplab_tf import cli  # noqa: F401, I001  (first: it sets what TensorFlow reads)

    import keras  # noqa: F401
    import tensorflow as tf  # noqa: F401
    from tensorflow.python.eager import context

    for line in sys.stdin:
        assert not context.context()._initialized, "a fork needs a TensorFlow that has not begun"
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _program(**json.loads(line))
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
                if isinstance(end.code, str):
                    print(end.code, file=sys.stderr)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _serve()
