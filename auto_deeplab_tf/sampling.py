"""Architectures drawn at random: uniformly, by the probabilities of a search, or near another one.

Uniform draws are the baseline that a search has to beat. Pure Python and NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from auto_deeplab_tf import decoding
from auto_deeplab_tf.architecture import Architecture, Edge
from auto_deeplab_tf.search_space import (
    DECODABLE_OPERATIONS,
    NUM_LEVELS,
    NUM_MOVES,
    block_sources,
    paths_onward,
)

# (place, what stands there then): a layer and its level, or block and side of an edge and the edge.
_Change = tuple[tuple[int, ...], int | Edge]


def random_architecture(
    seed: int, num_layers: int = 12, num_blocks: int = 5, atrous: str = "separable"
) -> Architecture:
    """Draws an architecture: uniform over the paths of the trellis, and over the decodable cells.

    Every path from the stem has the same probability (75,025 of them for 12 layers), not every
    move: a walk that picks its moves uniformly would prefer the borders. Each block reads two
    different sources, each through one of the decodable operations, all equally likely.

    Args:
        seed: Seed of NumPy's generator; the same seed draws the same architecture.
        num_layers: L, 1 or more.
        num_blocks: B, 1 or more.
        atrous: `"full"` or `"separable"`.

    Returns:
        The architecture; its provenance names the seed.
    """
    generator = np.random.default_rng(seed)
    onward = paths_onward(num_layers)
    levels: list[int] = []
    for layer in range(num_layers):
        level = levels[-1] if levels else 0
        weights = [
            onward[layer + 1, level + move - 1] if 0 <= level + move - 1 < NUM_LEVELS else 0
            for move in range(NUM_MOVES)
        ]
        levels.append(level + _move(generator, np.array(weights, float) / sum(weights)))
    cell = []
    for block in range(num_blocks):
        sources = generator.choice(block_sources(block), 2, replace=False)
        operations = generator.choice(list(DECODABLE_OPERATIONS), 2)
        first, second = (Edge(str(s), str(o)) for s, o in zip(sources, operations, strict=True))
        cell.append((first, second))
    provenance = {"random": {"seed": seed}}
    return Architecture(tuple(levels), tuple(cell), atrous, provenance)


def sampled_architecture(
    logits: decoding.Logits, seed: int, atrous: str = "separable"
) -> tuple[Architecture, float]:
    """Draws an architecture by the probabilities of a search.

    The path is drawn move by move, each with its beta. The cell is what decoding makes of alpha's
    logits, and those of the edges, with Gumbel noise added: an operation comes first on its edge
    with the probability that alpha gives it. While alpha is uniform, so are the cells.

    Args:
        logits: Of the search.
        seed: Seed of NumPy's generator; the same seed draws the same architecture.
        atrous: `"full"` or `"separable"`, what the search used.

    Returns:
        (architecture, log_prob): its provenance names the seed; the log-probability of its path.
    """
    generator = np.random.default_rng(seed)
    log_beta = decoding.log_softmax_beta(logits.beta)
    levels: list[int] = []
    log_prob = 0.0
    for log_moves in log_beta:
        level = levels[-1] if levels else 0
        move = _move(generator, np.exp(log_moves[level]))
        log_prob += float(log_moves[level, move + 1])
        levels.append(level + move)
    noise = generator.gumbel(size=logits.alpha.shape)
    cell = decoding.decode_cell(logits.alpha + noise, logits.edge)
    return Architecture(tuple(levels), cell, atrous, {"sampled": {"seed": seed}}), log_prob


def mutated_architecture(
    parent: Architecture, seed: int | Sequence[int], num_changes: int = 1
) -> Architecture:
    """Changes an architecture: the level of a layer, the operation of an edge, or its source.

    These three are equally likely, as long as there is one to change (a block that has two sources
    reads both), and so are all changes of each that leave a valid architecture.

    Args:
        parent: What to change.
        seed: Of NumPy's generator, a number or several; the same seed makes the same changes.
        num_changes: How many, one after the other; a later one may undo an earlier one.

    Returns:
        The architecture; its provenance names the parent's fingerprint and the seed.
    """
    generator = np.random.default_rng(seed)
    levels, cell = list(parent.levels), [list(block) for block in parent.cell]
    for _ in range(num_changes):
        kinds = [changes for changes in _changes(levels, cell) if changes]
        changes = kinds[generator.integers(len(kinds))]
        place, changed = changes[generator.integers(len(changes))]
        if isinstance(changed, Edge):
            block, side = place
            cell[block][side] = changed
        else:
            levels[place[0]] = changed
    blocks = tuple((first, second) for first, second in cell)
    provenance = {"mutated": {"parent": parent.fingerprint, "seed": seed}}
    return Architecture(tuple(levels), blocks, parent.atrous, provenance)


def _changes(levels: list[int], cell: list[list[Edge]]) -> tuple[list[_Change], ...]:
    """All single changes of levels, of operations, and of sources."""
    of_levels: list[_Change] = []
    of_operations: list[_Change] = []
    of_sources: list[_Change] = []
    for layer, level in enumerate(levels):
        around = [levels[layer - 1] if layer else 0, *levels[layer + 1 : layer + 2]]
        for other in range(NUM_LEVELS):
            if other != level and all(abs(other - near) <= 1 for near in around):
                of_levels.append(((layer,), other))
    for block, edges in enumerate(cell):
        read = {edge.source for edge in edges}
        for side, edge in enumerate(edges):
            for op in DECODABLE_OPERATIONS:
                if op != edge.op:
                    of_operations.append(((block, side), Edge(edge.source, op)))
            for source in block_sources(block):
                if source not in read:
                    of_sources.append(((block, side), Edge(source, edge.op)))
    return of_levels, of_operations, of_sources


def _move(generator: np.random.Generator, probabilities: np.ndarray) -> int:
    """Draws -1, 0 or 1 by the probabilities of the three moves."""
    return int(generator.choice(NUM_MOVES, p=probabilities / probabilities.sum())) - 1
