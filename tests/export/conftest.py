"""A small network that uses many classes, saved once: what every exporter is tested on."""

import numpy as np
import pytest

from export import common

NUM_CLASSES = 7


@pytest.fixture(scope="session")
def model_file(tmp_path_factory):
    """A model.keras whose answers differ over the image: an export that gives 0 would show."""
    path = tmp_path_factory.mktemp("model") / "model.keras"
    varied_segmenter().save(path)
    return path


@pytest.fixture(scope="session")
def varied():
    """Gives a `Segmenter` of `NUM_CLASSES` classes weights that use all of them."""
    return vary


@pytest.fixture(scope="session")
def segmenter(model_file):
    """The model as Keras reads it, on its own: what an export is compared with."""
    import keras

    from auto_deeplab_tf.segmenter import Segmenter

    loaded = keras.saving.load_model(model_file)
    assert isinstance(loaded, Segmenter)
    return loaded


@pytest.fixture(scope="session")
def answer(segmenter):
    """Gives the Keras model's class ids [N, H, W] and probabilities [N, H, W, C]."""
    import keras

    def of(images):
        logits = keras.ops.convert_to_numpy(segmenter(images, training=False))
        assert np.unique(logits.argmax(-1)).size >= 4
        return logits.argmax(-1), common.softmax(logits)

    return of


@pytest.fixture
def zeroed(monkeypatch):
    """Makes every SavedModel come out with one variable set to zero, as a broken writer would."""
    import tensorflow as tf

    save = tf.saved_model.save

    def broken(module, *args, **kwargs):
        largest = max(module._variables, key=lambda variable: np.prod(variable.shape))
        kept = largest.numpy()
        largest.assign(tf.zeros_like(largest))
        try:
            save(module, *args, **kwargs)
        finally:
            largest.assign(kept)

    monkeypatch.setattr(tf.saved_model, "save", broken)


def varied_segmenter(seed=0):
    """Builds a network with every kind of operation, whose random weights use all its classes."""
    import keras

    from auto_deeplab_tf import Architecture, Segmenter

    keras.utils.set_random_seed(seed)
    architecture = Architecture.from_dict(
        {
            "schema_version": 1,
            "levels": [1, 2, 1],
            "cell": [
                [
                    {"source": "prev_prev", "op": "atrous_5x5"},
                    {"source": "prev", "op": "sep_3x3"},
                ],
                [
                    {"source": "prev_prev", "op": "skip"},
                    {"source": "prev", "op": "avg_pool_3x3"},
                ],
                [
                    {"source": "block_0", "op": "atrous_3x3"},
                    {"source": "block_1", "op": "max_pool_3x3"},
                ],
            ],
            "atrous": "full",
        }
    )
    segmenter = Segmenter(
        architecture,
        num_classes=NUM_CLASSES,
        filter_multiplier=4,
        head_channels=16,
        decoder_channels=8,
        class_names=["road", "sky", "Häuser", "tree", "car", "pole", "person"],
    )
    return vary(segmenter, seed)


def vary(segmenter, seed=0):
    """Gives a model random normalisations, and a last layer whose classes all win somewhere."""
    rng = np.random.default_rng(seed)
    images = common.random_images(4, (96, 128), seed=1)
    segmenter(images)
    for variable in segmenter.network.variables:
        name = variable.path.rpartition("/")[2]
        if name == "gamma":
            variable.assign(rng.uniform(0.7, 1.3, variable.shape))
        elif name in ("beta", "moving_mean"):
            variable.assign(rng.normal(0, 0.2, variable.shape))
        elif name == "moving_variance":
            variable.assign(rng.uniform(0.5, 1.0, variable.shape))
    _spread(segmenter, images)
    return segmenter


def _spread(segmenter, images):
    """Sets the last layer so that each class's logit has mean 0 and deviation 3 over the images.

    Where it has no bias, its classes are mixed so that the means vanish.
    """
    kernel, *biases = (variable.value for variable in segmenter.network.class_layer.variables)
    assert kernel.shape[-1] == NUM_CLASSES
    logits = np.asarray(segmenter(images, training=False))
    if not biases:
        means = logits.mean((0, 1, 2))
        mixed = np.eye(NUM_CLASSES) - np.outer(means, means) / (means @ means)
        kernel.assign(np.asarray(kernel) @ mixed)
        logits = logits @ mixed
    scale = 3 / logits.std((0, 1, 2))
    kernel.assign(np.asarray(kernel) * scale)
    for bias in biases:
        assert bias.shape == (NUM_CLASSES,)
        bias.assign((np.asarray(bias) - logits.mean((0, 1, 2))) * scale)
