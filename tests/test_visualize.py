"""Drawings are read back: what a line shows must be what alpha, beta and the cell say."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from auto_deeplab_tf import decoding, visualize
from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.search_space import OPERATIONS, stride, transitions

PATH, BETA = visualize._PATH, visualize._BETA


def random_search(seed, num_layers=12, num_blocks=5):
    rng = np.random.default_rng(seed)
    alpha = 2 * rng.normal(size=(num_blocks * (num_blocks + 3) // 2, 8))
    beta = 1.5 * rng.normal(size=(num_layers, 4, 3))
    return alpha, beta, decoding.decode(alpha, beta, "full")


def lines(axes, color):
    return [line for line in axes.lines if to_hex(line.get_color()) == color]


def labelled_places(axes):
    return {text.get_text(): text.get_position() for text in axes.texts}


def trellis_grid(axes, num_layers):
    """Positions of layers and levels, from the labels a reader goes by."""
    labels = labelled_places(axes)
    xs = [labels[str(layer)][0] for layer in range(num_layers)]
    ys = [labels[f"stride {stride(level)}"][1] for level in range(4)]
    return [labels["stem"][0], *xs], ys


@pytest.mark.parametrize("num_layers", [1, 2, 5, 12])
def test_each_move_is_drawn_once_as_wide_as_its_beta(num_layers):
    _, beta_logits, architecture = random_search(0, num_layers)
    beta = decoding.masked_softmax_beta(beta_logits)
    trellis, _ = visualize.architecture_figure(architecture, beta_logits).axes
    xs, ys = trellis_grid(trellis, num_layers)
    moves = lines(trellis, BETA)
    drawn = {
        (line.get_xdata()[0], line.get_ydata()[0], line.get_xdata()[1], line.get_ydata()[1]): line
        for line in moves
    }
    assert len(moves) == len(drawn) == len(transitions(num_layers))
    dashed = set()
    for row in transitions(num_layers):
        ends = (xs[row.layer], ys[row.from_level], xs[row.layer + 1], ys[row.to_level])
        line = drawn[ends]
        wide = max(visualize._MAX_BETA_WIDTH * beta[row[:3]], 0.3)
        assert line.get_linewidth() == pytest.approx(wide)
        if line.is_dashed():
            dashed.add(row)
    assert dashed == set(decoding.unidentified_transitions(num_layers))


@pytest.mark.parametrize("levels", [(0,), (1, 2, 3, 3, 2), (0, 0, 1, 0), (1, 0)])
def test_the_path_is_the_architectures_with_and_without_beta(levels):
    cell = Architecture.preset("auto_deeplab").cell
    architecture = Architecture(levels=levels, cell=cell, atrous="full")
    for beta in (None, np.zeros((len(levels), 4, 3))):
        trellis, _ = visualize.architecture_figure(architecture, beta).axes
        xs, ys = trellis_grid(trellis, len(levels))
        (path,) = [line for line in lines(trellis, PATH) if len(line.get_xdata()) > 1]
        expected = [ys[0], *(ys[level] for level in levels), ys[levels[-1]]]
        np.testing.assert_allclose(path.get_ydata(), expected)
        np.testing.assert_allclose(path.get_xdata()[:-1], xs)
        assert len(lines(trellis, BETA)) == (0 if beta is None else len(transitions(len(levels))))
        assert labelled_places(trellis)["ASPP"][1] == pytest.approx(ys[levels[-1]])


@pytest.mark.parametrize("num_blocks", [1, 2, 5, 7])
def test_the_cell_can_be_read_back_from_its_drawing(num_blocks):
    labels = {visualize.operation_label(name): name for name in OPERATIONS}
    for seed in range(5):
        _, _, architecture = random_search(seed, 3, num_blocks)
        _, axes = visualize.architecture_figure(architecture).axes
        boxes = {
            text.get_text().removeprefix("+  "): text.get_position()
            for text in axes.texts
            if text.get_text().startswith("+  ")
        }
        rails = {name: y for name, (_, y) in boxes.items()}
        starts = [line for line in axes.lines if line.get_xdata()[0] != line.get_xdata()[-1]]
        rails["prev"], rails["prev_prev"] = sorted({line.get_ydata()[0] for line in starts})[:-3:-1]
        taps = {
            round(float(line.get_xdata()[0]), 6): tuple(line.get_ydata())
            for line in axes.lines
            if len(line.get_xdata()) == 2 and line.get_xdata()[0] == line.get_xdata()[1]
        }
        found = {name: set() for name in boxes}
        for text in axes.texts:
            if text.get_text() in labels:
                top, bottom = taps[round(float(text.get_position()[0]), 6)]
                (block,) = [name for name, (_, y) in boxes.items() if np.isclose(y, bottom)]
                (source,) = [name for name, y in rails.items() if np.isclose(y, top)]
                found[block].add((source, labels[text.get_text()]))
        assert [found[f"block_{index}"] for index in range(num_blocks)] == [
            {(edge.source, edge.op) for edge in block} for block in architecture.cell
        ]


@pytest.mark.parametrize(("num_layers", "num_blocks"), [(1, 1), (3, 2), (12, 5), (20, 7)])
def test_no_two_texts_meet_and_none_leaves_the_figure(num_layers, num_blocks):
    alpha, beta, architecture = random_search(3, num_layers, num_blocks)
    figures = [
        visualize.architecture_figure(architecture, beta),
        visualize.architecture_figure(architecture),
        visualize.heat_map_figure(architecture, alpha, beta),
    ]
    for figure in figures:
        figure.canvas.draw()
        texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text()]
        boxes = [text.get_window_extent() for text in texts if not text.get_rotation() % 90]
        assert len(boxes) > 10
        for box in boxes:
            assert box.x0 >= 0
            assert box.y0 >= 0
            assert box.x1 <= figure.bbox.x1
            assert box.y1 <= figure.bbox.y1
        for first, second in itertools.combinations(boxes, 2):
            assert not first.overlaps(second)


def test_the_rail_of_an_input_ends_where_its_last_reader_taps_it():
    _, _, architecture = random_search(1)
    _, cell = visualize.architecture_figure(architecture).axes
    rails = [line for line in lines(cell, visualize._INK) if line.get_linewidth() == 1.3]
    for name, rail in zip(("prev", "prev_prev"), rails[-7:-5], strict=True):
        assert rail.get_ydata()[0] == labelled_places(cell)[name][1] - 0.07
        dots = [line for line in cell.lines if line.get_marker() == "o"]
        taps = [dot.get_xdata()[0] for dot in dots if dot.get_ydata()[0] == rail.get_ydata()[0]]
        assert rail.get_xdata()[1] == max(taps)


def test_every_operation_has_a_label_of_its_own():
    labels = [visualize.operation_label(name, " ") for name in OPERATIONS]
    assert labels[3:7] == ["atrous 5×5", "avg pool 3×3", "max pool 3×3", "skip"]
    assert len(set(labels)) == 8


def test_files_are_written_and_repeat_byte_for_byte(tmp_path):
    _, beta, architecture = random_search(4, 5, 2)
    svg, png = visualize.save_architecture_drawing(architecture, tmp_path / "a" / "x.json", beta)
    assert (svg, png) == (tmp_path / "a" / "x.svg", tmp_path / "a" / "x.png")
    again = visualize.save_architecture_drawing(architecture, tmp_path / "b" / "x.json", beta)
    assert [p.read_bytes() for p in (svg, png)] == [p.read_bytes() for p in again]
    assert png.read_bytes().startswith(b"\x89PNG")
    text = svg.read_text()
    assert "<svg" in text
    for label in ("stride 32", "stem", "ASPP", "block_1"):
        assert f"<!-- {label}" in text or f"{label} -->" in text
    assert sorted(p.name for p in svg.parent.iterdir()) == ["x.png", "x.svg"]


def test_a_figure_too_long_for_the_renderer_is_drawn_coarser(tmp_path, monkeypatch):
    monkeypatch.setattr(visualize, "_MAX_PIXELS", 700)
    _, beta, architecture = random_search(4, 12, 2)
    _, png = visualize.save_architecture_drawing(architecture, tmp_path / "long.json", beta)
    with Image.open(png) as image:
        assert max(image.size) == 700


def test_the_picture_shows_the_path(tmp_path):
    _, beta, architecture = random_search(5, 4, 2)
    _, png = visualize.save_architecture_drawing(architecture, tmp_path / "drawing", beta)
    image = np.asarray(Image.open(png).convert("RGB"))
    assert (image[0] == 255).all()
    red = np.array([int(PATH[i : i + 2], 16) for i in (1, 3, 5)])
    assert (np.abs(image.astype(int) - red).sum(axis=-1) < 10).sum() > 200


def test_heat_maps_lie_beside_the_architecture(tmp_path):
    alpha, beta, architecture = random_search(4, 5, 2)
    paths = [tmp_path / "x.json", tmp_path / "again" / "x"]
    files = [visualize.save_heat_maps(architecture, path, alpha, beta) for path in paths]
    assert files[0] == tmp_path / "x_alpha_beta.svg"
    assert files[0].read_bytes() == files[1].read_bytes()
    assert "atrous 5×5" in files[0].read_text()


def test_beta_of_another_search_is_refused():
    alpha, _, architecture = random_search(6, 4, 2)
    with pytest.raises(ValueError, match="beta has 5 layers and the architecture 4"):
        visualize.architecture_figure(architecture, np.zeros((5, 4, 3)))
    with pytest.raises(ValueError, match="beta has 5 layers and the architecture 4"):
        visualize.heat_map_figure(architecture, alpha, np.zeros((5, 4, 3)))


def test_unknown_format_is_refused(tmp_path):
    _, _, architecture = random_search(7, 2, 1)
    with pytest.raises(ValueError, match=r"x.jpg: a drawing is written as .svg, .png or .pdf"):
        visualize.save_figure(visualize.architecture_figure(architecture), tmp_path / "x.jpg")


def framed_cells(axes):
    return {
        (round(patch.get_y() + 0.5), round(patch.get_x() + 0.5))
        for patch in axes.patches
        if isinstance(patch, Rectangle) and not patch.get_fill()
    }


@pytest.mark.parametrize("decoded_from", [8, 9])
def test_heat_maps_frame_what_the_architecture_takes(decoded_from):
    alpha, beta, _ = random_search(8, 6, 3)
    _, _, architecture = random_search(decoded_from, 6, 3)
    alpha_axes, beta_axes = visualize.heat_map_figure(architecture, alpha, beta).axes
    np.testing.assert_allclose(alpha_axes.images[0].get_array(), decoding.softmax_alpha(alpha))
    # Rows counted apart from the table: block b starts at row b (b + 3) / 2.
    assert framed_cells(alpha_axes) == {
        (block * (block + 3) // 2 + edge.source_index, OPERATIONS.index(edge.op))
        for block, edges in enumerate(architecture.cell)
        for edge in edges
    }
    moves = [label.get_text().split(r" $\to$ ") for label in beta_axes.get_yticklabels()]
    assert len(moves) == 10
    path = [0, *architecture.levels]
    strides = [[str(stride(a)), str(stride(b))] for a, b in itertools.pairwise(path)]
    assert framed_cells(beta_axes) == {(moves.index(move), n) for n, move in enumerate(strides)}
    shown = beta_axes.images[0].get_array().filled(np.nan)
    expected = decoding.masked_softmax_beta(beta)
    assert np.isfinite(shown).sum() == len(transitions(6))
    for row in transitions(6):
        index = moves.index([str(stride(row.from_level)), str(stride(row.to_level))])
        assert shown[index, row.layer] == pytest.approx(expected[row[:3]])


def test_pyplot_and_its_global_state_stay_out():
    code = (
        "import sys, auto_deeplab_tf.visualize; sys.exit('matplotlib.pyplot' in sys.modules or "
        "'tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
