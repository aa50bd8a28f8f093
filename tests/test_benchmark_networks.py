"""benchmarks.networks: what one measurement says, and that the table continues where it stopped."""

import json
import subprocess
import sys

import pytest

from auto_deeplab_tf.accounting import count
from auto_deeplab_tf.architecture import Architecture
from benchmarks import networks, rows


@pytest.mark.slow
def test_one_measurement_is_one_object_on_one_line():
    setting = (
        "--network=auto_deeplab --filter_multiplier=2 --mode=forward --input_size=65x97 "
        "--batch_size=2 --threads=1 --iterations=1"
    )
    command = rows.command_of(networks.MODULE, setting)
    done = subprocess.run(
        [sys.executable, *command.split()[1:]], capture_output=True, text=True, check=True
    )
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    counted = count(
        Architecture.preset("auto_deeplab"),
        num_classes=19,
        filter_multiplier=2,
        input_size=(65, 97),
    )
    assert (result["params"], result["multi_adds"]) == (counted.params, counted.multi_adds)
    assert result["seconds_per_image"] > 0 and result["peak_rss_mib"] > 100
    operations = 2 * counted.multi_adds * result["images_per_second"] / 1e9
    assert result["gflops"] == pytest.approx(operations, rel=0.02, abs=0.1)
    assert 0 < result["share_of_matmul"] < 1


def test_the_table_has_every_network_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    path, measured = tmp_path / "networks.csv", []

    def measure(module, setting):
        measured.append(setting)
        if "segformer" in setting and "--mode=train" in setting:
            raise RuntimeError("out of memory")
        command = rows.command_of(module, setting)
        return {"command": command, "seconds_per_image": 1.0, "peak_rss_mib": 2.0}

    monkeypatch.setattr(rows, "measure", measure)
    with pytest.raises(RuntimeError, match="1 rows failed: --network=keras_hub_segformer_b0"):
        networks.measure_all(path)
    settings = networks.settings()
    assert measured == settings and len(set(settings)) == len(settings)
    for name in networks.names():
        assert sum(f"--network={name} " in setting for setting in settings) >= 3
    measured.clear()
    monkeypatch.setattr(
        rows, "measure", lambda module, setting: measured.append(setting) or {"command": setting}
    )
    monkeypatch.setattr(networks, "describe", lambda setting, row: setting)
    networks.measure_all(path)
    assert len(measured) == 1 and "segformer" in measured[0]
    assert set(networks.quick_settings()) <= set(settings)
