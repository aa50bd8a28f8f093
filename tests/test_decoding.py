"""Decoding against direct searches that share no code with it."""

import collections
import io
import itertools
import math

import numpy as np
import pytest

from auto_deeplab_tf import decoding, search_space
from auto_deeplab_tf.architecture import Architecture, Edge
from auto_deeplab_tf.search_space import OPERATIONS, transitions

DECODABLE = 7  # operations before `none`


def random_logits(seed, num_layers=12, num_blocks=5, scale=1.0):
    rng = np.random.default_rng(seed)
    alpha = scale * rng.normal(size=(num_blocks * (num_blocks + 3) // 2, 8))
    return alpha, scale * rng.normal(size=(num_layers, 4, 3))


def all_paths(num_layers):
    """Every sequence of levels from the stem, by trying all moves."""
    for moves in itertools.product((-1, 0, 1), repeat=num_layers):
        levels = tuple(np.cumsum(moves).tolist())
        if min(levels) >= 0 and max(levels) <= 3:
            yield levels


def brute_force(log_beta):
    """All paths with their log-probabilities, best first."""
    scored = []
    for levels in all_paths(len(log_beta)):
        before = 0
        total = 0.0
        for layer, level in enumerate(levels):
            total += log_beta[layer, before, level - before + 1]
            before = level
        scored.append((total, levels))
    return sorted(scored, key=lambda item: (-item[0], item[1]))


def plain_softmax(logits):
    weights = [math.exp(value) for value in logits]
    return [weight / sum(weights) for weight in weights]


# --- Probabilities ---


def test_alpha_is_the_softmax_over_all_eight():
    alpha, _ = random_logits(0, num_blocks=3, scale=2.0)
    expected = [plain_softmax(row) for row in alpha]
    np.testing.assert_allclose(decoding.softmax_alpha(alpha), expected, rtol=1e-12)
    np.testing.assert_allclose(decoding.log_softmax_alpha(alpha), np.log(expected), rtol=1e-11)


@pytest.mark.parametrize("num_layers", [1, 4, 12])
def test_masked_moves_have_probability_zero_and_the_others_sum_to_one(num_layers):
    """Whatever stands at the masked ones."""
    _, logits = random_logits(1, num_layers, scale=3.0)
    logits[:, 0, 0], logits[:, 3, 2] = np.nan, 1e30
    beta = decoding.masked_softmax_beta(logits)
    assert beta.shape == (num_layers, 4, 3)
    assert (beta[:, 0, 0] == 0).all()
    assert (beta[:, 3, 2] == 0).all()
    assert np.count_nonzero(beta) == 10 * num_layers
    np.testing.assert_allclose(beta.sum(axis=-1), 1, rtol=1e-12)
    for layer in range(num_layers):
        np.testing.assert_allclose(beta[layer, 0, 1:], plain_softmax(logits[layer, 0, 1:]))
        np.testing.assert_allclose(beta[layer, 1], plain_softmax(logits[layer, 1]))
        np.testing.assert_allclose(beta[layer, 3, :2], plain_softmax(logits[layer, 3, :2]))


def test_large_logits_neither_overflow_nor_tie():
    logits = np.zeros((5, 8))
    logits[:, 2] = [40.0, 50.0, 60.0, 1000.0, 2000.0]
    log_alpha = decoding.log_softmax_alpha(logits)
    assert np.isfinite(log_alpha).all()
    assert (np.diff(log_alpha[:4, 2]) > 0).all()  # as probabilities all four are 1.0
    np.testing.assert_allclose(log_alpha[0, 2], -7 * math.exp(-40), rtol=1e-12)
    np.testing.assert_allclose(log_alpha[4, 0], -2000)
    np.testing.assert_allclose(decoding.softmax_alpha(logits).sum(axis=1), 1)


# --- The path ---


def test_viterbi_equals_brute_force_at_the_papers_depth():
    _, logits = random_logits(40)
    log_beta = decoding.log_softmax_beta(logits)
    expected = brute_force(log_beta)
    assert len(expected) == 75_025
    assert decoding.viterbi(log_beta)[0] == expected[0][1]
    best = decoding.k_best_paths(log_beta, 500)
    assert [levels for levels, _ in best] == [levels for _, levels in expected[:500]]


@pytest.mark.parametrize("num_layers", [1, 2, 5, 7])
@pytest.mark.parametrize("seed", range(4))
def test_k_best_equals_brute_force_sorted(num_layers, seed):
    _, logits = random_logits(seed, num_layers, scale=1.0 + 2 * seed)
    log_beta = decoding.log_softmax_beta(logits)
    expected = brute_force(log_beta)
    found = decoding.k_best_paths(log_beta, 10_000)
    assert [levels for levels, _ in found] == [levels for _, levels in expected]
    np.testing.assert_allclose([p for _, p in found], [p for p, _ in expected], rtol=1e-12)
    assert sum(math.exp(p) for _, p in found) == pytest.approx(1.0)
    assert decoding.k_best_paths(log_beta, 1) == [decoding.viterbi(log_beta)] == found[:1]


def test_equal_paths_come_in_the_order_of_their_levels():
    log_beta = np.where(decoding.log_softmax_beta(np.zeros((3, 4, 3))) > -np.inf, -1.0, -np.inf)
    paths = [levels for levels, _ in decoding.k_best_paths(log_beta, 100)]
    assert paths == sorted(all_paths(3))
    assert decoding.viterbi(log_beta) == ((0, 0, 0), -3.0)


def test_a_forced_path_is_found():
    levels = (1, 2, 3, 3, 2, 1, 0, 0, 1)
    log_beta = np.full((9, 4, 3), -np.inf)
    before = 0
    for layer, level in enumerate(levels):
        log_beta[layer, before, level - before + 1] = math.log(0.5)
        before = level
    assert decoding.viterbi(log_beta)[0] == levels
    assert len(decoding.k_best_paths(log_beta, 5)) == 1
    assert decoding.viterbi(log_beta)[1] == pytest.approx(9 * math.log(0.5))


def test_finite_values_outside_the_trellis_are_not_followed():
    _, logits = random_logits(4, 4)
    log_beta = decoding.log_softmax_beta(logits)
    filled = np.where(np.isfinite(log_beta), log_beta, 100.0)
    assert decoding.viterbi(filled) == decoding.viterbi(log_beta)


@pytest.mark.parametrize(
    ("log_beta", "rule"),
    [
        (np.zeros((3, 4, 2)), r"log_beta must have the shape \[layers, 4, 3\]. .*\[3, 4, 2\]"),
        (np.zeros((0, 4, 3)), r"log_beta must have the shape"),
        (np.zeros((4, 3)), r"log_beta must have the shape"),
        (np.full((3, 4, 3), -np.inf), "log_beta leaves no path"),
        (np.full((3, 4, 3), np.nan), "log_beta must hold logarithms .* NaN or"),
        (np.full((3, 4, 3), np.inf), "log_beta must hold logarithms .* NaN or"),
        ("beta", "log_beta must be an array of real numbers"),
    ],
)
def test_viterbi_refuses(log_beta, rule):
    with pytest.raises(ValueError, match=rule):
        decoding.viterbi(log_beta)


def test_k_must_be_positive():
    with pytest.raises(ValueError, match=r"k, the number of paths, must be at least 1"):
        decoding.k_best_paths(np.zeros((2, 4, 3)), 0)


# --- The cell ---


def direct_search(alpha, num_blocks):
    """The best pair of edges and operations of each block, by trying all of them."""
    probs = [plain_softmax(row) for row in alpha]
    cell = []
    row = 0
    for block in range(num_blocks):
        sources = ["prev", "prev_prev"] + [f"block_{j}" for j in range(block)]
        candidates = [
            (probs[row + s][op], sources[s], OPERATIONS[op])
            for s in range(len(sources))
            for op in range(DECODABLE)
        ]
        pairs = [(a, b) for a, b in itertools.combinations(candidates, 2) if a[1] != b[1]]
        best = max(pairs, key=lambda pair: pair[0][0] + pair[1][0])
        cell.append({(source, op) for _, source, op in best})
        row += len(sources)
    return cell


@pytest.mark.parametrize("num_blocks", [1, 2, 5, 6])
def test_decoded_edges_are_those_with_the_largest_weights(num_blocks):
    for seed in range(10):
        alpha, _ = random_logits(100 + seed, num_blocks=num_blocks, scale=0.5 + seed)
        cell = decoding.decode_cell(alpha)
        assert [{(edge.source, edge.op) for edge in block} for block in cell] == direct_search(
            alpha, num_blocks
        )
        assert all(a.source_index < b.source_index for a, b in cell)


def test_the_order_of_the_operations_changes_no_bit_of_a_probability():
    """Each sum adds its terms in ascending order, so equal edges tie whatever their order."""
    rng = np.random.default_rng(6)
    alpha = rng.normal(size=(230, 8)) * rng.uniform(0.1, 3, (230, 1))
    order = rng.permuted(np.tile(np.arange(8), (230, 1)), axis=1)
    log_alpha = decoding.log_softmax_alpha(alpha)
    shuffled = decoding.log_softmax_alpha(np.take_along_axis(alpha, order, axis=1))
    np.testing.assert_array_equal(shuffled, np.take_along_axis(log_alpha, order, axis=1))


def test_none_is_never_decoded_but_weakens_its_edge():
    alpha = np.zeros((5, 8))
    alpha[:, 7] = 5.0  # `none` strongest everywhere
    alpha[0, 3] = alpha[1, 4] = 1.0
    alpha[2:, 0] = [1.0, 1.0, 1.0]
    cell = decoding.decode_cell(alpha)
    assert all(edge.op != "none" for block in cell for edge in block)
    assert cell[0] == (Edge("prev", "atrous_5x5"), Edge("prev_prev", "avg_pool_3x3"))
    # Block 1 reads rows 2..4, equally strong: the lower two. Where `none` takes a share of row 2,
    # it falls behind; renormalised over the other seven the three would still be equal.
    assert [edge.source for edge in cell[1]] == ["prev", "prev_prev"]
    alpha[2, 7] += 0.1
    assert [edge.source for edge in decoding.decode_cell(alpha)[1]] == ["prev_prev", "block_0"]
    alpha[2, 7] -= 0.2
    alpha[3, 7] += 0.1
    assert [edge.source for edge in decoding.decode_cell(alpha)[1]] == ["prev", "block_0"]


@pytest.mark.parametrize("num_blocks", [1, 2, 5])
def test_the_weight_of_an_edge_counts_where_a_search_had_one(num_blocks):
    """Strength: alpha's largest probability times the softmax of the block's edges."""
    changed = 0
    for seed in range(10):
        alpha, _ = random_logits(200 + seed, num_blocks=num_blocks)
        edge_logits = np.random.default_rng(seed).normal(size=len(alpha))
        cell = decoding.decode_cell(alpha, edge_logits)
        row = 0
        for block, kept in enumerate(cell):
            names = ["prev", "prev_prev"] + [f"block_{j}" for j in range(block)]
            rows = slice(row, row + len(names))
            weights = plain_softmax(edge_logits[rows])
            best = [max(plain_softmax(values)[:DECODABLE]) for values in alpha[rows]]
            strength = dict(zip(names, np.array(best) * weights, strict=True))
            expected = sorted(strength, key=strength.get)[-2:]
            assert {edge.source for edge in kept} == set(expected)
            row += len(names)
        plain = decoding.decode_cell(alpha)
        changed += cell != plain
        # Equal edges decide nothing, and every edge keeps its operation.
        assert decoding.decode_cell(alpha, np.full(len(alpha), 3.0)) == plain
    assert changed > 3 or num_blocks == 1


def test_ties_go_to_the_lower_index():
    cell = decoding.decode_cell(np.zeros((9, 8)))
    expected = (Edge("prev", "sep_3x3"), Edge("prev_prev", "sep_3x3"))
    assert cell == (expected,) * 3
    # The same seven values in another order are equally strong, whatever the rounding.
    values = np.random.default_rng(5).normal(size=8)
    values[7] = -9.0
    for seed in range(50):
        order = np.random.default_rng(seed).permutation(7)
        alpha = np.stack([values, values, np.append(values[order], -9.0)])
        alpha = np.concatenate([alpha[:2], alpha[[2, 0, 1]]])
        first, second = decoding.decode_cell(alpha)[1]
        assert (first.source, second.source) == ("prev", "prev_prev")
        assert first.op == OPERATIONS[int(np.argmax(values[order]))]


def test_saturated_edges_are_still_told_apart():
    alpha = np.zeros((5, 8))
    alpha[2:, 1] = [40.0, 50.0, 60.0]
    assert decoding.softmax_alpha(alpha)[3, 1] == decoding.softmax_alpha(alpha)[4, 1] == 1.0
    assert [edge.source for edge in decoding.decode_cell(alpha)[1]] == ["prev_prev", "block_0"]


# --- Both ---


@pytest.mark.parametrize(("num_layers", "num_blocks"), [(12, 5), (3, 2), (1, 1)])
def test_random_alpha_and_beta_decode_and_validate(num_layers, num_blocks):
    found = set()
    for seed in range(100):
        alpha, beta = random_logits(seed, num_layers, num_blocks)
        built = decoding.decode(alpha, beta, "separable", {"seed": seed})
        assert (built.num_layers, built.num_blocks) == (num_layers, num_blocks)
        assert (built.atrous, built.provenance) == ("separable", {"seed": seed})
        assert built.levels == decoding.viterbi(decoding.log_softmax_beta(beta))[0]
        assert built.cell == decoding.decode_cell(alpha)
        edge = np.random.default_rng(seed).normal(size=len(alpha))
        weighted = decoding.decode(alpha, beta, "separable", edge_logits=edge)
        assert weighted.cell == decoding.decode_cell(alpha, edge)
        assert all(edge.op != "none" for block in built.cell for edge in block)
        assert Architecture.from_json(built.to_json()) == built
        found.add(built)
    assert len({built.cell for built in found}) > 20
    assert len({built.levels for built in found}) > 1


def test_float32_and_float64_decode_alike():
    alpha, beta = (x.astype(np.float32) for x in random_logits(8))
    assert decoding.decode(alpha, beta, "full") == decoding.decode(
        alpha.astype(np.float64), beta.tolist(), "full"
    )


@pytest.mark.parametrize(
    ("alpha", "rule"),
    [
        (np.zeros((19, 8)), r"alpha must have the shape \[B \(B \+ 3\) / 2, 8\] .*\[19, 8\]"),
        (np.zeros((0, 8)), r"alpha must have the shape .*\[0, 8\]"),
        (np.zeros((20, 7)), r"alpha must have the shape .*\[20, 7\]"),
        (np.zeros((20, 8, 1)), r"alpha must have the shape"),
        (np.zeros(8), r"alpha must have the shape .*\[8\]"),
        (np.full((2, 8), "x"), "alpha must be an array of real numbers"),
        (np.full((2, 8), np.inf), r"alpha must be finite: alpha\[0, 0\] is inf \(and 15 more"),
    ],
)
def test_alpha_that_is_none_is_refused(alpha, rule):
    with pytest.raises(ValueError, match=rule):
        decoding.decode(alpha, np.zeros((2, 4, 3)), "full")


def test_beta_that_is_none_is_refused():
    alpha = np.zeros((2, 8))
    with pytest.raises(ValueError, match=r"beta must have the shape \[layers, 4, 3\]"):
        decoding.decode(alpha, np.zeros((2, 3, 4)), "full")
    beta = np.zeros((3, 4, 3))
    beta[1, 2, 0] = np.nan
    with pytest.raises(ValueError, match=r"beta must be finite: beta\[1, 2, 0\] is nan \(and 0 "):
        decoding.decode(alpha, beta, "full")
    with pytest.raises(ValueError, match="atrous must be 'full' or 'separable'"):
        decoding.decode(alpha, np.zeros((3, 4, 3)), "half")


# --- Counts and reports ---


def test_number_of_paths():
    assert decoding.number_of_paths(12) == 75_025
    for num_layers in range(1, 9):
        assert decoding.number_of_paths(num_layers) == len(list(all_paths(num_layers)))


def test_entropies():
    rng = np.random.default_rng(9)
    assert decoding.alpha_entropy(np.zeros((20, 8))) == pytest.approx(math.log(8))
    sharp = np.zeros((20, 8))
    sharp[np.arange(20), rng.integers(8, size=20)] = 900.0
    assert decoding.alpha_entropy(sharp) == pytest.approx(0.0, abs=1e-12)
    alpha, beta = random_logits(10, 6)
    rows = [plain_softmax(row) for row in alpha]
    expected = np.mean([-sum(p * math.log(p) for p in row) for row in rows])
    assert decoding.alpha_entropy(alpha) == pytest.approx(expected)

    nodes = collections.defaultdict(list)
    for layer, level, move, _ in transitions(6):
        nodes[layer, level].append(beta[layer, level, move])
    probs = [plain_softmax(values) for values in nodes.values()]
    assert len(probs) == 1 + 2 + 3 + 4 + 4 + 4
    expected = np.mean([-sum(p * math.log(p) for p in row) for row in probs])
    assert decoding.beta_entropy(beta) == pytest.approx(expected)


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4, 12])
def test_transitions_that_cannot_be_learned(num_layers):
    expected = [(0, 0, 1, 0), (0, 0, 2, 1), (1, 1, 2, 2), (2, 2, 2, 3)]
    found = decoding.unidentified_transitions(num_layers)
    assert [tuple(row) for row in found] == [row for row in expected if row[0] < num_layers]


