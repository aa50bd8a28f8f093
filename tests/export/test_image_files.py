"""Image files in graph operations: the same images as training and `predict` see."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from auto_deeplab_tf import Segmenter
from auto_deeplab_tf.data import resizing
from export import common, image_files


@pytest.mark.parametrize("size", [(20, 31), (61, 80), (90, 31), (40, 50), (33, 200)])
def test_resizing_is_that_of_the_records(size):
    image = common.random_images(1, (40, 50), seed=1)[0].astype(np.uint8)
    resize = tf.function(
        image_files.resize,
        input_signature=[tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([2], tf.int32)],
    )
    resized = resize(image, tf.constant(size)).numpy()
    assert resized.dtype == np.float32
    np.testing.assert_array_equal(resized, resizing.resize_image(image, size))


@pytest.mark.parametrize("trained", [None, (180, 240), (97, 129)])
@pytest.mark.parametrize("fixed", [None, (65, 99)])
def test_the_network_sees_the_size_of_the_command(trained, fixed):
    rng = np.random.default_rng(0)
    rule = type("Model", (), {"image_size": trained})
    for size in rng.integers(1, 700, (200, 2)):
        expected = Segmenter.command_input_size(rule, tuple(int(side) for side in size), fixed)
        seen = image_files.input_size(tf.constant(size, tf.int32), fixed, trained)
        assert tuple(seen.numpy()) == expected


def test_a_file_is_read_as_the_network_sees_it(tmp_path):
    image = common.random_images(1, (64, 90), seed=2)[0].astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    read = image_files.read(tmp_path / "image.png", (33, 41))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, resizing.resize_image(image, (33, 41)))


@pytest.mark.parametrize("content", [b"", b"junk", b"\x89PNG\r\n\x1a\n" + b"junk" * 20])
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.png cannot be read as an image") as raised:
        image_files.read(tmp_path / "broken.png", (64, 64))
    assert "\n" not in str(raised.value)
