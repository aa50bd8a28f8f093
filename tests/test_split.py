import collections
import hashlib

import numpy as np
import pytest

from auto_deeplab_tf.data import split
from auto_deeplab_tf.data.index import Texts


def _set(num_examples, num_groups, seed=0):
    rng = np.random.default_rng(seed)
    groups = [f"city{g}" for g in rng.integers(num_groups, size=num_examples)]
    return [f"{group}_{i:06d}" for i, group in enumerate(groups)], groups


@pytest.mark.parametrize("frames_per_block", [None, 1, 3, 10])
@pytest.mark.parametrize("num_examples", [*range(2, 30), 101, 367, 2975])
def test_halves_are_disjoint_and_complete(num_examples, frames_per_block):
    for num_groups in (1, 3, 18):
        ids, groups = _set(num_examples, num_groups)
        a, b = split.halves(ids, groups, frames_per_block=frames_per_block)
        assert len(a) and len(b)
        assert sorted([*a, *b]) == list(range(num_examples))
        again = split.halves(ids, groups, frames_per_block=frames_per_block)
        assert (a == again[0]).all() and (b == again[1]).all()


def test_cities_are_divided_evenly():
    ids, groups = _set(2975, 18)
    a, b = split.halves(ids, groups)
    assert (len(a), len(b)) == (1488, 1487)
    shares = [collections.Counter(groups[i] for i in half) for half in (a, b)]
    assert all(abs(shares[0][city] - shares[1][city]) <= 1 for city in set(groups))
    # Random inside a city: about half of the neighbours come apart.
    of_city = [i for i in range(2975) if groups[i] == "city0"]
    side = np.isin(of_city, a)
    assert 0.3 < (side[1:] != side[:-1]).mean() < 0.7


def _plain_halves(ids, groups, frames_per_block):
    """The rule as it is told, example by example."""

    def digest(image_id):
        return hashlib.sha256(image_id.encode()).hexdigest()

    if frames_per_block is None:
        order = sorted(range(len(ids)), key=lambda i: (groups[i], digest(ids[i])))
        return sorted(order[::2]), sorted(order[1::2])
    order = sorted(range(len(ids)), key=lambda i: (groups[i], ids[i]))
    block, sides, number, length = min(frames_per_block, len(ids) // 2), ([], []), 0, 0
    for before, i in zip([None, *order], order, strict=False):
        if before is not None and (groups[i] != groups[before] or length == block):
            number, length = number + 1, 0
        sides[number % 2].append(i)
        length += 1
    return sorted(sides[0]), sorted(sides[1])


@pytest.mark.parametrize("frames_per_block", [None, 1, 4, 10])
def test_halves_are_those_of_the_plain_rule(frames_per_block):
    for seed, (num_examples, num_groups) in enumerate([(2, 1), (7, 3), (60, 4), (500, 21)]):
        ids, groups = _set(num_examples, num_groups, seed)
        order = np.random.default_rng(seed).permutation(num_examples)
        ids, groups = [f"é{ids[i]}" for i in order], [groups[i] for i in order]
        expected = _plain_halves(ids, groups, frames_per_block)
        for texts in ((ids, groups), (Texts.of(ids), Texts(*Texts.of(groups).coded()))):
            found = split.halves(*texts, frames_per_block=frames_per_block)
            assert tuple(half.tolist() for half in found) == expected


def test_halves_of_known_ids():
    """Pinned: a search that resumes elsewhere, or with later code, must find the same halves."""
    ids, groups = _set(2975, 18)
    a, _ = split.halves(ids, groups)
    digest = hashlib.sha256("\n".join(ids[i] for i in a).encode()).hexdigest()
    assert digest == "dd2d4ed1c9c909254412a621eeb65f1e1d43d2f7096523aebb4c3c28c27c358c"


def test_halves_follow_the_ids_and_not_their_order():
    ids, groups = _set(50, 4)
    order = np.random.default_rng(1).permutation(50)
    a, _ = split.halves(ids, groups)
    shuffled, _ = split.halves([ids[i] for i in order], [groups[i] for i in order])
    assert {ids[i] for i in a} == {ids[order[i]] for i in shuffled}


def test_frames_of_a_drive_stay_together():
    # The three drives of CamVid's train split.
    drives = {"0001TP": 62, "0006R0": 101, "0016E5": 204}
    ids = [f"{drive}_{i:06d}" for drive, count in drives.items() for i in range(count)]
    groups = [i.split("_")[0] for i in ids]
    a, b = split.halves(ids, groups, frames_per_block=10)
    assert (len(a), len(b)) == (186, 181)
    side = np.isin(np.arange(len(ids)), a)
    assert (side[1:] != side[:-1]).sum() == 38
    assert side[:10].all() and not side[10:20].any()


def test_bad_input():
    with pytest.raises(ValueError, match="at least 2 training images"):
        split.halves(["a_0"], ["a"])
    with pytest.raises(ValueError, match="ids must be unique"):
        split.halves(["a_0", "a_0"], ["a", "a"])
    with pytest.raises(ValueError, match="one group per id"):
        split.halves(["a_0", "a_1"], ["a"])
    with pytest.raises(ValueError, match="frames_per_block must be 1 or more"):
        split.halves(["a_0", "a_1"], ["a", "a"], frames_per_block=0)
