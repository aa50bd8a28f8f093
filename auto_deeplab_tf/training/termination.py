"""Ways to end a training early: SIGTERM, Ctrl-C and a clock. Its state is saved first.

The step ends, a checkpoint is written, and the process exits with the code that says why.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from auto_deeplab_tf.process import seconds_since_start

TERMINATED = 128 + signal.SIGTERM
INTERRUPTED = 128 + signal.SIGINT
# "Temporary failure: try again", as a batch system's script can tell from an error (1).
TIME_IS_UP = os.EX_TEMPFAIL

_REASONS = {
    TERMINATED: "terminated",
    INTERRUPTED: "interrupted",
    TIME_IS_UP: "max_hours is over",
}
CODES = (*_REASONS,)


@contextlib.contextmanager
def noted(
    wanted: bool = True, max_hours: float | None = None
) -> Iterator[Callable[[], int | None]]:
    """Takes note of SIGTERM and SIGINT inside `with`, where they would end the process at once.

    A second SIGINT ends it at once all the same, by KeyboardInterrupt.

    Args:
        wanted: Whether to do so; False leaves the signals and the clock alone.
        max_hours: Hours since the start of the process after which it is to end; None: no limit.

    Yields:
        A function that returns the exit code with which the process is to end, None while it may
        continue. In a thread other than the main one, which gets no signals, it knows the clock
        alone.
    """
    came: list[int] = []

    def code() -> int | None:
        if came:
            return 128 + came[0]
        if wanted and max_hours is not None and seconds_since_start() >= 3600 * max_hours:
            return TIME_IS_UP
        return None

    def note(number: int, _: Any) -> None:
        came.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if sys.stderr.isatty():
                # Not by print, which the signal may have come in the middle of.
                os.write(2, b"\nsaving after this step; Ctrl-C again ends at once\n")

    if not wanted or threading.current_thread() is not threading.main_thread():
        yield code
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield code
    finally:
        for number, handler in before.items():
            # None: a handler that Python did not set.
            signal.signal(number, handler or signal.SIG_DFL)


def end(code: int, saved: str) -> NoReturn:
    """Ends the process with an exit code, and one line on stderr that says how to resume.

    Args:
        code: What `noted` gave.
        saved: The checkpoint that was saved.

    Raises:
        KeyboardInterrupt: With the line, after Ctrl-C; the command line prints it, exits with 130.
        SystemExit: With the code else.
    """
    line = f"{_REASONS[code]}: {saved} is saved; the same command resumes from it"
    if code == INTERRUPTED:
        raise KeyboardInterrupt(line)
    print(line, file=sys.stderr, flush=True)
    sys.exit(code)
