"""Architectures drawn at random: the baseline that a search has to beat. Pure Python and NumPy."""

from __future__ import annotations

import numpy as np

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
    level, levels = 0, []
    for layer in range(num_layers):
        weights = [
            onward[layer + 1, level + move - 1] if 0 <= level + move - 1 < NUM_LEVELS else 0
            for move in range(NUM_MOVES)
        ]
        level += int(generator.choice(NUM_MOVES, p=np.array(weights, float) / sum(weights))) - 1
        levels.append(level)
    cell = []
    for block in range(num_blocks):
        sources = generator.choice(block_sources(block), 2, replace=False)
        operations = generator.choice(list(DECODABLE_OPERATIONS), 2)
        first, second = (Edge(str(s), str(o)) for s, o in zip(sources, operations, strict=True))
        cell.append((first, second))
    provenance = {"random": {"seed": seed}}
    return Architecture(tuple(levels), tuple(cell), atrous, provenance)
