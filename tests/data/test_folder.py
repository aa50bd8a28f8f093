"""`--dataset=folder`: the user's own images and masks, and the JSON file that describes them."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tiny_camvid
from PIL import Image

from auto_deeplab_tf import data
from auto_deeplab_tf.data import pipeline, sets, split
from auto_deeplab_tf.data.sets.folder_config import FolderConfig

SIZE = (18, 25)


class Maker:
    """Writes a folder; the masks' ids are 0..2 unless said."""

    def __init__(self, tmp_path):
        self.root = tmp_path / "mine"
        self.cache = tmp_path / "cache"
        self.rng = np.random.default_rng(0)
        (self.root / "images").mkdir(parents=True)
        (self.root / "masks").mkdir()

    def describe(self, **content):
        content.setdefault("classes", ["a", "b", "c"])
        (self.root / "dataset.json").write_text(json.dumps(content))
        return self

    def add(self, stem, image=None, mask=None, suffix=".png", mask_suffix=".png"):
        if image is None:
            image = self.rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        if mask is None:
            mask = self.rng.integers(0, 3, SIZE, dtype=np.uint8)
        for folder, content, end in (("images", image, suffix), ("masks", mask, mask_suffix)):
            path = self.root / folder / f"{stem}{end}"
            path.parent.mkdir(exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                content = content if isinstance(content, Image.Image) else Image.fromarray(content)
                content.save(path)
        return image, mask

    def open(self, split="train", **options):
        return data.open_split("folder", split, data_dir=self.root, cache_dir=self.cache, **options)


@pytest.fixture
def maker(tmp_path):
    return Maker(tmp_path)


def example(source, stem):
    index = tf.constant(source.ids.index(stem), tf.int64)
    return [tensor.numpy() for tensor in source.example(index)]


def test_index_masks_merged_and_ignored(maker):
    ids = maker.rng.choice([3, 7, 8, 40000, 255, 0], SIZE).astype(np.uint16)
    image, _ = maker.add("one", mask=ids)
    maker.add("two", mask=np.full(SIZE, 7, np.uint8))
    (maker.root / "train.txt").write_text("one\ntwo\n")
    maker.describe(
        classes=[
            {"name": "road", "ids": [7], "color": [128, 64, 128]},
            {"name": "thing", "ids": [3, 8, 40000]},
        ],
        ignore=[0, 255],
    )
    source = maker.open()
    expected = np.full(SIZE, 255)
    expected[ids == 7] = 0
    expected[np.isin(ids, [3, 8, 40000])] = 1
    found, label = example(source, "one")
    np.testing.assert_array_equal(found, image)
    np.testing.assert_array_equal(label, expected)
    assert source.info.class_names == ("road", "thing")
    assert tuple(source.info.palette[0]) == (128, 64, 128)
    assert source.info.stored_labels(np.array([[0, 1]])).tolist() == [[7, 3]]


def test_palette_masks_are_indices(maker):
    mask = maker.rng.integers(0, 3, SIZE, dtype=np.uint8)
    palette = Image.fromarray(mask).convert("P")
    palette.putdata(mask.ravel().tolist())
    palette.putpalette([200, 0, 0, 0, 0, 200, 90, 90, 90])
    maker.describe().add("a", mask=palette)
    maker.add("b")
    source = maker.open("val" if "a" in maker.open("val").ids else "train")
    np.testing.assert_array_equal(example(source, "a")[1], mask)


def test_colour_masks_through_the_table(maker):
    table = np.array([(255, 0, 0), (0, 255, 0), (0, 250, 0), (0, 0, 0)], np.uint8)
    index = maker.rng.integers(0, 4, SIZE)
    maker.add("one", mask=table[index])
    (maker.root / "train.txt").write_text("one.png\n")
    content = {
        "masks": "colors",
        "classes": [
            {"name": "stop", "color": [255, 0, 0]},
            {"name": "go", "mask_colors": [[0, 255, 0], [0, 250, 0]]},
        ],
        "ignore": [[0, 0, 0]],
    }
    source = maker.describe(**content).open()
    np.testing.assert_array_equal(example(source, "one")[1], np.array([0, 1, 1, 255])[index])
    assert tuple(source.info.palette[1]) == (0, 255, 0)
    maker.add("one", mask=np.full((*SIZE, 3), 9, np.uint8))
    with pytest.raises(ValueError, match=r"one: label ids of folder are .*; found \(9, 9, 9\)"):
        maker.open()


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("bits", [8, 16])
def test_channels_and_bits_follow_the_files(maker, channels, bits):
    dtype = np.uint8 if bits == 8 else np.uint16
    pixels = [maker.rng.integers(0, 2**bits, (*SIZE, channels)).astype(dtype) for _ in range(2)]
    for stem, array in zip("ab", pixels, strict=True):
        maker.add(stem, image=tf.io.encode_png(array).numpy())
    for name in ("train", "val"):
        (maker.root / f"{name}.txt").write_text("a\nb\n")
    maker.describe()
    source = maker.open()
    info = source.info
    assert (info.channels, info.image_bits) == (channels, bits)
    scale = 1 if bits == 8 else 257
    for stem, array in zip("ab", pixels, strict=True):
        image, label = example(source, stem)
        np.testing.assert_allclose(image, array / scale, rtol=1e-6)
    # Mean and deviation are those of the training images.
    flat = np.concatenate([array.reshape(-1, channels) for array in pixels]) / scale
    np.testing.assert_allclose(info.mean, flat.mean(0))
    np.testing.assert_allclose(info.std, flat.std(0))
    assert maker.open("val").info.mean == info.mean
    # Whole way to a batch, and at another size.
    images, labels = next(
        iter(pipeline.training_batches(source, batch_size=2, crop_size=(8, 9), seed=0))
    )
    assert images.shape == (2, 8, 9, channels) and images.dtype == tf.float32
    assert 0 <= tf.reduce_min(images) and tf.reduce_max(images) <= 255
    half = maker.open(image_size=(9, 25))
    image, _ = example(half, "a")
    area = pixels[0].reshape(9, 2, 25, channels).mean(1) / scale
    np.testing.assert_allclose(image, area, atol=0.51 / scale)


def test_gray_and_transparent_images_in_a_set_of_three_channels(maker):
    gray, _ = maker.add("gray", image=maker.rng.integers(0, 256, SIZE, dtype=np.uint8))
    rgba, _ = maker.add("rgba", image=maker.rng.integers(0, 256, (*SIZE, 4), dtype=np.uint8))
    tiff, _ = maker.add("tiff", suffix=".tif", mask_suffix=".tif")
    (maker.root / "train.txt").write_text("gray\nrgba\ntiff\n")
    source = maker.describe(channels=3).open()
    np.testing.assert_array_equal(example(source, "gray")[0], gray[..., None].repeat(3, 2))
    np.testing.assert_array_equal(example(source, "rgba")[0], rgba[..., :3])
    np.testing.assert_array_equal(example(source, "tiff")[0], tiff)
    source = maker.describe(channels=1).open()
    np.testing.assert_array_equal(example(source, "gray")[0][..., 0], gray)
    luminance = np.asarray(Image.fromarray(rgba[..., :3]).convert("L"))
    np.testing.assert_array_equal(example(source, "rgba")[0][..., 0], luminance)


def test_the_seeded_part_keeps_groups_whole(maker):
    for drive in "abcdef":
        for i in range(5):
            maker.add(f"{drive}_{i}")
    maker.describe(val_fraction=0.3, group="^[a-z]")
    splits = {name: maker.open(name) for name in ("train", "val")}
    ids = [set(source.ids) for source in splits.values()]
    assert len(ids[0] | ids[1]) == 30 and not ids[0] & ids[1]
    assert len(ids[1]) == 10
    assert not set(splits["train"].groups) & set(splits["val"].groups)
    again = maker.describe(val_fraction=0.3, group="^[a-z]", split_seed=1).open("val")
    assert set(again.ids) != ids[1]
    assert len(maker.describe(val_fraction=0.3).open("val").ids) == 9
    assert maker.describe(val_fraction=0).open("train").num_examples == 30


def test_groups_by_folder_and_blocks(maker):
    for drive in ("x", "y"):
        for i in range(8):
            maker.add(f"{drive}/{drive}{i}")
    maker.describe(group="folder", frames_per_block=2, val_fraction=0)
    source = maker.open()
    assert source.groups == ("x",) * 8 + ("y",) * 8
    train_a, _ = split.source_halves(source)
    assert [source.ids[i] for i in train_a] == ["x0", "x1", "x4", "x5", "y0", "y1", "y4", "y5"]


def camvid_as_folder(camvid, root, content):
    """The files of a CamVid copied into images/ and masks/, with lists of its splits."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for name in ("train", "val"):
        images = sorted((camvid / name).iterdir())
        for path in images:
            shutil.copy(path, root / "images")
            shutil.copy(camvid / f"{name}annot" / f"{path.stem}.png", root / "masks")
        lines = [f"/SegNet/CamVid/{name}/{path.name} /SegNet/x.png\n" for path in images]
        (root / f"{name}.txt").write_text("".join(lines))
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def camvid_json():
    info = sets.describe("camvid")
    names = zip(info.class_names, info.colors, strict=True)
    return {
        "classes": [{"name": name, "color": list(color)} for name, color in names],
        "ignore": [11],
        "group": "^[^_]+",
        "frames_per_block": info.frames_per_block,
        "mean": list(info.mean),
        "std": list(info.std),
    }


def test_camvid_as_a_folder_gives_the_same_search_batches(tmp_path):
    camvid = tiny_camvid.write(tmp_path / "CamVid", {"train": 26, "val": 3})
    for path in [*camvid.glob("val/*"), *camvid.glob("valannot/*")]:
        path.rename(path.with_name(path.name.replace("0016E5", "0016E6")))
    mine = camvid_as_folder(camvid, tmp_path / "mine", camvid_json())
    streams = []
    for name, folder in (("camvid", camvid), ("folder", mine)):
        source = data.open_split(name, "train", data_dir=folder, cache_dir=tmp_path / "cache")
        halves = split.source_halves(source)
        assert [len(half) for half in halves] == [16, 10]  # blocks of ten frames
        batches = pipeline.search_batches(source, halves, batch_size=3, crop_size=(24, 33), seed=5)
        streams.append((source, [[source.ids[i] for i in half] for half in halves], batches))
    assert streams[0][1] == streams[1][1]
    np.testing.assert_array_equal(streams[0][0].class_pixels, streams[1][0].class_pixels)
    for ours, theirs in zip(streams[0][2].take(12), streams[1][2].take(12), strict=True):
        for a, b in zip(tf.nest.flatten(ours), tf.nest.flatten(theirs), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_changed_description_is_noticed(maker):
    maker.add("a")
    maker.add("b")
    before = maker.describe(val_fraction=0).open()
    after = maker.describe(classes=["a", "b", "other"], val_fraction=0).open()
    assert after.fingerprint != before.fingerprint
    elsewhere = maker.root.parent / "elsewhere.json"
    (maker.root / "dataset.json").rename(elsewhere)
    with pytest.raises(FileNotFoundError, match=r'dataset.json: no such file; .*"classes"'):
        maker.open()
    assert maker.open(dataset_config=elsewhere).fingerprint == after.fingerprint
    with pytest.raises(ValueError, match="dataset_config describes dataset=folder only"):
        data.open_split("scenes", "train", dataset_config=elsewhere)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"clases": []}, "unknown key 'clases'; did you mean classes"),
        ({"classes": []}, "classes must be a list of 2 to 255 classes"),
        ({"classes": ["a"]}, "2 to 255 classes .the background is one., such as"),
        ({"classes": ["a", "a"]}, "classes must be classes of different names. Received: 'a'"),
        ({"classes": [{"ids": [1]}, "b"]}, r"classes\[0\].name must be a name"),
        ({"classes": ["a", "b"], "masks": "rgb"}, "masks must be one of ids, colors"),
        ({"classes": ["a", "b"], "masks": "colors"}, r"with color or mask_colors"),
        ({"classes": ["a", "b"], "ignore": 255}, "ignore must be a list"),
        ({"classes": ["a", "b"], "ignore": [0]}, "ignore must be distinct from the ids of a"),
        ({"classes": ["a", {"name": "b", "ids": [0]}]}, "distinct: a and b share one"),
        ({"classes": [{"name": "a", "ids": [70000]}, "b"]}, "label ids, 0 to 65535"),
        ({"classes": [{"name": "a", "color": [0, 0, 256]}, "b"]}, "a colour .red, green, blue."),
        ({"classes": ["a", "b"], "channels": 2}, "channels must be one of 1, 3, 4. Received: 2"),
        ({"classes": ["a", "b"], "bits": 12}, "bits must be one of 8, 16"),
        ({"classes": ["a", "b"], "val_fraction": 2}, "val_fraction must be a number, 0.0 to 0.9"),
        (
            {"classes": ["a", "b"], "frames_per_block": 0.5},
            "frames_per_block must be a whole number",
        ),
        ({"classes": ["a", "b"], "mean": [1, 2, 3]}, "std must be as many numbers as mean"),
        ({"classes": ["a", "b"], "group": "("}, 'group must be "folder" or a regular expression'),
        ([], "the file must be a JSON object"),
    ],
)
def test_a_description_that_breaks_a_rule_is_refused(tmp_path, content, message):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as refused:
        FolderConfig.load(path)
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)


def test_text_that_is_not_json(tmp_path):
    (tmp_path / "dataset.json").write_text("{classes: [a]}")
    with pytest.raises(ValueError, match="dataset.json: not a JSON file"):
        FolderConfig.load(tmp_path / "dataset.json")


def test_lists_that_do_not_fit(maker):
    maker.add("a")
    maker.add("b")
    maker.describe()
    (maker.root / "train.txt").write_text("a\na\nz\n")
    (maker.root / "val.txt").write_text("a\n")
    kinds = {defect.kind: defect for defect in sets.find("folder", maker.root).defects}
    assert sorted(kinds) == ["duplicate stem", "in two splits", "missing image"]
    with pytest.raises(FileNotFoundError, match=r"train.txt names z, but there is no image"):
        maker.open()
    (maker.root / "train.txt").write_text("")
    with pytest.raises(ValueError, match="train.txt names no image"):
        maker.open()
    (maker.root / "train.txt").write_text("b\n")
    maker.describe(val_fraction=0.5)
    with pytest.raises(ValueError, match="val_fraction is for folders without lists"):
        maker.open()
    maker.describe(mean=[1, 2], std=[1, 2])
    with pytest.raises(ValueError, match="mean must have 3 numbers, one per channel"):
        maker.open()


# ---- names and lists


def test_names_that_repeat_in_folders_are_pairs_by_their_path(maker):
    masks = {}
    for city in ("aachen", "bonn"):
        for i in range(3):
            key = f"{city}/{i:04d}"
            _, masks[key] = maker.add(key, suffix=".JPG", mask_suffix=".PNG")
    maker.describe(group="folder")
    (maker.root / "train.txt").write_text("aachen/0000\nimages/bonn/0001.JPG\nC:\\bonn\\0002.JPG\n")
    source = maker.open()
    assert source.ids == ("aachen/0000", "bonn/0001", "bonn/0002")
    assert source.groups == ("aachen", "bonn", "bonn")
    for key in source.ids:
        np.testing.assert_array_equal(example(source, key)[1], masks[key])
    (maker.root / "masks" / "bonn" / "0001.PNG").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"bonn/0001\.JPG has no label map: .*bonn/0001\.png"
    ):
        maker.open()


def test_names_that_differ_in_their_unicode_form_only(maker):
    composed, decomposed = "z\u00fcrich", "zu\u0308rich"
    maker.add("other")
    image, mask = maker.add(composed)
    path = maker.root / "masks" / f"{composed}.png"
    path.rename(path.with_name(f"{decomposed}.png"))
    (maker.root / "train.txt").write_text(f"{decomposed}.png\n")
    source = maker.describe().open()
    assert source.ids == (composed,)
    np.testing.assert_array_equal(example(source, composed)[1], mask)


NAMES = ["plain", "with space", "with space 2", "v1.2", "a b.c"]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfplain\r\nwith space\r\nv1.2\r\n",
        "plain\nwith space\nv1.2\n".encode("utf-16"),
        b"plain.png\rwith space.png\rv1.2.png",
        b"images/plain.png masks/plain.png\nimages/with space.png masks/with space.png\n"
        b"x\\images\\v1.2.png\tx\\masks\\v1.2.png",
        b"/SegNet/CamVid/plain.png /SegNet/x.png\n\n  with space  \nv1.2 1\n",
        b"plain  -1\n/elsewhere/with space.PNG\nv1.2\n",
    ],
)
def test_lists_of_every_form(maker, content):
    for name in NAMES:
        maker.add(name)
    (maker.root / "train.txt").write_bytes(content)
    assert maker.describe().open().ids == ("plain", "v1.2", "with space")


def test_a_name_that_starts_another_is_a_whole_line(maker):
    for name in NAMES:
        maker.add(name)
    (maker.root / "train.txt").write_text("with space 2\na b.c\n")
    assert maker.describe().open().ids == ("a b.c", "with space 2")
    (maker.root / "train.txt").write_text("with space 3.png\n")
    with pytest.raises(FileNotFoundError, match="names with space 3, but there is no image"):
        maker.open()


def test_masks_as_jpeg_are_named(maker):
    maker.add("a", mask_suffix=".jpg")
    maker.add("b")
    (maker.root / "masks" / "b.jpg").write_bytes(b"a preview beside the mask")
    with pytest.raises(ValueError, match=r"a\.jpg is a label map as JPEG, which changes the ids"):
        maker.describe().open()
    kinds = {defect.kind for defect in sets.find("folder", maker.root).defects}
    assert kinds == {"lossy mask", "missing mask", "stray file"}


def test_links_are_followed_and_cycles_are_not(maker, tmp_path):
    maker.add("a")
    maker.add("b")
    moved = (maker.root / "images").rename(tmp_path / "elsewhere")
    (maker.root / "images").symlink_to(moved)
    for name in ("again", "once more"):  # two of them would be walked 2^40 times
        (moved / name).symlink_to(moved)
    assert maker.describe(val_fraction=0).open().ids == ("a", "b")
    (moved / "c.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(FileNotFoundError, match="c.png is a link to a file that does not exist"):
        maker.open()


# ---- what is concluded from the files


def _gray_and_color(maker, kinds):
    for number, channels in enumerate(kinds):
        shape = (*SIZE, channels) if channels > 1 else SIZE
        maker.add(f"{number}", image=maker.rng.integers(0, 256, shape, dtype=np.uint8))
    (maker.root / "train.txt").write_text("".join(f"{i}\n" for i in range(len(kinds))))
    return maker.describe()


@pytest.mark.parametrize(
    ("kinds", "channels"), [((1, 3, 3, 4), 3), ((3, 1, 1, 4), 1), ((1, 3), 3), ((4, 4, 3), 4)]
)
def test_the_majority_of_the_images_decides_on_the_channels(maker, kinds, channels):
    source = _gray_and_color(maker, kinds).open()
    assert source.info.channels == channels
    assert {source.example(i)[0].shape[2] for i in range(len(kinds))} == {channels}
    note = "1 of 3 images have no fourth channel"
    if channels != 4:
        note = f'all are brought to {channels}; the key "channels"'
    assert note in source.notes[0]
    source = maker.describe(channels=3).open()
    assert source.info.channels == 3 and not source.notes


def test_one_image_of_16_bits_keeps_its_bits(maker):
    deep = maker.rng.integers(0, 2**16, SIZE).astype(np.uint16)
    gray, _ = maker.add("a", image=maker.rng.integers(0, 256, SIZE, dtype=np.uint8))
    maker.add("b", image=deep)
    source = maker.describe(val_fraction=0).open()
    assert source.info.image_bits == 16
    np.testing.assert_array_equal(example(source, "a")[0][..., 0], gray)
    np.testing.assert_allclose(example(source, "b")[0][..., 0], deep / 257, rtol=1e-6)


def test_masks_of_0_and_255_are_two_classes(maker):
    masks = [maker.rng.choice([0, 255], SIZE).astype(np.uint8) for _ in range(3)]
    for i, mask in enumerate(masks):
        maker.add(f"{i}", mask=mask)
    source = maker.describe(classes=["background", "cell"], val_fraction=0).open()
    np.testing.assert_array_equal(example(source, "1")[1], masks[1] // 255)
    (note,) = source.notes
    assert "255 is the class 'cell'" in note and '"ids": [255]' in note
    # As optimizers make them of some masks of such a set.
    maker.add("0", mask=Image.fromarray(masks[0] > 0))
    source = maker.open()
    np.testing.assert_array_equal(example(source, "0")[1], masks[0] // 255)
    maker.add("0", mask=masks[0])
    # Whatever says otherwise is believed.
    said = {"name": "cell", "ids": [255]}
    assert not maker.describe(classes=["background", said], val_fraction=0).open().notes
    for content in (
        {"classes": ["background", "cell"], "ignore": [255]},
        {"classes": ["background", {"name": "cell", "ids": [1]}]},
        {"classes": ["background", "cell", "third"]},
    ):
        source = maker.describe(val_fraction=0, **content).open()
        assert example(source, "1")[1].max() == 255
        (note,) = source.notes
        assert "not one pixel" in note and "cell" in note
    maker.add("3", mask=np.ones(SIZE, np.uint8))
    source = maker.describe(classes=["background", "cell"], val_fraction=0).open()
    assert not source.notes and example(source, "1")[1].max() == 255


def test_a_mask_outside_of_the_sample_is_not_lost(maker, monkeypatch):
    monkeypatch.setattr("auto_deeplab_tf.data.sets.folder._SAMPLED_FILES", 1)
    for i in range(3):
        maker.add(f"{i}", mask=np.full(SIZE, 255 if i == 1 else 1, np.uint8))
    with pytest.raises(ValueError, match="label ids of folder are 0, 255; found 1"):
        maker.describe(classes=["background", "cell"], val_fraction=0).open()


def test_files_of_the_system_are_no_data(maker):
    maker.describe()
    for stem in "abcd":
        maker.add(stem)
    for path in ("images/Thumbs.db", "masks/desktop.ini", "images/._a.png", "masks/.DS_Store"):
        (maker.root / path).write_bytes(b"no image")
    assert not sets.find("folder", maker.root).defects


def test_masks_named_by_an_ending(maker):
    for stem in "abcd":
        maker.add(stem)
        (maker.root / f"masks/{stem}.png").rename(maker.root / f"masks/{stem}_mask.png")
    hint = sets.find("folder", maker.describe().root).defects[0]
    assert hint.kind == "mask names"
    assert '"mask_suffix": "_mask"' in hint.text
    raw = sets.find("folder", maker.describe(mask_suffix="_mask").root)
    assert not raw.defects
    assert sorted([*maker.open().ids, *maker.open("val").ids]) == list("abcd")
    (maker.root / "masks/b_mask.png").unlink()
    assert "masks/b_mask.png" in sets.find("folder", maker.root).defects[0].text


def test_a_missing_folder_is_answered_by_those_that_are_there(maker):
    maker.describe().add("a")
    (maker.root / "masks").rename(maker.root / "Labels")
    with pytest.raises(
        FileNotFoundError, match=r'no folder masks \(found: Labels, images\).*"masks_dir"'
    ):
        sets.find("folder", maker.root)


@pytest.mark.parametrize("described", [{}, {"channels": 4, "bits": 8}])
@pytest.mark.parametrize(
    ("sampled", "counted"), [(4, "1 of 4 images"), (3, "1 of 3 images looked at (of 4)")]
)
def test_images_without_a_fourth_channel_are_counted(
    maker, described, sampled, counted, monkeypatch
):
    monkeypatch.setattr("auto_deeplab_tf.data.sets.folder._SAMPLED_FILES", sampled)
    maker.describe(**described)
    for number in range(4):
        shape = (*SIZE, 3 if number == 0 else 4)
        maker.add(f"{number}", image=np.full(shape, 9, np.uint8))
    notes = sets.find("folder", maker.root).notes
    assert any(f"{counted} have no fourth channel" in note for note in notes)
    assert any("near-infrared" in note and '"channels": 3' in note for note in notes)
