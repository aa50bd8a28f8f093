"""The settings of every command: one class per command, made from classes for what they share.

The shared classes are handed on whole to what they configure: `Supernet` takes a `SupernetConfig`,
and a `SearchConfig` is one. `Config.part` cuts one out of a command's settings.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any, ClassVar, Literal

from auto_deeplab_tf.config.fields import AUTO, Config, Size, changed, flag
from auto_deeplab_tf.errors import FieldError
from auto_deeplab_tf.search_space import (
    ATROUS_KINDS,
    MAX_BLOCKS,
    MAX_LAYERS,
    MINIMUM_SIZE,
    STEM_CHANNELS,
    STEM_STRIDES,
)

# The limit of Pillow: 2 GiB as float32 RGB.
MAX_IMAGE_PIXELS = 178_956_970
STRATEGIES = ("one_device", "mirrored", "multi_worker_mirrored", "tpu")
CLASS_WEIGHT_SCHEMES = ("none", "median_frequency", "sqrt_median_frequency")
_FAST_MODES = "fast modes: not the exact search"
_data = functools.partial(flag, group="data")
_network = functools.partial(flag, group="network")
_space = functools.partial(flag, group="search space")
_fast = functools.partial(flag, group=_FAST_MODES)
_optimisation = functools.partial(flag, group="optimisation")
_budget = functools.partial(flag, group="budget")
_candidates = functools.partial(flag, group="candidates")
_halving = functools.partial(flag, group="halving")
_evaluation = functools.partial(flag, group="evaluation")
_device = functools.partial(flag, group="device")
_output = functools.partial(flag, group="output", on_resume="free")


# ---- what several commands share


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputConfig(Config):
    """The form of what a command prints."""

    json: bool = _output(False, "print only the result, as one JSON object on one line")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThreadsConfig(Config):
    """The threads of TensorFlow on CPU."""

    intra_op_threads: int = _device(
        0,
        "threads that share one operation on CPU (0: all cores); at small crops 1 is faster",
        minimum=0,
        on_resume="free",
    )
    inter_op_threads: int = _device(
        0,
        "number of operations that run at the same time on CPU (0: as many as cores)",
        minimum=0,
        on_resume="free",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StemAndHeadConfig(Config):
    """The channels before and behind the cells of a decoded network."""

    stem_channels: tuple[int, ...] = _network(
        STEM_CHANNELS, "channels of the stem's three convolutions", minimum=1
    )
    head_channels: int = _network(256, "channels of the ASPP", minimum=1)
    decoder_channels: int = _network(
        48, "channels of the low-level feature in the decoder", minimum=1
    )

    def _check(self) -> None:
        super()._check()
        _check_stem(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkSizesConfig(StemAndHeadConfig):
    """The channels of a decoded network: with its architecture, all that its size depends on."""

    filter_multiplier: int = _network(20, "filters of a block at stride 4, F", minimum=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig(NetworkSizesConfig):
    """A decoded network as it is trained."""

    drop_path_keep: float = _network(
        1.0,
        "probability of keeping a path at the end of the training (1: no drop path)",
        above=0,
        maximum=1,
    )
    batch_norm_decay: float = _network(
        0.9997,
        "limit of the moving statistics' decay, min(limit, (1 + n) / (10 + n)) at step n",
        minimum=0,
        below=1,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupernetConfig(Config):
    """The search network: the size of the search space, and the fast modes of the search.

    Under a fast mode the search computes less than the paper's; each is off unless asked for, and a
    search that has one says so (docs/method.md).
    """

    num_layers: int = _space(12, "layers of the network, L", minimum=1, maximum=MAX_LAYERS)
    num_blocks: int = _space(5, "blocks of a cell, B", minimum=1, maximum=MAX_BLOCKS)
    filter_multiplier: int = _space(8, "filters of a block at stride 4, F", minimum=1)
    atrous: str = _space(
        "separable",
        "convolution of the atrous operations: full, or depthwise separable",
        choices=ATROUS_KINDS,
    )
    share_operations: bool = _space(True, "the cells of a node share the weights of its operations")
    stem_channels: tuple[int, ...] = _space(
        STEM_CHANNELS, "channels of the stem's three convolutions", minimum=1
    )
    formulation: str = _space(
        "fused",
        "fused: few wide operations; plain: as the paper writes it (method.py), many times slower",
        choices=("fused", "plain"),
    )
    partial_channels: int = _fast(
        1, "K: one in K channels passes through the operations (PC-DARTS; 1: all)", minimum=1
    )
    sampled_paths: int = _fast(
        0, "paths that a step samples by beta and computes, 2 or more (0: all)", minimum=0
    )

    @property
    def fast_modes(self) -> dict[str, Any]:
        """The fast modes in force, by name; empty for the search as the paper has it."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(SupernetConfig)
            if field.metadata["group"] == _FAST_MODES and getattr(self, field.name) != field.default
        }

    def _check(self) -> None:
        super()._check()
        if self.filter_multiplier % self.partial_channels:
            raise FieldError(
                f"partial_channels={self.partial_channels} must divide "
                f"filter_multiplier={self.filter_multiplier}: one in so many channels passes "
                "through the operations."
            )
        if self.sampled_paths == 1:
            raise FieldError(
                "sampled_paths=1 must be 0 (all paths) or at least 2: the weight of a single path "
                "is a mere scale that normalisation cancels, and beta would learn nothing."
            )
        if self.sampled_paths and self.formulation == "plain":
            raise FieldError(
                f"sampled_paths={self.sampled_paths} needs formulation=fused: the plain "
                "formulation computes all paths."
            )
        _check_stem(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig(Config):
    """The loss of a network that is trained on labelled images."""

    weight_decay: float = _optimisation(4e-5, "L2 weight decay of the kernels", minimum=0)
    hardest_fraction: float = _optimisation(
        1.0, "fraction of the pixels, hardest first, that count in the loss", above=0, maximum=1
    )
    label_smoothing: float = _optimisation(0.0, "label smoothing in the loss", minimum=0, below=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmenterConfig(NetworkConfig, LossConfig):
    """What `Segmenter` configures: a decoded network and its loss."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BilevelConfig(Config):
    """The two alternating updates of a search, beside their optimizers."""

    weight_decay: float = changed(LossConfig, "weight_decay", 3e-4)
    arch_weight_decay: float = _optimisation(1e-3, "L2 weight decay of alpha and beta", minimum=0)
    cost_weight: float = _optimisation(
        0.0,
        "W: add W log(C / C at the start) to the loss of alpha and beta, C the expected cost of "
        "the decoded cells",
        minimum=0,
    )
    cost: str = _optimisation(
        "multi_adds", "what the cost of cells counts", choices=("multi_adds", "params")
    )
    batch_norm_decay: float = changed(NetworkConfig, "batch_norm_decay", 0.99, group="search space")
    gradient_clip_norm: float | None = _optimisation(
        None, "maximum global norm of the weights' gradient (default: no clipping)", above=0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArchitectureSearchConfig(SupernetConfig, BilevelConfig):
    """What `ArchitectureSearch` configures: the search network and its updates."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataFilesConfig(Config):
    """The data set, and the folder that holds its files."""

    dataset: str = _data("scenes", "name of the data set")
    data_dir: str | None = _data(
        None,
        "folder of the data set (it is only read; generated scenes need none)",
        metavar="DIR",
        path=True,
        on_resume="free",  # the records are keyed by the files' fingerprint, not by their path
    )
    dataset_config: str | None = _data(
        None,
        "JSON file that describes --dataset=folder (default: dataset.json in --data_dir)",
        metavar="FILE",
        path=True,
        on_resume="free",  # its content is part of the fingerprint
    )
    max_image_pixels: int = flag(
        MAX_IMAGE_PIXELS,
        "maximum height times width of an image file that is read",
        group="data",
        minimum=1,
        on_resume="free",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetConfig(DataFilesConfig):
    """The data set, and the size at which its records are prepared."""

    cache_dir: str | None = _data(
        None,
        "folder of the prepared records (default: the user's cache folder)",
        metavar="DIR",
        path=True,
        on_resume="free",
    )
    image_size: Size | None = _data(
        None,
        "size to which images are resized for the records (default: keep the original size)",
        minimum=MINIMUM_SIZE,
    )
    max_image_side: int | None = _data(
        None,
        "in place of image_size: resize so that the longer side of every image has N pixels",
        minimum=MINIMUM_SIZE,
    )
    image_format: str | None = _data(
        None,
        "format of the images in the records (default: that of the files, or where they are "
        "resized the data set's own)",
        choices=("jpeg", "png"),
    )

    def _check(self) -> None:
        super()._check()
        if self.image_size is not None and self.max_image_side is not None:
            raise FieldError(
                "image_size and max_image_side both set the size: give one of them",
                "image_size",
                "max_image_side",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(DatasetConfig):
    """The batches of a training."""

    crop_size: Size = _data((321, 321), "size of the random crops", minimum=MINIMUM_SIZE)
    batch_size: int = _data(2, "images per step, over all devices", minimum=1)
    scale_min: float = _data(0.5, "smallest random scale of an image", above=0)
    scale_max: float = _data(2.0, "largest random scale of an image", above=0)
    flip: bool = _data(True, "flip horizontally with probability 0.5")
    crop_tries: int = _data(
        1,
        "maximum crop attempts; accept the first where no class covers more than 75 % of the "
        "labelled pixels",
        minimum=1,
        maximum=100,
    )
    color_jitter: float = _data(
        0.0,
        "strength X of random brightness, contrast and saturation: factors of 1 - X to 1 + X",
        minimum=0,
        maximum=1,
    )
    shard_by: str = _data(
        "rows",
        "rows: a worker takes its rows of the batch that one device has; files: images of its own "
        "files only, in another order",
        choices=("rows", "files"),
    )
    data_service: str | None = _data(
        None,
        "tf.data service whose workers make the training batches, the same ones in the same order",
        metavar="grpc://HOST:PORT",
        on_resume="free",
    )
    seed: int = flag(
        0, "seed of everything random: weights, data order, augmentation", minimum=0, group="run"
    )

    def _check(self) -> None:
        super()._check()
        _check_order(self, "scale_min", "scale_max")
        if self.data_service and not re.fullmatch(r"grpc://[^/]+:\d+", self.data_service):
            raise FieldError(f"data_service={self.data_service}: expected grpc://HOST:PORT")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeLimitConfig(Config):
    """A limit of time, as that of a batch system's queue."""

    max_hours: float | None = flag(
        None,
        "save and exit with 75 so many hours after the start; the same command resumes (default: "
        "no limit)",
        above=0,
        on_resume="free",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DevicesConfig(Config):
    """The devices of a command, on one machine or on many."""

    distribution_strategy: str = _device(
        "one_device",
        "one device; all of this machine; all of the machines that TF_CONFIG names; or a TPU",
        choices=STRATEGIES,
        on_resume="rounding",
    )
    tpu: str | None = _device(
        None,
        "name or gRPC address of the TPU (default: the one of this machine, a TPU VM)",
        metavar="ADDRESS",
        on_resume="free",
    )

    def _check(self) -> None:
        super()._check()
        if self.tpu is not None and self.distribution_strategy != "tpu":
            raise FieldError(
                f"tpu={self.tpu} needs distribution_strategy=tpu. "
                f"Received: {self.distribution_strategy}",
                "tpu",
                "distribution_strategy",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(DataConfig, TimeLimitConfig, DevicesConfig, OutputConfig):
    """A run folder, its checkpoints, its validation and its devices."""

    resumes: ClassVar[bool] = True
    run_dir: str = flag(
        help="folder of the run; the same command again resumes from its last checkpoint",
        metavar="DIR",
        path=True,
        on_resume="free",
    )
    resume: bool = flag(
        True, "resume the run in run_dir (--noresume: refuse a folder in use)", on_resume="free"
    )
    steps_per_epoch: int | None = flag(
        None, "steps per epoch (default: one pass over the training set)", minimum=1
    )
    validation_images: int | None = flag(
        None, "validate on N images, spread over the split (default: all)", minimum=1
    )
    validation_every_epochs: int = flag(1, "validate after every N-th epoch", minimum=1)
    checkpoint_every_steps: int = flag(
        100, "write a checkpoint after every N-th step", minimum=1, on_resume="free"
    )
    keep_checkpoints: int = flag(3, "number of checkpoints kept", minimum=1, on_resume="free")
    log_every_steps: int = flag(
        10,
        "read the losses from the device after every N-th step; results do not depend on it",
        minimum=1,
        on_resume="free",
    )
    deterministic: bool = _device(True, "same seed, same bits: TensorFlow operations without races")
    dtype_policy: str = _device(
        "float32",
        "precision of the features",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
    )
    progress: str = _output(
        "auto",
        "progress printed: a bar, a line per epoch, or none (auto: a bar on a terminal)",
        choices=("auto", "bar", "epochs", "none"),
    )
    dry_run: bool = _output(
        False, "run and measure two steps, print memory, time and parameters, then exit"
    )
    class_weights: str = _optimisation(
        "none",
        "weights of the classes in the loss, from their frequencies",
        choices=CLASS_WEIGHT_SCHEMES,
    )
    optimizer: str = _optimisation(
        "sgd",
        "of the weights: SGD with momentum, as in the paper, or Adam, which gets further in a few "
        "hundred steps",
        choices=("sgd", "adam"),
    )
    learning_rate: float = _optimisation(0.05, "learning rate of the weights at the start", above=0)
    momentum: float = _optimisation(
        0.9, "momentum of SGD, decay of Adam's mean", minimum=0, below=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkChoiceConfig(Config):
    """Which network: that of an architecture, or a baseline."""

    architecture: str | None = _network(
        None,
        "architecture file, or the name of a preset",
        metavar="FILE|NAME",
        path=True,
        on_resume="free",  # train compares its content with the run's architecture.json
    )
    network: str | None = _network(
        None, "name of a baseline, in place of an architecture", metavar="NAME"
    )

    def _check(self) -> None:
        super()._check()
        _check_exactly_one(self, "architecture", "network")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(OutputConfig):
    """A trained model that a command reads."""

    model: str = flag(help="model file, as train writes it", metavar="FILE.keras", path=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RayConfig(Config):
    """The Ray cluster that a command's work is spread over."""

    ray_address: str | None = _device(
        None,
        "Ray cluster to spread the work over: of its head, auto, or local for one on this machine",
        metavar="HOST:PORT|auto|local",
        on_resume="free",
    )


def _check_order(options: Any, low: str, high: str, reason: str = "") -> None:
    """Refuses a setting that is greater than another."""
    values = getattr(options, low), getattr(options, high)
    if values[0] > values[1]:
        raise FieldError(
            f"{low}={values[0]} must not be greater than {high}={values[1]}{reason}", low, high
        )


def _check_stem(options: Any) -> None:
    if len(options.stem_channels) != len(STEM_STRIDES):
        raise FieldError(
            f"stem_channels must be {len(STEM_STRIDES)} integers of 1 or more. "
            f"Received: {options.stem_channels}"
        )


def _check_exactly_one(options: Any, *names: str) -> None:
    if sum(getattr(options, name) is not None for name in names) != 1:
        raise FieldError(f"exactly one of {' and '.join(names)} is needed", *names)


# ---- one class per command


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckConfig(DataFilesConfig, OutputConfig):
    """Settings of the check of a data set."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig(DatasetConfig, OutputConfig):
    """Settings of the preparation of records."""

    resumes: ClassVar[bool] = True
    verify: bool = flag(False, "compare the checksum of every file of the records")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig(ArchitectureSearchConfig, RunConfig, ThreadsConfig):
    """Settings of the search; the defaults are the paper's recipe (sec. 4.1)."""

    path_temperature: float = _fast(
        10.0, "temperature of the sampled paths' gradient at the start", above=0
    )
    min_path_temperature: float = _fast(
        0.1, "temperature of the sampled paths' gradient at the end", above=0
    )
    epochs: int = _optimisation(40, "total number of epochs", minimum=1, on_resume="grow")
    arch_start_epoch: int = _optimisation(
        20, "first epoch (from 0) that updates alpha and beta", minimum=0
    )
    learning_rate: float = changed(RunConfig, "learning_rate", 0.025)
    min_learning_rate: float = _optimisation(
        0.001, "learning rate of the weights at the end", minimum=0
    )
    arch_learning_rate: float | Literal["auto"] = _optimisation(
        AUTO,
        "learning rate of alpha and beta (auto: 9 over the number of their updates, from the "
        "paper's 0.003 to 0.15)",
        above=0,
    )
    decoded_batches: int = flag(
        4,
        "training batches that estimate the statistics of the decoded network, which each "
        "validation scores with the supernet's weights (0: do not score it)",
        minimum=0,
        on_resume="free",
    )
    stop_on_collapse: bool = flag(
        False,
        "end the search at the first sign of a collapse (skip or pooling takes over, beta "
        "saturates early, alpha stays undecided, the supernet falls)",
        on_resume="free",
    )
    step_mode: str = _device(
        "auto",
        "compile each kind of node (eager) or the whole step (traced)",
        choices=("auto", "eager", "traced"),
        on_resume="rounding",
    )
    remat: str = _device(
        "auto",
        "recompute the inner features of nodes in the backward pass instead of storing them",
        choices=("auto", "true", "false"),
        on_resume="rounding",
    )
    jit_compile: str = _device(
        "auto",
        "compile the step with XLA (auto: on a GPU)",
        choices=("auto", "true", "false"),
        on_resume="rounding",
    )

    def _check(self) -> None:
        super()._check()
        never = ": alpha and beta would never be updated"
        _check_order(self, "arch_start_epoch", "epochs", never)
        _check_order(self, "min_learning_rate", "learning_rate")
        _check_order(self, "min_path_temperature", "path_temperature")
        if self.formulation == "plain":
            if self.distribution_strategy != "one_device" or self.dtype_policy != "float32":
                raise FieldError(
                    "formulation=plain needs distribution_strategy=one_device and "
                    "dtype_policy=float32"
                )
        if self.jit_compile == "true" and self.distribution_strategy != "one_device":
            raise FieldError(
                "jit_compile=true needs distribution_strategy=one_device: inside a function "
                "that XLA compiles, replicas cannot share the statistics of a batch"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeConfig(StemAndHeadConfig, OutputConfig):
    """Settings of the decoding of alpha and beta into an architecture."""

    run_dir: str | None = flag(None, "folder of a search", metavar="DIR", path=True)
    logits: str | None = flag(
        None,
        "file with the arrays alpha and beta, in place of a run",
        metavar="FILE.npz",
        path=True,
    )
    output: str | None = _output(
        None,
        "architecture file to write (default: RUN_DIR/architecture.json)",
        metavar="FILE.json",
        path=True,
    )
    atrous: str | None = changed(
        SupernetConfig,
        "atrous",
        None,
        help="convolution of the atrous operations (default: that of the run; with --logits: "
        "separable)",
        group="decoding",
    )
    top_k: int | None = flag(
        None, "also write the K best paths beside the output, as .csv", group="decoding", minimum=1
    )
    max_multi_adds: int | None = _budget(
        None, "choose the best path within this many Multi-Adds", minimum=1
    )
    max_params: int | None = _budget(
        None, "choose the best path within this many parameters", minimum=1
    )
    filter_multiplier: tuple[int, ...] | None = _budget(
        None,
        "filters of a block at stride 4, F, of the network counted; of several, the largest "
        "that fits",
        minimum=1,
    )
    num_classes: int = _budget(19, "classes of the network counted", minimum=2)
    input_size: Size = _budget((1024, 2048), "image size for the count", minimum=MINIMUM_SIZE)

    def _check(self) -> None:
        super()._check()
        _check_exactly_one(self, "run_dir", "logits")
        if self.logits is not None and self.output is None:
            raise FieldError(
                "logits needs output: the architecture file to write", "logits", "output"
            )
        if self.output is not None and not self.output.endswith(".json"):
            raise FieldError(f"output={self.output}: expected a name that ends in .json")
        budgets = "max_multi_adds", "max_params"
        if self.filter_multiplier is None and any(getattr(self, name) for name in budgets):
            raise FieldError(
                f"{' and '.join(budgets)} need filter_multiplier", *budgets, "filter_multiplier"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class HoldBackConfig(Config):
    """The part of a training set that networks are chosen by, so that val stays unseen."""

    hold_back: float = _data(
        0.0,
        "share of the training set that is held back: validation is on it, in place of val; whole "
        "drives or cities where they come near the share",
        minimum=0,
        maximum=0.5,
    )
    hold_back_groups: tuple[str, ...] | None = _data(
        None, "drives or cities that are held back, by name, in place of a share"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(HoldBackConfig, RunConfig, NetworkChoiceConfig, SegmenterConfig):
    """Settings of the training of one network; the defaults are the paper's (sec. 4.2)."""

    crop_size: Size = changed(DataConfig, "crop_size", (769, 769))
    batch_size: int = changed(DataConfig, "batch_size", 16)
    init_from: str | None = _network(
        None,
        "model file of the same network whose weights to start from; its last layer is used "
        "only where the classes are the same",
        metavar="FILE.keras",
        path=True,
    )
    normalization: str = _network(
        "plain",
        "images become x / 127.5 - 1, or (x - mean) / deviation of the data set",
        choices=("plain", "dataset"),
    )
    dtype_policy: str = changed(
        RunConfig, "dtype_policy", "float32", choices=("float32", "mixed_bfloat16")
    )
    steps: int = _optimisation(
        1_500_000, "total number of steps; the schedule ends with them", minimum=1, on_resume="grow"
    )
    power: float = _optimisation(0.9, "power of the poly schedule", above=0)
    stop_after_steps: int | None = _budget(
        None,
        "end after the epoch of this step, with the schedule of all steps; without it, or with "
        "more, the run resumes",
        minimum=1,
        on_resume="free",
    )
    overlays: int = _output(
        4, "number of validation images drawn after every validation, always the same", minimum=0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectConfig(HoldBackConfig, RayConfig, TimeLimitConfig, OutputConfig):
    """Settings of the selection of one network among searched and random candidates."""

    resumes: ClassVar[bool] = True
    output_dir: str = flag(
        help="folder of the selection; the same command again resumes it",
        metavar="DIR",
        path=True,
        on_resume="free",  # it may have moved
    )
    train_flagfile: str = flag(
        help="flag file of train, the recipe of the trainings: data, channels, steps, optimizer",
        metavar="FILE",
        path=True,
        on_resume="free",  # its content is compared
    )
    data_dir: str | None = changed(
        DataFilesConfig,
        "data_dir",
        None,
        help="folder of the data set (default: that of train_flagfile)",
    )
    cache_dir: str | None = changed(
        DatasetConfig,
        "cache_dir",
        None,
        help="folder of the prepared records (default: that of train_flagfile)",
    )
    hold_back: float = changed(HoldBackConfig, "hold_back", 0.2, above=0, minimum=None)
    search_runs: tuple[str, ...] | None = _candidates(
        None, "folders of searches of one search space", metavar="RUN,RUN,...", path=True
    )
    paths_per_search: int = _candidates(
        3, "most probable paths of each search, with its cell", minimum=1
    )
    samples_per_search: int = _candidates(
        0, "paths and cells drawn by the probabilities of each search", minimum=0
    )
    num_random: int = _candidates(0, "number of architectures drawn at random", minimum=0)
    random_seed: int = _candidates(0, "seed of the first draw; the next have the next", minimum=0)
    num_predicted: tuple[int, ...] | None = _candidates(
        None,
        "after the first rung, further draws that a regression on its scores finds best: so many "
        "in each round",
        minimum=1,
        metavar="N,N,...",
    )
    num_layers: int = changed(
        SupernetConfig,
        "num_layers",
        12,
        help="layers of the random ones, L (with searches: theirs)",
        group="candidates",
    )
    num_blocks: int = changed(
        SupernetConfig,
        "num_blocks",
        5,
        help="blocks of a cell of the random ones, B (with searches: theirs)",
        group="candidates",
    )
    atrous: str = changed(
        SupernetConfig,
        "atrous",
        "separable",
        help="convolution of the atrous operations of the random ones (with searches: theirs)",
        group="candidates",
    )
    inherited_batches: int = _candidates(
        4,
        "training batches that estimate statistics for the scores with inherited weights (0: no "
        "such scores)",
        minimum=0,
        on_resume="free",  # of a search without checkpoints, 0 is what to do
    )
    max_multi_adds: int | None = _budget(None, "most Multi-Adds of a candidate", minimum=1)
    max_params: int | None = _budget(None, "most parameters of a candidate", minimum=1)
    fit_filter_multiplier: bool = _budget(
        False, "give each candidate the largest filter multiplier that keeps the budget"
    )
    input_size: Size | None = _budget(
        None,
        "image size for the count (default: image_size of the recipe, else its crop_size)",
        minimum=MINIMUM_SIZE,
    )
    rungs: int = _halving(
        3, "number of rungs R; rung r compares after steps / reduction**(R + 1 - r)", minimum=1
    )
    reduction: int = _halving(2, "one candidate in so many goes to the next rung", minimum=2)
    rank_by: str = _halving(
        "loss",
        "score of a rung: the sum of training losses, or mIoU on the part held back",
        choices=("loss", "val_miou"),
    )

    def _check(self) -> None:
        super()._check()
        if not self.search_runs and not self.num_random:
            raise FieldError("search_runs or num_random is needed", "search_runs", "num_random")
        if self.fit_filter_multiplier and not (self.max_multi_adds or self.max_params):
            raise FieldError(
                "fit_filter_multiplier needs max_multi_adds or max_params",
                "fit_filter_multiplier",
                "max_multi_adds",
                "max_params",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(DatasetConfig, DevicesConfig, ModelConfig):
    """Settings of the evaluation of a trained model on a split."""

    model: str = changed(
        ModelConfig,
        "model",
        dataclasses.MISSING,
        help="model file, as train writes it, or the folder of a SavedModel",
        metavar="FILE.keras|DIR",
        path=True,
    )
    split: str = _data("val", "split of the data set")
    output_dir: str = _output(
        help="folder for metrics.json and the overlays", metavar="DIR", path=True
    )
    batch_size: int = _data(1, "images per step (one by one where their sizes differ)", minimum=1)
    input_size: Size | None = _evaluation(
        None,
        "size to which the network's images are resized (default: as in its training)",
        minimum=MINIMUM_SIZE,
    )
    scales: tuple[float, ...] = _evaluation(
        (1.0,), "scales whose probabilities are averaged", above=0
    )
    flip: bool = _evaluation(False, "also average over the horizontally flipped image")
    write_label_ids: bool = _output(
        False,
        "also write each prediction with the data set's own label ids, as "
        "label_ids/ID_pred_labelIds.png",
    )
    trivial_predictors: bool = _evaluation(
        False, "also score two predictors that ignore the image, made from the training labels"
    )
    overlays: int = _output(8, "number of overlays written, spread over the split", minimum=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig(RayConfig, ModelConfig):
    """Settings of the prediction of masks for images."""

    image: str = flag(
        help="an image, a folder of images, a glob, or a video", metavar="PATH", path=True
    )
    output_dir: str = _output(help="folder for the masks and overlays", metavar="DIR", path=True)
    input_size: Size | None = changed(EvaluateConfig, "input_size", None, group="run")
    max_image_pixels: int = changed(
        DataFilesConfig, "max_image_pixels", MAX_IMAGE_PIXELS, group="run"
    )
    tile: Size | None = flag(
        None,
        "predict in tiles of this size, for images larger than memory (default: as a whole)",
        minimum=MINIMUM_SIZE,
    )
    overlap: int | None = flag(
        None, "pixels over which tiles are blended (default: an eighth of a tile)", minimum=0
    )

    def _check(self) -> None:
        super()._check()
        if self.overlap is None:
            return
        if self.tile is None:
            raise FieldError("overlap is for tiles: give tile too. Received: no tile", "overlap")
        if 3 * self.overlap > min(self.tile):
            height, width = self.tile
            raise FieldError(
                f"overlap={self.overlap} must be at most a third of tile={height}x{width}",
                "overlap",
                "tile",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SummarizeConfig(NetworkChoiceConfig, NetworkSizesConfig, OutputConfig):
    """Settings of the count of parameters and Multi-Adds."""

    num_classes: int = _network(19, "number of classes", minimum=2)
    input_size: Size = _network((1024, 2048), "size of the image", minimum=MINIMUM_SIZE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedModelConfig(ModelConfig):
    """Settings of the export as a SavedModel."""

    output_dir: str = _output(
        help="folder that gets a numbered version folder", metavar="DIR", path=True
    )
    input_size: Size | None = _output(
        None, "fixed size of the images (default: any size)", minimum=MINIMUM_SIZE
    )
    warmup_size: Size | None = _output(
        None,
        "size of the images in the warm-up requests (default: input_size, else the size of the "
        "training images, else no requests)",
        minimum=MINIMUM_SIZE,
    )
    max_image_pixels: int = _output(
        2048 * 4096,
        "maximum height times width that the signature encoded_image accepts",
        minimum=MINIMUM_SIZE**2,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedSizeExportConfig(ModelConfig):
    """Settings of an export for images of one size."""

    output: str = _output(help="file to write", metavar="FILE", path=True)
    input_size: Size = _output(help="fixed size of the images", minimum=MINIMUM_SIZE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizedExportConfig(FixedSizeExportConfig):
    """Settings of an export whose arithmetic can be of 8 bits."""

    precision: str = _output("float32", "arithmetic")
    calibration_dir: str | None = _output(
        None, "folder of images that int8 measures its ranges on", metavar="DIR", path=True
    )

    def _check(self) -> None:
        super()._check()
        if self.precision == "int8" and self.calibration_dir is None:
            raise FieldError(
                "precision=int8 needs calibration_dir: a folder of typical images",
                "calibration_dir",
            )
        if self.precision != "int8" and self.calibration_dir is not None:
            raise FieldError(
                f"calibration_dir is for precision=int8 only. Received: {self.precision}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TFLiteConfig(QuantizedExportConfig):
    """Settings of the export as a TFLite file."""

    precision: str = changed(
        QuantizedExportConfig,
        "precision",
        "float32",
        help="arithmetic of the file",
        choices=("float32", "float16", "dynamic", "int8"),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorRTConfig(QuantizedExportConfig):
    """Settings of the export towards TensorRT."""

    output: str = changed(
        QuantizedExportConfig,
        "output",
        dataclasses.MISSING,
        help="file (onnx) or folder (tf_trt) to write",
        metavar="PATH",
        path=True,
    )
    precision: str = changed(
        QuantizedExportConfig,
        "precision",
        "float32",
        help="arithmetic of the engine; int8 is written into the ONNX file, float16 is left to "
        "trtexec",
        choices=("float32", "float16", "int8"),
    )
    dynamic_batch: bool = _output(False, "leave the number of images free in the ONNX file")
    route: str = flag("onnx", "through an ONNX file or through TF-TRT", choices=("onnx", "tf_trt"))

    def _check(self) -> None:
        super()._check()
        if self.route == "tf_trt" and (self.precision != "float32" or self.dynamic_batch):
            raise FieldError("precision and dynamic_batch are for route=onnx", "route")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyConfig(OutputConfig):
    """Settings of the check of an export against its manifest."""

    path: str = flag(
        help="exported file, folder of a SavedModel, or folder of numbered versions (the highest)",
        metavar="PATH",
        path=True,
    )
    model: str | None = flag(
        None, "model file that it must have been made from", metavar="FILE.keras", path=True
    )
