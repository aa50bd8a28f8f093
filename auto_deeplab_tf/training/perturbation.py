"""Selection of a cell by perturbation: what is missed most is kept (Wang et al., ICLR 2021)."""

import itertools
from collections.abc import Callable

import numpy as np

from auto_deeplab_tf import decoding
from auto_deeplab_tf.architecture import Edge
from auto_deeplab_tf.search_space import DECODABLE_OPERATIONS, OPERATIONS, relaxed_edges

_NONE = OPERATIONS.index("none")


def select_cell(
    loss: Callable[[np.ndarray], float], alpha: np.ndarray, seed: int = 0
) -> tuple[tuple[Edge, Edge], ...]:
    """Selects an operation for each edge, then two edges for each block.

    Edge by edge, in a random order, each operation is left out once; the one whose absence leaves
    the highest loss is kept, and the edge is one-hot from there on. Then, block by block, each edge
    is left out once; the two whose absence leaves the highest loss are kept. Of equal losses the
    lower index is kept.

    Args:
        loss: alpha float32 [B (B + 3) / 2, num_ops] -> loss of the supernet.
        alpha: float32 [B (B + 3) / 2, num_ops], the softmax of a search.
        seed: Of the order of the edges.

    Returns:
        The cell, inside a block in the order of alpha.

    Reference: Wang et al., Rethinking Architecture Selection in Differentiable NAS, ICLR 2021,
    arXiv:2108.04392, without the training between two edges.
    """
    alpha = np.array(alpha, np.float32)
    edges = relaxed_edges(decoding.num_blocks_of(alpha))
    chosen = [""] * len(edges)
    for index in np.random.default_rng(seed).permutation(len(edges)):
        losses = []
        for name in DECODABLE_OPERATIONS:
            without = alpha.copy()
            without[index, OPERATIONS.index(name)] = 0.0
            losses.append(loss(without))
        chosen[index] = DECODABLE_OPERATIONS[int(np.argmax(losses))]
        alpha[index] = np.eye(len(OPERATIONS))[OPERATIONS.index(chosen[index])]
    cell = []
    for _, group in itertools.groupby(edges, key=lambda edge: edge.block):
        candidates = list(group)
        missed = {}
        for edge in candidates:
            without = alpha.copy()
            without[edge.index] = np.eye(len(OPERATIONS))[_NONE]
            # With two candidates there is nothing to choose.
            missed[edge.index] = loss(without) if len(candidates) > 2 else 0.0
        kept = sorted(candidates, key=lambda edge: -missed[edge.index])[:2]
        for edge in candidates:
            if edge not in kept:
                alpha[edge.index] = np.eye(len(OPERATIONS))[_NONE]
        first, second = sorted(kept, key=lambda edge: edge.index)
        cell.append(
            (Edge(first.source, chosen[first.index]), Edge(second.source, chosen[second.index]))
        )
    return tuple(cell)
