"""`python -m auto_deeplab_tf.decode` as scripts and people call it."""

import csv
import itertools
import json
import math

import numpy as np
import pytest
from commands import call, check_refused, run

from auto_deeplab_tf import accounting, cli, config, decode, decoding
from auto_deeplab_tf.architecture import Architecture

SIZE = {"num_classes": 5, "input_size": (65, 97), "head_channels": 16, "decoder_channels": 8}
SIZE_FLAGS = [
    "--num_classes=5",
    "--input_size=65x97",
    "--head_channels=16",
    "--decoder_channels=8",
]


def random_logits(seed, num_layers=5, num_blocks=2):
    rng = np.random.default_rng(seed)
    alpha = rng.normal(size=(num_blocks * (num_blocks + 3) // 2, 8))
    return alpha, rng.normal(size=(num_layers, 4, 3))


@pytest.fixture
def decoded(monkeypatch, capsys):
    """Runs the command in this process; returns what it prints."""

    def run_here(*arguments):
        call(decode, config.DecodeConfig, list(map(str, arguments)), monkeypatch)
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run_here


def choose(alpha, beta, *arguments):
    """The choices of the command for these logits, in this process."""
    options = cli.parse(
        config.DecodeConfig, ["--logits=x.npz", "--output=x.json", *SIZE_FLAGS, *arguments]
    )
    logits = decoding.Logits(alpha, beta, "separable")
    return decode.choose(logits, decoding.decode_cell(alpha), options)


def all_counted(alpha, beta, filter_multiplier):
    """All paths with their log-probability and count, best first, one count for each."""
    cell = decoding.decode_cell(alpha)
    ranked = []
    for levels, log_prob in decoding.best_paths(decoding.log_softmax_beta(beta)):
        built = Architecture(levels=levels, cell=cell, atrous="separable")
        count = accounting.count(built, filter_multiplier=filter_multiplier, **SIZE)
        ranked.append((levels, log_prob, count))
    return ranked


# --- Without a budget ---


def test_a_fast_search_is_decoded_with_its_edges_and_said_to_be_one(tmp_path, decoded):
    alpha, beta = random_logits(3, 3, 3)
    edge = 9.0 * np.random.default_rng(3).normal(size=len(alpha))
    decoding.save_logits(tmp_path / "logits.npz", alpha, beta, "full", edge)
    modes = {"partial_channels": 2}
    searched = decoding.decode(alpha, beta, "full", {"fast_modes": modes})
    searched.save(tmp_path / "architecture.json")
    out = decoded(f"--run_dir={tmp_path}")
    written = Architecture.load(tmp_path / "architecture.json")
    assert written == decoding.decode(alpha, beta, "full", edge_logits=edge) != searched
    assert written.provenance["fast_modes"] == modes
    assert "Not the exact search; fast modes: partial_channels=2" in out


def test_a_run_is_decoded_into_its_own_folder(tmp_path, decoded):
    alpha, beta = random_logits(0, 12, 5)
    decoding.save_logits(tmp_path / "logits.npz", alpha, beta, "full")
    expected = decoding.decode(alpha, beta, "full")
    searched = decoding.decode(*random_logits(1), "full", {"seed": 7, "decode": "old"})
    searched.save(tmp_path / "architecture.json")

    out = decoded(f"--run_dir={tmp_path}")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "architecture.json",
        "architecture.png",
        "architecture.svg",
        "architecture_alpha_beta.svg",
        "logits.npz",
    ]
    written = Architecture.load(tmp_path / "architecture.json")
    assert written == expected
    # What the search said of itself stays.
    assert written.provenance["seed"] == 7
    assert written.provenance["decode"]["logits"] == str(tmp_path / "logits.npz")

    strides = " -> ".join(str(4 * 2**level) for level in expected.levels)
    assert f"stem 4 -> {strides} -> head at stride {4 * 2 ** expected.levels[-1]}" in out
    log_prob = decoding.viterbi(decoding.log_softmax_beta(beta))[1]
    assert f"log-probability {log_prob:.4f}" in out
    assert "of 75,025 paths" in out
    assert "full convolution" in out
    for index, (first, second) in enumerate(expected.cell):
        line = f"block_{index} = {first.op}({first.source}) + {second.op}({second.source})"
        assert line in out
    assert "Not identified: 4 -> 4 into layer 0" in out
    assert "16 -> 32 into layer 2" in out
    for name in ("json", "svg", "png"):
        assert str(tmp_path / f"architecture.{name}") in out


def test_logits_of_any_shape_are_decoded_with_json_alone_on_stdout(tmp_path):
    """In a process of its own, as a script runs it."""
    alpha, beta = random_logits(2, 3, 1)
    np.savez(tmp_path / "x.npz", alpha=alpha.astype("float32"), beta=beta.astype("float32"))
    output = tmp_path / "new" / "found.json"
    done = run("decode", f"--logits={tmp_path / 'x.npz'}", f"--output={output}", "--json")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    result = json.loads(done.stdout)
    written = Architecture.load(output)
    assert written == decoding.decode(alpha, beta, "separable")
    assert result["levels"] == list(written.levels)
    assert result["cell"] == written.to_dict()["cell"]
    assert result["fingerprint"] == written.fingerprint
    assert result["not_identified"] == [[0, 0, 1], [0, 0, 2], [1, 1, 2], [2, 2, 2]]
    assert result["architecture"] == str(output)
    assert output.with_suffix(".svg").is_file()
    assert output.with_suffix(".png").is_file()
    assert not output.with_suffix(".csv").exists()


def test_top_k_writes_the_best_paths(tmp_path, decoded):
    alpha, beta = random_logits(3)
    decoding.save_logits(tmp_path / "x.npz", alpha, beta, "separable")
    output = tmp_path / "found.json"
    logits = f"--logits={tmp_path / 'x.npz'}"
    out = decoded(logits, f"--output={output}", "--top_k=7", "--atrous=separable")
    assert str(tmp_path / "found.csv") in out
    rows = list(csv.DictReader((tmp_path / "found.csv").open()))
    assert list(rows[0]) == ["rank", "log_prob", "levels"]
    expected = decoding.k_best_paths(decoding.log_softmax_beta(beta), 7)
    assert [row["rank"] for row in rows] == list("1234567")
    assert [row["levels"] for row in rows] == ["-".join(map(str, p)) for p, _ in expected]
    np.testing.assert_allclose([float(row["log_prob"]) for row in rows], [p for _, p in expected])
    assert Architecture.load(output).levels == expected[0][0]


def test_multipliers_add_columns_and_counts(tmp_path, decoded):
    alpha, beta = random_logits(4)
    decoding.save_logits(tmp_path / "x.npz", alpha, beta, "separable")
    output = tmp_path / "found.json"
    out = decoded(
        f"--logits={tmp_path / 'x.npz'}",
        f"--output={output}",
        "--top_k=3",
        "--filter_multiplier=8,12",
        "--json",
        *SIZE_FLAGS,
    )
    rows = list(csv.DictReader((tmp_path / "found.csv").open()))
    columns = ["rank", "log_prob", "levels", "filter_multiplier", "params", "multi_adds"]
    assert list(rows[0]) == columns
    assert [(row["rank"], row["filter_multiplier"]) for row in rows] == list(
        itertools.product("123", ("8", "12"))
    )
    for row in rows:
        levels = tuple(map(int, row["levels"].split("-")))
        built = Architecture(levels=levels, cell=decoding.decode_cell(alpha), atrous="separable")
        count = accounting.count(built, filter_multiplier=int(row["filter_multiplier"]), **SIZE)
        assert (int(row["params"]), int(row["multi_adds"])) == (count.params, count.multi_adds)
    result = json.loads(out)
    assert (result["filter_multiplier"], result["params"]) == (12, int(rows[1]["params"]))


# --- With a budget ---


@pytest.mark.parametrize("share", [0.02, 0.3, 0.8])
@pytest.mark.parametrize("resources", [("params",), ("multi_adds",), ("params", "multi_adds")])
def test_the_best_path_within_the_budget_is_chosen(resources, share):
    alpha, beta = random_logits(7)
    ranked = all_counted(alpha, beta, 6)
    limits = {
        name: int(np.quantile([getattr(count, name) for *_, count in ranked], share))
        for name in resources
    }
    flags = [f"--max_{name}={limit}" for name, limit in limits.items()]
    expected = [
        (levels, log_prob)
        for levels, log_prob, count in ranked
        if all(getattr(count, name) <= limit for name, limit in limits.items())
    ]
    if not expected:
        assert len(limits) == 2
        with pytest.raises(ValueError, match="no path is smallest in both"):
            choose(alpha, beta, "--filter_multiplier=6", *flags)
        return
    assert len(expected) < len(ranked)
    found = choose(alpha, beta, "--filter_multiplier=6", "--top_k=1000", *flags)
    assert [choice.levels for choice in found] == [levels for levels, _ in expected]
    np.testing.assert_allclose([c.log_prob for c in found], [p for _, p in expected])
    (best,) = choose(alpha, beta, "--filter_multiplier=6", *flags)
    assert best == found[0]


def test_of_several_multipliers_the_best_path_first_then_the_largest_that_fits():
    alpha, beta = random_logits(8)
    by_multiplier = {m: all_counted(alpha, beta, m) for m in (4, 8, 12)}
    best_levels, best_log_prob, _ = by_multiplier[4][0]
    best_params = {m: ranked[0][2].params for m, ranked in by_multiplier.items()}

    # Room for the most probable path at 8 and not at 12.
    flags = ["--filter_multiplier=12,4,8", f"--max_params={best_params[8]}"]
    (choice,) = choose(alpha, beta, *flags)
    assert choice.levels == best_levels
    assert choice.log_prob == pytest.approx(best_log_prob)
    assert sorted(choice.costs) == [4, 8]
    assert max(choice.costs) == 8
    # Below it at 4, another path is chosen; it fits at 4 and takes what more it can.
    limit = best_params[4] - 1
    (choice,) = choose(alpha, beta, "--filter_multiplier=4,8,12", f"--max_params={limit}")
    expected = next(
        (levels, {m for m in by_multiplier if dict_of(by_multiplier[m])[levels] <= limit})
        for levels, _, count in by_multiplier[4]
        if count.params <= limit
    )
    assert (choice.levels, set(choice.costs)) == expected


def dict_of(ranked):
    return {levels: count.params for levels, _, count in ranked}


def test_where_nothing_fits_the_smallest_is_told_and_nothing_is_written(tmp_path, decoded):
    alpha, beta = random_logits(9)
    decoding.save_logits(tmp_path / "x.npz", alpha, beta, "separable")
    smallest = min(count.multi_adds for *_, count in all_counted(alpha, beta, 6))
    arguments = [
        f"--logits={tmp_path / 'x.npz'}",
        f"--output={tmp_path / 'found.json'}",
        "--top_k=2",
        "--filter_multiplier=6,9",
        *SIZE_FLAGS,
    ]
    done = run("decode", *arguments, f"--max_multi_adds={smallest - 1}")
    words = f"error: no path keeps --max_multi_adds={smallest - 1}: the smallest of "
    check_refused(done, words, f"needs {smallest} Multi-Adds at --filter_multiplier=6.")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]
    decoded(*arguments, f"--max_multi_adds={smallest}")
    chosen = Architecture.load(tmp_path / "found.json")
    assert chosen.provenance["decode"]["multi_adds"] == smallest
    assert chosen.provenance["decode"]["filter_multiplier"] == 6


