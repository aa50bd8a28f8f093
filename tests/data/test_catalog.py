import dataclasses

import numpy as np
import pytest

from auto_deeplab_tf.data import dataset, sets

DESCRIBED = [name for name in sets.names() if name != "folder"]


@pytest.mark.parametrize("name", DESCRIBED)
def test_descriptions_are_whole(name):
    info = sets.describe(name)
    assert info.name == name
    assert len(set(info.class_names)) == info.num_classes
    assert info.palette.shape == (info.num_classes, 3)
    assert len({tuple(color) for color in info.palette}) == info.num_classes
    # Every class id is reached, and nothing else but the ignored one.
    assert set(info.label_ids.values()) == {*range(info.num_classes), 255}


def test_cityscapes_train_ids():
    info = sets.describe("cityscapes")
    assert info.num_classes == 19
    assert info.class_names[:3] == ("road", "sidewalk", "building")
    assert info.class_names[18] == "bicycle"
    labels = np.array([[0, 7, 8, 9], [11, 19, 33, 29]])
    assert info.class_ids(labels).tolist() == [[255, 0, 1, 255], [2, 6, 18, 255]]
    assert tuple(info.palette[13]) == (0, 0, 142)
    assert sum(class_id == 255 for class_id in info.label_ids.values()) == 34 - 19


def test_void_of_camvid_and_merged_signs_of_the_scenes():
    camvid = sets.describe("camvid")
    assert camvid.class_ids(np.arange(12)).tolist() == [*range(11), 255]
    info = sets.describe("scenes")
    sign = info.class_names.index("traffic sign")
    assert info.class_ids(np.array([19, 20])).tolist() == [sign, sign]
    assert info.class_ids(np.array([1, 4, 0])).tolist() == [255, 255, 255]


def test_strange_label_ids_are_named():
    with pytest.raises(ValueError, match=r"label ids of camvid are 0\.\.11; found 12, 200"):
        sets.describe("camvid").class_ids(np.array([0, 12, 200]))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="dataset must be one of scenes, camvid, cityscapes"):
        sets.find("kitti")


def test_label_ids_and_class_ids_are_each_others_inverse():
    rng = np.random.default_rng(0)
    for name in DESCRIBED:
        info = sets.describe(name)
        class_ids = rng.integers(0, info.num_classes, (7, 9))
        stored = info.stored_labels(class_ids)
        assert stored.dtype == np.uint8 and stored.shape == (7, 9)
        np.testing.assert_array_equal(info.class_ids(stored), class_ids)
    stored = sets.describe("cityscapes").stored_labels(np.array([[0, 18, 13]]))
    assert stored.tolist() == [[7, 33, 26]]


def test_colours_as_label_ids():
    colors = ((250, 0, 1), (0, 0, 0), (250, 0, 0))
    info = dataclasses.replace(
        sets.describe("camvid"),
        class_names=("a", "b"),
        colors=colors[:2],
        label_ids={
            dataset.packed_color(color): c for color, c in zip(colors, (0, 1, 255), strict=True)
        },
        color_labels=True,
    )
    packed = np.array([[dataset.packed_color(color) for color in colors]])
    assert info.class_ids(packed).tolist() == [[0, 1, 255]]
    assert info.stored_labels(np.array([[1, 0]])).tolist() == [[[0, 0, 0], [250, 0, 1]]]
    with pytest.raises(ValueError, match=r"\(0, 0, 0\), .* found \(249, 255, 255\), \(250, 0, 2\)"):
        info.class_ids(np.array([0xF9FFFF, 0xFA0002, 0]))
    sixteen = dataclasses.replace(info, label_ids={40000: 1, 7: 0}, color_labels=False)
    assert sixteen.class_ids(np.array([7, 40000], np.uint16)).tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"are 7, 40000; found -1, 8, 65535"):
        sixteen.class_ids(np.array([7, 65535, 8, -1]))
