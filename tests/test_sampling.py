"""Random architectures: uniform over paths and cells, the same for the same seed."""

import collections
import functools

import numpy as np
import pytest

from auto_deeplab_tf.sampling import random_architecture
from auto_deeplab_tf.search_space import DECODABLE_OPERATIONS, block_sources, paths_onward


def chi_square(counts, expected):
    counts = np.asarray(counts, float)
    return float(np.sum((counts - expected) ** 2 / expected)), len(counts) - 1


def test_every_path_is_equally_likely():
    # Three layers: 13 paths (1, 2, 5, 13: every second Fibonacci number while the border is far).
    draws = collections.Counter(random_architecture(s, 3, 1).levels for s in range(13 * 200))
    assert len(draws) == 13 == paths_onward(3)[0, 0]
    statistic, degrees = chi_square(list(draws.values()), 200)
    assert statistic < degrees + 5 * np.sqrt(2 * degrees)


def test_the_paper_s_trellis_has_75025_paths():
    assert paths_onward(12)[0, 0] == 75_025


def test_more_paths_than_64_bits_count():
    moves = (np.abs(np.subtract.outer(range(4), range(4))) <= 1).astype(object)
    every_path = functools.reduce(np.dot, [moves] * 60)[0].sum()
    assert paths_onward(60)[0, 0] == every_path > 2**63
    assert len(random_architecture(0, 60).levels) == 60


@pytest.mark.parametrize("block", range(3))
def test_sources_and_operations_are_equally_likely(block):
    cells = [random_architecture(s, 1, 3).cell[block] for s in range(1400)]
    pairs = collections.Counter(frozenset(edge.source for edge in edges) for edges in cells)
    number = len(block_sources(block)) * (len(block_sources(block)) - 1) // 2
    assert len(pairs) == number
    operations = collections.Counter(edge.op for edges in cells for edge in edges)
    assert set(operations) == set(DECODABLE_OPERATIONS)
    for counts, expected in ((pairs, 1400 / number), (operations, 400)):
        statistic, degrees = chi_square(list(counts.values()), expected)
        assert statistic <= degrees + 5 * np.sqrt(2 * degrees)


def test_the_seed_is_all_there_is_to_a_draw():
    first, again, other = (random_architecture(seed) for seed in (7, 7, 8))
    assert first == again and first != other
    assert first.provenance == {"random": {"seed": 7}}
    assert (first.num_layers, first.num_blocks, first.atrous) == (12, 5, "separable")
