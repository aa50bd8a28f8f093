"""Processes: the memory and the age of this one, and commands that it runs and waits for."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

_IMPORTED = time.monotonic()
_PASSED_ON = (signal.SIGTERM, signal.SIGINT)


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


class Completed(NamedTuple):
    """How a command ended.

    Attributes:
        code: Its exit code; 130 or 143 also where SIGINT or SIGTERM came before it could take note
            of them, and minus the number of another signal that killed it.
        cpu_seconds: CPU seconds of all its threads and of the children that it waited for.
        output: What it wrote to stderr, and to stdout too where that was asked for.
    """

    code: int
    cpu_seconds: float
    output: str


def run_command(
    command: Sequence[str],
    *,
    with_stdout: bool = False,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    core: int | None = None,
) -> Completed:
    """Runs a command to its end, and ends it where this process is killed.

    In the main thread, SIGTERM and Ctrl-C are passed on to it, and this process waits for what the
    command makes of them: a training saves. In another thread, which cannot handle signals, the
    command is in the session of this process, so that a terminal sends Ctrl-C to both.

    Args:
        command: The program and its arguments.
        with_stdout: Whether the output holds stdout too; it is dropped otherwise.
        env: Its environment; default: that of this process.
        cwd: Its working directory; default: that of this process.
        core: The core that it is bound to; default: those of this process.
    """
    passes_on = threading.current_thread() is threading.main_thread()

    def prepare() -> None:
        _end_with_parent()
        if core is not None:
            os.sched_setaffinity(0, {core})

    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if with_stdout else subprocess.DEVNULL,
        stderr=subprocess.STDOUT if with_stdout else subprocess.PIPE,
        text=True,
        env=env,
        cwd=cwd,
        preexec_fn=prepare,
        start_new_session=passes_on,  # else the terminal would send it Ctrl-C too
    ) as process:
        stream = process.stdout if with_stdout else process.stderr
        assert stream is not None
        with _signals_passed_on(process) if passes_on else contextlib.nullcontext():
            output = stream.read()
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    code = process.returncode
    return Completed(
        128 - code if -code in _PASSED_ON else code, usage.ru_utime + usage.ru_stime, output
    )


@contextlib.contextmanager
def _signals_passed_on(process: subprocess.Popen[str]) -> Iterator[None]:
    before = {
        number: signal.signal(number, lambda number, _: process.send_signal(number))
        for number in _PASSED_ON
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_with_parent() -> None:
    """Has Linux kill this process when its parent ends, however that ends.

    The parent is the thread that started it, which waits for it in `run_command`.

    A training that ran on alone would hold its run folder when its parent is started again. It
    resumes from its last checkpoint.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
