"""The page of measurements and the tables it is made from; the roofline."""

from benchmarks import page, roofline
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
