"""The tables of the search space: operations, edges, moves, stem, ASPP rates, smallest image.

Architecture, accounting, decoding, drawing and networks read them; nothing else does index
arithmetic on alpha or beta. Pure Python and NumPy.
"""

from __future__ import annotations

import dataclasses
import functools
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from auto_deeplab_tf.errors import UserError

MINIMUM_SIZE = 32
# What the channels of an image may be, by their number.
CHANNEL_NAMES = {1: "grey", 3: "RGB", 4: "RGB and a fourth channel"}
INPUT_CHANNELS = tuple(CHANNEL_NAMES)
# Channels of its three convolutions as published; a network of few filters wants fewer.
STEM_CHANNELS = (64, 64, 128)
STEM_STRIDES = (2, 1, 2)
# Of its two tensors that the first cell reads, behind the second and the third convolution.
STEM_OUTPUT_STRIDES = (2, 4)
# Images are normalised (x - PLAIN_MEAN) / PLAIN_STD per channel unless told otherwise: to -1..1.
PLAIN_MEAN = PLAIN_STD = (127.5, 127.5, 127.5)
# ASPP's rates at stride s are these divided by s: 6, 12, 18 at stride 16.
ASPP_EXTENTS = (96, 192, 288)
NUM_LEVELS = 4
NUM_MOVES = 3
ATROUS_KINDS = ("full", "separable")

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One row of the table of operations (paper, sec. 3.1).

    The row says which convolutions the operation has, so that it can be counted without a
    framework; the class that `nn.operations.OPERATION_LAYERS` holds for its kind says the rest.

    Args:
        name: Its name in files and drawings.
        kind: Names its class: `separable`, `atrous`, `pool`, `skip`, or that of a new class.
        kernel_size: Width of its square window.
        rate: Atrous rate at stride 1; in a stride-2 position it is 1.
        repeats: Number of ReLU-convolution-BN stages; 0 for the operations without parameters.
        separable: Whether a stage is a depthwise convolution and a pointwise one, not a full
            convolution; None: as the architecture's `atrous` says.
        pooling: `"average"`, `"max"` or None.
        projects: Whether a stride-2 position adds ReLU, 1x1 with stride 2, BN.
    """

    name: str
    kind: str
    kernel_size: int = 1
    rate: int = 1
    repeats: int = 0
    separable: bool | None = False
    pooling: str | None = None
    projects: bool = False

    def is_separable(self, atrous: str) -> bool:
        """Tells the form of its convolutions in an architecture of that kind of `atrous`."""
        return atrous == "separable" if self.separable is None else self.separable


_TABLE = [
    Operation("sep_3x3", "separable", kernel_size=3, repeats=2, separable=True),
    Operation("sep_5x5", "separable", kernel_size=5, repeats=2, separable=True),
    Operation("atrous_3x3", "atrous", kernel_size=3, rate=2, repeats=1, separable=None),
    Operation("atrous_5x5", "atrous", kernel_size=5, rate=2, repeats=1, separable=None),
    Operation("avg_pool_3x3", "pool", kernel_size=3, pooling="average"),
    Operation("max_pool_3x3", "pool", kernel_size=3, pooling="max"),
    Operation("skip", "skip", projects=True),
    Operation("none", "none"),
]


class _Column(Sequence[_T]):
    """A column of the table of operations as a tuple that `register_operation` makes longer."""

    def __init__(self, read: Callable[[], tuple[_T, ...]]) -> None:
        self._read = read

    def __getitem__(self, index: Any) -> Any:
        return self._read()[index]

    def __len__(self) -> int:
        return len(self._read())

    def __eq__(self, other: object) -> bool:
        return self._read() == (other._read() if isinstance(other, _Column) else other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self._read())


OPERATION_TABLE: Sequence[Operation] = _Column(lambda: tuple(_TABLE))
OPERATIONS: Sequence[str] = _Column(lambda: tuple(row.name for row in _TABLE))
# What every program has, whatever it registers: what files that name no operations mean.
BUILT_IN_OPERATIONS = tuple(OPERATIONS)
# What a decoded edge may hold: all but `none`, in the same order.
DECODABLE_OPERATIONS: Sequence[str] = _Column(
    lambda: tuple(row.name for row in _TABLE if row.name != "none")
)

CELL_INPUTS = ("prev", "prev_prev")


def register_operation(row: Operation) -> None:
    """Adds a row to the table of operations, and with it a column to alpha, behind all others.

    A row of a kind that is there needs nothing else. One of a new kind needs its class,
    `nn.operations.operation_layer`. Files and models that hold the operation can be read only
    where it was registered before.

    Raises:
        ValueError: where the name is taken.
    """
    if row.name in OPERATIONS:
        raise UserError(
            f"an operation {row.name!r} is there already: the operations are "
            f"{', '.join(OPERATIONS)}."
        )
    _TABLE.append(row)


def operation(name: str) -> Operation:
    """Returns the table's row of that name."""
    for row in _TABLE:
        if row.name == name:
            return row
    raise UserError(f"unknown operation {name!r}: the operations are {', '.join(OPERATIONS)}.")


def stride(level: int) -> int:
    """Returns the stride of a level: 4 * 2**level."""
    return 4 * 2**level


