"""Signs that a search collapses, read from its rows of metrics, each with what to change."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from auto_deeplab_tf import decoding
from auto_deeplab_tf.search_space import DECODABLE_OPERATIONS, NUM_LEVELS, NUM_MOVES, OPERATIONS

# A cell drawn uniformly has so many of the operations with at most this probability: of 10, 5 skips
# (0.8 %) or 8 without parameters (1.97 %), while the 4 skips of an ordinary draw (4.7 %) pass.
MAX_CELL_PROBABILITY = 0.02
WITHOUT_PARAMETERS = ("avg_pool_3x3", "max_pool_3x3", "skip")
# Of the entropy of a uniform beta. At 0.1 the preferred move of a node has a probability of 0.98
# or more; softmax scales the gradient of its logit by p (1 - p), a tenth of that at the start.
SATURATED_BETA = 0.1
# Early: in the first half of the epochs that update beta, when alpha is still undecided.
EARLY = 0.5
# The last so many validations all lie this far below the best one before them. Validations of one
# supernet scatter by up to a tenth, on few images and young moving statistics.
FALL_VALIDATIONS = 3
FALL = 0.2
# Entropy of alpha below log(8), as a share of it: at logits of deviation d it is d**2 / 2 nats, so
# 0.01 is d = 0.2. The strongest of 8 operations then has a weight of 0.16, a random one 0.125.
ALPHA_MOVED = 0.01
ALPHA_MOVES_WITHIN = 1 / 3


class Sign(NamedTuple):
    """A sign of a collapse.

    Attributes:
        name: One word for the column `collapse` of metrics.csv.
        text: What was seen, and what to change.
    """

    name: str
    text: str


def signs(
    rows: Sequence[Mapping[str, Any]], epochs: int, arch_start_epoch: int
) -> tuple[Sign, ...]:
    """Returns the signs of a collapse after the last of the rows.

    Args:
        rows: Of metrics.csv, one per epoch so far: numbers or their texts, "" for none.
        epochs: Number of epochs of the whole search.
        arch_start_epoch: First epoch, from 0, that updates alpha and beta.
    """
    row = rows[-1]
    done = int(row["epoch"]) + 1 - arch_start_epoch
    found = [_falling_miou(rows)]
    if done > 0:
        share = done / (epochs - arch_start_epoch)
        found += [*_cell(str(row["cell"])), _saturated_beta(row, share), _still_alpha(row, share)]
    return tuple(sign for sign in found if sign)


def _cell(cell: str) -> list[Sign | None]:
    operations = [edge.split("(")[0] for block in cell.split(" | ") for edge in block.split(" + ")]
    kinds = {"skip": ("skip",), "without_parameters": WITHOUT_PARAMETERS}
    found: list[Sign | None] = []
    for name, kind in kinds.items():
        count = sum(operation in kind for operation in operations)
        share = len(kind) / len(DECODABLE_OPERATIONS)
        if _tail(len(operations), count, share) <= MAX_CELL_PROBABILITY:
            what = "skip" if name == "skip" else "pooling or skip"
            found.append(
                Sign(
                    f"{name}_takes_over",
                    f"{count} of the {len(operations)} operations of the cell are {what}: raise "
                    "arch_start_epoch, so that the convolutions are trained before they are "
                    "compared, or lower arch_learning_rate",
                )
            )
    return found


def _tail(number: int, least: int, probability: float) -> float:
    """The probability of `least` or more of `number` independent draws."""
    return sum(
        math.comb(number, count) * probability**count * (1 - probability) ** (number - count)
        for count in range(least, number + 1)
    )


def _saturated_beta(row: Mapping[str, Any], share: float) -> Sign | None:
    num_layers = len(str(row["levels"]).split("-"))
    uniform = decoding.beta_entropy(np.zeros((num_layers, NUM_LEVELS, NUM_MOVES)))
    entropy = float(row["beta_entropy"])
    if share > EARLY or entropy > SATURATED_BETA * uniform:
        return None
    return Sign(
        "beta_saturated",
        f"the entropy of beta is {entropy:.3f} of {uniform:.3f} nats after {share:.0%} of the "
        "architecture's epochs, so the path cannot change any more: lower arch_learning_rate, or "
        "raise arch_weight_decay",
    )


def _still_alpha(row: Mapping[str, Any], share: float) -> Sign | None:
    entropy, uniform = float(row["alpha_entropy"]), math.log(len(OPERATIONS))
    if share < ALPHA_MOVES_WITHIN or uniform - entropy >= ALPHA_MOVED * uniform:
        return None
    return Sign(
        "alpha_undecided",
        f"the entropy of alpha is {entropy:.3f} of {uniform:.3f} nats after {share:.0%} of the "
        "architecture's epochs, as where it began: lower arch_weight_decay, raise "
        "arch_learning_rate, or search for more steps",
    )


def _falling_miou(rows: Sequence[Mapping[str, Any]]) -> Sign | None:
    # A row without validation holds "", one of no labelled pixel None.
    scores = [float(row["val_miou"]) for row in rows if row.get("val_miou") not in ("", None)]
    before, last = scores[:-FALL_VALIDATIONS], scores[-FALL_VALIDATIONS:]
    if not before or max(last) >= (1 - FALL) * max(before):
        return None
    return Sign(
        "supernet_falls",
        f"val_miou of the supernet fell from {max(before):.3f} to {max(last):.3f} or less in the "
        f"last {FALL_VALIDATIONS} validations: lower learning_rate and arch_learning_rate",
    )


class CollapseWatch(keras.callbacks.Callback):
    """Adds the signs of a collapse to the logs of an epoch, and prints each when it first appears.

    The log `collapse` holds their names, separated by spaces; it is absent where there is none. Put
    it before the callbacks that write the logs.

    Args:
        epochs: See `signs`; likewise:
        arch_start_epoch: See there.
        rows: Rows of earlier epochs, of a run that is resumed.
        stop: Whether the training ends after the first epoch with a sign.
    """

    def __init__(
        self,
        epochs: int,
        arch_start_epoch: int,
        rows: Sequence[Mapping[str, Any]] = (),
        stop: bool = False,
    ):
        super().__init__()
        self._epochs = epochs
        self._arch_start_epoch = arch_start_epoch
        self._rows = [dict(row) for row in rows]
        self._stop = stop

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks at the epoch's values."""
        logs = {} if logs is None else logs
        # A resumed run repeats the epoch in which it was killed.
        self._rows = [row for row in self._rows if int(row["epoch"]) < epoch]
        before = str(self._rows[-1].get("collapse") or "").split() if self._rows else []
        self._rows.append({"epoch": epoch, **logs})
        found = signs(self._rows, self._epochs, self._arch_start_epoch)
        for sign in found:
            if sign.name not in before:
                print(f"collapse: {sign.text}", file=sys.stderr, flush=True)
        if found:
            logs["collapse"] = " ".join(sign.name for sign in found)
            self._rows[-1]["collapse"] = logs["collapse"]
            self.model.stop_training |= self._stop
