"""The supernet: every operation (alpha) and every path (beta) in one network (paper, sec. 3)."""

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from auto_deeplab_tf import method
from auto_deeplab_tf.config import RETIRED, SupernetConfig, is_retired
from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.nn import backend, plain
from auto_deeplab_tf.nn.backend import Tensor
from auto_deeplab_tf.nn.execution import Execution, runner
from auto_deeplab_tf.nn.node import NodeKind, StateShape
from auto_deeplab_tf.nn.relaxation import RelaxKind
from auto_deeplab_tf.nn.segmentation_network import (
    check_images,
    checked_normalization,
)
from auto_deeplab_tf.nn.segments import Segment
from auto_deeplab_tf.nn.supernet_ends import HeadKind, LogitsKind, StemKind
from auto_deeplab_tf.search_space import (
    NUM_LEVELS,
    OPERATIONS,
    PLAIN_MEAN,
    PLAIN_STD,
    Transition,
    block_sources,
    checked_count,
    checked_size,
    reachable_levels,
    relaxed_edges,
    stride,
    transitions,
)

ARCHITECTURE_INITIAL_DEVIATION = 1e-3


@dataclasses.dataclass(frozen=True)
class ForwardPass:
    """What a supernet computed, and what its backward pass needs.

    Attributes:
        logits: float32 [N, H, W, num_classes].
        alpha: float32 [B (B + 3) / 2, num_ops], softmax of `alpha_logits`.
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
        settings: The search space and the fast modes of the search; None: the paper's. A node at
            level k holds num_blocks * filter_multiplier * 2**k channels. With `partial_channels` K
            above 1, 1/K of the channels go through the operations, see
            `method.partial_mixed_operation`. With `sampled_paths`, a step in training computes that
            many paths, drawn by beta, see `nn.relaxation.sample_moves`; nodes on none of them hold
            0. The formulation "plain" runs `method.py` on the same variables, many times slower, in
            float32, on one device.
        mean, std: Images are normalised (x - mean) / std, in units of 0..255: a float for each of
            their channels, of which there are 1, 3 or 4.
        seed: Of the initial kernels, alpha and beta.

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
        settings: SupernetConfig | None = None,
        *,
        mean: Sequence[float] = PLAIN_MEAN,
        std: Sequence[float] = PLAIN_STD,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.num_classes = checked_count("num_classes", num_classes)
        self.settings = (settings or SupernetConfig()).part(SupernetConfig)
        if self.settings.formulation == "plain" and self.compute_dtype != "float32":
            raise UserError(
                f"formulation=plain computes in float32. Received: dtype {self.compute_dtype}"
            )
        self.mean, self.std = checked_normalization(mean, std)
        self.seed = seed
        self.execution = Execution()

        self._add_architecture_variables()
        self.incoming = self._incoming()
        self.nodes = tuple((node[0].layer, node[0].to_level) for node in self.incoming)
        # Where in `live` the nodes stand, and the heads, which read those of the last layer.
        self._live_index = {
            self._state(*node)[0]: index for index, node in enumerate(self.nodes)
        } | {
            f"head_{level}": index
            for index, (layer, level) in enumerate(self.nodes)
            if layer == self.settings.num_layers - 1
        }
        heads = [self._head(level) for level in reachable_levels(self.settings.num_layers)[-1]]
        self.segments = [
            self._relax(),
            self._stem(),
            *(self._node(index) for index in range(len(self.incoming))),
            *heads,
            Segment(
                LogitsKind(),
                ["images", *(head.writes[0] for head in heads)],
                ["logits"],
                ["live"] if self.settings.sampled_paths else [],
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
        num_edges = len(relaxed_edges(self.settings.num_blocks))
        shapes: dict[str, tuple[int, ...]] = {
            "alpha_logits": (num_edges, len(OPERATIONS)),
            "beta_logits": (self.settings.num_layers, NUM_LEVELS, 3),
        }
        if self.settings.partial_channels > 1:
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

    def _incoming(self) -> tuple[tuple[Transition, ...], ...]:
        """The transitions that lead to each node, from finer levels first.

        Nodes stand layer by layer, finer levels first.
        """
        by_node: dict[tuple[int, int], list[Transition]] = {}
        for transition in transitions(self.settings.num_layers):
            by_node.setdefault((transition.layer, transition.to_level), []).append(transition)
        return tuple(
            tuple(sorted(by_node[node], key=lambda transition: transition.from_level))
            for node in sorted(by_node)
        )

    def _relax(self) -> Segment:
        writes = ["alpha", *(f"beta_{index}" for index in range(len(self.incoming)))]
        edge_counts: tuple[int, ...] = ()
        if self.settings.partial_channels > 1:
            writes.append("edge_weights")
            edge_counts = tuple(
                len(block_sources(block)) for block in range(self.settings.num_blocks)
            )
        if self.settings.sampled_paths:
            writes.append("live")
        return Segment(
            RelaxKind(self.incoming, edge_counts, self.settings.sampled_paths),
            ["path_noise", "path_temperature"] if self.settings.sampled_paths else [],
            writes,
            list(self._architecture),
            name="relax",
        )

    def _stem(self) -> Segment:
        kind = StemKind(self.mean, self.std, self.compute_dtype, self.settings.stem_channels)
        return Segment(kind, ["images"], ["stem_2", "stem_4"], seed=[self.seed, 2, 0], name="stem")

    def _state(self, layer: int, level: int) -> tuple[str, StateShape]:
        """The name and shape of H at a layer and level.

        Layers -1 and -2 are the stem's tensors at stride 4 and 2.
        """
        if layer == -2:
            return "stem_2", StateShape(1, self.settings.stem_channels[1])
        if layer == -1:
            return "stem_4", StateShape(2, self.settings.stem_channels[2])
        channels = self.settings.num_blocks * self.settings.filter_multiplier * 2**level
        return f"layer_{layer}_level_{level}", StateShape(level + 2, channels)

    def _node(self, index: int) -> Segment:
        node = self.incoming[index]
        layer, level = node[0].layer, node[0].to_level
        predecessors = [self._state(layer - 1, transition.from_level) for transition in node]
        # H^{l-2} of the level nearest in size among those that exist; on a tie the finer.
        levels = reachable_levels(self.settings.num_layers)[layer - 2] if layer >= 2 else (0,)
        nearest = min(levels, key=lambda other: (abs(other - level), other))
        prev_prev = self._state(layer - 2, nearest)
        kind = NodeKind(
            level=level,
            predecessors=tuple(shape for _, shape in predecessors),
            prev_prev=prev_prev[1],
            filters=self.settings.filter_multiplier * 2**level,
            num_blocks=self.settings.num_blocks,
            atrous=self.settings.atrous,
            share_operations=self.settings.share_operations,
            partial_channels=self.settings.partial_channels,
        )
        return Segment(
            kind,
            [*(name for name, _ in predecessors), prev_prev[0]],
            [self._state(layer, level)[0]],
            [
                "alpha",
                f"beta_{index}",
                *(["edge_weights"] if self.settings.partial_channels > 1 else []),
            ],
            seed=[self.seed, 3, index],
            name=self._state(layer, level)[0],
        )

    def _head(self, level: int) -> Segment:
        name, shape = self._state(self.settings.num_layers - 1, level)
        kind = HeadKind(level, shape.channels, self.num_classes)
        return Segment(
            kind, [name], [f"logits_{level}"], seed=[self.seed, 4, level], name=f"head_{level}"
        )

    def call(self, images: Tensor, training: bool = False) -> Tensor:
        """Returns logits float32 [N, H, W, num_classes]; see `forward`."""
        return self.forward(images, training).logits

    def forward(
        self,
        images: Tensor,
        training: bool,
        sampling: tuple[Tensor, Tensor] | None = None,
        *,
        relaxed: tuple[np.ndarray, np.ndarray] | None = None,
        moving: Sequence[Tensor] | None = None,
    ) -> ForwardPass:
        """Computes logits and all that leads to them.

        Args:
            images: float32 [N, H, W, len(mean)], 0..255; H and W of 32 or more, known statically.
            training: True: statistics of the batch, False: the moving ones.
            sampling: (noise float32 [sampled_paths, L, 4, 3], temperature float32 []), of
                `sample_moves`; in training with sampled paths only.
            relaxed: (alpha [B (B + 3) / 2, num_ops], beta [L, 4, 3]) in place of the softmaxes. Of
                one-hot ones (`decoding.one_hot`) only the nodes on the path, and its head, are
                computed. The others are 0, also where they serve as H^{l-2}. With partial channels
                alpha must be one-hot: it says which edges are kept.
            moving: For each segment float32 [2, M] or None, in place of its moving statistics.

        Raises:
            UserError: For images of another form, and where `sampling` is missing.
        """
        check_images(images, len(self.mean))
        states = {"images": ops.cast(images, "float32")}
        for name, variable in self._architecture.items():
            states[name] = backend.read(variable)
        weights = tuple(segment.read() for segment in self.segments)
        if moving is not None:
            weights = tuple(
                (kernels, affine, statistics)
                for (kernels, affine, _), statistics in zip(weights, moving, strict=True)
            )
        if self.settings.formulation == "plain":
            return self._plain_forward(states, weights, training, relaxed)
        if relaxed is not None:
            states |= self._relaxed_states(*relaxed)
        elif self.settings.sampled_paths:
            if training and sampling is None:
                raise UserError(
                    "A supernet with sampled paths trains with sampling=(noise, temperature): "
                    "nothing in it is random by itself."
                )
            shape = (self.settings.sampled_paths, self.settings.num_layers, NUM_LEVELS, 3)
            sampling = (ops.zeros(shape), ops.ones(())) if sampling is None else sampling
            states["path_noise"], states["path_temperature"] = sampling
        moments, residuals = [], []
        for segment, of_segment in zip(self.segments, weights, strict=True):
            if relaxed is not None and segment.name == "relax":
                outputs, segment_moments, kept = [states[name] for name in segment.writes], None, ()
            elif self._is_idle(segment, states):
                outputs = [self._zeros(segment, images.shape)]
                segment_moments, kept = ops.zeros_like(of_segment[2]), ()
            else:
                outputs, segment_moments, kept = runner(segment.kind, self.execution).forward(
                    segment.arguments(of_segment, states), training=training
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
        relaxed: tuple[np.ndarray, np.ndarray] | None,
    ) -> ForwardPass:
        if relaxed is None:
            alpha, beta = method.relax(states["alpha_logits"], states["beta_logits"])
            edges = plain.edge_weights(states.get("edge_logits"), self.settings.num_blocks)
        else:
            alpha, beta = map(ops.convert_to_tensor, relaxed)
            found = self._relaxed_states(*relaxed)
            edges, live = found.get("edge_weights"), ops.convert_to_numpy(found["live"])
        network = plain.build(
            self.segments,
            weights,
            self.nodes,
            alpha,
            beta,
            training,
            edges,
        )
        if relaxed is not None:
            network.heads = {
                level: head
                if live[self._live_index[f"head_{level}"]]
                else head._replace(classes=0.0 * head.classes, bias=0.0 * head.bias)
                for level, head in network.heads.items()
            }
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

    def _relaxed_states(self, alpha: np.ndarray, beta: np.ndarray) -> dict[str, Tensor]:
        """What `RelaxKind` would write, of an alpha and beta; `live` in every mode."""
        betas = [np.array([beta[move[:3]] for move in node], "float32") for node in self.incoming]
        states = {f"beta_{index}": ops.convert_to_tensor(row) for index, row in enumerate(betas)}
        states["alpha"] = ops.convert_to_tensor(alpha, "float32")
        states["live"] = ops.convert_to_tensor([float(row.any()) for row in betas], "float32")
        if self.settings.partial_channels > 1:
            kept = 1.0 - alpha[:, OPERATIONS.index("none")]
            states["edge_weights"] = ops.convert_to_tensor(kept, "float32")
        return states

    def _is_idle(self, segment: Segment, states: Mapping[str, Tensor]) -> bool:
        """Tells whether a node or head lies on no path that counts, where that is known already.

        What it would compute is 0, or counts 0 times, and so are the gradients: every reader begins
        with a ReLU, whose gradient at 0 is 0. A function that is being traced computes it all.
        """
        index = self._live_index.get(segment.name)
        if index is None or "live" not in states or not backend.is_known(states["live"]):
            return False
        return not ops.convert_to_numpy(states["live"])[index]

    def _zeros(self, segment: Segment, image_shape: Sequence[int]) -> Tensor:
        """What an idle node or head writes."""
        kind: Any = segment.kind
        channels = (
            kind.num_classes
            if isinstance(kind, HeadKind)
            else self.settings.num_blocks * kind.filters
        )
        size = (-(-extent // stride(kind.level)) for extent in image_shape[1:3])
        return ops.zeros((image_shape[0], *size, channels), self.compute_dtype)

    def backward(self, computed: ForwardPass, logits_gradient: Tensor, wrt: str) -> list[Tensor]:
        """Pulls a gradient of the logits back through the compiled segments.

        On eager TensorFlow and in the fused formulation only.

        Args:
            computed: Of `forward(..., training=True)`.
            logits_gradient: float32 [N, H, W, num_classes].
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
                wrt, segment.arguments(weights, states), residuals, upstream
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

    @property
    def layouts(self) -> list[Any]:
        """Name and shape of each array, in the order in which they lie in each flat vector."""
        return [
            [segment.name, *(list(layout.shapes.items()) for layout in segment.kind.layouts)]
            for segment in self.segments
        ]

    def get_config(self) -> dict[str, Any]:
        """See Keras; `layout` is for `from_config` to compare."""
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            **dataclasses.asdict(self.settings),
            "mean": self.mean,
            "std": self.std,
            "seed": self.seed,
            "layout": _digest(self.layouts),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> "Supernet":
        """See Keras.

        Raises:
            UserError: Where the file's weights lie in another order in their vectors, which would
                be read without an error; or for a setting that is gone and was used.
        """
        config = dict(config)
        layout = config.pop("layout", None)
        config.pop("input_size", None)  # of older files; nothing depends on it
        for name in RETIRED:
            if name in config:
                is_retired(name, str(config.pop(name)).lower())
        settings, others = SupernetConfig.given(
            None, config, ("num_classes", "mean", "std", "seed")
        )
        supernet = cls(settings=settings, **others)
        if layout is None:
            warnings.warn(
                "the file of this search does not say how its weights lie in their vectors: they "
                "are checked by their sizes only.",
                stacklevel=2,
            )
        elif layout != _digest(supernet.layouts):
            raise UserError(
                "the weights of this search lie in another order than in this version, or with "
                "other operations registered: read the file with the version and the operations "
                "that it was written with."
            )
        return supernet


