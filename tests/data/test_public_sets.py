"""VOC 2012 with SBD, COCO as VOC, ADE20K, Cityscapes with the coarse set: from files to records."""

import numpy as np
import pytest
import real_sets
import scipy.io
import tensorflow as tf

from auto_deeplab_tf import data
from auto_deeplab_tf.data import sets
from auto_deeplab_tf.data.sets import coco


def read_all(source):
    return {
        stem: [tensor.numpy() for tensor in source.example(tf.constant(i, tf.int64))]
        for i, stem in enumerate(source.ids)
    }


TRAIN, VAL, EXTRA = ["2007_000032", "2007_000039"], ["2007_000033"], ["2008_000008"]


def test_voc_palettes_are_read_as_indices(tmp_path, cache):
    labels = real_sets.write_voc(tmp_path, TRAIN, VAL)
    source = data.open_split("voc2012", "train", data_dir=tmp_path / "VOCdevkit", cache_dir=cache)
    found = read_all(source)
    assert sorted(found) == TRAIN and source.image_size is None
    for stem, (image, label) in found.items():
        np.testing.assert_array_equal(label, labels[stem])  # 255 stays the ignored id
        assert image.shape == (*label.shape, 3)
    root = tmp_path / "VOCdevkit" / "VOC2012"
    val = data.open_split("voc2012", "val", data_dir=root, cache_dir=cache)
    assert val.ids == tuple(VAL)
    with pytest.raises(ValueError, match="split=test: voc2012 is published without labels"):
        data.open_split("voc2012", "test", data_dir=root, cache_dir=cache)


def test_a_folder_of_a_published_set_that_is_missing_is_named_beside_those_that_are_there(tmp_path):
    real_sets.write_voc(tmp_path, TRAIN, VAL)
    root = tmp_path / "VOCdevkit" / "VOC2012"
    (root / "SegmentationClass").rename(root / "Masks")
    there = r"no folder SegmentationClass \(found: ImageSets, JPEGImages, Masks\)$"
    with pytest.raises(FileNotFoundError, match=there):
        sets.find("voc2012", tmp_path)


@pytest.mark.parametrize("form", ["SegmentationClassAug", "benchmark_RELEASE"])
def test_sbd_adds_to_train_and_never_to_val(tmp_path, cache, form):
    labels = real_sets.write_voc(tmp_path, TRAIN, VAL, EXTRA)
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for stem in (TRAIN[0], VAL[0], *EXTRA):
        label = np.where(labels[stem] == 255, 0, labels[stem])
        if stem not in EXTRA:  # VOC's own label is the one to be used
            label = label * 0
        if form == "SegmentationClassAug":
            (root / form).mkdir(exist_ok=True)
            real_sets.Image.fromarray(label).save(root / form / f"{stem}.png")
        else:
            folder = tmp_path / form / "dataset" / "cls"
            folder.mkdir(parents=True, exist_ok=True)
            content = {"GTcls": {"Segmentation": label, "CategoriesPresent": np.unique(label)}}
            scipy.io.savemat(folder / f"{stem}.mat", content)
    source = data.open_split("voc2012", "train", data_dir=root, cache_dir=cache)
    found = read_all(source)
    assert sorted(found) == sorted([*TRAIN, *EXTRA])
    for stem in TRAIN:
        np.testing.assert_array_equal(found[stem][1], labels[stem])
    expected = np.where(labels[EXTRA[0]] == 255, 0, labels[EXTRA[0]])
    np.testing.assert_array_equal(found[EXTRA[0]][1], expected)
    assert list(sets.find("voc2012", root).splits) == ["train", "val"]


def test_ade20k_shifts_ids_and_ignores_0(tmp_path, cache):
    labels = real_sets.write_ade20k(tmp_path, (3, 1))
    source = data.open_split("ade20k", "train", data_dir=tmp_path, cache_dir=cache)
    assert source.ids == tuple(stem for stem in labels if "train" in stem)
    for stem, (_, label) in read_all(source).items():
        expected = labels[stem].astype(int) - 1
        np.testing.assert_array_equal(label, np.where(expected < 0, 255, expected))
    info = sets.describe("ade20k")
    assert info.num_classes == 150
    assert (info.class_names[0], info.class_names[149]) == ("wall", "flag")


def polygon(category, box, **more):
    left, top, right, bottom = box
    points = [left, top, right, top, right, bottom, left, bottom]
    return {"category_id": category, "segmentation": [points], "iscrowd": 0, **more}


