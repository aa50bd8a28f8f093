"""The network of an `Architecture`: stem, cells, ASPP, decoder (method of the published networks).

Nothing depends on the image size but the resizing, so the weights serve every size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.config import NetworkConfig
from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.nn.aspp import ASPP, Decoder
from auto_deeplab_tf.nn.backend import Tensor
from auto_deeplab_tf.nn.cell import Cell
from auto_deeplab_tf.nn.drop_path import ScheduledDropPath
from auto_deeplab_tf.nn.layer import Shape
from auto_deeplab_tf.nn.resize import resize_bilinear
from auto_deeplab_tf.nn.segmentation_network import SegmentationNetwork
from auto_deeplab_tf.nn.serialization import register
from auto_deeplab_tf.nn.stem import Stem
from auto_deeplab_tf.search_space import STEM_OUTPUT_STRIDES, stride


def build_network(
    architecture: Architecture | str,
    num_classes: int = 19,
    filter_multiplier: int = NetworkConfig.filter_multiplier,
    input_size: tuple[int, int] | None = None,
    **settings: Any,
) -> Network:
    """Builds the network of an architecture; the arguments are those of `Network`.

    >>> build_network("auto_deeplab", filter_multiplier=20).count_params()  # doctest: +SKIP
    """
    settings |= {"filter_multiplier": filter_multiplier, "input_size": input_size}
    return Network(architecture, num_classes, **settings)


@register
class Network(SegmentationNetwork):
    """A decoded network: images to logits at the images' size.

    Every path of the trellis builds. The decoder's low-level feature is the output of the last cell
    before the path first leaves level 0 (the stem's stride-4 tensor where the first cell already
    left it, the last cell's output where none does), and the ASPP sits at the level where the path
    ends. A tensor at stride s is ceil(H / s) x ceil(W / s).

    Args:
        architecture: An `Architecture`, or the name of a preset.
        num_classes: See `SegmentationNetwork`.
        settings: The network's sizes and regularisation, or its fields as keywords. Blocks at
            level k have filter_multiplier * 2**k channels; the ASPP and the decoder have
            `head_channels`, the projected low-level feature `decoder_channels`, the convolutions of
            the stem `stem_channels`. `drop_path_keep` is ScheduledDropPath's keep probability of
            the last cell at the end of the training, in (0, 1]; 1 drops nothing.
        drop_path_seed: Seed of the paths dropped.
        **kwargs: See `SegmentationNetwork`: `input_size`, `mean`, `std`, `dtype`, `name`.

    Input shape, output shape: see `SegmentationNetwork`.

    Attributes:
        architecture: The `Architecture`.
        stem, cells, aspp, decoder: The layers, in the order of computation.
        low_level_index: Index of the cell whose output is the low-level feature; -1 for the stem.
        output_stride: Stride of the ASPP.
        drop_path: The `ScheduledDropPath`.
        progress: Its float32 variable, step / steps in 0..1, for the training loop to set.

    Raises:
        ValueError: For a setting out of its range, or images smaller than 32 pixels.

    Reference: Liu et al., Auto-DeepLab, CVPR 2019, arXiv:1901.02985.
    """

    def __init__(
        self,
        architecture: Architecture | str,
        num_classes: int = 19,
        settings: NetworkConfig | None = None,
        *,
        drop_path_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        settings, others = NetworkConfig.given(settings, kwargs, ("input_size", "mean", "std"))
        super().__init__(num_classes, batch_norm_decay=settings.batch_norm_decay, **others)
        self.architecture = _checked_architecture(architecture)
        self.settings = settings
        self.drop_path_seed = drop_path_seed
        self._add_layers()
        self.build(self.static_input_shape)

    def _add_layers(self) -> None:
        shared, settings = self.shared, self.settings
        levels = self.architecture.levels
        self.low_level_index = self.architecture.low_level_index
        self.output_stride = stride(levels[-1])
        self.stem = Stem(settings.stem_channels, name="stem", **shared)
        self.cells = [
            Cell(
                settings.filter_multiplier * 2**level,
                self.architecture.cell,
                stride=2 if level > before else 1,
                atrous=self.architecture.atrous,
                name=f"cell_{index}",
                **shared,
            )
            for index, (before, level) in enumerate(self.architecture.moves)
        ]
        self.aspp = ASPP(self.output_stride, settings.head_channels, name="aspp", **shared)
        self.decoder = Decoder(
            self.num_classes,
            settings.head_channels,
            settings.decoder_channels,
            upsample=levels[-1] > 0,
            name="decoder",
            **shared,
        )
        self.drop_path = ScheduledDropPath(
            len(self.cells),
            self.cells[0].num_droppable,
            settings.drop_path_keep,
            seed=self.drop_path_seed,
            name="drop_path",
            dtype=self.dtype_policy,
        )

    @property
    def progress(self) -> keras.Variable | None:
        """The training's progress in 0..1, with which `drop_path` drops more and more."""
        return self.drop_path.progress if self.settings.drop_path_keep < 1 else None

    @property
    def class_layer(self) -> keras.layers.Layer:
        """The decoder's last layer."""
        return self.decoder.classes

    def build(self, input_shape: Shape) -> None:
        """Creates the weights; `input_shape` is [N, H, W, C], N, H and W possibly None."""
        self.stem.build(input_shape)
        shapes: list[Shape] = [(None, None, None, c) for c in self.settings.stem_channels[1:]]
        for cell in self.cells:
            cell.build(shapes[-1], shapes[-2])
            shapes.append((None, None, None, len(cell.blocks) * cell.filters))
        self.aspp.build(shapes[-1])
        # Behind the stem's two tensors come the cells' outputs: the last of the stem is number -1.
        low_level = shapes[2 + self.low_level_index]
        self.decoder.build((*low_level[:-1], self.settings.head_channels), low_level)

    def compute_logits(self, images: Tensor, training: bool | None = None) -> Tensor:
        """Computes the logits at stride 4; see `SegmentationNetwork`."""
        size = ops.shape(images)[1:3]
        factors = None
        if training and self.settings.drop_path_keep < 1:
            factors = self.drop_path(images)

        states = list(self.stem(images, training=training))
        strides = list(STEM_OUTPUT_STRIDES)
        for index, (cell, level) in enumerate(
            zip(self.cells, self.architecture.levels, strict=True)
        ):
            # The stride at which the cell reads its inputs: its own, or the finer one of `prev`.
            reads = min(strides[-1], stride(level))
            read_size = [(extent + reads - 1) // reads for extent in size]
            prev_prev, prev = (
                state if at == reads else resize_bilinear(state, read_size)
                for state, at in zip(states[-2:], strides[-2:], strict=True)
            )
            states.append(
                cell(
                    prev,
                    prev_prev,
                    factors=None if factors is None else factors[index],
                    training=training,
                )
            )
            strides.append(stride(level))
        features = self.aspp(ops.relu(states[-1]), training=training)
        low_level = states[len(STEM_OUTPUT_STRIDES) + self.low_level_index]
        return self.decoder(features, low_level, training=training)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments: settings one by one, the architecture as JSON content."""
        config = super().get_config()
        return (
            config
            | dataclasses.asdict(config.pop("settings"))
            | {
                "architecture": self.architecture.to_dict(),
                "fingerprint": self.architecture.fingerprint,
            }
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> Network:
        """Builds a network from `get_config`'s content.

        Raises:
            ValueError: Where the fingerprint is not that of the architecture.
        """
        config = dict(config)
        architecture = Architecture.from_dict(config.pop("architecture"))
        fingerprint = config.pop("fingerprint")
        if fingerprint != architecture.fingerprint:
            raise UserError(
                f"the saved network's fingerprint {fingerprint} is not that of its architecture, "
                f"{architecture.fingerprint}: the file was changed; save the network again from "
                "its architecture.json."
            )
        network: Network = super().from_config(config | {"architecture": architecture})
        return network


def _checked_architecture(architecture: Any) -> Architecture:
    if isinstance(architecture, str):
        return Architecture.preset(architecture)
    if not isinstance(architecture, Architecture):
        raise UserError(
            "architecture must be an Architecture (Architecture.load reads a file) or a preset's "
            f"name. Received: {type(architecture).__name__}."
        )
    return architecture
