"""The supernet as the paper writes it: one call per operation, edge and predecessor. The judge of
the fused formulation.

It shares no arithmetic with `auto_deeplab_tf.nn`: indices of alpha and beta are counted here,
convolutions are TensorFlow's own.
Only the values of the weights come from the supernet under test, through the names of its flat
vectors.
"""

import numpy as np
import tensorflow as tf

EPSILON = 1e-3
NAMES = ("sep_3x3", "sep_5x5", "atrous_3x3", "atrous_5x5")
NAMES += ("avg_pool_3x3", "max_pool_3x3", "skip", "none")


class Reference:
    """Evaluates the plain formulation with a supernet's weights.

    Args:
        supernet: `Supernet`, the source of settings and of the moving statistics' layout.
        weights: name of segment -> name of array -> tensor.
        alpha_logits, beta_logits: tensors.
        edge_logits: tensor, with partial channels only.
        moves: tensor [L, 4, 3] in place of beta's softmax, of a search that samples paths.
    """

    def __init__(self, supernet, weights, alpha_logits, beta_logits, edge_logits=None, moves=None):
        self.net = supernet
        self.weights = weights
        self.alpha = tf.nn.softmax(alpha_logits, axis=-1)
        self.beta_logits = beta_logits
        self.edge_logits = edge_logits
        self.moves = moves
        self.layers = supernet.num_layers
        self.num_blocks = supernet.num_blocks
        self.filters = supernet.filter_multiplier

    def normalize(self, x, gamma=1.0, beta=0.0):
        mean, variance = tf.nn.moments(x, axes=[0, 1, 2])
        return tf.nn.batch_normalization(x, mean, variance, beta, gamma, EPSILON)

    def beta(self, layer, level, move):
        """Probability of one move: softmax over those that stay inside the trellis."""
        if self.moves is not None:
            return self.moves[layer, level, move]
        moves = [m for m in range(3) if 0 <= level + m - 1 <= 3]
        probabilities = tf.nn.softmax(tf.stack([self.beta_logits[layer, level, m] for m in moves]))
        return probabilities[moves.index(move)]

    def pointwise(self, x, kernel, stride=1):
        return tf.nn.conv2d(x, kernel[None, None], stride, "SAME")

    def separable_stage(self, x, depthwise, pointwise, rate):
        x = tf.nn.depthwise_conv2d(
            tf.nn.relu(x), depthwise[..., None], [1, 1, 1, 1], "SAME", dilations=[rate, rate]
        )
        return self.normalize(self.pointwise(x, pointwise))

    def apply(self, name, x, weights, source, target, lane):
        """Applies one candidate operation of one edge for one predecessor."""
        if name == "none":
            return tf.zeros_like(x)
        if name == "skip":
            return x
        if name == "max_pool_3x3":
            return tf.nn.max_pool2d(x, 3, 1, "SAME")
        if name == "avg_pool_3x3":
            return tf.nn.avg_pool2d(x, 3, 1, "SAME")
        kind, size = name.split("_")
        size = int(size[0])
        repeats, rate = (2, 1) if kind == "sep" else (1, 2)
        # The inputs' kernels lie side by side, those of `prev` first.
        inputs = source in ("prev", "prev_prev")
        place = "inputs" if inputs else source
        for stage in range(repeats):
            kernel = weights[f"{place}/{name}_{stage}"]
            own = kernel.shape[-2] // (2 if inputs else 1)
            lane_of = min(lane, own - 1) + own * (source == "prev_prev")
            if kind == "atrous" and self.net.atrous == "full":
                x = tf.nn.conv2d(
                    tf.nn.relu(x), kernel[:, :, :, target, lane_of], 1, "SAME", dilations=rate
                )
                x = self.normalize(x)
                continue
            row = ["sep_3x3", "sep_5x5", "atrous_3x3", "atrous_5x5"].index(name)
            row = row * kernel.shape[2] + target
            pointwise = weights[f"{place}/pointwise_{stage}"][:, row, lane_of]
            x = self.separable_stage(x, kernel[:, :, target, lane_of], pointwise, rate)
        return x

    def edge(self, x, edge, source, target, weights, lane):
        """One edge: the alpha-weighted sum of its operations.

        With partial channels K, of the first 1/K of the channels; the others pass, and all are
        shuffled.
        """
        k = self.net.partial_channels
        mixed, *rest = tf.split(x, k, axis=-1)
        total = 0.0
        for column, name in enumerate(NAMES):
            total += self.alpha[edge, column] * self.apply(
                name, mixed, weights, source, target, lane
            )
        if k == 1:
            return total
        # Shuffled: the first channel of every group, then the second of every group, ...
        return tf.reshape(tf.stack([total, *rest], axis=-1), (*x.shape[:-1], x.shape[-1]))

    def cell(self, prev, prev_prev, weights, lane):
        states = {"prev": prev, "prev_prev": prev_prev}
        edge = 0
        for block in range(self.num_blocks):
            total = 0.0
            if self.edge_logits is not None:
                # Edge normalisation: a softmax over the edges into this block.
                into = tf.nn.softmax(self.edge_logits[edge : edge + len(states)])
                first = edge
            for source in list(states):
                # The i-th copy of a source's kernels belongs to the i-th block that may read it.
                first_reader = int(source[6:]) + 1 if source.startswith("block_") else 0
                result = self.edge(
                    states[source], edge, source, block - first_reader, weights, lane
                )
                total += result if self.edge_logits is None else into[edge - first] * result
                edge += 1
            states[f"block_{block}"] = total
        return tf.concat([states[f"block_{i}"] for i in range(self.num_blocks)], axis=-1)

    def resize(self, x, size):
        return tf.compat.v1.image.resize_bilinear(x, size, align_corners=True)

    def bring(self, x, kernel, from_stride, to_stride, size):
        """ReLU, 1x1, batch norm, from one stride to another."""
        if from_stride > to_stride:
            x = self.resize(x, size)
        return self.normalize(
            self.pointwise(tf.nn.relu(x), kernel, max(to_stride // from_stride, 1))
        )

    def logits(self, images):
        height, width = images.shape[1:3]
        sizes = {s: (-(-height // s), -(-width // s)) for s in (2, 4, 8, 16, 32)}
        stem = self.weights["stem"]
        x = (images - np.float32(self.net.mean)) / np.float32(self.net.std)
        x = self.normalize(
            tf.nn.conv2d(x, stem["conv_0"], 2, "SAME"), stem["0/gamma"], stem["0/beta"]
        )
        x = tf.nn.conv2d(tf.nn.relu(x), stem["conv_1"], 1, "SAME")
        stride_2 = self.normalize(x, stem["1/gamma"], stem["1/beta"])
        x = tf.nn.conv2d(tf.nn.relu(stride_2), stem["conv_2"], 2, "SAME")
        stride_4 = self.normalize(x, stem["2/gamma"], stem["2/beta"])

        # Layers by stride: what exists two and one layers back.
        before, last = {2: stride_2}, {4: stride_4}
        for layer in range(self.layers):
            current = {}
            for level in range(4):
                stride = 4 * 2**level
                predecessors = [s for s in (stride // 2, stride, stride * 2) if s in last]
                if not predecessors:
                    continue
                weights = self.weights[f"layer_{layer}_level_{level}"]
                nearest = min(before, key=lambda s: (abs(np.log2(s / stride)), s))
                prev_prev = self.bring(
                    before[nearest], weights["prev_prev"], nearest, stride, sizes[stride]
                )
                total, mixed = 0.0, 0.0
                for lane, from_stride in enumerate(predecessors):
                    prev = self.bring(
                        last[from_stride],
                        weights[f"prev_{lane}"],
                        from_stride,
                        stride,
                        sizes[stride],
                    )
                    from_level = int(np.log2(from_stride)) - 2
                    move = {stride: 1, stride // 2: 2, stride * 2: 0}[from_stride]
                    beta = self.beta(layer, from_level, move)
                    if self.net.mix_predecessors:
                        mixed += beta * prev
                    else:
                        total += beta * self.cell(prev, prev_prev, weights, lane)
                if self.net.mix_predecessors:
                    total = self.cell(mixed, prev_prev, weights, 0)
                current[stride] = total
            before, last = last, current

        total = 0.0
        for stride, x in last.items():
            if self.moves is not None and not np.any(x):
                continue  # no path ends here
            weights = self.weights[f"head_{int(np.log2(stride)) - 2}"]
            x = tf.nn.relu(x)
            rate = 96 // stride
            branches = {
                "pointwise": self.pointwise(x, weights["pointwise"]),
                "atrous": tf.nn.conv2d(x, weights["atrous"], 1, "SAME", dilations=rate),
                "pooling": self.pointwise(
                    tf.reduce_mean(x, [1, 2], keepdims=True), weights["pooling"]
                ),
            }
            branches = [
                tf.nn.relu(self.normalize(b, weights[f"{n}/gamma"], weights[f"{n}/beta"]))
                for n, b in branches.items()
            ]
            branches[2] = tf.broadcast_to(branches[2], tf.shape(x))
            x = self.pointwise(tf.concat(branches, -1), weights["classes"]) + weights["bias"]
            total += self.resize(x, (height, width))
        return total


def plain_logits(supernet, x, variables, *architecture, moves=None):
    """The reference's logits from the same values.

    Differentiable with respect to the given tensors.
    """
    values = dict(zip([id(v) for v in supernet.trainable_variables], variables, strict=True))
    weights = {}
    for segment in supernet.segments:
        arrays = {}
        for variable, layout in (
            (segment.kernels, segment.kind.kernels),
            (segment.affine, segment.kind.affine),
        ):
            if variable is not None:
                arrays |= layout.unpack(values[id(variable)])
        for array_name, array in getattr(segment.kind, "kernel_arrays", {}).items():
            first, whole = 0, arrays.pop(array_name)
            before = (slice(None),) * len(array.shape)
            for name, count in array.pieces:
                arrays[name] = whole[(*before, slice(first, first + count))]
                first += count
        weights[segment.name] = arrays
    return Reference(supernet, weights, *architecture, moves=moves).logits(x)
