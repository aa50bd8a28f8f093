"""Every architecture exports, in every format: the published one, random ones, each baseline."""

import numpy as np
import pytest

from auto_deeplab_tf.baselines import BASELINES, build_baseline
from auto_deeplab_tf.sampling import random_architecture
from auto_deeplab_tf.segmenter import Segmenter
from export.saved_model import export_saved_model
from export.tensorrt import export_tensorrt
from export.tflite import export_tflite

pytestmark = pytest.mark.slow
NUM_CLASSES = 7
SMALL = {
    "filter_multiplier": 2,
    "stem_channels": (4, 4, 8),
    "head_channels": 8,
    "decoder_channels": 4,
}
# Each refuses to publish what does not predict as the Keras model does.
FORMATS = {
    "saved_model": lambda model, folder, size: export_saved_model(model, folder / "served", size),
    "onnx": lambda model, folder, size: export_tensorrt(model, folder / "model.onnx", size),
    "tflite": lambda model, folder, size: export_tflite(model, folder / "model.tflite", size),
}


def exports(segmenter, folder, size, formats=tuple(FORMATS)):
    model = folder / "model.keras"
    segmenter.save(model)
    for name in formats:
        agreement = FORMATS[name](model, folder, size).agreement
        assert agreement.num_classes >= 3, name


@pytest.fixture
def network(varied):
    return lambda architecture, seed=0: varied(
        Segmenter(architecture, num_classes=NUM_CLASSES, **SMALL), seed
    )


@pytest.mark.parametrize(
    ("size", "formats"),
    [
        ((513, 513), ("saved_model", "onnx")),
        ((1025, 2049), ("saved_model", "onnx")),
        ((257, 513), ("tflite",)),
    ],
)
def test_the_published_one(network, tmp_path, size, formats):
    exports(network("auto_deeplab"), tmp_path, size, formats)


@pytest.mark.parametrize("seed", range(10))
def test_random_ones_at_odd_sizes(network, tmp_path, seed):
    atrous = ("separable", "full")[seed % 2]
    architecture = random_architecture(seed, atrous=atrous)
    size = (97, 224, 321)[seed % 3]
    exports(network(architecture, seed), tmp_path, (size, size))


@pytest.mark.parametrize("name", BASELINES)
def test_each_baseline(varied, tmp_path, name):
    width = {} if name.startswith("keras_hub") else {"width_multiplier": 0.125}
    segmenter = Segmenter(build_baseline(name, NUM_CLASSES, **width))
    assert np.isfinite(segmenter(np.zeros((1, 64, 64, 3), "float32"))).all()
    exports(varied(segmenter), tmp_path, (97, 129))
