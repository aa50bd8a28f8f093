"""Drawings of an architecture (trellis and cell) and heat maps of alpha and beta.

Figures are plain objects, never pyplot's global ones: they can be made from any thread and in a
program that draws with another backend. All lengths inside are inches.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.patheffects import Stroke, withStroke

from auto_deeplab_tf.architecture import Architecture, Edge
from auto_deeplab_tf.decoding import (
    masked_softmax_beta,
    number_of_paths,
    softmax_alpha,
    unidentified_transitions,
)
from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.files import AnyPath, as_path, write_atomically
from auto_deeplab_tf.search_space import (
    NUM_LEVELS,
    OPERATIONS,
    block_sources,
    move_mask,
    operation,
    reachable_levels,
    relaxed_edges,
    stride,
    transitions,
)

_INK = "#222222"
_FAINT = "#b9bfc7"
_BETA = "#4c6a92"
_PATH = "#d1495b"
# Border and fill by kind of operation; told apart by lightness too.
_KIND_COLORS = {
    "separable": ("#1f6f9f", "#dcecf6"),
    "atrous": ("#b3590c", "#fde8d3"),
    "pool": ("#2f7d4f", "#dff2e5"),
    "skip": ("#666666", "#efefef"),
}
_OTHER_COLORS = ("#6b4c9a", "#e9e1f4")
_Place = Callable[[int, int], tuple[float, float]]  # (layer, level) -> inches
_FONT: dict[str, Any] = {"family": "DejaVu Sans", "size": 8.0, "color": _INK}

_MARGIN = 0.25
_LABELS = 0.95  # room for the row labels at the left of either panel
_TITLE = 0.34
_LAYER_PITCH, _LEVEL_PITCH = 0.62, 0.58
_BLOCK_PITCH, _ROW_PITCH = 1.45, 0.66
_MIN_WIDTH = 6.9  # what the legend needs
_MAX_BETA_WIDTH = 6.5  # points, at beta = 1
_DPI, _MAX_PIXELS = 200, 60_000  # Agg draws no side of 2**16 pixels or more


def architecture_figure(architecture: Architecture, beta_logits: Any = None) -> Figure:
    """Draws the path through the trellis and, below it, the cell.

    Args:
        architecture: What to draw; any number of layers and blocks.
        beta_logits: float [L, 4, 3]; where given, every move is drawn as wide as its beta. Without
            (a published architecture) the trellis is drawn in hairlines.

    Raises:
        ValueError: Where beta has another number of layers than the architecture.
    """
    beta = None if beta_logits is None else _beta_of(architecture, beta_logits)
    trellis_width = _LABELS + (architecture.num_layers + 2) * _LAYER_PITCH + 0.3
    trellis_height = _TITLE + NUM_LEVELS * _LEVEL_PITCH + 0.55
    cell_width = _LABELS + architecture.num_blocks * _BLOCK_PITCH + 0.95
    cell_height = _TITLE + (architecture.num_blocks + 2) * _ROW_PITCH
    width = max(trellis_width, cell_width, _MIN_WIDTH) + 2 * _MARGIN
    height = trellis_height + 0.3 + cell_height + 2 * _MARGIN
    figure = _new_figure(width, height)
    top = _inch_axes(
        figure, _MARGIN, _MARGIN + cell_height + 0.3, width - 2 * _MARGIN, trellis_height
    )
    draw_trellis(top, architecture, beta)
    bottom = _inch_axes(figure, _MARGIN, _MARGIN, width - 2 * _MARGIN, cell_height)
    draw_cell(bottom, architecture.cell, architecture.atrous)
    return figure


def save_architecture_drawing(
    architecture: Architecture, path: str | os.PathLike[str], beta_logits: Any = None
) -> tuple[AnyPath, AnyPath]:
    """Writes `architecture_figure` beside `path`, with the suffixes .svg and .png.

    Returns:
        The paths of the SVG and the PNG file.
    """
    figure = architecture_figure(architecture, beta_logits)
    svg, png = as_path(path).with_suffix(".svg"), as_path(path).with_suffix(".png")
    save_figure(figure, svg)
    save_figure(figure, png)
    return svg, png


def save_heat_maps(
    architecture: Architecture, path: str | os.PathLike[str], alpha_logits: Any, beta_logits: Any
) -> AnyPath:
    """Writes `heat_map_figure` beside `path`, as STEM_alpha_beta.svg; returns its path."""
    stem = as_path(path).with_suffix("")
    svg = stem.with_name(f"{stem.name}_alpha_beta.svg")
    save_figure(heat_map_figure(architecture, alpha_logits, beta_logits), svg)
    return svg


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure atomically, in the format of the path's suffix; same figure, same bytes."""
    kind = as_path(path).suffix.removeprefix(".")
    if kind not in ("svg", "png", "pdf"):
        raise UserError(f"{path}: a drawing is written as .svg, .png or .pdf.")
    metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    dpi = min(_DPI, _MAX_PIXELS / max(figure.get_size_inches()))
    content = io.BytesIO()
    # Else the identifiers inside an SVG are drawn at random.
    with matplotlib.rc_context({"svg.hashsalt": "auto_deeplab_tf"}):
        figure.savefig(content, format=kind, dpi=dpi, metadata=metadata)
    write_atomically(path, content.getvalue())


