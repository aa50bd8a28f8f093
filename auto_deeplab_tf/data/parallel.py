"""Work on all cores, in order, with a few items in memory at a time."""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# Items in memory for each thread: the one it works on, and one that is ready for it.
_AHEAD = 2


def ordered_map(
    function: Callable[[_Item], _Result], items: Iterable[_Item], threads: int | None = None
) -> Generator[_Result, None, None]:
    """Applies a function to items in threads; yields its results in the order of the items.

    Threads, since decoding, resizing and encoding of images leave the interpreter free. Items are
    taken from the iterable as they are needed, by the calling thread.

    Args:
        function: called from several threads at a time.
        items: any number of them.
        threads: how many; None for as many as this process may use cores.

    Raises:
        Exception: what the function raised, in the place of its result.
    """
    threads = threads or len(os.sched_getaffinity(0))
    pending: collections.deque[concurrent.futures.Future[_Result]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= _AHEAD * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
