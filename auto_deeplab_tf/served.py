"""Model files: `load_model` reads a .keras file, or the folder of a SavedModel.

The SavedModel may be one of `export.saved_model`, or any other with the same signature.
"""

import contextlib
import json
import math
import os
import threading
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from auto_deeplab_tf import baselines
from auto_deeplab_tf.data.resizing import resize_image
from auto_deeplab_tf.errors import FieldError, MissingFileError, UserError
from auto_deeplab_tf.files import AnyPath, LiteralPath, as_path, local_input
from auto_deeplab_tf.segmenter import Segmenter
from auto_deeplab_tf.training.whole_images import with_area_of
from auto_deeplab_tf.untrusted import check_keras_file

_NEEDED = "serving_default: images float32 [N, H, W, C] -> class_ids int32 [N, H, W]"

# Values that a model has beside those in its file: step counters, metrics of up to 256 classes.
_UNSAVED_VALUES = 2**20
_SEARCH_CLASSES = ("auto_deeplab_tf>Supernet", "auto_deeplab_tf>BilevelModel")
_variables_lock = threading.RLock()


class ServedModel:
    """The part of `Segmenter` that scoring needs, computed by a SavedModel's signatures.

    Args:
        path: What the user named, for messages.
        folder: The folder that holds saved_model.pb.

    Attributes:
        class_names: Those in its signature `metadata`; None where it has none.
        num_classes: Their number, or None.
        image_size: (height, width) that the training images had been resized to, or None.
        palette: None.
        architecture: None.

    Raises:
        UserError: If it cannot be read, or has another signature.
    """

    palette = None
    architecture = None

    def __init__(self, path: str | os.PathLike, folder: AnyPath):
        self._path = path
        literal = LiteralPath(folder)
        try:
            self._loaded = tf.saved_model.load(literal.path)
        except (OSError, ValueError, tf.errors.OpError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"model={path} cannot be read as a SavedModel: {reason}") from error
        self._signatures = self._loaded.signatures
        self._fixed_size, self._channels = self._checked_signature()
        metadata = self._metadata()
        names = metadata.get("class_names")
        self.num_classes = None if names is None else len(names)
        # Numbers stand where the model had no names.
        unnamed = names is None or list(names) == [str(index) for index in range(len(names))]
        self.class_names = None if unnamed else tuple(names or ())
        size = metadata.get("image_size")
        self.image_size = None if size is None else (int(size[0]), int(size[1]))
        self.fingerprint = metadata.get("architecture_fingerprint")

    def _checked_signature(self) -> tuple[tuple[int, int] | None, int | None]:
        """Refuses another signature; returns (height, width) and channels, None where not fixed."""
        found = self._signatures.get("serving_default")
        if found is None:
            raise UserError(
                f"model={self._path} has no signature serving_default; needed is {_NEEDED}"
            )
        inputs, outputs = found.structured_input_signature[1], found.structured_outputs
        images, class_ids = inputs.get("images"), outputs.get("class_ids")
        fits = (
            len(inputs) == 1
            and images is not None
            and class_ids is not None
            and (images.dtype, images.shape.rank) == (tf.float32, 4)
            and (class_ids.dtype, class_ids.shape.rank) == (tf.int32, 3)
        )
        if not fits:
            raise UserError(
                f"model={self._path} takes {_shown(inputs)} and returns {_shown(outputs)}; "
                f"needed is {_NEEDED}"
            )
        height, width, channels = images.shape[1:]
        return None if None in (height, width) else (height, width), channels

    def _metadata(self) -> dict[str, Any]:
        if "metadata" not in self._signatures:
            return {}
        return json.loads(self._signatures["metadata"]()["metadata_json"].numpy())

    def command_input_size(
        self, size: tuple[int, int], input_size: tuple[int, int] | None = None
    ) -> tuple[int, int]:
        """Returns the size at which the network sees an image: see `Segmenter`.

        Raises:
            UserError: If the SavedModel is fixed to another size.
        """
        if self._fixed_size is None:
            seen = size if self.image_size is None else with_area_of(size, self.image_size)
            return input_size or seen
        if input_size not in (None, self._fixed_size):
            height, width = self._fixed_size
            raise UserError(f"model={self._path} takes images of {height}x{width} only")
        return self._fixed_size

    def predict_class_ids(
        self,
        images: np.ndarray,
        *,
        input_size: tuple[int, int] | None = None,
        scales: tuple[float, ...] = (1.0,),
        flip: bool = False,
    ) -> np.ndarray:
        """Segments raw images: [N, H, W, C], 0..255 -> int32 [N, H, W].

        If the network sees 8-bit images at another size, the signature encoded_image predicts what
        the model itself predicts; without it, the class ids are resized by nearest neighbour.

        Args:
            images: The images.
            input_size: (height, width) at which the network sees them; default: their own.
            scales: (1.0,) only.
            flip: False only.

        Raises:
            UserError: If there are scales or flip: they average what a SavedModel does not return;
                for images of other channels, or of a size that the SavedModel refuses.
        """
        if tuple(scales) != (1.0,) or flip:
            raise FieldError(
                f"scales and flip need a .keras file: model={self._path} is a SavedModel, "
                "which returns class ids only",
                "scales",
                "flip",
            )
        if self._channels not in (None, images.shape[-1]):
            raise UserError(
                f"model={self._path} takes images [N, H, W, {self._channels}]. Received: shape "
                f"{list(images.shape)}; evaluate it on images of as many channels"
            )
        size = images.shape[1:3]
        if input_size in (None, size):
            return self._serve(images.astype("float32"))
        encoded = "encoded_image" in self._signatures and images.dtype == np.uint8
        if encoded and input_size == self.command_input_size(size):
            return self._serve_encoded(images)
        seen = np.stack([resize_image(image, input_size) for image in images])
        return _nearest(self._serve(seen.astype("float32")), size)

    def _call(self, signature: str, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        try:
            return self._signatures[signature](**inputs)
        except tf.errors.InvalidArgumentError as error:
            # Between the names of the graph's nodes stands what the SavedModel itself says.
            reason = error.message.partition("\n\t [[")[0].rpartition("\n")[2].strip()
            raise UserError(
                f"model={self._path} refuses the images ({reason[:300]}): give images, or an "
                "input_size, that it takes"
            ) from error

    def _serve(self, images: np.ndarray) -> np.ndarray:
        outputs = self._call("serving_default", images=tf.constant(images))
        return self._checked(outputs["class_ids"].numpy())

    def _serve_encoded(self, images: np.ndarray) -> np.ndarray:
        pngs = tf.stack([tf.io.encode_png(image) for image in images])
        masks = self._call("encoded_image", image_bytes=pngs)["mask_png_bytes"].numpy()
        # Read as they were written: decoded to 16 bits, 8 come out multiplied by 257.
        dtype = tf.uint8 if (self.num_classes or 0) <= 256 else tf.uint16
        decoded = [tf.io.decode_png(mask, dtype=dtype).numpy()[..., 0] for mask in masks]
        return self._checked(np.stack(decoded).astype("int32"))

    def _checked(self, class_ids: np.ndarray) -> np.ndarray:
        limit = self.num_classes
        if class_ids.min() < 0 or (limit is not None and class_ids.max() >= limit):
            raise UserError(
                f"model={self._path} returns class ids {class_ids.min()}..{class_ids.max()}, "
                f"outside of 0..{'' if limit is None else limit - 1}"
            )
        return class_ids


def load_segmenter(path: str | os.PathLike[str], name: str = "model") -> Segmenter:
    """Reads a model file: that of a `Segmenter`, or of a bare network (`build_network(...).save`).

    Args:
        path: The .keras file.
        name: What the file is called in errors: the setting that names it.

    Raises:
        MissingFileError: If there is no such file.
        UserError: If it is no .keras file of a segmentation network, or is damaged.
    """
    rule = "give the model.keras that `python -m auto_deeplab_tf.train` or Segmenter.save wrote"
    if not as_path(path).is_file():
        raise MissingFileError(f"{name}={path}: no such file; {rule}")
    with local_input(path) as local:
        try:
            found = check_keras_file(local)
        except UserError as error:
            raise UserError(f"{name}={path} {error}; {rule}") from None
        if found.class_name in _SEARCH_CLASSES:
            raise UserError(
                f"{name}={path} holds the network of a search, a "
                f"{found.class_name.partition('>')[2]}, not a Segmenter; {rule}"
            )
        baselines.register_classes()
        try:
            with _variables_within(found.num_values + _UNSAVED_VALUES):
                model = keras.saving.load_model(local, safe_mode=True)
        except Exception as error:  # what a changed configuration makes of a constructor: any kind
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{name}={path} cannot be read: {reason}") from error
    if isinstance(model, Segmenter):
        return model
    if not all(hasattr(model, attribute) for attribute in ("num_classes", "mean", "std")):
        raise UserError(f"{name}={path} holds a {type(model).__name__}, not a Segmenter; {rule}")
    return Segmenter(model)


@contextlib.contextmanager
def _variables_within(limit: int) -> Iterator[None]:
    """Refuses variables of this thread that have more than `limit` values together, unallocated.

    A configuration of 1 kB can declare terabytes, and Keras allocates them before it looks for
    their values in the file.
    """
    thread, left = threading.get_ident(), limit

    def checked(
        variable: Any, initializer: Any, shape: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        nonlocal left
        if threading.get_ident() == thread:
            sides = np.shape(initializer) if shape is None else shape
            left -= math.prod((sides,) if isinstance(sides, int) else sides)
            if left < 0:
                raise UserError(
                    "its configuration declares variables larger than the weights that the file has"
                )
        create(variable, initializer, shape, *args, **kwargs)

    with _variables_lock:
        create = keras.Variable.__init__
        keras.Variable.__init__ = checked
        try:
            yield
        finally:
            keras.Variable.__init__ = create


def load_model(path: str | os.PathLike) -> Any:
    """Reads what `--model` names: a .keras file of `Segmenter`, or the folder of a SavedModel.

    A folder of numbered versions stands for the highest.

    Raises:
        FileNotFoundError: where there is neither.
        ValueError: where it is something else, or damaged.
    """
    folder = as_path(path)
    if not folder.is_dir():
        return load_segmenter(path)
    if not (folder / "saved_model.pb").is_file():
        versions = [entry for entry in folder.iterdir() if entry.name.isdecimal()]
        versions = [entry for entry in versions if (entry / "saved_model.pb").is_file()]
        if not versions:
            raise UserError(
                f"model={path} is a folder without a SavedModel (saved_model.pb, there or in a "
                "numbered folder); give one, or a .keras file"
            )
        folder = max(versions, key=lambda entry: int(entry.name))
    return ServedModel(path, folder)


def _nearest(class_ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows, columns = (
        (np.arange(to) + 0.5) * at // to for to, at in zip(size, class_ids.shape[1:], strict=True)
    )
    return class_ids[:, rows.astype(int)][:, :, columns.astype(int)]


def _shown(specs: Any) -> str:
    return ", ".join(
        f"{name} {spec.dtype.name} {spec.shape}" for name, spec in sorted(specs.items())
    )
