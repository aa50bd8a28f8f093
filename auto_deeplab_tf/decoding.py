"""From alpha and beta to an `Architecture`: argmax for the cell, Viterbi for the path (sec. 3.3).

Everything works on float64 logarithms of probabilities. A long search drives logits far apart:
probabilities then round to exactly 1 and would tie, their logarithms still tell them apart.
"""

from __future__ import annotations

import collections
import functools
import heapq
import io
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from auto_deeplab_tf import accounting
from auto_deeplab_tf.architecture import Architecture, Edge
from auto_deeplab_tf.errors import MissingFileError, UserError
from auto_deeplab_tf.files import as_path, write_atomically
from auto_deeplab_tf.search_space import (
    ATROUS_KINDS,
    BUILT_IN_OPERATIONS,
    DECODABLE_OPERATIONS,
    NUM_LEVELS,
    NUM_MOVES,
    OPERATIONS,
    Transition,
    move_mask,
    paths_onward,
    relaxed_edges,
    transitions,
)
from auto_deeplab_tf.untrusted import read_npz, shown

# Far above what the arrays of a search take: a few kB.
_MAX_LOGITS_BYTES = 2**22


class Logits(NamedTuple):
    """What a search leaves in logits.npz.

    Args:
        alpha: float64 [B (B + 3) / 2, operations], its columns in the order of `OPERATIONS`; -inf
            in the columns of operations that the search did not have.
        beta: float64 [L, 4, 3].
        atrous: `"full"` or `"separable"`; None where the file does not say.
        edge: float64 [B (B + 3) / 2], the logits of the edges into each block; None except for a
            search with partial channels.
    """

    alpha: np.ndarray
    beta: np.ndarray
    atrous: str | None
    edge: np.ndarray | None = None


def save_logits(
    path: str | os.PathLike[str],
    alpha_logits: Any,
    beta_logits: Any,
    atrous: str,
    edge_logits: Any = None,
) -> None:
    """Writes logits.npz atomically.

    Args:
        path: The file.
        alpha_logits: Array `alpha`, float [B (B + 3) / 2, operations].
        beta_logits: Array `beta`, float [L, 4, 3].
        atrous: Text `atrous`; beside it stands `operations`, the names of alpha's columns.
        edge_logits: Array `edge`, float [B (B + 3) / 2]; left out where None.
    """
    arrays: dict[str, Any] = {
        "alpha": np.asarray(alpha_logits),
        "beta": np.asarray(beta_logits),
        "atrous": np.array(atrous),
        "operations": np.array(OPERATIONS),
    }
    if edge_logits is not None:
        arrays["edge"] = np.asarray(edge_logits)
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_atomically(path, content.getvalue())


