"""Selection by perturbation: what the loss misses is kept, whatever alpha says."""

import numpy as np

from auto_deeplab_tf.search_space import DECODABLE_OPERATIONS, OPERATIONS, relaxed_edges
from auto_deeplab_tf.training.perturbation import select_cell

EDGES = relaxed_edges(3)


def uniform():
    return np.full((len(EDGES), len(OPERATIONS)), 1 / len(OPERATIONS), "float32")


def test_the_operation_and_the_edges_that_are_missed_most_are_kept():
    rng = np.random.default_rng(0)
    worth = rng.uniform(0.1, 1.0, (len(EDGES), len(OPERATIONS)))
    worth[:, OPERATIONS.index("none")] = 0.0
    calls = []

    def loss(alpha):
        calls.append(alpha)
        # An operation helps as soon as it is there.
        return -float(np.sum(worth * (alpha > 0)))

    alpha = uniform()
    # Alpha prefers the least useful operation by far: it does not decide.
    alpha[np.arange(len(EDGES)), worth[:, :-1].argmin(axis=1)] = 0.9
    before = alpha.copy()
    cell = select_cell(loss, alpha)
    np.testing.assert_array_equal(alpha, before)
    best = worth.argmax(axis=1)
    for block, pair in enumerate(cell):
        of_block = [edge for edge in EDGES if edge.block == block]
        of_block = sorted(of_block, key=lambda edge: -worth[edge.index, best[edge.index]])[:2]
        of_block = sorted(of_block, key=lambda edge: edge.index)
        assert [(edge.source, edge.op) for edge in pair] == [
            (edge.source, OPERATIONS[best[edge.index]]) for edge in of_block
        ]
    assert len(calls) == len(EDGES) * len(DECODABLE_OPERATIONS) + 3 + 4


def test_an_edge_is_one_hot_once_it_is_decided():
    seen = []

    def loss(alpha):
        seen.append(alpha)
        return float(np.sum(alpha[:, 0]))

    select_cell(loss, uniform(), seed=1)
    one_hot = [int((alpha.max(axis=1) == 1.0).sum()) for alpha in seen]
    decided = [index for index in range(len(EDGES)) for _ in DECODABLE_OPERATIONS]
    assert one_hot[: len(decided)] == decided
    # Of the three candidates of block 1 one is dropped before block 2 is looked at.
    none = OPERATIONS.index("none")
    dropped = [int((alpha[:, none] == 1.0).sum()) for alpha in seen[len(decided) :]]
    assert dropped == [1, 1, 1, 2, 2, 2, 2]
    assert order(0) == order(0) != order(1)


def order(seed):
    """The edges in the order in which they were decided."""
    rows = []

    def loss(alpha):
        rows.append((alpha == 0.0).any(axis=1) & (alpha.max(axis=1) < 1.0))
        return 0.0

    select_cell(loss, uniform(), seed)
    return [int(row.argmax()) for row in rows[:: len(DECODABLE_OPERATIONS)][: len(EDGES)]]
