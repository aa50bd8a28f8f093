"""Decodes alpha and beta into an architecture.

Reads the logits of a search and writes the architecture file that train takes, with a drawing of
path and cell beside it (.svg, .png). With a budget, the most probable path that keeps it.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from auto_deeplab_tf import accounting, cli, config, decoding, visualize
from auto_deeplab_tf.architecture import Architecture, stride, write_atomically

cli.define(config.DecodeConfig)

# The resources of a budget: how each is called, and the flag that bounds it.
_RESOURCES = {
    "params": ("parameters", "max_params"),
    "multi_adds": ("Multi-Adds", "max_multi_adds"),
}


class Choice(NamedTuple):
    """A path, its log-probability, and for each filter multiplier it fits what it costs."""

    levels: tuple[int, ...]
    log_prob: float
    counts: Mapping[int, accounting.Count]


def main() -> None:
    options = cli.read(config.DecodeConfig)
    logits, source = _read(options)
    output = Path(options.output or Path(options.run_dir) / "architecture.json")
    cell = decoding.decode_cell(logits.alpha)
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
    architecture.save(output)
    files = {"architecture": output, "svg": drawings[0], "png": drawings[1]}
    if table:
        files["table"] = table
    if options.json:
        cli.print_json(_summary(architecture, logits, best, files))
    else:
        print(in_words(architecture, logits, best, options, files))


def _read(options: config.DecodeConfig) -> tuple[decoding.Logits, Path]:
    """The logits, with the kind of atrous operation that the search had, and their file."""
    if options.run_dir is None:
        path = Path(str(options.logits))
    else:
        path = Path(options.run_dir) / "logits.npz"
        if not path.is_file():
            raise FileNotFoundError(
                f"--run_dir={options.run_dir} has no logits.npz: it is not the folder of a search, "
                "or the search has not ended; the same search command goes on with it."
            )
    logits = decoding.load_logits(path)
    if options.atrous and logits.atrous and options.atrous != logits.atrous:
        raise ValueError(
            f"--atrous={options.atrous}: the search in {path} had the {logits.atrous} atrous "
            "operation; leave the flag out."
        )
    atrous = logits.atrous or options.atrous
    if atrous is None and options.run_dir is not None:
        raise ValueError(
            f"{path} does not say which atrous operation the search had: give --atrous."
        )
    return logits._replace(atrous=atrous or "separable"), path


def choose(logits: decoding.Logits, cell: Any, options: config.DecodeConfig) -> list[Choice]:
    """Returns the most probable paths within the budget, the best first.

    A path is in where it keeps the budget at one of the filter multipliers at least.

    Args:
        logits: Of the search, with the atrous operation.
        cell: The decoded cell: it takes part in what a path costs.
        options: Number of paths, budget and what to count with.

    Raises:
        ValueError: where no path keeps the budget; says what the smallest needs.
    """
    log_beta = decoding.log_softmax_beta(logits.beta)
    wanted = options.top_k or 1
    if options.filter_multiplier is None:
        return [Choice(*path, {}) for path in decoding.k_best_paths(log_beta, wanted)]

    def count(levels: tuple[int, ...], filter_multiplier: int) -> accounting.Count:
        return accounting.count(
            Architecture(levels=levels, cell=cell, atrous=str(logits.atrous)),
            num_classes=options.num_classes,
            filter_multiplier=filter_multiplier,
            input_size=options.input_size,
            head_channels=options.head_channels,
            decoder_channels=options.decoder_channels,
        )

    budget = _budget(options)
    multipliers = sorted(set(options.filter_multiplier))
    found: dict[tuple[int, ...], float] = {}
    for multiplier in multipliers:
        for levels, log_prob in itertools.islice(
            decoding.best_paths(log_beta, _within(budget, count, multiplier, len(log_beta))), wanted
        ):
            found[levels] = log_prob
    if not found:
        raise ValueError(_nothing_fits(budget, count, multipliers, len(log_beta)))
    best = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:wanted]
    choices = []
    for levels, log_prob in best:
        counts = {multiplier: count(levels, multiplier) for multiplier in multipliers}
        fitting = {m: c for m, c in counts.items() if _keeps(c, budget)}
        choices.append(Choice(levels, log_prob, fitting))
    return choices


def _budget(options: config.DecodeConfig) -> dict[str, int]:
    """The limits that are given, by the name of the resource in `accounting.Count`."""
    limits = {name: getattr(options, flag) for name, (_, flag) in _RESOURCES.items()}
    return {name: limit for name, limit in limits.items() if limit is not None}


def _keeps(count: accounting.Count, budget: Mapping[str, int]) -> bool:
    return all(getattr(count, name) <= limit for name, limit in budget.items())


def _costs(budget: Mapping[str, int], count: Any, multiplier: int, num_layers: int) -> Any:
    def cost(levels: tuple[int, ...]) -> tuple[int, ...]:
        counted = count(levels, multiplier)
        return tuple(getattr(counted, name) for name in budget)

    return decoding.PathCosts(num_layers, cost)


def _within(budget: Mapping[str, int], count: Any, multiplier: int, num_layers: int) -> Any:
    """Tells of the beginning of a path whether one that keeps the budget can follow."""
    if not budget:
        return None
    costs = _costs(budget, count, multiplier, num_layers)
    limits = list(budget.values())
    return lambda beginning: bool((costs.least(beginning) <= limits).all())


def _nothing_fits(
    budget: Mapping[str, int], count: Any, multipliers: list[int], num_layers: int
) -> str:
    """One line: the limits, and what the smallest path needs."""
    smallest = _costs(budget, count, multipliers[0], num_layers).least()
    limits = " and ".join(f"--{_RESOURCES[name][1]}={limit}" for name, limit in budget.items())
    needs = " and ".join(
        f"{least} {_RESOURCES[name][0]}" for name, least in zip(budget, smallest, strict=True)
    )
    text = f"no path keeps {limits}: the smallest of this cell needs {needs} at "
    text += f"--filter_multiplier={multipliers[0]}"
    if all(least <= limit for least, limit in zip(smallest, budget.values(), strict=True)):
        text += ", but no path is smallest in both"
    return text + ". Allow more, or give a smaller multiplier, input or head."


def _provenance(options: config.DecodeConfig, source: Path, best: Choice) -> dict[str, Any]:
    """What the search said of itself, and under `decode` what was decided here."""
    decided: dict[str, Any] = {"logits": str(source), "log_prob": best.log_prob}
    if best.counts:
        multiplier = max(best.counts)
        decided["filter_multiplier"] = multiplier
        decided |= {name: getattr(best.counts[multiplier], name) for name in _RESOURCES}
        decided["counted_with"] = {
            name: getattr(options, name)
            for name in ("num_classes", "input_size", "head_channels", "decoder_channels")
        }
        decided |= {_RESOURCES[name][1]: limit for name, limit in _budget(options).items()}
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
    counted = bool(ranked[0].counts)
    rows.writerow(
        ["rank", "log_prob", "levels", *(["filter_multiplier", *_RESOURCES] if counted else [])]
    )
    for rank, choice in enumerate(ranked, start=1):
        row = [rank, choice.log_prob, _dashed(choice.levels)]
        for multiplier, count in choice.counts.items():
            rows.writerow([*row, multiplier, *(getattr(count, name) for name in _RESOURCES)])
        if not counted:
            rows.writerow(row)
    return text.getvalue()


def _summary(
    architecture: Architecture, logits: decoding.Logits, best: Choice, files: Mapping[str, Path]
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
    if best.counts:
        multiplier = max(best.counts)
        summary["filter_multiplier"] = multiplier
        summary |= {name: getattr(best.counts[multiplier], name) for name in _RESOURCES}
    return summary


def in_words(
    architecture: Architecture,
    logits: decoding.Logits,
    best: Choice,
    options: config.DecodeConfig,
    files: Mapping[str, Path],
) -> str:
    """Tells the result: path, cell, what beta could not learn, counts, and where the files lie."""
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
        f"{math.log(8):.3f}), beta {decoding.beta_entropy(logits.beta):.3f}",
        _not_identified(levels),
    ]
    if best.counts:
        multiplier = max(best.counts)
        counted = best.counts[multiplier]
        height, width = options.input_size
        lines.append(
            f"Counted with F {multiplier}, {options.num_classes} classes, {height}x{width}: "
            f"{counted.params:,} parameters, {counted.multi_adds:,} Multi-Adds"
        )
    lines.append(f"Architecture: {files['architecture']}")
    lines.append(f"Drawing:      {files['svg']}, {files['png']}")
    if "table" in files:
        lines.append(f"Best paths:   {files['table']}")
    return "\n".join(lines)


def _not_identified(levels: tuple[int, ...]) -> str:
    """Says which moves beta did not learn, and which of them the path takes."""
    rows = decoding.unidentified_transitions(len(levels))
    before = (0, *levels[:-1])
    parts = []
    for row in rows:
        taken = (before[row.layer], levels[row.layer]) == (row.from_level, row.to_level)
        moves = f"{stride(row.from_level)} -> {stride(row.to_level)} into layer {row.layer}"
        parts.append(moves + (" (on the path)" if taken else ""))
    return (
        f"Not identified: {'; '.join(parts)}\n"
        "  Each leads to a node with one predecessor: there beta is a mere scale, normalisation\n"
        "  cancels it, and the search had next to no gradient for it."
    )


if __name__ == "__main__":
    cli.run(main)
