"""TFDS builder of a folder of images and masks; `auto_deeplab_tf.data.folder` says how it lies."""

from pathlib import Path

from auto_deeplab_tf.data import folder
from auto_deeplab_tf.data.builders.examples import ExamplesBuilder


class Folder(ExamplesBuilder):
    """A user's own images and masks."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "manual_dir: the folder with images/, masks/ and dataset.json."

    def __init__(self, *, dataset_config: Path | None = None, **options):
        self._dataset_config = dataset_config
        super().__init__(**options)

    def _origin(self, manual_dir):
        return folder.find(Path(manual_dir), self._dataset_config)
