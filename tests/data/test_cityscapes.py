"""Cityscapes, on small zip files that lie and are named as the real ones."""

import io
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from auto_deeplab_tf import config, data
from auto_deeplab_tf.data import check, sets

IMAGES, LABELS = "leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"
MEMBERS = {
    "train": ["aachen_000000_000019", "aachen_000001_000019", "bonn_000000_000019"],
    "val": ["munster_000000_000019"],
    "test": ["berlin_000000_000019"],
}


def _png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _label_ids(image_id, size=(1024, 2048)):
    """Blocks of label ids, odd in position and size; one row of each id."""
    rng = np.random.default_rng(list(image_id.encode()))
    blocks = rng.integers(0, 34, (16, 32), dtype=np.uint8)
    return np.kron(blocks, np.ones((size[0] // 16, size[1] // 32), np.uint8))


def _write(folder, members=MEMBERS, size=(1024, 2048), skip_label=None, stray=None):
    folder.mkdir()
    with (
        zipfile.ZipFile(folder / IMAGES, "w") as images,
        zipfile.ZipFile(folder / LABELS, "w") as labels,
    ):
        for split, ids in members.items():
            for image_id in ids:
                city = image_id.split("_")[0]
                label = _label_ids(image_id, size)
                images.writestr(
                    f"leftImg8bit/{split}/{city}/{image_id}_leftImg8bit.png",
                    _png(np.repeat(label[..., None] * np.uint8(7), 3, axis=2)),
                )
                if image_id != skip_label:
                    stem = f"gtFine/{split}/{city}/{image_id}_gtFine"
                    labels.writestr(f"{stem}_labelIds.png", _png(label))
                    labels.writestr(f"{stem}_polygons.json", "{}")
        if stray:
            images.writestr(f"leftImg8bit/train/aachen/{stray}", "")
    return folder


def test_label_ids_become_train_ids_at_the_prepared_size(tmp_path):
    folder = _write(tmp_path / "zips")
    cache = tmp_path / "cache"
    options = {"data_dir": folder, "cache_dir": cache, "image_size": (512, 1024)}
    source = data.open_split("cityscapes", "train", **options)
    assert source.ids == tuple(MEMBERS["train"])
    assert source.groups == ("aachen", "aachen", "bonn")
    assert source.image_size == (512, 1024)
    for i, image_id in enumerate(source.ids):
        image, label = source.example(tf.constant(i, tf.int64))
        label_ids = _label_ids(image_id)[::2, ::2]
        np.testing.assert_array_equal(label, sets.describe("cityscapes").class_ids(label_ids))
        # JPEG of high quality: right but for the edges of the blocks.
        difference = np.abs(image.numpy().astype(int) - 7 * label_ids[..., None].astype(int))
        assert np.median(difference) <= 2
    val = data.open_split("cityscapes", "val", **options)
    assert val.ids == tuple(MEMBERS["val"])
    assert [path.name for path in cache.iterdir()] == [source.directory.name]


def test_the_examples_are_those_of_the_builder_that_tfds_has(tmp_path):
    """And those of our builder, which offers any set as a TFDS data set."""
    import tensorflow_datasets as tfds

    folder = _write(tmp_path / "zips", {**MEMBERS, "train": MEMBERS["train"][:2]})
    theirs = tfds.builder("cityscapes/semantic_segmentation", data_dir=tmp_path / "theirs")
    ours = data.tfds_builder("cityscapes", data_dir=folder, tfds_dir=tmp_path / "ours")
    options = tfds.download.DownloadConfig(manual_dir=folder)
    raw = sets.find("cityscapes", folder)
    for split, name in (("train", "train"), ("val", "validation")):
        found = []
        for builder, tfds_split, key in ((theirs, name, "image_left"), (ours, split, "image")):
            builder.download_and_prepare(download_config=options)
            skip = {feature: tfds.decode.SkipDecoding() for feature in (key, "segmentation_label")}
            examples = tfds.as_numpy(builder.as_dataset(split=tfds_split, decoders=skip))
            found.append(
                {e["image_id"].decode(): (e[key], e["segmentation_label"]) for e in examples}
            )
        read = [raw.read(split, image_id) for image_id in raw.ids(split)]
        found.append({example.image_id: (example.image, example.label) for example in read})
        assert found[0] == found[2] and len(found[0]) == len(raw.ids(split))
        # Ours encodes the labels anew, whatever kind of file they come from.
        for image_id, (image, label) in found[1].items():
            assert image == found[0][image_id][0]
            ids = [
                np.asarray(Image.open(io.BytesIO(each))) for each in (label, found[0][image_id][1])
            ]
            np.testing.assert_array_equal(*ids)
        assert found[1].keys() == found[0].keys()


def _write_coarse(folder, ids=("nuernberg_000000_000004", "bamberg_000000_000007")):
    """The two zips of the extra set, beside those of the fine one."""
    with (
        zipfile.ZipFile(folder / "leftImg8bit_trainextra.zip", "w") as images,
        zipfile.ZipFile(folder / "gtCoarse.zip", "w") as labels,
    ):
        for image_id in ids:
            city = image_id.split("_")[0]
            label = _label_ids(image_id)
            images.writestr(
                f"leftImg8bit/train_extra/{city}/{image_id}_leftImg8bit.png",
                _png(np.repeat(label[..., None], 3, axis=2)),
            )
            stem = f"gtCoarse/train_extra/{city}/{image_id}_gtCoarse"
            labels.writestr(f"{stem}_labelIds.png", _png(label))
            labels.writestr(f"{stem}_instanceIds.png", _png(label))
    return ids


def test_the_coarse_set_joins_the_fine_training_images(tmp_path):
    folder = _write(tmp_path / "zips")
    options = {"data_dir": folder, "cache_dir": tmp_path / "cache", "image_size": (256, 512)}
    with pytest.raises(FileNotFoundError, match="has no leftImg8bit_trainextra.zip: put"):
        data.open_split("cityscapes_coarse", "train", **options)
    extra = _write_coarse(folder)
    train = data.open_split("cityscapes_coarse", "train", **options)
    assert train.ids == tuple(sorted([*MEMBERS["train"], *extra]))
    for i, image_id in enumerate(train.ids):
        expected = sets.describe("cityscapes").class_ids(_label_ids(image_id)[2::4, 2::4])
        np.testing.assert_array_equal(train.example(tf.constant(i, tf.int64))[1], expected)
    assert data.open_split("cityscapes_coarse", "val", **options).ids == tuple(MEMBERS["val"])


def test_check_reads_the_zips(tmp_path):
    folder = _write(
        tmp_path / "zips", size=(64, 128), skip_label="bonn_000000_000019", stray="Thumbs.db"
    )
    found = check.check(config.CheckConfig(dataset="cityscapes", data_dir=folder))
    assert found["splits"]["train"]["pairs"] == 2
    kinds = [defect["kind"] for defect in found["defects"]]
    assert kinds == ["stray file", "missing mask", *["wrong size"] * 3]
    assert "Thumbs.db does not belong there" in found["defects"][0]["text"]
    assert "images of cityscapes are 1024x2048; found 64x128" in found["defects"][2]["text"]
    name = "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
    assert found["defects"][2]["file"] == f"{IMAGES}:{name}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"skip_label": "bonn_000000_000019"},
            "gtFine_trainvaltest.zip has no gtFine/train/bonn/bonn_000000_000019_gtFine_labelIds",
        ),
        ({"members": {**MEMBERS, "val": []}}, "has no images in leftImg8bit/val/CITY/"),
    ],
)
def test_zips_that_lack_files(tmp_path, change, message):
    small = {"size": (64, 128)}
    folder = _write(tmp_path / "zips", **small, **change)
    with pytest.raises((ValueError, OSError), match=message):
        data.open_split("cityscapes", "train", data_dir=folder, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_an_image_of_another_size(tmp_path):
    folder = _write(tmp_path / "zips", size=(64, 128))
    with pytest.raises(ValueError, match="images of cityscapes are 1024x2048; .*found 64x128"):
        data.open_split("cityscapes", "train", data_dir=folder, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_changed_file_in_a_zip_of_the_same_size_is_noticed(tmp_path):
    folder = _write(tmp_path / "zips", size=(64, 128))
    before = sets.find("cityscapes", folder).settings
    path = folder / LABELS
    with zipfile.ZipFile(path) as file:
        found = {name: file.read(name) for name in file.namelist()}
    size, changed = path.stat().st_size, next(iter(found))
    with zipfile.ZipFile(path, "w") as file:
        for name, content in found.items():
            file.writestr(name, content[:-1] + b"x" if name == changed else content)
    after = sets.find("cityscapes", folder).settings
    assert path.stat().st_size == size and before["contents"].keys() == {IMAGES, LABELS}
    assert [n for n in (IMAGES, LABELS) if before["contents"][n] != after["contents"][n]] == [
        LABELS
    ]


def test_zips_that_are_cut_or_missing(tmp_path):
    folder = _write(tmp_path / "zips", size=(64, 128))
    path = folder / LABELS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="gtFine_trainvaltest.zip is not a complete zip file"):
        data.open_split("cityscapes", "train", data_dir=folder, cache_dir=tmp_path / "cache")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="has no gtFine_trainvaltest.zip"):
        data.open_split("cityscapes", "train", data_dir=folder, cache_dir=tmp_path / "cache")


def test_an_image_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path):
    folder = _write(tmp_path / "zips", {split: MEMBERS[split][:1] for split in ("train", "val")})
    with zipfile.ZipFile(folder / IMAGES) as file:
        images = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(folder / IMAGES, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in images.items():
            with file.open(name, "w") as member:
                member.write(content)
                for _ in range(65):
                    member.write(bytes(2**20))
    with pytest.raises(ValueError, match="image cannot be read .the file is empty or out of reach"):
        data.open_split("cityscapes", "train", data_dir=folder, cache_dir=tmp_path / "cache")


def test_a_zip_that_is_damaged_inside(tmp_path):
    folder = _write(tmp_path / "zips", {split: MEMBERS[split][:1] for split in ("train", "val")})
    path = folder / IMAGES
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read") as caught:
        data.open_split("cityscapes", "train", data_dir=folder, cache_dir=tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").iterdir())
