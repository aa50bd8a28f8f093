"""Operations and bytes of a bilevel iteration, counted from the formulation: nothing is run.

Of each segment's forward pass on one image: multiply-adds, and values read and written where every
convolution reads its input and writes its output once and all between two convolutions is fused
into the reading side (batch statistics read their map once more).
"""

import dataclasses
import math
from typing import NamedTuple

from auto_deeplab_tf.nn.node import NodeKind
from auto_deeplab_tf.nn.supernet_ends import HeadKind, LogitsKind, StemKind
from auto_deeplab_tf.search_space import STEM_CHANNELS, STEM_STRIDES

WORKS = ("depthwise", "convolution", "elementwise")


class Work(NamedTuple):
    """One operation of a forward pass.

    Args:
        name: one of `WORKS`; pointwise and full convolutions are "convolution".
        multi_adds: multiply-adds.
        values: read and written.
    """

    name: str
    multi_adds: int
    values: int


@dataclasses.dataclass(frozen=True)
class SegmentCount:
    """The forward pass of a segment on one image.

    Attributes:
        name: of the segment.
        works: its operations.
        state_values: values of its outputs, which the backward pass needs in any case.
        kept_values: values of what `backend.keep` marks.
        calls: kernels that run, roughly.
    """

    name: str
    works: tuple[Work, ...]
    state_values: int
    kept_values: int = 0
    calls: int = 20


def count(supernet, size):
    """Counts a `Supernet` at images of size (height, width): a list of `SegmentCount`."""

    def pixels(log2_stride):
        return math.prod(-(-extent // 2**log2_stride) for extent in size)

    counts = []
    for segment in supernet.segments:
        kind = segment.kind
        if isinstance(kind, NodeKind):
            counts.append(_node(segment.name, kind, pixels))
        elif isinstance(kind, StemKind):
            counts.append(_stem(segment.name, kind, pixels))
        elif isinstance(kind, HeadKind):
            counts.append(_head(segment.name, kind, pixels))
        elif isinstance(kind, LogitsKind):
            values = pixels(0) * supernet.num_classes
            work = Work("elementwise", 0, 2 * values * (len(segment.reads) - 1))
            counts.append(SegmentCount(segment.name, (work,), values))
    return counts


def _node(name, kind, pixels):
    area, filters = pixels(kind.level + 2), kind.mixed_filters
    works, kept, calls = [], 0, 40
    for state in (*kind.predecessors, kind.prev_prev):
        works.append(_convolution(area, state.channels, kind.filters))
        kept += area * kind.filters
    for source, edges in kind.sources:
        branches, targets = kind.branches(source), len(edges)
        narrow = area * branches * filters
        wide = targets * narrow
        calls += 12 * targets
        for stage, convolutions in enumerate(kind.stages):
            separable = [c for c in convolutions if c.is_separable(kind.atrous)]
            for operation in convolutions:
                taps = operation.kernel_size**2
                read = wide if stage else narrow
                if operation in separable:
                    works.append(Work("depthwise", taps * wide, read + wide))
                else:
                    works.append(Work("convolution", taps * filters * wide, read + wide))
            if separable:
                works.append(
                    Work(
                        "convolution",
                        len(separable) * wide * filters,
                        2 * len(separable) * wide,
                    )
                )
            # Statistics; then those that end here are weighted and added.
            ending = sum(operation.repeats == stage + 1 for operation in convolutions)
            works.append(Work("elementwise", 0, (len(convolutions) + ending) * wide))
            kept += (len(separable) + len(convolutions)) * wide
            calls += 25 + 12 * len(convolutions)
        free = sum(not o.repeats and o.name != "none" for o in kind.operations)
        # The sum of a source's edges is written, and read for the sum of a block.
        works.append(Work("elementwise", 0, free * narrow + 2 * wide))
    states = area * kind.num_blocks * kind.filters
    works.append(Work("elementwise", 0, (len(kind.predecessors) + 1) * states))
    kept += (kind.num_blocks - 1) * area * len(kind.predecessors) * kind.filters
    return SegmentCount(name, tuple(works), states, kept, calls)


def _stem(name, kind, pixels):
    works, channels, log2_stride, states = [], len(kind.mean), 0, 0
    for filters, stride in zip(STEM_CHANNELS, STEM_STRIDES, strict=True):
        read = pixels(log2_stride) * channels
        log2_stride += stride.bit_length() - 1
        written = pixels(log2_stride) * filters
        works.append(Work("convolution", 9 * channels * written, read + written))
        works.append(Work("elementwise", 0, written))
        channels, states = filters, states + written
    return SegmentCount(name, tuple(works), states)


def _head(name, kind, pixels):
    area, channels = pixels(kind.level + 2), kind.channels
    map_values = area * channels
    works = (
        _convolution(area, channels, channels),
        Work("convolution", 9 * channels * map_values, 2 * map_values),
        _convolution(area, 3 * channels, kind.num_classes),
        Work("elementwise", 0, 3 * map_values),
    )
    return SegmentCount(name, works, area * kind.num_classes)


def _convolution(area, channels, filters):
    return Work("convolution", area * channels * filters, area * (channels + filters))


def iteration(counts, batch_size, remat):
    """Sums an iteration, one weight step and one architecture step: name of work -> `Work`.

    A backward pass by a convolution's inputs costs what the forward costs, by its kernels as much
    again (in the weight step only); by everything else twice the forward's values. With `remat` the
    forward is run once more in either step.
    """
    forwards = 4 if remat else 2
    totals = {}
    for name in WORKS:
        factor = forwards + (4 if name == "elementwise" else 3)
        works = [work for segment in counts for work in segment.works if work.name == name]
        totals[name] = Work(
            name,
            factor * batch_size * sum(work.multi_adds for work in works),
            factor * batch_size * sum(work.values for work in works),
        )
    return totals
