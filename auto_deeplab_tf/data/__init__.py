"""Data sets as prepared records with random access, and the batches made of them.

The way of an image from its file to a crop, in five files:

1. `image_files` decodes the image and its label map, and compares them with the rules of the set.
2. `resizing` brings them to the size of the records, where one was asked for.
3. `shards` writes them as records, once, with label ids turned into class ids. A file is on disk
   once beyond its source: as its record.
4. `source` reads the record of an example by its number.
5. `augment` scales, crops, flips and recolours it, as a function of the seed and the example.

Around this way: `sets` has one module per data set, which describes it (`dataset.Dataset`) and
lists its files (`dataset.RawDataset`). `preparation` gives the records a folder that is named after
everything they depend on, and resumes what was stopped. `records` defines the folder's format and
`index` its table of contents. `split` halves a training set for the search, `pipeline` makes
batches, and `as_tfds` offers any set as a TFDS data set.
"""

import importlib

# No module has the name of what it exports: importing it would hide the function.
_EXPORTS = {"open_split": "source", "Source": "source", "tfds_builder": "as_tfds"}


def __getattr__(name: str):
    # Lazy: `--help` reads this package and must not wait for TensorFlow.
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
