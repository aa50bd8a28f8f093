"""evaluate on SavedModels: the scores of the .keras file they came from; what is refused."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny_camvid

from auto_deeplab_tf import cli, config, evaluate, served
from auto_deeplab_tf.architecture import Architecture, Edge
from auto_deeplab_tf.data import sets
from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.segmenter import Segmenter
from auto_deeplab_tf.served import ServedModel, load_model
from export.saved_model import export_saved_model

ARCHITECTURE = Architecture(
    levels=(1,),
    cell=((Edge("prev", "sep_3x3"), Edge("prev_prev", "max_pool_3x3")),),
    atrous="separable",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    root = tiny_camvid.write(folder / "CamVid", {"train": 1, "val": 4})
    return [f"--data_dir={root}", f"--cache_dir={folder / 'cache'}", "--dataset=camvid"]


@pytest.fixture(scope="module", params=[None], ids=["own_size"])
def model_file(request, tmp_path_factory):
    """A model that answers several classes; its training images had a size or not."""
    keras.utils.set_random_seed(0)
    info = sets.describe("camvid")
    segmenter = Segmenter(
        ARCHITECTURE,
        num_classes=11,
        filter_multiplier=2,
        head_channels=8,
        decoder_channels=4,
        class_names=info.class_names,
        image_size=request.param,
    )
    rng = np.random.default_rng(0)
    for variable in segmenter.trainable_variables:
        variable.assign_add(rng.normal(0, 0.05, variable.shape))
    path = tmp_path_factory.mktemp("model") / "model.keras"
    segmenter.save(path)
    return path


def score(model, data, output_dir, *more):
    arguments = [f"--model={model}", f"--output_dir={output_dir}", "--overlays=1", *data, *more]
    return evaluate.evaluate(cli.parse(config.EvaluateConfig, arguments))


def test_a_saved_model_has_the_scores_of_its_keras_file(model_file, data, tmp_path):
    exported = export_saved_model(model_file, tmp_path / "served [1]").path
    expected = score(model_file, data, tmp_path / "keras")
    assert expected["pixel_accuracy"] > 0
    # The folder of versions, and the version itself.
    for folder in (exported.parent, exported):
        found = score(folder, data, tmp_path / "saved", "--batch_size=2")
        assert found.pop("model") == str(folder)
        # Rounding may decide a pixel otherwise where the logits are resized in another graph.
        for name in ("miou", "pixel_accuracy", "mean_of_miou_and_pixel_accuracy"):
            assert found.pop(name) == pytest.approx(expected[name], abs=1e-3)
        assert found.pop("per_class_iou") == pytest.approx(expected["per_class_iou"], abs=1e-2)
        assert found == {name: expected[name] for name in found}
    with pytest.raises(ValueError, match="scales and flip need a .keras file: model="):
        score(exported, data, tmp_path / "saved", "--flip")


@pytest.mark.parametrize("model_file", [(48, 64)], ids=["one_size"], indirect=True)
def test_images_that_a_saved_model_refuses_are_refused_in_one_line(model_file, tmp_path):
    path = export_saved_model(model_file, tmp_path / "served", max_image_pixels=13000).path
    model = load_model(path)

    def refused(shape, words, seen=None):
        with pytest.raises(UserError, match=words) as error:
            model.predict_class_ids(np.zeros(shape, np.uint8), input_size=seen)
        assert str(error.value).startswith(f"model={path} ") and "\n" not in str(error.value)

    small, large = (20, 52), (120, 140)
    words = r"refuses the images \(assertion failed: .*at least\] \[32\].*\[20 52\]\): give images,"
    refused((1, *small, 3), words)
    words = r"refuses the images \(.*at most\] \[13000\] .*\[120 140\].*\): give images,"
    refused((1, *large, 3), words, model.command_input_size(large))
    for channels in (1, 4):
        words = rf"takes images \[N, H, W, 3\]. Received: shape \[1, 40, 52, {channels}\]; evaluate"
        refused((1, 40, 52, channels), words)
        refused((1, 40, 52, channels), words, model.command_input_size((40, 52)))


def foreign(folder, answer, images=(None, None, None, 3), name="serving_default"):
    """Writes a SavedModel of another program's."""
    module = tf.Module()
    spec = tf.TensorSpec(images, tf.float32, name="images")
    module.serve = tf.function(answer, input_signature=[spec])
    tf.saved_model.save(module, str(folder), signatures={name: module.serve})
    return folder


def darkest(images):
    return {"class_ids": tf.argmin(images, axis=-1, output_type=tf.int32)}


