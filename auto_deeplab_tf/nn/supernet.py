"""The supernet: every operation (alpha) and every path (beta) in one network (paper, sec. 3)."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from auto_deeplab_tf import method
from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.fast_modes import EXACT, check_fast_modes, fast_modes
from auto_deeplab_tf.nn import backend, plain
from auto_deeplab_tf.nn.execution import Execution, runner
from auto_deeplab_tf.nn.node import NodeKind, StateShape
from auto_deeplab_tf.nn.relaxation import RelaxKind
from auto_deeplab_tf.nn.segmentation_network import check_images, checked_normalization
from auto_deeplab_tf.nn.segments import Segment, Tensor
from auto_deeplab_tf.nn.supernet_ends import HeadKind, LogitsKind, StemKind
from auto_deeplab_tf.search_space import (
    MINIMUM_SIZE,
    NUM_LEVELS,
    OPERATIONS,
    STEM_CHANNELS,
    Transition,
    block_sources,
    reachable_levels,
    relaxed_edges,
    stride,
    transitions,
)

ARCHITECTURE_INITIAL_DEVIATION = 1e-3
FORMULATIONS = ("fused", "plain")


@dataclasses.dataclass(frozen=True)
class ForwardPass:
    """What a supernet computed, and what its backward pass needs.

    Attributes:
        logits: Float32 [N, H, W, num_classes].
        alpha: Float32 [B (B + 3) / 2, num_ops], softmax of `alpha_logits`.
        betas: For each node float32 [predecessors], the weights of the moves that lead to it.
        features: (layer, level) -> sH^l, float [N, ceil(H / s), ceil(W / s), B * F * 2**level]. Of
            layers -1 and -2 the stem's maps, at stride 4 and (as level -1) 2. Empty in the plain
            formulation.
        moments: For each segment the statistics of the batch float32 [2, M], the moving ones in
            inference, or None where nothing is normalised.
        weights: For each segment what it computed with, of `Segment.read`.
        residuals: For each segment what it keeps for its pullback.
        states: All tensors that pass between segments, by the names that these read and write.
    """

    logits: Tensor
    alpha: Tensor
    betas: tuple[Tensor, ...]
    features: Mapping[tuple[int, int], Tensor]
    moments: tuple[Tensor, ...]
    weights: tuple[tuple[Tensor, Tensor, Tensor], ...]
    residuals: tuple[Any, ...] = ()
    states: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)


@keras.saving.register_keras_serializable(package="auto_deeplab_tf")
class Supernet(keras.Model):
    """The search network: images to logits at the images' resolution, relaxed by alpha and beta.

    Called eagerly on TensorFlow, each kind of segment runs as a compiled function of its own;
    inside a traced function, or on another backend, the same code stands inline.

    Args:
        num_classes: Number of classes, 1 or more.
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
            `method.partial_mixed_operation`.
        sampled_paths: N, 2 or more: in training a step computes N paths that are drawn by beta, see
            `nn.relaxation.sample_moves`; nodes on none of them hold 0. 0: all paths, always.
        formulation: "fused", or "plain": computed by `method.py` from the same variables, many
            times slower, for reading, comparing and trying things at a small L. In float32, on one
            device, without sampled paths.

    `partial_channels` and `sampled_paths` are fast modes: approximations of the paper's search.

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
        num_classes: int = 19,
        num_layers: int = 12,
        num_blocks: int = 5,
        filter_multiplier: int = 8,
        input_size: tuple[int, int] = (321, 321),
        *,
        atrous: str = "separable",
        share_operations: bool = True,
        mean: Sequence[float] = (127.5, 127.5, 127.5),
        std: Sequence[float] = (127.5, 127.5, 127.5),
        seed: int = 0,
        partial_channels: int = 1,
        sampled_paths: int = 0,
        formulation: str = "fused",
        **kwargs: Any,
    ) -> None:
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
        modes = {"partial_channels": partial_channels, "sampled_paths": sampled_paths}
        check_fast_modes(filter_multiplier, modes)
        if formulation not in FORMULATIONS:
            raise UserError(f'formulation must be "fused" or "plain". Received: {formulation!r}')
        if formulation == "plain" and (sampled_paths or self.compute_dtype != "float32"):
            raise UserError(
                "formulation=plain computes all paths in float32. Received: "
                f"sampled_paths={sampled_paths}, dtype {self.compute_dtype}"
            )
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
        self.sampled_paths = sampled_paths
        self.formulation = formulation

        self._add_architecture_variables()
        self.incoming = self._incoming()
        self.nodes = tuple((node[0].layer, node[0].to_level) for node in self.incoming)
        # Where in `live` the nodes stand, and the heads, which read those of the last layer.
        self._live_index = {
            self._state(*node)[0]: index for index, node in enumerate(self.nodes)
        } | {
            f"head_{level}": index
            for index, (layer, level) in enumerate(self.nodes)
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

    def _add_architecture_variables(self) -> None:
        generator = np.random.default_rng([self.seed, 1])

        def initial(shape: Any, dtype: Any = None) -> Tensor:
            values = ARCHITECTURE_INITIAL_DEVIATION * generator.standard_normal(shape)
            return ops.convert_to_tensor(values, dtype=dtype)

        # trainable=False keeps them out of `trainable_variables`, the weight optimizer's list; the
        # architecture step differentiates with respect to them by name.
        num_edges = len(relaxed_edges(self.num_blocks))
        shapes: dict[str, tuple[int, ...]] = {
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
    def architecture_variables(self) -> list[keras.Variable]:
        """What the architecture optimizer updates."""
        return list(self._architecture.values())

    @property
    def fast_modes(self) -> dict[str, Any]:
        """The fast modes in force, by name; empty for the search as the paper has it."""
        return fast_modes(**{name: getattr(self, name) for name in EXACT})

    def _incoming(self) -> tuple[tuple[Transition, ...], ...]:
        """The transitions that lead to each node, from finer levels first.

        Nodes stand layer by layer, finer levels first.
        """
        by_node: dict[tuple[int, int], list[Transition]] = {}
        for transition in transitions(self.num_layers):
            by_node.setdefault((transition.layer, transition.to_level), []).append(transition)
        return tuple(
            tuple(sorted(by_node[node], key=lambda transition: transition.from_level))
            for node in sorted(by_node)
        )

    def _relax(self) -> Segment:
        writes = ["alpha", *(f"beta_{index}" for index in range(len(self.incoming)))]
        edge_counts: tuple[int, ...] = ()
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

    def _stem(self) -> Segment:
        kind = StemKind(self.mean, self.std, self.compute_dtype)
        return Segment(kind, ["images"], ["stem_2", "stem_4"], seed=[self.seed, 2, 0], name="stem")

    def _state(self, layer: int, level: int) -> tuple[str, StateShape]:
        """The name and shape of H at a layer and level.

        Layers -1 and -2 are the stem's tensors at stride 4 and 2.
        """
        if layer == -2:
            return "stem_2", StateShape(1, STEM_CHANNELS[1])
        if layer == -1:
            return "stem_4", StateShape(2, STEM_CHANNELS[2])
        channels = self.num_blocks * self.filter_multiplier * 2**level
        return f"layer_{layer}_level_{level}", StateShape(level + 2, channels)

    def _node(self, index: int) -> Segment:
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
        )
        return Segment(
            kind,
            [*(name for name, _ in predecessors), prev_prev[0]],
            [self._state(layer, level)[0]],
            ["alpha", f"beta_{index}", *(["edge_weights"] if self.partial_channels > 1 else [])],
            seed=[self.seed, 3, index],
            name=self._state(layer, level)[0],
        )

    def _head(self, level: int) -> Segment:
        name, shape = self._state(self.num_layers - 1, level)
        kind = HeadKind(level, shape.channels, self.num_classes)
        return Segment(
            kind, [name], [f"logits_{level}"], seed=[self.seed, 4, level], name=f"head_{level}"
        )

    def call(self, images: Tensor, training: bool = False) -> Tensor:
        """Returns logits float32 [N, H, W, num_classes]; see `forward`."""
        return self.forward(images, training).logits

    def forward(
        self, images: Tensor, training: bool, sampling: tuple[Tensor, Tensor] | None = None
    ) -> ForwardPass:
        """Computes logits and all that leads to them.

        Args:
            images: Float32 [N, H, W, len(mean)], 0..255; H and W of 32 or more, known statically.
            training: True: statistics of the batch, False: the moving ones.
            sampling: (noise float32 [sampled_paths, L, 4, 3], temperature float32 []), of
                `sample_moves`; in training with sampled paths only.

        Raises:
            UserError: For images of another form, and where `sampling` is missing.
        """
        check_images(images, len(self.mean))
        states = {"images": ops.cast(images, "float32")}
        for name, variable in self._architecture.items():
            states[name] = backend.read(variable)
        weights = tuple(segment.read() for segment in self.segments)
        if self.formulation == "plain":
            return self._plain_forward(states, weights, training)
        if self.sampled_paths:
            if training and sampling is None:
                raise UserError(
                    "A supernet with sampled paths trains with sampling=(noise, temperature): "
                    "nothing in it is random by itself."
                )
            shape = (self.sampled_paths, self.num_layers, NUM_LEVELS, 3)
            sampling = (ops.zeros(shape), ops.ones(())) if sampling is None else sampling
            states["path_noise"], states["path_temperature"] = sampling
        moments, residuals = [], []
        for segment, of_segment in zip(self.segments, weights, strict=True):
            if self._is_idle(segment, states):
                outputs = (self._zeros(segment, images.shape),)
                segment_moments, kept = ops.zeros_like(segment.moving), ()
            else:
                outputs, segment_moments, kept = runner(segment.kind, self.execution).forward(
                    *segment.arguments(of_segment, states), training=training
                )
            states.update(zip(segment.writes, outputs, strict=True))
            moments.append(segment_moments)
            residuals.append(kept)
        places = [(-2, -1), (-1, 0), *self.nodes]
        return ForwardPass(
            logits=states["logits"],
            alpha=states["alpha"],
            betas=tuple(states[f"beta_{index}"] for index in range(len(self.nodes))),
            features={place: states[self._state(*place)[0]] for place in places},
            moments=tuple(moments),
            weights=weights,
            residuals=tuple(residuals),
            states=states,
        )

    def _plain_forward(
        self,
        states: Mapping[str, Tensor],
        weights: tuple[tuple[Tensor, Tensor, Tensor], ...],
        training: bool,
    ) -> ForwardPass:
        alpha, beta = method.relax(states["alpha_logits"], states["beta_logits"])
        network = plain.build(
            self.segments,
            weights,
            self.nodes,
            alpha,
            beta,
            training,
            plain.edge_weights(states.get("edge_logits"), self.num_blocks),
        )
        logits = network.logits(states["images"])
        return ForwardPass(
            logits=logits,
            alpha=alpha,
            betas=tuple(
                ops.stack([beta[move[:3]] for move in incoming]) for incoming in self.incoming
            ),
            features={},
            moments=plain.moments(self.segments, network.statistics, training),
            weights=weights,
        )

    def _is_idle(self, segment: Segment, states: Mapping[str, Tensor]) -> bool:
        """Tells whether a node or head lies on no sampled path, where that is known already.

        What it would compute is 0, or counts 0 times, and so are the gradients: every reader begins
        with a ReLU, whose gradient at 0 is 0. A function that is being traced computes it all.
        """
        index = self._live_index.get(segment.name)
        if not self.sampled_paths or index is None or not backend.is_known(states["live"]):
            return False
        return not ops.convert_to_numpy(states["live"])[index]

    def _zeros(self, segment: Segment, image_shape: Sequence[int]) -> Tensor:
        """What an idle node or head writes."""
        kind: Any = segment.kind
        channels = (
            kind.num_classes if isinstance(kind, HeadKind) else self.num_blocks * kind.filters
        )
        size = (-(-extent // stride(kind.level)) for extent in image_shape[1:3])
        return ops.zeros((image_shape[0], *size, channels), self.compute_dtype)

    def backward(self, computed: ForwardPass, logits_gradient: Tensor, wrt: str) -> list[Tensor]:
        """Pulls a gradient of the logits back through the compiled segments.

        On eager TensorFlow and in the fused formulation only.

        Args:
            computed: Of `forward(..., training=True)`.
            logits_gradient: Float32 [N, H, W, num_classes].
            wrt: "weights" or "architecture".

        Returns:
            The gradients of `trainable_variables`, or of `architecture_variables`, in their order.
        """
        states = computed.states
        gradients: dict[str, list[Tensor]] = {"logits": [logits_gradient]}
        weight_gradients: dict[str, Sequence[Tensor]] = {}

        def accumulate(names: Iterable[str], values: Iterable[Tensor]) -> None:
            for name, value in zip(names, values, strict=True):
                gradients.setdefault(name, []).append(value)

        for segment, weights, residuals in reversed(
            list(zip(self.segments, computed.weights, computed.residuals, strict=True))
        ):
            is_first = not segment.kind.input_gradients
            if is_first and (wrt == "architecture") != bool(segment.reads_architecture):
                continue
            if self._is_idle(segment, states):
                gradients.pop(segment.writes[0], None)
                weight_gradients[segment.name] = [
                    None if variable is None else ops.zeros_like(variable)
                    for variable in (segment.kernels, segment.affine)
                ]
                for name in segment.reads_architecture:
                    accumulate([name], [ops.zeros_like(states[name])])
                continue
            upstream = tuple(backend.sum_all(gradients.pop(name)) for name in segment.writes)
            parameters, inputs = runner(segment.kind, self.execution).pullback(
                wrt, *segment.arguments(weights, states), residuals, upstream
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

    def get_config(self) -> dict[str, Any]:
        """See Keras."""
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
            "sampled_paths": self.sampled_paths,
            "formulation": self.formulation,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> Any:
        """Builds a supernet from `get_config`'s content, also of version 0.1.0."""
        config = dict(config)
        if config.pop("mix_predecessors", False):
            raise UserError("mix_predecessors=True is gone: read the file with the version of it.")
        return super().from_config(config, custom_objects)


def build_supernet(
    num_classes: int = 19,
    num_layers: int = 12,
    num_blocks: int = 5,
    filter_multiplier: int = 8,
    **kwargs: Any,
) -> Supernet:
    """Builds the search network; see `Supernet` for the arguments."""
    return Supernet(num_classes, num_layers, num_blocks, filter_multiplier, **kwargs)
