"""The search-quality benchmark: its networks, trainings and report; training on JAX's CPU build."""

import dataclasses
import itertools
import pathlib
import re
import sys
import types

import jax
import numpy as np
import pytest
import tensorflow as tf
import tiny_camvid
from PIL import Image

from auto_deeplab_tf import accounting, cli, config, data, decoding, searcher
from auto_deeplab_tf.architecture import Architecture, Edge
from auto_deeplab_tf.data import pipeline, split
from auto_deeplab_tf.nn.network import build_network
from auto_deeplab_tf.sampling import random_architecture
from auto_deeplab_tf.search_space import OPERATIONS, relaxed_edges
from auto_deeplab_tf.segmenter import Segmenter
from auto_deeplab_tf.training import metrics
from benchmarks import jax_common, rows, search_signal
from benchmarks.search_quality import __main__ as search_quality
from benchmarks.search_quality import (
    cost_weights,
    ends,
    image_matrices,
    jax_data,
    latency,
    levers,
    methods,
    opinions,
    population,
    records,
    report,
    trainings,
)


@pytest.mark.parametrize("seed", range(4))
def test_networks_cost_the_same_and_the_cells_most_of_it(seed):
    architecture = random_architecture(seed)
    cost = population.cost(architecture)
    best = min(
        range(1, 60),
        key=lambda f: abs(
            accounting.count(architecture, filter_multiplier=f, **population.SETTINGS).multi_adds
            - population.MULTI_ADDS
        ),
    )
    assert cost["filter_multiplier"] == best
    assert abs(cost["multi_adds"] / population.MULTI_ADDS - 1) < 0.06
    assert cost["cell_share"] > 0.5


@pytest.fixture
def one_tuning_frame(monkeypatch):
    monkeypatch.setattr(population, "TUNING_FRAMES", 1)
    monkeypatch.setattr(population, "TUNING_GAP", 1)


def test_frames_after_those_that_tune_are_left_out():
    ids = [f"0016E5_{n:02}" for n in range(99, -1, -1)] + ["0001TP_1"]
    parts = population.tuning_split(ids)
    assert [name for name, part in sorted(parts.items()) if part == "val"] == sorted(ids)[1:65]
    assert set(ids) - set(parts) == {f"0016E5_{n}" for n in range(64, 74)}
    assert parts["0001TP_1"] == parts["0016E5_74"] == "train"


@pytest.mark.usefixtures("one_tuning_frame")
def test_frames_are_held_back_for_tuning(tmp_path):
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[2] = 1
    np.savez(
        tmp_path / "data.npz",
        train_images=np.zeros((4, 4, 4, 3), np.uint8)
        + np.arange(4, dtype=np.uint8)[:, None, None, None],
        train_labels=labels,
        train_ids=np.array(["0016E5_1", "0001TP_1", "0016E5_3", "0016E5_2"]),
        train_half=np.array([0, 1, 1, 0]),
        val_images=np.full((9, 4, 4, 3), 9, np.uint8),
        val_labels=labels[[0] * 9],
    )
    tuning = jax_data.load(str(tmp_path / "data.npz"), "tuning")
    assert set(np.unique(tuning["train_images"])) == {1, 2}
    assert tuning["train_half"].tolist() == [1, 1]
    # One image of the drive, padded to a batch by images that count nowhere.
    assert len(tuning["val_images"]) == jax_data.BATCH
    assert np.all(tuning["val_labels"][1:] == 255) and np.all(tuning["val_labels"][0] == 0)
    reported = jax_data.load(str(tmp_path / "data.npz"), "reported")
    assert len(reported["train_images"]) == 4 and len(reported["val_images"]) == 16
    assert set(np.unique(reported["val_images"][:9])) == {9}


def test_camvid_is_written_as_arrays(tmp_path, monkeypatch):
    root = tiny_camvid.write(tmp_path / "CamVid", {"train": 6, "val": 2})
    file = tmp_path / "data.npz"
    monkeypatch.setattr(sys, "argv", ["jax_data", f"--data_dir={root}", f"--output={file}"])
    jax_data.main()
    read = jax_data.load(str(file), "reported")
    assert read["train_images"].shape == (6, 120, 160, 3)
    source = data.open_split("camvid", "train", data_dir=root)
    np.testing.assert_array_equal(
        np.flatnonzero(read["train_half"]), split.source_halves(source)[1]
    )
    mask = Image.open(root / "trainannot" / "0016E5_00003.png").resize((160, 120), Image.NEAREST)
    expected = np.where(np.asarray(mask) == tiny_camvid.VOID, jax_common.IGNORE, mask)
    assert np.mean(expected == read["train_labels"][3]) > 0.9


def test_crops_are_windows_and_pixels_are_counted_by_label_and_prediction():
    rng = np.random.default_rng(0)
    label = np.arange(12 * 20, dtype=np.uint8).reshape(1, 12, 20)
    image = label[..., None].repeat(3, -1)
    for seed in range(4):
        crops, labels = jax_common.draw_batch(image, label, jax.random.key(seed), 6, (7, 9))
        np.testing.assert_allclose(crops[..., 1], labels, atol=1e-2)
        for found in np.asarray(labels):
            window = found if found[0, 0] < found[0, 8] else found[:, ::-1]
            ((top, left),) = np.argwhere(label[0] == window[0, 0])
            np.testing.assert_array_equal(label[0, top : top + 7, left : left + 9], window)
    logits = rng.normal(size=(2, 4, 5, 3))
    labels = rng.choice([0, 1, 2, 255], (2, 4, 5))
    counts = np.asarray(jax_common.count_pixels(logits, labels)).reshape(3, 3)
    for of_label, of_class in np.ndindex(3, 3):
        both = (labels == of_label) & (logits.argmax(-1) == of_class)
        assert counts[of_label, of_class] == both.sum()
    assert jax_common.mean_iou([[6, 2, 0], [0, 8, 0], [0, 0, 0]]) == pytest.approx(
        (6 / 8 + 8 / 10) / 2
    )


