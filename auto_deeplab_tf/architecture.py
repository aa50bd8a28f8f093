"""`Architecture`: the validated hand-over between all stages. Pure Python and NumPy."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from auto_deeplab_tf.errors import MissingFileError, UserError
from auto_deeplab_tf.files import as_path, write_atomically
from auto_deeplab_tf.search_space import (
    ATROUS_KINDS,
    CELL_INPUTS,
    DECODABLE_OPERATIONS,
    MAX_BLOCKS,
    MAX_LAYERS,
    NUM_LEVELS,
    block_sources,
)
from auto_deeplab_tf.untrusted import parse_json, read_json, shown

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Edge:
    """A decoded edge: a block reads `source` through the operation `op`.

    Args:
        source: `"prev"` (layer l - 1), `"prev_prev"` (layer l - 2) or an earlier `"block_<j>"`.
        op: A name in `DECODABLE_OPERATIONS`.
    """

    source: str
    op: str

    @property
    def source_index(self) -> int:
        """0 for `prev`, 1 for `prev_prev`, 2 + j for `block_j`."""
        if self.source in CELL_INPUTS:
            return CELL_INPUTS.index(self.source)
        return len(CELL_INPUTS) + int(self.source.removeprefix("block_"))


@dataclasses.dataclass(frozen=True, eq=False)
class Architecture:
    """A discrete network: the path through the trellis and the cell that every layer repeats.

    Two architectures are equal where path, cell (the order inside a block is free) and kind of
    atrous convolution are; `provenance` says where one came from and takes no part in this.

    Args:
        levels: The level 0..3 (stride 4..32) of each layer; the stem before it is level 0.
        cell: Two edges for each block.
        atrous: `"full"`, as published, or `"separable"` (depthwise, then pointwise).
        provenance: Any mapping that JSON can hold.

    Raises:
        ValueError: naming field and rule, where a rule is broken.
    """

    levels: tuple[int, ...]
    cell: tuple[tuple[Edge, Edge], ...]
    atrous: str
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", _checked_levels(self.levels))
        object.__setattr__(self, "cell", _checked_cell(self.cell))
        if not isinstance(self.atrous, str) or self.atrous not in ATROUS_KINDS:
            raise UserError(
                f"atrous must be 'full' or 'separable'. Received: {shown(self.atrous)}."
            )
        object.__setattr__(self, "provenance", _checked_provenance(self.provenance))

    @property
    def num_layers(self) -> int:
        """The number of cells in a row, L in the paper."""
        return len(self.levels)

    @property
    def num_blocks(self) -> int:
        """The number of blocks of the cell, B in the paper."""
        return len(self.cell)

    @property
    def moves(self) -> tuple[tuple[int, int], ...]:
        """(level before it, its level) of each layer."""
        return tuple(zip((0, *self.levels[:-1]), self.levels, strict=True))

    @property
    def low_level_index(self) -> int:
        """Index of the cell whose output is the decoder's low-level feature; -1 for the stem.

        The last cell before the path first leaves level 0: -1, the stem's stride-4 tensor, where
        the first cell already left it; the last cell where none leaves.
        """
        left = [index for index, level in enumerate(self.levels) if level != 0]
        return (left[0] if left else self.num_layers) - 1

    @property
    def fingerprint(self) -> str:
        """SHA-256, hexadecimal, of levels, cell (order inside a block normalised) and atrous."""
        text = json.dumps(self._canonical(), separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def _canonical(self) -> tuple:
        cell = tuple(
            tuple((edge.source, edge.op) for edge in sorted(block, key=lambda e: e.source_index))
            for block in self.cell
        )
        return (self.levels, cell, self.atrous)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Architecture):
            return NotImplemented
        return self._canonical() == other._canonical()

    def __hash__(self) -> int:
        return hash(self._canonical())

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of the JSON file."""
        return {
            "schema_version": SCHEMA_VERSION,
            "levels": list(self.levels),
            "cell": [[dataclasses.asdict(edge) for edge in block] for block in self.cell],
            "atrous": self.atrous,
            "provenance": json.loads(json.dumps(self.provenance)),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Architecture:
        """Builds one from the content of a JSON file; `provenance` alone may be missing."""
        required = ("schema_version", "levels", "cell", "atrous")
        _check_keys("the architecture", content, required, optional=("provenance",))
        version = content["schema_version"]
        if type(version) is not int or version != SCHEMA_VERSION:
            raise UserError(
                f"schema_version must be {SCHEMA_VERSION}, the version this release reads. "
                f"Received: {shown(version)}."
            )
        return cls(
            levels=content["levels"],
            cell=_edges_from(content["cell"]),
            atrous=content["atrous"],
            provenance=content.get("provenance", {}),
        )

    def to_json(self) -> str:
        """Returns the file's text: one line for the path, one line for each block."""
        content = self.to_dict()
        blocks = ",\n".join(f"    {json.dumps(block)}" for block in content.pop("cell"))
        provenance = json.dumps(content.pop("provenance"), indent=2).replace("\n", "\n  ")
        return (
            "{\n"
            f'  "schema_version": {content["schema_version"]},\n'
            f'  "levels": {json.dumps(content["levels"])},\n'
            f'  "cell": [\n{blocks}\n  ],\n'
            f'  "atrous": {json.dumps(content["atrous"])},\n'
            f'  "provenance": {provenance}\n'
            "}\n"
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Architecture:
        """Builds one from the file's text, in UTF-8.

        Raises:
            ValueError: where the text is not JSON, a key comes twice, or a rule is broken.
        """
        return cls.from_dict(parse_json(text))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON file, atomically."""
        write_atomically(path, self.to_json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Architecture:
        """Reads a JSON file; errors begin with its name."""
        file = as_path(path)
        if not file.is_file():
            raise MissingFileError(
                f"{path} is not a file: give an architecture.json, as `decode` writes it."
            )
        try:
            return cls.from_dict(read_json(path))
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None

    @classmethod
    def preset(cls, name: str) -> Architecture:
        """Returns a published architecture by name, one of `PRESETS`."""
        try:
            return dataclasses.replace(PRESETS[name])
        except KeyError:
            raise UserError(
                f"unknown architecture {name!r}: the presets are {', '.join(PRESETS)}."
            ) from None

    @classmethod
    def from_argument(cls, argument: str) -> Architecture:
        """Reads what `--architecture` takes: a preset's name, or else a file."""
        if argument in PRESETS:
            return cls.preset(argument)
        if not as_path(argument).exists():
            raise MissingFileError(
                f"architecture={argument} is neither a file nor a preset: give an "
                f"architecture.json, as `decode` writes it, or one of {', '.join(PRESETS)}."
            )
        return cls.load(argument)


def _check_keys(
    where: str, content: Any, required: Sequence[str], optional: Sequence[str] = ()
) -> None:
    if not isinstance(content, Mapping):
        raise UserError(
            f"{where} must be an object with the keys {', '.join(required)}. "
            f"Received: {shown(content)}."
        )
    missing = [key for key in required if key not in content]
    if missing:
        raise UserError(f"{where} lacks the key {missing[0]!r}.")
    unknown = [key for key in content if key not in (*required, *optional)]
    if unknown:
        raise UserError(
            f"{where} has the unknown key {shown(unknown[0])}: the keys are "
            f"{', '.join((*required, *optional))}."
        )


def _is_list(value: Any) -> bool:
    return isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes))