# --- Bad input ---


@pytest.fixture
def folder(tmp_path):
    """A folder with good and bad files of logits."""
    alpha, beta = random_logits(10, 2, 1)
    decoding.save_logits(tmp_path / "good.npz", alpha, beta, "separable")
    np.savez(tmp_path / "nan.npz", alpha=alpha * math.nan, beta=beta)
    np.savez(tmp_path / "odd.npz", alpha=alpha, beta=beta[0])
    (tmp_path / "text.npz").write_text("alpha, beta")
    (tmp_path / "run").mkdir()
    decoding.save_logits(tmp_path / "run" / "logits.npz", alpha, beta, "separable")
    (tmp_path / "run" / "architecture.json").write_text("{")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--run_dir={}/nowhere"], "nowhere has no logits.npz: it is not the folder of a search"),
        (["--run_dir={}/run"], "architecture.json: not a JSON file"),
        (["--logits={}/no.npz", "--output={}/a.json"], "no.npz is not a file"),
        (["--logits={}/text.npz", "--output={}/a.json"], "text.npz is not a complete .npz file"),
        (["--logits={}/nan.npz", "--output={}/a.json"], "nan.npz: alpha must be finite: alpha"),
        (["--logits={}/odd.npz", "--output={}/a.json"], "odd.npz: beta must have the shape"),
        (["--logits={}/good.npz", "--output={}/a.json", "--atrous=full"], "leave atrous out"),
        (["--logits={}/good.npz", "--output={}/text.npz/a.json"], "text.npz"),
    ],
)
def test_bad_input_writes_nothing(folder, decoded, capsys, arguments, text):
    before = sorted(folder.rglob("*"))
    with pytest.raises((ValueError, OSError), match=text) as caught:
        decoded(*(part.format(folder) for part in arguments))
    assert "\n" not in str(caught.value)
    assert sorted(folder.rglob("*")) == before
    assert capsys.readouterr().out == ""


def test_a_run_that_does_not_tell_its_atrous_operation_needs_the_flag(tmp_path, decoded):
    alpha, beta = random_logits(11, 2, 1)
    np.savez(tmp_path / "logits.npz", alpha=alpha, beta=beta)
    with pytest.raises(ValueError, match="does not say which atrous .*: give atrous=full or "):
        decoded(f"--run_dir={tmp_path}")
    decoded(f"--run_dir={tmp_path}", "--atrous=full")
    assert Architecture.load(tmp_path / "architecture.json").atrous == "full"
