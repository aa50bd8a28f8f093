"""Auto-DeepLab: hierarchical architecture search for semantic segmentation (arXiv 1901.02985).

The public names are resolved on first use, so that importing the package (as every ``--help``
does) loads neither TensorFlow nor Keras.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from auto_deeplab_tf.architecture import Architecture
    from auto_deeplab_tf.baselines import build_baseline
    from auto_deeplab_tf.nn.network import build_network
    from auto_deeplab_tf.nn.supernet import build_supernet
    from auto_deeplab_tf.searcher import ArchitectureSearch
    from auto_deeplab_tf.segmenter import Segmenter
    from auto_deeplab_tf.served import load_model

_HOME = {
    "Architecture": "auto_deeplab_tf.architecture",
    "ArchitectureSearch": "auto_deeplab_tf.searcher",
    "Segmenter": "auto_deeplab_tf.segmenter",
    "build_baseline": "auto_deeplab_tf.baselines",
    "build_network": "auto_deeplab_tf.nn.network",
    "build_supernet": "auto_deeplab_tf.nn.supernet",
    "load_model": "auto_deeplab_tf.served",
}

__all__ = [
    "Architecture",
    "ArchitectureSearch",
    "Segmenter",
    "__version__",
    "build_baseline",
    "build_network",
    "build_supernet",
    "load_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