def test_a_saved_model_of_another_program_is_scored(data, tmp_path):
    model = load_model(foreign(tmp_path / "foreign", darkest))
    assert isinstance(model, ServedModel) and model.num_classes is None
    image = np.random.default_rng(0).integers(0, 256, (2, 40, 52, 3)).astype("uint8")
    np.testing.assert_array_equal(model.predict_class_ids(image), image.argmin(-1))
    # Seen at twice the size: nearest neighbour brings every pixel back.
    twice = model.predict_class_ids(image.repeat(2, 1).repeat(2, 2), input_size=(40, 52))
    np.testing.assert_array_equal(twice[:, ::2, ::2], image.argmin(-1))
    result = score(tmp_path / "foreign", data, tmp_path / "out")
    assert result["architecture_fingerprint"] is None and result["num_images"] == 4
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == result


def test_of_numbered_versions_the_highest_number_is_read(tmp_path):
    foreign(
        tmp_path / "9", lambda images: {"class_ids": tf.zeros_like(darkest(images)["class_ids"])}
    )
    foreign(tmp_path / "10", darkest)
    (tmp_path / "11").mkdir()  # not written yet
    image = np.random.default_rng(1).integers(0, 256, (1, 40, 52, 3)).astype("uint8")
    ids = load_model(tmp_path).predict_class_ids(image)
    np.testing.assert_array_equal(ids, image.argmin(-1))


def test_a_fixed_size_is_kept(tmp_path):
    model = load_model(foreign(tmp_path / "fixed", darkest, (None, 64, 48, 3)))
    assert model.command_input_size((100, 100)) == (64, 48)
    with pytest.raises(ValueError, match="takes images of 64x48 only"):
        model.command_input_size((100, 100), (32, 32))


def test_what_is_no_such_saved_model_is_refused_in_one_line(data, tmp_path):
    (tmp_path / "empty" / "1").mkdir(parents=True)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "saved_model.pb").write_bytes(b"no protocol buffer")
    named = foreign(tmp_path / "named", darkest, name="other")
    floats = foreign(tmp_path / "floats", lambda images: {"logits": images})
    for folder, words in (
        (tmp_path / "nothing", "no such file"),
        (tmp_path / "empty", "is a folder without a SavedModel"),
        (tmp_path / "broken", "cannot be read as a SavedModel"),
        (named, "has no signature serving_default; needed is serving_default: images float32"),
        (floats, "takes images float32 .* and returns logits float32 .*; needed is serving_def"),
    ):
        with pytest.raises((ValueError, OSError), match=words) as error:
            load_model(folder)
        assert "\n" not in str(error.value) and str(folder) in str(error.value)
    for shift, words in ((-1, "returns class ids -1"), (11, "classes 0..10")):
        folder = foreign(
            tmp_path / f"shift{shift}",
            lambda images, shift=shift: {"class_ids": darkest(images)["class_ids"] + shift},
        )
        with pytest.raises(ValueError, match=words):
            score(folder, data, tmp_path / "out")


def test_more_than_256_classes_are_read_as_16_bits():
    class_ids = np.random.default_rng(0).integers(0, 300, (1, 5, 7))
    model = object.__new__(ServedModel)  # a SavedModel of 300 classes would take long to make
    png = tf.io.encode_png(tf.constant(class_ids[0, ..., None], tf.uint16))
    model._signatures = {"encoded_image": lambda image_bytes: {"mask_png_bytes": tf.stack([png])}}
    model.num_classes = 300
    found = model._serve_encoded(np.zeros((1, 5, 7, 3), np.uint8))
    np.testing.assert_array_equal(found, class_ids)


def test_load_model_is_the_package_s_own_and_importing_stays_light(model_file):
    program = (
        "import sys, auto_deeplab_tf\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
        "model = auto_deeplab_tf.load_model(sys.argv[1])\n"
        "print(type(model).__name__, model.num_classes)\n"
        "import keras\n"
        "print(type(keras.saving.load_model(sys.argv[1])).__name__)"
    )
    command = [sys.executable, "-c", program, str(model_file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split() == ["Segmenter", "11", "Segmenter"], done.stderr


def test_a_saved_model_in_a_folder_with_pattern_characters_is_read(tmp_path):
    model = load_model(foreign(tmp_path / "lr=[0.1] *?", darkest))
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 9, 3)).astype("uint8")
    np.testing.assert_array_equal(model.predict_class_ids(image), image.argmin(-1))


def test_nearest_takes_the_pixel_under_the_centre():
    """Of three pixels in a row made five: centres lie at 0.3, 0.9, 1.5, 2.1, 2.7 of them."""
    ids = np.arange(3)[None, None, :].repeat(3, axis=1)
    np.testing.assert_array_equal(served._nearest(ids, (1, 5)), [[[0, 0, 1, 2, 2]]])
    np.testing.assert_array_equal(served._nearest(ids, (1, 1)), [[[1]]])
