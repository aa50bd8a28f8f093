"""The cost of the cells that alpha and beta stand for, as a differentiable expectation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from keras import ops

from auto_deeplab_tf import accounting, method
from auto_deeplab_tf.architecture import Architecture, Edge
from auto_deeplab_tf.config import SupernetConfig
from auto_deeplab_tf.nn.backend import Tensor
from auto_deeplab_tf.search_space import (
    DECODABLE_OPERATIONS,
    NUM_LEVELS,
    NUM_MOVES,
    OPERATIONS,
    relaxed_edges,
)

# At multiples of 32 all Multi-Adds of the cells grow with the pixels: ratios do not depend on it.
COUNTED_SIZE = (1024, 2048)


@dataclasses.dataclass(frozen=True)
class ExpectedCost:
    """The expected Multi-Adds or parameters of the cells of a decoded network.

        E[cost] = sum_l sum_{a,b,c} P(path at a, b, c in layers l - 2, l - 1, l)
                  * (projections(a, b, c) + sum_edges sum_ops alpha[edge, op] * cost(op, b, c))

    The probabilities are those of the path under beta; an edge costs what its operations cost,
    each by its share alpha, and `none` costs nothing. Where alpha is one-hot on the edges of a cell
    (at `none` on the others) and beta on a path, it is the count of `accounting` for the cells.
    Stem and head are no part of it.

    Attributes:
        settings: Of the search space: L, B, F, the atrous operation, the stem.
        kind: "multi_adds", for an image of `COUNTED_SIZE`, or "params".
    """

    settings: SupernetConfig
    kind: str = "multi_adds"

    def __call__(self, alpha: Tensor, beta: Tensor) -> Tensor:
        """Returns the expectation, a scalar of alpha's dtype.

        Args:
            alpha: float [B (B + 3) / 2, num_ops], the softmax.
            beta: float [L, 4, 3], likewise; 0 for the moves that leave the trellis.
        """
        dtype = alpha.dtype
        edges = relaxed_edges(self.settings.num_blocks)
        is_input = np.array([edge.source in ("prev", "prev_prev") for edge in edges], "float64")
        of_inputs = ops.sum(alpha * ops.cast(is_input[:, None], dtype), axis=0)
        of_blocks = ops.sum(alpha * ops.cast(1.0 - is_input[:, None], dtype), axis=0)
        # [b, c]: the operations of a cell at level c behind one at level b.
        operations = ops.sum(ops.cast(self._input_edges, dtype) * of_inputs, axis=-1)
        operations += ops.sum(ops.cast(self._block_edges, dtype) * of_blocks, axis=-1)
        # [m, s, t]: move m leads from level s to level t.
        leads = np.stack([np.eye(NUM_LEVELS, k=move - 1) for move in range(NUM_MOVES)])
        moves = ops.einsum("lsm,mst->lst", beta, ops.cast(leads, dtype))
        first, second, later = (ops.cast(table, dtype) for table in self._projections)
        at = ops.one_hot(0, NUM_LEVELS, dtype=dtype)
        total, before = ops.zeros((), dtype), moves[0]
        for layer in range(self.settings.num_layers):
            taken = at[:, None] * moves[layer]  # [b, c]
            total += ops.sum(taken * operations)
            if layer == 0:
                total += ops.sum(taken * first)
            elif layer == 1:
                total += ops.sum(taken * second)
            else:
                total += ops.sum(before[:, :, None] * moves[layer][None] * later)
            at, before = ops.sum(taken, axis=0), taken
        return total

    def log_ratio(self, alpha_logits: Tensor, beta_logits: Tensor) -> Tensor:
        """Returns log(E[cost] / E[cost] at uniform alpha and beta), a scalar.

        Args:
            alpha_logits: float [B (B + 3) / 2, num_ops].
            beta_logits: float [L, 4, 3].
        """
        cost = self(*method.relax(alpha_logits, beta_logits))
        return ops.log(cost / ops.cast(self.uniform, alpha_logits.dtype))

    @functools.cached_property
    def uniform(self) -> float:
        """The expectation at uniform alpha and beta; read it first outside of a traced step."""
        logits = (
            np.zeros((len(relaxed_edges(self.settings.num_blocks)), len(OPERATIONS)), "float32"),
            np.zeros((self.settings.num_layers, NUM_LEVELS, NUM_MOVES), "float32"),
        )
        relaxed = method.relax(*map(ops.convert_to_tensor, logits))
        return float(ops.convert_to_numpy(self(*relaxed)))

    @functools.cached_property
    def _projections(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the two inputs of a cell: of layer 0 and 1 [b, c], of the later ones [a, b, c]."""
        first, second = np.zeros((2, NUM_LEVELS, NUM_LEVELS))
        later = np.zeros((NUM_LEVELS,) * 3)
        for c in (0, 1):
            first[0, c] = self._counted((c,), "skip")["projections"]
            for after in _next_levels(c):
                second[c, after] = self._counted((c, after), "skip")["projections"]
        for a in range(NUM_LEVELS):
            for b in _next_levels(a):
                for c in _next_levels(b):
                    levels = (*range(a + 1), b, c)
                    later[a, b, c] = self._counted(levels, "skip")["projections"]
        return first, second, later

    @functools.cached_property
    def _input_edges(self) -> np.ndarray:
        """[b, c, op]: an operation on an input of a cell at level c behind one at level b."""
        table = np.zeros((NUM_LEVELS, NUM_LEVELS, len(OPERATIONS)))
        for b in range(NUM_LEVELS):
            for c in _next_levels(b):
                for name in DECODABLE_OPERATIONS:
                    counted = self._counted((*range(b + 1), c), name)
                    table[b, c, OPERATIONS.index(name)] = counted["block_0_prev"]
        return table

    @functools.cached_property
    def _block_edges(self) -> np.ndarray:
        """[c, op]: an operation on a block's output, in a cell at level c."""
        table = np.zeros((NUM_LEVELS, len(OPERATIONS)))
        if self.settings.num_blocks > 1:
            for c in range(NUM_LEVELS):
                for name in DECODABLE_OPERATIONS:
                    counted = self._counted((*range(c + 1), c), name)
                    table[c, OPERATIONS.index(name)] = counted["block_1_block_0"]
        return table

    def _counted(self, levels: Sequence[int], op: str) -> dict[str, int]:
        """Counts the parts of the last cell of a path: its projections, and one of each edge."""
        cell = [(Edge("prev", op), Edge("prev_prev", op))] * self.settings.num_blocks
        if len(cell) > 1:
            cell[1] = (Edge("prev", op), Edge("block_0", op))
        rows = accounting.count(
            Architecture(tuple(levels), tuple(cell), self.settings.atrous),
            num_classes=2,
            input_size=COUNTED_SIZE,
            filter_multiplier=self.settings.filter_multiplier,
            stem_channels=self.settings.stem_channels,
        ).layers
        start = f"cell_{len(levels) - 1}/"
        cost = {
            row.name.removeprefix(start): int(getattr(row, self.kind))
            for row in rows
            if row.name.startswith(start)
        }
        found = {"projections": cost["prev"] + cost.get("prev_prev", 0)}
        for edge in ("block_0_prev", "block_1_block_0"):
            found[edge] = cost.get(f"{edge}_{op}", 0)
        return found


def _next_levels(level: int) -> range:
    return range(max(level - 1, 0), min(level + 2, NUM_LEVELS))
