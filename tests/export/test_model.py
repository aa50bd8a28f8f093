"""Reading model.keras: what is refused, mixed precision, class names."""

import json
import zipfile

import keras
import numpy as np
import pytest

from auto_deeplab_tf import Segmenter, build_network
from export import common, model


def rewritten(source, target, change):
    """Copies a .keras file with its config.json changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name == "config.json" else content)
    return target


def test_it_answers_as_keras_does(model_file, answer):
    images = common.random_images(2, (64, 96), seed=2)
    loaded = model.load(model_file)
    _, probabilities = answer(images)
    np.testing.assert_allclose(model.reference(loaded, images), probabilities, atol=1e-6)


def test_a_changed_architecture_is_refused(model_file, segmenter, tmp_path):
    fingerprint = segmenter.network.architecture.fingerprint.encode()
    changed = rewritten(
        model_file,
        tmp_path / "changed.keras",
        lambda content: content.replace(b'"sep_3x3"', b'"sep_5x5"'),
    )
    with pytest.raises(ValueError, match="cannot be read: .*fingerprint") as raised:
        model.load(changed)
    assert "\n" not in str(raised.value) and fingerprint.decode() in str(raised.value)


def test_a_damaged_file_is_refused(model_file, tmp_path):
    damaged = rewritten(model_file, tmp_path / "damaged.keras", lambda content: content)
    content = bytearray(damaged.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged \(in model.weights.h5\); copy or save"):
        model.load(damaged)


def test_weights_that_are_not_finite_are_refused(segmenter, tmp_path):
    variable = segmenter.network.trainable_variables[3]
    kept = variable.value.numpy()
    try:
        variable.assign(np.full_like(kept, np.nan))
        segmenter.save(tmp_path / "nan.keras")
    finally:
        variable.assign(kept)
    with pytest.raises(ValueError, match="its variable .* is not finite; train again"):
        model.load(tmp_path / "nan.keras")


def test_mixed_precision_becomes_float32_with_the_same_weights(segmenter, answer, tmp_path):
    own = segmenter.network
    network = build_network(
        own.architecture,
        own.num_classes,
        own.settings.filter_multiplier,
        head_channels=own.settings.head_channels,
        decoder_channels=own.settings.decoder_channels,
        dtype="mixed_bfloat16",
    )
    mixed = Segmenter(network)
    network.set_weights(own.get_weights())
    mixed.save(tmp_path / "mixed.keras")
    assert keras.saving.load_model(tmp_path / "mixed.keras").network.compute_dtype == "bfloat16"
    loaded = model.load(tmp_path / "mixed.keras")
    assert {layer.compute_dtype for layer in loaded.network._flatten_layers()} == {"float32"}
    images = common.random_images(1, (64, 96), seed=3)
    _, probabilities = answer(images)
    np.testing.assert_allclose(model.reference(loaded, images), probabilities, atol=1e-6)
    # Without class names the numbers stand in.
    assert model.describe(loaded)["class_names"] == [str(index) for index in range(7)]


def test_the_description_is_json_and_names_the_architecture(segmenter):
    description = json.loads(json.dumps(model.describe(segmenter)))
    assert description["architecture_fingerprint"] == segmenter.network.architecture.fingerprint
    assert description["class_names"] == list(segmenter.class_names)
    assert description["package"].startswith("auto_deeplab_tf ")
