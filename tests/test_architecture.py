"""The tables of the search space, and every rule of `Architecture` by the text of its error."""

import copy
import dataclasses
import errno
import itertools
import json
import pickle
import re

import numpy as np
import pytest

from auto_deeplab_tf.architecture import PRESETS, Architecture, Edge
from auto_deeplab_tf.errors import StorageError
from auto_deeplab_tf.search_space import (
    DECODABLE_OPERATIONS,
    OPERATION_TABLE,
    OPERATIONS,
    Transition,
    block_sources,
    move_mask,
    operation,
    reachable_levels,
    relaxed_edges,
    stride,
    transitions,
)

PUBLISHED_LEVELS = (0, 0, 0, 1, 2, 1, 2, 2, 3, 3, 2, 1)


@pytest.fixture
def content():
    """The JSON content of the published architecture, fresh for each test."""
    return Architecture.preset("auto_deeplab").to_dict()


# --- The tables ---


def test_operations_stand_in_the_fixed_order():
    assert OPERATIONS == (
        "sep_3x3",
        "sep_5x5",
        "atrous_3x3",
        "atrous_5x5",
        "avg_pool_3x3",
        "max_pool_3x3",
        "skip",
        "none",
    )
    assert OPERATIONS[:7] == DECODABLE_OPERATIONS


def test_each_row_of_the_table_agrees_with_its_name():
    for row in OPERATION_TABLE:
        prefix, _, size = row.name.partition("_")
        if size:
            assert row.name.endswith(f"{row.kernel_size}x{row.kernel_size}")
        kinds = {"sep": "separable", "atrous": "atrous", "avg": "pool", "max": "pool"}
        assert row.kind == kinds.get(prefix, prefix)
        assert row.rate == (2 if row.kind == "atrous" else 1)
        assert row.repeats == {"separable": 2, "atrous": 1}.get(row.kind, 0)
        assert row.separable is {"separable": True, "atrous": None}.get(row.kind, False)
        assert row.projects == (row.name == "skip")
        assert row.pooling == {"avg": "average", "max": "max"}.get(prefix)
        assert operation(row.name) is row


def test_unknown_operation_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown operation 'conv_7x7': .*sep_3x3, .*, none"):
        operation("conv_7x7")


@pytest.mark.parametrize(
    ("num_blocks", "num_edges"), [(1, 2), (2, 5), (3, 9), (4, 14), (5, 20), (7, 35)]
)
def test_relaxed_edges_count_and_order(num_blocks, num_edges):
    edges = relaxed_edges(num_blocks)
    assert len(edges) == num_edges == num_blocks * (num_blocks + 3) // 2
    assert [edge.index for edge in edges] == list(range(num_edges))
    # Written out apart from the table: a block's rows start after those of the blocks before.
    for block in range(num_blocks):
        start = block * (block + 3) // 2
        rows = edges[start : start + block + 2]
        assert [row.block for row in rows] == [block] * (block + 2)
        assert [row.source for row in rows] == ["prev", "prev_prev"] + [
            f"block_{j}" for j in range(block)
        ]
        assert tuple(row.source for row in rows) == block_sources(block)


@pytest.mark.parametrize("num_layers", [1, 2, 3, 5, 12])
def test_transitions_are_the_moves_that_paths_take(num_layers):
    def walk(path):
        if len(path) == num_layers + 1:
            yield path
            return
        for level in (path[-1] - 1, path[-1], path[-1] + 1):
            if 0 <= level <= 3:
                yield from walk([*path, level])

    taken = set()
    for path in walk([0]):
        for layer in range(num_layers):
            move = path[layer + 1] - path[layer] + 1
            taken.add(Transition(layer, path[layer], move, path[layer + 1]))
    assert transitions(num_layers) == tuple(sorted(taken))
    levels = [sorted({row.to_level for row in taken if row.layer == n}) for n in range(num_layers)]
    assert [list(row) for row in reachable_levels(num_layers)] == levels


def test_move_mask_is_the_trellis_border():
    mask = move_mask(6)
    assert mask.shape == (6, 4, 3)
    assert mask.dtype == np.bool_
    for layer, level, move in np.ndindex(6, 4, 3):
        assert mask[layer, level, move] == (0 <= level + move - 1 <= 3)


