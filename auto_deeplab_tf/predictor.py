"""A regression from what counts of a network to how well it trains (Wen et al., ECCV 2020).

Architectures differ in thousands of ways, few trained ones teach little: so it sees counts alone,
and its ridge penalty is what predicts each trained network best from the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.search_space import CELL_INPUTS, DECODABLE_OPERATIONS, NUM_LEVELS

_PENALTIES = np.logspace(-1, 3, 17)


def features(architecture: Architecture, filter_multiplier: int, params: int) -> list[float]:
    """Returns what the regression sees of a network.

    That is how many edges of the cell have each operation, how many read each input of the cell,
    how many layers lie at each level, and the logarithms of F and of the parameters.
    """
    edges = [edge for block in architecture.cell for edge in block]
    operations = [edge.op for edge in edges]
    sources = [edge.source for edge in edges]
    return [
        *(operations.count(operation) for operation in DECODABLE_OPERATIONS),
        *(sources.count(source) for source in CELL_INPUTS),
        *(architecture.levels.count(level) for level in range(NUM_LEVELS)),
        math.log(filter_multiplier),
        math.log(params),
    ]


def predicted_scores(
    trained: Sequence[Sequence[float]],
    scores: Sequence[float],
    others: Sequence[Sequence[float]],
) -> list[float]:
    """Returns the scores of other networks, by a ridge regression on trained ones.

    Args:
        trained: Their `features`; standardised before the regression.
        scores: Theirs, finite, two or more.
        others: `features` of the networks to predict.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(others) == 0:
        return []
    # By default the penalty is chosen by leaving out one network at a time.
    regression = make_pipeline(StandardScaler(), RidgeCV(_PENALTIES))
    regression.fit(np.array(trained, float), np.array(scores, float))
    return [float(score) for score in regression.predict(np.array(others, float))]
