"""The memory of this process, as the system accounts for it."""

from __future__ import annotations

import resource
import sys


def peak_memory_mib() -> float:
    """Returns the largest resident size of this process so far, MiB.

    Linux's `VmHWM` where it is there: `ru_maxrss` begins with the peak of the process that started
    this one.
    """
    if sys.platform.startswith("linux"):
        with open("/proc/self/status", encoding="ascii") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
