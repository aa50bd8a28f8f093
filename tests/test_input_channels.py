"""Images of 1 and 4 channels: networks, counts, the Python face."""

import keras
import numpy as np
import pytest
from random_architectures import random_architecture

from auto_deeplab_tf import Segmenter, build_network, build_supernet
from auto_deeplab_tf.accounting import count

SMALL = {"num_classes": 5, "filter_multiplier": 2, "head_channels": 6, "decoder_channels": 4}
MEAN, STD = (120.0, 110.0, 100.0, 90.0), (50.0, 60.0, 70.0, 80.0)


def images(channels, shape=(2, 49, 70), seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (*shape, channels)).astype("float32")


def network(mean, std, **arguments):
    return build_network(random_architecture(2), mean=mean, std=std, **(SMALL | arguments))


def copy_weights(source, target, stem_kernel):
    """Takes all weights but the first kernel, [3, 3, C, 64], which is a function of the source's"""
    values = source.get_weights()
    first = next(index for index, value in enumerate(values) if value.ndim == 4)
    assert values[first].shape[:2] == (3, 3) and values[first].shape[3] == 64
    values[first] = stem_kernel(values[first])
    target.set_weights(values)


def test_grey_images_are_coloured_ones_whose_channels_agree():
    rgb, grey = network(MEAN[:1] * 3, STD[:1] * 3), network(MEAN[:1], STD[:1])
    copy_weights(rgb, grey, lambda kernel: kernel.sum(axis=2, keepdims=True))
    x = images(1)
    expected = rgb(np.repeat(x, 3, axis=-1))
    assert np.std(expected) > 0
    np.testing.assert_allclose(grey(x), expected, rtol=1e-3, atol=1e-4)


def test_a_fourth_channel_is_read_and_normalised():
    rgb, four = network(MEAN[:3], STD[:3]), network(MEAN, STD)
    x = images(4)
    copy_weights(rgb, four, lambda k: np.concatenate([k, np.zeros_like(k[:, :, :1])], axis=2))
    np.testing.assert_allclose(four(x), rgb(x[..., :3]), rtol=1e-4, atol=1e-5)
    # The fourth channel in place of red: what red gave at red's own mean and deviation.
    copy_weights(
        rgb, four, lambda k: np.concatenate([0 * k[:, :, :1], k[:, :, 1:], k[:, :, :1]], 2)
    )
    red_as_fourth = (x[..., :1] - MEAN[0]) / STD[0] * STD[3] + MEAN[3]
    moved = np.concatenate([x[..., :3], red_as_fourth], axis=-1)
    np.testing.assert_allclose(four(moved), rgb(x[..., :3]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 4])
def test_counts_equal_the_built_network(channels):
    result = count(random_architecture(2), input_size=(97, 131), input_channels=channels, **SMALL)
    built = network(MEAN[:channels], STD[:channels]).trainable_variables
    assert result.params == sum(int(np.prod(variable.shape)) for variable in built)
    rgb = count(random_architecture(2), input_size=(97, 131), **SMALL)
    assert result.multi_adds - rgb.multi_adds == (channels - 3) * 9 * 64 * 49 * 66


def test_a_supernet_of_grey_images_is_one_of_coloured_images_that_agree():
    settings = {"num_classes": 3, "num_layers": 2, "num_blocks": 1, "filter_multiplier": 2}
    size = {"input_size": (40, 45)}
    rgb = build_supernet(**settings, **size, mean=MEAN[:1] * 3, std=STD[:1] * 3)
    grey = build_supernet(**settings, **size, mean=MEAN[:1], std=STD[:1])
    for ours, theirs in zip(grey.variables, rgb.variables, strict=True):
        if ours.shape == theirs.shape:
            ours.assign(theirs)
        else:  # the stem's kernels, side by side in one vector; the first stands first
            flat = np.asarray(theirs)
            first = flat[: 27 * 64].reshape(3, 3, 3, 64).sum(axis=2).reshape(-1)
            ours.assign(np.concatenate([first, flat[27 * 64 :]]))
    x = images(1, (2, 40, 45))
    expected = np.asarray(rgb(np.repeat(x, 3, axis=-1)))
    assert expected.std() > 0
    np.testing.assert_allclose(grey(x), expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"images must be \[N, H, W, 1\], grey, 0..255"):
        grey(images(3, (2, 40, 45)))


@pytest.mark.parametrize("channels", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_the_segmenter_follows(channels, tmp_path):
    keras.utils.set_random_seed(1)
    settings = {"mean": MEAN[:channels], "std": STD[:channels]}
    model = Segmenter(random_architecture(2), **SMALL, **settings)
    x = images(channels)
    expected = np.asarray(model(x)).argmax(-1)
    assert np.unique(expected).size > 1
    np.testing.assert_array_equal(model.predict_class_ids(x), expected)
    np.testing.assert_array_equal(model.predict_class_ids(x[0]), expected[0])
    assert model.predict_class_ids(x, input_size=(64, 80)).shape == expected.shape
    # Smaller than the network takes: padded inside.
    assert model.predict_class_ids(x[:, :20, :25]).shape == (2, 20, 25)
    assert model.class_ids(x, flip=True, scales=(1.0, 1.5)).shape == expected.shape
    with pytest.raises(ValueError) as error:
        model.predict_class_ids(images(3))
    assert f"takes images [H, W, {channels}] or [N, H, W, {channels}]" in str(error.value)

    masks = np.random.default_rng(2).integers(0, 5, (2, 49, 70))
    model.fit(x, masks, batch_size=2, epochs=1, verbose=0)
    expected = np.asarray(model(x))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(x), expected)
    layer = again.detach_preprocessing()
    np.testing.assert_allclose(again(layer(x)), expected, rtol=1e-3, atol=1e-4)