def load_logits(path: str | os.PathLike[str]) -> Logits:
    """Reads and checks what `save_logits` wrote; `alpha` and `beta` alone are enough.

    The columns of alpha are found by their names, `operations`; a file without it has the built-in
    operations in their order.

    Raises:
        MissingFileError: Where there is no such file.
        UserError: For other content, beginning with the file's name.
    """
    if not as_path(path).is_file():
        raise MissingFileError(f"{path} is not a file: expected an .npz of alpha and beta.")
    arrays = read_npz(path, _MAX_LOGITS_BYTES)
    for name in ("alpha", "beta"):
        if name not in arrays:
            raise UserError(
                f"{path} has no array {name!r}: alpha and beta are expected. "
                f"Received: {', '.join(arrays)[:300] or 'no arrays'}."
            )
    atrous = str(arrays["atrous"]) if "atrous" in arrays else None
    if atrous is not None and atrous not in ATROUS_KINDS:
        raise UserError(f"{path}: atrous must be 'full' or 'separable'. Received: {shown(atrous)}.")
    try:
        alpha = _by_operation(arrays["alpha"], arrays.get("operations", BUILT_IN_OPERATIONS))
        beta = checked_beta(arrays["beta"])
        edge = checked_edge(arrays["edge"], alpha) if "edge" in arrays else None
        return Logits(alpha, beta, atrous, edge)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _by_operation(alpha: np.ndarray, names: Any) -> np.ndarray:
    """Returns the columns of a file's alpha in the order of `OPERATIONS`; -inf where it has none.

    Args:
        alpha: [B (B + 3) / 2, names].
        names: The operation of each column.
    """
    names = [str(name) for name in np.ravel(names)]
    unknown = [name for name in names if name not in OPERATIONS]
    if unknown or len(set(names)) < len(names):
        raise UserError(
            f"the columns of alpha are {', '.join(names)[:300]}, each of which must be one of the "
            f"operations, once: {', '.join(OPERATIONS)}. A program that has added operations must "
            "register them (search_space.register_operation) before it reads them."
        )
    if alpha.ndim != 2 or alpha.shape[1] != len(names):
        raise UserError(
            f"alpha must have the shape [B (B + 3) / 2, {len(names)}], a column for each of its "
            f"operations. Received: {list(alpha.shape)}."
        )
    columns = _as_floats("alpha", alpha).T
    by_name = dict(zip(names, columns, strict=True))
    absent = np.full(len(alpha), -np.inf)
    return checked_alpha(np.stack([by_name.get(name, absent) for name in OPERATIONS], axis=1))


def checked_alpha(alpha_logits: Any) -> np.ndarray:
    """Returns alpha's logits as float64 [B (B + 3) / 2, 8], or says what is wrong with them.

    A column of -inf throughout is an operation that the search did not have.
    """
    logits = _as_floats("alpha", alpha_logits)
    if logits.ndim != 2 or logits.shape[1] != len(OPERATIONS) or not _blocks_of(len(logits)):
        raise UserError(
            f"alpha must have the shape [B (B + 3) / 2, {len(OPERATIONS)}] for some number of "
            f"blocks B: [20, {len(OPERATIONS)}] for 5. Received: {list(logits.shape)}."
        )
    _check_finite("alpha", logits, _present(logits))
    return logits


def _present(alpha: np.ndarray) -> np.ndarray:
    """bool, the shape of alpha: False in the columns of operations that the search did not have."""
    return np.broadcast_to(~(alpha == -np.inf).all(axis=0), alpha.shape)


def checked_beta(beta_logits: Any) -> np.ndarray:
    """Returns beta's logits as float64 [L, 4, 3], or says what is wrong with them.

    What stands at moves that leave the trellis is of no account and may be anything.
    """
    logits = _as_floats("beta", beta_logits)
    _check_beta_shape("beta", logits)
    _check_finite("beta", logits, move_mask(len(logits)))
    return logits


def checked_edge(edge_logits: Any, alpha_logits: Any) -> np.ndarray:
    """Returns the edges' logits as float64 [B (B + 3) / 2], or says what is wrong with them."""
    logits = _as_floats("edge", edge_logits)
    if logits.shape != (len(alpha_logits),):
        raise UserError(
            f"edge must have the shape [{len(alpha_logits)}], a number for each row of alpha. "
            f"Received: {list(logits.shape)}."
        )
    _check_finite("edge", logits, np.ones(logits.shape, bool))
    return logits


def num_blocks_of(alpha_logits: Any) -> int:
    """Returns B, the number of blocks that alpha [B (B + 3) / 2, 8] describes."""
    return _blocks_of(len(checked_alpha(alpha_logits)))


def softmax_alpha(alpha_logits: Any) -> np.ndarray:
    """Returns alpha, float64 [edges, 8]: the softmax over all operations, `none` included."""
    return np.exp(log_softmax_alpha(alpha_logits))


def log_softmax_alpha(alpha_logits: Any) -> np.ndarray:
    """Returns log(alpha), float64 [edges, 8]."""
    logits = checked_alpha(alpha_logits)
    return _log_softmax(logits, _present(logits))


