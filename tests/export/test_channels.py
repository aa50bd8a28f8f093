"""Exports of networks whose images have 1 and 4 channels."""

import numpy as np
import pytest
import tensorflow as tf
from random_architectures import random_architecture

from export import common, tensorrt, tflite
from export import saved_model as saved_model_lib

SIZE = (64, 80)


# What one channel asks of TFLite and ONNX four channels ask as well.
four_channels = pytest.mark.parametrize(
    "exported_from", [pytest.param(1, marks=pytest.mark.slow), 4], indirect=True
)


@pytest.fixture(scope="module", params=[1, 4])
def exported_from(request, tmp_path_factory):
    """(number of channels, model.keras, images of fixed size, their class ids)."""
    import keras

    from auto_deeplab_tf import Segmenter

    keras.utils.set_random_seed(3)
    channels = request.param
    segmenter = Segmenter(
        random_architecture(2),
        num_classes=5,
        filter_multiplier=2,
        head_channels=8,
        decoder_channels=4,
        mean=(100.0,) * channels,
        std=(60.0,) * channels,
    )
    path = tmp_path_factory.mktemp("channels") / "model.keras"
    segmenter.save(path)
    images = common.random_images(2, SIZE, seed=5, channels=channels)
    expected = np.asarray(segmenter(images)).argmax(-1)
    assert np.unique(expected).size > 1
    return channels, path, images, expected


def test_saved_model(exported_from, tmp_path):
    channels, path, images, expected = exported_from
    folder = saved_model_lib.export_saved_model(path, tmp_path).path
    signatures = tf.saved_model.load(str(folder)).signatures
    answer = signatures["serving_default"](images=tf.constant(images))["class_ids"]
    assert np.mean(answer == expected) > 0.999
    # A file of four channels would say opacity, not what the fourth channel measured.
    assert ("encoded_image" in signatures) == (channels == 1)
    if channels == 1:
        png = tf.io.encode_png(tf.constant(images[0], tf.uint8))
        mask = signatures["encoded_image"](image_bytes=png[None])["mask_png_bytes"][0]
        assert np.mean(tf.io.decode_png(mask)[..., 0] == expected[0]) > 0.999


@four_channels
def test_tflite(exported_from, tmp_path):
    channels, path, images, expected = exported_from
    file = tflite.export_tflite(path, tmp_path / "f[1]" / "model.tflite", SIZE).path
    answer = tflite.run(file.read_bytes(), images[:1])[0]
    assert np.mean(answer == expected[:1]) > 0.999


@four_channels
def test_onnx(exported_from, tmp_path):
    import onnx

    channels, path, _, _ = exported_from
    # The exporter itself compares the file's answers with those of Keras.
    file = tensorrt.export_tensorrt(path, tmp_path / "f[1]" / "model.onnx", SIZE, "onnx").path
    shape = onnx.load(file).graph.input[0].type.tensor_type.shape
    assert [dimension.dim_value for dimension in shape.dim] == [1, *SIZE, channels]


def test_calibration_images_of_four_channels_keep_their_alpha(tmp_path):
    from export import image_files

    image = common.random_images(1, (40, 50), channels=4)[0]
    (tmp_path / "a.png").write_bytes(tf.io.encode_png(tf.constant(image, tf.uint8)).numpy())
    read = image_files.read(tmp_path / "a.png", (40, 50), 4)
    np.testing.assert_array_equal(read, image)
    (tmp_path / "b.jpg").write_bytes(
        tf.io.encode_jpeg(tf.constant(image[..., :3], tf.uint8)).numpy()
    )
    read = image_files.read(tmp_path / "b.jpg", (40, 50), 4)
    assert read.shape == (40, 50, 4) and np.all(read[..., 3] == 255)
