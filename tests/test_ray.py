"""predict and select on a Ray cluster of this machine."""

import importlib.util

import numpy as np
import pytest
import tiny_camvid

from auto_deeplab_tf import cli, config, predict, ray_cluster, select
from auto_deeplab_tf.architecture import Architecture, Edge
from auto_deeplab_tf.errors import MissingExtraError

has_ray = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not has_ray, reason="Ray is not installed (the extra `ray`)")


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"needs Ray .*pip install auto_deeplab_tf\[ray\]"):
        with ray_cluster.connected("local"):
            pass


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost", "ray://127.0.0.1:x"])
def test_an_address_without_a_cluster_is_named(address):
    with pytest.raises(ValueError, match=f"^ray_address={address}: no head of a Ray cluster"):
        with ray_cluster.connected(address):
            pass


@pytest.mark.slow
@needs_ray
def test_images_are_predicted_as_without_and_what_is_written_is_skipped(tmp_path):
    from auto_deeplab_tf import build_network

    cell = ((Edge("prev", "sep_3x3"), Edge("prev_prev", "max_pool_3x3")),)
    small = {"filter_multiplier": 1, "head_channels": 8, "decoder_channels": 4}
    network = build_network(Architecture((1,), cell, "separable"), num_classes=11, **small)
    network.save(tmp_path / "model.keras")
    images = tiny_camvid.write(tmp_path / "CamVid", {"val": 5}) / "val"
    (images / "broken.png").write_bytes(b"no image")

    def predicted(output_dir, **more):
        return predict.predict(
            config.PredictConfig(
                model=str(tmp_path / "model.keras"),
                image=str(images),
                output_dir=str(tmp_path / output_dir),
                **more,
            )
        )

    plain = predicted("plain")
    on_ray = predicted("ray", ray_address="local")
    assert on_ray["num_images"] == plain["num_images"] == 5 and on_ray["num_skipped"] == 0
    assert on_ray["failures"] == plain["failures"] and "broken.png" in on_ray["failures"][0]
    found = {path.name: path.read_bytes() for path in (tmp_path / "ray").iterdir()}
    settings = found.pop("prediction.json")
    assert found == {path.name: path.read_bytes() for path in (tmp_path / "plain").iterdir()}

    # Stopped before one of them was done: that one and the broken one are left.
    kept = sorted((tmp_path / "ray").glob("*_mask.png"))
    kept.pop().unlink()
    before = [path.stat().st_mtime_ns for path in kept]
    again = predicted("ray", ray_address="local")
    assert (again["num_images"], again["num_skipped"], len(again["failures"])) == (1, 4, 1)
    assert [path.stat().st_mtime_ns for path in kept] == before
    found["prediction.json"] = settings
    assert found == {path.name: path.read_bytes() for path in (tmp_path / "ray").iterdir()}
    with pytest.raises(ValueError, match="holds results of another model, or with another"):
        predicted("ray", ray_address="local", input_size=(64, 64))


TRAINING = """
mkdir -p {run} && sleep 0.5 &&
printf 'epoch,step,loss,val_miou\\n0,{steps},{loss},0.5\\n' > {run}/metrics.csv
"""


@needs_ray
def test_the_trainings_of_a_rung_run_on_a_cluster(tmp_path, monkeypatch):
    recipe = tmp_path / "train.flags"
    root = tiny_camvid.write(tmp_path / "CamVid", {"train": 6})
    recipe.write_text(
        f"--dataset=camvid\n--data_dir={root}\n--cache_dir={tmp_path}/cache\n--steps=8\n"
    )

    def command(self, name, steps):
        loss = abs(int(name.rpartition("-")[2]) - 2) + 1.0
        run = self._run / "runs" / name
        text = TRAINING.format(run=run, steps=steps, loss=loss)
        return ["sh", "-c", text]

    monkeypatch.setattr(select._Selection, "_command", command)
    flags = [f"--output_dir={tmp_path}/out", f"--train_flagfile={recipe}", "--num_random=4"]
    flags += ["--rungs=2", "--json", "--ray_address=local", "--hold_back=0.34"]
    flags += ["--num_layers=2", "--num_blocks=1"]
    result = select._Selection(cli.parse(config.SelectConfig, flags)).run()
    assert result["candidate"] == "random-2" and result["loss"] == 1.0
    rows = (tmp_path / "out" / "candidates.csv").read_text().splitlines()
    names = rows[0].split(",")
    trained = [row.split(",")[names.index("steps_2")] for row in rows[1:]]
    assert sorted(trained) == ["", "", "4", "4"]
    assert np.all([float(row.split(",")[names.index("loss_1")]) > 0 for row in rows[1:]])
