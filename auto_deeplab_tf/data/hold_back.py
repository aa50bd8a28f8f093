"""The part of a training set that is held back to choose networks by, so that val stays unseen."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from auto_deeplab_tf.data.split import hash_order
from auto_deeplab_tf.errors import FieldError, UserError

if TYPE_CHECKING:  # the data sets load TensorFlow, this division needs none of it
    from auto_deeplab_tf.data.source import Source


def of_source(
    source: Source, share: float, groups: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `parts` of a split, by the groups of its data set."""
    is_video = source.info.frames_per_block is not None
    return parts(source.ids, source.groups, share, groups, is_video=is_video)


def parts(
    ids: Sequence[str],
    groups: Sequence[str],
    share: float,
    names: Sequence[str] | None = None,
    *,
    is_video: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Divides a training set into the part that is kept and the part that is held back.

    Without names, whole groups are held back where some come near the share: added one by one, each
    time the one that brings the total nearest to it. Where they miss it by more than half of it, as
    one single group does, examples are held back: the last ones of a video, whose neighbours would
    otherwise be on both sides, else those that a hash of their id puts first.

    Args:
        ids: Image id of each example.
        groups: Its drive or city.
        share: Share that is held back, above 0 and at most 0.5; not read where there are names.
        names: Groups that are held back.
        is_video: Whether the examples of a group are successive frames.

    Returns:
        (kept, held back): int64 positions in `ids`, ascending; both have members.

    Raises:
        UserError: For a set that is too small, or names that are no groups.
    """
    ids, groups = list(ids), list(groups)
    sizes = dict(sorted(collections.Counter(groups).items()))
    if names:
        unknown = [name for name in names if name not in sizes]
        if unknown:
            raise FieldError(
                f"hold_back_groups={','.join(names)}: the training set has no {unknown[0]}; it has "
                f"{', '.join(sizes)}"
            )
        is_held = np.isin(groups, names)
    else:
        wanted = share * len(ids)
        if wanted < 1 or len(ids) < 2:
            raise UserError(
                f"hold_back={share:g} of {len(ids)} training images is not one image: the set is "
                "too small to hold a part back"
            )
        chosen = _groups_near(sizes, wanted)
        held = sum(sizes[name] for name in chosen)
        if abs(held - wanted) <= 0.5 * wanted:
            is_held = np.isin(groups, chosen)
        else:
            order = np.lexsort((ids, groups))[::-1] if is_video else hash_order(ids)
            is_held = np.zeros(len(ids), bool)
            is_held[order[: round(wanted)]] = True
    if is_held.all():
        raise FieldError(
            f"hold_back_groups={','.join(names or ())} is the whole training set: nothing is left "
            "to train on"
        )
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def _groups_near(sizes: dict[str, int], wanted: float) -> list[str]:
    """Adds groups as long as one brings the sum of their sizes nearer to what is wanted."""
    chosen: list[str] = []
    total = 0
    while True:
        left = [name for name in sizes if name not in chosen]
        best = min(left, key=lambda name: abs(total + sizes[name] - wanted), default=None)
        if best is None or abs(total + sizes[best] - wanted) >= abs(total - wanted):
            return chosen
        chosen.append(best)
        total += sizes[best]
