"""Assigns the files of a split to the workers of a run, each file to one (`shard_by=files`).

By default a worker takes its rows of every batch of the whole set, and so reads from all files. By
file it reads its own ones alone: less traffic from a store that is far away.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from auto_deeplab_tf.errors import UserError


def owners(shards: np.ndarray, workers: int) -> np.ndarray:
    """Returns the worker that reads each file: the next largest file goes to the least loaded.

    Args:
        shards: int [n], the number of each example's file.
        workers: Number of workers.

    Returns:
        int [files]. The examples of two workers differ by those of one file at most.
    """
    sizes = np.bincount(shards)
    loads = np.zeros(workers, np.int64)
    found = np.zeros(len(sizes), np.int64)
    for file in np.argsort(-sizes, kind="stable"):
        found[file] = np.argmin(loads)
        loads[found[file]] += sizes[file]
    return found


def of_worker(
    shards: np.ndarray, indices: Sequence[int] | np.ndarray, worker: int, workers: int
) -> np.ndarray:
    """Returns the examples of a worker's files, in the order given.

    Every example belongs to one worker. A worker with fewer examples than others begins its next
    pass over them earlier.

    Args:
        shards: int [n], the number of each example's file, over the whole split: two halves of a
            split have one owner for each file.
        indices: Examples to choose from.
        worker: Which worker, from 0.
        workers: Number of workers.

    Raises:
        UserError: If there is no example for the worker.
    """
    indices = np.asarray(indices)
    found = indices[owners(shards, workers)[shards[indices]] == worker]
    if not len(found):
        raise UserError(
            f"shard_by=files needs examples in at least {workers} files, one for each worker; "
            f"these are {len(indices)} examples in {len(np.unique(shards[indices]))} files: use "
            "shard_by=rows"
        )
    return found