def test_number_of_blocks_is_read_from_the_shape():
    for num_blocks in range(1, 12):
        edges = num_blocks * (num_blocks + 3) // 2
        assert decoding.num_blocks_of(np.zeros((edges, 8))) == num_blocks


# --- Budgets ---


def random_costs(seed):
    """A random model of costs with the form of a network's.

    A layer costs by its level and the two before it (the stem's at the beginning), the head by the
    last level and by the low-level feature: the last output at level 0 before the path first
    leaves it, the stem where the first cell leaves it.
    """
    rng = np.random.default_rng(seed)
    layer, stem, head = (rng.integers(1, 999, (4,) * n + (2,)) for n in (3, 3, 1))
    low_level = {"cell": rng.integers(1, 999, 2), "stem": rng.integers(1, 999, 2)}

    def cost(levels):
        path = (0, 0, *levels)
        total = head[levels[-1]] + low_level["stem" if levels[0] else "cell"]
        for index in range(len(levels)):
            total = total + (stem if index < 2 else layer)[path[index : index + 3]]
        return tuple(total.tolist())

    return cost


@pytest.mark.parametrize("num_layers", [1, 2, 3, 6])
@pytest.mark.parametrize("seed", range(4))
def test_costs_of_all_paths_follow_from_a_few(num_layers, seed):
    cost = random_costs(seed)
    costs = decoding.PathCosts(num_layers, cost)
    paths = list(all_paths(num_layers))
    for levels in paths:
        assert tuple(costs.of(levels)) == cost(levels)
    for length in range(num_layers + 1):
        for beginning in {levels[:length] for levels in paths}:
            followers = [cost(p) for p in paths if p[:length] == beginning]
            assert tuple(costs.least(beginning)) == tuple(np.min(followers, axis=0))


