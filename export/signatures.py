"""The graph functions of the served SavedModel: one forward pass, and the signatures around it."""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from auto_deeplab_tf.nn.resize import resize_bilinear
from auto_deeplab_tf.segmenter import Segmenter
from export import common

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
HEADER_BYTES = 24  # of a PNG file up to the end of its width and height
UNKNOWN_LABEL = "unknown"


def decode_image(image_bytes: tf.Tensor, max_pixels: int) -> tf.Tensor:
    """Decodes PNG (grey, palette, RGB, with alpha, 8 or 16 bit) or JPEG to RGB.

    The size is read from the header and checked first: a file of a few kB may claim gigabytes.

    Args:
        image_bytes: string [].
        max_pixels: largest height times width.

    Returns:
        uint8 [H, W, 3]; alpha is dropped, 16 bits are cut to the upper 8.

    Raises:
        tf.errors.InvalidArgumentError: for other bytes, for a side shorter than MIN_SIZE, and for
            a larger image.
    """
    padded = tf.strings.join([tf.strings.substr(image_bytes, 0, HEADER_BYTES), "\0" * HEADER_BYTES])
    header = tf.io.decode_raw(tf.strings.substr(padded, 0, HEADER_BYTES), tf.uint8)
    is_png = tf.reduce_all(header[: len(PNG_MAGIC)] == tf.constant(list(PNG_MAGIC), tf.uint8))
    is_jpeg = tf.reduce_all(header[: len(JPEG_MAGIC)] == tf.constant(list(JPEG_MAGIC), tf.uint8))
    known = tf.debugging.Assert(is_png | is_jpeg, ["image_bytes must hold a PNG or JPEG file."])
    # An operation without state, such as a decoder, would not wait for an assertion by itself.
    with tf.control_dependencies([known]):
        # IHDR: width, then height, each 4 bytes, the highest first.
        sides = tf.reshape(tf.cast(header[16:24], tf.float64), [2, 4])
        png_size = tf.linalg.matvec(
            sides, tf.constant([2.0**24, 2.0**16, 2.0**8, 1.0], tf.float64)
        )[::-1]
        size = tf.cond(
            is_jpeg,
            lambda: tf.cast(tf.io.extract_jpeg_shape(image_bytes)[:2], tf.float64),
            lambda: png_size,
        )
    large = tf.debugging.Assert(
        tf.reduce_min(size) >= common.MIN_SIZE,
        ["height and width of an image must each be at least", common.MIN_SIZE, "but are", size],
    )
    bounded = tf.debugging.Assert(
        tf.reduce_prod(size) <= max_pixels,
        ["an image must have at most", max_pixels, "pixels, but its size is", size],
    )
    with tf.control_dependencies([large, bounded]):
        return tf.cond(
            is_jpeg,
            lambda: tf.io.decode_jpeg(image_bytes, channels=3),
            lambda: tf.io.decode_png(image_bytes, channels=3),
        )


def mask_dtype(num_classes: int) -> tf.DType:
    """Returns the dtype of the pixels of a mask."""
    return tf.uint8 if num_classes <= 256 else tf.uint16


