"""What the system knows of this process: its memory and its age."""

from __future__ import annotations

import os
import resource
import sys
import time

_IMPORTED = time.monotonic()


def seconds_since_start() -> float:
    """Returns the seconds since this process began, its imports included.

    Where there is no Linux to tell, since this module was imported.
    """
    if not sys.platform.startswith("linux"):
        return time.monotonic() - _IMPORTED
    with open("/proc/self/stat", encoding="ascii") as file:
        started_ticks = int(file.read().rsplit(")", 1)[1].split()[19])
    with open("/proc/uptime", encoding="ascii") as file:
        uptime = float(file.read().split()[0])
    return uptime - started_ticks / os.sysconf("SC_CLK_TCK")


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
