"""Signal to noise and persistence of gradients: on made-up gradients, and on a small search."""

import csv
import json

import forked
import numpy as np
import pytest
import tiny_camvid
from commands import run

from benchmarks import search_signal


def test_noise_has_the_signal_that_noise_has_and_nothing_lasts():
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(40, 5000)) * rng.uniform(0.1, 9, 5000) for _ in range(2))
    found = search_signal.measure(first, second.mean(axis=0), rng.normal(size=5000), 0.0)
    # The median of a half-normal is 0.845 of its mean.
    assert found["signal"] == pytest.approx(0.845 * found["noise"], rel=0.05)
    for name in ("halves", "persistence", "onward"):
        assert abs(found[name]) < 0.05
    assert found["held"] == found["onward"]


def test_a_constant_gradient_is_found_and_one_that_turns_does_not_persist():
    rng = np.random.default_rng(0)
    direction = rng.normal(size=200)
    gradients = direction + 0.5 * rng.normal(size=(40, 200))
    found = search_signal.measure(gradients, direction, -direction, 0.5)
    assert found["signal"] == pytest.approx(0.675 / 0.5, rel=0.2)
    assert found["halves"] > 0.95 and found["persistence"] > 0.95
    assert search_signal.measure(gradients, -direction, direction, 0.0)["persistence"] < -0.95
    assert search_signal.measure(gradients, None, direction, 0.0)["persistence"] is None


def test_decay_holds_the_logits_where_it_is_as_strong_as_the_gradient():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=200)
    gradients = -0.001 * logits + 1e-4 * rng.normal(size=(40, 200))
    free, balanced, stronger = (
        search_signal.measure(gradients, None, logits, decay) for decay in (0.0, 0.001, 0.002)
    )
    assert free["onward"] == free["held"] == balanced["onward"] > 0.95
    assert abs(balanced["held"]) < 0.3 and stronger["held"] < -0.95


def test_only_moves_that_can_be_learnt_count():
    mask = search_signal.identified_entries(3)
    assert not mask[0].any(), "all moves out of the stem lead to nodes with one predecessor"
    assert mask[2, 1].all() and not mask[2, 0, 0], "a move that leaves the trellis"


@pytest.mark.slow
def test_a_search_is_measured_at_its_checkpoints(tmp_path):
    path = tmp_path / "run"
    data = tiny_camvid.write(tmp_path / "CamVid", {"train": 16, "val": 2})
    small = (
        f"--dataset=camvid --data_dir={data} --crop_size=32x40 --batch_size=2 --num_layers=3 "
        "--num_blocks=1 --filter_multiplier=1 --epochs=2 --steps_per_epoch=1 --arch_start_epoch=1 "
        "--validation_images=2 --decoded_batches=0 --progress=none"
    ).split()
    done = run("search", *small, f"--run_dir={path}", f"--cache_dir={tmp_path}/cache")
    assert done.returncode == 0, done.stderr
    table = tmp_path / "signal.csv"
    more = f"--run_dir={path}", "--batches=4", "--json", f"--output={table}"
    done = forked.run("benchmarks.search_signal", *more)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["alpha_persistence"] is None and -1 <= rows[1]["beta_persistence"] <= 1
    assert all(row["alpha_signal"] > 0 for row in rows)
    with open(table, newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2"]