def _checked_levels(levels: Any) -> tuple[int, ...]:
    if not _is_list(levels) or not len(levels):
        raise UserError(
            f"levels must be a list with one level (0..3) for each layer. "
            f"Received: {shown(levels)}."
        )
    if len(levels) > MAX_LAYERS:
        raise UserError(f"levels must have at most {MAX_LAYERS} layers. Received: {len(levels)}.")
    checked: list[int] = []
    for index, value in enumerate(levels):
        field = f"levels[{index}]"
        try:
            level = operator.index(value)
        except TypeError:
            level = -1
        if isinstance(value, (bool, np.bool_)) or not 0 <= level < NUM_LEVELS:
            raise UserError(
                f"{field} must be an integer 0, 1, 2 or 3 (stride 4, 8, 16, 32). "
                f"Received: {shown(value)}."
            )
        before = checked[-1] if checked else 0
        if abs(level - before) > 1:
            rule = "a layer keeps the level or moves by one"
            if not checked:
                rule = "the stem ends at level 0, and " + rule
            raise UserError(f"{field} = {level} cannot follow level {before} ({rule}).")
        checked.append(level)
    return tuple(checked)


def _edges_from(cell: Any) -> Any:
    """Turns the JSON form of a cell into edges; what is not a list is left to `_checked_cell`."""
    if not _is_list(cell):
        return cell
    blocks = []
    for index, block in enumerate(cell):
        if not _is_list(block):
            blocks.append(block)
            continue
        edges = []
        for side, edge in enumerate(block):
            _check_keys(f"cell[{index}][{side}]", edge, ("source", "op"))
            edges.append(Edge(edge["source"], edge["op"]))
        blocks.append(edges)
    return blocks


