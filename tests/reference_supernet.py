"""`method.py` with the weights of a supernet: the judge of the fused formulation."""

import numpy as np
import tensorflow as tf

from auto_deeplab_tf import method
from auto_deeplab_tf.nn import plain


def plain_network(supernet, weights, architecture, training=True, moves=None):
    """The plain network of given values.

    Args:
        supernet: `Supernet`.
        weights: tensors in place of `supernet.trainable_variables`.
        architecture: tensors in place of `supernet.architecture_variables`.
        training: whether the statistics are the batch's.
        moves: tensor [L, 4, 3] in place of beta's softmax, of a search that samples paths.
    """
    values = dict(zip([id(v) for v in supernet.trainable_variables], weights, strict=True))
    of_segments = [
        (values.get(id(s.kernels)), values.get(id(s.affine)), s.moving) for s in supernet.segments
    ]
    alpha, beta = method.relax(*architecture[:2])
    return plain.build(
        supernet.segments,
        of_segments,
        supernet.nodes,
        alpha,
        beta if moves is None else moves,
        training,
        plain.edge_weights(
            architecture[2] if architecture[2:] else None, supernet.settings.num_blocks
        ),
    )


def plain_loss_and_gradients(supernet, x, weighting, moves_of=None):
    """The sum of weighting * logits, and its gradients by weights and architecture, in one list.

    Args:
        supernet: `Supernet`.
        x: float32 [N, H, W, 3].
        weighting: of the logits.
        moves_of: beta_logits -> tensor [L, 4, 3], of a search that samples paths; the predictions
            of levels where no path ends do not count.
    """
    weights = [v.value for v in supernet.trainable_variables]
    architecture = [v.value for v in supernet.architecture_variables]
    sources = weights + architecture
    with tf.GradientTape() as tape:
        tape.watch(sources)
        moves = None if moves_of is None else moves_of(architecture[1])
        network = plain_network(supernet, weights, architecture, moves=moves)
        if moves is None:
            logits = network.logits(x)
        else:
            ends = {level: y for level, y in network.trellis(x).items() if np.any(y)}
            predictions = [network.predict(level, y) for level, y in ends.items()]
            logits = sum(method.resize(y, x.shape[1:3]) for y in predictions)
        loss = tf.reduce_sum(logits * weighting)
    return loss, tape.gradient(loss, sources, unconnected_gradients="zero")
