"""What images and masks must look like: refused where they cannot be meant, warned of otherwise."""

import contextlib
import math
import numbers
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from auto_deeplab_tf.config.options import MAX_IMAGE_PIXELS
from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.untrusted import shown

_FINITE = (
    "images must be finite, 0..255, but hold NaN or infinity (pixels without data?): put a number "
    "there, such as np.nan_to_num(images), and the ignore label into the masks"
)


def check_form(images: Any, masks: Any, channels: int) -> None:
    """Checks dtypes and shapes of a batch or a whole set, as far as they are known statically.

    Args:
        images: Array or tensor [N, H, W, channels].
        masks: Array or tensor, integers [N, H, W] or [N, H, W, 1].
        channels: Channels of the images.

    Raises:
        UserError: If they have another form; the message says the form wanted.
    """
    image_shape, shape = _shape(images), _shape(masks)
    if shape is not None and len(shape) == 4 and shape[-1] != 1:
        raise UserError(
            "masks must be class ids, integers [N, H, W], neither one-hot nor colours: for one-hot "
            f"masks give masks.argmax(-1). Received: shape {shape}"
        )
    dtype = masks.dtype
    if not (dtype.is_integer if hasattr(dtype, "is_integer") else np.issubdtype(dtype, np.integer)):
        name = getattr(dtype, "name", dtype)
        raise UserError(
            'masks must be integers [N, H, W], class ids: give masks.astype("int32"). '
            f"Received: dtype {name}"
        )
    if shape is not None and len(shape) not in (3, 4):
        raise UserError(
            "masks must be integers [N, H, W], a batch of them (dataset.batch(...), mask[None]). "
            f"Received: shape {shape}"
        )
    if image_shape is None:
        return
    if len(image_shape) != 4 or image_shape[-1] not in (None, channels):
        raise UserError(f"images must be [N, H, W, {channels}]. Received: shape {image_shape}")
    sides = zip(image_shape[:3], shape or (), strict=False)
    if any(None not in pair and pair[0] != pair[1] for pair in sides):
        raise UserError(
            "masks must have one [H, W] for each image, of its height and width. Received: images "
            f"{image_shape}, masks {shape}"
        )


def check_arrays(
    images: Any, masks: Any, channels: int, num_classes: int, ignore_label: int
) -> np.ndarray:
    """Checks whole arrays: their form, and that every label is a class or the ignore label.

    Args:
        images: See `check_form`.
        masks: See `check_form`.
        channels: Channels of the images.
        num_classes: Number of classes.
        ignore_label: Label of the pixels that are not counted.

    Returns:
        Integers [num_classes], the pixels of each class.

    Raises:
        UserError: If they do not fit.
    """
    masks = np.asarray(masks)
    images = images if hasattr(images, "shape") else np.asarray(images)
    check_form(images, masks, channels)
    refuse_not_finite(images)
    strange = masks[(masks != ignore_label) & ((masks < 0) | (masks >= num_classes))]
    if strange.size:
        raise UserError(f"{mask_rule(num_classes, ignore_label)}. Received: {strange.flat[0]}")
    counted = masks[masks != ignore_label]
    return np.bincount(counted, minlength=num_classes)


def checked_labels(masks: tf.Tensor, num_classes: int, ignore_label: int) -> tf.Tensor:
    """Returns labels as they are; running the graph raises where one is out of range.

    The loss and the metrics would count such a label as something. XLA leaves the check out.

    Args:
        masks: Integers of any shape.
        num_classes: Number of classes.
        ignore_label: Label of the pixels that are not counted.
    """
    known = (masks == ignore_label) | ((masks >= 0) & (masks < num_classes))
    return _asserted(masks, known, mask_rule(num_classes, ignore_label))


def checked_images(images: tf.Tensor) -> tf.Tensor:
    """Returns images as they are; running the graph raises where a value is not finite.

    See `refuse_not_finite`. XLA leaves the check out.

    Args:
        images: Of any shape; integers are taken as they are.
    """
    if not images.dtype.is_floating:
        return images
    return _asserted(images, tf.math.is_finite(images), _FINITE)


def _asserted(value: tf.Tensor, holds: tf.Tensor, rule: str) -> tf.Tensor:
    """Returns a value as it is; the graph raises where a condition does not hold everywhere."""
    check = tf.debugging.Assert(tf.reduce_all(holds), [rule])
    with tf.control_dependencies([check] if check is not None else []):
        return tf.identity(value)


