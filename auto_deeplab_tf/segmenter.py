"""`Segmenter`: a segmentation network as a Keras model that trains, predicts and is handed over."""

import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from auto_deeplab_tf import baselines
from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.data.resizing import resize_image
from auto_deeplab_tf.errors import MissingFileError, UserError
from auto_deeplab_tf.nn.backend import require_tensorflow
from auto_deeplab_tf.nn.network import build_network
from auto_deeplab_tf.nn.resize import resize_bilinear
from auto_deeplab_tf.training import whole_images
from auto_deeplab_tf.training.supervised import AUTO, SupervisedModel, default_optimizer

require_tensorflow()

_PREDICT_BATCH_SIZE = 8


@keras.saving.register_keras_serializable(package="auto_deeplab_tf")
class Segmenter(SupervisedModel):
    """A network with all it takes to train it and to use it; saved, it is the hand-over file.

    It is compiled from the start (see `compile`), so `fit` works at once:

        segmenter = Segmenter("auto_deeplab", num_classes=11, filter_multiplier=8)
        segmenter.fit(images, masks, batch_size=4, epochs=10)
        segmenter.save("model.keras")
        class_ids = keras.saving.load_model("model.keras").predict_class_ids(images)

    What a training step does: `training.supervised.SupervisedModel`.

    Args:
        architecture: an `Architecture`, the name of a preset or an architecture file; or a network
            that is there already: a Keras model from images to logits.
        num_classes: number of classes; may be left out where a network is given.
        filter_multiplier: F, filters of a block at stride 4.
        head_channels: channels of the ASPP and the decoder.
        decoder_channels: channels of the low-level feature in the decoder.
        mean: what the network subtracts from its images, for each of their channels: 1, 3 (red,
            green and blue) or 4.
        std: what it then divides by, for each channel.
        drop_path_keep: probability, at the end of training, of keeping a path; 1: no drop path.
        drop_path_seed: seed of the paths dropped.
        batch_norm_decay: decay of the moving statistics of batch normalisation.
        class_names: one name per class.
        palette: uint8 [num_classes, 3], the colour of each class.
        ignore_label: label of the pixels that count nowhere.
        class_weights: weight of each class in the loss (see `training.losses.class_weights`).
        label_smoothing: of the loss, in [0, 1).
        hardest_fraction: share of each image's pixels, hardest first, that the loss counts.
        weight_decay: L2 weight decay on the kernels.
        image_size: (height, width) of the whole images that the training crops were cut from: a
            note for commands that bring images to it. The network itself takes any size.
        dtype: dtype policy of the network, such as "mixed_bfloat16"; logits are float32 always.
        name: name of the model.

    Call arguments:
        images: [N, H, W, C], 0..255, integers or floats; any H and W; C = len(mean).

    Returns of a call: logits, float [N, H, W, num_classes].

    Attributes:
        network: the network inside; baselines stand here too.
        total_steps: number of steps that the drop path schedule spans; `fit` sets it.
        completed_steps: tf.Variable, int64: the steps a training loop has counted so far.
    """

    def __init__(
        self,
        architecture: Architecture | str | os.PathLike | keras.Model,
        num_classes: int | None = None,
        *,
        filter_multiplier: int = 20,
        head_channels: int = 256,
        decoder_channels: int = 48,
        mean: Sequence[float] = (127.5, 127.5, 127.5),
        std: Sequence[float] = (127.5, 127.5, 127.5),
        drop_path_keep: float = 1.0,
        drop_path_seed: int = 0,
        batch_norm_decay: float = 0.9997,
        class_names: Sequence[str] | None = None,
        palette: Any = None,
        ignore_label: int = 255,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        hardest_fraction: float = 1.0,
        weight_decay: float = 4e-5,
        image_size: tuple[int, int] | None = None,
        dtype: Any = None,
        name: str | None = None,
    ):
        if isinstance(architecture, keras.Model):
            network = architecture
        else:
            if num_classes is None:
                raise UserError("num_classes must be given with an architecture. Received: None")
            if not isinstance(architecture, Architecture):
                architecture = Architecture.from_argument(os.fspath(architecture))
            network = build_network(
                architecture,
                num_classes,
                filter_multiplier,
                head_channels=head_channels,
                decoder_channels=decoder_channels,
                mean=mean,
                std=std,
                drop_path_keep=drop_path_keep,
                drop_path_seed=drop_path_seed,
                batch_norm_decay=batch_norm_decay,
                dtype=dtype,
            )
        if num_classes is not None and num_classes != network.num_classes:
            raise UserError(
                f"num_classes must be that of the network ({network.num_classes}). "
                f"Received: {num_classes}"
            )
        super().__init__(
            network,
            network.num_classes,
            ignore_label=ignore_label,
            class_weights=class_weights,
            label_smoothing=label_smoothing,
            hardest_fraction=hardest_fraction,
            weight_decay=weight_decay,
            name=name,
        )
        self.class_names = _checked_class_names(class_names, self.num_classes)
        self.palette = _checked_palette(palette, self.num_classes)
        self.image_size = None if image_size is None else (int(image_size[0]), int(image_size[1]))
        self._saves_optimizer = True
        self._class_ids_function: tuple[Any, Any] = (None, None)

    @property
    def input_channels(self) -> int:
        """Channels of the images, C: those of the network's mean."""
        return len(self.network.mean)

    @property
    def architecture(self) -> Architecture | None:
        """The architecture of the network; None for a baseline, which has none."""
        return getattr(self.network, "architecture", None)

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint of the architecture; None for a baseline."""
        return None if self.architecture is None else self.architecture.fingerprint

    def detach_preprocessing(self) -> keras.layers.Layer:
        """Takes the normalisation of images out of the network and returns it as a layer.

        From then on the model takes images that have passed that layer, for instance in tf.data:
        `segmenter(layer(images))` is what `segmenter(images)` was before. A second call returns a
        layer that changes nothing.
        """
        mean, std = np.asarray(self.network.mean), np.asarray(self.network.std)
        self.network.mean, self.network.std = (0.0,) * len(mean), (1.0,) * len(mean)
        self.train_function = self.test_function = self.predict_function = None
        self._class_ids_function = (None, None)
        return keras.layers.Rescaling((1 / std).tolist(), (-mean / std).tolist())

    def command_input_size(
        self, size: tuple[int, int], input_size: tuple[int, int] | None = None
    ) -> tuple[int, int]:
        """Returns the size that a command brings a whole image to before it is segmented.

        That is `input_size` where one is asked for; else, where the training images had been
        brought to `image_size`, the size with as many pixels and the image's own proportions; else
        its own.
        """
        if input_size is not None:
            return input_size
        return size if self.image_size is None else with_area_of(size, self.image_size)

    # ---- inference

    def class_ids(
        self,
        images: Any,
        size: tuple[int, int] | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
    ) -> tf.Tensor:
        """Segments a batch; runs eagerly or inside a `tf.function`.

        With several scales or `flip` the probabilities are averaged, over every scale and mirror
        image, at the size of the result; the class is the most probable one.

        Args:
            images: [N, h, w, C], 0..255.
            size: (height, width) of the result; left out, that of the images.
            scales: factors by which the images are resized, corners aligned.
            flip: whether to average with the mirrored images too.

        Returns:
            int32 [N, height, width].
        """
        images = tf.cast(images, tf.float32)
        own_size = whole_images.size_of(images)
        answers = []
        for scale in scales:
            scaled = images
            if scale != 1.0:
                scaled = resize_bilinear(images, tuple(_scaled(side, scale) for side in own_size))
            for mirror in (False, True) if flip else (False,):
                logits = self._logits(tf.reverse(scaled, [2]) if mirror else scaled)
                logits = tf.reverse(logits, [2]) if mirror else logits
                if scale != 1.0 or size is not None:
                    logits = resize_bilinear(logits, size or own_size)
                answers.append(logits)
        if len(answers) == 1:
            # Without the softmax, which can round the two best to a tie.
            return tf.argmax(answers[0], axis=-1, output_type=tf.int32)
        mean = tf.add_n([tf.nn.softmax(logits) for logits in answers])
        return tf.argmax(mean, axis=-1, output_type=tf.int32)

    def predict_class_ids(
        self,
        images: Any,
        *,
        input_size: tuple[int, int] | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
    ) -> Any:
        """Segments raw images of any size.

        Args:
            images: 0..255, C channels as the network has them: [H, W, C], [N, H, W, C], or a list
                of [H, W, C] whose sizes may differ.
            input_size: (height, width) that the images are brought to for the network, as records
                are brought to theirs (by area where they shrink); left out, their own.
            scales: see `class_ids`.
            flip: see `class_ids`.

        Returns:
            NumPy int32 at the size of the images: [H, W], [N, H, W], or a list of [H, W].
        """
        options: dict[str, Any] = {"input_size": input_size, "scales": scales, "flip": flip}
        if isinstance(images, (list, tuple)):
            return [self.predict_class_ids(image, **options) for image in images]
        images, channels = np.asarray(images), self.input_channels
        if images.ndim not in (3, 4) or images.shape[-1] != channels:
            raise UserError(
                f"predict_class_ids takes images [H, W, {channels}] or [N, H, W, {channels}], or a "
                f"list of [H, W, {channels}]. Received: shape {list(images.shape)}"
            )
        if images.ndim == 3:
            return self.predict_class_ids(images[None], **options)[0]
        size = images.shape[1:3]
        result = np.zeros(images.shape[:3], "int32")
        for start in range(0, len(images), _PREDICT_BATCH_SIZE):
            batch = images[start : start + _PREDICT_BATCH_SIZE]
            part = slice(start, start + len(batch))
            if input_size is None or input_size == size:
                result[part] = self._run_class_ids(batch, None, scales, flip)
            else:
                seen = np.stack([resize_image(image, input_size) for image in batch])
                result[part] = self._run_class_ids(seen, size, scales, flip)
        return result

    def _run_class_ids(self, images, size, scales, flip):
        """Runs `class_ids` compiled for these options; the last ones stay compiled."""
        options = (size is None, tuple(scales), flip)
        if self._class_ids_function[0] != options:

            def run(images, size):
                size = None if size is None else (size[0], size[1])
                return self.class_ids(images, size, scales, flip)

            self._class_ids_function = (options, tf.function(run, reduce_retracing=True))
        size = None if size is None else tf.constant(size)
        return self._class_ids_function[1](tf.constant(images), size).numpy()

    # ---- the hand-over file

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "architecture": keras.saving.serialize_keras_object(self.network),
            "class_names": None if self.class_names is None else list(self.class_names),
            "palette": None if self.palette is None else self.palette.tolist(),
            "ignore_label": self.ignore_label,
            "class_weights": None if self.class_weights is None else list(self.class_weights),
            "label_smoothing": self.label_smoothing,
            "hardest_fraction": self.hardest_fraction,
            "weight_decay": self.weight_decay,
            "image_size": self.image_size,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> "Segmenter":
        config = dict(config)
        baselines.register_classes()
        network = keras.saving.deserialize_keras_object(
            config.pop("architecture"), custom_objects=custom_objects
        )
        return cls(network, **config)

    def get_compile_config(self) -> dict[str, Any]:
        config = super().get_compile_config()
        for name in ("loss_weights", "weighted_metrics"):
            config.pop(name, None)
        if self._auto_optimizer or not self._saves_optimizer:
            config["optimizer"] = AUTO
        config["loss"] = (
            AUTO if self._auto_loss else keras.saving.serialize_keras_object(self._loss_function)
        )
        return config

    def compile_from_config(self, config: Mapping[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(dict(config)))
        if not self._auto_optimizer:
            self.optimizer.build(self.trainable_variables)

    def save(
        self,
        filepath: str | os.PathLike,
        overwrite: bool = True,
        *,
        include_optimizer: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Saves the model as one .keras file, which `keras.saving.load_model` reads.

        Args:
            filepath: file to write, ending in .keras.
            overwrite: as in Keras.
            include_optimizer: whether the optimizer goes into the file too, its momentum being as
                much again as the weights. Left out: where `compile` was given an optimizer.
            **kwargs: the other arguments of `keras.Model.save`.
        """
        optimizer, before = self.optimizer, self._saves_optimizer
        if include_optimizer is None:
            include_optimizer = not self._auto_optimizer
        self._saves_optimizer = include_optimizer
        if not include_optimizer:
            self.optimizer = default_optimizer()  # as `compile` makes it for the model that is read
        try:
            super().save(os.fspath(filepath), overwrite=overwrite, **kwargs)
        finally:
            self.optimizer, self._saves_optimizer = optimizer, before

    def export(
        self,
        filepath: str | os.PathLike,
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        input_signature: Any = None,
        **kwargs: Any,
    ) -> None:
        """Exports the logits as `keras.Model.export` does; `export.saved_model` serves class ids.

        Args:
            filepath: folder or file to write.
            format: as in Keras.
            verbose: as in Keras.
            input_signature: as in Keras; left out, float32 [N, H, W, C] of any size.
            **kwargs: as in Keras.
        """
        if input_signature is None:
            shape = (None, None, None, self.input_channels)
            input_signature = [keras.InputSpec("float32", shape, name="images")]
        super().export(os.fspath(filepath), format, verbose, input_signature, **kwargs)


