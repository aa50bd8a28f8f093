"""Counts the parameters and Multi-Adds of an architecture's network, or a baseline's, part by part.

An architecture by counting alone, so at once; a baseline is built for it. With --json
every layer is listed.
"""

from __future__ import annotations

from auto_deeplab_tf import accounting, cli, config
from auto_deeplab_tf.architecture import Architecture

cli.define(config.SummarizeConfig)


def main() -> None:
    """Runs the command."""
    options = cli.read(config.SummarizeConfig)
    count = _count(options)
    if options.json:
        layers = [row._asdict() for row in count.layers]
        cli.print_json({"params": count.params, "multi_adds": count.multi_adds, "layers": layers})
    else:
        print(table(count, options.input_size))


def _count(options: config.SummarizeConfig) -> accounting.Count:
    if options.network is not None:
        from auto_deeplab_tf.baselines import build_baseline, check_name

        check_name(options.network)
        from auto_deeplab_tf.nn.counting import count_network

        network = build_baseline(options.network, options.num_classes)
        return count_network(network, options.input_size)
    return accounting.count(
        Architecture.from_argument(str(options.architecture)),
        options,
        num_classes=options.num_classes,
        input_size=options.input_size,
    )


def table(count: accounting.Count, input_size: tuple[int, int]) -> str:
    """Returns the parts of a network as a table, one line each, with the sums below."""
    width = max(10, *(len(row.name) + 2 for row in count.parts))
    lines = [f"{'part':<{width}}{'output':>16}{'parameters':>14}{'Multi-Adds':>20}"]
    for row in count.parts:
        shape = "x".join(map(str, row.output_shape))
        lines.append(f"{row.name:<{width}}{shape:>16}{row.params:>14,}{row.multi_adds:>20,}")
    lines.append(f"{'total':<{width}}{'':>16}{count.params:>14,}{count.multi_adds:>20,}")
    height, width = input_size
    lines.append(
        f"{count.params / 1e6:.2f} M parameters, {count.multi_adds / 1e9:.2f} B Multi-Adds "
        f"for an image of {height}x{width}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
