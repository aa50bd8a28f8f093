"""`ArchitectureSearch`: the search as an object that compiles, fits and decodes."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from auto_deeplab_tf import decoding, method
from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.config import (
    ArchitectureSearchConfig,
    BilevelConfig,
    SearchConfig,
    from_flags_text,
)
from auto_deeplab_tf.data import source
from auto_deeplab_tf.data.source import Source
from auto_deeplab_tf.errors import MissingFileError, UserError
from auto_deeplab_tf.files import as_path
from auto_deeplab_tf.nn.backend import require_tensorflow
from auto_deeplab_tf.nn.execution import Execution
from auto_deeplab_tf.nn.supernet import Supernet
from auto_deeplab_tf.search_space import PLAIN_MEAN, PLAIN_STD
from auto_deeplab_tf.training import inputs, loop, losses, optimizers
from auto_deeplab_tf.training.bilevel import BilevelModel
from auto_deeplab_tf.training.checkpoints import Checkpoints, steps_in
from auto_deeplab_tf.training.schedules import Cosine, arch_learning_rate, current_rate

require_tensorflow()

METRICS = (
    "loss",
    "arch_loss",
    "learning_rate",
    "val_miou",
    "val_pixel_accuracy",
    "val_decoded_miou",
    "alpha_entropy",
    "beta_entropy",
    "expected_cost",
    "levels",
    "cell",
    "collapse",
)

_SEARCH_SPACE = (
    "num_classes",
    "num_layers",
    "num_blocks",
    "filter_multiplier",
    "atrous",
    "share_operations",
    "mean",
    "std",
)


class ArchitectureSearch:
    """Searches an architecture by gradient descent (paper, sec. 3).

        search = ArchitectureSearch(num_classes=11)
        search.fit((train_a, train_b), batch_size=2, epochs=40, arch_start_epoch=20)
        search.decode().save("architecture.json")

    Make it in the scope of a `tf.distribute` strategy to search on several devices.

    Args:
        num_classes: number of classes.
        settings: The search network and its updates: `config.ArchitectureSearchConfig`, or its
            fields as keywords (`num_layers=12, num_blocks=5, filter_multiplier=8, ...`).
        mean, std: of red, green, blue: images are normalised (x - mean) / std.
        ignore_label: label of the pixels that count nowhere.
        class_weights: weight of each class in the loss, or None.
        path_temperature: see `BilevelModel`.
        seed: of the initial weights, alpha and beta.
        dtype_policy: "float32", "mixed_bfloat16" or "mixed_float16": the dtype of the features.
            Variables, alpha, beta, statistics, softmax and loss are float32 always.

    Attributes:
        model: the `BilevelModel`; `model.supernet` is the network.
    """

    def __init__(
        self,
        num_classes: int,
        settings: ArchitectureSearchConfig | None = None,
        *,
        mean: Sequence[float] = (127.5, 127.5, 127.5),
        std: Sequence[float] = (127.5, 127.5, 127.5),
        ignore_label: int = 255,
        class_weights: Sequence[float] | Mapping[int, float] | None = None,
        path_temperature: Any = 1.0,
        seed: int = 0,
        dtype_policy: str = "float32",
        **keywords: Any,
    ):
        if settings is None:
            settings = ArchitectureSearchConfig(**keywords)
        elif keywords:
            raise TypeError(f"settings are given whole or as keywords. Received: {[*keywords]}")
        supernet = Supernet(
            num_classes, settings, mean=mean, std=std, seed=seed, dtype=dtype_policy
        )
        self.model = BilevelModel(
            supernet,
            settings.part(BilevelConfig),
            ignore_label=ignore_label,
            class_weights=inputs.checked_class_weights(class_weights, num_classes),
            path_temperature=path_temperature,
        )

    def compile(
        self,
        optimizer: keras.optimizers.Optimizer | None = None,
        architecture_optimizer: keras.optimizers.Optimizer | None = None,
        *,
        total_steps: int = 29_760,
        architecture_steps: int | None = None,
        remat: bool | None = None,
        jit_compile: bool | None = None,
    ) -> None:
        """Chooses the optimizers; `fit` calls it with the paper's where it was not called.

        Args:
            optimizer: of the weights; None: SGD, momentum 0.9, cosine from 0.025 to 0.001.
            architecture_optimizer: of alpha and beta; None: Adam, `schedules.arch_learning_rate`.
            total_steps: of the cosine; the default is the paper's 40 epochs of Cityscapes.
            architecture_steps: number of updates of alpha and beta; None: half of all steps.
            remat: whether the backward pass computes the insides of nodes again in place of keeping
                them; None: in the eager step, not in the traced one.
            jit_compile: whether XLA compiles the step; None: on one GPU.
        """
        if architecture_steps is None:
            architecture_steps = total_steps // 2
        if jit_compile is None:
            alone = tf.distribute.get_strategy().num_replicas_in_sync == 1
            jit_compile = alone and bool(tf.config.list_physical_devices("GPU"))
        self.model.compile(
            optimizer
            or keras.optimizers.SGD(
                Cosine(SearchConfig.learning_rate, SearchConfig.min_learning_rate, total_steps),
                momentum=SearchConfig.momentum,
            ),
            architecture_optimizer or keras.optimizers.Adam(arch_learning_rate(architecture_steps)),
            execution=Execution(remat, jit_compile),
        )

    def fit(
        self,
        data: Any,
        *,
        batch_size: int = SearchConfig.batch_size,
        epochs: int = SearchConfig.epochs,
        steps_per_epoch: int | None = None,
        arch_start_epoch: int | None = None,
        validation_data: tf.data.Dataset | None = None,
        validation_every_epochs: int = SearchConfig.validation_every_epochs,
        decoded_batches: int = SearchConfig.decoded_batches,
        statistics_data: tf.data.Dataset | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        checkpoints: Checkpoints | None = None,
        checkpoint_every_steps: int | None = None,
        log_every_steps: int = SearchConfig.log_every_steps,
        max_hours: float | None = None,
        traced: bool | None = None,
        verbose: int = 1,
    ) -> keras.callbacks.History:
        """Runs the search up to the end of epoch `epochs`; called again with more, it resumes.

        Args:
            data: (train_a, train_b), each (images [N, H, W, 3] 0..255, masks integers [N, H, W]) or
                a `tf.data.Dataset` of such batches; or a dataset of pairs ((images_a, masks_a),
                (images_b, masks_b)); or a function (step, pairs) -> dataset from that step on, of
                pairs or of (images_a, masks_a).
            batch_size: of arrays.
            epochs: in all.
            steps_per_epoch: None: the smaller of train_a and train_b once.
            arch_start_epoch: the first epoch, from 0, that updates alpha and beta; None: half of
                `epochs`, rounded down, as in the paper and in the command (20 of 40).
            validation_data: batches (images, masks) of whole images, with several workers those
                of this one; None: no validation.
            validation_every_epochs: validate after every so many epochs, and after the last.
            decoded_batches: number of batches of train_a, from its first on, that estimate the
                statistics of the architecture so far; each validation scores it with the weights of
                the supernet as `val_decoded_miou`, see `BilevelModel.score_decoded`. What it lacks
                of `val_miou` is the discretisation gap. 0: it is not scored.
            statistics_data: batches (images, masks) in place of those of train_a; needed where a
                function gives batches that are distributed.
            callbacks: Keras callbacks; the logs of an epoch are `METRICS` (`collapse` with a
                `CollapseWatch` alone).
            checkpoints: see `training.loop.fit`; likewise:
            checkpoint_every_steps: see there; likewise:
            log_every_steps: see there; likewise:
            max_hours: see there.
            traced: one traced function for the whole step; None: under a strategy, or on a GPU.
            verbose: as in Keras: 0, 1 or 2.
        """
        pixels = None
        if not callable(data):
            if _has_datasets(data) and self._is_new_on_one_device():
                pixels = np.zeros(self.model.supernet.num_classes, "int64")
            data = self._checked(data)
        data_at, steps_per_epoch = _as_function(data, batch_size, steps_per_epoch)
        if arch_start_epoch is None:
            arch_start_epoch = epochs * SearchConfig.arch_start_epoch // SearchConfig.epochs
        if not self.model.compiled:
            # Sized by the data, so that the cosine ends with the last step.
            self.compile(
                total_steps=epochs * steps_per_epoch,
                architecture_steps=max(0, epochs - arch_start_epoch) * steps_per_epoch,
            )
        if traced is None:
            traced = tf.distribute.has_strategy() or bool(tf.config.list_physical_devices("GPU"))

        def batches_at(step: int) -> Any:
            batches = data_at(step, step // steps_per_epoch >= arch_start_epoch)
            if pixels is None or step:
                return batches
            return _counted(batches.take(steps_per_epoch), pixels, self.model.ignore_label)

        def report(epoch: int) -> Mapping[str, Any]:
            if pixels is not None and epoch == 0:
                inputs.warn_of_absent_classes(pixels, self.model.ignore_label)
            is_last = epoch + 1 == epochs
            logs = self.report()
            if validation_data is not None and (
                is_last or (epoch + 1) % validation_every_epochs == 0
            ):
                logs |= self.model.score(validation_data)
                if decoded_batches:
                    first = data_at(0, False) if statistics_data is None else statistics_data
                    train_batches = first.take(decoded_batches)
                    logs |= self.model.score_decoded(self.decode(), train_batches, validation_data)
            return logs

        with inputs.data_errors(self.model.supernet.num_classes, self.model.ignore_label):
            return loop.fit(
                self.model,
                batches_at,
                epochs=epochs,
                steps_per_epoch=steps_per_epoch,
                validate=report,
                callbacks=callbacks,
                checkpoints=checkpoints,
                checkpoint_every_steps=checkpoint_every_steps,
                log_every_steps=log_every_steps,
                max_hours=max_hours,
                eager=not traced,
                verbose=verbose,
            )

    def _is_new_on_one_device(self):
        """Whether `_counted` sees all batches of the first epoch: others are distributed."""
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return replicas == 1 and int(self.model.completed_steps.numpy()) == 0

    def _check_form(self, spec):
        """Checks the form of the batches of a dataset, (images, masks) or a pair of these."""
        first, second = _two(spec)
        if isinstance(first, (tuple, list)):
            for part in spec:
                self._check_form(part)
        else:
            inputs.check_form(first, second, len(self.model.supernet.mean))

    def _checked(self, data):
        """The data with their values checked: arrays at once, batches as they come."""
        supernet, ignore_label = self.model.supernet, self.model.ignore_label
        pixels: Any = 0

        def checked(value):
            nonlocal pixels
            if isinstance(value, tf.data.Dataset):
                self._check_form(value.element_spec)
                return value.map(lambda *batch: checked(batch))
            first, second = _two(value)
            if isinstance(first, (tuple, list, tf.data.Dataset)):
                return checked(first), checked(second)
            if tf.is_tensor(second):
                masks = tf.cast(second, tf.int32)
                masks = inputs.checked_labels(masks, supernet.num_classes, ignore_label)
                return inputs.checked_images(first), masks
            channels = len(supernet.mean)
            pixels += inputs.check_arrays(
                first, second, channels, supernet.num_classes, ignore_label
            )
            inputs.check_values(first, supernet.mean, supernet.std)
            return first, second

        if not isinstance(data, (tuple, list, tf.data.Dataset)):
            return data
        if isinstance(data, (tuple, list)) and any(hasattr(half, "shape") for half in data):
            raise UserError(
                "data must be two halves, ((images, masks), (images, masks)): the weights are "
                "learnt from one, alpha and beta from the other. Received: arrays"
            )
        data = checked(data)
        if np.any(pixels):
            inputs.warn_of_absent_classes(pixels, ignore_label)
        return data

    @property
    def logits(self) -> tuple[np.ndarray, np.ndarray]:
        """(alpha, beta) logits as NumPy arrays, [B (B + 3) / 2, 8] and [L, 4, 3]."""
        supernet = self.model.supernet
        alpha, beta = supernet.alpha_logits, supernet.beta_logits
        return keras.ops.convert_to_numpy(alpha), keras.ops.convert_to_numpy(beta)

    @property
    def edge_logits(self) -> np.ndarray | None:
        """Logits of the edges into each block, [B (B + 3) / 2]; None without partial channels."""
        logits = self.model.supernet.edge_logits
        return None if logits is None else keras.ops.convert_to_numpy(logits)

    @property
    def fast_modes(self) -> dict[str, Any]:
        """The fast modes of the search, by name; empty for the search as the paper has it."""
        return self.model.supernet.settings.fast_modes

    def decode(self, provenance: Mapping[str, Any] | None = None) -> Architecture:
        """Reads off the strongest cell and the most probable path (paper, sec. 3.3).

        Fast modes are added to the provenance as `fast_modes`.
        """
        provenance = dict(provenance or {})
        if self.fast_modes:
            provenance["fast_modes"] = self.fast_modes
        return decoding.decode(
            *self.logits, self.model.supernet.settings.atrous, provenance, self.edge_logits
        )

    def report(self) -> dict[str, Any]:
        """Returns where the search stands.

        Learning rate, entropies in nats, expected cost of the cells (`nn.expected_cost`), the
        architecture so far.
        """
        alpha, beta = self.logits
        architecture = self.decode()
        relaxed = method.relax(*map(keras.ops.convert_to_tensor, (alpha, beta)))
        return {
            "learning_rate": current_rate(self.model.optimizer),
            "alpha_entropy": decoding.alpha_entropy(alpha),
            "beta_entropy": decoding.beta_entropy(beta),
            "expected_cost": float(self.model.expected_cost(*relaxed)),
            "levels": "-".join(map(str, architecture.levels)),
            "cell": " | ".join(
                " + ".join(f"{edge.op}({edge.source})" for edge in block)
                for block in architecture.cell
            ),
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the search space and of how the weights lie in their vectors.

        It is what a checkpoint of this search belongs to: a vector of the same size in another
        order would be read without a word.
        """
        config = self.model.supernet.get_config()
        space = {name: config[name] for name in _SEARCH_SPACE} | self.fast_modes
        space["layouts"] = self.model.supernet.layouts
        return hashlib.sha256(json.dumps(space, sort_keys=True).encode()).hexdigest()

    def checkpoints(self, directory: Any, keep: int = 3) -> Checkpoints:
        """Returns the checkpoints of this search in a folder; the model must be compiled."""
        variables = loop.checkpointed_variables(self.model)
        return Checkpoints(directory, variables, self.fingerprint, keep)