def _digest(layouts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(layouts).encode()).hexdigest()


def build_supernet(
    num_classes: int = 19,
    num_layers: int = 12,
    num_blocks: int = 5,
    filter_multiplier: int = 8,
    input_size: tuple[int, int] = (321, 321),
    *,
    mean: Sequence[float] = PLAIN_MEAN,
    std: Sequence[float] = PLAIN_STD,
    seed: int = 0,
    **kwargs: Any,
) -> Supernet:
    """Builds the search network.

    Args:
        num_classes: Number of classes, 1 or more.
        num_layers: L.
        num_blocks: B.
        filter_multiplier: F.
        input_size: (height, width) that the network is meant for, 32 or more each. It serves any
            other size too.
        mean: See `Supernet`; likewise:
        std: See there.
        seed: See there.
        **kwargs: More settings of `SupernetConfig`, and Keras' `name` and `dtype`.

    Raises:
        UserError: For a setting out of its range.
        TypeError: For an unknown setting, with the nearest one.
    """
    checked_size(input_size)
    sizes = {
        "num_layers": num_layers,
        "num_blocks": num_blocks,
        "filter_multiplier": filter_multiplier,
    }
    settings, others = SupernetConfig.given(None, sizes | kwargs)
    return Supernet(num_classes, settings, mean=mean, std=std, seed=seed, **others)
