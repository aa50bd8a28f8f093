"""The page of measurements and the tables it is made from; the roofline."""

import subprocess
import sys

import tensorflow as tf

from benchmarks import mixed_precision, page, roofline, run_all, search_profile, xla
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


MODULE = """HloModule jit_f, is_scheduled=true

%inner (param_0: f32[2,9,9,4]) -> f32[2,9,4,9] {
  %param_0 = f32[2,9,9,4]{3,2,1,0} parameter(0)
  ROOT %transpose.1 = f32[2,9,4,9]{3,2,1,0} transpose(%param_0), dimensions={0,1,3,2}
}

%moves (param_0.1: f32[2,9,9,4]) -> f32[2,9,4,9] {
  %param_0.1 = f32[2,9,9,4]{3,2,1,0} parameter(0)
  ROOT %fusion.9 = f32[2,9,4,9]{3,2,1,0} fusion(%param_0.1), kind=kLoop, calls=%inner
}

%works (param_0.2: f32[2,9,9,4]) -> f32[2,9,4,9] {
  %param_0.2 = f32[2,9,9,4]{3,2,1,0} parameter(0)
  %tanh.1 = f32[2,9,9,4]{3,2,1,0} tanh(%param_0.2)
  ROOT %copy.1 = f32[2,9,4,9]{3,2,1,0} copy(%tanh.1)
}

ENTRY %main (x: f32[2,9,9,4], k: f32[5,4]) -> (f32[2,9,4,9], f32[4,5]) {
  %x = f32[2,9,9,4]{3,2,1,0} parameter(0)
  %k = f32[5,4]{1,0} parameter(1)
  %fusion.1 = f32[2,9,4,9]{3,2,1,0} fusion(%x), kind=kLoop, calls=%moves
  %fusion.2 = f32[2,9,4,9]{3,2,1,0} fusion(%x), kind=kLoop, calls=%works, x={"estimated_cycles":"7"}
  %add.1 = f32[2,9,4,9]{3,2,1,0} add(%fusion.1, %fusion.2)
  %copy.2 = f32[2,9,4,9]{2,3,1,0} copy(%add.1), backend_config={"estimated_cycles":"5"}
  %transpose.2 = f32[4,5]{1,0} transpose(%k), dimensions={1,0}
  ROOT %tuple = (f32[2,9,4,9]{2,3,1,0}, f32[4,5]{1,0}) tuple(%copy.2, %transpose.2)
}
"""


def test_the_account_of_a_module_tells_moves_of_maps_from_work():
    found = xla.account(MODULE, [2 * 9 * 9])
    # Two fusions, the sum, a copy, and the transpose of what is no map.
    assert found == xla.Account(kernels=5, transposes=2, with_transposes=1, cycles=12)
    assert found.plus(found, 3).kernels == 20


def test_maps_are_told_by_their_positions():
    positions = xla.map_positions(2, (65, 129))
    assert 2 * 33 * 65 in positions and 2 * 5 * 9 in positions
    assert min(positions) >= 64


def test_xla_compiles_a_search_without_a_transpose_of_its_own():
    command = [sys.executable, "-m", "benchmarks.xla", "--num_layers=1", "--num_blocks=1"]
    command += ["--filter_multiplier=2", "--crop_size=65", "--functions=forward,architecture"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if "Account" in line]
    assert any("layer_0_level_1 forward" in line for line in lines)
    for line in lines:
        assert "transposes=0, with" in line, line


def test_a_profile_finds_the_operations_that_ran():
    images, kernel = tf.ones([1, 8, 8, 3]), tf.ones([3, 3, 3, 2])
    convolve = tf.function(lambda: tf.nn.depthwise_conv2d(images, kernel, [1] * 4, "SAME"))
    convolve()
    kinds = {}
    for name, (seconds, count) in search_profile.profiled(convolve).items():
        assert seconds >= 0
        kinds[search_profile.kind_of(name)] = kinds.get(search_profile.kind_of(name), 0) + count
    assert kinds["depthwise convolution"] == 1
