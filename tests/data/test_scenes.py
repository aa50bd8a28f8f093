import zlib

import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab_tf import data
from auto_deeplab_tf.data import scenes, sets
from auto_deeplab_tf.data.sets import cityscapes
from auto_deeplab_tf.data.sets.scenes import image_ids

INFO = sets.describe("scenes")
NAMED = {label_id for _, label_id, _, _ in cityscapes.LABEL_TABLE}


@pytest.fixture(scope="module")
def sample():
    """Every 30th image of both splits."""
    return {
        split: [scenes.render(image_id) for image_id in image_ids(split)[::30]]
        for split in ("train", "val")
    }


def test_a_scene_follows_from_its_id():
    image, label = scenes.render("arnfeld_000003_000019")
    again, label_again = scenes.render("arnfeld_000003_000019")
    assert image.shape == (128, 256, 3) and image.dtype == np.uint8
    assert label.shape == (128, 256) and label.dtype == np.uint8
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(label, label_again)
    # If this changes, records of the scenes must not be used any more: `sets.scenes._VERSION`.
    assert zlib.crc32(label.tobytes()) == 1282269105
    assert image[::40, 0].tolist() == [[216, 214, 218], [116, 124, 99], [75, 65, 54], [72, 70, 75]]
    other, _ = scenes.render("arnfeld_000004_000019")
    assert (image != other).mean() > 0.5


def test_splits_share_no_city():
    train, val = (image_ids(split) for split in ("train", "val"))
    assert len(set(train)) == len(train) >= 300 and len(set(val)) == len(val) >= 60
    assert not {i.split("_")[0] for i in train} & {i.split("_")[0] for i in val}


def test_labels_are_cityscapes_ids_and_every_class_occurs(sample):
    for split in ("train", "val"):
        ids = set(np.unique([label for _, label in sample[split]]))
        assert ids <= NAMED
        classes = {INFO.label_ids[i] for i in ids}
        assert classes == {*range(INFO.num_classes), 255}, split


def test_scenes_are_no_toy(sample):
    everything = sample["train"] + sample["val"]
    for image, label in everything:
        # Textured everywhere: no large area of one color.
        _, counts = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
        assert counts.max() < 0.05 * label.size
        assert len(np.unique(label)) >= 8


def test_light_changes_from_scene_to_scene():
    ids = image_ids("train")[::8]
    images = np.array([scenes.render(image_id, (32, 64))[0] for image_id in ids])
    brightness = images.mean(axis=(1, 2, 3))
    assert np.ptp(brightness) > 50.0 and brightness.std() > 8.0
    # Colder and warmer light, not only more or less of it.
    assert np.std(images[..., 0].mean(axis=(1, 2)) / images[..., 2].mean(axis=(1, 2))) > 0.05


def test_no_class_is_thinner_than_two_pixels(sample):
    # Poles: of those drawn over their whole width, hardly any run is one pixel wide.
    pole = cityscapes.LABEL_IDS["pole"]
    widths = []
    for _, label in sample["train"]:
        padded = np.pad(label == pole, ((0, 0), (1, 1))).astype(np.int8)
        for row in np.diff(padded, axis=1):
            widths += list(np.flatnonzero(row == -1) - np.flatnonzero(row == 1))
    assert len(widths) > 100
    assert np.mean(np.array(widths) == 1) < 0.1


def test_label_edges_lie_on_image_edges():
    # Sky against what stands before it: the edge in the label is where the image changes.
    image, label = scenes.render("belmar_000001_000019")
    sky = label == cityscapes.LABEL_IDS["sky"]
    gray = image.mean(axis=2)
    change = np.abs(np.diff(gray, axis=0))
    edge = sky[:-1] & ~sky[1:]
    assert edge.sum() > 50
    above = np.roll(edge, -1, axis=0)
    assert change[edge].mean() > 3.0 * change[above].mean()


def test_larger_scenes_show_the_same_street():
    _, small = scenes.render("corvin_000002_000019")
    _, large = scenes.render("corvin_000002_000019", (256, 512))
    assert large.shape == (256, 512)
    assert (large[::2, ::2] == small).mean() > 0.85


def test_records_of_the_scenes_hold_class_ids(tmp_path, monkeypatch):
    monkeypatch.setattr("auto_deeplab_tf.data.sets.scenes.IMAGES_PER_CITY", {"train": 1, "val": 1})
    source = data.open_split("scenes", "val", cache_dir=tmp_path)
    assert source.num_examples == 3
    assert source.image_size == scenes.IMAGE_SIZE
    assert set(source.groups) == {"ingrath", "jarrow", "kestrel"}
    image, label = source.example(tf.constant(1, tf.int64))
    drawn, label_ids = scenes.render(source.ids[1])
    np.testing.assert_array_equal(image, drawn)
    np.testing.assert_array_equal(label, INFO.class_ids(label_ids))


def test_scenes_need_no_files(tmp_path):
    with pytest.raises(ValueError, match="dataset=scenes takes no data_dir"):
        data.open_split("scenes", "train", data_dir=tmp_path, cache_dir=tmp_path)


@pytest.mark.slow
def test_the_statistics_of_the_catalog_are_those_of_the_scenes():
    pixels = np.concatenate(
        [scenes.render(i)[0].reshape(-1, 3) for i in image_ids("train")]
    ).astype(np.float64)
    np.testing.assert_allclose(pixels.mean(axis=0), INFO.mean, atol=0.1)
    np.testing.assert_allclose(pixels.std(axis=0), INFO.std, atol=0.1)
