"""The bilevel update: weights on train_a, alpha and beta on train_b (paper, sec. 3.2)."""

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from auto_deeplab_tf import decoding
from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.config import BilevelConfig
from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.nn.execution import Execution
from auto_deeplab_tf.nn.expected_cost import ExpectedCost
from auto_deeplab_tf.nn.normalization import update_weights
from auto_deeplab_tf.nn.supernet import Supernet
from auto_deeplab_tf.training import distribution, losses, whole_images
from auto_deeplab_tf.training.metrics import score, scores
from auto_deeplab_tf.training.optimizers import with_loss_scaling


@keras.saving.register_keras_serializable(package="auto_deeplab_tf")
class BilevelModel(keras.Model):
    """The supernet with the two alternating updates of `method.bilevel_update`.

        1. w <- w - step(grad_w L_trainA(w, a) + weight_decay * w)
        2. a <- a - step(grad_a (L_trainB(w, a) + cost_weight * log(C(a) / C(0)))
                         + arch_weight_decay * a)

    a stands for the logits of alpha and beta; step is what the optimizer makes of a gradient; C is
    the `nn.expected_cost.ExpectedCost` of the decoded cells; `cost_weight` is 0 by default.

    L is the mean over the pixels of the global batch that are not ignored. The second update sees
    the weights of the first, uses statistics of its own batch, and leaves the moving ones alone.
    Weight decay applies to kernels only.

    Args:
        supernet: `Supernet`.
        ignore_label: label of the pixels that count nowhere.
        class_weights: weight of each class in the loss, or None.
        settings: `BilevelConfig`, or its fields as keywords. Both weight decays are added to a
            gradient; `batch_norm_decay` is the limit of the moving statistics' decay, which is
            smaller during the first steps (`nn.normalization.update_weights`).
        path_temperature: of sampled paths: a number, or a Keras schedule of it over the steps.

    Attributes:
        completed_steps: tf.Variable, int64.

    Call arguments:
        images: float32 [N, H, W, 3], 0..255.

    Returns of a call: logits, float32 [N, H, W, num_classes].
    """

    def __init__(
        self,
        supernet: Supernet,
        settings: BilevelConfig | None = None,
        *,
        ignore_label: int = 255,
        class_weights: Any = None,
        path_temperature: Any = 1.0,
        **kwargs: Any,
    ):
        settings, others = BilevelConfig.given(settings, kwargs)
        super().__init__(autocast=False, **others)
        self.settings = settings
        self.supernet = supernet
        self.ignore_label = ignore_label
        self.class_weights = None if class_weights is None else [float(w) for w in class_weights]
        self.path_temperature = path_temperature
        self.expected_cost = ExpectedCost(supernet.settings, self.settings.cost)
        if self.settings.cost_weight:
            # Counted here once: a step is traced, where it could not become a number.
            self.expected_cost.uniform  # noqa: B018
        self.completed_steps = distribution.step_counter()
        self.loss_function = losses.segmentation_loss(
            supernet.num_classes, ignore_label, self.class_weights
        )
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.arch_loss_tracker = keras.metrics.Mean(name="arch_loss")
        kernels = {
            segment.kernels.path for segment in supernet.segments if segment.kernels is not None
        }
        self._decayed = [variable.path in kernels for variable in supernet.trainable_variables]
        # Compiled for a step that runs eagerly. A traced step has them inline: under a strategy no
        # function inside it may wait for the other replicas.
        self._eager_loss = tf.function(self._loss_and_gradient, autograph=False)
        self._xla_gradients = tf.function(
            self._loss_and_gradients, autograph=False, jit_compile=True
        )
        self._eager_apply = {
            "weights": tf.function(self._apply_weights, autograph=False),
            "architecture": tf.function(self._apply_architecture, autograph=False),
        }
        self.built = True

    def call(self, images: Any, training: bool = False) -> Any:
        """Returns the supernet's logits."""
        return self.supernet(images, training=training)

    def compile(
        self,
        optimizer: Any,
        architecture_optimizer: Any,
        *,
        execution: Execution | None = None,
        **kwargs: Any,
    ) -> None:
        """Takes the two optimizers and builds both, so that a checkpoint can be read at once.

        Where the features are float16 each optimizer scales its loss: a step whose gradient is not
        finite is left out, and the scale halved.

        Args:
            optimizer: Keras optimizer of the weights.
            architecture_optimizer: Keras optimizer of alpha and beta.
            execution: what the passes keep, and whether XLA compiles them.
            **kwargs: of `keras.Model.compile`.
        """
        execution = execution or Execution()
        if execution.jit_compile and tf.distribute.get_strategy().num_replicas_in_sync > 1:
            raise UserError(
                "jit_compile=true needs distribution_strategy=one_device: inside a function "
                "that XLA compiles the replicas cannot share the statistics of a batch."
            )
        self.supernet.execution = execution
        dtype = self.supernet.compute_dtype
        super().compile(optimizer=with_loss_scaling(optimizer, dtype), jit_compile=False, **kwargs)
        self.architecture_optimizer = with_loss_scaling(architecture_optimizer, dtype)
        self.optimizer.build(self.supernet.trainable_variables)
        self.architecture_optimizer.build(self.supernet.architecture_variables)

    @property
    def optimizers(self) -> list[Any]:
        """Both optimizers, the weights' first."""
        return [self.optimizer, self.architecture_optimizer]

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The two losses."""
        return [self.loss_tracker, self.arch_loss_tracker]

    def train_step(self, data: Any) -> dict[str, Any]:
        """One bilevel step.

        Args:
            data: ((images_a, labels_a), (images_b, labels_b)), or (images_a, labels_a) for the
                weights alone, where the architecture step is not even traced. Images float32 [N, H,
                W, 3], labels int32 [N, H, W].

        Returns:
            The means over the epoch so far: `loss` on train_a, `arch_loss` on train_b.
        """
        batch_a, batch_b = data if isinstance(data[0], (tuple, list)) else (data, None)
        logs = {"loss": self._update("weights", batch_a, self.loss_tracker)}
        if batch_b is not None:
            logs["arch_loss"] = self._update("architecture", batch_b, self.arch_loss_tracker)
        return logs

    def _update(self, wrt, batch, tracker):
        """Takes the gradient on a batch and applies it.

        Returns the mean loss of the epoch so far.
        """
        loss_sum, weight_sum, gradients, moments = self.gradients(wrt, batch)
        if tf.executing_eagerly():
            apply = self._eager_apply[wrt]
        else:
            apply = self._apply_weights if wrt == "weights" else self._apply_architecture
        if wrt == "weights":
            apply(gradients, moments)
        else:
            apply(gradients)
        tracker.update_state(tf.math.divide_no_nan(loss_sum, weight_sum), sample_weight=weight_sum)
        return tracker.result()

    def gradients(self, wrt: str, batch: Any) -> tuple[Any, Any, list[Any], list[Any]]:
        """Computes the gradient of the loss on a batch, as a step does, and changes nothing.

        Args:
            wrt: "weights" or "architecture".
            batch: (images, labels) of `train_step`.

        Returns:
            (loss sum, its weight, gradients, moments): scalars; times the loss scale of float16, in
            the order of the variables, without weight decay and cost; the statistics of the batch.
        """
        images, labels = batch
        if tf.executing_eagerly() and self.supernet.settings.formulation == "fused":
            computed = self.supernet.forward(images, True, self.sampling(wrt))
            loss_sum, weight_sum, logits_gradient = self._eager_loss(
                labels, computed.logits, self._loss_scale(wrt)
            )
            gradients = self.supernet.backward(computed, logits_gradient, wrt)
            return loss_sum, weight_sum, gradients, _present(computed.moments)
        # The plain formulation has no segments to compile: in an eager step it runs op by op.
        function = (
            self._xla_gradients if self.supernet.execution.jit_compile else self._loss_and_gradients
        )
        return function(wrt, images, labels, self._loss_scale(wrt), self.sampling(wrt))

    def sampling(self, wrt: str) -> tuple[Any, Any] | None:
        """What the paths of the current step are drawn with; None where none are sampled.

        It depends on the supernet's seed, the step and the half alone, so that a resumed run
        draws what it would have drawn.

        Args:
            wrt: "weights" or "architecture".

        Returns:
            (noise, temperature) of `Supernet.forward`.
        """
        supernet = self.supernet
        if not supernet.settings.sampled_paths:
            return None
        step = tf.convert_to_tensor(self.completed_steps)
        half = 2 * step + (wrt == "architecture")
        # A generator by name: the default differs between devices.
        uniform = tf.random.stateless_uniform(
            (supernet.settings.sampled_paths, *supernet.beta_logits.shape),
            seed=tf.stack([tf.constant(supernet.seed, tf.int64), half]),
            minval=1e-30,
            alg="philox",
        )
        temperature = self.path_temperature
        if callable(temperature):
            temperature = temperature(step)
        return -tf.math.log(-tf.math.log(uniform)), tf.cast(temperature, tf.float32)

    def _variables(self, wrt):
        if wrt == "weights":
            return self.supernet.trainable_variables
        return self.supernet.architecture_variables

    def _loss_scale(self, wrt):
        """What the optimizer wants its loss multiplied by: 1 unless the features are float16."""
        optimizer = self.optimizer if wrt == "weights" else self.architecture_optimizer
        return tf.convert_to_tensor(optimizer.scale_loss(tf.constant(1.0)))

    def _loss_and_gradient(self, labels, logits, scale):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss_sum, weight_sum = self.loss_function(labels, logits)
            loss = scale * losses.normalized(loss_sum, weight_sum)
        return loss_sum, weight_sum, tape.gradient(loss, logits)

    def _loss_and_gradients(self, wrt, images, labels, scale, sampling):
        """Of a whole traced step: (loss sum, its weight, gradients, moments)."""
        variables = [variable.value for variable in self._variables(wrt)]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            computed = self.supernet.forward(images, True, sampling)
            loss_sum, weight_sum = self.loss_function(labels, computed.logits)
            loss = scale * losses.normalized(loss_sum, weight_sum)
        gradients = tape.gradient(loss, variables)
        return loss_sum, weight_sum, gradients, _present(computed.moments)

    def _apply_weights(self, gradients, moments):
        # Each replica hands in its share: the optimizer sums the shares of all of them.
        share = 1.0 / tf.distribute.get_strategy().num_replicas_in_sync
        variables = self.supernet.trainable_variables
        scale = self._loss_scale("weights")
        gradients = [
            gradient + share * scale * self.settings.weight_decay * tf.convert_to_tensor(variable)
            if decayed
            else gradient
            for gradient, variable, decayed in zip(gradients, variables, self._decayed, strict=True)
        ]
        if self.settings.gradient_clip_norm is not None:
            norm = tf.linalg.global_norm(distribution.sum_over_replicas(gradients)) / scale
            factor = self.settings.gradient_clip_norm / tf.maximum(
                norm, self.settings.gradient_clip_norm
            )
            gradients = [gradient * factor for gradient in gradients]
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        moving = [s.moving for s in self.supernet.segments if s.moving is not None]
        keep, add = update_weights(
            self.settings.batch_norm_decay, tf.convert_to_tensor(self.completed_steps)
        )
        for variable, value in zip(moving, moments, strict=True):
            kept = keep * tf.convert_to_tensor(variable)
            if self.supernet.settings.sampled_paths:
                # A channel that is 0 everywhere lies on no path of this step.
                value = tf.where(value[1:] > 0.0, value, variable)
            variable.assign(kept + add * value)

    def _apply_architecture(self, gradients):
        share = 1.0 / tf.distribute.get_strategy().num_replicas_in_sync
        variables = self.supernet.architecture_variables
        scale = self._loss_scale("architecture")
        gradients = [
            gradient
            + share * scale * self.settings.arch_weight_decay * tf.convert_to_tensor(variable)
            for gradient, variable in zip(gradients, variables, strict=True)
        ]
        if self.settings.cost_weight:
            logits = [tf.convert_to_tensor(variable) for variable in variables[:2]]
            with tf.GradientTape() as tape:
                tape.watch(logits)
                penalty = self.settings.cost_weight * self.expected_cost.log_ratio(*logits)
            for index, gradient in enumerate(tape.gradient(penalty, logits)):
                gradients[index] += share * scale * gradient
        self.architecture_optimizer.apply_gradients(zip(gradients, variables, strict=True))

    def score(self, batches: tf.data.Dataset) -> dict[str, float]:
        """Scores the supernet on labelled whole images by one confusion matrix.

        Args:
            batches: (images float32 [n, H, W, 3], labels int32 [n, H, W]).

        Returns:
            `val_miou`, `val_pixel_accuracy`.
        """
        _, matrix = score(
            lambda images: whole_images.logits(
                lambda images: self.supernet(images, training=False), images, self.supernet.mean
            ),
            batches,
            self.supernet.num_classes,
            self.ignore_label,
        )
        found = scores(matrix)
        return {f"val_{name}": found[name] for name in ("miou", "pixel_accuracy")}

    def score_decoded(
        self, architecture: Architecture, train_batches: Any, batches: Any
    ) -> dict[str, float | None]:
        """Scores an architecture with the weights of the supernet; no variable changes.

        alpha is one-hot on the edges of the cell (`none` on the others), beta on the path. The
        supernet's moving statistics belong to the mixture of all operations, so those of the
        architecture are estimated anew, as the mean of the statistics of some training batches. An
        input H^{l-2} at a level where the path was not is 0: the supernet has no weights that would
        bring the path's own there.

        Args:
            architecture: Of the layers, blocks and atrous operation of the supernet.
            train_batches: (images, labels) as in training; the labels are not read.
            batches: (images, labels) of whole images, as in `score`.

        Returns:
            `val_decoded_miou`.
        """
        supernet, one_hot = self.supernet, decoding.one_hot(architecture)
        sums: list[Any] = [None] * len(supernet.segments)
        count = 0
        for images, _ in train_batches:
            moments = supernet.forward(images, True, relaxed=one_hot).moments
            sums = [
                value if total is None else total + value
                for total, value in zip(sums, moments, strict=True)
            ]
            count += 1
        moving = [None if total is None else total / count for total in sums]
        _, matrix = score(
            lambda images: whole_images.logits(
                lambda images: (
                    supernet.forward(images, False, relaxed=one_hot, moving=moving).logits
                ),
                images,
                supernet.mean,
            ),
            batches,
            supernet.num_classes,
            self.ignore_label,
        )
        return {"val_decoded_miou": scores(matrix)["miou"]}

    def get_config(self) -> dict[str, Any]:
        """See Keras."""
        return {
            **super().get_config(),
            "supernet": keras.saving.serialize_keras_object(self.supernet),
            "ignore_label": self.ignore_label,
            "class_weights": self.class_weights,
            **dataclasses.asdict(self.settings),
            "path_temperature": keras.saving.serialize_keras_object(self.path_temperature),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "BilevelModel":
        """See Keras."""
        supernet, path_temperature = (
            keras.saving.deserialize_keras_object(config.pop(name), custom_objects=custom_objects)
            for name in ("supernet", "path_temperature")
        )
        return cls(supernet, path_temperature=path_temperature, **config)

    def get_compile_config(self) -> dict[str, Any]:
        """See Keras."""
        return {
            name: keras.saving.serialize_keras_object(getattr(self, name))
            for name in ("optimizer", "architecture_optimizer")
        }

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """See Keras."""
        self.compile(**keras.saving.deserialize_keras_object(config))


def _present(moments):
    return [values for values in moments if values is not None]