def _checked_cell(cell: Any) -> tuple[tuple[Edge, Edge], ...]:
    if not _is_list(cell) or not len(cell):
        raise UserError(
            f"cell must be a list of blocks, each of two edges. Received: {shown(cell)}."
        )
    if len(cell) > MAX_BLOCKS:
        raise UserError(f"cell must have at most {MAX_BLOCKS} blocks. Received: {len(cell)}.")
    for index, block in enumerate(cell):
        if not _is_list(block) or len(block) != 2:
            raise UserError(f"cell[{index}] must hold two edges. Received: {shown(block)}.")
        for side, edge in enumerate(block):
            _check_edge(f"cell[{index}][{side}]", index, edge)
        if block[0].source == block[1].source:
            raise UserError(
                f"cell[{index}] reads {block[0].source!r} twice: the two sources of a block differ."
            )
    return tuple((block[0], block[1]) for block in cell)


def _check_edge(field: str, block: int, edge: Any) -> None:
    if not isinstance(edge, Edge):
        raise UserError(f"{field} must be an Edge. Received: {shown(edge)}.")
    sources = block_sources(block)
    if not isinstance(edge.source, str) or edge.source not in sources:
        raise UserError(
            f"{field}.source = {shown(edge.source)} cannot be read by block {block} (its sources "
            f"are {', '.join(sources)}: the cell's inputs and earlier blocks)."
        )
    if edge.op == "none":
        raise UserError(
            f"{field}.op = 'none' is not allowed: a decoded edge carries one of "
            f"{', '.join(DECODABLE_OPERATIONS)}."
        )
    if not isinstance(edge.op, str) or edge.op not in DECODABLE_OPERATIONS:
        raise UserError(
            f"{field}.op = {shown(edge.op)} is unknown: the operations are "
            f"{', '.join(DECODABLE_OPERATIONS)}."
        )


def _checked_provenance(provenance: Any) -> dict[str, Any]:
    """Returns a copy that no caller can reach, as JSON would give it back."""
    if not isinstance(provenance, Mapping):
        raise UserError(f"provenance must be an object. Received: {shown(provenance)}.")
    if not all(isinstance(key, str) for key in provenance):
        raise UserError(f"provenance must have strings as keys. Received: {shown(provenance)}.")
    try:
        return json.loads(json.dumps(dict(provenance), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"provenance must hold what JSON can hold: {error}.") from None


# Auto-DeepLab of the paper (fig. 3), its cell as in the authors' inference code.
PRESETS: Mapping[str, Architecture] = {
    "auto_deeplab": Architecture(
        levels=(0, 0, 0, 1, 2, 1, 2, 2, 3, 3, 2, 1),
        cell=(
            (Edge("prev_prev", "atrous_5x5"), Edge("prev", "sep_3x3")),
            (Edge("prev_prev", "sep_3x3"), Edge("prev", "atrous_3x3")),
            (Edge("block_1", "sep_3x3"), Edge("prev_prev", "sep_3x3")),
            (Edge("block_2", "sep_5x5"), Edge("block_0", "sep_5x5")),
            (Edge("block_1", "sep_5x5"), Edge("block_3", "atrous_5x5")),
        ),
        atrous="full",
        provenance={"preset": "auto_deeplab", "paper": "arXiv 1901.02985"},
    )
}