# What an architecture or a search space may have at most: far more than any network, and little
# enough for a file that names it to cost no more than a moment.
MAX_LAYERS = 256
MAX_BLOCKS = 64


def checked_count(name: str, value: Any) -> int:
    """Returns a setting that must be a whole number of 1 or more, as an int."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise UserError(f"{name} must be an integer of 1 or more. Received: {value!r}.")
    return int(value)


def checked_size(size: Any) -> tuple[int, int]:
    """Returns the size of an image as (height, width), two ints of `MINIMUM_SIZE` or more."""
    sides = [int(side) for side in size if isinstance(side, numbers.Integral)]
    if len(size) != 2 or len(sides) != 2 or min(sides) < MINIMUM_SIZE:
        raise UserError(
            f"input_size must be (height, width), each {MINIMUM_SIZE} pixels or more. "
            f"Received: {size!r}."
        )
    return sides[0], sides[1]


def block_sources(block: int) -> tuple[str, ...]:
    """Returns what a block may read, in the order of the table: cell inputs, earlier blocks."""
    return CELL_INPUTS + tuple(f"block_{earlier}" for earlier in range(block))


class ConvUnit(NamedTuple):
    """One convolution with the batch normalisation behind it.

    Args:
        kernel_size: Width of the square window.
        stride: 1 or 2.
        rate: Atrous rate.
        separable: A depthwise window, then a pointwise 1x1, in place of the full convolution.
    """

    kernel_size: int = 1
    stride: int = 1
    rate: int = 1
    separable: bool = False


def operation_units(row: Operation, stride: int, atrous: str) -> list[ConvUnit]:
    """Returns the convolutions of a decoded operation in their order.

    nn/operations.py builds from them, and nn/node.py from those of stride 1. A stride is in the
    first; an atrous operation has none: its input is resized to half beforehand, and its rate is 1.

    Args:
        row: Its row of `OPERATION_TABLE`.
        stride: 2 where the path goes down and the operation reads an input of the cell, else 1.
        atrous: `"full"` or `"separable"`.
    """
    separable = row.is_separable(atrous)
    first, rate = (stride, 1) if row.rate == 1 else (1, row.rate if stride == 1 else 1)
    units = [
        ConvUnit(row.kernel_size, 1 if index else first, rate, separable)
        for index in range(row.repeats)
    ]
    return [*units, ConvUnit(stride=2)] if row.projects and stride == 2 else units


class RelaxedEdge(NamedTuple):
    """One row of alpha: block `block` reads `source` through the mix of all operations."""

    index: int  # type: ignore[assignment]
    block: int
    source: str


@functools.cache
def relaxed_edges(num_blocks: int) -> tuple[RelaxedEdge, ...]:
    """Returns the rows of alpha: block by block; inside a block `prev`, `prev_prev`, `block_0`, ...

    A cell of B blocks has 2 + 3 + ... + (B + 1) = B (B + 3) / 2 of them.
    """
    checked_count("num_blocks", num_blocks)
    pairs = [(block, source) for block in range(num_blocks) for source in block_sources(block)]
    return tuple(RelaxedEdge(index, *pair) for index, pair in enumerate(pairs))


class Transition(NamedTuple):
    """One entry of beta: into `layer` from `from_level` by `move` - 1 to `to_level`.

    Moves are 0 (finer), 1 (same level), 2 (coarser): the last axis of beta.
    """

    layer: int
    from_level: int
    move: int
    to_level: int


@functools.cache
def transitions(num_layers: int) -> tuple[Transition, ...]:
    """Returns the moves that some path from the stem (level 0) takes, layer by layer."""
    mask = move_mask(num_layers)
    return tuple(
        Transition(layer, level, move, level + move - 1)
        for layer in range(num_layers)
        for level in range(min(layer + 1, NUM_LEVELS))
        for move in range(NUM_MOVES)
        if mask[layer, level, move]
    )


def move_mask(num_layers: int) -> np.ndarray:
    """Returns bool [num_layers, 4, 3]: True where the move stays inside the trellis."""
    checked_count("num_layers", num_layers)
    to_level = np.arange(NUM_LEVELS)[:, None] + np.arange(NUM_MOVES) - 1
    return np.tile((to_level >= 0) & (to_level < NUM_LEVELS), (num_layers, 1, 1))


@functools.cache
def reachable_levels(num_layers: int) -> tuple[tuple[int, ...], ...]:
    """Returns, for each layer, the levels that some path from the stem reaches, ascending."""
    rows = transitions(num_layers)
    return tuple(
        tuple(sorted({row.to_level for row in rows if row.layer == layer}))
        for layer in range(num_layers)
    )


@functools.cache
def paths_onward(num_layers: int) -> np.ndarray:
    """Returns Python ints [L + 1, 4]: how many ways lead from a level before a layer to the end.

    [0, 0] is the number of paths: 75,025 for 12 layers.
    """
    # Of 42 layers and more they are too many for 64 bits.
    onward = np.zeros((num_layers + 1, NUM_LEVELS), object)
    onward[num_layers] = 1
    for row in reversed(transitions(num_layers)):
        onward[row.layer, row.from_level] += onward[row.layer + 1, row.to_level]
    return onward
