"""The part of a training set that is held back: whole groups near the share, else single images."""

import numpy as np
import pytest

from auto_deeplab_tf.data import hold_back
from auto_deeplab_tf.errors import UserError

IDS = [f"image_{index:02d}" for index in range(40)]


def groups(**sizes):
    return [name for name, size in sizes.items() for _ in range(size)]


@pytest.mark.parametrize(
    ("sizes", "share", "held"),
    [
        ({"a": 20, "b": 12, "c": 8}, 0.2, "c"),
        ({"a": 20, "b": 12, "c": 8}, 0.5, "a"),
        ({"a": 25, "b": 5, "c": 5, "d": 5}, 0.25, "bc"),
        # Half as much more than the share is near, 13 of 8 is not.
        ({"a": 28, "b": 12}, 0.2, "b"),
    ],
)
def test_whole_groups_are_held_back_where_they_come_near_the_share(sizes, share, held):
    of = np.array(groups(**sizes))
    kept, back = hold_back.parts(IDS, of, share)
    assert set(of[back]) == set(held) and not set(of[kept]) & set(held)
    assert sorted([*kept, *back]) == list(range(40))


@pytest.mark.parametrize("sizes", [{"a": 40}, {"a": 27, "b": 13}])
def test_images_are_held_back_where_groups_miss_the_share(sizes):
    kept, back = hold_back.parts(IDS, groups(**sizes), 0.2, is_video=True)
    assert list(back) == list(range(32, 40)), "the end of the last drive"
    assert list(kept) == list(range(32))
    kept, back = hold_back.parts(IDS, groups(**sizes), 0.2)
    assert len(back) == 8 and sorted([*kept, *back]) == list(range(40))
    # By the id alone: the same images in another order are held back too.
    order = np.random.default_rng(0).permutation(40)
    again = hold_back.parts([IDS[place] for place in order], groups(**sizes), 0.2)[1]
    assert {IDS[order[place]] for place in again} == {IDS[place] for place in back}
    assert list(back) not in (list(range(8)), list(range(32, 40)))


def test_groups_are_held_back_by_name():
    of = groups(a=20, b=12, c=8)
    assert list(hold_back.parts(IDS, of, 0.0, ("b", "c"))[0]) == list(range(20))
    with pytest.raises(UserError, match="hold_back_groups=b,x: .* has no x; it has a, b, c"):
        hold_back.parts(IDS, of, 0.0, ("b", "x"))
    with pytest.raises(UserError, match="whole training set"):
        hold_back.parts(IDS, of, 0.0, ("a", "b", "c"))


@pytest.mark.parametrize(("number", "share"), [(1, 0.5), (9, 0.1)])
def test_a_set_that_is_too_small_is_refused(number, share):
    with pytest.raises(UserError, match=f"hold_back={share:g} of {number} .* too small"):
        hold_back.parts(IDS[:number], ["a"] * number, share)