def with_area_of(size: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    """Returns the size with the proportions of the first and as many pixels as the second."""
    factor = (math.prod(other) / math.prod(size)) ** 0.5
    return round(size[0] * factor) or 1, round(size[1] * factor) or 1


def load_segmenter(path: str | os.PathLike, flag: str = "--model") -> Segmenter:
    """Reads the model file that a flag names.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is no .keras file of a `Segmenter`, or is damaged.
    """
    rule = "give the model.keras that `python -m auto_deeplab_tf.train` or Segmenter.save wrote"
    if not os.path.isfile(path):
        raise MissingFileError(f"{flag}={path}: no such file; {rule}")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{flag}={path} is no .keras file; {rule}")
    try:
        model = keras.saving.load_model(path)
    except (ValueError, TypeError, KeyError, OSError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{flag}={path} cannot be read: {reason}") from error
    if not isinstance(model, Segmenter):
        raise UserError(f"{flag}={path} holds a {type(model).__name__}, not a Segmenter; {rule}")
    return model


def _scaled(side, scale):
    """A side times `scale`, corners aligned: as many whole steps of 1 / scale as lie within it."""
    if isinstance(side, int):
        return round((side - 1) * scale) + 1
    return tf.cast(tf.round(tf.cast(side - 1, tf.float32) * scale), tf.int32) + 1


def _checked_class_names(class_names, num_classes):
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


def _checked_palette(palette, num_classes):
    if palette is None:
        return None
    palette = np.asarray(palette)
    if palette.shape != (num_classes, 3) or not np.all((palette >= 0) & (palette <= 255)):
        raise UserError(
            f"palette must be one colour (red, green, blue), 0..255, per class ({num_classes}). "
            f"Received: {palette.tolist()}"
        )
    return palette.astype("uint8")
