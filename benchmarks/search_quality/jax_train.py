"""Trains networks on Keras' JAX backend, for a GPU without TensorFlow; a row each.

    KERAS_BACKEND=jax python -m benchmarks.search_quality.jax_train --data=camvid.npz \
        --seeds=100-123 --steps=1800,5400 --processes=12 --output=rows.csv --deadline_seconds=400

The recipe is PROTOCOL.md's, written in JAX: the arithmetic of `auto_deeplab_tf.nn` with a loop that
stays on the device. Its rows are compared with one another, never with rows of a CPU. --data is
made by `--make_data`, which needs TensorFlow and the data set:

    python -m benchmarks.search_quality.jax_train --make_data=camvid.npz --data_dir=/path/to/CamVid
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import jax_common
from benchmarks.search_quality import population

BATCH = 8
CHUNK = 25  # steps of one call
LEARNING_RATE, POWER, WEIGHT_DECAY = 0.004, 0.9, 4e-5
SCALES = (0.75, 1.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--make_data", help="write the .npz of images and labels here")
    parser.add_argument("--data_dir", help="CamVid, for --make_data")
    parser.add_argument("--data", help="the .npz")
    parser.add_argument("--split", choices=("tuning", "reported"), default="tuning")
    parser.add_argument("--seeds", default="100-111", help="random networks, FIRST-LAST")
    parser.add_argument("--published", action="store_true", help="also the published architecture")
    parser.add_argument("--steps", default="1800")
    parser.add_argument("--training_seeds", default="0")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--output", default="rows.csv")
    parser.add_argument("--deadline_seconds", type=float, default=1e9)
    parser.add_argument("--one", help="train one network here (a seed, or `published`)")
    options = parser.parse_args()
    if options.make_data:
        make_data(options.make_data, options.data_dir)
    elif options.one:
        train_one(options)
    else:
        train_all(options)


def train_all(options: argparse.Namespace) -> None:
    """Runs one process a network, several at a time; appends the rows as they come."""
    end = time.monotonic() + options.deadline_seconds
    first, last = map(int, options.seeds.split("-"))
    names = (["published"] if options.published else []) + [str(s) for s in range(first, last + 1)]
    passed = [
        f"--{name}={getattr(options, name)}"
        for name in ("data", "split", "steps", "training_seeds")
    ]
    pathlib.Path(options.output).unlink(missing_ok=True)
    rows = jax_common.Rows(options.output)

    def run(name: str) -> None:
        left = end - time.monotonic()
        if left <= 0:
            return
        command = [sys.executable, "-m", "benchmarks.search_quality.jax_train", f"--one={name}"]
        process = subprocess.Popen(
            [*command, *passed, f"--deadline_seconds={left}"], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                rows.add(**json.loads(line))
        process.wait()

    with concurrent.futures.ThreadPoolExecutor(options.processes) as pool:
        list(pool.map(run, names))


def train_one(options: argparse.Namespace) -> None:
    """Trains one network for every number of steps and seed; prints a JSON row for each."""
    from auto_deeplab_tf.architecture import Architecture
    from auto_deeplab_tf.sampling import random_architecture

    end = time.monotonic() + options.deadline_seconds
    if options.one == "published":
        preset = Architecture.preset("auto_deeplab")
        architecture = Architecture(preset.levels, preset.cell, "separable")
    else:
        architecture = random_architecture(int(options.one))
    cost = population.cost(architecture)
    trainer = Trainer(architecture, cost["filter_multiplier"], load(options.data, options.split))
    for seed in map(int, options.training_seeds.split(",")):
        for steps in map(int, options.steps.split(",")):
            result = trainer.train(seed, steps, end)
            if result is None:
                return
            row = {
                "kind": "published" if options.one == "published" else "random",
                "architecture": architecture.fingerprint,
                "random_seed": "" if options.one == "published" else options.one,
                "levels": "-".join(map(str, architecture.levels)),
                "seed": seed,
                "steps": steps,
                "device": jax.devices()[0].device_kind,
                **cost,
                **result,
            }
            print(json.dumps(row), flush=True)


class Trainer:
    """One network with its compiled training chunk and scoring step.

    Args:
        architecture: The architecture.
        multiplier: F.
        data: Of `load`.
    """

    def __init__(self, architecture: Any, multiplier: int, data: dict[str, Any]) -> None:
        from auto_deeplab_tf.nn.network import build_network

        settings = {k: v for k, v in population.SETTINGS.items() if k != "input_size"}
        self._build = lambda: build_network(
            architecture, filter_multiplier=multiplier, batch_norm_decay=0.97, **settings
        )
        self._network = self._build()
        self._data = {name: jax.device_put(value) for name, value in data.items()}
        self._chunk = jax.jit(self._train_chunk, donate_argnums=0)
        self._score = jax.jit(self._count_pixels)
        self._decayed = [len(v.shape) > 1 for v in self._network.trainable_variables]

    def train(self, seed: int, steps: int, end: float) -> dict[str, Any] | None:
        """Trains from new weights; None where the deadline `end` comes first."""
        import keras

        keras.utils.set_random_seed(seed)
        network = self._build()
        weights = [v.value for v in network.trainable_variables]
        moving = [v.value for v in network.non_trainable_variables]
        zeros = [jnp.zeros_like(w) for w in weights]
        state = (weights, moving, zeros, [jnp.zeros_like(w) for w in weights])
        key = jax.random.key(seed)
        started, compiled = time.monotonic(), None
        losses: list[Any] = []
        scores: dict[str, float] = {}
        marks = {steps // part // CHUNK * CHUNK: f"1_{part}" for part in (8, 4, 2)}
        for step in range(0, steps, CHUNK):
            state, loss = self._chunk(state, jnp.arange(step, step + CHUNK), steps, key)
            losses.append(loss)
            if compiled is None:
                jax.block_until_ready(loss)
                compiled = time.monotonic() - started
            done = step + CHUNK
            if done in marks:
                scores[f"miou_{marks[done]}"] = self._miou(state)
                mean = float(np.mean(np.concatenate([np.asarray(one) for one in losses])))
                scores[f"loss_{marks[done]}"] = mean
            if time.monotonic() > end:
                return None
        miou = self._miou(state)
        seconds = time.monotonic() - started
        return {
            "miou": miou,
            **scores,
            "seconds_compile": round(compiled or 0.0, 1),
            "seconds_train": round(seconds - (compiled or 0.0), 1),
        }

    def _train_chunk(self, state, steps, total, key):
        data = self._data

        def one_step(state, step):
            weights, moving, first, second = state
            images, labels = self.draw_batch(jax.random.fold_in(key, step))

            def loss_of(weights):
                logits, moved = self._network.stateless_call(weights, moving, images, training=True)
                return jax_common.mean_loss(logits, labels, data["class_weights"]), moved

            (loss, moving), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights)
            gradients = [
                g + WEIGHT_DECAY * w if decayed else g
                for g, w, decayed in zip(gradients, weights, self._decayed, strict=True)
            ]
            # Adam as Keras writes it (Kingma and Ba, 2015, the order before section 2.1's end).
            rate = LEARNING_RATE * (1.0 - step / total) ** POWER
            count = step + 1.0
            scale = rate * jnp.sqrt(1.0 - 0.999**count) / (1.0 - 0.9**count)
            first = [m + 0.1 * (g - m) for m, g in zip(first, gradients, strict=True)]
            second = [v + 0.001 * (g * g - v) for v, g in zip(second, gradients, strict=True)]
            weights = [
                w - scale * m / (jnp.sqrt(v) + 1e-7)
                for w, m, v in zip(weights, first, second, strict=True)
            ]
            return (weights, moving, first, second), loss

        return jax.lax.scan(one_step, state, steps)

    def draw_batch(self, key: Any) -> tuple[Any, Any]:
        """Draws a batch of whole images, each of another scale; see `jax_common.draw_batch`."""
        images, labels = self._data["train_images"], self._data["train_labels"]
        size = images.shape[1:3]
        return jax_common.draw_batch(images, labels, key, BATCH, size, SCALES, self._data["mean"])

    def _count_pixels(self, weights, moving, images, labels):
        logits, _ = self._network.stateless_call(weights, moving, images, training=False)
        return jax_common.count_pixels(logits, labels)

    def _miou(self, state) -> float:
        data, counts = self._data, 0
        for start in range(0, len(data["val_images"]), BATCH):
            images = data["val_images"][start : start + BATCH].astype("float32")
            labels = data["val_labels"][start : start + BATCH]
            counts = counts + np.asarray(self._score(state[0], state[1], images, labels))
        return jax_common.mean_iou(counts)


def load(path: str, split: str) -> dict[str, np.ndarray]:
    """Reads the .npz as what is trained on and what is scored.

    Args:
        path: Written by `make_data`.
        split: "tuning": the two parts of train that `population.tuning_split` makes; "reported":
            train and val.

    Returns:
        Images uint8 [n, H, W, 3] and labels uint8 [n, H, W] of `train` and `val`, the latter in
        whole batches; `train_half` int8 [n], 0 in train_a, 1 in train_b; `class_weights` float32
        [C]; `mean` float32 [3].
    """
    with np.load(path) as file:
        arrays = dict(file)
    if split == "tuning":
        parts = population.tuning_split(arrays["train_ids"].tolist())
        places = [parts.get(name) for name in arrays["train_ids"].tolist()]
        kept, taken = (np.array([place == part for place in places]) for part in ("train", "val"))
    else:
        kept, taken = (np.ones(len(arrays[f"{part}_images"]), bool) for part in ("train", "val"))
    scored = "train" if split == "tuning" else "val"
    labels = arrays["train_labels"][kept]
    present = [(labels == c).any(axis=(1, 2)) for c in range(11)]
    pixels = [np.count_nonzero(labels == c) for c in range(11)]
    # Pixels of a class among those of the images that show it (Eigen and Fergus).
    total = [max(1, np.count_nonzero(labels[images] != jax_common.IGNORE)) for images in present]
    shares = np.array(pixels) / np.array(total)
    weights = np.where(shares > 0, np.sqrt(np.median(shares[shares > 0]) / shares.clip(1e-9)), 1)
    return {
        "train_images": arrays["train_images"][kept],
        "train_labels": labels,
        "train_half": arrays["train_half"][kept],
        "val_images": _whole_batches(arrays[f"{scored}_images"][taken], 0),
        "val_labels": _whole_batches(arrays[f"{scored}_labels"][taken], jax_common.IGNORE),
        "class_weights": weights.astype("float32"),
        "mean": np.array([105.0, 108.4, 110.3], "float32"),
    }


def _whole_batches(array: np.ndarray, value: int) -> np.ndarray:
    """Pads with images of one value up to a whole number of batches: one shape to compile."""
    missing = -len(array) % BATCH
    return np.pad(array, [(0, missing), *[(0, 0)] * (array.ndim - 1)], constant_values=value)


def make_data(path: str, data_dir: str) -> None:
    """Writes images and labels of CamVid's train and val at 120x160, as `load` reads them."""
    from auto_deeplab_tf import data
    from auto_deeplab_tf.data.split import source_halves

    arrays: dict[str, Any] = {}
    for split in ("train", "val"):
        source = data.open_split("camvid", split, data_dir=data_dir, image_size=(120, 160))
        examples = [source.example(index) for index in range(source.num_examples)]
        arrays[f"{split}_images"] = np.stack([image.numpy() for image, _ in examples])
        arrays[f"{split}_labels"] = np.stack([label.numpy() for _, label in examples])
        arrays[f"{split}_ids"] = np.array(list(source.ids))
        if split == "train":
            arrays["train_half"] = np.zeros(source.num_examples, "int8")
            arrays["train_half"][source_halves(source)[1]] = 1
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    if "--make_data" not in " ".join(sys.argv):
        os.environ.setdefault("KERAS_BACKEND", "jax")
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    main()