def test_crops_of_scaled_images_keep_pixels_and_labels_together():
    rng = np.random.default_rng(0)
    labels = (rng.uniform(size=(4, 6, 8)) < 0.5).astype(np.uint8).repeat(8, 1).repeat(8, 2)
    images = 60 + 120 * labels[..., None].repeat(3, -1)
    crops, found = jax_common.draw_batch(
        images, labels, jax.random.key(3), 16, (48, 64), jax_data.SCALES, 30.0
    )
    crops, found = np.asarray(crops)[..., 0], np.asarray(found)
    beside = found == jax_common.IGNORE
    assert 0.02 < beside.mean() < 0.4 and np.all(crops[beside] == 30.0)
    # But for the pixels between two blocks, which are mixed of both.
    assert np.mean((crops[~beside] > 120) == found[~beside]) > 0.95


def _row(kind, name, seed, val_miou, split="reported", steps=600, **changes):
    numbers = {f"{score}_{part}": 0.5 for score in ("val_miou", "loss") for part in PARTS}
    columns = ("params", "num_skips", "num_pools", "depth", "shortest_chain")
    row = dict.fromkeys(columns, 1) | numbers | {"multi_adds": 160e6, "filter_multiplier": 18}
    row |= {"kind": kind, "name": name, "architecture": name, "seed": seed, "split": split}
    row |= {"steps": steps, "val_miou": val_miou, "val_miou_low": 0, "val_miou_high": 1}
    row |= {"levels": "01", "cell_share": 0.7}
    row["command"] = "-".join(map(str, (kind, name, split, seed, steps)))
    return {key: str(int(v) if key == "multi_adds" else v) for key, v in (row | changes).items()}


PARTS = ("1_8", "1_4", "1_2")


def _population(searched, random_search=0.45):
    """20 random networks between 0.40 and 0.49, three searches and random searches, 3 seeds."""
    rows = [_row("random", f"r{n}", 0, 0.40 + 0.005 * n) for n in range(20)]
    for n, seed in itertools.product(range(3), range(3)):
        rows.append(_row("searched", f"s{n}", seed, searched + 0.001 * seed))
        rows.append(_row("random_search", f"o{n}", seed, random_search + 0.001 * seed))
    return rows


@pytest.mark.parametrize(
    ("searched", "percentile", "shown"), [(0.6, 100, True), (0.4526, 55, False), (0.3, 0, False)]
)
def test_report_says_where_the_searched_networks_stand(searched, percentile, shown):
    text = report.report(_population(searched))
    line = next(line for line in text.splitlines() if line.startswith("searched (3)"))
    assert f"percentile {percentile}," in line
    assert ("not shown" in line) != shown
    difference = searched + 0.001 - np.mean([0.40 + 0.005 * n for n in range(20)])
    assert f"difference to the random mean {difference:+.4f}" in text
    # The deviation of seeds is that of 0.000, 0.001, 0.002.
    other = next(line for line in text.splitlines() if line.startswith("searched minus"))
    assert f"{(searched - 0.45) / 0.001:+.1f} deviations of seeds (0.0010)" in other
    assert ("not shown" in other) == (searched < 0.45)
    # A mean of nine draws of 0.000, 0.001, 0.002 has a deviation of 0.00027; here two differ.
    low, high = map(float, re.search(r"95 % interval (\S+) to (\S+),", other).groups())
    expected = np.asarray([-1.96, 1.96]) * 0.00027 * 2**0.5 + searched - 0.45
    np.testing.assert_allclose([low, high], expected, atol=1.5e-4)


def test_report_says_what_a_choice_among_random_networks_could_gain():
    (text,) = re.findall("^deviation of random .*", report.report(_population(0.6)), re.M)
    of_training, of_seeds, of_networks, gain = map(float, re.findall(r"[-+]?0\.\d{4}", text))
    assert of_training == pytest.approx(0.005 * np.arange(20).std(ddof=1), abs=1e-4)
    assert of_seeds == 0.001
    drawn = np.random.default_rng(0).normal(size=(40_000, methods.DRAWS)).max(axis=1)
    assert gain == pytest.approx(of_networks * drawn.mean(), rel=0.01)
    # Where seeds differ by more than networks, nothing is known of the networks.
    noisy = [_row("published", "p", seed, 0.1 * seed) for seed in range(3)]
    assert "so of networks 0.0000" in report.report(_population(0.6) + noisy)


def test_report_decides_nothing_before_all_networks_are_there():
    def verdicts(without):
        """Of searched networks: among random ones, then against random search."""
        rows = [row for row in _population(0.6) if (row["name"], row["seed"]) not in without]
        found = re.findall(r"^searched .*: (.+) to be", report.report(rows), re.M)
        assert len(found) == 2
        return found

    assert verdicts([]) == ["shown", "shown"]
    assert verdicts([("s2", seed) for seed in "012"]) == ["undecided (2 of 3 networks)"] * 2
    of_random_search = [("o1", seed) for seed in "012"] + [("o2", seed) for seed in "012"]
    assert verdicts(of_random_search) == ["shown", "undecided (1 of 3 networks)"]
    assert verdicts([("o1", "2")]) == ["shown", "undecided (2 of 3 networks)"]


