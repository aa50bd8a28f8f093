"""The signs of a collapse: each appears at its threshold and not before, and once in the log."""

import math
import types

import numpy as np
import pytest

from auto_deeplab_tf.decoding import alpha_entropy
from auto_deeplab_tf.training import collapse

EPOCHS, START = 40, 10


def cell(*operations):
    """The text of metrics.csv, two operations a block."""
    edges = [f"{operation}(prev)" for operation in operations]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return " | ".join(" + ".join(pair) for pair in pairs)


def row(epoch, **values):
    healthy = {
        "alpha_entropy": "1.2",
        "beta_entropy": "0.7",
        "levels": "0-1-1-2",
        "cell": cell(*["sep_3x3", "skip", "max_pool_3x3", "atrous_3x3", "none"] * 2),
        "val_miou": "0.3",
    }
    return {"epoch": str(epoch), **healthy, **values}


def names(*rows):
    return [sign.name for sign in collapse.signs(rows, EPOCHS, START)]


def test_a_healthy_search_has_no_sign():
    assert names(*(row(epoch) for epoch in range(EPOCHS))) == []


@pytest.mark.parametrize(
    ("operations", "expected"),
    [
        (["skip"] * 4 + ["sep_3x3"] * 6, []),
        (["skip"] * 5 + ["sep_3x3"] * 5, ["skip_takes_over"]),
        (["max_pool_3x3"] * 4 + ["avg_pool_3x3"] * 3 + ["sep_3x3"] * 3, []),
        (
            ["max_pool_3x3"] * 4 + ["avg_pool_3x3"] * 2 + ["skip"] * 2 + ["sep_5x5"] * 2,
            ["without_parameters_takes_over"],
        ),
        (["skip"] * 10, ["skip_takes_over", "without_parameters_takes_over"]),
        # Of two operations a uniform draw has two skips too often to mean anything.
        (["skip"] * 2, []),
    ],
)
def test_skip_and_pooling_take_over_where_a_random_cell_rarely_has_as_many(operations, expected):
    assert names(row(START, cell=cell(*operations))) == expected
    assert names(row(START - 1, cell=cell(*operations))) == [], "alpha has not begun"


def test_beta_is_saturated_early_only():
    early, late = START + 14, START + 15
    assert names(row(early, beta_entropy="0.08")) == ["beta_saturated"]
    assert names(row(late, beta_entropy="0.08")) == []
    assert names(row(early, beta_entropy="0.12")) == []


def test_alpha_must_have_moved_after_a_third_of_its_epochs():
    uniform = math.log(8)
    assert names(row(START + 8, alpha_entropy=str(uniform))) == []
    assert names(row(START + 9, alpha_entropy=str(uniform))) == ["alpha_undecided"]
    assert names(row(START + 9, alpha_entropy=repr(0.992 * uniform))) == ["alpha_undecided"]
    assert names(row(START + 9, alpha_entropy=repr(0.988 * uniform))) == []


def test_the_threshold_of_alpha_is_a_deviation_of_its_logits_of_a_fifth():
    logits = np.random.default_rng(0).normal(0, 0.2, (1890, 8))  # 60 blocks
    assert (1 - alpha_entropy(logits) / math.log(8)) == pytest.approx(collapse.ALPHA_MOVED, rel=0.2)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ((0.3, 0.2, 0.2, 0.2), ["supernet_falls"]),
        ((0.3, 0.2, "", 0.2, "", 0.2), ["supernet_falls"]),
        ((0.3, 0.2, 0.2), []),
        ((0.3, 0.2, 0.25, 0.2), []),
        ((0.3, 0.2, 0.2, 0.2, 0.29), []),
        ((0.1, 0.2, 0.2, 0.2), []),
    ],
)
def test_the_supernet_falls_where_all_last_validations_are_far_below_the_best(scores, expected):
    rows = [row(epoch, val_miou=str(score)) for epoch, score in enumerate(scores)]
    assert names(*rows) == expected


def test_a_sign_is_printed_once_logged_always_and_stops_where_told(capsys):
    skips = cell(*["skip"] * 6, *["sep_3x3"] * 4)
    for stop in (False, True):
        earlier = [row(epoch) for epoch in range(START + 2)]
        watch = collapse.CollapseWatch(EPOCHS, START, earlier, stop=stop)
        watch.set_model(types.SimpleNamespace(stop_training=False))
        for epoch in (START, START + 1, START + 2):  # the first two are repeated
            logs = row(epoch, cell=skips if epoch > START else earlier[0]["cell"])
            watch.on_epoch_end(epoch, logs)
            assert logs.get("collapse") == ("skip_takes_over" if epoch > START else None)
            assert watch.model.stop_training == (stop and epoch > START)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and "6 of the 10 operations" in lines[0]
