"""Counts a trained model's pixels on CamVid's val, image by image, for the bootstrap over images.

    python -m benchmarks.search_quality.image_matrices MODEL.keras DATA_DIR CACHE_DIR OUTPUT.npy

OUTPUT is int64 [images, C, C]: rows the labels, columns the predictions.
"""

from __future__ import annotations

import os
import sys

import numpy as np

from auto_deeplab_tf.data import pipeline, source
from auto_deeplab_tf.served import load_segmenter
from auto_deeplab_tf.training.metrics import count_pixels, matrix_of
from benchmarks.search_quality.population import SETTINGS


def main(model_path: str, data_dir: str, cache_dir: str, output: str) -> None:
    model = load_segmenter(model_path)
    split = source.open_split(
        "camvid", "val", data_dir=data_dir, cache_dir=cache_dir, image_size=SETTINGS["input_size"]
    )
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