def architecture_steps(options: SearchConfig, total_steps: int) -> int:
    """Returns the number of steps that update alpha and beta."""
    return total_steps - total_steps * options.arch_start_epoch // options.epochs


def from_options(options: SearchConfig, train: Source, total_steps: int) -> ArchitectureSearch:
    """Builds and compiles the search that a command's options describe.

    Args:
        options: Of the command.
        train: The training split: classes, channels, frequencies.
        total_steps: Number of steps, which schedules end with.
    """
    frequencies = losses.class_frequencies(train.class_pixels, train.present_pixels)
    updates = architecture_steps(options, total_steps)
    rate = options.arch_learning_rate
    search = ArchitectureSearch(
        train.info.num_classes,
        options.part(ArchitectureSearchConfig),
        mean=PLAIN_MEAN[:1] * train.info.channels,
        std=PLAIN_STD[:1] * train.info.channels,
        ignore_label=train.info.ignore_label,
        class_weights=losses.class_weights(frequencies, options.class_weights),
        path_temperature=keras.optimizers.schedules.PolynomialDecay(
            options.path_temperature, total_steps, options.min_path_temperature
        ),
        seed=options.seed,
        dtype_policy=options.dtype_policy,
    )
    search.compile(
        optimizers.from_options(
            options, Cosine(options.learning_rate, options.min_learning_rate, total_steps)
        ),
        keras.optimizers.Adam(arch_learning_rate(updates) if rate == "auto" else rate),
        remat=_flag_or_auto(options.remat),
        jit_compile=_flag_or_auto(options.jit_compile),
    )
    return search


