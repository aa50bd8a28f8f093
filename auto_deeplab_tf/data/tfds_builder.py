"""Any data set of this package as a TFDS data set."""

import io
import os

import tensorflow_datasets as tfds

from auto_deeplab_tf.data import sets


def tfds_builder(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    tfds_dir: str | os.PathLike | None = None,
    dataset_config: str | os.PathLike | None = None,
) -> tfds.core.DatasetBuilder:
    """Returns a TFDS builder of a data set, for code that reads TFDS data sets.

    The commands do not need it: they read prepared records (`open_split`). The builder stores the
    files' own bytes, so a label map holds label ids, not class ids.

        builder = tfds_builder("camvid", data_dir=CAMVID, tfds_dir=DIR)
        builder.download_and_prepare()  # downloads nothing
        builder.as_dataset(split="train")  # image_id, image, segmentation_label

    Args:
        name: a name of `sets.names()`.
        data_dir: folder of the user's files; None for a set that is generated.
        tfds_dir: where TFDS builds; None for its default, `~/tensorflow_datasets`.
        dataset_config: the JSON file that describes `folder`.

    Raises:
        UserError: for a name that is not known, or data that break a rule.
        MissingFileError: where the data are not there.
    """
    raw = sets.find(name, data_dir, dataset_config)
    raw.raise_defects()

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """Stores the examples that the set's module reads."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> tfds.core.DatasetInfo:
            image = tfds.features.Image(shape=(None, None, None))
            label = tfds.features.Image(shape=(None, None, None))
            features = {"image_id": tfds.features.Text(), "image": image}
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict({**features, "segmentation_label": label}),
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in raw.splits}

        def _generate_examples(self, split):
            for image_id in raw.ids(split):
                example = raw.read(split, image_id)
                if example is not None:
                    yield (
                        image_id,
                        {
                            "image_id": image_id,
                            "image": io.BytesIO(example.image),
                            "segmentation_label": io.BytesIO(example.label),
                        },
                    )

    Builder.name = name
    return Builder(data_dir=tfds_dir)
