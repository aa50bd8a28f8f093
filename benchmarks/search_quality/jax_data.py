"""CamVid as arrays, for the programs on JAX, where no TensorFlow reads a data set.

python -m benchmarks.search_quality.jax_data --data_dir=/path/to/CamVid --output=camvid.npz
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from benchmarks import jax_common
from benchmarks.search_quality import population

SCALES = (0.75, 1.5)  # Of the crops, as in recipe.flags and search.flags.
BATCH = 8  # Of which the images that are scored are a multiple.


def load(path: str, split: str) -> dict[str, np.ndarray]:
    """Reads the .npz as what is trained on and what is scored.

    Args:
        path: Written by `main`.
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


def main() -> None:
    """Writes images and labels of CamVid's train and val at 120x160, as `load` reads them."""
    from auto_deeplab_tf import data
    from auto_deeplab_tf.data.split import source_halves

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--output", required=True, help="the .npz to write")
    options = parser.parse_args()
    arrays: dict[str, Any] = {}
    for split in ("train", "val"):
        source = data.open_split("camvid", split, data_dir=options.data_dir, image_size=(120, 160))
        examples = [source.example(index) for index in range(source.num_examples)]
        arrays[f"{split}_images"] = np.stack([image.numpy() for image, _ in examples])
        arrays[f"{split}_labels"] = np.stack([label.numpy() for _, label in examples])
        arrays[f"{split}_ids"] = np.array(list(source.ids))
        if split == "train":
            arrays["train_half"] = np.zeros(source.num_examples, "int8")
            arrays["train_half"][source_halves(source)[1]] = 1
    np.savez_compressed(options.output, **arrays)


if __name__ == "__main__":
    main()
