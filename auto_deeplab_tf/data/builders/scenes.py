"""TFDS builder of the generated street scenes, in the layout of TFDS's own `cityscapes`."""

from pathlib import Path

import tensorflow_datasets as tfds

from auto_deeplab_tf.data import catalog, scene_drawing, scene_light, scene_objects, scenes
from auto_deeplab_tf.data.builders import build
from auto_deeplab_tf.data.origin import Origin, code_digest


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


def find(data_dir: Path | None) -> Origin:
    """The scenes are drawn, so they depend on the code alone."""
    if data_dir is not None:
        raise ValueError(f"the generated scenes take no --data_dir. Received: {str(data_dir)!r}")
    modules = (scenes, scene_drawing, scene_light, scene_objects, catalog)
    return Origin(
        splits={"train": "train", "val": "validation"},
        build=lambda directory: build(Scenes, directory),
        image_key="image_left",
        label_key="segmentation_label",
        group_of=lambda image_id: image_id.split("_")[0],
        settings={"code": code_digest(*(module.__file__ for module in modules))},
    )
