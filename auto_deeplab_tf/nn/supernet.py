"""The supernet: every operation (alpha) and every path (beta) in one network (paper, sec. 3)."""

import keras
import numpy as np
from keras import ops

from auto_deeplab_tf.accounting import MINIMUM_SIZE, STEM_FILTERS
from auto_deeplab_tf.architecture import (
    NUM_LEVELS,
    OPERATIONS,
    reachable_levels,
    relaxed_edges,
    transitions,
)
from auto_deeplab_tf.nn.execution import Execution, runner
from auto_deeplab_tf.nn.node import NodeKind, StateShape
from auto_deeplab_tf.nn.segmentation_network import check_images, checked_normalization
from auto_deeplab_tf.nn.segments import Segment
from auto_deeplab_tf.nn.supernet_ends import (
    HeadKind,
    LogitsKind,
    RelaxKind,
    StemKind,
)

ARCHITECTURE_INITIAL_DEVIATION = 1e-3


@keras.saving.register_keras_serializable(package="auto_deeplab_tf")
class Supernet(keras.Model):
    """The search network: images to logits at the images' resolution, relaxed by alpha and beta.

    Called eagerly on TensorFlow, each kind of segment runs as a compiled function of its own;
    inside a traced function, or on another backend, the same code stands inline.

    Args:
        num_classes: number of classes, 1 or more.
        num_layers: L.
        num_blocks: B.
        filter_multiplier: F; a node at level k holds B * F * 2**k channels.
        input_size: (height, width), 32 or more each.
        atrous: "separable" or "full": the form of the atrous operations.
        share_operations: whether the predecessors of a node share the kernels of its operations.
        mean, std: images are normalised (x - mean) / std, in units of 0..255: a float for each of
            their channels, of which there are 1, 3 or 4.
        seed: int, of the initial kernels, alpha and beta.

    Input shape: float32 [N, height, width, len(mean)], 0..255.
    Output shape: float32 [N, height, width, num_classes], logits.

    Attributes:
        alpha_logits: float32 [B (B + 3) / 2, 8].
        beta_logits: float32 [L, 4, 3]: [l, s, m] is the move m - 1 leaving level s on the way into
            layer l.
        architecture_variables: [alpha_logits, beta_logits]. `trainable_variables`, the weight
            optimizer's list, has neither.
        execution: `nn.execution.Execution`: what the passes keep, and whether XLA compiles them.

    Reference: Liu et al., Auto-DeepLab, CVPR 2019, arXiv:1901.02985.
    """

    def __init__(
        self,
        num_classes=19,
        num_layers=12,
        num_blocks=5,
        filter_multiplier=8,
        input_size=(321, 321),
        *,
        atrous="separable",
        share_operations=True,
        mean=(127.5, 127.5, 127.5),
        std=(127.5, 127.5, 127.5),
        seed=0,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        for name, value in (
            ("num_classes", num_classes),
            ("num_layers", num_layers),
            ("num_blocks", num_blocks),
            ("filter_multiplier", filter_multiplier),
        ):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of 1 or more. Received: {value!r}")
        if len(input_size) != 2 or min(input_size) < MINIMUM_SIZE:
            raise ValueError(
                f"input_size must be (height, width), each {MINIMUM_SIZE} or more. "
                f"Received: {input_size}"
            )
        if atrous not in ("separable", "full"):
            raise ValueError(f'atrous must be "separable" or "full". Received: {atrous!r}')
        self.num_classes = num_classes
        self.num_layers = num_layers
        self.num_blocks = num_blocks
        self.filter_multiplier = filter_multiplier
        self.input_size = tuple(input_size)
        self.atrous = atrous
        self.share_operations = share_operations
        self.mean, self.std = checked_normalization(mean, std)
        self.seed = seed
        self.execution = Execution()

        self._add_architecture_variables()
        self.incoming = self._incoming()
        heads = [self._head(level) for level in reachable_levels(num_layers)[-1]]
        self.segments = [
            self._relax(),
            self._stem(),
            *(self._node(index) for index in range(len(self.incoming))),
            *heads,
            Segment(
                LogitsKind(),
                ["images", *(head.writes[0] for head in heads)],
                ["logits"],
                name="logits",
            ),
        ]
        self.built = True

    def _add_architecture_variables(self):
        generator = np.random.default_rng([self.seed, 1])

        def initial(shape, dtype=None):
            values = ARCHITECTURE_INITIAL_DEVIATION * generator.standard_normal(shape)
            return ops.convert_to_tensor(values, dtype=dtype)

        # trainable=False keeps them out of `trainable_variables`, the weight optimizer's list; the
        # architecture
        # step differentiates with respect to them by name.
        self.alpha_logits, self.beta_logits = (
            self.add_weight(
                name=name, shape=shape, initializer=initial, trainable=False, dtype="float32"
            )
            for name, shape in (
                ("alpha_logits", (len(relaxed_edges(self.num_blocks)), len(OPERATIONS))),
                ("beta_logits", (self.num_layers, NUM_LEVELS, 3)),
            )
        )

    @property
    def architecture_variables(self):
        return [self.alpha_logits, self.beta_logits]

    def _incoming(self):
        """The transitions that lead to each node, from finer levels first.

        Nodes stand layer by layer, finer levels first.
        """
        by_node = {}
        for transition in transitions(self.num_layers):
            by_node.setdefault((transition.layer, transition.to_level), []).append(transition)
        return tuple(
            tuple(sorted(by_node[node], key=lambda transition: transition.from_level))
            for node in sorted(by_node)
        )

    def _relax(self):
        betas = [f"beta_{index}" for index in range(len(self.incoming))]
        return Segment(
            RelaxKind(self.incoming),
            [],
            ["alpha", *betas],
            ["alpha_logits", "beta_logits"],
            name="relax",
        )

    def _stem(self):
        kind = StemKind(self.mean, self.std, self.compute_dtype)
        return Segment(kind, ["images"], ["stem_2", "stem_4"], seed=[self.seed, 2, 0], name="stem")

    def _state(self, layer, level):
        """The name and shape of H at a layer and level.

        Layers -1 and -2 are the stem's tensors at stride 4 and 2.
        """
        if layer == -2:
            return "stem_2", StateShape(1, STEM_FILTERS[1])
        if layer == -1:
            return "stem_4", StateShape(2, STEM_FILTERS[2])
        channels = self.num_blocks * self.filter_multiplier * 2**level
        return f"layer_{layer}_level_{level}", StateShape(level + 2, channels)

    def _node(self, index):
        node = self.incoming[index]
        layer, level = node[0].layer, node[0].to_level
        predecessors = [self._state(layer - 1, transition.from_level) for transition in node]
        # H^{l-2} of the level nearest in size among those that exist; on a tie the finer.
        levels = reachable_levels(self.num_layers)[layer - 2] if layer >= 2 else (0,)
        nearest = min(levels, key=lambda other: (abs(other - level), other))
        prev_prev = self._state(layer - 2, nearest)
        kind = NodeKind(
            level=level,
            predecessors=tuple(shape for _, shape in predecessors),
            prev_prev=prev_prev[1],
            filters=self.filter_multiplier * 2**level,
            num_blocks=self.num_blocks,
            atrous=self.atrous,
            share_operations=self.share_operations,
        )
        return Segment(
            kind,
            [*(name for name, _ in predecessors), prev_prev[0]],
            [self._state(layer, level)[0]],
            ["alpha", f"beta_{index}"],
            seed=[self.seed, 3, index],
            name=self._state(layer, level)[0],
        )

    def _head(self, level):
        name, shape = self._state(self.num_layers - 1, level)
        kind = HeadKind(level, shape.channels, self.num_classes)
        return Segment(
            kind, [name], [f"logits_{level}"], seed=[self.seed, 4, level], name=f"head_{level}"
        )

    def call(self, images, training=False):
        states, _ = self.forward(images, training)
        return states["logits"]

    def forward(self, images, training):
        """Computes all states.

        Args:
            images: float32 [N, H, W, len(mean)], 0..255; H and W of 32 or more, known statically.
            training: bool; True: statistics of the batch, False: the moving ones.

        Returns:
            (states, moments): tensors by name, "logits" float32 [N, H, W, num_classes] among them,
                and what the segments keep for `backward`; for each of `segments` the batch
                statistics float32 [2, M], or None.
        """
        check_images(images, len(self.mean))
        states = {
            "images": ops.cast(images, "float32"),
            "alpha_logits": ops.convert_to_tensor(self.alpha_logits),
            "beta_logits": ops.convert_to_tensor(self.beta_logits),
        }
        moments = []
        for segment in self.segments:
            outputs, segment_moments, residuals = runner(segment.kind, self.execution).forward(
                *segment.arguments(states), training=training
            )
            states.update(zip(segment.writes, outputs, strict=True))
            states[_residuals_of(segment)] = residuals
            moments.append(segment_moments)
        return states, moments

    def backward(self, states, logits_gradient, wrt):
        """Pulls a gradient of the logits back through the compiled segments.

        On eager TensorFlow only.

        Args:
            states: of `forward(..., training=True)`.
            logits_gradient: float32 [N, H, W, num_classes].
            wrt: "weights" or "architecture".

        Returns:
            The gradients of `trainable_variables`, or of `architecture_variables`, in their order.
        """
        gradients = {"logits": logits_gradient}
        weight_gradients = {}

        def accumulate(names, values):
            for name, value in zip(names, values, strict=True):
                gradients[name] = gradients[name] + value if name in gradients else value

        for segment in reversed(self.segments):
            is_first = not segment.kind.input_gradients
            if is_first and (wrt == "architecture") != bool(segment.reads_architecture):
                continue
            upstream = tuple(gradients.pop(name) for name in segment.writes)
            parameters, inputs = runner(segment.kind, self.execution).pullback(
                wrt, *segment.arguments(states), states[_residuals_of(segment)], upstream
            )
            if wrt == "architecture":
                accumulate(segment.reads_architecture, parameters)
            else:
                weight_gradients[segment.name] = parameters
            if segment.kind.input_gradients:
                accumulate(segment.reads, inputs)
        if wrt == "architecture":
            return [gradients["alpha_logits"], gradients["beta_logits"]]
        return [
            gradient
            for segment in self.segments
            for gradient in weight_gradients.get(segment.name, ())
            if gradient is not None
        ]

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "num_layers": self.num_layers,
            "num_blocks": self.num_blocks,
            "filter_multiplier": self.filter_multiplier,
            "input_size": self.input_size,
            "atrous": self.atrous,
            "share_operations": self.share_operations,
            "mean": self.mean,
            "std": self.std,
            "seed": self.seed,
        }


def _residuals_of(segment):
    return f"{segment.name}/residuals"


def build_supernet(num_classes=19, num_layers=12, num_blocks=5, filter_multiplier=8, **kwargs):
    """Builds the search network; see `Supernet` for the arguments."""
    return Supernet(num_classes, num_layers, num_blocks, filter_multiplier, **kwargs)
