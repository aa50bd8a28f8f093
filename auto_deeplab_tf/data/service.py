"""Batches that the workers of a tf.data service make: the same ones, in the same order.

A batch is a function of its number. The dispatcher gives the numbers to the workers one by one, as
they ask for them (dynamic sharding), and a worker sends the number along with its batch. Here the
batches are put in order again; one that does not come, because its worker has died, is made here.
So a run has the same numbers with any number of workers, or without, and resumes at any step.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from auto_deeplab_tf.addresses import check_listens

# Batches that are held while one before them is missing; then that one is made here.
_MAX_EARLY = 64
# Without a batch for so long, the workers are taken to be gone.
_SECONDS_TO_WAIT = 60.0
# What reading from a service raises; Python cannot decode a message that repeats bytes of a record.
_FAILURES = (tf.errors.OpError, UnicodeDecodeError)


def batches(
    example_at: Callable[[tf.Tensor], Any],
    batch_size: int,
    first: int,
    here: Callable[[int], tf.data.Dataset],
    address: str,
) -> tf.data.Dataset:
    """Returns the endless batches of a service, in the order of their numbers.

    Args:
        example_at: Row, int64 [] -> tensors; batch n has the rows from n * batch_size on.
        batch_size: Number of rows of a batch.
        first: Number of the first batch.
        here: Number of a batch -> the endless batches from it on, made in this process.
        address: grpc://HOST:PORT of the dispatcher. Its workers read the files of `example_at`
            under the same paths.

    Raises:
        FieldError: If nothing listens at the address.
    """
    check_listens("data_service", address, "dispatcher of a tf.data service")
    remote = _remote(example_at, batch_size, first, address)

    def in_order() -> Iterator[Any]:
        yield from _in_order(remote, first, here, address)

    found = tf.data.Dataset.from_generator(in_order, output_signature=remote.element_spec[1])
    return found.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def _remote(
    example_at: Callable[[tf.Tensor], Any], batch_size: int, first: int, address: str
) -> tf.data.Dataset:
    """(number, batch) as the workers make them: each number once, in any order."""

    def rows_of(number: tf.Tensor) -> tf.data.Dataset:
        return tf.data.Dataset.range(number * batch_size, (number + 1) * batch_size)

    def numbered(rows: tf.Tensor, examples: Any) -> tuple[tf.Tensor, Any]:
        return rows[0] // batch_size, examples

    numbers = tf.data.Dataset.range(first, np.iinfo(np.int64).max // batch_size)
    dataset = numbers.flat_map(rows_of)
    dataset = dataset.map(
        lambda row: (row, example_at(row)),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    dataset = dataset.batch(batch_size, drop_remainder=True).map(numbered)
    return dataset.apply(
        tf.data.experimental.service.distribute(
            tf.data.experimental.service.ShardingPolicy.DYNAMIC, address
        )
    )


def _in_order(
    remote: tf.data.Dataset, wanted: int, here: Callable[[int], tf.data.Dataset], address: str
) -> Iterator[Any]:
    """Yields the batches of a service by their numbers, from `wanted` on."""
    early: dict[int, Any] = {}
    arrived: queue.Queue[tuple[int, Any]] = queue.Queue(maxsize=1)
    ended = threading.Event()
    threading.Thread(target=_receive, args=(remote, arrived, ended), daemon=True).start()
    try:
        while True:
            while wanted not in early and len(early) < _MAX_EARLY:
                number, batch = arrived.get(timeout=_SECONDS_TO_WAIT)
                if number < 0:
                    raise batch
                if number >= wanted:  # else it was made here
                    early[number] = batch
            yield early.pop(wanted) if wanted in early else next(iter(here(wanted).take(1)))
            wanted += 1
    except (queue.Empty, *_FAILURES) as error:
        reason = " ".join(str(error).split())[:200] or f"nothing came for {_SECONDS_TO_WAIT:g} s"
        print(
            f"warning: data_service={address} fails ({reason}): from here on this process makes "
            "the batches itself.",
            file=sys.stderr,
            flush=True,
        )
    finally:
        ended.set()
    yield from here(wanted)


def _receive(
    remote: tf.data.Dataset, arrived: queue.Queue[tuple[int, Any]], ended: threading.Event
) -> None:
    """Puts what a service sends into a queue until that has ended; its error as number -1."""

    def put(number: int, item: Any) -> None:
        while not ended.is_set():
            try:
                return arrived.put((number, item), timeout=0.2)
            except queue.Full:
                continue

    try:
        for number, batch in remote:
            put(int(number), batch)
            if ended.is_set():
                return
    except _FAILURES as error:
        put(-1, error)