def restored(
    run_dir: str | os.PathLike[str], **places: str | None
) -> tuple[ArchitectureSearch, SearchConfig, Source]:
    """Builds the search of a run folder with the weights of its newest checkpoint.

    Args:
        run_dir: The folder.
        **places: `data_dir` and `cache_dir` in place of the run's, where not None.

    Returns:
        (search, settings, training split).

    Raises:
        MissingFileError: If it is not the folder of a search, or has no checkpoint that is whole.
    """
    flags = as_path(run_dir) / "flags.txt"
    if not flags.is_file():
        raise MissingFileError(f"{run_dir} has no flags.txt: it is not the folder of a search.")
    settings = from_flags_text(SearchConfig, flags.read_text("utf-8"))
    folder = as_path(run_dir) / "checkpoints"
    if not steps_in(folder):
        raise MissingFileError(
            f"{run_dir} has no checkpoints, so there are no weights to score with."
        )
    given: dict[str, Any] = {name: place for name, place in places.items() if place is not None}
    settings = dataclasses.replace(settings, **given)
    train = source.open_for(settings, "train")
    search = from_options(settings, train, 1)
    if not search.checkpoints(folder).restore():  # a single one, which is damaged
        raise MissingFileError(
            f"{run_dir} has no checkpoint that can be read, so there are no weights to score with."
        )
    return search, settings, train