def test_only_a_few_short_paths_are_counted_for_a_deep_network():
    asked, cost = [], random_costs(0)
    decoding.PathCosts(40, lambda levels: asked.append(levels) or cost(levels)).least()
    assert len(asked) < 60
    assert max(map(len, asked)) <= 6


@pytest.mark.parametrize("quantiles", [(0.3, 1), (0.05, 1), (1, 0.02), (0.2, 0.2), (-1, 1)])
def test_best_paths_within_limits_equal_a_search_over_all(quantiles):
    _, logits = random_logits(60, 6, scale=1.5)
    log_beta = decoding.log_softmax_beta(logits)
    cost = random_costs(60)
    ranked = [levels for _, levels in brute_force(log_beta)]
    limits = [
        np.quantile([cost(levels)[n] for levels in ranked], q) if q >= 0 else 1
        for n, q in enumerate(quantiles)
    ]
    costs = decoding.PathCosts(6, cost)
    found = decoding.best_paths(log_beta, lambda p: bool((costs.least(p) <= limits).all()))
    expected = [
        levels
        for levels in ranked
        if all(c <= limit for c, limit in zip(cost(levels), limits, strict=True))
    ]
    assert [levels for levels, _ in found] == expected
    assert bool(expected) == (quantiles[0] > 0)


