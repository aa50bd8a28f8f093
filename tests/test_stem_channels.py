"""The stem's channels as a setting: of search, networks, counts, budgets and files."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from commands import call

from auto_deeplab_tf import Segmenter, config, decode
from auto_deeplab_tf.accounting import count
from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.nn.supernet import build_supernet

STEM = (6, 5, 7)
SIZES = {"filter_multiplier": 2, "head_channels": 8, "decoder_channels": 4}
IMAGES = np.random.default_rng(0).uniform(0, 255, (1, 33, 41, 3)).astype("float32")


def test_a_network_has_the_channels_it_is_counted_with_and_saves_them(tmp_path):
    architecture = Architecture((0, 1), Architecture.preset("auto_deeplab").cell, "separable")
    model = Segmenter(architecture, 3, stem_channels=STEM, **SIZES)
    counted = count(architecture, num_classes=3, input_size=(33, 41), stem_channels=STEM, **SIZES)
    assert counted.params == sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    wide = count(architecture, num_classes=3, input_size=(33, 41), **SIZES)
    assert counted.params < wide.params and counted.multi_adds < wide.multi_adds
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.network.settings.stem_channels == STEM
    np.testing.assert_array_equal(model(IMAGES), loaded(IMAGES))


def test_a_supernet_has_them_in_both_formulations_and_saves_them(tmp_path):
    fused, plain = (
        build_supernet(3, 1, 1, 2, stem_channels=STEM, formulation=name)
        for name in ("fused", "plain")
    )
    features = fused.forward(IMAGES, training=False).features
    assert features[-2, -1].shape == (1, 17, 21, STEM[1])
    assert features[-1, 0].shape == (1, 9, 11, STEM[2])
    np.testing.assert_allclose(fused(IMAGES), plain(IMAGES), atol=1e-4)
    fused.save(tmp_path / "search.keras")
    loaded = keras.saving.load_model(tmp_path / "search.keras")
    assert loaded.settings == dataclasses.replace(fused.settings, stem_channels=STEM)
    np.testing.assert_array_equal(fused(IMAGES), loaded(IMAGES))


def test_decode_counts_a_budget_with_them(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    np.savez(
        tmp_path / "logits.npz",
        alpha=generator.standard_normal((5, 8)),
        beta=generator.standard_normal((4, 4, 3)),
    )
    found = []
    for stem in ("64,64,128", "6,5,7"):
        flags = [f"--logits={tmp_path}/logits.npz", f"--output={tmp_path}/architecture.json"]
        flags += ["--filter_multiplier=4", "--input_size=64x64", f"--stem_channels={stem}"]
        call(decode, config.DecodeConfig, flags, monkeypatch)
        written = json.loads((tmp_path / "architecture.json").read_text())["provenance"]["decode"]
        assert written["counted_with"]["stem_channels"] == [int(c) for c in stem.split(",")]
        found.append(written["params"])
    assert found[1] < found[0]


@pytest.mark.parametrize("channels", ["8,8", "8,8,8,8"])
def test_another_number_of_channels_is_refused(channels):
    for config_class in (config.SearchConfig, config.SummarizeConfig):
        required = {"run_dir": "x", "data_dir": "x"} if config_class is config.SearchConfig else {}
        with pytest.raises(ValueError, match="stem_channels must be 3 integers"):
            values = tuple(map(int, channels.split(",")))
            config_class(stem_channels=values, **required)