@contextlib.contextmanager
def data_errors(num_classes: int, ignore_label: int) -> Iterator[None]:
    """Turns what `checked_labels` and `checked_images` raise into a UserError of one line."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        for rule in (mask_rule(num_classes, ignore_label), _FINITE):
            if rule in str(error):
                raise UserError(rule) from None
        raise


def mask_rule(num_classes: int, ignore_label: int) -> str:
    """Returns the rule for the labels of a mask."""
    return f"masks must hold classes 0..{num_classes - 1} and the ignore label {ignore_label} only"


def warn_of_absent_classes(pixels: Any, ignore_label: int, total: int | None = None) -> None:
    """Warns of classes that have not one pixel in the training masks.

    Args:
        pixels: Integers [num_classes], the pixels of each class.
        ignore_label: Label of the pixels that are not counted.
        total: Number of pixels, ignored ones included, where it is known.
    """
    absent = [str(index) for index in np.flatnonzero(np.asarray(pixels) == 0)]
    if not absent:
        return
    classes = f"class {absent[0]} has" if len(absent) == 1 else f"classes {', '.join(absent)} have"
    remedy = "are the masks numbered from 0, and is num_classes right?"
    if total is not None and (ignored := total - int(np.sum(pixels))):
        remedy = (
            f"{ignored / total:.0%} of the pixels carry the ignore label {ignore_label}: where it "
            "marks a class (masks of 0 and 255), write that class's number into the masks "
            f"(masks[masks == {ignore_label}] = {absent[0]}), or choose another ignore_label"
        )
    warnings.warn(
        f"{classes} not one pixel in the training masks: nothing can be learnt of what has none, "
        f"and a mIoU says nothing of it; {remedy}",
        stacklevel=4,
    )


def refuse_not_finite(images: Any) -> None:
    """Refuses images that hold NaN or infinity.

    The network's activations turn these into zeros: without the check nothing but the result would
    tell of them.

    Args:
        images: Array or tensor [N, H, W, C]; integers are taken as they are.

    Raises:
        UserError: If a value is not finite.
    """
    images = np.asarray(images)
    if np.issubdtype(images.dtype, np.floating) and not np.isfinite(images.sum(dtype="float64")):
        raise UserError(_FINITE)


def check_values(images: Any, mean: Sequence[float], std: Sequence[float]) -> bool:
    """Refuses images that are not finite, and warns of 0..1 where 0..255 is expected.

    Args:
        images: Array or tensor of images; integers are taken as they are.
        mean: What the network subtracts.
        std: What it then divides by.

    Returns:
        Whether it warned.
    """
    images = np.asarray(images)
    refuse_not_finite(images)
    if not np.issubdtype(images.dtype, np.floating) or not images.size or max(*mean, *std) <= 2.0:
        return False
    largest = float(images.max())
    if not 0.0 < largest <= 1.0:
        return False
    warnings.warn(
        f"images must be 0..255, but their largest value is {largest:g}: they look scaled to 0..1 "
        "already. The network normalises by itself: give images * 255, or take the normalisation "
        "out by detach_preprocessing()",
        stacklevel=3,
    )
    return True


def refuse_weights(**weights: Any) -> None:
    """Refuses weights of pixels and classes, which Keras' `fit` would take."""
    for name, value in weights.items():
        if value is not None:
            raise UserError(
                f"Segmenter takes (images, masks) without {name}: weigh classes by "
                "Segmenter(class_weights=...), leave pixels out by the ignore label"
            )


def checked_class_weights(
    weights: Sequence[float] | Mapping[int, float] | None, num_classes: int
) -> tuple[float, ...] | None:
    """Returns one weight a class; those of a dictionary, as Keras takes it, by their class."""
    if weights is None:
        return None
    if isinstance(weights, Mapping):
        if set(weights) != set(range(num_classes)):
            raise UserError(
                f"class_weights must have a weight for each class 0..{num_classes - 1}. "
                f"Received: {dict(weights)}"
            )
        weights = [weights[index] for index in range(num_classes)]
    return tuple(map(float, weights))


def checked_class_names(
    class_names: Sequence[str] | None, num_classes: int
) -> tuple[str, ...] | None:
    """Returns the names of the classes, all different; None stays None."""
    if class_names is None:
        return None
    names = tuple(str(name) for name in class_names)
    if len(names) != num_classes:
        raise UserError(
            f"class_names must be one name per class ({num_classes}). Received: {len(names)} names"
        )
    if len(set(names)) != len(names):
        raise UserError(f"class_names must differ from one another. Received: {names}")
    return names


def checked_ignore_label(label: Any) -> int:
    """Returns the label of the pixels that count nowhere, an integer of 32 bits."""
    whole = isinstance(label, numbers.Integral) and not isinstance(label, bool)
    if not whole or not -(2**31) <= label < 2**31:
        raise UserError(f"ignore_label must be an integer. Received: {shown(label)}")
    return int(label)


def checked_image_size(size: Any) -> tuple[int, int] | None:
    """Returns the size of images as (height, width), within the limit of pixels; None stays None.

    Commands bring images to it, so a model file must not make them allocate without bound.
    """
    if size is None:
        return None
    sides = tuple(int(side) for side in size if isinstance(side, numbers.Integral))
    if len(sides) != 2 or len(size) != 2 or min(sides) < 1 or math.prod(sides) > MAX_IMAGE_PIXELS:
        raise UserError(
            f"image_size must be (height, width), at most {MAX_IMAGE_PIXELS} pixels. "
            f"Received: {shown(size)}"
        )
    return sides


def checked_palette(palette: Any, num_classes: int) -> np.ndarray | None:
    """Returns a palette as uint8 [num_classes, 3]; None stays None."""
    if palette is None:
        return None
    palette = np.asarray(palette)
    if palette.shape != (num_classes, 3) or not np.all((palette >= 0) & (palette <= 255)):
        raise UserError(
            f"palette must be one colour (red, green, blue), 0..255, per class ({num_classes}). "
            f"Received: {palette.tolist()}"
        )
    return palette.astype("uint8")


def _shape(value):
    """The static shape as a list, None for an unknown rank."""
    shape = value.shape
    if getattr(shape, "rank", 0) is None:
        return None
    return [None if side is None else int(side) for side in shape]
