"""Checks of input, the comparison with Keras, and publishing; no framework."""

import contextlib
import json
import zipfile

import h5py
import numpy as np
import pytest
from PIL import Image

from export import common


@pytest.fixture
def reference():
    return common.softmax(np.random.default_rng(0).normal(0, 3, (2, 9, 13, 5)).astype("float32"))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_channels_of_a_model_are_read_from_what_its_metadata_say(channels):
    assert common.input_channels({"input": common.input_text(channels)}) == channels
    assert common.input_channels({}) == 3


# ---- agreement


def test_equal_answers_agree(reference):
    agreement = common.compare(reference.argmax(-1), reference, reference, tie=0)
    assert agreement == common.Agreement(1.0, 0.0, 0.0, 5)
    common.EXACT.check(agreement, "it")


def test_class_0_everywhere_is_refused(reference):
    zeros = np.zeros(reference.shape[:-1], np.int32)
    agreement = common.compare(zeros, reference, reference, common.EXACT.tie)
    assert agreement.same_class == np.mean(reference.argmax(-1) == 0)
    with pytest.raises(common.Disagreement, match="^the file disagrees with the Keras model"):
        common.EXACT.check(agreement, "the file")


def test_right_classes_from_wrong_probabilities_are_refused(reference):
    sharper = common.softmax(2 * np.log(reference))
    agreement = common.compare(reference.argmax(-1), sharper, reference, common.EXACT.tie)
    assert agreement.same_class == 1.0
    with pytest.raises(common.Disagreement, match="nothing was published"):
        common.EXACT.check(agreement, "the file")


@pytest.mark.parametrize(("error", "published"), [(2e-3, True), (2e-2, False)])
def test_one_pixel_may_differ_by_the_rounding_of_large_logits(reference, error, published):
    probabilities = reference.copy()
    probabilities[0, 0, 0, :2] += np.array([-error, error], "float32")
    ids = reference.argmax(-1)
    agreement = common.compare(ids, probabilities, reference, common.EXACT.tie)
    assert agreement.mean_error < 1e-4
    with contextlib.nullcontext() if published else pytest.raises(common.Disagreement):
        common.EXACT.check(agreement, "the file")


def test_nan_is_refused(reference):
    broken = reference.copy()
    broken[0, 0, 0] = np.nan
    agreement = common.compare(reference.argmax(-1), broken, reference, common.EXACT.tie)
    with pytest.raises(common.Disagreement):
        common.EXACT.check(agreement, "the file")


def test_either_class_of_a_tie_will_do():
    reference = np.full((1, 1, 2, 2), 0.5, np.float32)
    reference[0, 0, 1] = 0.4, 0.6
    answered = np.array([[[1, 0]]])
    assert common.compare(answered, reference, reference, tie=0.0).same_class == 0.5
    assert common.compare(answered, reference, reference, tie=0.3).same_class == 1.0


def test_errors_of_opposite_signs_do_not_cancel():
    reference = np.array([[[[0.6, 0.4], [0.6, 0.4]]]], np.float32)
    probabilities = np.array([[[[0.9, 0.1], [0.3, 0.7]]]], np.float32)
    agreement = common.compare(np.zeros((1, 1, 2), int), probabilities, reference, tie=0)
    assert agreement.mean_error == pytest.approx(0.3)
    assert agreement.max_error == pytest.approx(0.3)


@pytest.mark.parametrize(
    "broken", [{"same_class": 0.89}, {"max_error": 0.011}, {"mean_error": 0.0011}]
)
def test_each_bound_is_checked(broken):
    tolerance = common.Tolerance(same_class=0.9, max_error=0.01, mean_error=0.001, tie=0)
    bounds = {"same_class": 0.9, "max_error": 0.01, "mean_error": 0.001, "num_classes": 3}
    tolerance.check(common.Agreement(**bounds), "it")
    with pytest.raises(common.Disagreement, match="^it disagrees with the Keras model"):
        tolerance.check(common.Agreement(**bounds | broken), "it")


def test_other_shapes_and_ids_out_of_range_are_refused(reference):
    ids = reference.argmax(-1)
    with pytest.raises(common.Disagreement, match=r"shapes \(2, 13, 9\)"):
        common.compare(ids.swapaxes(1, 2), reference, reference, tie=0)
    with pytest.raises(common.Disagreement, match=r"class ids 5\.\.9, outside 0\.\.4"):
        common.compare(ids + 5, reference, reference, tie=0)


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (2, 0, 1, 3), (0, 3, 1, 2), (3, 2, 1, 0)])
def test_logits_are_found_in_any_order_of_axes(axes, reference):
    logits = np.log(reference)
    ids = reference.argmax(-1)
    moved = logits[:, None].transpose(0, *(axis + 1 for axis in axes))
    found = common.probabilities_of(moved, ids, reference)
    np.testing.assert_allclose(found, reference, atol=1e-6)
    with pytest.raises(common.Disagreement, match="not the argmax"):
        common.probabilities_of(-moved, ids, reference)


def test_square_images_of_one_class_are_told_apart_by_the_probabilities():
    logits = np.random.default_rng(1).uniform(0, 1, (2, 7, 7, 3)).astype("float32")
    logits[..., 1] += 5
    reference = common.softmax(logits)
    moved = logits[:, None].transpose(0, 3, 1, 2, 4)
    found = common.probabilities_of(moved, reference.argmax(-1), reference)
    np.testing.assert_allclose(found, reference, atol=1e-6)


