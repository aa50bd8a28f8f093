"""model.keras in TensorFlow: reading it, its reference predictions, its graph of fixed size."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import auto_deeplab_tf
from auto_deeplab_tf.data import resizing
from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.nn import backend
from auto_deeplab_tf.segmenter import Segmenter
from auto_deeplab_tf.served import load_segmenter
from export import common


def load(path: str | os.PathLike[str]) -> Segmenter:
    """Reads a .keras file of `Segmenter` for inference in float32.

    A model in mixed precision is rebuilt in float32 with the same weights: converters and CPUs
    cannot use 16-bit layers, and its variables are float32 anyway.

    Raises:
        MissingFileError: If there is no such file.
        UserError: If it is something else, damaged, or has weights that are not finite.
    """
    segmenter = load_segmenter(common.check_model_file(path))
    for variable in segmenter.network.variables:
        if not np.isfinite(variable.value.numpy()).all():
            raise UserError(
                f"model={path}: its variable {variable.path} is not finite; train again."
            )
    if segmenter.network.compute_dtype == "float32":
        return segmenter
    exact = Segmenter.from_config(_in_float32(segmenter.get_config()))
    exact.network.set_weights(segmenter.network.get_weights())
    return exact


def _in_float32(config: Any) -> Any:
    """Returns a configuration with every floating dtype policy in it set to float32."""
    if isinstance(config, (list, tuple)):
        return [_in_float32(item) for item in config]
    if not isinstance(config, dict):
        return config
    result = {}
    for key, value in config.items():
        if key == "dtype" and "float" in json.dumps(value):
            result[key] = "float32"
        else:
            result[key] = _in_float32(value)
    return result


def describe(segmenter: Segmenter) -> dict[str, Any]:
    """Returns the metadata of a model that travels with its exports, as plain JSON values."""
    architecture = getattr(segmenter.network, "architecture", None)  # a baseline has none
    names = segmenter.class_names or [str(index) for index in range(segmenter.num_classes)]
    palette = segmenter.palette
    return {
        "package": f"auto_deeplab_tf {auto_deeplab_tf.__version__}",
        "architecture": architecture and architecture.to_dict(),
        "architecture_fingerprint": architecture and architecture.fingerprint,
        "class_names": list(names),
        "palette": None if palette is None else np.asarray(palette).tolist(),
        "image_size": segmenter.image_size,
        "input": common.input_text(segmenter.input_channels),
    }


def reference(segmenter: Segmenter, images: np.ndarray) -> np.ndarray:
    """Returns the Keras model's own probabilities, computed eagerly, image by image.

    Args:
        segmenter: The model.
        images: float32 [N, H, W, channels], 0..255.

    Returns:
        float32 [N, H, W, classes].

    Raises:
        UserError: If they are not finite.
    """
    logits = [
        keras.ops.convert_to_numpy(segmenter(image[None], training=False)) for image in images
    ]
    probabilities = common.softmax(np.concatenate(logits))
    if not np.isfinite(probabilities).all():
        raise UserError("the Keras model itself predicts values that are not finite; train again.")
    return probabilities


def masks(
    segmenter: Segmenter, images: Sequence[np.ndarray], input_size: tuple[int, int] | None
) -> list[np.ndarray]:
    """Returns the class ids [H, W] that the command `predict` gives for images of any sizes.

    Args:
        segmenter: The model.
        images: float32 [H, W, channels] each, whole numbers 0..255.
        input_size: Size that they are resized to for the network; None: as in `predict`.
    """
    found = []
    for image in images:
        size = image.shape[:2]
        seen = segmenter.command_input_size(size, input_size)
        if seen != size:
            image = resizing.resize_image(image.astype(np.uint8), seen)
        # Eagerly: `predict_class_ids` would compile the network for each kind of size.
        class_ids = segmenter.class_ids(image[None], None if seen == size else size)
        found.append(keras.ops.convert_to_numpy(class_ids)[0])
    return found


class FixedGraph(tf.Module):
    """images float32 [1, H, W, C], 0..255 -> class_ids int32 [1, H, W]; every size is static.

    TFLite's converter fuses the atrous convolutions only if batch, height and width are fixed: a
    free batch leaves SPACE_TO_BATCH, free sizes leave chains of paddings.

    Args:
        segmenter: The model.
        input_size: (height, width).
        batch: Number of images; None: any.
    """

    def __init__(
        self, segmenter: Segmenter, input_size: tuple[int, int], batch: int | None = 1
    ) -> None:
        super().__init__()
        # Variables are saved if they are attributes of the saved object; layers need not be.
        self._variables = [variable.value for variable in segmenter.network.variables]
        self._logits: Callable[[tf.Tensor], tf.Tensor] = lambda images: tf.cast(
            segmenter(images, training=False), tf.float32
        )
        self.serve = tf.function(
            self._serve,
            input_signature=[
                tf.TensorSpec(
                    [batch, *input_size, segmenter.input_channels], tf.float32, name="images"
                )
            ],
        )

    def _serve(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"class_ids": tf.argmax(self._logits(images), axis=-1, output_type=tf.int32)}

    def save(self, folder: pathlib.Path) -> None:
        """Writes a SavedModel whose one signature is `serving_default`."""
        # The formats that this becomes have TensorFlow's resizing, and no XLA behind it.
        with backend.resizing_by("kernel"):
            tf.saved_model.save(self, str(folder), signatures={"serving_default": self.serve})
