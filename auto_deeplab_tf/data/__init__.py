"""Data sets as prepared records with random access, and the batches made of them.

`catalog` describes the sets, `open_split` opens one (preparing it once), `split` halves it for the
search, `pipeline` makes batches whose every member follows from the seed and the step.
"""

import importlib

_EXPORTS = {"open_split": "source", "Source": "source"}


def __getattr__(name: str):
    # Lazy: the command line reads the catalog for its help text, and must not wait for TensorFlow.
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
