"""The page of measurements and the tables it is made from; the roofline."""

import tensorflow as tf

from benchmarks import page, roofline, search_profile
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


def test_a_profile_finds_the_operations_that_ran():
    images, kernel = tf.ones([1, 8, 8, 3]), tf.ones([3, 3, 3, 2])
    convolve = tf.function(lambda: tf.nn.depthwise_conv2d(images, kernel, [1] * 4, "SAME"))
    convolve()
    kinds = {}
    for name, (seconds, count) in search_profile.profiled(convolve).items():
        assert seconds >= 0
        kinds[search_profile.kind_of(name)] = kinds.get(search_profile.kind_of(name), 0) + count
    assert kinds["depthwise convolution"] == 1
