"""Counts a trained model's pixels on its run's val, image by image, for the bootstrap over images.

    python -m benchmarks.search_quality.image_matrices RUN_DIR OUTPUT.npy

OUTPUT is int64 [images, C, C]: rows the labels, columns the predictions.
"""

from __future__ import annotations

import os
import pathlib
import sys

import numpy as np

from auto_deeplab_tf.config import TrainConfig, from_flags_text
from auto_deeplab_tf.data import pipeline, source
from auto_deeplab_tf.served import load_segmenter
from auto_deeplab_tf.training.metrics import count_pixels, matrix_of


def main(run_dir: str, output: str) -> None:
    settings = from_flags_text(TrainConfig, (pathlib.Path(run_dir) / "flags.txt").read_text())
    model = load_segmenter(f"{run_dir}/last.keras")
    split = source.open_for(settings, "val")
    num_classes = len(split.info.class_names)
    matrices = []
    for images, labels in pipeline.evaluation_batches(split, 8):
        predictions = model.predict_class_ids(images.numpy())
        for label, prediction in zip(labels.numpy(), predictions, strict=True):
            counts = count_pixels(label, prediction, num_classes, split.info.ignore_label)
            matrices.append(matrix_of(counts, num_classes, split.info.ignore_label))
    np.save(f"{output}.partial.npy", np.stack(matrices).astype("int64"))
    os.replace(f"{output}.partial.npy", output)


if __name__ == "__main__":
    main(*sys.argv[1:])
