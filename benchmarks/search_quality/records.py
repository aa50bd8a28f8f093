"""What searches and selections left behind, as tables to commit, and the figures of the evidence.

`searches.csv` has the epochs of every search, `candidates.csv` the candidates of every selection
with the scores of their first rung; the figures of docs/evidence.md are drawn from these two and
from `results.csv`.
"""

from __future__ import annotations

import pathlib
import re
import statistics
from typing import Any

import scipy.stats

from auto_deeplab_tf.architecture import Architecture
from benchmarks import rows
from benchmarks.search_quality import trainings
from benchmarks.search_quality.report import Rows, grouped

SEARCHES, CANDIDATES = "searches.csv", "candidates.csv"
_EPOCH = (
    "step",
    "loss",
    "arch_loss",
    "alpha_entropy",
    "beta_entropy",
    "val_miou",
    "val_decoded_miou",
    "levels",
)
_CANDIDATE = (
    "candidate",
    "kind",
    "fingerprint",
    "levels",
    "filter_multiplier",
    "params",
    "multi_adds",
    "log_prob",
    "predicted",
    "steps_1",
    "loss_1",
    "val_miou_1",
    "cpu_seconds",
)


def searches(work_dir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the epochs of all searches that have ended."""
    return [
        {"search": file.parent.name, **{name: row.get(name, "") for name in _EPOCH}}
        for file in _ended(work_dir, "metrics.csv")
        for row in rows.read(file)
    ]


def candidates(work_dir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the candidates of all selections that have ended."""
    return [
        {
            "selection": file.parent.name,
            **{name: row.get(name, "") for name in _CANDIDATE},
            "shortest_chain": _shortest_chain(file.with_name("candidates"), row["candidate"]),
        }
        for file in _ended(work_dir, "candidates.csv")
        for row in rows.read(file)
    ]


def _ended(work_dir: pathlib.Path, name: str) -> list[pathlib.Path]:
    """The files of a name in the folders of what has ended."""
    found = work_dir.glob("searches/*/architecture.json")
    return [file.with_name(name) for file in sorted(found) if file.with_name(name).exists()]


def _shortest_chain(folder: pathlib.Path, candidate: str) -> str:
    architecture = Architecture.load(folder / f"{candidate}.json")
    return f"{trainings.shortest_chain(architecture):.2f}"


def proposals(of_candidates: Rows) -> str:
    """Returns what networks lose in their first rung, by who proposed them, from `candidates.csv`.

    Selections whose names differ in numbers alone stand together.
    """
    lines = ["Loss of the first rung, mean (standard error), best"]

    def proposer(row: dict[str, str]) -> tuple[str, str, str]:
        selection = re.sub(r"-[0-9]+", "", row["selection"])
        return selection, row["kind"], "path" if "-path-" in row["candidate"] else "draw"

    for key, group in sorted(grouped(of_candidates, proposer).items()):
        losses = [float(row["loss_1"]) for row in group]
        error = scipy.stats.sem(losses) if len(losses) > 1 else 0.0
        lines.append(
            f"{' '.join(key):40} {len(losses):3}  {statistics.mean(losses):.3f} ({error:.3f})  "
            f"{min(losses):.3f}"
        )
    return "\n".join(lines)


def draw(
    results: Rows,
    of_searches: Rows,
    of_candidates: Rows,
    agreements: Rows,
    signals: Rows,
    folder: pathlib.Path,
) -> None:
    """Draws the figures into a folder, as SVG.

    Args:
        results: Rows of `results.csv`.
        of_searches: Of `searches`.
        of_candidates: Of `candidates`.
        agreements: Of `opinions.agreement`.
        signals: Of `search_signal`, with the name of each search.
        folder: Where `evidence_searches.svg`, `evidence_signal.svg`, `evidence_proposals.svg` and
            `evidence_ranks.svg` are written.
    """
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "search_quality", "font.size": 8}):
        _draw_searches(of_searches, agreements, folder / "evidence_searches.svg")
        _draw_signals(signals, folder / "evidence_signal.svg")
        _draw_proposals(of_candidates, folder / "evidence_proposals.svg")
        _draw_ranks(results, folder / "evidence_ranks.svg")


