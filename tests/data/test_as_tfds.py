"""A data set as TFDS has it: images as they are shown, labels as their numbers."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from auto_deeplab_tf import data
from auto_deeplab_tf.data import image_files
from auto_deeplab_tf.errors import UserError

SIZE = (18, 25)
RNG = np.random.default_rng(0)
PHOTOGRAPH = RNG.integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def write(root, files, **description):
    """Writes a folder of the same photograph with several masks, and its description."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for name, mask in files.items():
        Image.fromarray(PHOTOGRAPH).save(root / "images" / f"{name.partition('.')[0]}.png")
        mask.save(root / "masks" / name)
    content = {"classes": ["a", "b", "c"], "val_fraction": 0, **description}
    (root / "dataset.json").write_text(json.dumps(content))


def built(root):
    """Image and label of each image id, as TFDS decodes them."""
    builder = data.tfds_builder("folder", data_dir=root, tfds_dir=root.parent / "tfds")
    builder.download_and_prepare()
    examples = tfds.as_numpy(builder.as_dataset(split="train"))
    return {e["image_id"].decode(): (e["image"], e["segmentation_label"]) for e in examples}


def test_labels_are_ids_in_every_kind_of_file(tmp_path):
    ids = RNG.integers(0, 2, SIZE, dtype=np.uint8)
    palette = Image.fromarray(ids)
    palette.putpalette([200, 30, 7, 9, 80, 255])
    masks = {"gray.png": Image.fromarray(ids), "palette.png": palette}
    masks |= {"bit.png": Image.fromarray(ids > 0), "scan.tif": Image.fromarray(ids)}
    write(tmp_path / "mine", masks)
    found = built(tmp_path / "mine")
    assert found.keys() == {"gray", "palette", "bit", "scan"}
    for name, (image, label) in found.items():
        np.testing.assert_array_equal(image, PHOTOGRAPH, err_msg=name)
        np.testing.assert_array_equal(label[..., 0], ids, err_msg=name)


def test_labels_above_255_keep_16_bits(tmp_path):
    ids = RNG.choice([7, 300, 40000], SIZE).astype(np.uint16)
    classes = [{"name": str(i), "ids": [i]} for i in (7, 300, 40000)]
    write(tmp_path / "mine", {"deep.png": Image.fromarray(ids)}, classes=classes)
    _, label = built(tmp_path / "mine")["deep"]
    np.testing.assert_array_equal(label[..., 0], ids)


def test_labels_that_are_colors_are_class_ids(tmp_path):
    ids = RNG.integers(0, 2, SIZE)
    colors = np.array([[200, 30, 7], [9, 80, 255]], np.uint8)
    classes = [{"name": str(i), "color": color} for i, color in enumerate(colors.tolist())]
    mask = Image.fromarray(colors[ids])
    write(tmp_path / "mine", {"a.png": mask}, classes=classes, masks="colors")
    np.testing.assert_array_equal(built(tmp_path / "mine")["a"][1][..., 0], ids)


def test_a_photograph_is_turned_as_viewers_show_it(tmp_path):
    root, exif = tmp_path / "mine", Image.Exif()
    write(root, {"a.png": Image.new("L", SIZE)})
    exif[0x0112] = 6
    (root / "images" / "a.png").unlink()
    Image.fromarray(PHOTOGRAPH).save(root / "images" / "a.jpg", exif=exif)
    shown = image_files.read_photograph((root / "images" / "a.jpg").read_bytes(), 3)
    image, label = built(root)["a"]
    np.testing.assert_array_equal(image, shown)
    assert image.shape[:2] == label.shape[:2] == SIZE[::-1]


def test_an_id_that_the_set_does_not_have_is_named(tmp_path):
    write(tmp_path / "mine", {"a.png": Image.new("L", SIZE[::-1], 9)})
    with pytest.raises(
        UserError, match="folder train, a: label ids of folder are 0..2, 255; found 9"
    ):
        built(tmp_path / "mine")
