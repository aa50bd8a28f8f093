"""How well a tiled prediction agrees with that of the whole image, by tile and overlap.

    python -m benchmarks.tiles --model=RUN/model.keras --dataset=camvid --data_dir=CAMVID \
        --image_size=360x480

Predicts the val split, resized to --image_size, whole and by each of --tiles with each of
--overlaps, as `predict --tile` does where the network sees a tile at its own size. Writes a row
each into results/tiles.csv: the share of pixels that get the class of the whole-image prediction,
that share on the seams (within 8 pixels of the middle between two tiles), and the mIoU of both.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from auto_deeplab_tf import tiling
from benchmarks import rows, scoring

PATH = rows.RESULTS / "tiles.csv"
SEAM = 8
FLAGS = flags.FLAGS
Size = tuple[int, int]


def define_flags() -> None:
    flags.DEFINE_string("model", None, "model.keras of a training", required=True)
    flags.DEFINE_string("dataset", "camvid", "data set")
    flags.DEFINE_string("data_dir", None, "its folder", required=True)
    flags.DEFINE_string("cache_dir", None, "folder of its records")
    flags.DEFINE_string("image_size", "360x480", "size of the whole images")
    flags.DEFINE_list("tiles", ["97x129", "129x161", "180x240", "257x321"], "sizes of tiles")
    flags.DEFINE_list("overlaps", ["0", "0.125", "0.25", "0.33"], "shares of a tile's smaller side")
    flags.DEFINE_string("results", str(PATH), "file of the rows")


def main(_: list[str]) -> None:
    import tensorflow as tf

    from auto_deeplab_tf.served import load_segmenter

    segmenter = load_segmenter(FLAGS.model)
    images, labels = scoring.read_split(
        FLAGS.dataset, "val", FLAGS.data_dir, FLAGS.cache_dir, _size(FLAGS.image_size)
    )
    network = tf.function(
        lambda images: segmenter(images, training=False), autograph=False, reduce_retracing=True
    )
    tiles = itertools.product(map(_size, FLAGS.tiles), map(float, FLAGS.overlaps))
    for row in compare(
        lambda image: network(tf.constant(image[None], tf.float32))[0].numpy(),
        list(zip(images, labels, strict=True)),
        [(tile, int(share * min(tile))) for tile, share in tiles],
        (segmenter.num_classes, segmenter.ignore_label),
    ):
        row = {"image_size": FLAGS.image_size, **row}
        row["key"] = " ".join(str(row[name]) for name in ("image_size", "tile", "overlap"))
        row["network"] = segmenter.network.architecture.fingerprint
        rows.put(Path(FLAGS.results), {**row, **rows.machine()}, key="key")
        print(row, flush=True)


def compare(
    logits: Callable[[np.ndarray], np.ndarray],
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    settings: Sequence[tuple[Size, int]],
    classes: tuple[int, int],
) -> Iterator[dict[str, Any]]:
    """Compares tiled predictions with those of whole images.

    Args:
        logits: An image [H, W, channels] -> float32 [H, W, classes].
        pairs: Images, and their labels [H, W], all of one size.
        settings: Tiles (height, width) and their overlap in pixels.
        classes: Their number, and the label that is not scored.

    Yields:
        A row for each setting.
    """
    whole = [logits(image).argmax(-1) for image, _ in pairs]
    labels = [label for _, label in pairs]
    size = (labels[0].shape[0], labels[0].shape[1])
    whole_miou = _miou(labels, whole, classes)
    for tile, overlap in settings:
        seams = _seams(size, tile, overlap)
        tiled = []
        for image, _ in pairs:
            bands = tiling.class_ids(
                size,
                tile,
                overlap,
                lambda top, left, height, width, image=image: logits(
                    image[top : top + height, left : left + width]
                ),
            )
            tiled.append(np.concatenate(list(bands)))
        same = np.array(tiled) == np.array(whole)
        yield {
            "tile": f"{tile[0]}x{tile[1]}",
            "overlap": overlap,
            "agreement": round(float(same.mean()), 4),
            "seam_agreement": round(float(same[:, seams].mean()), 4),
            "miou": round(_miou(labels, tiled, classes), 4),
            "whole_miou": round(whole_miou, 4),
        }


def _miou(
    labels: Sequence[np.ndarray], found: Sequence[np.ndarray], classes: tuple[int, int]
) -> float:
    from auto_deeplab_tf.training.metrics import scores

    matrix = scoring.confusion_matrix(zip(labels, found, strict=True), *classes)
    return float(scores(matrix)["miou"])


def _seams(size: Size, tile: Size, overlap: int) -> np.ndarray:
    """Which pixels lie near a seam: bool [H, W]."""
    near = []
    for length, part in zip(size, tile, strict=True):
        part = min(part, length)
        places = np.arange(length)
        shared = overlap if part < length else 0
        seams = [span.begin + shared / 2 for span in tiling.spans(length, part, shared)[1:]]
        near.append((np.abs(places[:, None] - np.array(seams)) <= SEAM).any(1))
    return near[0][:, None] | near[1][None, :]


def _size(text: str) -> Size:
    height, width = text.split("x")
    return int(height), int(width)


if __name__ == "__main__":
    define_flags()
    app.run(main)
