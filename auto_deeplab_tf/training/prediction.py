"""What a search will need: memory and seconds a step, predicted before anything starts.

    seconds = share * (CALL_SHARE * calls * (seconds of a small call)
        + WORK_SHARE * (multiply-adds / their speed + bytes / bandwidth))

with calls, multiply-adds and bytes of `nn.cost`, and the speeds measured here in about three
seconds; `share` is 1 but for other ways to run the step and for sampled paths. The constants, and
what a graph takes in memory, are fitted to `benchmarks.search_step` on one and two threads of one
machine; `benchmarks.dry_run` compares predictions with measurements at other settings.
"""

import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from auto_deeplab_tf.nn import cost
from auto_deeplab_tf.nn.node import NodeKind
from auto_deeplab_tf.nn.supernet import Supernet

CALL_SHARE = 0.105
WORK_SHARE = 1.55
# Of the seconds of an eager step that recomputes its nodes: of one that keeps their insides, and of
# a step that is one graph.
KEPT_SHARE = 0.95
TRACED_SHARE = 0.72
# MiB of a compiled kind of node for each of its counted calls, forward and two pullbacks.
GRAPH_MIB_PER_CALL = 0.071
# MiB of a whole traced step for each counted call of each of its segments.
TRACED_MIB_PER_CALL = 0.075
# A forward pass, computed twice, in both halves; backward by inputs in both, by weights in one.
CALLS_OF_A_STEP = 9
# Of the seconds of a bilevel step those of the weights' half.
WEIGHT_STEP_SHARE = 0.57
# Copies of the weights: value, momentum, gradient, the one being made.
WEIGHT_COPIES = 4


@dataclasses.dataclass(frozen=True)
class Speeds:
    """Of this machine, on the threads that TensorFlow has.

    Attributes:
        convolution: multiply-adds a second of a matrix product.
        depthwise: multiply-adds a second of a 3x3 depthwise convolution.
        elementwise: bytes a second, read or written.
        call_seconds: of a depthwise convolution with little to do. Where several threads share it,
            that is mostly the time to wake them, which is not the same from one minute to the next:
            shared by two, twice to three times that of one was seen.
    """

    convolution: float
    depthwise: float
    elementwise: float
    call_seconds: float


def measure_speeds() -> Speeds:
    """Measures for about three seconds."""
    square, large = tf.random.normal([768, 768]), tf.random.normal([8_000_000])
    images, small = tf.random.normal([2, 33, 33, 320]), tf.random.normal([2, 5, 5, 320])
    kernel = tf.random.normal([3, 3, 320, 1]) / 3

    def depthwise(values):
        return tf.nn.depthwise_conv2d(values, kernel, [1, 1, 1, 1], "SAME")

    @tf.function(autograph=False)
    def chain(values):
        for _ in range(20):
            values = depthwise(values)
        return values

    return Speeds(
        convolution=768**3 / _seconds(tf.linalg.matmul, square, square),
        depthwise=20 * 9 * images.shape.num_elements() / _seconds(chain, images),
        elementwise=3 * 4 * 8_000_000 / _seconds(tf.add, large, large),
        call_seconds=_seconds(chain, small, limit=1.0) / 20,
    )


def _seconds(function: Callable[..., Any], *arguments: Any, limit: float = 0.4) -> float:
    """The shortest time of a call; repeated for `limit` seconds."""
    function(*arguments)
    times: list[float] = []
    start = time.perf_counter()
    while time.perf_counter() - start < limit or len(times) < 3:
        before = time.perf_counter()
        function(*arguments).numpy()
        times.append(time.perf_counter() - before)
    return min(times)


def step_seconds(supernet: Supernet, size: tuple[int, int], batch_size: int, remat: bool,
                 traced: bool, speeds: Speeds) -> float:  # fmt: skip
    """Predicts the seconds of a weight step and an architecture step together, on CPU.

    Args:
        supernet: the network.
        size: (height, width) of the crops.
        batch_size: crops of each half.
        remat: whether nodes are recomputed.
        traced: whether the whole step is one graph.
        speeds: of this machine.
    """
    counts = cost.count(supernet, size)
    bytes_of_value = tf.as_dtype(supernet.compute_dtype).size
    works = cost.iteration(counts, batch_size, remat=True)
    calls = CALLS_OF_A_STEP * sum(count.calls for count in counts)
    seconds = sum(work.values for work in works.values()) * bytes_of_value / speeds.elementwise
    seconds += works["depthwise"].multi_adds / speeds.depthwise
    seconds += works["convolution"].multi_adds / speeds.convolution
    share = (1.0 if remat else KEPT_SHARE) * (TRACED_SHARE if traced else 1.0)
    if supernet.sampled_paths and not traced:
        nodes = sum(isinstance(segment.kind, NodeKind) for segment in supernet.segments)
        share *= min(1.0, supernet.sampled_paths * supernet.num_layers / nodes)
    return share * (CALL_SHARE * calls * speeds.call_seconds + WORK_SHARE * seconds)


def peak_memory_mib(supernet: Supernet, size: tuple[int, int], batch_size: int, remat: bool,
                    traced: bool, resident: float) -> float:  # fmt: skip
    """Predicts the largest resident size of the search, MiB; see `step_seconds` for the arguments.

    Args:
        traced: whether the whole step is one graph.
        resident: `resident_mib()` when the supernet stood and nothing was compiled.
    """
    counts = cost.count(supernet, size)
    held, working = cost.activation_values(counts, batch_size, remat)
    activations = (held + working) * tf.as_dtype(supernet.compute_dtype).size / 2**20
    if traced:
        graphs = TRACED_MIB_PER_CALL * sum(count.calls for count in counts)
    else:
        by_kind = {
            segment.kind: segment.name
            for segment in supernet.segments
            if isinstance(segment.kind, NodeKind)
        }
        calls = sum(count.calls for count in counts if count.name in by_kind.values())
        graphs = GRAPH_MIB_PER_CALL * calls
    weights = 4 * WEIGHT_COPIES * num_parameters(supernet) / 2**20
    return resident + weights + graphs + activations


def num_parameters(supernet: Supernet) -> int:
    """The number of weights; alpha and beta not among them."""
    return sum(int(np.prod(v.shape)) for v in supernet.trainable_variables)


def resident_mib() -> float:
    """Resident size of this process, MiB (Linux)."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
