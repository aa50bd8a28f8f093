"""SIGTERM in a training: the step ends, a checkpoint is written, and the process exits with 143."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM


@contextlib.contextmanager
def noted(wanted: bool = True) -> Iterator[Callable[[], bool]]:
    """Takes note of SIGTERM inside `with`, where it would otherwise end the process at once.

    Args:
        wanted: Whether to do so; False leaves the signal as it is.

    Yields:
        A function that tells whether it has come. In a thread other than the main one, which gets
        no signals, it says no.
    """
    came = threading.Event()
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return

    def note(*_: Any) -> None:
        came.set()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
