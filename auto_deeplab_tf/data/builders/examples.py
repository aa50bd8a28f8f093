"""What the TFDS builders of our own have in common: they store the files byte for byte."""

import io
from collections.abc import Iterator

import tensorflow_datasets as tfds

from auto_deeplab_tf.data.origin import Origin


class ExamplesBuilder(tfds.core.GeneratorBasedBuilder):
    """Stores the examples that an `Origin` reads. A subclass says which origin."""

    VERSION = tfds.core.Version("1.0.0")

    def _origin(self, manual_dir) -> Origin:
        """Lists the files under the user's folder."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image_id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(None, None, None)),
                    "segmentation_label": tfds.features.Image(shape=(None, None, None)),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        origin = self._origin(dl_manager.manual_dir)
        origin.raise_defects()
        return {
            name: self._generate_examples(origin, split) for split, name in origin.splits.items()
        }

    def _generate_examples(self, origin: Origin, split: str) -> Iterator[tuple[str, dict]]:
        for example in origin.read(split):
            yield (
                example.image_id,
                {
                    "image_id": example.image_id,
                    "image": io.BytesIO(example.image),
                    "segmentation_label": io.BytesIO(example.label),
                },
            )
