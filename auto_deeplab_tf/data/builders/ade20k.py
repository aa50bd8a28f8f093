"""TFDS builder of ade20k; `auto_deeplab_tf.data.ade20k` says how its files lie."""

from pathlib import Path

from auto_deeplab_tf.data import ade20k
from auto_deeplab_tf.data.builders.examples import ExamplesBuilder


class Ade20k(ExamplesBuilder):
    """ADE20K SceneParsing, 150 classes."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "manual_dir: ADEChallengeData2016/ of sceneparsing.csail.mit.edu, or a folder above it."
    )

    def _origin(self, manual_dir):
        return ade20k.find(Path(manual_dir))
