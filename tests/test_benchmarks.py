"""The page of measurements and the tables it is made from; the roofline."""

import pytest
import tensorflow as tf
from absl import flags

from auto_deeplab_tf.nn.supernet import build_supernet
from benchmarks import (
    cost,
    mixed_precision,
    page,
    roofline,
    run_all,
    scaling,
    search_profile,
    step_flags,
)
from benchmarks.rows import RESULTS, read


def test_the_committed_page_is_what_the_committed_tables_give():
    _, mark, below = page.PAGE.read_text(encoding="utf-8").partition(page.MARK)
    assert mark
    assert below == page.generated()
    assert len(read(RESULTS / "search_step.csv")) > 3


def test_the_committed_roofline_is_what_the_formulation_gives():
    rows = roofline.rows_of_devices()
    assert [{k: str(v) for k, v in row.items()} for row in rows] == read(roofline.PATH)
    for small, large in zip(rows[::2], rows[1::2], strict=True):
        assert abs(large["iteration_ms"] / small["iteration_ms"] - 8) < 0.1
    # The paper took 8.7 s an iteration on a P100.
    assert 10 < rows[0]["iteration_ms"] < 8700


def test_the_committed_estimates_are_what_the_formulation_gives():
    supernet = build_supernet(input_size=roofline.SIZE)
    works = cost.iteration(cost.count(supernet, roofline.SIZE), scaling.IMAGES_PER_DEVICE, False)
    rows = [scaling.row(machine, works, scaling.exchange(supernet)) for machine in scaling.MACHINES]
    assert [{k: str(v) for k, v in row.items()} for row in rows] == read(scaling.PATH)
    assert scaling.PAGE.read_text(encoding="utf-8").endswith(scaling.generated(rows))
    for row in rows:
        assert row["step_ms"] >= row["bound_ms"] + row["all_reduce_ms"]
        assert (row["all_reduce_ms"] > 0) == (row["batch_size"] > 2)


def test_own_seconds_leave_out_what_an_operation_contains_and_what_is_no_operation():
    events = [
        (0, 10 * 10**12, "outer/mul:Mul"),
        (10**12, 4 * 10**12, "inner/conv:_MklNativeConv2D"),
        (2 * 10**12, 10**12, "ParallelFor"),
        (20 * 10**12, 10**12, "again:Mul"),
    ]
    found = search_profile.own_seconds(events)
    assert found == {"Mul": (7.0, 2), "_MklNativeConv2D": (4.0, 1)}


def test_the_account_adds_up_to_the_wall_time():
    found = {"Mul": (0.1, 3), "Conv2D": (0.2, 2), "_MklNativeConv2D": (0.3, 4)}
    assert list(search_profile.account(found, 1.0).items()) == [
        ("convolution", "500 ms in 6 calls"),
        (search_profile.ELEMENTWISE, "100 ms in 3 calls"),
        ("calls", "400 ms"),
    ]


def test_of_several_runs_the_median_is_kept():
    measured = [{"seconds_per_iteration": s, "peak_rss_mib": i} for i, s in enumerate((3, 1, 2))]
    kept = run_all.median(measured)
    assert kept == {"seconds_per_iteration": 2, "peak_rss_mib": 2, "seconds_of_runs": "3 1 2"}
    assert run_all.median(measured[:2])["seconds_per_iteration"] == 1
    nothing_timed = {"seconds_per_iteration": None}
    assert run_all.median([nothing_timed]) == nothing_timed


def test_a_mixed_policy_ends_where_float32_does_if_it_keeps_as_much_as_the_yardstick():
    def row(variant, same_levels, same_edges):
        found = {"variant": variant, "same_levels": str(same_levels)}
        return found | {"same_edges": str(same_edges), "edges": "4"}

    rows = [
        row(mixed_precision.YARDSTICK, True, 2),
        row("mixed_bfloat16", True, 2),
        row("mixed_float16", True, 1),
    ]
    yardstick, as_much, less = mixed_precision.verdicts(rows)
    assert "1 of 1 seeds and 2 of 4 edges" in yardstick and "ends" not in yardstick
    assert "not shown" not in as_much and "it ends where float32 does" in as_much
    assert "not shown that it ends" in less
    fewer_levels = mixed_precision.verdicts([rows[0], row("mixed_bfloat16", False, 4)])[1]
    assert "not shown" in fewer_levels


def test_a_profile_finds_the_operations_that_ran():
    images, kernel = tf.ones([1, 8, 8, 3]), tf.ones([3, 3, 3, 2])
    convolve = tf.function(lambda: tf.nn.depthwise_conv2d(images, kernel, [1] * 4, "SAME"))
    convolve()
    kinds = {}
    for name, (seconds, count) in search_profile.profiled(convolve).items():
        assert seconds >= 0
        kinds[search_profile.kind_of(name)] = kinds.get(search_profile.kind_of(name), 0) + count
    assert kinds["depthwise convolution"] == 1


def test_a_process_gets_the_size_and_the_number_of_iterations_of_the_one_that_starts_it():
    def parsed(*arguments):
        values = flags.FlagValues()
        step_flags.define(batch_size=4, num_layers=4, iterations=5, values=values)
        values(["program", *arguments])
        return {name: values[name].value for name in values if name in step_flags.NAMES}, values

    given = [f"--{name}={number}" for number, name in enumerate(step_flags.NAMES, 40)]
    sizes, values = parsed(*given)
    assert step_flags.arguments(values) == given
    assert parsed(*step_flags.arguments(values))[0] == sizes
    assert parsed()[0]["num_layers"] == 4
    with pytest.raises(flags.IllegalFlagValueError):
        parsed("--iterations=0")