def masked_softmax_beta(beta_logits: Any) -> np.ndarray:
    """Returns beta, float64 [L, 4, 3]: the softmax over the moves leaving a level (eq. 3).

    Moves that leave the trellis are masked before the softmax: they hold exactly 0.
    """
    return np.exp(log_softmax_beta(beta_logits))


def log_softmax_beta(beta_logits: Any) -> np.ndarray:
    """Returns log(beta), float64 [L, 4, 3]; -inf where the move leaves the trellis."""
    logits = checked_beta(beta_logits)
    return _log_softmax(logits, move_mask(len(logits)))


def decode_cell(alpha_logits: Any, edge_logits: Any = None) -> tuple[tuple[Edge, Edge], ...]:
    """Keeps the two strongest edges of each block, and on each its strongest operation.

    The strength of an edge is the largest probability among its operations other than `none`,
    where `none` takes its share of the softmax. Of a search with partial channels it is that times
    the weight of the edge, the softmax of `edge_logits` over the edges into its block (PC-DARTS,
    arXiv:1907.05737, sec. 3.3). Ties go to the lower index, of edges and of operations. Inside a
    block the edges come out in the order of alpha.

    Args:
        alpha_logits: float [B (B + 3) / 2, 8].
        edge_logits: float [B (B + 3) / 2], or None.
    """
    columns = [OPERATIONS.index(name) for name in DECODABLE_OPERATIONS]
    log_alpha = log_softmax_alpha(alpha_logits)[:, columns]
    best = np.argmax(log_alpha, axis=1)
    strength = np.max(log_alpha, axis=1)
    edges = relaxed_edges(_blocks_of(len(log_alpha)))
    if edge_logits is not None:
        # A softmax over one block shifts its logits by one amount: their order is what counts.
        strength = strength + checked_edge(edge_logits, log_alpha)
    cell = []
    for _, candidates in itertools.groupby(edges, key=lambda edge: edge.block):
        # sorted() is stable: of equal strengths the lower index comes first.
        kept = sorted(candidates, key=lambda edge: -strength[edge.index])[:2]
        first, second = sorted(kept, key=lambda edge: edge.index)
        cell.append(
            (
                Edge(first.source, DECODABLE_OPERATIONS[best[first.index]]),
                Edge(second.source, DECODABLE_OPERATIONS[best[second.index]]),
            )
        )
    return tuple(cell)


def viterbi(log_beta: Any) -> tuple[tuple[int, ...], float]:
    """Finds the most probable path through the trellis (paper, sec. 3.3).

    Args:
        log_beta: float [layers, 4, 3], log-probability of leaving a level by -1 (finer), 0
            or +1 (coarser); -inf where the move leaves the trellis.

    Returns:
        (levels, log_prob): one level per layer, and the sum of its log-probabilities. Of equal
        paths the one that is first in the order of its levels.

    Raises:
        ValueError: for another shape, or where no path is finite.
    """
    return next(best_paths(log_beta))


def k_best_paths(log_beta: Any, k: int) -> list[tuple[tuple[int, ...], float]]:
    """Returns the k most probable paths, best first, as `viterbi` returns the best.

    Fewer come back where the trellis holds fewer (`number_of_paths`).
    """
    if k < 1:
        raise UserError(f"k, the number of paths, must be at least 1. Received: {k}.")
    return list(itertools.islice(best_paths(log_beta), k))


