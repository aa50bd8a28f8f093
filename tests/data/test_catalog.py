import numpy as np
import pytest

from auto_deeplab_tf.data import catalog


@pytest.mark.parametrize("name", catalog.names())
def test_descriptions_are_whole(name):
    info = catalog.get(name)
    assert info.name == name
    assert len(set(info.class_names)) == info.num_classes
    assert info.palette.shape == (info.num_classes, 3)
    assert len({tuple(color) for color in info.palette}) == info.num_classes
    # Every class id is reached, and nothing else but the ignored one.
    assert set(info.label_ids.values()) == {*range(info.num_classes), 255}
    if info.class_frequencies is not None:
        assert len(info.class_frequencies) == info.num_classes
        assert 0.5 < sum(info.class_frequencies) <= 1.0


def test_cityscapes_train_ids():
    info = catalog.get("cityscapes")
    assert info.num_classes == 19
    assert info.class_names[:3] == ("road", "sidewalk", "building")
    assert info.class_names[18] == "bicycle"
    labels = np.array([[0, 7, 8, 9], [11, 19, 33, 29]])
    assert info.class_ids(labels).tolist() == [[255, 0, 1, 255], [2, 6, 18, 255]]
    assert tuple(info.palette[13]) == (0, 0, 142)
    assert sum(class_id == 255 for class_id in info.label_ids.values()) == 34 - 19


def test_camvid_void_and_shares():
    info = catalog.get("camvid")
    assert info.class_ids(np.arange(12)).tolist() == [*range(11), 255]
    assert info.class_frequencies[3] == pytest.approx(0.317, abs=5e-4)


def test_scenes_merge_lights_and_signs():
    info = catalog.get("scenes")
    sign = info.class_names.index("traffic sign")
    assert info.class_ids(np.array([19, 20])).tolist() == [sign, sign]
    assert info.class_ids(np.array([1, 4, 0])).tolist() == [255, 255, 255]


def test_strange_label_ids_are_named():
    with pytest.raises(ValueError, match=r"label ids of camvid are 0\.\.11; found 12, 200"):
        catalog.get("camvid").class_ids(np.array([0, 12, 200]))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="--dataset must be one of scenes, camvid, cityscapes"):
        catalog.get("kitti")
