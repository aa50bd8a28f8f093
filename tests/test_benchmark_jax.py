"""The search on Keras' JAX backend takes the steps of `BilevelModel`."""

import os
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from commands import run_on_jax

from auto_deeplab_tf.nn.supernet import build_supernet
from auto_deeplab_tf.training.bilevel import BilevelModel
from auto_deeplab_tf.training.schedules import Cosine
from benchmarks import jax_gpu, rows

CLASSES, SIZE, STEPS = 4, (33, 49), 3
CLASS_WEIGHTS = (0.5, 1.0, 2.0, 1.5)
PROGRAM = """
import jax, keras
from auto_deeplab_tf.nn.execution import Execution
from auto_deeplab_tf.nn.supernet import build_supernet
from auto_deeplab_tf.training.schedules import Cosine
from benchmarks import jax_search

images, labels, class_weights = data["images"], data["labels"], data["class_weights"]
supernet = build_supernet(len(class_weights), 2, 1, 2, input_size=images.shape[2:4])
supernet.execution = Execution(remat=False)
assign(supernet)
bilevel = jax_search.Bilevel(
    supernet,
    keras.optimizers.SGD(Cosine(steps=10), momentum=0.9),
    keras.optimizers.Adam(0.003),
    class_weights=class_weights,
)
jax_search.compile_ahead(supernet, images.shape[1:], threads=2)
losses = []
for image, label in zip(images, labels):
    losses.append(bilevel.step((image, label), (image[::-1], label[::-1])))
variables = {f"variable_{i}": np.asarray(v) for i, v in enumerate(supernet.variables)}
save(losses=np.asarray(losses), **variables)
"""


@pytest.mark.slow
def test_steps_on_jax_are_those_of_the_bilevel_model(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.uniform(0, 255, (STEPS, 2, *SIZE, 3)).astype("float32")
    labels = generator.integers(0, CLASSES, (STEPS, 2, *SIZE)).astype("int32")
    labels[:, :, :9] = 255
    supernet = build_supernet(CLASSES, 2, 1, 2, input_size=SIZE)
    for segment in supernet.segments:
        if segment.affine is not None:
            segment.affine.assign(generator.uniform(0.5, 1.5, segment.affine.shape))
    supernet.alpha_logits.assign(generator.normal(size=supernet.alpha_logits.shape))
    theirs = run_on_jax(
        PROGRAM,
        tmp_path,
        supernet.variables,
        images=images,
        labels=labels,
        class_weights=CLASS_WEIGHTS,
    )

    model = BilevelModel(supernet, class_weights=CLASS_WEIGHTS)
    model.compile(
        keras.optimizers.SGD(Cosine(steps=10), momentum=0.9), keras.optimizers.Adam(0.003)
    )
    for step in range(STEPS):
        model.reset_metrics()
        batches = (images[step], labels[step]), (images[step, ::-1], labels[step, ::-1])
        ours = model.train_step(batches)
        model.completed_steps.assign_add(1)
        losses = [float(ours[name]) for name in ("loss", "arch_loss")]
        np.testing.assert_allclose(losses, theirs["losses"][step], rtol=1e-4, atol=1e-4)
    for index, variable in enumerate(supernet.variables):
        values = theirs[f"variable_{index}"]
        atol = 1e-4 if "logits" in variable.name else 1e-3
        np.testing.assert_allclose(variable, values, atol=atol, err_msg=variable.path)


@pytest.mark.slow
def test_a_search_on_jax_scores_and_keeps_what_it_learns(tmp_path):
    generator = np.random.default_rng(0)
    labels = (generator.uniform(size=(16, 6, 8)) < 0.5).astype("uint8").repeat(8, 1).repeat(8, 2)
    images = labels[..., None] * np.full(3, 200, "uint8")
    np.savez(
        tmp_path / "data.npz",
        train_images=images,
        train_labels=labels,
        train_ids=np.array(["0006R0"] * 16),
        train_half=np.arange(16) % 2,
        val_images=images[:8],
        val_labels=labels[:8],
    )
    (tmp_path / "logits").mkdir()
    command = [
        *(sys.executable, "-m", "benchmarks.jax_search", "--split=reported", "--adam"),
        *("--num_layers=1", "--num_blocks=1", "--filter_multiplier=2", "--stem_channels=4,4,8"),
        *("--dtype_policy=float32", "--crop_size=33x49", "--batch_size=4", "--learning_rate=0.01"),
        *("--steps=60", "--warmup_steps=20", "--probe_every=20", "--probes=2"),
        *("--arch_learning_rate=0.1", "--arch_weight_decay=0"),
        *(f"--data={tmp_path / 'data.npz'}", f"--logits={tmp_path / 'logits'}"),
        f"--output={tmp_path / 'search.csv'}",
    ]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "KERAS_BACKEND": "jax"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-2000:]
    found = rows.read(tmp_path / "search.csv")
    assert [row["step"] for row in found] == ["20", "40", "60"]
    assert float(found[-1]["loss"]) < float(found[0]["loss"])
    assert 0.0 <= float(found[-1]["val_decoded_miou"]) <= 1.0
    assert float(found[-1]["val_miou"]) > float(found[0]["val_miou"])
    assert float(found[0]["alpha_entropy"]) > float(found[-1]["alpha_entropy"])
    with np.load(tmp_path / "logits" / "60.npz") as last:
        assert np.abs(last["alpha"]).max() > 0.5


# What `jax_gpu` sees of `jax_search`; a batch of 16 fails and one of 8 never gets ready.
FAKE = """
import pathlib, sys, time
flags = dict((flag + "=").lstrip("-").split("=")[:2] for flag in sys.argv[1:])
name = "search" if "data" in flags else flags["batch_size"] + "graphs" * ("graphs" in flags)
def say(what):
    with open("events", "a") as file:
        print(name, what, file=file)
say("starts")
if name == "16":
    sys.exit("out of memory")
if name == "8":
    time.sleep(600)
print("compiled", flush=True)
while not pathlib.Path(flags["wait_for"]).exists():
    time.sleep(0.05)
say("computes")
"""


@pytest.fixture
def fake_search(tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    (tmp_path / "benchmarks" / "jax_search.py").write_text(FAKE)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("fake_search")
def test_on_a_gpu_each_program_is_timed_alone_and_the_search_is_last(tmp_path, monkeypatch):
    monkeypatch.delitem(jax_gpu.TIMED, "batch_8")
    monkeypatch.setattr(sys, "argv", ["jax_gpu", "--data=a.npz", "--output_dir=out"])
    jax_gpu.main()
    assert (tmp_path / "events").read_text().splitlines() == [
        *("2 starts", "2 computes", "search starts"),
        *("2graphs starts", "2graphs computes", "16 starts", "search computes"),
    ]
    assert "out of memory" in (tmp_path / "out" / "batch_16.log").read_text()


@pytest.mark.usefixtures("fake_search")
def test_a_program_that_compiles_too_long_is_ended(tmp_path):
    end = time.monotonic() + 1
    job = jax_gpu.Job("batch_8", tmp_path, end, jax_gpu.TIMED["batch_8"])
    assert job.running and not job.wait_compiled(end) and not job.running