class ServedSegmenter(tf.Module):
    """A segmenter with the signatures it is served by.

    | signature | inputs | outputs |
    |---|---|---|
    | serving_default | images float32 [N, H, W, 3], 0..255, RGB | class_ids int32 [N, H, W] |
    | probabilities | images, as above | probabilities float32 [N, H, W, C] |
    | encoded_image | image_bytes string [N], PNG or JPEG of any sizes | mask_png_bytes string [N] |
    | labels | class_ids int32 [N] | names string [N] |
    | metadata | - | metadata_json string [] |

    A mask has the size of its image; its values are the class ids. The names end in `_bytes` since
    TensorFlow Serving's REST interface sends such strings as base64. With a fixed input size an
    encoded image is resized to it, and its logits back to the image's size before the argmax.

    Args:
        segmenter: the model.
        input_size: (height, width), or None where both stay free.
        labels_file: text file of the class names, one a line in the order of the ids; it becomes
            an asset.
        metadata_json: what the signature `metadata` returns.
        max_image_pixels: largest height times width of an encoded image.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        *,
        input_size: tuple[int, int] | None,
        labels_file: pathlib.Path,
        metadata_json: str,
        max_image_pixels: int,
    ):
        super().__init__()
        self._input_size = input_size
        self._metadata_json = metadata_json
        self._max_image_pixels = max_image_pixels
        # Variables and tables are saved where they hang on the saved object; layers need not be.
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
        self._images = tf.TensorSpec([None, height, width, 3], tf.float32, name="images")
        # One traced forward pass under all signatures: the file holds the network once.
        self._forward = tf.function(
            lambda images: tf.cast(segmenter(images, training=False), tf.float32),
            input_signature=[self._images],
        )

    def save(self, folder: pathlib.Path) -> None:
        """Writes the SavedModel with all signatures."""
        vector = {dtype: tf.TensorSpec([None], dtype) for dtype in (tf.string, tf.int32)}
        signatures = {
            "serving_default": tf.function(self._class_ids, input_signature=[self._images]),
            "probabilities": tf.function(self._probabilities, input_signature=[self._images]),
            "encoded_image": tf.function(self._encoded_image, input_signature=[vector[tf.string]]),
            "labels": tf.function(self._labels, input_signature=[vector[tf.int32]]),
            "metadata": tf.function(self._metadata, input_signature=[]),
        }
        tf.saved_model.save(self, str(folder), signatures=signatures)

    def _logits(self, images: tf.Tensor) -> tf.Tensor:
        # Convolutions of an empty batch fail on CPU: it goes through as one black image.
        count = tf.shape(images)[0]
        missing = tf.cast(count == 0, tf.int32)
        return self._forward(tf.pad(images, [[0, missing], [0, 0], [0, 0], [0, 0]]))[:count]

    def _class_ids(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"class_ids": tf.argmax(self._logits(images), axis=-1, output_type=tf.int32)}

    def _probabilities(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": tf.nn.softmax(self._logits(images))}

    def _encoded_image(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        # One image at a time: sizes differ, and max_image_pixels bounds the memory of one pass.
        masks = tf.map_fn(
            self._mask,
            image_bytes,
            fn_output_signature=tf.TensorSpec([], tf.string),
            parallel_iterations=1,
        )
        return {"mask_png_bytes": masks}

    def _mask(self, image_bytes: tf.Tensor) -> tf.Tensor:
        image = decode_image(image_bytes, self._max_image_pixels)
        images = tf.cast(image, tf.float32)[None]
        if self._input_size is None:
            logits = self._forward(images)
        else:
            resized = tf.image.resize(images, self._input_size, antialias=True)
            size = tf.shape(image)
            logits = resize_bilinear(self._forward(resized), (size[0], size[1]))
        class_ids = tf.argmax(logits, axis=-1, output_type=tf.int32)[0, :, :, None]
        return tf.io.encode_png(tf.cast(class_ids, mask_dtype(logits.shape[-1])))

    def _labels(self, class_ids: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"names": self._names.lookup(tf.cast(class_ids, tf.int64))}

    def _metadata(self) -> dict[str, tf.Tensor]:
        return {"metadata_json": tf.constant(self._metadata_json)}


def check(
    folder: pathlib.Path,
    images: Sequence[np.ndarray],
    references: Sequence[np.ndarray],
    metadata: Mapping,
) -> common.Agreement:
    """Loads a SavedModel from disk and asks every signature.

    Args:
        folder: of the SavedModel.
        images: batches float32 [N, H, W, 3] of whole numbers; sizes may differ between batches.
        references: the Keras model's probabilities for each batch.
        metadata: what the signature `metadata` must give, with the names of the classes.

    Returns:
        The agreement over all batches.

    Raises:
        common.Disagreement: where a signature does not answer as it should.
    """
    signatures = tf.saved_model.load(str(folder)).signatures
    agreements = []
    for batch, reference in zip(images, references, strict=True):
        inputs = tf.constant(batch)
        class_ids = signatures["serving_default"](images=inputs)["class_ids"].numpy()
        probabilities = signatures["probabilities"](images=inputs)["probabilities"].numpy()
        agreement = common.compare(class_ids, probabilities, reference, common.EXACT.tie)
        common.EXACT.check(agreement, "the SavedModel")
        agreements.append(agreement)
    _check_encoded(signatures["encoded_image"], images, references)
    names = list(metadata["class_names"])
    ids = tf.range(len(names) + 1)
    answered = [name.decode() for name in signatures["labels"](class_ids=ids)["names"].numpy()]
    if answered != [*names, UNKNOWN_LABEL]:
        raise common.Disagreement(f"the signature labels gives {answered}; nothing was published.")
    if json.loads(signatures["metadata"]()["metadata_json"].numpy()) != json.loads(
        common.to_json(metadata)
    ):
        raise common.Disagreement(
            "the signature metadata is not as written; nothing was published."
        )
    return common.worst(agreements)


def _check_encoded(
    signature: Callable, images: Sequence[np.ndarray], references: Sequence[np.ndarray]
) -> None:
    """Sends all batches as PNG in one call; a mask must agree as the class ids do."""
    pngs = [tf.io.encode_png(tf.constant(image, tf.uint8)) for batch in images for image in batch]
    masks = signature(image_bytes=tf.stack(pngs))["mask_png_bytes"].numpy()
    expected = [probabilities for batch in references for probabilities in batch]
    for mask, probabilities in zip(masks, expected, strict=True):
        class_ids = tf.io.decode_png(mask, dtype=mask_dtype(probabilities.shape[-1])).numpy()
        agreement = common.compare(
            class_ids[..., 0], probabilities, probabilities, common.EXACT.tie
        )
        common.EXACT.check(agreement, "the signature encoded_image")
