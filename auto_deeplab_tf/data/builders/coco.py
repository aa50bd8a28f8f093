"""TFDS builder of coco; `auto_deeplab_tf.data.coco` says how its files lie."""

from pathlib import Path

from auto_deeplab_tf.data import coco
from auto_deeplab_tf.data.builders.examples import ExamplesBuilder


class Coco(ExamplesBuilder):
    """COCO 2017 instances drawn as label maps of VOC's 21 classes."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "manual_dir: the folder with annotations/ and train2017/ of cocodataset.org."
    )

    def _origin(self, manual_dir):
        return coco.find(Path(manual_dir))
