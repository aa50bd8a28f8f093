import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from auto_deeplab_tf import data
from tests.data.conftest import truncate


def _listing(folder):
    return sorted((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*"))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_images_and_labels_come_through_as_they_are(make_camvid, cache, suffix):
    root = make_camvid({"train": 5, "val": 2}, suffix)
    before = _listing(root)
    source = data.open_split("camvid", "train", data_dir=root, cache_dir=cache)
    assert source.num_examples == 5 and source.image_size == (24, 36)
    assert source.ids == tuple(sorted(path.stem for path in (root / "train").iterdir()))
    assert set(source.groups) == {"0001TP", "0016E5"}
    class_pixels = np.zeros(12, np.int64)
    for i, stem in enumerate(source.ids):
        image, label = source.example(tf.constant(i, tf.int64))
        stored = tf.io.decode_image((root / "train" / f"{stem}{suffix}").read_bytes()).numpy()
        np.testing.assert_array_equal(image, stored)
        label_ids = np.asarray(Image.open(root / "trainannot" / f"{stem}.png"))
        np.testing.assert_array_equal(label, np.where(label_ids == 11, 255, label_ids))
        class_pixels += np.bincount(label_ids.ravel(), minlength=12)
    np.testing.assert_array_equal(source.class_pixels, class_pixels[:11])
    assert source.ignored_pixels == class_pixels[11]
    assert _listing(root) == before


def test_the_parent_folder_serves_too(make_camvid, cache):
    root = make_camvid({"val": 2}, name="set/CamVid")
    source = data.open_split("camvid", "val", data_dir=root.parent, cache_dir=cache)
    assert source.num_examples == 2


def test_splits_that_are_not_there_are_named(make_camvid, cache):
    root = make_camvid({"train": 2, "val": 1})
    with pytest.raises(FileNotFoundError, match="has no split test; it has train, val"):
        data.open_split("camvid", "test", data_dir=root, cache_dir=cache)
    with pytest.raises(ValueError, match="split of camvid must be one of train, val, test"):
        data.open_split("camvid", "training", data_dir=root, cache_dir=cache)


def test_prepared_size(make_camvid, cache):
    root = make_camvid({"train": 2})
    source = data.open_split("camvid", "train", data_dir=root, cache_dir=cache, image_size=(12, 18))
    image, label = source.example(tf.constant(1, tf.int64))
    stem = source.ids[1]
    full = np.asarray(Image.open(root / "train" / f"{stem}.png"), np.float64)
    area = full.reshape(12, 2, 18, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(image, area, atol=0.51)
    label_ids = np.asarray(Image.open(root / "trainannot" / f"{stem}.png"))[1::2, 1::2]
    np.testing.assert_array_equal(label, np.where(label_ids == 11, 255, label_ids))


def _save(path, array):
    Image.fromarray(array).save(path)


STEM = "0001TP_000001"
IMAGE, LABEL = f"train/{STEM}.png", f"trainannot/{STEM}.png"
STRANGE = np.zeros((24, 36), np.uint8)
STRANGE[3, 4] = 12


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: _save(root / LABEL, STRANGE),
            rf"camvid train, {STEM}: label ids of camvid are 0\.\.11; found 12",
        ),
        (
            lambda root: (root / LABEL).unlink(),
            rf"{STEM}\.png has no label map: expected .*trainannot/{STEM}\.png",
        ),
        (
            lambda root: _save(root / LABEL, STRANGE[:, 1:] * 0),
            rf"{STEM}: image and label map must have the same size; found 24x36 and 24x35",
        ),
        (
            lambda root: truncate(root / IMAGE),
            rf"camvid train, {STEM}: image cannot be read \(.*truncated",
        ),
        (
            lambda root: truncate(root / LABEL),
            rf"camvid train, {STEM}: label map cannot be read \(.*truncated",
        ),
        (
            lambda root: (root / IMAGE).write_text("moved to the archive"),
            rf"camvid train, {STEM}: image cannot be read \(",
        ),
        (
            lambda root: _save(root / LABEL, np.zeros((24, 36, 3), np.uint8)),
            rf"{STEM}: a label map must be an image of one channel, .*; found mode RGB",
        ),
        (
            lambda root: [path.unlink() for path in (root / "val").iterdir()],
            "val has no images",
        ),
        (
            lambda root: (root / "valannot").rename(root / "val_annotations"),
            "has val/ but no valannot/",
        ),
        (
            lambda root: Image.open(root / IMAGE).save(root / f"train/{STEM}.jpg"),
            rf"{STEM}\.png and {STEM}\.jpg have the same stem",
        ),
        (
            lambda root: [(root / s).rename(root / f"{s}_images") for s in ("train", "val")],
            "must hold train/, val/ or test/ of CamVid",
        ),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(make_camvid, cache, damage, message):
    root = make_camvid({"train": 3, "val": 2})
    damage(root)
    with pytest.raises((ValueError, OSError)) as caught:
        data.open_split("camvid", "train", data_dir=root, cache_dir=cache)
    assert caught.match(message)
    assert "\n" not in str(caught.value)
    assert not cache.exists() or not list(cache.iterdir())


def test_missing_directory(tmp_path, cache):
    with pytest.raises(FileNotFoundError, match="nowhere is not a directory"):
        data.open_split("camvid", "train", data_dir=tmp_path / "nowhere", cache_dir=cache)
    with pytest.raises(ValueError, match="dataset=camvid needs data_dir"):
        data.open_split("camvid", "train", cache_dir=cache)
