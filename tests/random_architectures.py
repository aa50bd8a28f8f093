"""Random architectures for tests: any path of the trellis, any cell that decoding can give."""

import numpy as np

from auto_deeplab_tf.architecture import Architecture, Edge
from auto_deeplab_tf.search_space import DECODABLE_OPERATIONS, block_sources


def random_architecture(seed, max_layers=6, max_blocks=3, atrous=None, first_level=None):
    """Draws one: L in 1..max_layers, B in 1..max_blocks, path, cell and kind of atrous operation.

    Every other seed gives a path that rather goes down, so that all levels occur.
    """
    rng = np.random.default_rng(seed)
    moves = (0, 1, 1) if seed % 2 else (-1, 0, 1)
    levels = [int(rng.integers(2)) if first_level is None else first_level]
    for _ in range(rng.integers(max_layers)):
        levels.append(int(np.clip(levels[-1] + rng.choice(moves), 0, 3)))
    cell = []
    for block in range(rng.integers(1, max_blocks + 1)):
        sources = rng.choice(block_sources(block), 2, replace=False)
        cell.append(tuple(Edge(str(s), str(rng.choice(DECODABLE_OPERATIONS))) for s in sources))
    return Architecture(
        levels=tuple(levels),
        cell=tuple(cell),
        atrous=atrous or str(rng.choice(["full", "separable"])),
    )
