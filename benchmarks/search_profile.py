"""Where the time and the memory of a bilevel iteration go: TensorFlow's profile, by kind of work.

    python -m benchmarks.search_profile --crop_size=65 --batch_size=2 --threads=1

The settings are those of `benchmarks.search_step`. Seconds are each operation's own, of one
iteration after the third; a profiled iteration is slower than others, so that shares say more than
seconds. `calls` is what no operation accounts for: the executor, the eager calls, Python.
"""

import collections
import glob
import os
import tempfile
import time
from typing import Any

from absl import app, flags

from auto_deeplab_tf.process import peak_memory_mib
from benchmarks import process, rows, search_step

FLAGS = flags.FLAGS

# What an operation's type contains -> the kind of work; the first that fits.
KINDS = (
    ("DepthwiseConv2dNative", "depthwise convolution"),
    ("Conv2D", "convolution"),
    ("MatMul", "convolution"),
    ("Einsum", "convolution"),
    ("BatchNorm", "batch normalisation"),
    ("Pool", "pooling"),
    ("Concat", "moving values"),
    ("Split", "moving values"),
    ("Slice", "moving values"),
    ("Pad", "moving values"),
    ("Pack", "moving values"),
    ("Tile", "moving values"),
    ("Broadcast", "moving values"),
    ("Batch", "moving values"),  # space to batch and back
    ("Transpose", "moving values"),
)
ELEMENTWISE = "elementwise and sums"


def kind_of(operation: str) -> str:
    """The kind of work of an operation's type."""
    return next((kind for part, kind in KINDS if part in operation), ELEMENTWISE)


def own_seconds(events: list[tuple[int, int, str]]) -> dict[str, tuple[float, int]]:
    """Seconds of each operation's type without those of what it contains, and its count.

    Args:
        events: (begin, duration, name) of one thread, in picoseconds. Operations are named
            "name:type"; what else a thread records counts for nothing, and takes nothing from the
            operation that it lies in.
    """
    seconds: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter()
    open_until: list[tuple[int, str]] = []
    operations = [event for event in events if ":" in event[2] and "::" not in event[2]]
    for begin, duration, name in sorted(operations, key=lambda event: (event[0], -event[1])):
        operation = name.rsplit(":", 1)[1].strip()
        while open_until and open_until[-1][0] <= begin:
            open_until.pop()
        if open_until:
            seconds[open_until[-1][1]] -= duration
        seconds[operation] += duration
        counts[operation] += 1
        open_until.append((begin + duration, operation))
    return {name: (seconds[name] / 1e12, counts[name]) for name in seconds}


def profiled(run: Any) -> dict[str, tuple[float, int]]:
    """Runs a function under TensorFlow's profiler; returns what `own_seconds` found in all."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        run()
        tf.profiler.experimental.stop()
        (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        with open(path, "rb") as file:
            space = xplane_pb2.XSpace.FromString(file.read())
    found: dict[str, tuple[float, int]] = {}
    for plane in space.planes:
        if not plane.name.startswith("/host:CPU"):
            continue
        names = plane.event_metadata
        for line in plane.lines:
            if not line.name.startswith("tf_Compute"):
                continue
            events = [(e.offset_ps, e.duration_ps, names[e.metadata_id].name) for e in line.events]
            for name, (seconds, count) in own_seconds(events).items():
                before = found.get(name, (0.0, 0))
                found[name] = (before[0] + seconds, before[1] + count)
    return found


def account(found: dict[str, tuple[float, int]], wall: float) -> dict[str, str]:
    """Sums what `profiled` found by kind of work, the longest first; then what is left of `wall`.

    Args:
        found: operation -> (seconds, calls).
        wall: seconds of the whole.
    """
    kinds: dict[str, list[float]] = {}
    for name, (seconds, count) in found.items():
        total = kinds.setdefault(kind_of(name), [0.0, 0])
        total[0] += seconds
        total[1] += count
    result = {
        kind: f"{1000 * seconds:.0f} ms in {count} calls"
        for kind, (seconds, count) in sorted(kinds.items(), key=lambda item: -item[1][0])
    }
    own = sum(seconds for seconds, _ in found.values())
    return result | {"calls": f"{1000 * (wall - own):.0f} ms"}


def measure() -> dict[str, Any]:
    """The account of one iteration, and the resident size at each stage before it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf  # noqa: F401  what its import takes is part of the account

    imported = process.rss_mib()
    model, data, built = search_step.prepare()
    model.train_step(data)
    first = process.rss_mib()
    for _ in range(2):
        model.train_step(data)
    start = time.perf_counter()
    model.train_step(data)
    plain = time.perf_counter() - start
    start = time.perf_counter()
    found = profiled(lambda: model.train_step(data))
    wall = time.perf_counter() - start
    result = {"seconds": round(plain, 3), "profiled_seconds": round(wall, 3)}
    return (
        result
        | account(found, wall)
        | {
            "imported_rss_mib": round(imported, 1),
            "built_rss_mib": round(built, 1),
            "first_iteration_rss_mib": round(first, 1),
            "peak_rss_mib": round(peak_memory_mib(), 1),
        }
    )


def main(_: list[str]) -> None:
    rows.show(measure(), FLAGS.json)


if __name__ == "__main__":
    app.run(main)
