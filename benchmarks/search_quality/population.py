"""The networks that are compared: one stem, one head, and F chosen so that all cost the same."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from auto_deeplab_tf import accounting
from auto_deeplab_tf.architecture import Architecture

# What settings are tuned on: the first frames of a drive are scored, those after them are left out,
# so that no frame of the training is a neighbour.
TUNING_DRIVE, TUNING_FRAMES, TUNING_GAP = "0016E5", 64, 10
# Of the whole network at 120x160, for one image.
MULTI_ADDS = 160_000_000
SETTINGS = {
    "num_classes": 11,
    "input_size": (120, 160),
    "stem_channels": (12, 12, 24),
    "head_channels": 16,
    "decoder_channels": 8,
}


def tuning_split(ids: Iterable[str]) -> dict[str, str]:
    """Returns the part, `train` or `val`, of the images of train that the tuning split has."""
    ids = sorted(ids)
    drive = [name for name in ids if name.startswith(TUNING_DRIVE)]
    parts = dict.fromkeys(ids, "train") | dict.fromkeys(drive[:TUNING_FRAMES], "val")
    for name in drive[TUNING_FRAMES : TUNING_FRAMES + TUNING_GAP]:
        del parts[name]
    return parts


@functools.cache
def filter_multiplier(architecture: Architecture) -> int:
    """Returns the F at which the network's Multi-Adds come nearest to `MULTI_ADDS`.

    Raises:
        ValueError: where even F 1 costs more.
    """
    below = accounting.largest_filter_multiplier(
        architecture, max_multi_adds=MULTI_ADDS, **SETTINGS
    )
    if below == 0:
        raise ValueError(f"F 1 costs more than {MULTI_ADDS} Multi-Adds: {architecture.levels}")
    distances = {f: abs(_multi_adds(architecture, f) - MULTI_ADDS) for f in (below, below + 1)}
    return min(distances, key=lambda f: distances[f])


def cost(architecture: Architecture) -> dict[str, float]:
    """Returns F, the network's Multi-Adds and parameters, and the share of its cells."""
    multiplier = filter_multiplier(architecture)
    counted = accounting.count(architecture, filter_multiplier=multiplier, **SETTINGS)
    cells = sum(part.multi_adds for part in counted.parts if part.name.startswith("cell_"))
    return {
        "filter_multiplier": multiplier,
        "multi_adds": counted.multi_adds,
        "params": counted.params,
        "cell_share": cells / counted.multi_adds,
    }


def _multi_adds(architecture: Architecture, multiplier: int) -> int:
    return accounting.count(architecture, filter_multiplier=multiplier, **SETTINGS).multi_adds