# --- Files of logits ---


def test_logits_round_trip(tmp_path):
    alpha, beta = random_logits(20, 4, 2)
    path = tmp_path / "run" / "logits.npz"
    decoding.save_logits(path, alpha.astype("float32"), beta, "full")
    read = decoding.load_logits(path)
    np.testing.assert_array_equal(read.alpha, alpha.astype("float32"))
    np.testing.assert_array_equal(read.beta, beta)
    assert read.atrous == "full"
    np.savez(path, alpha=alpha, beta=beta)
    assert decoding.load_logits(path).atrous is None
    assert read.edge is None
    edge = np.arange(len(alpha)) / 7
    decoding.save_logits(path, alpha, beta, "full", edge)
    np.testing.assert_array_equal(decoding.load_logits(path).edge, edge)


def test_the_columns_of_alpha_are_found_by_name(tmp_path, monkeypatch):
    alpha, beta = random_logits(21, 3, 2)
    path = tmp_path / "logits.npz"
    decoding.save_logits(path, alpha, beta, "full")
    assert tuple(np.load(path)["operations"]) == tuple(OPERATIONS)
    order = [3, 0, 7, 1, 2, 6, 5, 4]
    names = np.array(OPERATIONS)[order]
    np.savez(path, alpha=alpha[:, order], beta=beta, operations=names)
    np.testing.assert_array_equal(decoding.load_logits(path).alpha, alpha)
    # What a program with one more operation reads: the absent one has probability 0.
    monkeypatch.setattr(search_space, "_TABLE", list(search_space._TABLE))
    search_space.register_operation(search_space.Operation("conv_9x9", "separable"))
    np.savez(path, alpha=alpha, beta=beta)
    read = decoding.load_logits(path).alpha
    assert read.shape == (5, 9) and (decoding.softmax_alpha(read)[:, 8] == 0).all()
    assert decoding.decode_cell(read) == decoding.decode_cell(
        np.pad(alpha, [(0, 0), (0, 1)], constant_values=-99)
    )
    with_nine = np.concatenate([alpha[:, :3], alpha[:, [0]] + 9, alpha[:, 3:]], axis=1)
    names = np.insert(np.array(OPERATIONS[:8]), 3, "conv_9x9")
    np.savez(path, alpha=with_nine, beta=beta, operations=names)
    cell = decoding.decode_cell(decoding.load_logits(path).alpha)
    assert {edge.op for block in cell for edge in block} == {"conv_9x9"}
    # And without it the same file is refused by name.
    monkeypatch.undo()
    with pytest.raises(ValueError, match="conv_9x9, .* register them"):
        decoding.load_logits(path)


