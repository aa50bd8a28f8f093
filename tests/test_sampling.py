"""Random architectures: uniform over paths and cells, the same for the same seed."""

import collections
import functools

import numpy as np
import pytest

from auto_deeplab_tf import decoding
from auto_deeplab_tf.sampling import random_architecture, sampled_architecture
from auto_deeplab_tf.search_space import (
    DECODABLE_OPERATIONS,
    OPERATIONS,
    block_sources,
    paths_onward,
)


def logits(alpha, beta):
    return decoding.Logits(np.asarray(alpha, float), np.asarray(beta, float), "separable", None)


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


def test_the_probabilities_of_a_search_are_those_of_its_draws():
    beta = np.zeros((2, 4, 3))
    beta[0, 0, 2], beta[1, 1, 0] = np.log(3.0), np.log(2.0)
    alpha = np.zeros((2, len(OPERATIONS)))
    column = OPERATIONS.index(DECODABLE_OPERATIONS[2])
    alpha[0, column] = np.log(6.0)
    draws = [sampled_architecture(logits(alpha, beta), seed) for seed in range(2000)]
    paths = collections.Counter(architecture.levels for architecture, _ in draws)
    # 3 of 4 go to stride 8 first, and of these 2 of 4 return; the others stay or move on.
    expected = {(0, 0): 1 / 8, (0, 1): 1 / 8, (1, 0): 3 / 8, (1, 1): 3 / 16, (1, 2): 3 / 16}
    assert paths.keys() == expected.keys()
    statistic, degrees = chi_square(
        [paths[levels] for levels in expected], 2000 * np.array(list(expected.values()))
    )
    assert statistic < degrees + 5 * np.sqrt(2 * degrees)
    for architecture, log_prob in draws[:20]:
        assert log_prob == pytest.approx(np.log(expected[architecture.levels]))
    # Of the 7 operations that decoding may keep one has 6 of 12 shares.
    first = collections.Counter(architecture.cell[0][0].op for architecture, _ in draws)
    share = first[DECODABLE_OPERATIONS[2]] / 2000
    assert share == pytest.approx(6 / 12, abs=5 * np.sqrt(0.25 / 2000))


def test_where_alpha_is_uniform_the_cells_are_drawn_uniformly():
    edges = sum(len(block_sources(block)) for block in range(3))
    uniform = logits(np.zeros((edges, len(OPERATIONS))), np.zeros((4, 4, 3)))
    blocks = [sampled_architecture(uniform, seed)[0].cell[2] for seed in range(1400)]
    pairs = collections.Counter(frozenset(edge.source for edge in pair) for pair in blocks)
    operations = collections.Counter(edge.op for pair in blocks for edge in pair)
    assert len(pairs) == 6 and set(operations) == set(DECODABLE_OPERATIONS)
    for counts, expected in ((pairs, 1400 / 6), (operations, 400)):
        statistic, degrees = chi_square(list(counts.values()), expected)
        assert statistic <= degrees + 5 * np.sqrt(2 * degrees)


def test_a_saturated_search_draws_what_it_decodes():
    rng = np.random.default_rng(0)
    alpha = 1e3 * rng.normal(size=(5, len(OPERATIONS)))
    sure = logits(alpha, 1e3 * rng.normal(size=(6, 4, 3)))
    drawn, _ = sampled_architecture(sure, 4)
    # Beta is drawn move by move: the likeliest move each time, which is not Viterbi's path.
    assert drawn.cell == decoding.decode_cell(sure.alpha)
    assert drawn == sampled_architecture(sure, 5)[0]
    assert drawn.provenance == {"sampled": {"seed": 4}}
