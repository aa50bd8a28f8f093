"""The latency of networks: from one image of 120x160 to its class ids, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from auto_deeplab_tf.architecture import Architecture
from benchmarks import process
from benchmarks.search_quality import population
from benchmarks.search_quality.population import Design

COLUMN = "latency_ms"
ROUNDS, CALLS = 7, 15


def measured(
    networks: Iterable[tuple[Architecture, Design]],
) -> dict[tuple[Architecture, Design], float]:
    """Returns the milliseconds of each network; each is measured once.

    All take turns: the median of some calls of each, then the median of some such rounds.
    """
    import tensorflow as tf

    image = tf.random.uniform([1, *population.TASK["input_size"], 3], 0, 255)
    calls = {network: _forward(*network, image) for network in dict.fromkeys(networks)}
    rounds = [
        [process.median_seconds(call, CALLS) for call in calls.values()] for _ in range(ROUNDS)
    ]
    return dict(zip(calls, (1000 * np.median(rounds, axis=0)).tolist(), strict=True))


def _forward(architecture: Architecture, design: Design, image: Any) -> Callable[[], Any]:
    import tensorflow as tf

    from auto_deeplab_tf.nn.network import build_network
    from auto_deeplab_tf.segmenter import Segmenter

    multiplier = population.filter_multiplier(architecture, design)
    classes = population.TASK["num_classes"]
    model = Segmenter(build_network(architecture, classes, multiplier, **design.channels))
    forward = tf.function(model.class_ids, autograph=False)
    return lambda: forward(image).numpy()