def test_report_says_whether_ranks_hold_and_whose_opinion_agrees():
    def trial(n, steps, miou):
        loss = 2 - 0.1 * n
        changes = {"loss_1_8": loss, "num_pools": -n, "levels": "0" * (7 - n) + "1" * n}
        return _row("trial", f"n{n}", 0, miou, "tuning", steps, **changes)

    rows = [trial(n, 600, 0.1 * n) for n in range(6)]
    rows += [trial(n, 1800, 0.1 * n + (0.15 if n == 0 else 0)) for n in range(6)]
    # Longer than what is compared: the ranks are asked of it, the opinions are not.
    rows += [trial(n, 5400, -0.1 * n) for n in range(4)]
    text = report.report(rows)
    assert "600 against 1800 steps, 6 networks: tau 0.87, ranks hold" in text
    assert "1800 against 5400 steps, 4 networks: tau -0.67, not shown to hold" in text
    # A low loss is a good opinion, so its sign is turned; one pair of 15 is in the other order.
    for line in ("-loss_1_8         +0.87", "num_pools         -0.87", "mean_level        +0.87"):
        assert f"  {line}" in text
    swapped = [row | {"val_miou": str(-float(row["val_miou"]))} for row in rows[6:12]]
    assert "not shown to hold" in report.report(rows[:6] + swapped)


def test_report_says_which_opinion_of_a_search_agrees():
    opinions = [
        {
            "search": "reported-0",
            "architecture": f"r{n}",
            "log_prob_cell": str(-n),
            "log_prob_path": str(n if n else 1.5),
            "inherited_miou": "0.1",
        }
        for n in range(6)
    ]
    text = report.report(_population(0.6), opinions)
    assert "final mIoU, reported-0, 6 networks" in text
    assert "log_prob_cell  -1.00" in text and "log_prob_path  +0.87" in text
    assert "inherited_miou the same for all" in text


def test_a_search_is_asked_for_each_network(monkeypatch, tmp_path):
    """Its cell by alpha, its path by beta, and a score with its weights."""
    rng = np.random.default_rng(0)
    networks = {str(seed): random_architecture(seed, 4, 2) for seed in range(2)}
    edges = len(decoding.one_hot(networks["0"])[0])
    alpha, beta = rng.normal(size=(edges, len(OPERATIONS))), rng.normal(size=(4, 4, 3))
    decoding.save_logits(tmp_path / "logits.npz", alpha, beta, "separable")

    class Search:
        model = types.SimpleNamespace(
            score_decoded=lambda architecture, statistics, images: {
                "val_decoded_miou": float(architecture.levels[0])
            }
        )

    settings = config.SearchConfig(run_dir="run", batch_size=2)
    monkeypatch.setattr(searcher, "restored", lambda run, **places: (Search, settings, "train"))
    monkeypatch.setattr(split, "source_halves", lambda train: ([0], [1]))
    for name in ("validation_batches", "training_batches"):
        monkeypatch.setattr(
            pipeline, name, lambda *args, **options: types.SimpleNamespace(take=lambda count: [])
        )
    rows = list(opinions.of_search(tmp_path, networks))
    log_alpha = decoding.log_softmax_alpha(alpha)
    log_beta = decoding.log_softmax_beta(beta)
    for row, architecture in zip(rows, networks.values(), strict=True):
        cell = 0.0
        for edge in relaxed_edges(2):
            for kept in architecture.cell[edge.block]:
                if kept.source == edge.source:
                    cell += log_alpha[edge.index, OPERATIONS.index(kept.op)]
        moves = zip((0, *architecture.levels), architecture.levels, strict=False)
        path = sum(
            log_beta[layer, before, after - before + 1]
            for layer, (before, after) in enumerate(moves)
        )
        assert row["log_prob_cell"] == pytest.approx(cell)
        assert row["log_prob_path"] == pytest.approx(path)
        assert row["inherited_miou"] == architecture.levels[0]
        assert row["architecture"] == architecture.fingerprint


def test_checkpoints_of_a_search_agree_with_random_networks_or_not(monkeypatch, tmp_path):
    """Two checkpoints: alpha as the losses want it, then against them."""
    seeds = range(6)
    networks = [random_architecture(seed) for seed in seeds]
    edges = len(decoding.one_hot(networks[0])[0])
    wanted = np.zeros((edges, len(OPERATIONS)))
    wanted[:, OPERATIONS.index("skip")] = 2.0
    skips = [trainings.operations_of_kind(network, "skip") for network in networks]
    candidates = [
        {"selection": f"tuning-random{half}-1800", "kind": "random", "candidate": f"random-{seed}"}
        | {"loss_1": str(9.0 if half else 1 - skips[seed] / 10)}
        for half in ("", "_half")
        for seed in seeds
    ]
    candidates.append(
        {"selection": "tuning-a", "kind": "searched", "candidate": "s", "loss_1": "0"}
    )
    losses = opinions.first_losses(candidates, "tuning")
    assert losses == {n: pytest.approx(1 - s / 10) for n, s in zip(networks, skips, strict=True)}
    assert opinions.first_losses(candidates, "reported") == {}

    class Search:
        logits = None
        steps = (40, 60)

        def checkpoints(self, folder):
            assert folder == tmp_path / "tuning-a" / "checkpoints"
            return self

        def restore(self, step):
            alpha = wanted if step == 40 else -wanted
            self.logits = (alpha, np.zeros((12, 4, 3)))

    monkeypatch.setattr(searcher, "restored", lambda run, **places: (Search(), None, None))
    found = list(opinions.agreement(tmp_path / "tuning-a", losses))
    assert [(row["step"], row["networks"]) for row in found] == [(40, 6), (60, 6)]
    assert [float(row["tau_cell"]) for row in found] == [1.0, -1.0]
    assert all(float(row["p_cell"]) < 0.05 for row in found) and found[0]["search"] == "tuning-a"