def _draw_searches(epochs: Rows, checkpoints: Rows, file: pathlib.Path) -> None:
    """Alpha's entropy, the mIoU of supernet and decoded network, and tau, over the steps."""
    figure, (entropy, miou, agreement) = _figure(3)
    asked = grouped(checkpoints, lambda row: row["search"])
    for color, (name, of_search) in enumerate(grouped(epochs, lambda row: row["search"]).items()):
        scored = [row for row in of_search if row["val_miou"]]
        curves = (
            (entropy, of_search, "alpha_entropy", "-", name),
            (miou, scored, "val_miou", "-", f"{name}, supernet"),
            (miou, scored, "val_decoded_miou", ":", f"{name}, decoded"),
            (agreement, asked.get(name, ()), "tau_cell", "-", f"{name}, cell"),
            (agreement, asked.get(name, ()), "tau_path", ":", f"{name}, path"),
        )
        for axes, some, column, line, label in curves:
            steps = [int(row["step"]) for row in some]
            values = [float(row[column]) for row in some]
            if steps:
                axes.plot(steps, values, line, color=f"C{color}", label=label, linewidth=1.2)
    entropy.set(xlabel="step", ylabel="entropy of alpha, nats (2.08: uniform)")
    miou.set(xlabel="step", ylabel="mIoU on 40 images")
    agreement.set(xlabel="step", ylabel="tau of log-probabilities with random networks")
    _save(figure, (entropy, miou, agreement), file)


def _draw_signals(checkpoints: Rows, file: pathlib.Path) -> None:
    """What the gradients of alpha and beta say: mean and range of the reported split's searches."""
    of_reported = [row for row in checkpoints if row["search"].startswith("reported")]
    later = [row for row in of_reported if row["alpha_persistence"]]
    of_step = sorted(grouped(later, lambda row: int(row["step"])).items())
    steps = [step for step, _ in of_step]
    figure, (signal, alpha, beta) = _figure(3)
    for axes, variable, column, color, label in (
        (signal, "alpha", "signal", "C0", "alpha"),
        (signal, "beta", "signal", "C1", "beta"),
        (signal, "alpha", "noise", "C7", "noise alone"),
        (alpha, "alpha", "halves", "C2", "of two halves of the images"),
        (alpha, "alpha", "persistence", "C3", "with the checkpoint before"),
        (beta, "beta", "halves", "C2", "of two halves of the images"),
        (beta, "beta", "persistence", "C3", "with the checkpoint before"),
    ):
        values = [[float(row[f"{variable}_{column}"]) for row in rows] for _, rows in of_step]
        means, lowest, highest = (
            [of_values(v) for v in values] for of_values in (statistics.mean, min, max)
        )
        axes.plot(steps, means, color, label=label, linewidth=1.2)
        axes.fill_between(steps, lowest, highest, color=color, alpha=0.15)
    signal.set(xlabel="step", ylabel="|mean| / deviation, median entry")
    for axes, variable in ((alpha, "alpha"), (beta, "beta")):
        axes.set(xlabel="step", ylabel=f"correlation of mean gradients of {variable}")
    _save(figure, (signal, alpha, beta), file)


def _draw_proposals(rows: Rows, file: pathlib.Path) -> None:
    """The loss of the first rung over the shortest chain, by who proposed the network."""
    splits = grouped(rows, lambda row: row["selection"].partition("-")[0])
    figure, all_axes = _figure(len(splits))
    for axes, (split, of_split) in zip(all_axes, sorted(splits.items()), strict=True):
        for name, group in grouped(of_split, lambda row: row["selection"]).items():
            for kind, of_kind in grouped(group, lambda row: row["kind"]).items():
                axes.plot(
                    [float(row["shortest_chain"]) for row in of_kind],
                    [float(row["loss_1"]) for row in of_kind],
                    "o",
                    markersize=3.5,
                    label=f"{name.removeprefix(f'{split}-')}: {kind}",
                )
        axes.set(xlabel="convolutions on the shorter edge of a block, mean", title=split)
        axes.set(ylabel="mean training loss of the first eighth")
    _save(figure, all_axes, file)


def _draw_ranks(results: Rows, file: pathlib.Path) -> None:
    """The final mIoU over the loss of the first eighth, of the reported split."""
    figure, (axes,) = _figure(1)
    reported = [row for row in results if row["split"] == "reported"]
    for kind, group in grouped(reported, lambda row: row["kind"]).items():
        losses, mious, low, high = (
            [float(row[name]) for row in group]
            for name in ("loss_1_8", "val_miou", "val_miou_low", "val_miou_high")
        )
        beyond = (
            [miou - end for miou, end in zip(mious, low, strict=True)],
            [end - miou for miou, end in zip(mious, high, strict=True)],
        )
        axes.errorbar(losses, mious, beyond, fmt="o", markersize=4, elinewidth=0.6, label=kind)
    axes.set(xlabel="mean training loss of the first eighth", ylabel="mIoU on val")
    _save(figure, (axes,), file)


def _figure(columns: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * columns, 3.4), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _save(figure: Any, all_axes: Any, file: pathlib.Path) -> None:
    for axes in all_axes:
        axes.grid(linewidth=0.3)
        axes.legend(fontsize=6)
    figure.savefig(file, metadata={"Date": None})
