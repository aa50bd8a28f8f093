"""Architectures drawn at random: uniformly, the baseline that a search has to beat, or by a search.

Pure Python and NumPy.
"""

from __future__ import annotations

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


def _move(generator: np.random.Generator, probabilities: np.ndarray) -> int:
    """Draws -1, 0 or 1 by the probabilities of the three moves."""
    return int(generator.choice(NUM_MOVES, p=probabilities / probabilities.sum())) - 1