def test_tables_refuse_sizes_below_one():
    rule = r"num_\w+ must be an integer of 1 or more. Received: 0"
    for table in (relaxed_edges, transitions, move_mask, reachable_levels):
        with pytest.raises(ValueError, match=rule):
            table(0)


def test_stride_of_levels():
    assert [stride(level) for level in range(4)] == [4, 8, 16, 32]


# --- The preset ---


def test_published_architecture_is_the_table_of_the_paper():
    published = Architecture.preset("auto_deeplab")
    inputs = ["prev", "prev_prev", "block_0", "block_1", "block_2", "block_3"]
    table = [
        [(1, "atrous_5x5"), (0, "sep_3x3")],
        [(1, "sep_3x3"), (0, "atrous_3x3")],
        [(3, "sep_3x3"), (1, "sep_3x3")],
        [(4, "sep_5x5"), (2, "sep_5x5")],
        [(3, "sep_5x5"), (5, "atrous_5x5")],
    ]
    assert published.levels == PUBLISHED_LEVELS
    assert published.atrous == "full"
    assert [[(e.source, e.op) for e in block] for block in published.cell] == [
        [(inputs[source], op) for source, op in block] for block in table
    ]
    assert [[e.source_index for e in block] for block in published.cell] == [
        [source for source, _ in block] for block in table
    ]
    assert (published.num_layers, published.num_blocks) == (12, 5)


def test_fingerprint_of_the_preset_is_pinned():
    # It stands in model files: another value would refuse every model saved before.
    assert PRESETS["auto_deeplab"].fingerprint == (
        "f055fd59b0a6643c4851ff67ab1529b23d94a5d1eed26de3443ec2e56e4ed376"
    )


def test_unknown_preset_lists_the_presets():
    with pytest.raises(ValueError, match=r"unknown architecture 'deeplab': .*auto_deeplab"):
        Architecture.preset("deeplab")


def test_a_caller_cannot_change_the_preset():
    Architecture.preset("auto_deeplab").provenance["note"] = "mine"
    assert "note" not in Architecture.preset("auto_deeplab").provenance


# --- Identity ---


def swapped(architecture):
    return dataclasses.replace(
        architecture, cell=tuple((second, first) for first, second in architecture.cell)
    )


def test_order_inside_a_block_and_provenance_do_not_count():
    published = Architecture.preset("auto_deeplab")
    other = dataclasses.replace(swapped(published), provenance={"seed": 3})
    assert other.cell != published.cell
    assert other == published
    assert hash(other) == hash(published)
    assert other.fingerprint == published.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"levels": (0, 0, 0, 1, 2, 1, 2, 2, 3, 3, 2, 2)},
        {"levels": PUBLISHED_LEVELS[:-1]},
        {"atrous": "separable"},
        {"cell": PRESETS["auto_deeplab"].cell[:-1]},
        {"cell": ((Edge("prev_prev", "skip"), Edge("prev", "sep_3x3")),)},
    ],
)
def test_everything_else_counts(change):
    published = Architecture.preset("auto_deeplab")
    other = dataclasses.replace(published, **change)
    assert other != published
    assert hash(other) != hash(published)
    assert other.fingerprint != published.fingerprint


def test_frozen_and_copied():
    published = Architecture.preset("auto_deeplab")
    with pytest.raises(dataclasses.FrozenInstanceError):
        published.levels = (0,)
    assert pickle.loads(pickle.dumps(published)) == published
    assert copy.deepcopy(published) == published
    note = {"runs": [1]}
    kept = dataclasses.replace(published, provenance=note)
    note["runs"].append(2)
    assert kept.provenance == {"runs": [1]}


def test_numpy_and_lists_are_taken_as_they_are_meant():
    edges = [[Edge("prev", "skip"), Edge("prev_prev", "skip")]]
    built = Architecture(levels=np.array([0, 1, 2]), cell=edges, atrous="full")
    assert built.levels == (0, 1, 2)
    assert all(type(level) is int for level in built.levels)
    assert Architecture.from_json(built.to_json()) == built


@pytest.mark.parametrize(
    ("levels", "index"),
    [
        (PUBLISHED_LEVELS, 2),
        ((0, 0, 0), 2),
        ((0,), 0),
        ((1, 0, 0), -1),
        ((1,), -1),
        ((0, 1, 0, 0), 0),
        ((0, 0, 1, 2, 1, 0), 1),
    ],
)
def test_low_level_feature(levels, index):
    published = Architecture.preset("auto_deeplab")
    assert dataclasses.replace(published, levels=levels).low_level_index == index


