"""The networks that are compared: one stem, one head, and F chosen so that all cost the same."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

from auto_deeplab_tf import accounting
from auto_deeplab_tf.architecture import Architecture

# What settings are tuned on: the first frames of a drive are scored, those after them are left out,
# so that no frame of the training is a neighbour.
TUNING_DRIVE, TUNING_FRAMES, TUNING_GAP = "0016E5", 64, 10


@dataclasses.dataclass(frozen=True)
class Design:
    """What the networks of one comparison share.

    Args:
        multi_adds: Of the whole network at 120x160, for one image; F is chosen to come near.
        stem_channels: Filters of the stem's three convolutions.
        head_channels: Filters of the atrous spatial pyramid pooling.
        decoder_channels: Those that the decoder takes from the features of stride 4.
    """

    multi_adds: int = 160_000_000
    stem_channels: tuple[int, int, int] = (12, 12, 24)
    head_channels: int = 16
    decoder_channels: int = 8

    @property
    def channels(self) -> dict[str, Any]:
        """The settings of stem and head, by their names as flags."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "multi_adds"}

    @property
    def flags(self) -> dict[str, str]:
        """The same as texts."""
        stem = ",".join(map(str, self.stem_channels))
        return {name: str(value) for name, value in self.channels.items()} | {"stem_channels": stem}


DESIGN = Design()
STEPS = 1_800  # Of the trainings that are compared: see PROTOCOL.md.
MULTI_ADDS = DESIGN.multi_adds
TASK = {"num_classes": 11, "input_size": (120, 160)}
SETTINGS = {**TASK, **DESIGN.channels}


def tuning_split(ids: Iterable[str]) -> dict[str, str]:
    """Returns the part, `train` or `val`, of the images of train that the tuning split has."""
    ids = sorted(ids)
    drive = [name for name in ids if name.startswith(TUNING_DRIVE)]
    parts = dict.fromkeys(ids, "train") | dict.fromkeys(drive[:TUNING_FRAMES], "val")
    for name in drive[TUNING_FRAMES : TUNING_FRAMES + TUNING_GAP]:
        del parts[name]
    return parts


@functools.cache
def filter_multiplier(architecture: Architecture, design: Design = DESIGN) -> int:
    """Returns the F at which the network's Multi-Adds come nearest to the design's.

    Raises:
        ValueError: where even F 1 costs more.
    """
    below = accounting.largest_filter_multiplier(
        architecture, max_multi_adds=design.multi_adds, **TASK, **design.channels
    )
    if below == 0:
        raise ValueError(f"F 1 costs more than {design.multi_adds} Multi-Adds: {architecture}")
    distances = {
        f: abs(_counted(architecture, f, design).multi_adds - design.multi_adds)
        for f in (below, below + 1)
    }
    return min(distances, key=lambda f: distances[f])


def cost(architecture: Architecture, design: Design = DESIGN) -> dict[str, float]:
    """Returns F, the network's Multi-Adds and parameters, and the share of its cells."""
    multiplier = filter_multiplier(architecture, design)
    counted = _counted(architecture, multiplier, design)
    cells = sum(part.multi_adds for part in counted.parts if part.name.startswith("cell_"))
    return {
        "filter_multiplier": multiplier,
        "multi_adds": counted.multi_adds,
        "params": counted.params,
        "cell_share": cells / counted.multi_adds,
    }


def _counted(architecture: Architecture, multiplier: int, design: Design) -> accounting.Count:
    return accounting.count(architecture, filter_multiplier=multiplier, **TASK, **design.channels)
