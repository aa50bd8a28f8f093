"""`Segmenter`: a segmentation network as a Keras model that trains, predicts and is handed over."""

import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from auto_deeplab_tf import baselines
from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.config import LossConfig, RunConfig, SegmenterConfig
from auto_deeplab_tf.data.resizing import resize_image
from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.nn.backend import require_tensorflow
from auto_deeplab_tf.nn.network import Network
from auto_deeplab_tf.training import distribution, inputs, loop, losses, whole_images
from auto_deeplab_tf.training.checkpoints import Checkpoints
from auto_deeplab_tf.training.keras_data import KerasData, split_off, validation
from auto_deeplab_tf.training.metrics import ConfusionMatrix, MatrixScore, score
from auto_deeplab_tf.training.optimizers import default_optimizer, with_loss_scaling
from auto_deeplab_tf.untrusted import shown

require_tensorflow()

AUTO = "auto"
_PREDICT_BATCH_SIZE = 8


@keras.saving.register_keras_serializable(package="auto_deeplab_tf")
class Segmenter(keras.Model):
    """A network with all it takes to train it and to use it; saved, it is the hand-over file.

    It is compiled from the start (see `compile`), so `fit` works at once:

        segmenter = Segmenter("auto_deeplab", num_classes=11, filter_multiplier=8)
        segmenter.fit(images, masks, batch_size=4, epochs=10)
        segmenter.save("model.keras")
        class_ids = keras.saving.load_model("model.keras").predict_class_ids(images)

    A training step minimises, over the batch of all replicas together,

        sum over pixels of the loss / number of pixels that are not ignored

    (`training.losses.segmentation_loss`) and adds `weight_decay` * w to the gradient of every
    kernel w. Keras' own `weight_decay` is decoupled from the gradient and acts otherwise.

    Args:
        architecture: An `Architecture`, the name of a preset or an architecture file; or a network
            that exists already: a Keras model from images to logits.
        num_classes: Number of classes; may be left out where a network is given.
        settings: The network's settings and those of its loss, or their fields as keywords
            (`filter_multiplier=8, weight_decay=0, ...`). Of a network that exists already only the
            loss is set.
        class_names: One name per class.
        palette: uint8 [num_classes, 3], the colour of each class.
        ignore_label: Label of the pixels that count nowhere.
        class_weights: Weight of each class in the loss (see `training.losses.class_weights`), as
            numbers or as Keras' dictionary of class and weight.
        image_size: (height, width) of the whole images that the training crops were cut from: a
            note for commands that bring images to it. The network itself takes any size.
        name: Name of the model.
        **keywords: The fields of `settings`, and `mean`, `std`, `drop_path_seed` and `dtype` of
            `nn.network.Network`.

    Call arguments:
        images: [N, H, W, C], 0..255, integers or floats; any H and W; C = len(mean).

    Returns of a call: logits, float [N, H, W, num_classes].

    Attributes:
        network: The network inside; baselines stand here too.
        total_steps: Number of steps that the drop path schedule spans; `fit` sets it.
        completed_steps: tf.Variable, int64: the steps that the training has done so far.
        traced_step: See `training.loop.fit`.
    """

    def __init__(
        self,
        architecture: Architecture | str | os.PathLike | keras.Model,
        num_classes: int | None = None,
        settings: SegmenterConfig | None = None,
        *,
        class_names: Sequence[str] | None = None,
        palette: Any = None,
        ignore_label: int = 255,
        class_weights: Sequence[float] | Mapping[int, float] | None = None,
        image_size: tuple[int, int] | None = None,
        name: str | None = None,
        **keywords: Any,
    ):
        settings, of_network = SegmenterConfig.given(
            settings, keywords, ("mean", "std", "drop_path_seed")
        )
        if isinstance(architecture, keras.Model):
            network = architecture
        else:
            if num_classes is None:
                raise UserError("num_classes must be given with an architecture. Received: None")
            if not isinstance(architecture, Architecture):
                architecture = Architecture.from_argument(os.fspath(architecture))
            network = Network(architecture, num_classes, settings, **of_network)
        if num_classes is not None and num_classes != network.num_classes:
            raise UserError(
                f"num_classes must be that of the network ({network.num_classes}). "
                f"Received: {num_classes}"
            )
        # Images reach the network in float32 whatever its own precision: bfloat16 holds no
        # fractions near 255.
        super().__init__(dtype="float32", name=name)
        self.network = network
        self.num_classes = network.num_classes
        self.settings = settings.part(LossConfig)
        self.ignore_label = inputs.checked_ignore_label(ignore_label)
        self.class_weights = inputs.checked_class_weights(class_weights, self.num_classes)
        self.class_names = inputs.checked_class_names(class_names, self.num_classes)
        self.palette = inputs.checked_palette(palette, self.num_classes)
        self.image_size = inputs.checked_image_size(image_size)
        self.total_steps: int | None = None
        self.completed_steps = distribution.step_counter()
        self._confusion = ConfusionMatrix(self.num_classes, self.ignore_label)
        self._saves_optimizer = True
        self._is_saving = False
        self.built = True
        self.compile()

    def call(self, images: Any, training: bool | None = None) -> Any:
        """Computes the logits of images; see the class."""
        return self.network(keras.ops.cast(images, "float32"), training=training)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Returns the shape of the logits."""
        return (*input_shape[:-1], self.num_classes)

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
        self.traced_step = self.test_function = self.predict_function = None
        for name in ("_class_ids_function", "_logits_function"):
            self.__dict__.pop(name, None)
        return keras.layers.Rescaling((1 / std).tolist(), (-mean / std).tolist())

    def command_input_size(
        self, size: tuple[int, int], input_size: tuple[int, int] | None = None
    ) -> tuple[int, int]:
        """Returns the size that a command resizes a whole image to before it is segmented.

        That is `input_size` where one is asked for; else, where the training images had been
        resized to `image_size`, the size with as many pixels and the image's own proportions; else
        its own.
        """
        if input_size is not None:
            return input_size
        return size if self.image_size is None else whole_images.with_area_of(size, self.image_size)

    # ---- training

    def compile(
        self,
        optimizer: Any = AUTO,
        loss: Callable[[tf.Tensor, tf.Tensor], losses.SumAndWeight] | str = AUTO,
        metrics: Any = None,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: bool = False,
    ) -> None:
        """Chooses optimizer, loss and further metrics; the constructor calls it with the defaults.

        Where the network computes in float16 the optimizer scales its loss: a step whose gradient
        is not finite is left out, and the scale halved.

        Args:
            optimizer: A Keras optimizer. `"auto"`: SGD with momentum 0.9 and a poly learning rate
                from 0.05 down to 0, begun anew by every `fit` and spanning all of its steps.
            loss: A function (labels, logits) -> (sum, weight) such as `segmentation_loss` gives.
                `"auto"`: that one, with the settings of the constructor.
            metrics: Keras metrics besides loss, mIoU and pixel accuracy, which are always there.
            run_eagerly: As in Keras.
            steps_per_execution: As in Keras, for `evaluate` and `predict`; `fit` takes the steps
                one by one.
            jit_compile: As in Keras, but off: with deterministic operations XLA has no gradient of
                max pooling.
        """
        self._auto_optimizer = isinstance(optimizer, str) and optimizer == AUTO
        self._auto_loss = isinstance(loss, str) and loss == AUTO
        if not self._auto_loss and (isinstance(loss, str) or not callable(loss)):
            raise UserError(
                "loss must be 'auto' or a function (labels, logits) -> (sum, weight). "
                f"Received: {loss!r}"
            )
        self._loss_function: Callable[[tf.Tensor, tf.Tensor], losses.SumAndWeight] = (
            losses.segmentation_loss(
                self.num_classes, self.ignore_label, self.class_weights, self.settings
            )
            if isinstance(loss, str)
            else loss
        )
        # Past Keras, which would report a metric that it finds here after a later compile too.
        object.__setattr__(self, "_further_metrics", metrics)
        self.traced_step = None
        super().compile(
            optimizer=self._prepared(default_optimizer() if self._auto_optimizer else optimizer),
            metrics=[
                *(MatrixScore(self._confusion, name) for name in ("miou", "pixel_accuracy")),
                *tf.nest.flatten(() if metrics is None else metrics),
            ],
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
        )

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: int | str = "auto",
        callbacks: Sequence[keras.callbacks.Callback] | None = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: None = None,
        sample_weight: None = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int | Sequence[int] = 1,
        *,
        checkpoints: Checkpoints | None = None,
        checkpoint_every_steps: int | None = None,
        log_every_steps: int = RunConfig.log_every_steps,
        max_hours: float | None = None,
    ) -> keras.callbacks.History:
        """Trains as `keras.Model.fit` does, on images and integer masks, by `training.loop.fit`.

        Args:
            x: Images [N, H, W, C], 0..255; or batches (images, masks) as a `tf.data.Dataset`, a
                `keras.utils.PyDataset` or a generator; or data addressable by step, a function
                step -> `tf.data.Dataset` of the batches from that step on. With the last the
                training starts at `completed_steps`, whatever `initial_epoch` says.
            y: Masks, integers [N, H, W], where `x` is an array.
            batch_size: As in Keras.
            epochs: As in Keras.
            verbose: As in Keras.
            callbacks: As in Keras.
            validation_split: As in Keras: the last images of arrays are set apart.
            validation_data: As in Keras; or a function epoch -> logs of that epoch.
            shuffle: As in Keras.
            class_weight: Refused: the constructor takes `class_weights`.
            sample_weight: Refused: pixels are left out by the ignore label.
            initial_epoch: As in Keras.
            steps_per_epoch: As in Keras.
            validation_steps: As in Keras.
            validation_batch_size: As in Keras.
            validation_freq: As in Keras.
            checkpoints: Where the state of the training is written, see `training.loop.fit`.
            checkpoint_every_steps: Write a checkpoint also within an epoch.
            log_every_steps: Read the losses from the device after every so many steps.
            max_hours: With checkpoints, end the process so many hours after it began.

        Raises:
            UserError: If masks have another form or other values than classes and the ignore label,
                if weights of samples or classes are given, or if the number of steps is unknown and
                the learning rate needs it.
            RunError: If the loss is not finite.
        """
        inputs.refuse_weights(class_weight=class_weight, sample_weight=sample_weight)
        if not self.trainable_variables:
            raise UserError(
                "no variable is trainable: set trainable = True, of the model or of its layers"
            )
        if validation_split and validation_data is None:
            x, y, validation_data = split_off(x, y, validation_split)
        if y is not None:
            pixels = inputs.check_arrays(
                x, y, self.input_channels, self.num_classes, self.ignore_label
            )
            inputs.warn_of_absent_classes(pixels, self.ignore_label, np.size(y))
        by_step = callable(x)
        with self.distribute_strategy.scope():
            data = (
                x
                if by_step
                else KerasData(x, y, batch_size, steps_per_epoch, shuffle, self.ignore_label)
            )
            steps = steps_per_epoch if by_step else data.steps_per_epoch
            if steps is not None:
                self.total_steps = epochs * steps
            elif self._auto_optimizer or by_step:
                raise UserError(
                    "fit cannot tell the number of steps, which the poly learning rate needs: give "
                    "steps_per_epoch, or compile with an optimizer of your own"
                )
            if self._auto_optimizer:
                self.optimizer = self._prepared(default_optimizer(self.total_steps))
                self.optimizer.iterations.assign(initial_epoch * (steps or 0))
                self.traced_step = None
            self.optimizer.build(self.trainable_variables)
            container = loop.callback_list(
                self, callbacks or (), epochs, steps, 1 if verbose == "auto" else int(verbose)
            )
            validate = validation(
                self.evaluate,
                validation_data,
                validation_freq,
                batch_size=validation_batch_size or batch_size,
                steps=validation_steps,
                callbacks=container,
            )

            def end_of_epoch(epoch: int) -> Mapping[str, Any]:
                if not by_step and y is None and epoch == initial_epoch:
                    pixels = self.confusion_matrix.sum(axis=1)
                    inputs.warn_of_absent_classes(pixels, self.ignore_label)
                return validate(epoch)

            with inputs.data_errors(self.num_classes, self.ignore_label):
                history = loop.fit(
                    self,
                    data if by_step else lambda step: self._watched(data(step)),
                    epochs=epochs,
                    steps_per_epoch=steps,
                    initial_epoch=None if by_step else initial_epoch,
                    validate=end_of_epoch,
                    callbacks=container,
                    checkpoints=checkpoints,
                    checkpoint_every_steps=checkpoint_every_steps,
                    log_every_steps=log_every_steps,
                    max_hours=max_hours,
                    eager=self.run_eagerly,
                )
            self.optimizer.finalize_variable_values(self.trainable_variables)
        return history

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: int | str = "auto",
        sample_weight: None = None,
        steps: int | None = None,
        callbacks: Any = None,
        return_dict: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Scores labelled images as `keras.Model.evaluate` does; warns where all are ignored.

        Args:
            x: See `fit`.
            y: See `fit`.
            batch_size: As in Keras.
            verbose: As in Keras.
            sample_weight: Refused: pixels are left out by the ignore label.
            steps: As in Keras.
            callbacks: As in Keras.
            return_dict: As in Keras.
            **kwargs: As in Keras.

        Returns:
            As in Keras: loss, miou, pixel_accuracy and further metrics; scores are NaN where every
            pixel is ignored.
        """
        inputs.refuse_weights(sample_weight=sample_weight)
        if y is not None:
            inputs.check_form(np.asarray(x), np.asarray(y), self.input_channels)
        if self.distribute_strategy.num_replicas_in_sync > 1:
            with self.distribute_strategy.scope():
                data = KerasData(x, y, batch_size, shuffle=False, ignore_label=self.ignore_label)
            x, y, batch_size = data.dataset, None, None
        with inputs.data_errors(self.num_classes, self.ignore_label):
            result = super().evaluate(
                x, y, batch_size, verbose, None, steps, callbacks, return_dict, **kwargs
            )
        if not self.confusion_matrix.any():
            warnings.warn(
                f"there is no score: all pixels carry the ignore label {self.ignore_label}",
                stacklevel=2,
            )
        return result

    def predict(self, x: Any, batch_size: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """Computes logits as `keras.Model.predict` does.

        Batches may have any number of images on any number of devices: those that the devices
        cannot share equally are filled, and the result is cut.

        Args:
            x: Images [N, H, W, C], 0..255, or what Keras takes besides.
            batch_size: As in Keras.
            *args: As in Keras.
            **kwargs: As in Keras.

        Returns:
            float32 [N, H, W, num_classes].
        """
        if self.distribute_strategy.num_replicas_in_sync == 1:
            return super().predict(x, batch_size, *args, **kwargs)
        with self.distribute_strategy.scope():
            data = KerasData(x, None, batch_size, shuffle=False, predicts=True)
        result = super().predict(data.dataset, None, *args, **kwargs)
        # Of a data set that is distributed already, the logits of all of its images.
        return result[0][result[1] == 1] if isinstance(result, tuple) else result

    def predict_step(self, data: Any) -> Any:
        """Returns the logits of a batch; on several devices beside them which images were given."""
        logits = super().predict_step(data)
        _, given, _ = keras.utils.unpack_x_y_sample_weight(data)
        is_filled = self._num_replicas() > 1 and given is not None and given.shape.rank == 1
        return (logits, given) if is_filled else logits

    def train_step(self, data: Any) -> dict[str, Any]:
        """Takes one step on a batch, or this replica's share of it; returns the metrics so far."""
        images, labels = self._unpacked(data)
        images = inputs.checked_images(images)
        self._update_drop_path()
        variables = self.trainable_variables
        with tf.GradientTape() as tape:
            logits = self(images, training=True)
            loss_sum, weight_sum = self._loss_function(labels, logits)
            loss = losses.normalized(loss_sum, weight_sum)
            for extra in self.losses:
                loss += extra / self._num_replicas()
            loss = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(loss, variables)
        # Each replica adds its share: the optimizer sums the gradients of all of them.
        weight_decay = self.settings.weight_decay / self._num_replicas()
        decay = self.optimizer.scale_loss(tf.constant(weight_decay))
        gradients = [
            _with_decay(gradient, variable, decay)
            for gradient, variable in zip(gradients, variables, strict=True)
        ]
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return self._update_metrics(images, labels, logits, loss_sum, weight_sum)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Scores a batch, or this replica's share of it; returns the metrics so far."""
        images, labels = self._unpacked(data)
        logits = self._logits(images)
        loss_sum, weight_sum = self._loss_function(labels, logits)
        return self._update_metrics(images, labels, logits, loss_sum, weight_sum)

    def score(self, batches: tf.data.Dataset) -> tuple[float, np.ndarray]:
        """Scores labelled whole images, each once, on the first device only.

        Unlike `evaluate` it leaves the metrics of the training alone, and takes a last batch of any
        size under every strategy.

        Args:
            batches: (images [n, H, W, C], labels [n, H, W]).

        Returns:
            (loss, matrix): Mean over all pixels; int64 [num_classes, num_classes], rows the labels.

        Raises:
            UserError: If every pixel is ignored.
        """
        loss, matrix = score(
            self._logits_function,
            batches,
            self.num_classes,
            self.ignore_label,
            loss=self._loss_function,
        )
        return float(loss or 0.0), matrix

    @property
    def confusion_matrix(self) -> np.ndarray:
        """int64 [num_classes, num_classes] of the last epoch or evaluation, rows the labels."""
        # Saving looks at every property, in one worker alone: this one would ask the others.
        return np.zeros((0, 0), "int64") if self._is_saving else self._confusion.matrix()

    def _prepared(self, optimizer):
        return with_loss_scaling(optimizer, self.network.compute_dtype)

    def _watched(self, batches):
        """The batches of an epoch; the images of the first one are looked at."""
        for index, batch in enumerate(batches):
            if index == 0:
                images = batch[0] if isinstance(batch, (tuple, list)) else batch
                images = self.distribute_strategy.experimental_local_results(images)[0]
                inputs.check_values(images, self.network.mean, self.network.std)
            yield batch

    def _num_replicas(self):
        return tf.distribute.get_strategy().num_replicas_in_sync

    def _update_metrics(self, images, labels, logits, loss_sum, weight_sum):
        # Weighted by its pixels, the mean over an epoch is the mean over the pixels of the epoch.
        mean = tf.math.divide_no_nan(loss_sum, weight_sum)
        self._loss_tracker.update_state(mean, sample_weight=weight_sum)
        self._confusion.update_state(labels, logits)
        return self.compute_metrics(images, labels, logits)

    def _unpacked(self, data):
        """(images, labels int32 [N, H, W]) of a batch, checked."""
        images, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        inputs.refuse_weights(sample_weight=sample_weight)
        if labels is None:
            raise UserError("Segmenter takes (images, masks). Received: images alone")
        images, labels = tf.convert_to_tensor(images), tf.convert_to_tensor(labels)
        inputs.check_form(images, labels, self.input_channels)
        if labels.shape.rank == 4:
            labels = labels[..., 0]
        labels = tf.cast(labels, tf.int32)
        return images, inputs.checked_labels(labels, self.num_classes, self.ignore_label)

    def _update_drop_path(self):
        """Tells the network how far the training is: step / steps."""
        if getattr(self.network, "progress", None) is None:
            return
        if self.total_steps is None:
            raise UserError(
                "drop path needs the number of steps of the training: set total_steps, or use fit"
            )
        step = tf.cast(self.completed_steps, tf.float32)
        self.network.progress.assign(tf.minimum(step / self.total_steps, 1.0))

    # ---- inference

    @functools.cached_property
    def _logits_function(self):
        return tf.function(self._logits, autograph=False, reduce_retracing=True)

    @functools.cached_property
    def _class_ids_function(self):
        return tf.function(self.class_ids, autograph=False, reduce_retracing=True)

    def _logits(self, images):
        """float32 [N, H, W, num_classes] of whole images of any size, in inference."""
        images = tf.cast(images, tf.float32)
        return whole_images.logits(
            lambda images: self(images, training=False), images, self.network.mean
        )

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
            size: (height, width) of the result; default: that of the images.
            scales: Factors by which the images are resized, corners aligned.
            flip: Whether to average with the mirrored images too.

        Returns:
            int32 [N, height, width].
        """
        return whole_images.class_ids(self._logits, tf.cast(images, tf.float32), size, scales, flip)

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
            input_size: (height, width) that the images are resized to for the network, as records
                are (by area where they shrink); default: their own.
            scales: See `class_ids`.
            flip: See `class_ids`.

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
        inputs.check_values(images, self.network.mean, self.network.std)
        if images.ndim == 3:
            return self.predict_class_ids(images[None], **options)[0]
        size = images.shape[1:3]
        result = np.zeros(images.shape[:3], "int32")
        for start in range(0, len(images), _PREDICT_BATCH_SIZE):
            batch = images[start : start + _PREDICT_BATCH_SIZE]
            part = slice(start, start + len(batch))
            if input_size in (None, size):
                found = self._class_ids_function(tf.constant(batch), None, tuple(scales), flip)
            else:
                seen = tf.stack([resize_image(image, input_size) for image in batch])
                found = self._class_ids_function(seen, tf.constant(size), tuple(scales), flip)
            result[part] = found.numpy()
        return result

    # ---- the hand-over file

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor, as JSON values."""
        return {
            "name": self.name,
            "architecture": keras.saving.serialize_keras_object(self.network),
            "class_names": None if self.class_names is None else list(self.class_names),
            "palette": None if self.palette is None else self.palette.tolist(),
            "ignore_label": self.ignore_label,
            "class_weights": self.class_weights,
            **dataclasses.asdict(self.settings),
            "image_size": self.image_size,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> "Segmenter":
        """Builds the object from `get_config`'s content."""
        config = dict(config)
        baselines.register_classes()
        network = keras.saving.deserialize_keras_object(
            config.pop("architecture"), custom_objects=custom_objects
        )
        if not isinstance(network, keras.Model):  # the constructor takes a file's name as well
            raise UserError(f"the saved model must hold its network. Received: {shown(network)}")
        return cls(network, **config)

    def get_compile_config(self) -> dict[str, Any]:
        """Returns the settings of `compile` for a model file."""
        config = super().get_compile_config()
        for name in ("loss_weights", "weighted_metrics"):
            config.pop(name, None)
        config["metrics"] = keras.saving.serialize_keras_object(self._further_metrics)
        if self._auto_optimizer or not self._saves_optimizer:
            config["optimizer"] = AUTO
        config["loss"] = (
            AUTO if self._auto_loss else keras.saving.serialize_keras_object(self._loss_function)
        )
        return config

    def compile_from_config(self, config: Mapping[str, Any]) -> None:
        """Compiles from `get_compile_config`'s content."""
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
            filepath: File to write, ending in .keras.
            overwrite: As in Keras.
            include_optimizer: Whether the optimizer goes into the file too, its momentum being as
                large again as the weights. Default: where `compile` was given an optimizer.
            **kwargs: The other arguments of `keras.Model.save`.
        """
        optimizer, before = self.optimizer, self._saves_optimizer
        if include_optimizer is None:
            include_optimizer = not self._auto_optimizer
        self._saves_optimizer = include_optimizer
        if not include_optimizer:
            # As `compile` makes it for the model that is read.
            self.optimizer = self._prepared(default_optimizer())
        self._is_saving = True
        try:
            super().save(os.fspath(filepath), overwrite=overwrite, **kwargs)
        finally:
            self.optimizer, self._saves_optimizer = optimizer, before
            self._is_saving = False

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
            filepath: Folder or file to write.
            format: As in Keras.
            verbose: As in Keras.
            input_signature: As in Keras; default: float32 [N, H, W, C] of any size.
            **kwargs: As in Keras.
        """
        if input_signature is None:
            shape = (None, None, None, self.input_channels)
            input_signature = [keras.InputSpec("float32", shape, name="images")]
        super().export(os.fspath(filepath), format, verbose, input_signature, **kwargs)


def _with_decay(gradient, variable, decay):
    """Adds decay * variable to the gradient of a kernel: a variable with more than one axis."""
    if gradient is None or len(variable.shape) < 2:
        return gradient
    return gradient + tf.cast(decay, gradient.dtype) * tf.convert_to_tensor(variable)