# --- Files ---


def test_round_trip_keeps_every_field(tmp_path):
    published = Architecture.preset("auto_deeplab")
    written = dataclasses.replace(
        swapped(published), provenance={"run": "räume", "steps": 12, "deep": {"list": [1.5, None]}}
    )
    path = tmp_path / "new" / "architecture.json"
    written.save(path)
    read = Architecture.load(path)
    for field in dataclasses.fields(Architecture):
        assert getattr(read, field.name) == getattr(written, field.name), field.name
    assert read.cell[0][0] == Edge("prev", "sep_3x3")
    assert Architecture.from_argument(str(path)) == read
    assert Architecture.from_argument("auto_deeplab") == read
    assert [entry.name for entry in path.parent.iterdir()] == ["architecture.json"]


def test_the_file_has_the_documented_form(tmp_path):
    path = tmp_path / "architecture.json"
    Architecture.preset("auto_deeplab").save(path)
    content = json.loads(path.read_text())
    assert list(content) == ["schema_version", "levels", "cell", "atrous", "provenance"]
    assert content["schema_version"] == 1
    assert content["levels"] == list(PUBLISHED_LEVELS)
    assert content["cell"][0] == [
        {"source": "prev_prev", "op": "atrous_5x5"},
        {"source": "prev", "op": "sep_3x3"},
    ]
    noted = dataclasses.replace(Architecture.preset("auto_deeplab"), provenance={"seed": 3})
    assert noted.to_json().endswith('"provenance": {\n    "seed": 3\n  }\n}\n')
    assert max(map(len, path.read_text().splitlines())) <= 100


def test_a_failing_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "architecture.json"
    published = Architecture.preset("auto_deeplab")
    published.save(path)
    before = path.read_bytes()
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(full))
    rule = r"/architecture.json cannot be written \(No space left on device; it needs 6\d\d bytes\)"
    with pytest.raises(StorageError, match=rule):
        dataclasses.replace(published, levels=(0, 1)).save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    path = tmp_path / f"{'ä [1]' * 41}.json"  # 251 bytes
    Architecture.preset("auto_deeplab").save(path)
    assert Architecture.load(path) == Architecture.preset("auto_deeplab")


def test_missing_file_and_unknown_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.json is not a file"):
        Architecture.load(tmp_path / "nowhere.json")
    with pytest.raises(FileNotFoundError, match="is not a file"):
        Architecture.load(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"architecture=autodeeplab is neither .* auto_deeplab\.$"
    ):
        Architecture.from_argument("autodeeplab")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (b"", "not a JSON file: Expecting value"),
        (b"levels: [0, 1]", "not a JSON file: Expecting value"),
        (b'{"schema_version": 1,', "not a JSON file"),
        (b"\xff\xfe\xfa", "not a JSON file"),
        (b'{"levels": [NaN]}', "not a JSON file: NaN is not a JSON number"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"levels": [0], "atrous": "full", "atrous": "full"}', "key 'atrous' comes twice"),
        (b"[1, 2]", r"must be an object with the keys .* Received: \[1, 2\]"),
        (b"{}", "lacks the key 'schema_version'"),
    ],
)
def test_broken_files_are_refused_in_one_line_with_their_name(tmp_path, text, rule):
    path = tmp_path / "broken.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=rule) as caught:
        Architecture.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def put(content, place, value):
    """Sets content[a][b][c] for the place (a, b, c)."""
    for key in place[:-1]:
        content = content[key]
    content[place[-1]] = value