def test_worst_takes_the_worst_of_each():
    one, other = common.Agreement(1.0, 1e-3, 1e-4, 5), common.Agreement(0.9, 1e-5, 1e-3, 2)
    assert common.worst([one, other]) == common.Agreement(0.9, 1e-3, 1e-3, 2)


# ---- images


def test_random_images_are_seeded_whole_and_varied():
    images = common.random_images(3, (33, 50), seed=4)
    assert images.shape == (3, 33, 50, 3) and images.dtype == np.float32
    assert np.array_equal(images, np.round(images)) and 0 <= images.min() < images.max() <= 255
    assert np.array_equal(images, common.random_images(3, (33, 50), seed=4))
    assert not np.array_equal(images, common.random_images(3, (33, 50), seed=5))
    assert images.mean((1, 2)).std() > 1 and images.std((1, 2)).min() > 10


def test_calibration_images_are_spread_over_the_folder(tmp_path):
    for index in range(10):
        Image.new("RGB", (4, 6), (index, 0, 0)).save(tmp_path / f"{index}.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    for name in ("._0.png", ".hidden.png"):  # AppleDouble's, which is no image, and another
        (tmp_path / name).write_bytes(b"no image")
    names = [path.name for path in common.find_images(tmp_path, 5)]
    assert names == ["0.png", "2.png", "4.png", "7.png", "9.png"]
    Image.new("RGB", (4, 6)).save(tmp_path / "CAMERA.JPG")
    assert len(common.find_images(tmp_path, 99)) == 11


def test_folders_that_cannot_calibrate(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        common.find_images(tmp_path / "none", 4)
    with pytest.raises(FileNotFoundError, match=r"holds no image \(\.png, \.jpg"):
        common.find_images(tmp_path, 4)


# ---- input


def test_files_that_are_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file; give the model.keras that"):
        common.check_model_file(tmp_path / "none.keras")
    junk = tmp_path / "junk.keras"
    junk.write_bytes(b"junk")
    with pytest.raises(ValueError, match="is no .keras file"):
        common.check_model_file(junk)
    other = tmp_path / "other.keras"
    weights = tmp_path / "weights"
    h5py.File(weights, "w").close()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("config.json", json.dumps({"registered_name": "Functional"}))
        archive.write(weights, "model.weights.h5")
    with pytest.raises(ValueError, match="holds a Keras model of class 'Functional', not 'auto_"):
        common.check_model_file(other)
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("weights.h5", b"")
    with pytest.raises(ValueError, match="is no .keras file"):
        common.check_model_file(other)


def test_sizes():
    assert common.check_input_size((32, 480)) == (32, 480)
    with pytest.raises(ValueError, match="input_size=31x64: height and width must each be at"):
        common.check_input_size((31, 64))


def test_output_files(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.tflite"):
        common.check_output_file(tmp_path / "model.bin", ".tflite")
    (tmp_path / "folder.tflite").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        common.check_output_file(tmp_path / "folder.tflite", ".tflite")


def test_a_missing_package_names_the_extra():
    with pytest.raises(ImportError, match=r"needs no_such_package.*auto_deeplab_tf\[export\]"):
        common.require("no_such_package.part")


# ---- publishing


def test_versions_count_on_from_the_highest(tmp_path):
    for name in ("1", "7", "x9"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kept").touch()
    (tmp_path / "8").write_text("a file that has the next number")
    for expected in ("9", "10", "11"):
        with common.staging_folder(tmp_path) as staged:
            (staged / "version").mkdir()
            (staged / "version" / "model").touch()
            assert not staged.name.isdecimal()
            assert common.publish_version(staged / "version", tmp_path).name == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "1",
        "10",
        "11",
        "7",
        "8",
        "9",
        "x9",
    ]


def test_a_version_taken_in_between_is_not_overwritten(tmp_path, monkeypatch):
    staged = tmp_path / ".staged"
    staged.mkdir()
    (staged / "mine").touch()
    rename = type(tmp_path).rename

    def raced(self, target):
        monkeypatch.undo()
        target.mkdir()
        (target / "theirs").touch()
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", raced)
    assert common.publish_version(staged, tmp_path).name == "2"
    assert [path.name for path in (tmp_path / "1").iterdir()] == ["theirs"]
    assert [path.name for path in (tmp_path / "2").iterdir()] == ["mine"]


def test_a_failed_export_leaves_nothing(tmp_path):
    root = tmp_path / "made" / "for_it"
    with pytest.raises(RuntimeError), common.staging_folder(root) as staged:
        (staged / "half").write_text("written")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError), common.staging_folder(tmp_path) as staged:
        raise RuntimeError
    assert tmp_path.is_dir() and not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with (
        pytest.raises(NotADirectoryError, match="file is a file, where a folder is needed"),
        common.staging_folder(tmp_path / "file"),
    ):
        pass


def test_a_published_folder_is_readable_by_others(tmp_path):
    with common.staging_folder(tmp_path) as staged:
        assert staged.stat().st_mode & 0o777 == 0o755


def test_quiet_drops_what_is_written_below_python_and_restores_it(capfd):
    import os

    with common.quiet():
        os.write(1, b"noise")
        os.write(2, b"noise")
    os.write(1, b"heard")
    os.write(2, b"heard")
    assert capfd.readouterr() == ("heard", "heard")
