"""Commands in two processes on loopback, as the workers of one `MultiWorkerMirroredStrategy`."""

import json
import signal
import subprocess
import sys
import time

from benchmarks.replicas import environments

_PROGRAM = """
import importlib, json, sys
from auto_deeplab_tf import cli, config
for name, arguments in json.loads(sys.argv[1]):
    module = importlib.import_module(f"auto_deeplab_tf.{name}")
    options = cli.parse(getattr(config, f"{name.capitalize()}Config"), arguments)
    cli.read = lambda _: options
    module.main()
    print("done", name, flush=True)
"""


class Pair:
    """Two workers, each a process; killed at the latest when the `with` ends.

    Args:
        folder: Gets the output of each, `worker-0.txt` and `worker-1.txt`.
        *command: What each runs.
    """

    def __init__(self, folder, *command):
        self._outputs = [folder / f"worker-{index}.txt" for index in range(2)]
        self.processes = []
        for environment, output in zip(environments(2), self._outputs, strict=True):
            with open(output, "w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, *command],
                        env=environment,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )

    @classmethod
    def of_commands(cls, folder, commands):
        """Runs several commands, (name, arguments), one after the other."""
        return cls(folder, "-c", _PROGRAM, json.dumps(commands))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()

    def output(self, index):
        """Returns what a worker has written so far."""
        return self._outputs[index].read_text()

    def wait(self, seconds):
        """Waits for the end of both; returns their exit codes, None where one has not ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and None in [p.poll() for p in self.processes]:
            time.sleep(0.1)
        return [process.poll() for process in self.processes]
