"""TFDS builder of Cityscapes with its coarse set, see `auto_deeplab_tf.data.cityscapes_coarse`."""

from pathlib import Path

from auto_deeplab_tf.data import cityscapes_coarse
from auto_deeplab_tf.data.builders.examples import ExamplesBuilder


class CityscapesCoarse(ExamplesBuilder):
    """Cityscapes: the fine training images and the extra coarse ones."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "manual_dir: the folder with the four zip files of cityscapes-dataset.com."
    )

    def _origin(self, manual_dir):
        return cityscapes_coarse.find(Path(manual_dir))