def _flag_or_auto(text: str) -> bool | None:
    return None if text == "auto" else text == "true"


def _as_function(
    data: Any, batch_size: int, steps_per_epoch: int | None
) -> tuple[Callable[[int, bool], tf.data.Dataset], int]:
    """Brings every form of data to (step, pairs) -> dataset, and finds the steps of an epoch."""
    if callable(data) and not isinstance(data, tf.data.Dataset):
        if steps_per_epoch is None:
            raise UserError("steps_per_epoch must be given with a function of batches.")
        return data, steps_per_epoch
    if isinstance(data, tf.data.Dataset):
        pairs = data
        train_a = data.map(lambda a, b: a)

        def pairs_at(step):
            return _from_step(pairs, step)
    else:
        train_a, train_b = (_as_batches(half, batch_size) for half in _two(data))
        pairs = tf.data.Dataset.zip((train_a, train_b))

        def pairs_at(step):
            # Each half repeats by itself: the longer one is not cut to the shorter.
            return tf.data.Dataset.zip((_from_step(train_a, step), _from_step(train_b, step)))

    if steps_per_epoch is None:
        steps_per_epoch = int(pairs.cardinality())
        if steps_per_epoch < 1:
            raise UserError(
                "steps_per_epoch must be given where the number of batches is unknown or endless."
            )
    return (
        lambda step, both: pairs_at(step) if both else _from_step(train_a, step),
        steps_per_epoch,
    )