INVALID = [
    (("schema_version",), 2, "schema_version must be 1, .* Received: 2"),
    (("schema_version",), "1", "schema_version must be 1, .* Received: '1'"),
    (("schema_version",), True, "schema_version must be 1, .* Received: True"),
    (("filter_multiplier",), 20, "has the unknown key 'filter_multiplier': the keys are"),
    (("levels",), [], r"levels must be a list .* Received: \[\]"),
    (("levels",), "000", "levels must be a list .* Received: '000'"),
    (("levels",), None, "levels must be a list .* Received: None"),
    (("levels",), {"0": 0}, "levels must be a list"),
    (("levels", 0), 2, r"levels\[0\] = 2 cannot follow level 0 \(the stem ends at level 0, and "),
    (("levels", 1), 2, r"levels\[1\] = 2 cannot follow level 0 \(a layer keeps the level or "),
    (("levels", 8), 1, r"levels\[9\] = 3 cannot follow level 1"),
    (("levels", 8), 4, r"levels\[8\] must be an integer 0, 1, 2 or 3 .* Received: 4"),
    (("levels", 0), -1, r"levels\[0\] must be an integer .* Received: -1"),
    (("levels", 3), 1.0, r"levels\[3\] must be an integer .* Received: 1.0"),
    (("levels", 3), True, r"levels\[3\] must be an integer .* Received: True"),
    (("levels", 3), "1", r"levels\[3\] must be an integer .* Received: '1'"),
    (("levels", 3), None, r"levels\[3\] must be an integer .* Received: None"),
    (("cell",), [], r"cell must be a list of blocks, each of two edges. Received: \[\]"),
    (("cell",), {"a": 1}, r"cell must be a list of blocks"),
    (("cell",), None, r"cell must be a list of blocks"),
    (("cell", 2), [], r"cell\[2\] must hold two edges. Received: \[\]"),
    (("cell", 2), "ab", r"cell\[2\] must hold two edges. Received: 'ab'"),
    (("cell", 2), {"source": "prev"}, r"cell\[2\] must hold two edges"),
    (("cell", 2, 1), "prev", r"cell\[2\]\[1\] must be an object with the keys source, op"),
    (("cell", 2, 1), {"source": "prev"}, r"cell\[2\]\[1\] lacks the key 'op'"),
    (("cell", 2, 1, "weight"), 1, r"cell\[2\]\[1\] has the unknown key 'weight'"),
    (("cell", 2, 1, "source"), "block_2", r"cell\[2\]\[1\].source = 'block_2' cannot be read by "),
    (("cell", 0, 0, "source"), "block_0", r"cell\[0\]\[0\].source .* block 0 \(its sources are "),
    (("cell", 2, 1, "source"), "block_-1", r"cell\[2\]\[1\].source = 'block_-1'"),
    (("cell", 2, 1, "source"), "block_01", r"cell\[2\]\[1\].source = 'block_01'"),
    (("cell", 2, 1, "source"), 1, r"cell\[2\]\[1\].source = 1 cannot be read"),
    (("cell", 2, 1, "source"), ["prev"], r"cell\[2\]\[1\].source = \['prev'\] cannot be read"),
    (("cell", 2, 1, "source"), "block_1", r"cell\[2\] reads 'block_1' twice: the two sources"),
    (("cell", 3, 0, "op"), "none", r"cell\[3\]\[0\].op = 'none' is not allowed: .* skip\.$"),
    (("cell", 3, 0, "op"), "conv_3x3", r"cell\[3\]\[0\].op = 'conv_3x3' is unknown: .* skip\.$"),
    (("cell", 3, 0, "op"), None, r"cell\[3\]\[0\].op = None is unknown"),
    (("cell", 3, 0, "op"), {}, r"cell\[3\]\[0\].op = {} is unknown"),
    (("atrous",), "half", "atrous must be 'full' or 'separable'. Received: 'half'"),
    (("atrous",), None, "atrous must be 'full' or 'separable'. Received: None"),
    (("atrous",), ["full"], "atrous must be 'full' or 'separable'. Received: "),
    (("provenance",), ["a"], r"provenance must be an object. Received: \['a'\]"),
    (("provenance",), None, "provenance must be an object. Received: None"),
]


@pytest.mark.parametrize(("place", "value", "rule"), INVALID)
def test_each_rule_is_refused_by_the_name_of_its_field(content, place, value, rule):
    put(content, place, value)
    with pytest.raises(ValueError, match=rule) as caught:
        Architecture.from_dict(content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["schema_version", "levels", "cell", "atrous"])
def test_missing_keys_are_named(content, key):
    del content[key]
    with pytest.raises(ValueError, match=f"the architecture lacks the key '{key}'"):
        Architecture.from_dict(content)


def test_provenance_may_be_missing(content):
    del content["provenance"]
    assert Architecture.from_dict(content).provenance == {}


