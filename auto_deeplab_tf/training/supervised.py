"""The training step of a fixed network: loss, weight decay, drop path schedule, metrics."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.training import losses, whole_images
from auto_deeplab_tf.training.metrics import ConfusionMatrix, count_pixels, matrix_of
from auto_deeplab_tf.training.schedules import Poly

AUTO = "auto"


class SupervisedModel(keras.Model):
    """A Keras model that learns masks from images, compiled from the start.

    A training step minimises, over the batch of all replicas together,

        sum over pixels of the loss / number of pixels that are not ignored

    (`training.losses.segmentation_loss`) and adds `weight_decay` * w to the gradient of every
    kernel w. Keras' own `weight_decay` is decoupled from the gradient and acts otherwise.

    Args:
        network: Keras model, images [N, H, W, 3] -> logits [N, H, W, num_classes].
        num_classes: number of classes.
        ignore_label: label of the pixels that count nowhere.
        class_weights: weight of each class in the loss.
        label_smoothing: of the loss, in [0, 1).
        hardest_fraction: share of each image's pixels, hardest first, that the loss counts.
        weight_decay: L2 weight decay on the kernels.
        **kwargs: those of `keras.Model`.

    Attributes:
        total_steps: number of steps that the drop path schedule spans; `fit` sets it.
        completed_steps: tf.Variable, int64: the steps a training loop has counted so far.
    """

    def __init__(
        self,
        network: keras.Model,
        num_classes: int,
        *,
        ignore_label: int = 255,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        hardest_fraction: float = 1.0,
        weight_decay: float = 4e-5,
        **kwargs: Any,
    ):
        # Images reach the network in float32 whatever its own precision: bfloat16 holds no
        # fractions near 255.
        super().__init__(dtype="float32", **kwargs)
        if not weight_decay >= 0.0:
            raise UserError(f"weight_decay must be >= 0. Received: {weight_decay}")
        self.network = network
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.class_weights = None if class_weights is None else tuple(map(float, class_weights))
        self.label_smoothing = label_smoothing
        self.hardest_fraction = hardest_fraction
        self.weight_decay = weight_decay
        self.total_steps: int | None = None
        self.completed_steps = tf.Variable(
            0,
            trainable=False,
            dtype=tf.int64,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )
        self._confusion = ConfusionMatrix(num_classes, ignore_label)
        self._score_function: tuple[Any, Any] = (None, None)
        self.built = True
        self.compile()

    def call(self, images: Any, training: bool | None = None) -> Any:
        return self.network(keras.ops.cast(images, "float32"), training=training)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        return (*input_shape[:-1], self.num_classes)

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

        Args:
            optimizer: a Keras optimizer. `"auto"`: SGD with momentum 0.9 and a poly learning rate
                from 0.05 down to 0, begun anew by every `fit` and spanning all of its steps.
            loss: a function (labels, logits) -> (sum, weight) such as `segmentation_loss` gives.
                `"auto"`: that one, with the settings of the constructor.
            metrics: Keras metrics besides loss, mIoU and pixel accuracy, which are always there.
            run_eagerly: as in Keras.
            steps_per_execution: as in Keras.
            jit_compile: as in Keras, but off: with deterministic operations XLA has no gradient of
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
            self._make_loss() if isinstance(loss, str) else loss
        )
        super().compile(
            optimizer=default_optimizer() if self._auto_optimizer else optimizer,
            metrics=metrics,
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
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains as `keras.Model.fit` does, on images and integer masks.

        Args:
            x: images [N, H, W, 3], 0..255, or a `tf.data.Dataset` of (images, masks) batches.
            y: masks, integers [N, H, W], where `x` is an array.
            batch_size: as in Keras.
            epochs: as in Keras.
            **kwargs: the other arguments of `keras.Model.fit`.

        Raises:
            ValueError: for masks with other values than classes and the ignore label, for weights
                of samples or classes (the constructor takes those of classes), or where the number
                of steps cannot be known.
        """
        for name in ("sample_weight", "class_weight"):
            if kwargs.get(name) is not None:
                raise UserError(
                    f"Segmenter.fit takes no {name}: weigh classes by "
                    "Segmenter(class_weights=...), leave pixels out by the ignore label"
                )
        if y is not None:
            self._check_masks(np.asarray(y))
        steps_per_epoch = _steps_per_epoch(
            x, batch_size, kwargs.get("steps_per_epoch"), kwargs.get("validation_split", 0.0)
        )
        if steps_per_epoch is not None:
            self.total_steps = epochs * steps_per_epoch
        elif self._auto_optimizer:
            raise UserError(
                "fit cannot tell the number of steps, which the poly learning rate needs: give "
                "steps_per_epoch, or compile with an optimizer of your own"
            )
        if not self._auto_optimizer:
            return super().fit(x, y, batch_size, epochs, **kwargs)
        self._restart_optimizer(self.total_steps, kwargs.get("initial_epoch", 0) * steps_per_epoch)
        return super().fit(x, y, batch_size, epochs, **kwargs)

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step on a batch, or on this replica's share of it; returns the metrics so far."""
        images, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        labels = self._checked_labels(labels, sample_weight)
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
        decay = self.optimizer.scale_loss(tf.constant(self.weight_decay / self._num_replicas()))
        gradients = [
            _with_decay(gradient, variable, decay)
            for gradient, variable in zip(gradients, variables, strict=True)
        ]
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return self._update_metrics(images, labels, logits, loss_sum, weight_sum)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Scores a batch, or this replica's share of it; returns the metrics so far."""
        images, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        labels = self._checked_labels(labels, sample_weight)
        logits = self._logits(images)
        loss_sum, weight_sum = self._loss_function(labels, logits)
        return self._update_metrics(images, labels, logits, loss_sum, weight_sum)

    def score(self, batches: tf.data.Dataset) -> tuple[float, np.ndarray]:
        """Scores labelled whole images, each once, on the first device only.

        Unlike `evaluate` it leaves the metrics of the training alone, and takes a last batch of any
        size under every strategy.

        Args:
            batches: (images [n, H, W, 3], labels [n, H, W]).

        Returns:
            (loss, matrix): mean over all pixels; int64 [num_classes, num_classes], rows the labels.
        """
        if self._score_function[0] != batches.element_spec:
            function = tf.function(self._score_batch, input_signature=batches.element_spec)
            self._score_function = (batches.element_spec, function)
        sums = [self._score_function[1](*batch) for batch in batches]
        loss_sum, weight_sum, counts = (np.sum([s[i] for s in sums], axis=0) for i in range(3))
        matrix = matrix_of(counts, self.num_classes, self.ignore_label)
        return float(loss_sum / max(weight_sum, 1.0)), matrix

    def _score_batch(self, images, labels):
        logits = self._logits(images)
        loss_sum, weight_sum = self._loss_function(labels, logits)
        counts = count_pixels(labels, logits, self.num_classes, self.ignore_label)
        return tf.cast(loss_sum, tf.float64), tf.cast(weight_sum, tf.float64), counts

    def _logits(self, images):
        """float32 [N, H, W, num_classes] of whole images of any size, in inference."""
        images = tf.cast(images, tf.float32)
        return whole_images.logits(
            lambda images: self(images, training=False), images, self.network.mean
        )

    @property
    def confusion_matrix(self) -> np.ndarray:
        """int64 [num_classes, num_classes] of the last epoch or evaluation, rows the labels."""
        return self._confusion.matrix()

    def _make_loss(self):
        return losses.segmentation_loss(
            self.num_classes,
            self.ignore_label,
            self.class_weights,
            self.label_smoothing,
            self.hardest_fraction,
        )

    def _restart_optimizer(self, steps, initial_step):
        with self.distribute_strategy.scope():
            self.optimizer = default_optimizer(steps)
            self.optimizer.iterations.assign(initial_step)
        self.train_function = None

    def _num_replicas(self):
        return tf.distribute.get_strategy().num_replicas_in_sync

    def _update_metrics(self, images, labels, logits, loss_sum, weight_sum):
        # Weighted by its pixels, the mean over an epoch is the mean over the pixels of the epoch.
        mean = tf.math.divide_no_nan(loss_sum, weight_sum)
        self._loss_tracker.update_state(mean, sample_weight=weight_sum)
        self._confusion.update_state(labels, logits)
        return self.compute_metrics(images, labels, logits)

    def _check_masks(self, masks):
        if not np.issubdtype(masks.dtype, np.integer):
            raise UserError(f"masks must be integers. Received: dtype {masks.dtype}")
        strange = masks[(masks != self.ignore_label) & ((masks < 0) | (masks >= self.num_classes))]
        if strange.size:
            raise UserError(f"{self._mask_rule()}. Received: {strange.flat[0]}")

    def _mask_rule(self):
        return (
            f"masks must hold classes 0..{self.num_classes - 1} and the ignore label "
            f"{self.ignore_label} only"
        )

    def _checked_labels(self, labels, sample_weight):
        if sample_weight is not None:
            raise UserError("Segmenter takes (images, masks) without sample weights")
        if labels is None:
            raise UserError("Segmenter takes (images, masks). Received: images alone")
        labels = tf.convert_to_tensor(labels)
        if not labels.dtype.is_integer:
            raise UserError(f"masks must be integers. Received: dtype {labels.dtype.name}")
        if labels.shape.rank == 4 and labels.shape[-1] == 1:
            labels = labels[..., 0]
        labels = tf.cast(labels, tf.int32)
        known = (labels == self.ignore_label) | ((labels >= 0) & (labels < self.num_classes))
        # The loss and the metrics would count a strange label as something; XLA leaves this out.
        check = tf.debugging.Assert(tf.reduce_all(known), [self._mask_rule()])
        with tf.control_dependencies([check] if check is not None else []):
            return tf.identity(labels)

    def _update_drop_path(self):
        """Tells the network how far the training is: step / steps."""
        if self.network.drop_path_keep == 1.0:
            return
        if self.total_steps is None:
            raise UserError(
                "drop path needs the number of steps of the training: set total_steps, or use fit"
            )
        step = tf.cast(self.optimizer.iterations, tf.float32)
        self.network.progress.assign(tf.minimum(step / self.total_steps, 1.0))


def default_optimizer(steps: int | None = None) -> keras.optimizers.Optimizer:
    """The paper's optimizer for networks: SGD with momentum 0.9, poly learning rate from 0.05."""
    schedule = Poly() if steps is None else Poly(steps=steps)
    return keras.optimizers.SGD(schedule, momentum=0.9)


def _with_decay(gradient, variable, decay):
    """gradient + decay * variable where the variable is a kernel: one with more than one axis."""
    if gradient is None or len(variable.shape) < 2:
        return gradient
    return gradient + tf.cast(decay, gradient.dtype) * tf.convert_to_tensor(variable)


def _steps_per_epoch(x, batch_size, steps_per_epoch, validation_split):
    """Number of steps of an epoch of `fit`; None where it cannot be known."""
    if steps_per_epoch is not None:
        return int(steps_per_epoch)
    if isinstance(x, tf.data.Dataset):
        cardinality = int(x.cardinality())
        return cardinality if cardinality > 0 else None
    if isinstance(x, keras.utils.PyDataset):
        return x.num_batches
    if hasattr(x, "shape"):
        num_images = int(len(x) * (1 - (validation_split or 0.0)))
        return -(-num_images // (batch_size or 32))
    return None