# --- Trellis ---


def draw_trellis(axes: Axes, architecture: Architecture, beta: np.ndarray | None = None) -> None:
    """Draws the trellis with the architecture's path on it, on axes measured in inches.

    Args:
        axes: As `architecture_figure` makes them.
        architecture: Gives the path and the cell whose output is the low-level feature.
        beta: float [L, 4, 3], probabilities: the width of each move.
    """
    levels = architecture.levels
    top = axes.get_ylim()[1]

    def place(layer: int, level: int) -> tuple[float, float]:
        return (
            _LABELS + (layer + 1.35) * _LAYER_PITCH,
            top - _TITLE - (level + 0.5) * _LEVEL_PITCH,
        )

    _panel_title(axes, "a", _path_title(architecture, beta))
    _trellis_grid(axes, place, len(levels))
    uncertain = set(unidentified_transitions(len(levels)))
    for row in transitions(len(levels)):
        weight = None if beta is None else float(beta[row[:3]])
        start, end = place(row.layer - 1, row.from_level), place(row.layer, row.to_level)
        style = "dashed" if beta is not None and row in uncertain else "solid"
        axes.add_line(_beta_line(weight, style, [start[0], end[0]], [start[1], end[1]]))
    for layer, row_levels in enumerate(reachable_levels(len(levels))):
        for level in row_levels:
            on_path = levels[layer] == level
            face, edge, size = (_PATH, _PATH, 8.5) if on_path else ("white", "#7b8591", 6.5)
            axes.plot(*place(layer, level), "o", ms=size, mfc=face, mec=edge, mew=1.0, zorder=5)
    _path_line(axes, place, levels)
    low = architecture.low_level_index
    if low < 0:  # the stem's own output
        _box(axes, place(low, 0), 0.54, 0.37, "", (_PATH, "none"))
    else:
        axes.plot(*place(low, 0), "o", ms=17, mfc="none", mec=_PATH, mew=1.0, zorder=6)
    _trellis_legend(axes, beta is not None)


def _path_title(architecture: Architecture, beta: np.ndarray | None) -> str:
    if beta is None:
        return "Path through the trellis"
    moves = [
        beta[layer, start, end - start + 1] for layer, (start, end) in enumerate(architecture.moves)
    ]
    return (
        f"Path through the trellis (probability {np.prod(moves):.2g}, "
        f"of {number_of_paths(len(moves)):,} paths)"
    )


def _trellis_grid(axes: Axes, place: _Place, num_layers: int) -> None:
    for level in range(NUM_LEVELS):
        _, y = place(0, level)
        axes.text(_LABELS - 0.1, y, f"stride {stride(level)}", ha="right", va="center", **_FONT)
        right, _ = place(num_layers, level)
        axes.plot([_LABELS, right], [y, y], color=_FAINT, lw=0.4, ls=(0, (1, 3)), zorder=0)
    _, bottom = place(0, NUM_LEVELS - 1)
    step = 1 if num_layers <= 30 else 5
    for layer in range(0, num_layers, step):
        x, _ = place(layer, 0)
        axes.text(x, bottom - 0.25, str(layer), ha="center", va="center", **_FONT)
    axes.text(_LABELS - 0.1, bottom - 0.25, "layer", ha="right", va="center", **_FONT)