@pytest.mark.parametrize(
    ("provenance", "rule"),
    [
        ({1: "a"}, "provenance must have strings as keys. Received: {1: 'a'}"),
        ({"a": float("nan")}, "provenance must hold what JSON can hold"),
        ({"a": object()}, "provenance must hold what JSON can hold"),
    ],
)
def test_provenance_that_json_cannot_hold(provenance, rule):
    with pytest.raises(ValueError, match=rule):
        dataclasses.replace(Architecture.preset("auto_deeplab"), provenance=provenance)


def test_an_edge_must_be_one():
    with pytest.raises(ValueError, match=re.escape("cell[0][1] must be an Edge. Received: 'x'")):
        Architecture(levels=(0,), cell=((Edge("prev", "skip"), "x"),), atrous="full")


def test_long_values_are_shortened(content):
    content["levels"] = "x" * 1000
    with pytest.raises(ValueError, match="levels must be a list") as caught:
        Architecture.from_dict(content)
    assert str(caught.value).endswith(f" Received: '{'x' * 76}....")
    for length, shown in ((78, "x" * 78 + "'"), (79, "x" * 76 + "...")):
        content["levels"] = "x" * length
        with pytest.raises(ValueError, match=f"Received: '{shown}.$"):
            Architecture.from_dict(content)


def independently_valid(content):
    """The rules of architecture.json, written down a second time."""
    levels, cell = content["levels"], content["cell"]
    path = [0, *levels]
    ops = {"sep_3x3", "sep_5x5", "atrous_3x3", "atrous_5x5", "avg_pool_3x3", "max_pool_3x3", "skip"}
    steps_hold = all(abs(after - before) <= 1 for before, after in itertools.pairwise(path))
    edges_hold = all(
        edge["op"] in ops
        and edge["source"] in ["prev", "prev_prev", *(f"block_{j}" for j in range(block))]
        for block, edges in enumerate(cell)
        for edge in edges
    )
    return (
        content["schema_version"] == 1
        and len(levels) > 0
        and all(level in range(4) for level in levels)
        and steps_hold
        and len(cell) > 0
        and all(len(edges) == 2 and edges[0]["source"] != edges[1]["source"] for edges in cell)
        and edges_hold
        and content["atrous"] in ("full", "separable")
    )


def mutate(content, rng):
    """Applies one random change of a value, keeping the JSON form."""
    kind = rng.integers(8)
    cell = content["cell"]
    block = int(rng.integers(len(cell))) if cell else 0
    side = int(rng.integers(2))
    if kind == 0:
        content["levels"][rng.integers(len(content["levels"]))] = int(rng.integers(-1, 5))
    elif kind == 1:
        content["levels"] = content["levels"][: rng.integers(len(content["levels"]) + 1)] or [0]
    elif kind == 2 and len(cell[block]) == 2:
        sources = ["prev", "prev_prev", *(f"block_{j}" for j in range(6)), "", "block_x"]
        cell[block][side]["source"] = str(rng.choice(sources))
    elif kind == 3 and len(cell[block]) == 2:
        cell[block][side]["op"] = str(rng.choice([*OPERATIONS, "sep_7x7"], p=[0.12] * 8 + [0.04]))
    elif kind == 4:
        del cell[block]
        content["cell"] = cell or [[]]
    elif kind == 5:
        content["atrous"] = str(rng.choice(["full", "separable", "none"]))
    elif kind == 6:
        order = rng.permutation(len(cell))
        content["cell"] = [cell[index] for index in order]
    else:
        cell[block] = cell[block][::-1] if rng.random() < 0.7 else cell[block][:1]


def test_random_mutations_are_valid_or_refused():
    rng = np.random.default_rng(11)
    outcomes = {True: 0, False: 0}
    for _ in range(300):
        content = Architecture.preset("auto_deeplab").to_dict()
        for _ in range(rng.integers(1, 4)):
            mutate(content, rng)
        valid = independently_valid(content)
        outcomes[valid] += 1
        if valid:
            read = Architecture.from_dict(content)
            assert read.to_dict() == content
        else:
            with pytest.raises(ValueError, match=r"levels|cell|atrous"):
                Architecture.from_dict(content)
    assert min(outcomes.values()) > 40, outcomes
