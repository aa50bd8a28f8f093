"""docs/model_zoo.md is what the generator gives, from rows that say how they were made."""

from benchmarks import model_zoo, rows


def test_the_page_is_up_to_date():
    """Else: python -m benchmarks.model_zoo."""
    assert model_zoo.PAGE.read_text("utf-8") == model_zoo.page()


def test_rows_fill_their_cells_and_no_others(tmp_path):
    empty = model_zoo.page(tmp_path)
    assert "| 10.15 M | 10.15 M | 317.54 B | 320.45 B | 333.25 B |  |  |  |" in empty
    row = {
        "command": "python -m benchmarks.networks ... --json",
        "network": "auto_deeplab",
        "filter_multiplier": 32,
        "mode": "forward",
        "input_size": "1025x2049",
        "threads": 2,
        "seconds_per_image": 12.345,
        "images_per_second": 0.081,
        "peak_rss_mib": 4321.2,
        "cpu": "a processor",
        "versions": "tensorflow 1",
    }
    rows.put(tmp_path / "networks.csv", row)
    counts = {"network": "frrn_a", "params": 17_760_000, "multi_adds_1025x2049": 5 * 10**9}
    rows.put(tmp_path / "network_counts.csv", {"command": "", **counts})
    page = model_zoo.page(tmp_path)
    changed = [line for line in page.splitlines() if line not in empty.splitlines()]
    medium, frrn = [line for line in changed if line.startswith("| ")]
    assert medium.endswith("| 434.99 B | 439.92 B | 460.93 B | 12.35 | 4321 |  |")
    assert frrn.startswith("| FRRN-A (`frrn_a`) | 17.76 M | 17.76 M |  | 5.00 B |")
    assert "a processor, tensorflow 1" in page


def test_a_row_takes_the_place_of_the_one_with_its_command(tmp_path):
    path = tmp_path / "rows.csv"
    for command, value in (("a", 1), ("b", 2), ("a", 3)):
        rows.put(path, {"command": command, "value": value})
    rows.put(path, {"command": "c", "other": 4})
    assert rows.read(path) == [
        {"command": "a", "value": "3", "other": ""},
        {"command": "b", "value": "2", "other": ""},
        {"command": "c", "value": "", "other": "4"},
    ]
