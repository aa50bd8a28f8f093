"""Decodes alpha and beta into an architecture.

Reads the logits of a search and writes the architecture file that train takes, with a drawing of
path and cell beside it (.svg, .png) and heat maps of alpha and beta (STEM_alpha_beta.svg). With a
budget, the most probable path that keeps it.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from auto_deeplab_tf import cli, config, decoding, visualize
from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.errors import FieldError, MissingFileError, UserError
from auto_deeplab_tf.files import AnyPath, as_path, write_atomically
from auto_deeplab_tf.search_space import OPERATIONS, stride

cli.define(config.DecodeConfig)

_COUNTED_WITH = ("num_classes", "input_size", "stem_channels", "head_channels", "decoder_channels")


class Cost(NamedTuple):
    """What a budget bounds; the fields are those of `accounting.Count`."""

    params: float
    multi_adds: float


class Choice(NamedTuple):
    """A path, its log-probability, and its cost at each filter multiplier that fits the budget."""

    levels: tuple[int, ...]
    log_prob: float
    costs: Mapping[int, Cost]


def main() -> None:
    """Runs the command."""
    options = cli.read(config.DecodeConfig)
    logits, source = _read(options)
    output = as_path(options.output or as_path(options.run_dir) / "architecture.json")
    cell = decoding.decode_cell(logits.alpha, logits.edge)
    ranked = choose(logits, cell, options)
    best = ranked[0]
    architecture = Architecture(
        levels=best.levels,
        cell=cell,
        atrous=str(logits.atrous),
        provenance=_provenance(options, source, best),
    )
    table = output.with_suffix(".csv") if options.top_k else None
    if table:
        write_atomically(table, _csv(ranked).encode())
    drawings = visualize.save_architecture_drawing(architecture, output, logits.beta)
    heat_maps = visualize.save_heat_maps(architecture, output, logits.alpha, logits.beta)
    architecture.save(output)
    files = {
        "architecture": output,
        "svg": drawings[0],
        "png": drawings[1],
        "alpha_beta": heat_maps,
    }
    if table:
        files["table"] = table
    if options.json:
        cli.print_json(_summary(architecture, logits, best, files))
    else:
        print(in_words(architecture, logits, best, options, files))


def _read(options: config.DecodeConfig) -> tuple[decoding.Logits, AnyPath]:
    """Returns the logits with the kind of atrous operation of their search, and their file."""
    if options.run_dir is None:
        path = as_path(str(options.logits))
    else:
        path = as_path(options.run_dir) / "logits.npz"
        if not path.is_file():
            raise MissingFileError(
                f"run_dir={options.run_dir} has no logits.npz: it is not the folder of a search, "
                "or the search has not ended; the same search command resumes it."
            )
    logits = decoding.load_logits(path)
    if options.atrous and logits.atrous and options.atrous != logits.atrous:
        raise FieldError(
            f"atrous={options.atrous}: the search in {path} had the {logits.atrous} atrous "
            "operation; leave atrous out."
        )
    atrous = logits.atrous or options.atrous
    if atrous is None and options.run_dir is not None:
        raise UserError(
            f"{path} does not say which atrous operation the search had: give atrous=full or "
            "atrous=separable."
        )
    return logits._replace(atrous=atrous or "separable"), path


def choose(logits: decoding.Logits, cell: Any, options: config.DecodeConfig) -> list[Choice]:
    """Returns the most probable paths within the budget, the best first.

    A path counts where it fits the budget at one of the filter multipliers at least.

    Args:
        logits: Of the search, with the atrous operation.
        cell: The decoded cell, on which the cost of a path depends.
        options: The number of paths, the budget and the network to count.

    Raises:
        UserError: Where no path fits the budget, with what the smallest needs.
    """
    log_beta = decoding.log_softmax_beta(logits.beta)
    wanted = options.top_k or 1
    costs = {
        multiplier: _path_costs(logits, cell, options, multiplier)
        for multiplier in sorted(set(options.filter_multiplier or ()))
    }
    if not costs:
        return [Choice(*path, {}) for path in decoding.k_best_paths(log_beta, wanted)]
    limits = Cost(options.max_params or math.inf, options.max_multi_adds or math.inf)
    found: dict[tuple[int, ...], float] = {}
    for of_paths in costs.values():
        paths = decoding.best_paths(log_beta, functools.partial(of_paths.can_keep, limits))
        found |= dict(itertools.islice(paths, wanted))
    if not found:
        raise UserError(_nothing_fits(limits, *next(iter(costs.items()))))
    choices = []
    for levels, log_prob in sorted(found.items(), key=lambda item: (-item[1], item[0]))[:wanted]:
        fitting = {
            multiplier: Cost(*of_paths.of(levels).tolist())
            for multiplier, of_paths in costs.items()
            if of_paths.can_keep(limits, levels)
        }
        choices.append(Choice(levels, log_prob, fitting))
    return choices


def _path_costs(
    logits: decoding.Logits, cell: Any, options: config.DecodeConfig, multiplier: int
) -> decoding.PathCosts:
    """The costs of every path at a filter multiplier, in the order of `Cost`."""
    return decoding.path_costs(
        len(logits.beta),
        cell,
        str(logits.atrous),
        Cost._fields,
        filter_multiplier=multiplier,
        **{name: getattr(options, name) for name in _COUNTED_WITH},
    )


def _nothing_fits(limits: Cost, multiplier: int, costs: decoding.PathCosts) -> str:
    """One line: the limits, and what the smallest path needs."""
    names = [name for name in Cost._fields if getattr(limits, name) < math.inf]
    smallest = dict(zip(Cost._fields, costs.least().tolist(), strict=True))
    words = {"params": "parameters", "multi_adds": "Multi-Adds"}
    flags = " and ".join(f"max_{name}={getattr(limits, name)}" for name in names)
    needs = " and ".join(f"{smallest[name]} {words[name]}" for name in names)
    text = f"no path keeps {flags}: the smallest of this cell needs {needs} at "
    text += f"filter_multiplier={multiplier}"
    if all(smallest[name] <= getattr(limits, name) for name in names):
        text += ", but no path is smallest in both"
    return text + ". Allow more, or give a smaller multiplier, input or head."


def _provenance(options: config.DecodeConfig, source: AnyPath, best: Choice) -> dict[str, Any]:
    """What the search said of itself, and under `decode` what was decided here."""
    decided: dict[str, Any] = {"logits": str(source), "log_prob": best.log_prob}
    if best.costs:
        multiplier = max(best.costs)
        decided["filter_multiplier"] = multiplier
        decided |= best.costs[multiplier]._asdict()
        decided["counted_with"] = {name: getattr(options, name) for name in _COUNTED_WITH}
        limits = {name: getattr(options, name) for name in ("max_params", "max_multi_adds")}
        decided |= {name: limit for name, limit in limits.items() if limit is not None}
    searched = source.with_name("architecture.json")
    if options.run_dir is None or not searched.is_file():
        return {"decode": decided}
    return {**Architecture.load(searched).provenance, "decode": decided}


def _dashed(levels: tuple[int, ...]) -> str:
    return "-".join(map(str, levels))


def _csv(ranked: list[Choice]) -> str:
    """A row for each path, or for each path and multiplier it fits; `rank` counts paths from 1."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    counted = bool(ranked[0].costs)
    added = ["filter_multiplier", *Cost._fields] if counted else []
    rows.writerow(["rank", "log_prob", "levels", *added])
    for rank, choice in enumerate(ranked, start=1):
        row = [rank, choice.log_prob, _dashed(choice.levels)]
        for multiplier, cost in choice.costs.items():
            rows.writerow([*row, multiplier, *cost])
        if not counted:
            rows.writerow(row)
    return text.getvalue()


