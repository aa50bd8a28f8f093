"""TFDS builder of the generated street scenes, in the layout of TFDS's own `cityscapes`."""

import tensorflow_datasets as tfds

from auto_deeplab_tf.data import scenes


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Generated street scenes."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Street scenes drawn by a program, with Cityscapes label ids.",
            features=tfds.features.FeaturesDict(
                {
                    "image_id": tfds.features.Text(),
                    "image_left": tfds.features.Image(
                        shape=(*scenes.IMAGE_SIZE, 3), encoding_format="png"
                    ),
                    "segmentation_label": tfds.features.Image(
                        shape=(*scenes.IMAGE_SIZE, 1), encoding_format="png", use_colormap=True
                    ),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {
            "train": self._generate_examples("train"),
            "validation": self._generate_examples("val"),
        }

    def _generate_examples(self, split: str):
        for image_id in scenes.image_ids(split):
            image, label = scenes.render(image_id)
            yield (
                image_id,
                {
                    "image_id": image_id,
                    "image_left": image,
                    "segmentation_label": label[:, :, None],
                },
            )
