"""The two disjoint halves of a training set that the search alternates between."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from auto_deeplab_tf.data.index import Texts
from auto_deeplab_tf.errors import UserError

if TYPE_CHECKING:  # the data sets load TensorFlow, these halves need none of it
    from auto_deeplab_tf.data.source import Source


def halves(
    ids: Sequence[str], groups: Sequence[str], *, frames_per_block: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Divides a set into two disjoint halves that together hold every example.

    Without `frames_per_block`, the examples of each group (a city) are ranked by a hash of their id
    and assigned in turn: in each group, and over all, the halves differ by one example at most.
    The hash makes the halves random but the same on every machine, and leaves an example's rank
    almost unchanged when others are added or removed.

    With `frames_per_block`, the examples of a group are successive frames of a drive: blocks of
    that many are assigned in turn, since a random half would hold the neighbour of nearly every
    frame of the other one.

    Args:
        ids: image id of each example.
        groups: its city or drive.
        frames_per_block: number of successive frames kept together, less where the set is smaller
            than two blocks.

    Returns:
        (train_a, train_b): int64 positions in `ids`, ascending; both have members.

    Raises:
        ValueError: for fewer than two examples, ids that are not unique, or groups of another
            length.
    """
    if len(ids) < 2:
        raise UserError(
            f"the search needs at least 2 training images, one for each half. Received: {len(ids)}"
        )
    if len(groups) != len(ids):
        raise UserError(
            f"there must be one group per id. Received: {len(groups)} groups, {len(ids)} ids"
        )
    encoded = Texts.of(ids).encoded
    different = len(set(encoded.tolist()))
    if different != len(ids):
        raise UserError(
            f"image ids must be unique. Received: {len(ids)} ids, {different} different"
        )
    _, codes = Texts.of(groups).coded()
    if frames_per_block is None:
        order = hash_order(ids)
        order = order[np.argsort(codes[order], kind="stable")]
        sides = np.arange(len(ids)) % 2
    else:
        if frames_per_block < 1:
            raise UserError(f"frames_per_block must be 1 or more. Received: {frames_per_block}")
        order = np.lexsort((encoded, codes))
        sides = _block_sides(codes[order], min(frames_per_block, len(ids) // 2))
    return np.sort(order[sides == 0]), np.sort(order[sides == 1])


def source_halves(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Returns `halves` of a split, by the rule of its data set."""
    return halves(source.ids, source.groups, frames_per_block=source.info.frames_per_block)


def hash_order(ids: Sequence[str]) -> np.ndarray:
    """Returns the positions of ids in the order of their hashes: random, the same everywhere."""
    # Two words of each hash tell any two ids apart.
    hashes = b"".join(map(_digest, Texts.of(ids).encoded.tolist()))
    ranks = np.frombuffer(hashes, ">u8").reshape(-1, 4)
    return np.lexsort((ranks[:, 1], ranks[:, 0]))


def _digest(encoded_id: bytes) -> bytes:
    return hashlib.sha256(encoded_id).digest()


def _block_sides(groups: np.ndarray, block: int) -> np.ndarray:
    """Side (0 or 1) of each frame: blocks end with their group, sides alternate over all blocks.

    Args:
        groups: integers [n], the group of each frame, ascending.
        block: frames in a block.
    """
    _, starts, counts = np.unique(groups, return_index=True, return_counts=True)
    place = np.arange(len(groups)) - np.repeat(starts, counts)  # of a frame in its group
    blocks = -(-counts // block)
    first = np.repeat(np.cumsum(blocks) - blocks, counts)  # number of its group's first block
    return (first + place // block) % 2
