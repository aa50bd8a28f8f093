"""Counts the parameters and Multi-Adds of an architecture's network, part by part.

By counting alone, so it answers at once. With --json every layer is listed.
"""

from __future__ import annotations

from auto_deeplab_tf import accounting, cli, config
from auto_deeplab_tf.architecture import Architecture

cli.define(config.SummarizeConfig)


def main() -> None:
    options = cli.read(config.SummarizeConfig)
    count = accounting.count(
        Architecture.from_argument(options.architecture),
        num_classes=options.num_classes,
        filter_multiplier=options.filter_multiplier,
        input_size=options.input_size,
        head_channels=options.head_channels,
        decoder_channels=options.decoder_channels,
    )
    if options.json:
        layers = [row._asdict() for row in count.layers]
        cli.print_json({"params": count.params, "multi_adds": count.multi_adds, "layers": layers})
    else:
        print(table(count, options.input_size))


def table(count: accounting.Count, input_size: tuple[int, int]) -> str:
    """Returns the parts of a network as a table, one line each, with the sums below."""
    lines = [f"{'part':<10}{'output':>16}{'parameters':>14}{'Multi-Adds':>20}"]
    for row in count.parts:
        shape = "x".join(map(str, row.output_shape))
        lines.append(f"{row.name:<10}{shape:>16}{row.params:>14,}{row.multi_adds:>20,}")
    lines.append(f"{'total':<10}{'':>16}{count.params:>14,}{count.multi_adds:>20,}")
    height, width = input_size
    lines.append(
        f"{count.params / 1e6:.2f} M parameters, {count.multi_adds / 1e9:.2f} B Multi-Adds "
        f"for an image of {height}x{width}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
