"""What the programs on JAX share: the loss, random crops, the mean IoU, and their CSV files."""

import csv
import functools
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

IGNORE = 255


def mean_loss(logits, labels, class_weights=None, ignore_label=IGNORE):
    """Cross entropy, the mean over the pixels that are not ignored (`training.losses`).

    Args:
        logits: float [N, H, W, C].
        labels: integers [N, H, W].
        class_weights: float32 [C], or None for 1 each.
        ignore_label: Label of the pixels that do not count.
    """
    counts = labels != ignore_label
    classes = jnp.where(counts, labels, 0).astype("int32")
    log_probs = jax.nn.log_softmax(logits.astype("float32"))
    costs = -jnp.take_along_axis(log_probs, classes[..., None], axis=-1)[..., 0]
    if class_weights is not None:
        costs = costs * jnp.asarray(class_weights, "float32")[classes]
    return jnp.sum(costs * counts) / jnp.maximum(jnp.sum(counts), 1)


def count_pixels(logits, labels):
    """Counts the pixels of each pair (label, predicted class); ignored ones in no pair.

    Args:
        logits: float [N, H, W, C].
        labels: integers [N, H, W], 0..C-1 and `IGNORE`.

    Returns:
        int [C * C].
    """
    num_classes = logits.shape[-1]
    pairs = labels.astype("int32") * num_classes + jnp.argmax(logits, axis=-1)
    # What is ignored lands in a bin of its own, behind the matrix.
    pairs = jnp.where(labels == IGNORE, num_classes**2, pairs)
    return jnp.bincount(pairs.ravel(), length=num_classes**2 + 1)[:-1]


def mean_iou(counts):
    """Returns the mean IoU over the classes that occur, of counts [C * C] by `count_pixels`."""
    matrix = np.asarray(counts).reshape(int(np.sqrt(np.size(counts))), -1)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - np.diag(matrix)
    return float(np.mean(np.diag(matrix)[union > 0] / union[union > 0]))


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def draw_batch(images, labels, key, batch_size, size, scales=(1.0, 1.0), mean=0.0):
    """Draws random crops of randomly scaled images, flipped with probability 0.5, on the device.

    Args:
        images: uint8 [n, H, W, 3].
        labels: uint8 [n, H, W].
        key: Of this batch.
        batch_size: N.
        size: (h, w) of a crop.
        scales: The smallest and the largest scale.
        mean: The value of the pixels beside the image, float [] or [3]; their label is `IGNORE`.

    Returns:
        (images, labels): float32 [N, h, w, 3], 0..255; int32 [N, h, w].
    """
    count, height, width, _ = images.shape
    keys = jax.random.split(key, 4)
    chosen = jax.random.randint(keys[0], [batch_size], 0, count)
    drawn_scales = jax.random.uniform(keys[1], [batch_size], minval=scales[0], maxval=scales[1])
    places = jax.random.uniform(keys[2], [batch_size, 2])
    flips = jax.random.bernoulli(keys[3], 0.5, [batch_size])

    def axis(extent, crop, scale, place):
        scaled = jnp.round(extent * scale)
        room = scaled - crop
        offset = jnp.floor(place * (jnp.abs(room) + 1.0)) + jnp.minimum(room, 0.0)
        position = jnp.arange(crop) + offset
        inside = (position >= 0) & (position < scaled)
        return (position + 0.5) / scaled * extent - 0.5, inside

    def one(index, scale, place, flip):
        rows, rows_inside = axis(height, size[0], scale, place[0])
        columns, columns_inside = axis(width, size[1], scale, place[1])
        columns = jnp.where(flip, columns[::-1], columns)
        columns_inside = jnp.where(flip, columns_inside[::-1], columns_inside)
        inside = rows_inside[:, None] & columns_inside[None, :]

        def rows_at(tensor, places):
            return tensor[jnp.clip(places, 0, height - 1)]

        def columns_at(tensor, places):
            return tensor[:, jnp.clip(places, 0, width - 1)]

        label = columns_at(
            rows_at(labels[index], jnp.floor(rows + 0.5).astype("int32")),
            jnp.floor(columns + 0.5).astype("int32"),
        ).astype("int32")
        top, left = jnp.floor(rows).astype("int32"), jnp.floor(columns).astype("int32")
        down, right = (rows - top)[:, None, None], (columns - left)[None, :, None]
        image = images[index].astype("float32")
        image = rows_at(image, top) * (1 - down) + rows_at(image, top + 1) * down
        image = columns_at(image, left) * (1 - right) + columns_at(image, left + 1) * right
        image = jnp.where(inside[..., None], image, mean)
        return image, jnp.where(inside, label, IGNORE)

    return jax.vmap(one)(chosen, drawn_scales, places, flips)


class Rows:
    """A CSV file that holds each row as soon as it is known.

    Args:
        path: Of the file; its folder is made. None: rows are only printed.
    """

    def __init__(self, path):
        self._path = None if path is None else Path(path)
        self._lock = threading.Lock()

    def add(self, **row):
        """Appends a row: the first one's names are the columns."""
        print(row, flush=True)
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, open(self._path, "a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            if not file.tell():
                writer.writeheader()
            writer.writerow(row)