@pytest.mark.parametrize("stage", ["agreement", "signal"])
def test_each_search_is_asked_once(monkeypatch, tmp_path, stage):
    drawn = {"selection": "tuning-random-8", "kind": "random", "candidate": "random-3", "loss_1": 1}
    rows.write(tmp_path / "candidates.csv", [drawn])
    asked = []

    def agreement(run_dir, losses, **places):
        assert losses == {random_architecture(3): 1.0}
        asked.append(run_dir.name)
        yield {"search": run_dir.name, "step": 20}

    def gradients(run_dir, batches, **places):
        asked.append(run_dir.name)
        return [{"step": batches}]

    monkeypatch.setattr(opinions, "agreement", agreement)
    monkeypatch.setattr(search_signal, "rows", gradients)
    # A selection has no checkpoints, a search that runs no architecture; of the reported split no
    # random network has a loss.
    for name in ("tuning-a", "tuning-b", "reported-0"):
        _ended_search(tmp_path / "work" / "searches" / name)
    (tmp_path / "work" / "searches" / "tuning-c" / "checkpoints").mkdir(parents=True)
    (tmp_path / "work" / "searches" / "tuning-a-8").mkdir()
    random_architecture(0, 3, 2).save(tmp_path / "work/searches/tuning-a-8/architecture.json")
    (tmp_path / "data" / "trainannot").mkdir(parents=True)
    (tmp_path / "data" / "train").mkdir()
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        _command(monkeypatch, tmp_path / "results.csv", tmp_path / "work", f"--stage={stage}")
    assert asked == ["tuning-a", "tuning-b", *["reported-0"] * (stage == "signal")]
    assert [row["search"] for row in rows.read(tmp_path / f"{stage}.csv")] == asked


def test_a_prediction_is_taught_by_some_networks_and_asked_of_the_others():
    """One split's losses follow a count that the regression sees, the other's are noise."""
    rng = np.random.default_rng(0)
    candidates = []
    for split_name, seed in itertools.product(("tuning", "reported"), range(60)):
        network = random_architecture(seed)
        skips = trainings.operations_of_kind(network, "skip")
        loss = 1 - skips / 10 if split_name == "tuning" else rng.normal()
        row = {"selection": f"{split_name}-random-1800", "kind": "random"}
        row |= {"candidate": f"random-{seed}", "loss_1": str(loss)}
        candidates.append(row | {"filter_multiplier": "18", "params": "1000000"})
    text = opinions.prediction(candidates, "tuning")
    assert text.startswith("Prediction, tuning split, 60 random networks:")
    assert float(text.split()[-3]) > 0.9 and text.endswith(" from 16")
    assert abs(float(opinions.prediction(candidates, "reported").split()[-3])) < 0.2
    assert opinions.prediction(candidates[:18], "tuning") == ""
    # A network that two selections have counts once.
    twice = [row | {"selection": "tuning-again"} for row in candidates[:18]]
    assert opinions.prediction(candidates[:18] + twice, "tuning") == ""


def test_proposals_are_compared_by_who_made_them():
    rows = [
        {"selection": f"reported-{number}-1800", "kind": kind, "candidate": name, "loss_1": loss}
        for number, kind, name, loss in (
            (0, "searched", "search-0-sample-1000", "0.5"),
            (0, "searched", "search-0-path-1", "0.9"),
            (1, "searched", "search-0-sample-2000", "0.7"),
            (1, "predicted", "predicted-1-search-0-sample-7", "0.25"),
        )
    ]
    lines = [line.split() for line in records.proposals(rows).splitlines()[1:]]
    assert lines == [
        ["reported", "predicted", "draw", "1", "0.250", "(0.000)", "0.250"],
        ["reported", "searched", "draw", "2", "0.600", "(0.100)", "0.500"],
        ["reported", "searched", "path", "1", "0.900", "(0.000)", "0.900"],
    ]


def test_report_without_rows_claims_nothing():
    assert "shown" not in report.report([])
    assert "searched (" not in report.report(_population(0.6)[:20])


def test_what_is_committed_can_be_reported():
    folder = pathlib.Path(report.__file__).parent
    text = report.report(rows.read(folder / "results.csv"))
    assert "Kendall's tau with the final mIoU, reported split" in text


def test_bootstrap_brackets_the_score_and_narrows_with_images():
    generator = np.random.default_rng(0)
    matrices = generator.integers(0, 50, (40, 3, 3)) + 100 * np.eye(3, dtype=int)
    widths = []
    for images in (matrices[:5], matrices):
        low, high = trainings.bootstrap(images)
        assert low < metrics.scores(images.sum(0))["miou"] < high
        widths.append(high - low)
    assert widths[1] < widths[0]
    # Images that are all alike: no matter which are drawn.
    assert np.ptp(trainings.bootstrap(matrices[[0] * 7])) < 1e-12


@pytest.mark.usefixtures("one_tuning_frame")
def test_tuning_holds_back_frames_and_pending_trainings_have_no_row(tmp_path):
    for kind, suffix in (("train", ".jpg"), ("trainannot", ".png")):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for name in ("0001TP_1", "0016E5_1", "0016E5_2", "0016E5_3"):
            (tmp_path / "data" / kind / (name + suffix)).write_text(name)
    for _ in range(2):
        folder = trainings.split_folder("tuning", tmp_path / "data", tmp_path / "work")
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*_*.*"))
    train = [
        f"{kind}/{name}.{suffix}"
        for kind, suffix in (("train", "jpg"), ("trainannot", "png"))
        for name in ("0001TP_1", "0016E5_3")
    ]
    assert files == [*train, "val/0016E5_1.jpg", "valannot/0016E5_1.png"]
    assert trainings.split_folder("reported", tmp_path / "data", tmp_path) == tmp_path / "data"

    one, two = (
        trainings.Training("trial", "random_0", "tuning", random_architecture(0), seed, 600)
        for seed in (0, 1)
    )
    done = _row("trial", "random_0", 0, 0.5, "tuning")
    assert trainings.pending([one, two], [done]) == [two]
    assert trainings.pending([one, two], [done | {"steps": "1800"}]) == [one, two]


def test_depth_of_a_cell_counts_blocks_in_a_row():
    edges = [("prev", "prev_prev"), ("prev", "block_0"), ("prev", "block_1"), ("prev", "block_0")]
    cell = tuple(tuple(Edge(s, "sep_3x3") for s in pair) for pair in edges)
    assert trainings.cell_depth(Architecture((0,), cell, "separable")) == 3