@pytest.mark.parametrize(
    ("arrays", "rule"),
    [
        ({"beta": np.zeros((3, 4, 3))}, "has no array 'alpha': .* Received: beta"),
        ({"alpha": np.zeros((2, 8))}, "has no array 'beta'"),
        ({}, "has no array 'alpha': .* Received: no arrays"),
        ({"a": 1, "b": 2}, "has no array 'alpha': .* Received: a, b."),
        (
            {"alpha": np.full((2, 8), "x"), "beta": np.zeros((3, 4, 3))},
            ": alpha must be an array of real numbers",
        ),
        (
            {"alpha": np.zeros((2, 8)), "beta": np.zeros((3, 4, 3)), "edge": np.array(["x"] * 2)},
            ": edge must be an array of real numbers",
        ),
        ({"alpha": np.zeros((3, 8)), "beta": np.zeros((3, 4, 3))}, "alpha must have the shape"),
        ({"alpha": np.zeros((2, 8)), "beta": np.zeros((3, 4))}, "beta must have the shape"),
        ({"alpha": np.zeros((2, 8)), "beta": np.full((3, 4, 3), np.nan)}, "beta must be finite"),
        (
            {"alpha": np.zeros((2, 8)), "beta": np.zeros((3, 4, 3)), "atrous": np.array("half")},
            "atrous must be 'full' or 'separable'. Received: 'half'",
        ),
        (
            {"alpha": np.zeros((2, 8)), "beta": np.zeros((3, 4, 3)), "edge": np.zeros(3)},
            r"edge must have the shape \[2\].* Received: \[3\]",
        ),
        (
            {"alpha": np.zeros((2, 8)), "beta": np.zeros((3, 4, 3)), "edge": np.array([0, np.inf])},
            "edge must be finite",
        ),
        (
            {"alpha": np.zeros((2, 8)), "beta": np.zeros((3, 4, 3)), "operations": ["skip"] * 8},
            "the columns of alpha are skip, skip, .* once: sep_3x3, ",
        ),
        (
            {"alpha": np.zeros((2, 8)), "beta": np.zeros((3, 4, 3)), "operations": ["skip"]},
            r"alpha must have the shape .*, 1\], a column for each",
        ),
        ({"alpha": np.array([{}]), "beta": np.zeros((3, 4, 3))}, "is not a complete .npz file"),
    ],
)
def test_files_of_other_arrays_are_refused(tmp_path, arrays, rule):
    path = tmp_path / "logits.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=rule) as caught:
        decoding.load_logits(path)
    assert str(caught.value).startswith(str(path))


def test_files_that_are_no_archive_are_refused(tmp_path):
    path = tmp_path / "logits.npz"
    with pytest.raises(FileNotFoundError, match=r"logits.npz is not a file"):
        decoding.load_logits(path)
    decoding.save_logits(path, np.zeros((2, 8)), np.zeros((3, 4, 3)), "full")
    whole = path.read_bytes()
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    for content in (b"", b"alpha", whole[:-30], whole[:200], array.getvalue()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a complete .npz file"):
            decoding.load_logits(path)
