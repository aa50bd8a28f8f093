"""Warm-up requests of a SavedModel: TensorFlow Serving replays them before a version gets traffic.

Without them the first answer after a roll-over waits for the initialisation of every kernel. They
are PredictionLog records, one per signature that takes images, in
`assets.extra/tf_serving_warmup_requests`.
"""

from __future__ import annotations

import io
import pathlib
from collections.abc import Collection

import numpy as np
import tensorflow as tf

from export import common

FILE_NAME = "tf_serving_warmup_requests"
PACKAGE = "tensorflow_serving.apis"


def write(
    extra: pathlib.Path, signatures: Collection[str], size: tuple[int, int], channels: int
) -> pathlib.Path:
    """Writes the warm-up requests of a version.

    Args:
        extra: Its folder `assets.extra`.
        signatures: Names of its signatures.
        size: (height, width) of the image in each request.
        channels: Channels of the images.

    Returns:
        The file.

    Raises:
        MissingExtraError: If tensorflow-serving-api is not installed.
    """
    logs = common.require(f"{PACKAGE}.prediction_log_pb2")
    image = common.random_images(1, size, channels=channels)
    path = extra / FILE_NAME
    with tf.io.TFRecordWriter(str(path)) as file:
        for name in ("serving_default", "probabilities", "encoded_image"):
            if name not in signatures:
                continue
            log = logs.PredictionLog()
            request = log.predict_log.request
            request.model_spec.signature_name = name
            if name == "encoded_image":
                tensor, key = tf.make_tensor_proto([_png(image[0])]), "image_bytes"
            else:
                tensor, key = tf.make_tensor_proto(image), "images"
            request.inputs[key].CopyFrom(tensor)
            file.write(log.SerializeToString())
    return path


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    values = image.astype(np.uint8)
    Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values).save(content, "PNG")
    return content.getvalue()
