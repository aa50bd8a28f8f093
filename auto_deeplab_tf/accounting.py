"""Parameters and Multi-Adds of a decoded network, by counting: no framework, a millisecond.

Parameters are the trainable ones: kernels, BN's gamma and beta, the bias of the last convolution.
Multi-Adds are those of convolutions (TensorFlow's Conv2D and DepthwiseConv2dNative) for one image;
taps that fall on padding count, resizing, pooling, BN and sums do not.

The paper's own figures are 4 to 5 % higher than those at 1025x2049. Over half of that: its TF1
graph ran an atrous convolution of rate r as r * r phases of a map padded to a multiple of r, and
the padded positions were counted too (`benchmarks/paper_multi_adds.py`). What is left has no
explanation yet.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.config import NetworkSizesConfig
from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.search_space import (
    ASPP_EXTENTS,
    INPUT_CHANNELS,
    STEM_STRIDES,
    ConvUnit,
    checked_count,
    checked_size,
    operation,
    operation_units,
    stride,
)


class LayerCount(NamedTuple):
    """One row of a `Count`; the name is that of the Keras layer, `cell_3/prev` for instance.

    Args:
        name: Path of the layer inside the network.
        output_shape: (height, width, channels).
        params: Trainable parameters.
        multi_adds: Multiply-adds for one image.
    """

    name: str
    output_shape: tuple[int, int, int]
    params: int
    multi_adds: int


@dataclasses.dataclass(frozen=True)
class Count:
    """What `count` returns.

    Args:
        params: Trainable parameters of the network.
        multi_adds: Its multiply-adds for one image.
        layers: The rows that they are the sums of, in the order of computation.
        parts: The same summed up for the stem, every cell, the ASPP and the decoder; the shape is
            that of the part's output, for a cell all blocks side by side.
    """

    params: int
    multi_adds: int
    layers: tuple[LayerCount, ...]
    parts: tuple[LayerCount, ...]


def count(
    architecture: Architecture,
    settings: NetworkSizesConfig | None = None,
    *,
    num_classes: int,
    input_size: tuple[int, int],
    input_channels: int = 3,
    **keywords: Any,
) -> Count:
    """Counts the parameters and Multi-Adds of an architecture's network, layer by layer.

    Args:
        architecture: The decoded architecture.
        settings: The channels of the network, or the fields as keywords: `filter_multiplier`,
            `stem_channels`, `head_channels`, `decoder_channels`.
        num_classes: Classes predicted, 1 or more.
        input_size: (height, width) of the image, each 32 or more.
        input_channels: Channels of the images: 1, 3 or 4.
        **keywords: See `settings`.

    Raises:
        ValueError: for a setting out of its range.
    """
    sizes, _ = NetworkSizesConfig.given(settings, keywords)
    head, decoder = sizes.head_channels, sizes.decoder_channels
    num_classes = checked_count("num_classes", num_classes)
    if input_channels not in INPUT_CHANNELS:
        raise UserError(f"input_channels must be 1, 3 or 4. Received: {input_channels!r}.")
    rows = _Rows(checked_size(input_size))
    channels = _stem(rows, int(input_channels), sizes.stem_channels)
    for index, (before, level) in enumerate(architecture.moves):
        filters = sizes.filter_multiplier * 2**level
        # The projections run where the cell reads: at its own stride or the finer one of `prev`.
        reads = stride(min(before, level))
        rows.convolve(f"cell_{index}/prev", channels[-1], filters, reads)
        if channels[-2] != filters:
            rows.convolve(f"cell_{index}/prev_prev", channels[-2], filters, reads)
        for block, edges in enumerate(architecture.cell):
            for edge in edges:
                goes_down = level > before and edge.source in ("prev", "prev_prev")
                units = operation_units(
                    operation(edge.op), 2 if goes_down else 1, architecture.atrous
                )
                name = f"cell_{index}/block_{block}_{edge.source}_{edge.op}"
                rows.convolve(name, filters, filters, stride(level), units)
        channels.append(architecture.num_blocks * filters)
        rows.close(f"cell_{index}", channels[-1], stride(level))

    _aspp(rows, channels[-1], head, stride(architecture.levels[-1]))
    # Behind the stem's two tensors come the cells' outputs: the stem's last is number -1.
    low_level = channels[2 + architecture.low_level_index]
    rows.convolve("decoder/low_level", low_level, decoder, 4)
    rows.convolve("decoder/conv_0", head + decoder, head, 4, [ConvUnit(3)])
    rows.convolve("decoder/conv_1", head, head, 4, [ConvUnit(3)])
    # A bias in place of BN's two vectors.
    rows.convolve("decoder/classes", head, num_classes, 4, vectors=1)
    rows.close("decoder", num_classes, 4)
    return rows.total()


def largest_filter_multiplier(
    architecture: Architecture,
    *,
    max_multi_adds: float | None = None,
    max_params: float | None = None,
    **network: Any,
) -> int:
    """Returns the largest F at which a network keeps a budget, 0 where F 1 is too large already.

    Args:
        architecture: The decoded architecture.
        max_multi_adds: Most Multi-Adds for one image, None for any number; likewise:
        max_params: Most trainable parameters.
        **network: More arguments of `count`.

    Raises:
        TypeError: If there is no limit.
    """
    if max_multi_adds is None and max_params is None:
        raise TypeError("max_multi_adds or max_params must be given")
    limits = {"multi_adds": max_multi_adds, "params": max_params}

    def too_large(multiplier: int) -> bool:
        counted = count(architecture, filter_multiplier=multiplier, **network)
        return any(
            limit is not None and getattr(counted, name) > limit for name, limit in limits.items()
        )

    beyond = 1
    while not too_large(beyond):
        beyond *= 2
    return bisect.bisect_left(range(beyond), True, lo=beyond // 2 + 1, key=too_large) - 1


def _stem(rows: _Rows, channels: int, stem: Sequence[int]) -> list[int]:
    """Adds the stem and returns the channels of the two tensors that the first cell reads."""
    at = 1
    for index, (filters, step) in enumerate(zip(stem, STEM_STRIDES, strict=True)):
        at *= step
        rows.convolve(f"stem/unit_{index}", channels, filters, at, [ConvUnit(3)])
        channels = filters
    rows.close("stem", channels, at)
    return [*stem[1:]]


def _aspp(rows: _Rows, channels: int, filters: int, at: int) -> None:
    rows.convolve("aspp/pointwise", channels, filters, at)
    for index in range(len(ASPP_EXTENTS)):
        rows.convolve(f"aspp/atrous_{index}", channels, filters, at, [ConvUnit(3)])
    rows.convolve("aspp/pooling", channels, filters, None)
    rows.convolve("aspp/joined", (2 + len(ASPP_EXTENTS)) * filters, filters, at)
    rows.close("aspp", filters, at)


class _Rows:
    """Collects the rows of a network for one image size."""

    def __init__(self, input_size: tuple[int, int]) -> None:
        self._input_size = input_size
        self._rows: list[LayerCount] = []
        self._parts: list[LayerCount] = []
        self._num_closed = 0

    def convolve(
        self,
        name: str,
        channels: int,
        filters: int,
        at: int | None,
        units: Sequence[ConvUnit] = (ConvUnit(),),
        vectors: int = 2,
    ) -> None:
        """Adds a layer of convolutions.

        Args:
            name: Its path.
            channels: Of its input.
            filters: Of its output.
            at: Stride of the output relative to the image; None for one pooled position.
            units: One after the other.
            vectors: Parameters per filter beside the kernel: BN's gamma and beta.
        """
        height, width = (1, 1) if at is None else self._size(at)
        params = multi_adds = 0
        for unit in units:
            taps = unit.kernel_size**2 * channels
            kernel = taps + channels * filters if unit.separable else taps * filters
            params += kernel + vectors * filters
            multi_adds += kernel * height * width
            channels = filters
        self._rows.append(LayerCount(name, (height, width, filters), params, multi_adds))

    def close(self, part: str, channels: int, at: int) -> None:
        """Sums up the rows since the last call as one part with that output."""
        rows = self._rows[self._num_closed :]
        self._num_closed = len(self._rows)
        params = sum(row.params for row in rows)
        multi_adds = sum(row.multi_adds for row in rows)
        self._parts.append(LayerCount(part, (*self._size(at), channels), params, multi_adds))

    def total(self) -> Count:
        """Returns the sums with their rows."""
        return Count(
            sum(row.params for row in self._rows),
            sum(row.multi_adds for row in self._rows),
            tuple(self._rows),
            tuple(self._parts),
        )

    def _size(self, at: int) -> tuple[int, int]:
        height, width = self._input_size
        return -(-height // at), -(-width // at)
