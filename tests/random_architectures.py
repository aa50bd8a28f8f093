"""Random architectures of random sizes and of both kinds of atrous operation, for tests."""

import numpy as np

from auto_deeplab_tf import sampling


def random_architecture(seed, max_layers=6, max_blocks=3):
    """Draws one: L in 1..max_layers, B in 1..max_blocks, and what `sampling` draws."""
    rng = np.random.default_rng(seed)
    num_layers, num_blocks = rng.integers(1, (max_layers + 1, max_blocks + 1))
    return sampling.random_architecture(
        seed, num_layers, num_blocks, atrous=str(rng.choice(["full", "separable"]))
    )
