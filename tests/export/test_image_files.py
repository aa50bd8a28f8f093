"""Image files in graph operations: the same images as training and `predict` see."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, PngImagePlugin

from auto_deeplab_tf import Segmenter
from auto_deeplab_tf.data import image_files as data_files
from auto_deeplab_tf.data import resizing
from export import common, image_files
from export.serving import client


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


def _encoded(image, file_format, orientation=None):
    image, buffer = Image.fromarray(image), io.BytesIO()
    exif = image.getexif()
    if orientation:
        exif[0x0131] = "a program"  # a tag before and one after the orientation
        exif[0x0112], exif[0x0100] = orientation, 90
    image.save(buffer, file_format, exif=exif, **({"quality": 98} if file_format == "JPEG" else {}))
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", ["RGB", "L", "RGBA", "LA", "P"])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_the_graph_decodes_as_the_product_does(channels, kind, file_format):
    image = Image.fromarray(common.random_images(1, (40, 51), seed=1)[0].astype(np.uint8))
    if file_format == "JPEG" and kind not in ("RGB", "L"):
        return
    data = _encoded(np.asarray(image.convert(kind)), file_format)
    if kind == "P":
        buffer = io.BytesIO()
        image.convert("P").save(buffer, "PNG")
        data = buffer.getvalue()
    found = tf.function(image_files.decode)(tf.constant(data), 2**20, channels).numpy()
    expected = data_files.read_photograph(data, channels)
    assert found.shape == expected.shape
    # Decoders of JPEG round differently.
    assert np.abs(found.astype(int) - expected).max() <= (4 if file_format == "JPEG" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["II", "MM"])
def test_the_graph_turns_photographs(orientation, order):
    image = common.random_images(1, (40, 51), seed=1)[0].astype(np.uint8)
    data = _encoded(image, "JPEG", orientation)
    if order == "II":  # Pillow writes the other one
        exif = Image.Exif()
        exif.endian = "<"
        exif[0x0131], exif[0x0112] = "a program", orientation
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=98, exif=exif)
        data = buffer.getvalue()
    assert (b"II*" in data[:60]) == (order == "II")
    found = tf.function(image_files.decode)(tf.constant(data), 2**20).numpy()
    expected = data_files.read_photograph(data, 3)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 4


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_the_client_turns_what_only_xmp_says_to_turn(file_format, tmp_path):
    image = Image.fromarray(common.random_images(1, (40, 51), seed=1)[0].astype(np.uint8))
    xmp, text = '<rdf:Description tiff:Orientation="6"/>', PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp)
    options = {"xmp": xmp.encode()} if file_format == "JPEG" else {"pnginfo": text}
    image.save(tmp_path / "turned", file_format, **options)
    data = (tmp_path / "turned").read_bytes()
    turned = data_files.read_photograph(data, 3)
    assert turned.shape == (51, 40, 3)
    sent = client.encoded(tmp_path / "turned", turned, 3)
    np.testing.assert_array_equal(image_files.decode(tf.constant(sent), 2**20), turned)


@pytest.mark.parametrize("orientation", [None, 6])
def test_the_client_sends_what_is_decoded_alike_as_it_is(orientation, tmp_path):
    image = common.random_images(1, (40, 51), seed=1)[0].astype(np.uint8)
    for file_format in ("JPEG", "PNG") if orientation is None else ("JPEG",):
        data = _encoded(image, file_format, orientation)
        (tmp_path / "image").write_bytes(data)
        assert client.encoded(tmp_path / "image", data_files.read_photograph(data, 3), 3) == data


def test_the_graph_refuses_what_it_would_read_otherwise():
    image = common.random_images(1, (40, 51), seed=1)[0].astype(np.uint8)
    frames, buffer = [Image.fromarray(image), Image.fromarray(image[::-1])], io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    for data in (_encoded(image, "PNG", 3), buffer.getvalue()):
        with pytest.raises(tf.errors.InvalidArgumentError, match="a single image without EXIF"):
            image_files.decode(tf.constant(data), 2**20)
    assert image_files.decode(tf.constant(_encoded(image, "PNG")), 2**20).shape == image.shape


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