def best_paths(
    log_beta: Any, fits: Callable[[tuple[int, ...]], bool] | None = None
) -> Iterator[tuple[tuple[int, ...], float]]:
    """Yields every path of probability above 0, the most probable first.

    Best-first search over beginnings of paths. With V_l(s) the best log-probability from level s
    before layer l to the end (Viterbi's recursion, backwards), a move s -> s' costs the regret
    V_l(s) - (log_beta_l(s -> s') + V_{l+1}(s')) >= 0: exactly 0 along the best path. Regrets only
    grow as a path does, so complete paths leave the queue in their exact order.

    Args:
        log_beta: As `viterbi` takes it.
        fits: Where given, only the paths that it lets through are yielded. It is called with
            beginnings of paths too, and must refuse one only where it refuses all that follow.
    """
    log_beta = _checked_log_beta(log_beta)
    num_layers = len(log_beta)
    to_go = _log_prob_to_go(log_beta)
    best = float(to_go[0, 0])
    if best == -math.inf:
        raise UserError("log_beta leaves no path: each one has a move of probability 0.")
    leaving = collections.defaultdict(list)
    for row in transitions(num_layers):
        leaving[row.layer, row.from_level].append(row)
    queue: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    while queue:
        regret, levels = heapq.heappop(queue)
        layer = len(levels)
        if layer == num_layers:
            yield levels, best - regret
            continue
        for row in leaving[layer, levels[-1] if levels else 0]:
            onward = log_beta[row[:3]] + to_go[layer + 1, row.to_level]
            longer = (*levels, row.to_level)
            if onward > -math.inf and (fits is None or fits(longer)):
                step = to_go[layer, row.from_level] - onward
                heapq.heappush(queue, (regret + float(step), longer))


class PathCosts:
    """What every path costs, worked out from the costs of a few short ones.

    A cell costs what its level and those of the two tensors it reads make it cost; the head costs
    what the last level and the low-level feature (a cell's output at level 0, or the stem's) do.
    One more layer therefore adds an amount that depends on three levels only: which tensor is the
    low-level feature is settled by the first level, the same before and after. So some 30 amounts
    suffice, however many paths there are.

    Args:
        num_layers: Length of the paths.
        cost: Returns the costs, one number per resource, of a path of any length.
    """

    def __init__(self, num_layers: int, cost: Callable[[tuple[int, ...]], tuple[int, ...]]) -> None:
        self._num_layers = num_layers
        self._cost = functools.cache(lambda levels: np.array(cost(levels), np.int64))
        pairs = [(last, after) for last in range(NUM_LEVELS) for after in _next_levels(last)]
        self._step: dict[tuple[int, ...], np.ndarray] = {
            (*pair, after): self._measured_step(*pair, after)
            for pair in pairs
            for after in _next_levels(pair[-1])
        }
        # For each number of layers still to come, the least that they add.
        none = np.zeros((), np.int64)
        self._onward: list[dict[tuple[int, ...], np.ndarray]] = [dict.fromkeys(pairs, none)]
        for _ in range(num_layers - 2):
            self._onward.append({pair: self._least_onward(*pair) for pair in pairs})

    def of(self, levels: tuple[int, ...]) -> np.ndarray:
        """Returns the costs, int64 [resources], of a path or of the beginning of one."""
        total = self._cost(levels[:2])
        for layer in range(2, len(levels)):
            total = total + self._step[levels[layer - 2 : layer + 1]]
        return total

    def least(self, beginning: tuple[int, ...] = ()) -> np.ndarray:
        """Returns the least cost of each resource apart among the paths with this beginning."""
        to_come = self._num_layers - len(beginning)
        if to_come == 0:
            return self.of(beginning)
        if len(beginning) >= 2:
            return self.of(beginning) + self._onward[to_come][beginning[-2:]]
        level = beginning[-1] if beginning else 0
        return np.min([self.least((*beginning, after)) for after in _next_levels(level)], axis=0)

    def can_keep(self, limits: Sequence[float], beginning: tuple[int, ...]) -> bool:
        """Tells whether a path with this beginning may keep the limits; of a whole path, whether.

        Args:
            limits: The most of each resource; inf: no limit.
            beginning: The first levels of the path.
        """
        return min(limits) == math.inf or bool(np.all(self.least(beginning) <= limits))

    def _measured_step(self, before: int, last: int, after: int) -> np.ndarray:
        """What one more layer adds, measured on the shortest path that ends in these levels."""
        shortest = (*range(before + 1), last)
        return self._cost((*shortest, after)) - self._cost(shortest)

    def _least_onward(self, before: int, last: int) -> np.ndarray:
        shorter = self._onward[-1]
        options = [
            self._step[before, last, after] + shorter[last, after] for after in _next_levels(last)
        ]
        return np.min(options, axis=0)


