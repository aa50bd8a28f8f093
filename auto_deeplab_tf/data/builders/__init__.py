"""TFDS builders of our own, one module per data set."""

import contextlib
import sys
from pathlib import Path

import tensorflow_datasets as tfds


def build(
    builder_class: type[tfds.core.DatasetBuilder], directory: Path, **options
) -> tfds.core.DatasetBuilder:
    """Builds a data set under a directory, without the network, with nothing printed to stdout."""
    tfds.disable_progress_bar()
    builder = builder_class(data_dir=directory)
    with contextlib.redirect_stdout(sys.stderr):
        builder.download_and_prepare(**options)
    return builder