def _beta_line(weight: float | None, style: str, xs: Any, ys: Any) -> Line2D:
    """The line of one move: as wide and as strong as its beta; a hairline without."""
    if weight is None:
        return Line2D(xs, ys, color=_FAINT, lw=0.7, zorder=1)
    width = max(_MAX_BETA_WIDTH * weight, 0.3)
    pattern = (0, (6 / width, 4 / width)) if style == "dashed" else "solid"
    return Line2D(
        xs, ys, color=_BETA, lw=width, alpha=0.25 + 0.5 * weight, ls=pattern,
        solid_capstyle="butt", dash_capstyle="butt", zorder=1 + weight,
    )  # fmt: skip


def _path_line(axes: Axes, place: _Place, levels: Sequence[int]) -> None:
    """The path from the stem to the head, which sits on the level where the path ends."""
    stops = [place(-1, 0)] + [place(layer, level) for layer, level in enumerate(levels)]
    head = place(len(levels), levels[-1])
    xs, ys = zip(*stops, head, strict=True)
    halo = [Stroke(linewidth=3.6, foreground="white"), withStroke(linewidth=0)]
    axes.plot(xs, ys, color=_PATH, lw=2.0, zorder=4, path_effects=halo, solid_joinstyle="round")
    _box(axes, stops[0], 0.44, 0.27, "stem", (_PATH, "white"))
    _box(axes, head, 0.46, 0.27, "ASPP", (_PATH, "white"))