def test_the_shortest_chain_of_a_cell_counts_convolutions():
    blocks = [
        (("prev", "sep_5x5"), ("prev_prev", "atrous_3x3")),  # 2 and 1
        (("block_0", "skip"), ("prev", "atrous_5x5")),  # 2, what block_0 has at most, and 1
        (("block_1", "max_pool_3x3"), ("block_0", "sep_3x3")),  # 2 and 4
    ]
    cell = tuple(tuple(Edge(*edge) for edge in block) for block in blocks)
    chain = trainings.shortest_chain(Architecture((0,), cell, "separable"))
    assert chain == pytest.approx((1 + 1 + 2) / 3)


def test_operations_are_counted_by_their_kind():
    operations = [("skip", "max_pool_3x3"), ("avg_pool_3x3", "atrous_3x3"), ("skip", "skip")]
    cell = tuple((Edge("prev", a), Edge("prev_prev", b)) for a, b in operations)
    architecture = Architecture((0,), cell, "separable")
    counted = [trainings.operations_of_kind(architecture, kind) for kind in ("skip", "pool")]
    assert counted == [3, 2]


def test_a_row_s_command_names_no_folder_of_this_machine():
    command = ["python", "--data_dir=/a b/data", "--cache_dir=/a b/runs/cache"]
    places = {"WORK": pathlib.Path("/a b/runs"), "DATA": pathlib.Path("/a b/data")}
    assert trainings._portable(command, places) == "python --data_dir=DATA --cache_dir=WORK/cache"


def test_a_failing_command_is_named_and_its_seconds_add_up(tmp_path):
    log = tmp_path / "a.seconds"
    spin = ["python", "-c", "import time\nwhile time.process_time() < 0.3: pass"]
    first = trainings.run(spin, log, 0)
    assert trainings.run(spin, log, None) >= first + 0.3 >= 0.6
    with pytest.raises(RuntimeError, match=r"sys.exit\(3\).* 3:\nsay"):
        trainings.run(["python", "-c", "print('say', flush=True); import sys; sys.exit(3)"], log, 0)


def test_methods_run_a_command_once_and_read_what_it_chose(tmp_path, monkeypatch):
    commands = []

    def run(command, log, core):
        commands.append(command)
        folder = log.with_suffix("")
        folder.mkdir()
        random_architecture(int("select" in command[2]), 3, 2).save(folder / "architecture.json")
        return 100.0

    monkeypatch.setattr(methods.trainings, "run", run)
    folders = methods.Folders("reported", tmp_path / "data", tmp_path / "work")
    for _ in range(2):
        found = methods.searched(2, 600, folders, 0)
        assert found == methods.Found(random_architecture(1, 3, 2), 200.0)
    search, select = commands
    assert "--seed=2" in search and "--seed=2" not in select
    run_dir = next(flag for flag in search if flag.startswith("--run_dir=")).partition("=")[2]
    assert f"--search_runs={run_dir}" in select
    chosen = cli.parse(config.SelectConfig, select[3:])
    candidates = chosen.paths_per_search + chosen.samples_per_search + sum(chosen.num_predicted)
    assert candidates + methods.DRAWS_OF_SEARCH == methods.DRAWS and chosen.num_random == 0
    recipe = cli.parse(
        config.TrainConfig,
        [
            next(f for f in select if "train_flagfile" in f).replace("train_", "", 1),
            "--architecture=auto_deeplab",
            "--run_dir=r",
        ],
    )
    assert (recipe.steps, recipe.steps_per_epoch, recipe.stem_channels) == (600, 75, (12, 12, 24))
    settings = cli.parse(config.SearchConfig, search[3:])
    assert (settings.optimizer, settings.epochs) == ("adam", 30)

    methods.random_search(0, 600, folders, 0)
    methods.random_search(1, 600, folders, 0)
    methods.predicted(1, 600, folders, 0)
    one, other, predicted = (cli.parse(config.SelectConfig, c[3:]) for c in commands[2:])
    assert one.num_random == other.num_random == methods.DRAWS and one.num_predicted is None
    assert one.random_seed != other.random_seed == predicted.random_seed
    assert predicted.num_random + sum(predicted.num_predicted) == methods.DRAWS


def _command(monkeypatch, results, work_dir, *flags):
    arguments = ["--data_dir=data", f"--work_dir={work_dir}", f"--results={results}", *flags]
    monkeypatch.setattr(sys, "argv", ["search_quality", *arguments])
    search_quality.main()


def test_one_command_runs_all_stages_until_one_fails(monkeypatch, tmp_path):
    """In the order that the module's docstring has them in."""
    commands = []

    def run(command, check):
        commands.append(command)
        return types.SimpleNamespace(returncode=3 * (command[-1] == "--stage=scenes"))

    monkeypatch.setattr(search_quality.subprocess, "run", run)
    with pytest.raises(SystemExit, match="3"):
        _command(monkeypatch, tmp_path / "results.csv", tmp_path, "--cores=0,1")
    described = re.findall(r"^- (\w+):", search_quality.__doc__, re.MULTILINE)
    assert list(search_quality.STAGES) == described
    begun = described[: described.index("scenes") + 1]
    assert [command[-1] for command in commands] == [f"--stage={stage}" for stage in begun]
    for command in commands:
        assert command[1:3] == ["-m", "benchmarks.search_quality"] and "--cores=0,1" in command


