"""What one GPU is asked within ten minutes: times of the paper's search, then a search on CamVid.

    python -m benchmarks.jax_gpu --data=camvid.npz --output_dir=DIR --seconds=570

Needs JAX and Keras, no TensorFlow. `benchmarks.jax_search` is timed at crop 321 with batches of 2,
16 and 8, at batch 2 with CUDA graphs too: each alone, compiled and timed before the next begins.
What time is left goes to a search by the settings of `search_quality` on the tuning split, longer
than a CPU has time for, which is compiled second. Into the folder: `times.csv`, `search.csv`,
`logits/` and a log of each.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

TIMES = ["--crop_size=321"]
TIMED = {
    "batch_2": ["--batch_size=2"],
    "graphs_2": ["--batch_size=2", "--graphs"],
    "batch_16": ["--batch_size=16"],
    "batch_8": ["--batch_size=8"],
}
SEARCH = [
    *("--crop_size=97x129", "--batch_size=4", "--filter_multiplier=4", "--stem_channels=12,12,24"),
    *("--dtype_policy=float32", "--adam", "--learning_rate=0.004", "--min_learning_rate=0.0002"),
    *("--arch_learning_rate=0.06", "--arch_weight_decay=0", "--steps=4000", "--warmup_steps=300"),
    *("--probe_every=100", "--probes=8"),
]
SHORTEST_SEARCH = 120.0  # seconds
# What `jax_search` prints when nothing is left to compile but the updates and the crops.
COMPILED = "compiled"


class Job:
    """A process of `jax_search` that compiles, then waits for a file before it computes.

    Args:
        name: Of its files.
        folder: Of the log and the files that it waits for.
        end: When it has to have ended, by `time.monotonic`.
        arguments: Flags.
    """

    def __init__(self, name: str, folder: pathlib.Path, end: float, arguments: list[str]):
        self._log, self._go = folder / f"{name}.log", folder / f"{name}.go"
        command = [sys.executable, "-m", "benchmarks.jax_search", *arguments]
        command += [f"--wait_for={self._go}", f"--seconds={end - time.monotonic():.0f}"]
        environment = os.environ | {
            "KERAS_BACKEND": "jax",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }
        with open(self._log, "w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    @property
    def compiled(self) -> bool:
        """Whether it waits for nothing but its file."""
        return self.running and COMPILED in self._log.read_text(errors="replace").splitlines()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def compute(self, end: float) -> None:
        """Lets it compute, and waits until it has ended; until `end` at most."""
        self._go.touch()
        try:
            self._process.wait(max(end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            self.stop()

    def stop(self) -> None:
        """Ends it, and the processes that compile for it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def wait_compiled(self, end: float) -> bool:
        """Returns whether it is compiled by `end`; ends it where it is not."""
        while self.running and not self.compiled and time.monotonic() < end:
            time.sleep(0.5)
        if not self.compiled:
            self.stop()
        return self.compiled


def main() -> None:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="the .npz of `search_quality.jax_data`")
    parser.add_argument("--output_dir", required=True, type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=570)
    parser.add_argument("--processes", type=int, default=1, help="that compile a job; 1: threads")
    options = parser.parse_args()
    end = started + options.seconds
    folder = options.output_dir
    (folder / "logits").mkdir(parents=True)
    compiling = [f"--processes={options.processes}"]
    places = [f"--data={options.data}", f"--logits={folder / 'logits'}"]
    places.append(f"--output={folder / 'search.csv'}")
    of_times = [*TIMES, f"--output={folder / 'times.csv'}", *compiling]

    def say(*words: str) -> None:
        print(f"{time.monotonic() - started:.0f} s:", *words, flush=True)

    def timed(name: str) -> None:
        job = Job(name, folder, end, [*of_times, *TIMED[name]])
        if job.wait_compiled(end - SHORTEST_SEARCH):
            say(name, "is compiled")
            job.compute(end - SHORTEST_SEARCH)
        say(name, "has ended")

    first, *others = TIMED
    timed(first)
    search = Job("search", folder, end, [*SEARCH, *places, *compiling])
    say("search is compiled:", str(search.wait_compiled(end - SHORTEST_SEARCH / 2)))
    for name in others:
        if time.monotonic() < end - SHORTEST_SEARCH:
            timed(name)
    say("search")
    search.compute(end + 10)
    say("ended")


if __name__ == "__main__":
    main()