def _trellis_legend(axes: Axes, has_beta: bool) -> None:
    entries = {"possible move": _beta_line(None, "solid", [], [])}
    if has_beta:
        entries = {f"$\\beta$ = {b:g}": _beta_line(b, "solid", [], []) for b in (0.1, 0.5, 1.0)}
        entries["$\\beta$ not identified"] = _beta_line(0.35, "dashed", [], [])
    path = Line2D([], [], color=_PATH, lw=2.0, marker="o", ms=6)
    entries["decoded path" if has_beta else "path"] = path
    low_level = Line2D([], [], ls="none", marker="o", ms=11, mfc="none", mec=_PATH)
    entries["low-level feature"] = low_level
    legend = axes.legend(
        entries.values(), entries.keys(), ncols=len(entries), loc="lower left", frameon=False,
        handlelength=1.9, columnspacing=1.5, handletextpad=0.6, borderaxespad=0.0, borderpad=0.2,
        bbox_to_anchor=(0.0, 0.0), prop={"family": "DejaVu Sans", "size": 7.5},
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_color(_INK)


# --- Cell ---


def draw_cell(axes: Axes, cell: Sequence[tuple[Edge, Edge]], atrous: str) -> None:
    """Draws the cell as a circuit, on axes measured in inches.

    Every tensor is a rail from the left to the right: the two inputs, then one for each block. A
    block stands at the start of its own rail and taps two earlier rails, each through an
    operation; so no two labels can ever meet, whatever the cell.
    """
    top = axes.get_ylim()[1]
    names = block_sources(len(cell))
    rows = {name: top - _TITLE - (index + 0.4) * _ROW_PITCH for index, name in enumerate(names)}
    columns = [_LABELS + 0.1 + (block + 0.5) * _BLOCK_PITCH for block in range(len(cell))]
    end = _LABELS + 0.1 + len(cell) * _BLOCK_PITCH + 0.15
    _panel_title(axes, "b", f"Cell (atrous operation: {atrous} convolution)")
    readers: dict[str, float] = {}  # the last of each rail
    for block, edges in enumerate(cell):
        center = (columns[block], rows[f"block_{block}"])
        ordered = sorted(edges, key=lambda edge: edge.source_index)
        for edge, shift in zip(ordered, (-0.34, 0.34), strict=True):
            readers[edge.source] = center[0] + shift
            _tap(axes, edge, rows[edge.source], center, shift)
        _box(axes, center, 1.02, 0.25, f"+  block_{block}", (_INK, "white"))
    _rails(axes, readers, rows, columns, end)
    _concat(axes, [rows[f"block_{block}"] for block in range(len(cell))], end)


def _rails(
    axes: Axes, readers: dict[str, float], rows: dict[str, float], columns: list[float], end: float
) -> None:
    for name, label in (("prev", "$H^{\\,l-1}$"), ("prev_prev", "$H^{\\,l-2}$")):
        axes.text(_LABELS - 0.1, rows[name] + 0.07, name, ha="right", va="center", **_FONT)
        axes.text(_LABELS - 0.1, rows[name] - 0.09, label, ha="right", va="center", **_FONT)
        axes.plot(_LABELS, rows[name], "o", ms=5, color=_INK, zorder=3)
        right = readers.get(name, _LABELS + 0.2)
        axes.plot([_LABELS, right], [rows[name]] * 2, color=_INK, lw=1.3, zorder=1)
    for block, x in enumerate(columns):
        y = rows[f"block_{block}"]
        axes.plot([x, end], [y, y], color=_INK, lw=1.3, zorder=1, solid_capstyle="butt")


def _tap(axes: Axes, edge: Edge, rail: float, center: tuple[float, float], shift: float) -> None:
    """One edge: a dot on the source's rail, down to the operation, down to the block."""
    colors = _KIND_COLORS.get(operation(edge.op).kind, _OTHER_COLORS)
    color = colors[0]
    x, block_y = center[0] + shift, center[1]
    label_y = block_y + 0.47 * _ROW_PITCH + 0.02
    # The white border lets the line pass over the rails between without touching them.
    halo = [Stroke(linewidth=5.0, foreground="white"), withStroke(linewidth=0)]
    axes.plot([x, x], [rail, block_y], color=color, lw=1.5, zorder=2, path_effects=halo)
    axes.plot(x, rail, "o", ms=5, color=color, zorder=3)
    _box(axes, (x, label_y), 0.62, 0.31, operation_label(edge.op), colors, size=7.2)


def operation_label(name: str, separator: str = "\n") -> str:
    """Returns an operation's name for a drawing: `atrous_5x5` as `atrous` over `5×5`."""
    size = operation(name).kernel_size
    kind = name.removesuffix(f"_{size}x{size}").replace("_", " ")
    return kind if size == 1 else f"{kind}{separator}{size}×{size}"


def _concat(axes: Axes, ys: list[float], x: float) -> None:
    bottom, height = ys[-1] - 0.16, ys[0] - ys[-1] + 0.32
    axes.add_patch(Rectangle((x, bottom), 0.13, height, fc=_INK, ec=_INK, zorder=3))
    middle = bottom + height / 2
    label = "concat" if len(ys) > 1 else ""
    axes.text(x + 0.065, middle, label, rotation=90, ha="center", va="center",
              fontsize=7.5, color="white", zorder=4)  # fmt: skip
    arrow = {"arrowstyle": "-|>", "color": _INK, "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (x + 0.45, middle), (x + 0.13, middle), arrowprops=arrow)
    axes.text(x + 0.49, middle, "$H^{\\,l}$", ha="left", va="center", **_FONT)


# --- Heat maps ---


def heat_map_figure(architecture: Architecture, alpha_logits: Any, beta_logits: Any) -> Figure:
    """Draws alpha and beta as heat maps, with what the architecture takes of them framed.

    Args:
        architecture: Decoded from them, also by a budget.
        alpha_logits: float [B (B + 3) / 2, 8].
        beta_logits: float [L, 4, 3]; gray where no path goes.

    Raises:
        ValueError: Where beta has another number of layers than the architecture.
    """
    alpha, beta = softmax_alpha(alpha_logits), _beta_of(architecture, beta_logits)
    num_edges, num_layers = len(alpha), len(beta)
    rows = [(level, move) for level, move in np.argwhere(move_mask(1)[0]).tolist()]
    cell = 0.3
    alpha_size = (len(OPERATIONS) * 0.52, num_edges * cell)
    beta_size = (num_layers * 0.42, len(rows) * cell)
    left, left_of_beta, above, below = 1.5, 0.85, 0.42, 0.85
    width = left + alpha_size[0] + left_of_beta + max(beta_size[0], 1.7) + 0.3
    height = above + max(alpha_size[1], beta_size[1]) + below
    figure = _new_figure(width, height)

    def panel(x: float, size: tuple[float, float], title: str) -> Axes:
        place = (x / width, 1 - (above + size[1]) / height, size[0] / width, size[1] / height)
        axes = figure.add_axes(place)
        axes.set_title(title, loc="left", fontsize=9, color=_INK, fontweight="bold")
        return axes

    axes = panel(left, alpha_size, r"$\alpha$ (softmax over operations)")
    edges = relaxed_edges(architecture.num_blocks)
    decoded = {
        (edge.index, OPERATIONS.index(kept.op))
        for block, kept_edges in enumerate(architecture.cell)
        for kept in kept_edges
        for edge in edges
        if (edge.block, edge.source) == (block, kept.source)
    }
    _heat_map(
        axes,
        alpha,
        [f"block_{edge.block} $\\leftarrow$ {edge.source}" for edge in edges],
        [operation_label(name, " ") for name in OPERATIONS],
        decoded,
    )

    axes = panel(left + alpha_size[0] + left_of_beta, beta_size, r"$\beta$ (softmax over moves)")
    reached = {row[:3] for row in transitions(num_layers)}
    table = np.full((len(rows), num_layers), np.nan)
    framed = set()
    levels = architecture.levels
    for index, (level, move) in enumerate(rows):
        for layer in range(num_layers):
            if (layer, level, move) in reached:
                table[index, layer] = beta[layer, level, move]
            before = levels[layer - 1] if layer else 0
            if (before, levels[layer]) == (level, level + move - 1):
                framed.add((index, layer))
    names = [f"{stride(level)} $\\to$ {stride(level + move - 1)}" for level, move in rows]
    _heat_map(axes, table, names, [str(layer) for layer in range(num_layers)], framed)
    axes.set_xlabel("layer", fontsize=8, color=_INK)
    return figure


def _heat_map(
    axes: Axes, table: np.ndarray, rows: list[str], columns: list[str], framed: set[tuple[int, int]]
) -> None:
    axes.set_facecolor("#e6e6e6")
    axes.imshow(table, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
    slanted = max(map(len, columns)) > 3
    axes.set_xticks(range(len(columns)), columns, rotation=40 if slanted else 0,
                    ha="right" if slanted else "center", rotation_mode="anchor")  # fmt: skip
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0, labelsize=7.5, labelcolor=_INK)
    for row, column in np.argwhere(np.isfinite(table)).tolist():
        value = table[row, column]
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6.5,
                  color="white" if value > 0.6 else _INK)  # fmt: skip
    for row, column in framed:
        corner = (column - 0.5, row - 0.5)
        frame = Rectangle(corner, 1, 1, fill=False, ec=_PATH, lw=1.6, zorder=3, clip_on=False)
        axes.add_patch(frame)
    for spine in axes.spines.values():
        spine.set_visible(False)


# --- Pieces of both ---


def _beta_of(architecture: Architecture, beta_logits: Any) -> np.ndarray:
    """Beta, checked to be of the architecture's search."""
    beta = masked_softmax_beta(beta_logits)
    if len(beta) != architecture.num_layers:
        raise UserError(
            f"beta has {len(beta)} layers and the architecture {architecture.num_layers}: "
            "they are not of the same search."
        )
    return beta


def _new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _inch_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes without frame whose coordinates are inches from their lower left corner."""
    full_width, full_height = figure.get_size_inches()
    axes = figure.add_axes(
        (left / full_width, bottom / full_height, width / full_width, height / full_height)
    )
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_axis_off()
    return axes


def _panel_title(axes: Axes, letter: str, text: str) -> None:
    y = axes.get_ylim()[1] - 0.12
    axes.text(0.0, y, letter, fontsize=11, fontweight="bold", color=_INK, va="center")
    axes.text(0.2, y, text, fontsize=9.5, color=_INK, va="center")


def _box(
    axes: Axes,
    center: tuple[float, float],
    width: float,
    height: float,
    text: str,
    colors: tuple[str, str],
    size: float = 8.0,
) -> None:
    edge, face = colors
    corner = (center[0] - width / 2, center[1] - height / 2)
    style = "round,pad=0,rounding_size=0.06"
    axes.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle=style, fc=face, ec=edge, lw=1.1, zorder=6)
    )
    axes.text(*center, text, ha="center", va="center", fontsize=size, color=_INK,
              linespacing=1.0, zorder=7)  # fmt: skip