def test_what_a_method_found_is_kept_for_other_machines(tmp_path, monkeypatch):
    """Killed after the first of its trainings; the next machine has another work folder."""
    asked, trained = [], []

    def found(number, steps, folders, core):
        asked.append((number, steps, core))
        provenance = {"search": {"run_dir": str(folders.work)}, "select": {"candidate": "a"}}
        architecture = random_architecture(number, 3, 2)
        return methods.Found(dataclasses.replace(architecture, provenance=provenance), 10.5)

    def train(training, data_dir, work_dir, core):
        trained.append(training)
        if len(trained) == 2:
            raise InterruptedError
        row = {name: getattr(training, name) for name in trainings._KEY}
        return row | {"command": len(trained), "val_miou": 0.5}

    monkeypatch.setattr(methods, "random_search", found)
    monkeypatch.setattr(search_quality, "train", train)
    results = tmp_path / "results.csv"
    flags = ["--stage=random_search", "--steps=1800", "--cores=1", "--numbers=2,0"]
    with pytest.raises(InterruptedError):
        _command(monkeypatch, results, tmp_path / "one", *flags)
    _command(monkeypatch, results, tmp_path / "other", *flags)
    assert asked == [(2, 1800, 1), (0, 1800, 1)]
    pairs = {(row["name"], row["seed"]) for row in rows.read(results)}
    assert pairs == {(f"random_search_{n}", str(seed)) for n in (0, 2) for seed in range(3)}
    for training in trained:
        assert training.search_seconds == 10 and training.split == "reported"
        assert training.architecture == random_architecture(int(training.name[-1]), 3, 2)
        # Nothing of this machine's folders.
        assert training.architecture.provenance == {"select": {"candidate": "a"}}

    more = [_row("random", "random_7", 0, 0.5), _row("published", "auto_deeplab", 0, 0.5)]
    rows.write(results, [*rows.read(results), *more])
    _ended_search(tmp_path / "other" / "searches" / "reported-0")
    seen = {}
    monkeypatch.setattr(
        opinions, "of_search", lambda run_dir, networks, **places: seen.update(networks) or []
    )
    _command(monkeypatch, results, tmp_path / "other", "--stage=opinions")
    assert seen == {
        "random_search_2": random_architecture(2, 3, 2),
        "random_search_0": random_architecture(0, 3, 2),
        "random_7": random_architecture(7),
        "auto_deeplab": Architecture.preset("auto_deeplab"),
    }


def test_records_keep_what_other_machines_wrote(tmp_path, monkeypatch):
    old = [
        {"search": name, "step": step} for name in ("tuning-none", "tuning-new") for step in "12"
    ]
    rows.write(tmp_path / "searches.csv", old)
    rows.write(tmp_path / "candidates.csv", [{"selection": "tuning-random", "candidate": "a"}])
    search = tmp_path / "work" / "searches" / "tuning-new"
    search.mkdir(parents=True)
    random_architecture(0, 3, 2).save(search / "architecture.json")
    (search / "metrics.csv").write_text("step\n3\n")
    for _ in range(2):
        results = tmp_path / "results.csv"
        _command(monkeypatch, results, tmp_path / "work", "--stage=records")
        searches = [(row["search"], row["step"]) for row in rows.read(tmp_path / "searches.csv")]
        assert searches == [("tuning-new", "3"), ("tuning-none", "1"), ("tuning-none", "2")]
        assert [row["candidate"] for row in rows.read(tmp_path / "candidates.csv")] == ["a"]


