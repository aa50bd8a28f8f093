"""Any data set of this package as a TFDS data set."""

import os

import numpy as np
import tensorflow_datasets as tfds

from auto_deeplab_tf.data import image_files, sets
from auto_deeplab_tf.data.dataset import Dataset, RawExample
from auto_deeplab_tf.errors import UserError


def tfds_builder(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    tfds_dir: str | os.PathLike | None = None,
    dataset_config: str | os.PathLike | None = None,
) -> tfds.core.DatasetBuilder:
    """Returns a TFDS builder of a data set, for code that reads TFDS data sets.

    The commands do not need it: they read prepared records (`open_split`). The builder stores
    images as records do that keep their size. Labels are label ids, not class ids, but for a set
    whose label maps are colours: there they are class ids.

        builder = tfds_builder("camvid", data_dir=CAMVID, tfds_dir=DIR)
        builder.download_and_prepare()  # downloads nothing
        builder.as_dataset(split="train")  # image_id, image, segmentation_label

    Args:
        name: a name of `sets.names()`.
        data_dir: folder of the user's files; None for a set that is generated.
        tfds_dir: where TFDS builds; None for its default, `~/tensorflow_datasets`.
        dataset_config: the JSON file that describes `folder`.

    Raises:
        UserError: for a name that is not known, or data that break a rule; of an example, while
            the builder prepares.
        MissingFileError: where the data are not there.
    """
    raw = sets.find(name, data_dir, dataset_config)
    raw.raise_defects()

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """Stores the examples that the set's module reads."""

        VERSION = tfds.core.Version("2.0.0")  # 1.0.0 held the files as they were

        def _info(self) -> tfds.core.DatasetInfo:
            bits = np.uint8 if raw.info.image_bits == 8 else np.uint16
            image = tfds.features.Image(shape=(None, None, None), dtype=bits)
            label = tfds.features.Image(shape=(None, None, None), dtype=_label_dtype(raw.info))
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
                    try:
                        image, label = _encoded(example, raw.info)
                    except (UserError, OSError) as error:
                        raise UserError(f"{name} {split}, {image_id}: {error}") from error
                    yield (
                        image_id,
                        {"image_id": image_id, "image": image, "segmentation_label": label},
                    )

    Builder.name = name
    return Builder(data_dir=tfds_dir)


def _label_dtype(info: Dataset) -> type[np.uint8] | type[np.uint16]:
    """What holds the labels of a set; class ids, where its label maps are colours, are bytes."""
    return np.uint8 if info.color_labels or max(info.label_ids) < 256 else np.uint16


def _encoded(example: RawExample, info: Dataset) -> tuple[bytes, bytes]:
    """Returns an example's image and label map as files that TFDS decodes as they are read here.

    Raises:
        OSError: where a file cannot be read whole.
        UserError: where one breaks a rule of the set.
    """
    image, as_it_is = image_files.read_image(example.image, info)
    label_ids = image_files.read_label(example.label, info)
    class_ids = info.class_ids(label_ids)  # also refuses an id that the set does not have
    label = class_ids if info.color_labels else label_ids.astype(_label_dtype(info))
    encoded = example.image if as_it_is else image_files.encode_png(image)
    return encoded, image_files.encode_png(label)
