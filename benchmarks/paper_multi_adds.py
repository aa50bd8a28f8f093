"""How far the paper's Multi-Adds are explained by the padding of atrous convolutions in TF1.

    python -m benchmarks.paper_multi_adds

TF1 ran an atrous convolution of rate r as r * r phases of a map padded to a multiple of r, and its
profiler counted ceil(h / r) * r x ceil(w / r) * r positions in place of h x w. At 1025x2049 this
reproduces the part of the paper's figures that is quadratic in F and their constant part. What is
left is linear in F: 0.2685 B for each filter, to 0.01 B. Which convolution it belongs to was not
found (it is neither one of the ASPP, whole phases more, nor the depthwise ones, 0.1694 B a filter,
counted any whole number of times).
"""

from absl import app

from auto_deeplab_tf.accounting import count
from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.search_space import ASPP_EXTENTS, operation, stride

# Of the paper's table for Cityscapes, in 1e9.
PAPER = {20: 333.25, 32: 460.93, 48: 695.03}
INPUT_SIZE = (1025, 2049)


def padded_multi_adds(
    architecture: Architecture, filter_multiplier: int, input_size: tuple[int, int]
) -> int:
    """Multi-Adds with the positions on which TF1 computed atrous convolutions, 19 classes."""
    rows = count(
        architecture, num_classes=19, filter_multiplier=filter_multiplier, input_size=input_size
    ).layers
    total = 0
    for row in rows:
        height, width, _ = row.output_shape
        rate = _rate(row.name, architecture)
        padded = (-(-height // rate) * rate) * (-(-width // rate) * rate)
        total += row.multi_adds // (height * width) * padded
    return total


def _rate(name: str, architecture: Architecture) -> int:
    """The atrous rate of a row of `count`."""
    part, _, layer = name.partition("/")
    if part == "aspp" and layer.startswith("atrous_"):
        return ASPP_EXTENTS[int(layer[-1])] // stride(architecture.levels[-1])
    if not layer.startswith("block_"):
        return 1
    index = int(part.removeprefix("cell_"))
    before, level = (0, *architecture.levels)[index : index + 2]
    # `block_<i>_<source>_<op>`: the edges say where the source ends.
    for block, edges in enumerate(architecture.cell):
        for edge in edges:
            if layer == f"block_{block}_{edge.source}_{edge.op}":
                reduced = level > before and edge.source in ("prev", "prev_prev")
                return 1 if reduced else operation(edge.op).rate
    raise ValueError(f"{name} is no row of this architecture.")


def main(_: list[str]) -> None:
    architecture = Architecture.preset("auto_deeplab")
    print(f"{'F':>4}{'true':>10}{'padded':>10}{'paper':>10}{'left':>8}{'left / F':>10}")
    for filter_multiplier, paper in PAPER.items():
        settings = {"num_classes": 19, "filter_multiplier": filter_multiplier}
        true = count(architecture, input_size=INPUT_SIZE, **settings).multi_adds / 1e9
        padded = padded_multi_adds(architecture, filter_multiplier, INPUT_SIZE) / 1e9
        left = paper - padded
        print(
            f"{filter_multiplier:>4}{true:>10.2f}{padded:>10.2f}{paper:>10.2f}{left:>8.2f}"
            f"{left / filter_multiplier:>10.4f}"
        )


if __name__ == "__main__":
    app.run(main)