def test_levers_are_pulled_once_beside_draws(tmp_path, monkeypatch):
    """A search has two draws and a path here."""
    commands = []

    def run(command, log, core):
        commands.append(command)
        folder = log.with_suffix("")
        folder.mkdir()
        if "search" in command[2]:
            row = "alpha_entropy,beta_entropy,val_miou,val_decoded_miou\n2.0,0.8,0.3,0.2\n"
            (folder / "metrics.csv").write_text(row)
            return 50.0
        budget = cli.parse(config.SelectConfig, command[3:]).max_multi_adds
        assert budget in (population.MULTI_ADDS, population.MULTI_ADDS // 2)
        loss = 0.9 if budget < population.MULTI_ADDS else 0.8
        names = ["search-0-path-1"] if "--paths_per_search=1" in command else []
        names = names * any("search_runs" in flag for flag in command) + ["a-1", "a-2"]
        lines = [f"{name},random,{loss + 0.1 * n},{10 + n},7" for n, name in enumerate(names)]
        if "--num_predicted=8" in command:
            lines += ["b-1,predicted,0.7,20,7", "b-2,predicted,0.72,20,7"]
        (folder / "candidates.csv").write_text(
            "\n".join(["candidate,kind,loss_1,filter_multiplier,cpu_seconds", *lines])
        )
        return 10.0

    monkeypatch.setattr(methods.trainings, "run", run)
    folders = methods.Folders("reported", tmp_path / "data", tmp_path / "work")
    found = list(levers.left([], folders, 1800, 0))
    by_name = {row["lever"]: row for row in found}
    assert list(by_name) == [*levers.DRAWN, *levers.LEVERS]
    predicted = by_name["predicted"]
    assert predicted["loss"] == pytest.approx(0.71) and predicted["seconds"] == 4 * 7
    assert by_name["random"]["loss"] == pytest.approx(0.85)
    assert by_name["random_half"]["loss"] == pytest.approx(0.95)
    none = by_name["none"]
    assert none["decoded_loss"] == pytest.approx(0.8) and none["decoded_filter_multiplier"] == 10
    assert none["loss"] == pytest.approx(0.95) and none["filter_multiplier"] == 11.5
    assert none["loss_deviation"] == pytest.approx(0.1 / np.sqrt(2))
    assert (none["seconds"], none["alpha_entropy"]) == (50, "2.0")
    searches = [command for command in commands if "search" in command[2]]
    for command in searches:
        assert "--seed=100" in command
        cli.parse(config.SearchConfig, command[3:])
    assert "--optimizer=adam" in searches[list(levers.LEVERS).index("adam")]

    done = [{key: str(value) for key, value in row.items()} for row in found[:4]]
    again = list(levers.left(done, folders, 1800, 0))
    assert [row["lever"] for row in again] == list(levers.LEVERS)[1:]


def _ended_search(folder):
    (folder / "checkpoints").mkdir(parents=True)
    random_architecture(0, 3, 2).save(folder / "architecture.json")


def test_cost_weights_are_searched_once_each(tmp_path, monkeypatch):
    searched = []

    def run(command, log, core):
        settings = cli.parse(config.SearchConfig, command[3:])
        searched.append(settings.cost_weight)
        run_dir = pathlib.Path(settings.run_dir)
        run_dir.mkdir(parents=True)
        columns = dict.fromkeys(cost_weights.SEEN, "1") | {"expected_cost": str(9 - len(searched))}
        text = ",".join(columns) + "\n" + ",".join(columns.values()) + "\n"
        (run_dir / "metrics.csv").write_text(text)
        random_architecture(0, settings.num_layers, settings.num_blocks).save(
            run_dir / "architecture.json"
        )
        return 7.0

    monkeypatch.setattr(trainings, "run", run)
    monkeypatch.setattr(trainings, "split_folder", lambda *_: tmp_path / "data")
    folders = methods.Folders("tuning", tmp_path / "data", tmp_path / "work")
    found = list(cost_weights.left([{"cost_weight": "0.1"}], folders, 0))
    assert searched == [row["cost_weight"] for row in found] == [0.0, 0.03, 0.3, 1.0]
    assert [row["expected_cost"] for row in found] == ["8", "7", "6", "5"]
    counted = accounting.count(
        random_architecture(0, 6, 3), filter_multiplier=8, **population.SETTINGS
    )
    assert {row["decoded_multi_adds"] for row in found} == {counted.multi_adds}


def test_stems_and_heads_are_trained_at_equal_cost(tmp_path, monkeypatch):
    planned = ends.trainings()
    assert len({training.key for training in planned}) == len(planned) == 36
    for training in planned[:12]:
        cost = population.cost(training.architecture, training.design)
        assert abs(cost["multi_adds"] / training.design.multi_adds - 1) < 0.08
    commands = []

    def run(command, log, core):
        commands.append(command)
        folder = log.with_suffix("")
        folder.mkdir()
        epochs = "".join(f"{1 / (1 + epoch)},0.{epoch}\n" for epoch in range(trainings.PARTS))
        (folder / "metrics.csv").write_text(f"loss,val_miou\n{epochs}")
        np.save(folder / "confusion.npy", np.eye(3, dtype=int)[None])
        return 5.0

    monkeypatch.setattr(trainings, "run", run)
    monkeypatch.setattr(trainings, "split_folder", lambda split, data, work: data)
    row = trainings.train(planned[2], tmp_path, tmp_path, 0)
    trainings.train(dataclasses.replace(planned[2], split="scenes"), tmp_path, tmp_path, 0)
    assert (row["stem_channels"], row["head_channels"]) == ("8,8,16", "16")
    assert row["val_miou"] == "0.7000"
    monkeypatch.chdir(pathlib.Path(trainings.__file__).parents[2])
    config_of = cli.parse(config.TrainConfig, commands[0][3:])
    assert config_of.stem_channels == (8, 8, 16) and config_of.decoder_channels == 8
    assert config_of.filter_multiplier == row["filter_multiplier"]
    assert (config_of.dataset, config_of.data_dir) == ("camvid", str(tmp_path))
    on_scenes = cli.parse(config.TrainConfig, commands[1][3:])
    assert (on_scenes.dataset, on_scenes.data_dir) == ("scenes", None)
    assert on_scenes.image_size == on_scenes.crop_size == (64, 128)


def test_pixels_are_counted_of_each_image_of_a_run(tmp_path):
    data = tiny_camvid.write(tmp_path / "CamVid", {"train": 1, "val": 3})
    settings = config.TrainConfig(
        architecture="auto_deeplab",
        run_dir=str(tmp_path),
        dataset="camvid",
        data_dir=str(data),
        cache_dir=str(tmp_path / "cache"),
        image_size=tiny_camvid.SIZE,
    )
    (tmp_path / "flags.txt").write_text(config.flags_text(settings))
    network = build_network(random_architecture(0, 2, 1), 11, 1, head_channels=4)
    Segmenter(network).save(tmp_path / "last.keras")
    image_matrices.main(str(tmp_path), str(tmp_path / "confusion.npy"))
    matrices = np.load(tmp_path / "confusion.npy")
    assert matrices.shape == (3, 11, 11)
    for index, matrix in enumerate(matrices):
        label = np.array(Image.open(data / "valannot" / f"0016E5_{index:05d}.png"))
        of_class = np.bincount(label.ravel(), minlength=12)[:11]
        np.testing.assert_array_equal(matrix.sum(1), of_class)


def test_the_second_set_repeats_what_the_reported_split_has(tmp_path, monkeypatch):
    """Not the random networks from the eleventh on, and no network of the tuning split."""
    results = tmp_path / "results.csv"
    reported = [_row("random", f"random_{n}", 0, 0.4 + n / 100) for n in range(12)]
    found = [_row("searched", "searched_0", seed, 0.6 + seed / 100) for seed in range(3)]
    rows.write(results, [*reported, *found, _row("trial", "random_100", 0, 0.3, "tuning")])
    methods.Found(random_architecture(5, 3, 2), 1.0).save(tmp_path / "found" / "searched_0.json")
    trained = []

    def train(training, data_dir, work_dir, core):
        trained.append(training)
        miou = 0.9 if training.kind == "searched" else 0.5 - int(training.name[-1]) / 100
        return _row(training.kind, training.name, training.seed, miou, training.split)

    monkeypatch.setattr(search_quality, "train", train)
    for _ in range(2):
        _command(monkeypatch, results, tmp_path, "--stage=scenes", "--steps=600")
    names = [f"random_{n}" for n in range(10)]
    assert sorted(training.name for training in trained) == [*names, "searched_0"]
    assert {(training.split, training.seed) for training in trained} == {("scenes", 0)}
    assert trained[-1].architecture == random_architecture(5, 3, 2)

    text = report.report(rows.read(results))
    # One of 11 networks is first on both sets, the others are in the opposite order.
    assert f"scenes, 11 networks: tau with the reported split {(10 - 45) / 55:.2f} (p " in text
    assert "searched (1) among random (10): percentile 100" in text
    assert "scenes, 2 networks" not in report.report(rows.read(results)[-2:])

    # One seed of each of three networks is all that is planned here: a percentile is decided, a
    # difference in deviations of seeds cannot be.
    others = [
        _row(kind, f"{kind}_{n}", 0, 0.9, "scenes")
        for kind, numbers in (("searched", (1, 2)), ("random_search", range(3)))
        for n in numbers
    ]
    text = report.report([*rows.read(results), *others]).partition("Generated scenes")[2]
    assert "searched (3) among random (10): percentile 100, 95 % interval 100 to 100: shown" in text
    assert re.search(r"searched minus random search \+0.0000.*no network has two\)$", text, re.M)


def _ends_rows(miou):
    """Rows of all trainings but one: the last architecture is not complete."""
    return [
        {
            "architecture": training.architecture.fingerprint,
            "name": training.name,
            "multi_adds": str(training.design.multi_adds),
            "val_miou": str(miou(training.design)),
            **training.design.flags,
        }
        for training in ends.trainings()[:-1]
    ]


def test_report_compares_stems_and_heads_at_equal_cost_and_latency():
    def miou(design):
        return design.multi_adds / 1e9 + design.stem_channels[0] / 100

    rows = _ends_rows(miou)
    text = ends.report(rows)
    assert "2 architectures" in text.splitlines()[0]
    assert "stem 8,8,16    head 16 decoder  8    80 M 0.160   160 M 0.240" in text
    assert " ms" not in text
    assert text.count("-0.0400 (0.0000)") == 1 and text.count("+0.0400 (0.0000)") == 1

    def milliseconds(row):
        """1 ms for 40 M, and 1 ms for each 8 filters of the stem's first convolution."""
        return int(row["multi_adds"]) / 40e6 + int(row["stem_channels"].split(",")[0]) / 8

    timed = [row | {latency.COLUMN: str(milliseconds(row))} for row in rows]
    lines = ends.report(timed).splitlines()
    assert "at a latency of 4.50 ms" in lines[0]
    assert lines[1].endswith(" 0.240") and lines[2].endswith(" 0.220") and len(lines) == 7
    assert ends.report(rows[:11]) == ""


def test_latency_is_measured_of_each_network_once(monkeypatch, tmp_path):
    monkeypatch.setattr(latency, "ROUNDS", 1)
    monkeypatch.setattr(latency, "CALLS", 2)
    built = []
    forward = latency._forward

    def counted(architecture, design, image):
        built.append(design)
        return forward(architecture, design, image)

    monkeypatch.setattr(latency, "_forward", counted)
    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", lambda n: None)
    monkeypatch.setattr(tf.config.threading, "set_inter_op_parallelism_threads", lambda n: None)
    of_ends = _ends_rows(lambda design: 0.5)[1:2]
    rows.write(tmp_path / "ends.csv", of_ends)
    rows.write(tmp_path / "results.csv", [_row("random", "random_3", seed, 0.5) for seed in (0, 1)])
    for _ in range(2):
        _command(monkeypatch, tmp_path / "results.csv", tmp_path, "--stage=latencies")
    assert built == [ends.trainings()[1].design, population.DESIGN]
    for file in ("ends.csv", "results.csv"):
        assert all(float(row["latency_ms"]) > 0 for row in rows.read(tmp_path / file))


def test_records_of_searches_and_selections_are_tables_and_figures(tmp_path):
    search = tmp_path / "searches" / "tuning-none"
    selected = tmp_path / "searches" / "tuning-random-1800"
    for folder in (search, selected / "candidates"):
        folder.mkdir(parents=True)
    (search / "metrics.csv").write_text(
        "epoch,step,loss,alpha_entropy,val_miou,val_decoded_miou\n0,20,1.5,2.07,,\n"
        "1,40,1.2,2.05,0.3,0.1\n"
    )
    random_architecture(0, 3, 2).save(selected / "candidates" / "random-0.json")
    (selected / "candidates.csv").write_text("candidate,kind,loss_1\nrandom-0,random,0.7\n")
    assert records.searches(tmp_path) == records.candidates(tmp_path) == []
    for folder in (search, selected):
        random_architecture(0, 3, 2).save(folder / "architecture.json")
    epochs, candidates = records.searches(tmp_path), records.candidates(tmp_path)
    assert [(row["search"], row["step"], row["val_miou"]) for row in epochs] == [
        ("tuning-none", "20", ""),
        ("tuning-none", "40", "0.3"),
    ]
    (candidate,) = candidates
    assert (candidate["selection"], candidate["loss_1"]) == ("tuning-random-1800", "0.7")
    chain = trainings.shortest_chain(random_architecture(0, 3, 2))
    assert float(candidate["shortest_chain"]) == pytest.approx(chain)
    agreement = [{"search": "tuning-none", "step": "40", "tau_cell": "0.3", "tau_path": "0.1"}]
    measured = dict.fromkeys(("signal", "noise", "persistence", "halves"), "0.5")
    signal = {f"{of}_{name}": value for of in ("alpha", "beta") for name, value in measured.items()}
    signals = [
        {"search": search, "step": step} | signal
        for search in ("reported-0", "reported-1")
        for step in ("40", "60")
    ]
    # Without its measures, this one of another split could not be drawn.
    signals.append({"search": "tuning-none", "step": "60", "alpha_persistence": "0.5"})
    records.draw(_population(0.6), epochs, candidates, agreement, signals, tmp_path)
    words = {
        "searches": "tuning-none, path",
        "signal": "noise alone",
        "proposals": "random-1800",
        "ranks": "searched",
    }
    for name, word in words.items():
        assert word in (tmp_path / f"evidence_{name}.svg").read_text()