def _summary(
    architecture: Architecture, logits: decoding.Logits, best: Choice, files: Mapping[str, AnyPath]
) -> dict[str, Any]:
    summary = {
        **{name: str(path) for name, path in files.items()},
        "fingerprint": architecture.fingerprint,
        "levels": list(architecture.levels),
        "cell": [[dataclasses.asdict(edge) for edge in block] for block in architecture.cell],
        "atrous": architecture.atrous,
        "log_prob": best.log_prob,
        "alpha_entropy": decoding.alpha_entropy(logits.alpha),
        "beta_entropy": decoding.beta_entropy(logits.beta),
        "not_identified": [
            list(row[:3]) for row in decoding.unidentified_transitions(architecture.num_layers)
        ],
    }
    if best.costs:
        multiplier = max(best.costs)
        summary["filter_multiplier"] = multiplier
        summary |= best.costs[multiplier]._asdict()
    return summary


def in_words(
    architecture: Architecture,
    logits: decoding.Logits,
    best: Choice,
    options: config.DecodeConfig,
    files: Mapping[str, AnyPath],
) -> str:
    """Returns the result as text: path, cell, what beta could not learn, counts and files."""
    levels = architecture.levels
    strides = " -> ".join(str(stride(level)) for level in levels)
    num_paths = decoding.number_of_paths(len(levels))
    lines = [
        f"Path, as strides: stem 4 -> {strides} -> head at stride {stride(levels[-1])}",
        f"  levels {_dashed(levels)}; log-probability {best.log_prob:.4f} (probability "
        f"{math.exp(best.log_prob):.3g}), of {num_paths:,} paths",
        f"Cell (atrous operation: {architecture.atrous} convolution):",
    ]
    lines += [
        f"  block_{index} = " + " + ".join(f"{edge.op}({edge.source})" for edge in block)
        for index, block in enumerate(architecture.cell)
    ]
    lines += [
        f"Entropy: alpha {decoding.alpha_entropy(logits.alpha):.3f} nats (undecided "
        f"{math.log(len(OPERATIONS)):.3f}), beta {decoding.beta_entropy(logits.beta):.3f}",
    ]
    lines.append(_not_identified(architecture))
    fast_modes = architecture.provenance.get("fast_modes")
    if fast_modes:
        modes = ", ".join(f"{name}={value}" for name, value in fast_modes.items())
        lines.append(f"Not the exact search; fast modes: {modes}")
    if best.costs:
        multiplier = max(best.costs)
        cost = best.costs[multiplier]
        height, width = options.input_size
        lines.append(
            f"Counted with F {multiplier}, {options.num_classes} classes, {height}x{width}: "
            f"{cost.params:,} parameters, {cost.multi_adds:,} Multi-Adds"
        )
    lines.append(f"Architecture: {files['architecture']}")
    lines.append(f"Drawing:      {files['svg']}, {files['png']}")
    lines.append(f"Alpha, beta:  {files['alpha_beta']}")
    if "table" in files:
        lines.append(f"Best paths:   {files['table']}")
    return "\n".join(lines)


def _not_identified(architecture: Architecture) -> str:
    """Lists the moves that beta could not learn, and which of them the path takes."""
    levels = architecture.levels
    before = (0, *levels[:-1])
    parts = []
    for row in decoding.unidentified_transitions(len(levels)):
        taken = (before[row.layer], levels[row.layer]) == (row.from_level, row.to_level)
        moves = f"{stride(row.from_level)} -> {stride(row.to_level)} into layer {row.layer}"
        parts.append(moves + (" (on the path)" if taken else ""))
    return (
        f"Not identified: {'; '.join(parts)}\n"
        "  Each leads to a node with one predecessor: there beta is a mere scale, which\n"
        "  normalisation cancels, and its gradient is next to zero."
    )


if __name__ == "__main__":
    cli.run(main)