def _two(value: Any) -> Any:
    """Checks that something is the pair that `data`, a half of it or a batch must be."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        received = type(value).__name__
        if isinstance(value, (tuple, list)):
            received += f" of length {len(value)}"
        raise UserError(
            "data must be (train_a, train_b), each (images, masks) or a dataset of such batches, "
            "or a dataset of pairs of these, or a function (step, pairs) -> dataset. "
            f"Received: {received}"
        )
    return value


def _has_datasets(data: Any) -> bool:
    halves = data if isinstance(data, (tuple, list)) else (data,)
    return any(isinstance(half, tf.data.Dataset) for half in halves)


def _counted(batches: tf.data.Dataset, pixels: np.ndarray, ignore_label: int) -> Iterator[Any]:
    """Yields batches; adds the pixels of each class in their masks to `pixels`."""
    for batch in batches:
        for _, masks in batch if isinstance(batch[0], tuple) else (batch,):
            masks = masks.numpy()
            pixels += np.bincount(masks[masks != ignore_label], minlength=len(pixels))
        yield batch


def _from_step(dataset: tf.data.Dataset, step: int) -> tf.data.Dataset:
    """The endless repetition of a dataset, from its batch number `step` on."""
    cycle = int(dataset.cardinality())
    return dataset.repeat().skip(step % cycle if cycle > 0 else step)


def _as_batches(half: Any, batch_size: int) -> tf.data.Dataset:
    if isinstance(half, tf.data.Dataset):
        return half
    images, masks = half
    images, masks = np.asarray(images, "float32"), np.asarray(masks)
    if len(images) != len(masks) or len(images) < batch_size:
        raise UserError(
            "each half needs as many masks as images, and at least one batch of them. "
            f"Received: {len(images)} images, {len(masks)} masks, batch_size {batch_size}"
        )
    dataset = tf.data.Dataset.from_tensor_slices((images, masks.astype("int32")))
    return dataset.batch(batch_size, drop_remainder=True)
