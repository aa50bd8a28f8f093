"""The supernet: every operation (alpha) and every path (beta) in one network (paper, sec. 3)."""

import keras
import numpy as np
from keras import ops

from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.fast_modes import EXACT, check_fast_modes, fast_modes
from auto_deeplab_tf.nn import backend
from auto_deeplab_tf.nn.execution import Execution, runner
from auto_deeplab_tf.nn.node import NodeKind, StateShape
from auto_deeplab_tf.nn.relaxation import RelaxKind
from auto_deeplab_tf.nn.segmentation_network import check_images, checked_normalization
from auto_deeplab_tf.nn.segments import Segment
from auto_deeplab_tf.nn.supernet_ends import HeadKind, LogitsKind, StemKind
from auto_deeplab_tf.search_space import (
    MINIMUM_SIZE,
    NUM_LEVELS,
    OPERATIONS,
    STEM_CHANNELS,
    block_sources,
    reachable_levels,
    relaxed_edges,
    transitions,
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
        partial_channels: K, a divisor of F: 1/K of the channels go through the operations, see
            `nn.node.NodeKind`; likewise:
        mix_predecessors: one cell a node, of its predecessors mixed by beta.
        sampled_paths: N, 2 or more: in training a step computes N paths that are drawn by beta, see
            `nn.relaxation.sample_moves`; nodes on none of them hold 0. 0: all paths, always.

    The last three are fast modes: approximations of the search as the paper has it.

    Input shape: float32 [N, height, width, len(mean)], 0..255.
    Output shape: float32 [N, height, width, num_classes], logits.

    Attributes:
        alpha_logits: float32 [B (B + 3) / 2, 8].
        beta_logits: float32 [L, 4, 3]: [l, s, m] is the move m - 1 leaving level s on the way into
            layer l.
        edge_logits: float32 [B (B + 3) / 2], of the edges into each block; None without partial
            channels.
        architecture_variables: [alpha_logits, beta_logits], and edge_logits where there are any.
            `trainable_variables`, the weight optimizer's list, has none of them.
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
        partial_channels=1,
        mix_predecessors=False,
        sampled_paths=0,
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
                raise UserError(f"{name} must be an integer of 1 or more. Received: {value!r}")
        if len(input_size) != 2 or min(input_size) < MINIMUM_SIZE:
            raise UserError(
                f"input_size must be (height, width), each {MINIMUM_SIZE} or more. "
                f"Received: {input_size}"
            )
        if atrous not in ("separable", "full"):
            raise UserError(f'atrous must be "separable" or "full". Received: {atrous!r}')
        modes = {
            "partial_channels": partial_channels,
            "mix_predecessors": mix_predecessors,
            "sampled_paths": sampled_paths,
        }
        check_fast_modes(filter_multiplier, modes)
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
        self.partial_channels = partial_channels
        self.mix_predecessors = mix_predecessors
        self.sampled_paths = sampled_paths

        self._add_architecture_variables()
        self.incoming = self._incoming()
        # Where in `live` the nodes stand, and the heads, which read those of the last layer.
        places = [(node[0].layer, node[0].to_level) for node in self.incoming]
        self._live_index = {self._state(*place)[0]: index for index, place in enumerate(places)} | {
            f"head_{level}": index
            for index, (layer, level) in enumerate(places)
            if layer == num_layers - 1
        }
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
                ["live"] if sampled_paths else [],
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
        num_edges = len(relaxed_edges(self.num_blocks))
        shapes = {
            "alpha_logits": (num_edges, len(OPERATIONS)),
            "beta_logits": (self.num_layers, NUM_LEVELS, 3),
        }
        if self.partial_channels > 1:
            shapes["edge_logits"] = (num_edges,)
        self._architecture = {
            name: self.add_weight(
                name=name, shape=shape, initializer=initial, trainable=False, dtype="float32"
            )
            for name, shape in shapes.items()
        }
        self.alpha_logits = self._architecture["alpha_logits"]
        self.beta_logits = self._architecture["beta_logits"]
        self.edge_logits = self._architecture.get("edge_logits")

    @property
    def architecture_variables(self):
        return list(self._architecture.values())

    @property
    def fast_modes(self):
        """The fast modes in force, by name; empty for the search as the paper has it."""
        return fast_modes(**{name: getattr(self, name) for name in EXACT})

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
        writes = ["alpha", *(f"beta_{index}" for index in range(len(self.incoming)))]
        edge_counts = ()
        if self.partial_channels > 1:
            writes.append("edge_weights")
            edge_counts = tuple(len(block_sources(block)) for block in range(self.num_blocks))
        if self.sampled_paths:
            writes.append("live")
        return Segment(
            RelaxKind(self.incoming, edge_counts, self.sampled_paths),
            ["path_noise", "path_temperature"] if self.sampled_paths else [],
            writes,
            list(self._architecture),
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
            return "stem_2", StateShape(1, STEM_CHANNELS[1])
        if layer == -1:
            return "stem_4", StateShape(2, STEM_CHANNELS[2])
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
            partial_channels=self.partial_channels,
            mix_predecessors=self.mix_predecessors,
        )
        return Segment(
            kind,
            [*(name for name, _ in predecessors), prev_prev[0]],
            [self._state(layer, level)[0]],
            ["alpha", f"beta_{index}", *(["edge_weights"] if self.partial_channels > 1 else [])],
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

    def forward(self, images, training, sampling=None):
        """Computes all states.

        Args:
            images: float32 [N, H, W, len(mean)], 0..255; H and W of 32 or more, known statically.
            training: bool; True: statistics of the batch, False: the moving ones.
            sampling: (noise float32 [sampled_paths, L, 4, 3], temperature float32 []), of
                `sample_moves`; in training with sampled paths only.

        Returns:
            (states, moments): tensors by name, "logits" float32 [N, H, W, num_classes] among them,
                and what the segments keep for `backward`; for each of `segments` the batch
                statistics float32 [2, M], or None.
        """
        check_images(images, len(self.mean))
        states = {"images": ops.cast(images, "float32")}
        for name, variable in self._architecture.items():
            states[name] = backend.read(variable)
        if self.sampled_paths:
            if training and sampling is None:
                raise UserError(
                    "A supernet with sampled paths trains with sampling=(noise, temperature): "
                    "nothing in it is random by itself."
                )
            shape = (self.sampled_paths, self.num_layers, NUM_LEVELS, 3)
            sampling = (ops.zeros(shape), ops.ones(())) if sampling is None else sampling
            states["path_noise"], states["path_temperature"] = sampling
        moments = []
        for segment in self.segments:
            if self._is_idle(segment, states):
                states[segment.writes[0]] = self._zeros(segment, images.shape)
                moments.append(ops.zeros_like(segment.moving))
                continue
            weights = segment.read()
            outputs, segment_moments, residuals = runner(segment.kind, self.execution).forward(
                *segment.arguments(weights, states), training=training
            )
            states.update(zip(segment.writes, outputs, strict=True))
            states[_weights_of(segment)], states[_residuals_of(segment)] = weights, residuals
            moments.append(segment_moments)
        return states, moments

    def _is_idle(self, segment, states):
        """Tells whether a node or head lies on no sampled path, where that is known already.

        What it would compute is 0, or counts 0 times, and so are the gradients: every reader begins
        with a ReLU, whose gradient at 0 is 0. A function that is being traced computes it all.
        """
        index = self._live_index.get(segment.name)
        if not self.sampled_paths or index is None or not backend.is_known(states["live"]):
            return False
        return not ops.convert_to_numpy(states["live"])[index]

    def _zeros(self, segment, image_shape):
        """What an idle node or head writes."""
        kind = segment.kind
        channels = (
            kind.num_classes if isinstance(kind, HeadKind) else self.num_blocks * kind.filters
        )
        stride = 2 ** (kind.level + 2)
        size = (-(-extent // stride) for extent in image_shape[1:3])
        return ops.zeros((image_shape[0], *size, channels), self.compute_dtype)

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
        gradients = {"logits": [logits_gradient]}
        weight_gradients = {}

        def accumulate(names, values):
            for name, value in zip(names, values, strict=True):
                gradients.setdefault(name, []).append(value)

        for segment in reversed(self.segments):
            is_first = not segment.kind.input_gradients
            if is_first and (wrt == "architecture") != bool(segment.reads_architecture):
                continue
            if self._is_idle(segment, states):
                gradients.pop(segment.writes[0], None)
                weights = (segment.kernels, segment.affine)
                weight_gradients[segment.name] = [
                    None if variable is None else ops.zeros_like(variable) for variable in weights
                ]
                for name in segment.reads_architecture:
                    accumulate([name], [ops.zeros_like(states[name])])
                continue
            upstream = tuple(backend.sum_all(gradients.pop(name)) for name in segment.writes)
            parameters, inputs = runner(segment.kind, self.execution).pullback(
                wrt,
                *segment.arguments(states[_weights_of(segment)], states),
                states[_residuals_of(segment)],
                upstream,
            )
            if wrt == "architecture":
                accumulate(segment.reads_architecture, parameters)
            else:
                weight_gradients[segment.name] = parameters
            if segment.kind.input_gradients:
                accumulate(segment.reads, inputs)
        if wrt == "architecture":
            return [backend.sum_all(gradients[name]) for name in self._architecture]
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
            "partial_channels": self.partial_channels,
            "mix_predecessors": self.mix_predecessors,
            "sampled_paths": self.sampled_paths,
        }


def _weights_of(segment):
    return f"weights/{segment.name}"


def _residuals_of(segment):
    return f"residuals/{segment.name}"


def build_supernet(num_classes=19, num_layers=12, num_blocks=5, filter_multiplier=8, **kwargs):
    """Builds the search network; see `Supernet` for the arguments."""
    return Supernet(num_classes, num_layers, num_blocks, filter_multiplier, **kwargs)
