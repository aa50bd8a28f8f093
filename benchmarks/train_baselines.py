"""Trains every network 200 steps on the generated scenes by one recipe: does its loss fall?

    python -m benchmarks.train_baselines [--networks=frrn_a,...] [--work_dir=DIR]

Each in a process of its own, by the product's train command. A network whose row is in
benchmarks/results/train_baselines.csv already is left out, so the command continues where it was
stopped. So few steps on so small crops say that a network trains, not how good it is.
"""

import csv
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks import rows

RESULTS = rows.RESULTS / "train_baselines.csv"
AUTO_DEEPLAB = "auto_deeplab_s"
# 20 steps an epoch: metrics.csv then holds the mean loss of each 20 steps.
RECIPE = (
    "--dataset=scenes --image_size=64x128 --crop_size=33x65 --batch_size=2 --scale_min=0.75 "
    "--scale_max=1.5 --steps=200 --steps_per_epoch=20 --optimizer=adam --learning_rate=0.001 "
    "--batch_norm_decay=0.95 --class_weights=sqrt_median_frequency --seed=0 --overlays=0 "
    "--validation_images=32 --validation_every_epochs=10 --checkpoint_every_steps=1000"
)

FLAGS = flags.FLAGS
flags.DEFINE_list("networks", None, "which networks (default: all)")
flags.DEFINE_string("work_dir", None, "folder for the runs while they train (a temporary one)")


def names() -> list[str]:
    """Returns the names of all networks that are trained, the smallest first."""
    from auto_deeplab_tf.baselines import BASELINES

    return [AUTO_DEEPLAB, *BASELINES]


def train(name: str, work_dir: str | None) -> dict[str, Any]:
    """Trains one network; returns its row."""
    network = (
        ["--architecture=auto_deeplab", "--filter_multiplier=20"]
        if name == AUTO_DEEPLAB
        else [f"--network={name}"]
    )
    command = ["-m", "auto_deeplab_tf.train", *network, *RECIPE.split()]
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=work_dir))
    try:
        start = time.monotonic()
        result = _answer([*command, f"--run_dir={folder / 'run'}", "--json"])
        seconds = time.monotonic() - start
        with open(folder / "run" / "metrics.csv", encoding="utf-8") as file:
            losses = [float(row["loss"]) for row in csv.DictReader(file)]
    finally:
        shutil.rmtree(folder)
    counted = _answer(["-m", "auto_deeplab_tf.summarize", *network, "--json"])
    return {
        "network": name,
        "params_19_classes": counted["params"],
        "multi_adds_1024x2048": counted["multi_adds"],
        "loss_first_20_steps": round(losses[0], 4),
        "loss_last_20_steps": round(losses[-1], 4),
        "val_miou": round(result["val_miou"], 4),
        "seconds": round(seconds, 1),
        "command": f"python {' '.join(command)}",
        **rows.machine(),
    }


def _answer(command: list[str]) -> dict[str, Any]:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"python {' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def main(_: list[str]) -> None:
    done = {row["network"] for row in rows.read(RESULTS)}
    for name in FLAGS.networks or names():
        if name in done:
            continue
        row = train(name, FLAGS.work_dir)
        rows.put(RESULTS, row)
        print(
            f"{name}: loss {row['loss_first_20_steps']} -> {row['loss_last_20_steps']}, "
            f"val mIoU {row['val_miou']}, {row['seconds']} s",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
