"""What an example of a data set must be: the rules that preparing and checking share."""

import dataclasses

import numpy as np

from auto_deeplab_tf.data import catalog, image_files
from auto_deeplab_tf.data.origin import RawExample


@dataclasses.dataclass(frozen=True)
class Problem:
    """One rule that an example breaks: a short name, and the error that says it."""

    kind: str
    error: Exception
    path: str


@dataclasses.dataclass(frozen=True)
class Examined:
    """An example as arrays, as far as it could be read, and what is wrong with it.

    Attributes:
        image: uint8 or uint16 [height, width, channels].
        as_it_is: whether a record can hold the image file's own bytes.
        label: uint8 [height, width], class ids.
        problems: every rule that it breaks.
    """

    image: np.ndarray | None
    as_it_is: bool
    label: np.ndarray | None
    problems: tuple[Problem, ...]


def examine(example: RawExample, info: catalog.Dataset) -> Examined:
    """Decodes an example and compares it with all rules of its data set."""
    image, as_it_is, label, label_ids = None, False, None, None
    problems: list[Problem] = []

    def problem(kind: str, error: Exception, path: str) -> None:
        problems.append(Problem(kind, error, path))

    try:
        image, as_it_is = image_files.read_image(example.image, info)
    except OSError as error:
        text = f"image cannot be read ({error})"
        problem("unreadable image", OSError(text), example.image_path)
    except ValueError as error:
        problem("image of another kind", error, example.image_path)
    try:
        label_ids = image_files.read_label(example.label, info)
    except OSError as error:
        text = f"label map cannot be read ({error})"
        problem("unreadable mask", OSError(text), example.label_path)
    except ValueError as error:
        problem("mask of another kind", error, example.label_path)
    if label_ids is not None:
        try:
            label = info.class_ids(label_ids)
        except ValueError as error:
            problem("id out of range", error, example.label_path)
    if image is not None and label_ids is not None and label_ids.shape != image.shape[:2]:
        text = f"found {_size(image)} and {_size(label_ids)}"
        rule = "image and label map must have the same size"
        problem("size mismatch", ValueError(f"{rule}; {text}"), example.label_path)
    elif image is not None and info.image_size not in (None, image.shape[:2]):
        wanted = f"{info.image_size[0]}x{info.image_size[1]}" if info.image_size else ""
        text = f"images of {info.name} are {wanted}; found {_size(image)}"
        problem("wrong size", ValueError(text), example.image_path)
    return Examined(image, as_it_is, label, tuple(problems))


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]}x{array.shape[1]}"
