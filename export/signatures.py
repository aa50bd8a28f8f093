"""The graph functions of the served SavedModel: one forward pass, and the signatures around it."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from auto_deeplab_tf.files import LiteralPath
from auto_deeplab_tf.nn import backend
from auto_deeplab_tf.nn.resize import resize_bilinear
from auto_deeplab_tf.segmenter import Segmenter
from export import common, image_files

UNKNOWN_LABEL = "unknown"
# A file of four channels holds colour and opacity, not what a fourth channel measured.
ENCODED_CHANNELS = (1, 3)


def mask_dtype(num_classes: int) -> tf.DType:
    """Returns the dtype of the pixels of a mask."""
    return tf.uint8 if num_classes <= 256 else tf.uint16


class ServedSegmenter(tf.Module):
    """A segmenter with the signatures of TensorFlow Serving.

    | signature | inputs | outputs |
    |---|---|---|
    | serving_default | images float32 [N, H, W, channels], 0..255 | class_ids int32 [N, H, W] |
    | probabilities | images, as above | probabilities float32 [N, H, W, C] |
    | encoded_image | image_bytes string [N], PNG or JPEG of any sizes | mask_png_bytes string [N] |
    | labels | class_ids int32 [N] | names string [N] |
    | metadata | - | metadata_json string [] |

    encoded_image predicts as the command `predict` does: the image is resized to the fixed input
    size or, if the training images were resized to one size, to as many pixels; the logits are
    resized back to the image's own size before the argmax. A network of 4 channels does not have
    this signature. The pixels of a mask are class ids. The names end in `_bytes` because TensorFlow
    Serving's REST interface sends such strings as base64. Images smaller than 32 pixels, and values
    that are not finite, are an InvalidArgumentError in every signature: a batch is refused whole,
    and where this module checks, the message names the place of the image in it.

    Args:
        segmenter: The model.
        input_size: (height, width), or None to leave both free.
        labels_file: Text file of the class names, one per line in the order of the ids; it becomes
            an asset.
        metadata_json: Output of the signature `metadata`.
        max_image_pixels: Largest height times width of an encoded image.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        *,
        input_size: tuple[int, int] | None,
        labels_file: pathlib.Path,
        metadata_json: str,
        max_image_pixels: int,
    ) -> None:
        super().__init__()
        self._channels = segmenter.input_channels
        self._input_size = input_size
        self._trained_size = segmenter.image_size
        self._metadata_json = metadata_json
        self._max_image_pixels = max_image_pixels
        # Variables and tables are saved if they are attributes of the saved object.
        self._variables = [variable.value for variable in segmenter.network.variables]
        self._names = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(
                str(labels_file),
                key_dtype=tf.int64,
                key_index=tf.lookup.TextFileIndex.LINE_NUMBER,
                value_dtype=tf.string,
                value_index=tf.lookup.TextFileIndex.WHOLE_LINE,
            ),
            default_value=UNKNOWN_LABEL,
        )
        height, width = input_size or (None, None)
        self._images = tf.TensorSpec(
            [None, height, width, self._channels], tf.float32, name="images"
        )
        # One traced forward pass under all signatures: the file holds the network once.
        self._forward = tf.function(
            functools.partial(_logits, segmenter), input_signature=[self._images]
        )

    @property
    def signature_names(self) -> tuple[str, ...]:
        """The names of the signatures."""
        names = ("serving_default", "probabilities", "labels", "metadata")
        return (*names, "encoded_image") if self._channels in ENCODED_CHANNELS else names

    def save(self, folder: pathlib.Path) -> None:
        """Writes the SavedModel with all signatures."""
        vector = {dtype: tf.TensorSpec([None], dtype) for dtype in (tf.string, tf.int32)}
        signatures = {
            "serving_default": tf.function(self._class_ids, input_signature=[self._images]),
            "probabilities": tf.function(self._probabilities, input_signature=[self._images]),
            "labels": tf.function(self._labels, input_signature=[vector[tf.int32]]),
            "metadata": tf.function(self._metadata, input_signature=[]),
        }
        if self._channels in ENCODED_CHANNELS:
            signatures["encoded_image"] = tf.function(
                self._encoded_image, input_signature=[vector[tf.string]]
            )
        # Whoever serves this may have XLA compile it, on whatever device.
        with backend.resizing_by("gather"):
            tf.saved_model.save(self, str(folder), signatures=signatures)

    def _logits_of_any_batch(self, images: tf.Tensor) -> tf.Tensor:
        # Convolutions of an empty batch fail on CPU: one black image takes its place.
        count = tf.shape(images)[0]
        missing = tf.cast(count == 0, tf.int32)
        finite = tf.reduce_all(tf.math.is_finite(images), axis=[1, 2, 3])
        bad = tf.where(~finite)[:, 0]
        rule = ["images must be finite, but are not at these places of the batch:", bad]
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(finite), rule)]):
            images = tf.pad(images, [[0, missing], [0, 0], [0, 0], [0, 0]])
        return self._forward(images)[:count]

    def _class_ids(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {
            "class_ids": tf.argmax(self._logits_of_any_batch(images), axis=-1, output_type=tf.int32)
        }

    def _probabilities(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": tf.nn.softmax(self._logits_of_any_batch(images))}

    def _encoded_image(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        # One image at a time: sizes differ, and max_image_pixels bounds the memory of one pass.
        masks = tf.map_fn(
            lambda each: self._mask(*each),
            (tf.range(tf.size(image_bytes)), image_bytes),
            fn_output_signature=tf.TensorSpec([], tf.string),
            parallel_iterations=1,
        )
        return {"mask_png_bytes": masks}

    def _mask(self, index: tf.Tensor, image_bytes: tf.Tensor) -> tf.Tensor:
        image = image_files.decode(
            image_bytes,
            self._max_image_pixels,
            self._channels,
            place=("image", index, "of a batch:"),
        )
        size = tf.shape(image)[:2]
        seen = image_files.input_size(size, self._input_size, self._trained_size)
        logits = self._forward(image_files.resize(image, seen)[None])
        # The products with interpolation matrices cost as much as a layer: skipped for equal sizes.
        logits = tf.cond(
            tf.reduce_all(size == seen),
            lambda: logits,
            lambda: resize_bilinear(logits, (size[0], size[1])),
        )
        class_ids = tf.argmax(logits, axis=-1, output_type=tf.int32)[0, :, :, None]
        return tf.io.encode_png(tf.cast(class_ids, mask_dtype(logits.shape[-1])))

    def _labels(self, class_ids: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"names": self._names.lookup(tf.cast(class_ids, tf.int64))}

    def _metadata(self) -> dict[str, tf.Tensor]:
        return {"metadata_json": tf.constant(self._metadata_json)}


def _logits(segmenter: Segmenter, images: tf.Tensor) -> tf.Tensor:
    """Returns float32 logits; checks at run time the rule that Keras checks for static sizes."""
    size = tf.shape(images)[1:3]
    rule = ["height and width must each be at least", common.MIN_SIZE, "pixels, but are", size]
    with tf.control_dependencies(
        [tf.debugging.Assert(tf.reduce_min(size) >= common.MIN_SIZE, rule)]
    ):
        return tf.cast(segmenter(tf.identity(images), training=False), tf.float32)


def check(
    folder: pathlib.Path,
    images: Sequence[np.ndarray],
    references: Sequence[np.ndarray],
    encoded: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    metadata: Mapping[str, Any],
) -> common.Agreement:
    """Loads a SavedModel from disk and calls every signature.

    Args:
        folder: Folder of the SavedModel.
        images: Batches float32 [N, H, W, channels] of whole numbers, of any sizes.
        references: The Keras model's probabilities for each batch.
        encoded: Images [H, W, channels] of whole numbers, of any sizes, for the signature
            encoded_image, if there is one.
        masks: The class ids [H, W] that the Keras model predicts for them.
        metadata: Expected output of the signature `metadata`, with the names of the classes.

    Returns:
        The agreement over all batches.

    Raises:
        common.Disagreement: If a signature returns something else.
    """
    literal = LiteralPath(folder)
    signatures = tf.saved_model.load(literal.path).signatures
    agreements = []
    for batch, reference in zip(images, references, strict=True):
        inputs = tf.constant(batch)
        class_ids = signatures["serving_default"](images=inputs)["class_ids"].numpy()
        probabilities = signatures["probabilities"](images=inputs)["probabilities"].numpy()
        agreement = common.compare(class_ids, probabilities, reference, common.EXACT.tie)
        common.EXACT.check(agreement, "the SavedModel")
        agreements.append(agreement)
    if "encoded_image" in signatures:
        _check_encoded(signatures["encoded_image"], encoded, masks)
    names = list(metadata["class_names"])
    ids = tf.range(len(names) + 1)
    found = [name.decode() for name in signatures["labels"](class_ids=ids)["names"].numpy()]
    if found != [*names, UNKNOWN_LABEL]:
        raise common.Disagreement(f"the signature labels gives {found}")
    if json.loads(signatures["metadata"]()["metadata_json"].numpy()) != json.loads(
        common.to_json(metadata)
    ):
        raise common.Disagreement("the signature metadata is not as written")
    return common.worst(agreements)


def _check_encoded(
    signature: Callable[..., Any], images: Sequence[np.ndarray], masks: Sequence[np.ndarray]
) -> None:
    """Sends images of all sizes as PNG in one call."""
    dtype = tf.uint8 if all(mask.max() < 256 for mask in masks) else tf.uint16
    pngs = [tf.io.encode_png(tf.constant(image, tf.uint8)) for image in images]
    found = signature(image_bytes=tf.stack(pngs))["mask_png_bytes"].numpy()
    for png, mask in zip(found, masks, strict=True):
        class_ids = tf.io.decode_png(png, dtype=dtype).numpy()[..., 0]
        same = class_ids.shape == mask.shape and np.mean(class_ids == mask)
        if same < common.EXACT.same_class:
            raise common.Disagreement(
                "the signature encoded_image disagrees with the Keras model "
                f"(the same class on {100 * same:.2f} % of the pixels)"
            )
