"""What a process knows of its own cost, and of the machine it runs on."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any


def rss_mib() -> float:
    """Resident size of this process now, MiB (Linux: from /proc)."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def median_seconds(run: Callable[[], Any], iterations: int) -> float:
    """Median wall seconds of a call, after one that is not timed."""
    run()
    seconds = []
    for _ in range(iterations):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def cpu_model() -> str:
    """Name and ISA hint of the processor."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def matmul_gflops(size: int = 1536, seconds: float = 1.0) -> float:
    """Speed of float32 matrix products on TensorFlow's threads, 1e9 operations a second."""
    import tensorflow as tf

    x = tf.random.normal([size, size])
    product = tf.function(lambda a: tf.matmul(a, a))
    product(x)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        product(x).numpy()
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - start) / 1e9