def path_costs(
    num_layers: int, cell: Any, atrous: str, resources: Sequence[str], **network: Any
) -> PathCosts:
    """Returns what every path costs with a cell.

    Args:
        num_layers: Length of the paths.
        cell: Of the architectures.
        atrous: Convolution of their atrous operations.
        resources: Fields of `accounting.Count`, in the order of the costs.
        **network: Arguments of `accounting.count`.
    """

    def cost(levels: tuple[int, ...]) -> tuple[int, ...]:
        counted = accounting.count(Architecture(levels, cell, atrous), **network)
        return tuple(getattr(counted, name) for name in resources)

    return PathCosts(num_layers, cost)


def decode(
    alpha_logits: Any,
    beta_logits: Any,
    atrous: str,
    provenance: Mapping[str, Any] | None = None,
    edge_logits: Any = None,
) -> Architecture:
    """Returns the architecture that alpha and beta favour.

    Args:
        alpha_logits: float [B (B + 3) / 2, 8].
        beta_logits: float [L, 4, 3]; beta[l, s, m] leaves level s by m - 1 on the way into layer l.
        atrous: What the search used for its atrous operation, `"full"` or `"separable"`.
        provenance: Where the logits come from.
        edge_logits: Of a search with partial channels, see `decode_cell`.
    """
    levels, _ = viterbi(log_softmax_beta(beta_logits))
    return Architecture(
        levels=levels,
        cell=decode_cell(alpha_logits, edge_logits),
        atrous=atrous,
        provenance=provenance or {},
    )


def one_hot(architecture: Architecture) -> tuple[np.ndarray, np.ndarray]:
    """Returns the alpha and beta that an architecture stands for, its inverse being `decode`.

    Returns:
        (alpha, beta): float32 [B (B + 3) / 2, 8], on a kept edge 1 at its operation, on the others
        1 at `none`; float32 [L, 4, 3], 1 at the moves of the path, 0 elsewhere, also at levels that
        the path never leaves.
    """
    cell, levels = architecture.cell, architecture.levels
    kept = {(block, edge.source): edge.op for block, pair in enumerate(cell) for edge in pair}
    edges = relaxed_edges(len(cell))
    alpha = np.zeros((len(edges), len(OPERATIONS)), np.float32)
    for edge in edges:
        name = kept.get((edge.block, edge.source), "none")
        alpha[edge.index, OPERATIONS.index(name)] = 1.0
    beta = np.zeros((len(levels), NUM_LEVELS, NUM_MOVES), np.float32)
    for layer, (before, after) in enumerate(zip((0, *levels), levels, strict=False)):
        beta[layer, before, after - before + 1] = 1.0
    return alpha, beta


def alpha_entropy(alpha_logits: Any) -> float:
    """Returns the mean over edges of the entropy of alpha, in nats: 0 to log(8)."""
    return float(np.mean(_entropy(log_softmax_alpha(alpha_logits))))


def beta_entropy(beta_logits: Any) -> float:
    """Returns the mean entropy of beta, in nats, over the (layer, level) that a path can leave."""
    log_beta = log_softmax_beta(beta_logits)
    left = np.zeros(log_beta.shape[:2], bool)
    for row in transitions(len(log_beta)):
        left[row.layer, row.from_level] = True
    return float(np.mean(_entropy(log_beta)[left]))