def test_coco_instances_become_voc_classes(tmp_path, cache):
    crowd = np.zeros((50, 60), bool)
    crowd[40:45, 10:50] = True
    runs = np.flatnonzero(np.diff(np.r_[0, crowd.T.ravel(), 1 - crowd.T.ravel()[-1]]))
    counts = np.diff(np.r_[0, runs]).tolist()
    annotations = [
        polygon(1, (0, 0, 39, 29), image_id=7),
        polygon(18, (30, 0, 49, 9), image_id=7),
        polygon(1, (0, 20, 49, 29), image_id=7),
        polygon(10, (50, 0, 59, 39), image_id=7),  # no class of VOC
        {"category_id": 3, "image_id": 7, "iscrowd": 1,
         "segmentation": {"counts": counts, "size": [50, 60]}},
        polygon(1, (0, 0, 30, 30), image_id=8),  # 961 pixels
    ]  # fmt: skip
    real_sets.write_coco(
        tmp_path, "train", [(7, (50, 60)), (8, (50, 60)), (9, (8, 8))], annotations
    )
    source = data.open_split("coco", "train", data_dir=tmp_path, cache_dir=cache)
    assert source.ids == ("000000000007",)
    person, dog, car = (source.info.class_names.index(name) for name in ("person", "dog", "car"))
    expected = np.zeros((50, 60), np.uint8)
    expected[0:30, 0:40] = person
    expected[20:30, 0:50] = person
    expected[0:10, 40:50] = dog
    expected[0:10, 30:40] = 255  # person and dog both claim it
    expected[40:45, 10:50] = car
    np.testing.assert_array_equal(source.example(0)[1], expected)


def test_packed_run_lengths_read_as_they_were_packed():
    """Against a packer written from the definition in COCO's maskApi.c."""
    rng = np.random.default_rng(0)

    def pack(counts):
        text = ""
        for i, count in enumerate(counts):
            value = count - (counts[i - 2] if i > 2 else 0)
            while True:
                bits, value = value & 31, value >> 5
                more = value != (-1 if bits & 16 else 0)
                text += chr(48 + bits + (32 if more else 0))
                if not more:
                    break
        return text

    for _ in range(20):
        mask = rng.random((23, 37)) < rng.choice([0.02, 0.5, 0.98])
        flat = mask.T.ravel()
        edges = np.flatnonzero(np.diff(np.r_[0, flat.astype(int)]))
        counts = np.diff(np.r_[0, edges, flat.size]).tolist()
        assert coco.unpack_counts(pack(counts)) == counts
        found = coco.instance_mask({"counts": pack(counts), "size": [23, 37]}, (23, 37))
        np.testing.assert_array_equal(found, mask)
    with pytest.raises(ValueError, match="run lengths must fill 23x36 pixels; found 851"):
        coco.instance_mask({"counts": [851], "size": [23, 37]}, (23, 36))


def test_annotations_that_are_cut_are_named(tmp_path, cache):
    real_sets.write_coco(tmp_path, "train", [(1, (40, 40))], [])
    path = tmp_path / "annotations" / "instances_train2017.json"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match="instances_train2017.json is no complete annotation"):
        data.open_split("coco", "train", data_dir=tmp_path, cache_dir=cache)


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("voc2012", "ImageSets/Segmentation/"),
        ("ade20k", "images/training/"),
        ("coco", "annotations/"),
    ],
)
def test_another_folder_is_refused(tmp_path, cache, name, inside):
    with pytest.raises(FileNotFoundError, match=f"the folder that holds {inside}"):
        data.open_split(name, "train", data_dir=tmp_path, cache_dir=cache)
    with pytest.raises(FileNotFoundError, match="nowhere is not a directory"):
        data.open_split(name, "train", data_dir=tmp_path / "nowhere", cache_dir=cache)


def test_a_voc_image_without_its_label_is_named(tmp_path, cache):
    real_sets.write_voc(tmp_path, TRAIN, VAL)
    root = tmp_path / "VOCdevkit" / "VOC2012"
    (root / "SegmentationClass" / f"{TRAIN[1]}.png").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{TRAIN[1]}\.jpg has no label map"):
        data.open_split("voc2012", "train", data_dir=root, cache_dir=cache)
    (root / "JPEGImages" / f"{TRAIN[0]}.jpg").unlink()
    kinds = [defect.kind for defect in sets.find("voc2012", root).defects]
    assert sorted(kinds) == ["missing image", "missing mask"]
