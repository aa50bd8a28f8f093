"""TFDS builder of voc2012; `auto_deeplab_tf.data.voc2012` says how its files lie."""

from pathlib import Path

from auto_deeplab_tf.data import voc2012
from auto_deeplab_tf.data.builders.examples import ExamplesBuilder


class Voc2012(ExamplesBuilder):
    """PASCAL VOC 2012 segmentation, 21 classes, with the augmented set where it is there."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "manual_dir: VOCdevkit/VOC2012 of host.robots.ox.ac.uk/pascal/VOC, or a folder above it."
    )

    def _origin(self, manual_dir):
        return voc2012.find(Path(manual_dir))