def unidentified_transitions(num_layers: int) -> tuple[Transition, ...]:
    """Returns the entries of beta that a search cannot learn.

    A node with ONE predecessor passes its beta on as a mere scale, and every consumer (ReLU, 1x1,
    batch normalisation) cancels it: the gradient is nearly 0, while Adam still takes full steps.
    """
    rows = transitions(num_layers)
    into = [(row.layer, row.to_level) for row in rows]
    return tuple(row for row, node in zip(rows, into, strict=True) if into.count(node) == 1)


def number_of_paths(num_layers: int) -> int:
    """Returns the number of paths from the stem: 75,025 for 12 layers."""
    return paths_onward(num_layers)[0, 0]


@functools.cache
def _next_levels(level: int) -> tuple[int, ...]:
    """The levels that a move leads to."""
    rows = transitions(NUM_LEVELS)
    return tuple(sorted({row.to_level for row in rows if row.from_level == level}))


def _as_floats(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{name} must be an array of real numbers.") from None


def _check_beta_shape(name: str, values: np.ndarray) -> None:
    if values.ndim != 3 or values.shape[1:] != (NUM_LEVELS, NUM_MOVES) or not len(values):
        raise UserError(
            f"{name} must have the shape [layers, {NUM_LEVELS}, {NUM_MOVES}]. "
            f"Received: {list(values.shape)}."
        )


def _check_finite(name: str, values: np.ndarray, where: np.ndarray) -> None:
    bad = np.argwhere(~np.isfinite(values) & where)
    if len(bad):
        place = tuple(int(index) for index in bad[0])
        raise UserError(
            f"{name} must be finite: {name}{list(place)} is {values[place]} (and {len(bad) - 1} "
            "more such values); the search that wrote it has diverged."
        )


def _checked_log_beta(log_beta: Any) -> np.ndarray:
    log_beta = _as_floats("log_beta", log_beta)
    _check_beta_shape("log_beta", log_beta)
    if np.isnan(log_beta).any() or np.isposinf(log_beta).any():
        raise UserError("log_beta must hold logarithms of probabilities: it has NaN or +inf.")
    return log_beta


def _blocks_of(num_edges: int) -> int:
    """Solves B (B + 3) / 2 = num_edges; 0 where no whole number does."""
    num_blocks = (math.isqrt(9 + 8 * num_edges) - 3) // 2
    return num_blocks if num_blocks * (num_blocks + 3) == 2 * num_edges else 0


def _log_softmax(logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The logarithm of the softmax over the unmasked entries of the last axis; -inf elsewhere.

    log p_i = -log(1 + sum_{j != i} exp(x_j - x_i)) keeps the difference between 1 - 1e-17 and
    1 - 1e-20, and the terms are added in ascending order: the result does not depend on theirs.
    """
    size = logits.shape[-1]
    safe = np.where(mask, logits, 0.0)
    others = mask[..., None, :] & ~np.eye(size, dtype=bool)
    gaps = np.where(others, safe[..., None, :] - safe[..., :, None], -np.inf)
    top = np.maximum(np.max(gaps, axis=-1), 0.0)
    total = np.sum(np.exp(np.sort(gaps - top[..., None], axis=-1)), axis=-1)
    log_sum = np.where(top == 0.0, np.log1p(total), top + np.log(np.exp(-top) + total))
    return np.where(mask, -log_sum, -np.inf)


def _entropy(log_probs: np.ndarray) -> np.ndarray:
    probs = np.exp(log_probs)
    return -np.sum(probs * np.where(probs > 0, log_probs, 0.0), axis=-1)


def _log_prob_to_go(log_beta: np.ndarray) -> np.ndarray:
    """Returns V, float [L + 1, 4]: the best log-probability from a level before a layer on."""
    num_layers = len(log_beta)
    to_go = np.full((num_layers + 1, NUM_LEVELS), -np.inf)
    to_go[num_layers] = 0.0
    for row in reversed(transitions(num_layers)):
        onward = log_beta[row[:3]] + to_go[row.layer + 1, row.to_level]
        to_go[row.layer, row.from_level] = max(to_go[row.layer, row.from_level], onward)
    return to_go
