"""From the architecture variables to what the nodes weight with: softmaxes, or sampled paths."""

import dataclasses
import itertools

import numpy as np
from keras import ops

from auto_deeplab_tf.nn import backend
from auto_deeplab_tf.nn.backend import Tensor
from auto_deeplab_tf.nn.segments import Arguments, SegmentKind
from auto_deeplab_tf.search_space import NUM_LEVELS, NUM_MOVES, Transition, move_mask

# A finite stand-in for -inf: its softmax is exactly 0, and so is its gradient, never NaN.
_NEVER = -1e9


@dataclasses.dataclass(frozen=True)
class RelaxKind(SegmentKind):
    """Normalises the architecture variables (paper, eq. 1 and 3).

    alpha^k = softmax over the operations k of an edge; beta = softmax over the moves that leave a
    level of a layer, those that leave the trellis masked out before it. In training with sampled
    paths beta is what `sample_moves` draws.

    Attributes:
        incoming: for each node, node by node, the transitions that lead to it.
        edge_counts: with partial channels the number of edges into each block: the logits of the
            edges are normalised over them (PC-DARTS, arXiv:1907.05737, eq. 3). Else empty.
        sampled_paths: number of paths a step, 0 for all of them.
    """

    incoming: tuple[tuple[Transition, ...], ...]
    edge_counts: tuple[int, ...] = ()
    sampled_paths: int = 0

    input_gradients = False

    def compute(self, arguments: Arguments, training: bool) -> tuple[tuple[Tensor, ...], Tensor]:
        """See `SegmentKind.compute`.

        architecture: (alpha_logits [num_edges, num_ops], beta_logits [L, 4, 3]), with partial
            channels also edge_logits [num_edges].
        inputs: (), with sampled paths (noise [sampled_paths, L, 4, 3], temperature []).
        outputs: (alpha [num_edges, num_ops], each node's beta [predecessors]), then with partial
            channels the edges' weights [num_edges], then with sampled paths live [num_nodes]: 1.0
            for a node on one of the paths, else 0.0.
        """
        alpha_logits, beta_logits, *edge_logits = arguments.architecture
        masked = ops.where(move_mask(beta_logits.shape[0]), beta_logits, _NEVER)
        if self.sampled_paths and training:
            beta, visits = sample_moves(masked, *arguments.inputs)
        else:
            beta, visits = ops.softmax(masked, axis=-1), None
        # One product with a 0/1 matrix picks them all: 105 slices would be a graph of their own.
        picked = np.zeros((sum(map(len, self.incoming)), beta_logits.shape[0] * 12), "float32")
        for row, (layer, level, move, _) in enumerate(itertools.chain(*self.incoming)):
            picked[row, (layer * 4 + level) * 3 + move] = 1.0
        by_node = backend.split(
            ops.matmul(picked, ops.reshape(beta, (-1,))), [len(node) for node in self.incoming], 0
        )
        outputs = [ops.softmax(alpha_logits, axis=-1), *by_node]
        if edge_logits:
            blocks = backend.split(edge_logits[0], list(self.edge_counts), 0)
            outputs.append(ops.concatenate([ops.softmax(block) for block in blocks]))
        if self.sampled_paths:
            outputs.append(self._live(visits))
        return tuple(outputs), None

    def _live(self, visits: Tensor) -> Tensor:
        nodes = [(node[0].layer, node[0].to_level) for node in self.incoming]
        if visits is None:
            return ops.ones(len(nodes), "float32")
        picked = np.zeros((len(nodes), int(np.prod(visits.shape))), "float32")
        for row, (layer, level) in enumerate(nodes):
            picked[row, layer * NUM_LEVELS + level] = 1.0
        return ops.minimum(ops.matmul(picked, ops.reshape(visits, (-1,))), 1.0)


def sample_moves(logits: Tensor, noise: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """Draws paths from the stem on, and gives each move the share of the paths that take it.

    At (layer l, level s) path n takes the move m of the largest logits[l, s, m] + noise[n, l, s, m]
    (Gumbel-max: m has probability softmax(logits[l, s])[m]). beta[l, s, m] is the share of the
    paths at (l, s) that take m: 1 in sum where there is a path, 0 elsewhere, and the softmax itself
    in the limit of many paths. Its gradient is that of the same shares of
    softmax((logits + noise) / temperature) (straight-through, GDAS: Dong and Yang, CVPR 2019,
    arXiv:1910.04465).

    Args:
        logits: float32 [L, 4, 3], very small where a move leaves the trellis.
        noise: float32 [N, L, 4, 3], of the standard Gumbel distribution.
        temperature: float32 [], > 0.

    Returns:
        (beta, visits): float32 [L, 4, 3]; float32 [L, 4], how many paths are at a level after layer
            l's move, without gradient.
    """
    noisy = logits + noise
    soft = ops.softmax(noisy / temperature, axis=-1)
    hard = ops.stop_gradient(ops.one_hot(ops.argmax(noisy, axis=-1), NUM_MOVES, dtype="float32"))
    # [m, s, t]: move m leads from level s to level t.
    leads = np.stack([np.eye(NUM_LEVELS, k=move - 1, dtype="float32") for move in range(NUM_MOVES)])
    steps = ops.einsum("nlsm,mst->nlst", hard, leads)
    at = ops.tile(ops.one_hot([0], NUM_LEVELS, dtype="float32"), (noise.shape[0], 1))
    stops = [at]
    for layer in range(logits.shape[0]):
        at = ops.einsum("ns,nst->nt", at, steps[:, layer])
        stops.append(at)
    stops = ops.stop_gradient(ops.stack(stops, axis=1))
    shares = stops[:, :-1] / ops.maximum(ops.sum(stops[:, :-1], axis=0, keepdims=True), 1.0)
    through = hard + (soft - ops.stop_gradient(soft))
    beta = ops.sum(shares[..., None] * through, axis=0)
    return beta, ops.sum(stops[:, 1:], axis=0)
