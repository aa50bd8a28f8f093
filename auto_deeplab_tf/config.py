"""The options of every command, as frozen dataclasses; the command line is made from them.

A field is declared once, with `flag`: its default, one line of help and the rule its value must
keep. The same rules hold on the command line, in a flag file and in Python. The text of a value
(`parse_value`, `format_value`) is defined here too, so that a run directory can hold the resolved
options as a flag file and read them back without the command line.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import types
import typing
from collections.abc import Sequence
from typing import Any, NamedTuple

from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.fast_modes import EXACT, check_fast_modes

Size = tuple[int, int]  # (height, width) in pixels; HEIGHTxWIDTH in text

_REQUIRED = dataclasses.MISSING


def flag(
    default: Any = _REQUIRED,
    help: str = "",
    *,
    group: str = "run",
    choices: Sequence[str] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    on_resume: str = "same",
    metavar: str | None = None,
) -> Any:
    """Declares one option: a dataclass field that is also a command-line flag.

    Args:
        default: the value where nothing is given; left out, the flag is required.
        help: one line, without the default (the command line adds it).
        group: heading under which `--help` lists the flag.
        choices: the texts that are allowed.
        minimum: smallest value allowed, for a size or a list of each element.
        maximum: largest value allowed.
        above: the value must be greater than this.
        below: the value must be smaller than this.
        on_resume: what a run that goes on may do with it: "same" (nothing), "grow" (a larger
            value is allowed) or "free" (it changes no result: logs, devices, paths of caches).
        metavar: the word for the value in `--help`.

    Returns:
        A `dataclasses.field`.
    """
    if not help or "\n" in help:
        raise UserError(f"the help of a flag is one line of text. Received: {help!r}")
    if on_resume not in ("same", "grow", "free"):
        raise UserError(f"on_resume is same, grow or free. Received: {on_resume!r}")
    metadata = {
        "help": help,
        "group": group,
        "choices": tuple(choices) if choices else None,
        "minimum": minimum,
        "maximum": maximum,
        "above": above,
        "below": below,
        "on_resume": on_resume,
        "metavar": metavar,
    }
    return dataclasses.field(default=default, metadata=metadata)


class Kind(NamedTuple):
    """What a field holds: an element type, one or many of it, and whether None is allowed."""

    element: type  # bool, int, float or str
    form: str  # "one", "size" or "list"
    optional: bool

    @property
    def metavar(self) -> str:
        word = {bool: "BOOL", int: "N", float: "X", str: "TEXT"}[self.element]
        return {"one": word, "size": "HxW", "list": f"{word},{word},..."}[self.form]


def _kind(hint: Any) -> Kind:
    optional = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        optional = len(members) < len(typing.get_args(hint))
        if len(members) != 1:
            raise TypeError(f"a flag holds one type or None. Received: {hint}")
        hint = members[0]
    if hint == Size:
        return Kind(int, "size", optional)
    if typing.get_origin(hint) is tuple:
        element, *rest = typing.get_args(hint)
        if rest == [Ellipsis] and element in (int, float, str):
            return Kind(element, "list", optional)
    if hint in (bool, int, float, str):
        return Kind(hint, "one", optional)
    raise TypeError(f"no text form for a flag of type {hint}")


def kinds(config_class: type) -> dict[str, Kind]:
    """The kind of every field of a config class, in the order of its fields."""
    hints = typing.get_type_hints(config_class)
    return {field.name: _kind(hints[field.name]) for field in dataclasses.fields(config_class)}


def is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING


# ---- values as text


def _parse_element(element: type, text: str) -> Any:
    if element is bool:
        words = {"true": True, "1": True, "false": False, "0": False}
        if text.lower() not in words:
            raise UserError("expected true or false")
        return words[text.lower()]
    if element is int:
        try:
            return int(text)
        except ValueError:
            pass
        try:  # 3e11 for a budget is easier to read than its twelve digits
            value = float(text)
        except ValueError:
            raise UserError("expected a whole number") from None
        if not value.is_integer():
            raise UserError("expected a whole number")
        return int(value)
    if element is float:
        try:
            return float(text)
        except ValueError:
            raise UserError("expected a number") from None
    return text


def parse_value(kind: Kind, text: str) -> Any:
    """Reads a value from its text; an empty text is None where None is allowed.

    Sizes are HEIGHTxWIDTH, or one number for a square; lists are separated by commas.

    Raises:
        ValueError: says what was expected, without naming the flag.
    """
    if "\n" in text or "\r" in text or text != text.strip():
        raise UserError("expected text without line breaks and without spaces at its ends")
    if text == "" and kind.optional:
        return None
    if kind.form == "size":
        match = re.fullmatch(r"(\d+)(?:[xX](\d+))?", text)
        if not match:
            raise UserError("expected HEIGHTxWIDTH in pixels, such as 321x513")
        return int(match[1]), int(match[2] or match[1])
    if kind.form == "list":
        return tuple(_parse_element(kind.element, part.strip()) for part in text.split(","))
    return _parse_element(kind.element, text)


def format_value(kind: Kind, value: Any) -> str:
    """Writes a value as the text that `parse_value` reads back to the same value."""
    if value is None:
        return ""
    if kind.form == "size":
        return f"{value[0]}x{value[1]}"
    if kind.form == "list":
        return ",".join(map(_format_element, value))
    return _format_element(value)


def _format_element(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else repr(value)


def flags_text(config: Config) -> str:
    """The resolved options as a flag file, one flag per line: it repeats the run.

    Fields that are None have no text of their own and are written with nothing after the `=`.
    """
    return "".join(
        f"--{name}={format_value(kind, getattr(config, name))}\n"
        for name, kind in kinds(type(config)).items()
    )


def from_flags_text(config_class: type, text: str) -> Any:
    """Reads what `flags_text` wrote.

    Raises:
        ValueError: for a line that is no flag of this class, or a value that breaks its rule.
    """
    known = kinds(config_class)
    values = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"--(\w+)=(.*)", line)
        if not match or match[1] not in known:
            raise UserError(
                f"line {number} is no flag of {config_class.__name__}: {line!r} "
                "(expected --name=value, as the command that wrote the file wrote it)"
            )
        name = match[1]
        try:
            values[name] = parse_value(known[name], match[2])
        except ValueError as error:
            raise UserError(f"--{name}={match[2]}: {error} (line {number})") from None
    return config_class(**values)


def resume_conflicts(before: Config, after: Config) -> tuple[str, ...]:
    """What keeps a run written by `before` from going on as `after`, one text per flag."""
    if type(before) is not type(after):
        return (f"{type(before).__name__} cannot go on as {type(after).__name__}",)
    conflicts = []
    for field in dataclasses.fields(after):
        old, new = getattr(before, field.name), getattr(after, field.name)
        rule = field.metadata["on_resume"]
        if old == new or rule == "free" or (rule == "grow" and new > old):
            continue
        kind = kinds(type(after))[field.name]
        conflicts.append(
            f"--{field.name}={format_value(kind, new)} (the run has {format_value(kind, old)!r})"
        )
    return tuple(conflicts)


# ---- the rules


def _check_type(name: str, kind: Kind, value: Any) -> Any:
    """Returns the value in its canonical type (lists become tuples, paths texts)."""

    def element(item: Any) -> Any:
        if kind.element is str and isinstance(item, os.PathLike):
            item = os.fspath(item)
        if kind.element is float and isinstance(item, int) and not isinstance(item, bool):
            return float(item)
        if type(item) is not kind.element:
            raise UserError(f"--{name} takes {kind.metavar}. Received: {value!r}")
        return item

    if value is None and kind.optional:
        return None
    if kind.form == "one":
        return element(value)
    if not isinstance(value, (tuple, list)) or (kind.form == "size" and len(value) != 2):
        raise UserError(f"--{name} takes {kind.metavar}. Received: {value!r}")
    return tuple(element(item) for item in value)


def _check_range(field: dataclasses.Field, kind: Kind, value: Any) -> None:
    rules = field.metadata
    text = f"--{field.name}={format_value(kind, value)}"
    items = (value,) if kind.form == "one" else value
    if not items:
        raise UserError(f"{text}: needs at least one value")
    for item in items:
        if isinstance(item, str):
            if rules["choices"] and item not in rules["choices"]:
                raise UserError(f"{text}: expected one of {', '.join(rules['choices'])}")
            try:
                parse_value(Kind(str, "one", False), item)
            except ValueError as error:
                raise UserError(f"--{field.name}={item!r}: {error}") from None
            continue
        if isinstance(item, float) and not math.isfinite(item):
            raise UserError(f"{text}: must be finite")
        if rules["minimum"] is not None and item < rules["minimum"]:
            raise UserError(f"{text}: must be at least {rules['minimum']}")
        if rules["maximum"] is not None and item > rules["maximum"]:
            raise UserError(f"{text}: must be at most {rules['maximum']}")
        if rules["above"] is not None and not item > rules["above"]:
            raise UserError(f"{text}: must be greater than {rules['above']}")
        if rules["below"] is not None and not item < rules["below"]:
            raise UserError(f"{text}: must be smaller than {rules['below']}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all options: checks every field against its declaration.

    Raises:
        ValueError: names the flag, the value and the rule.
    """

    def __post_init__(self) -> None:
        all_kinds = kinds(type(self))
        for field in dataclasses.fields(self):
            kind = all_kinds[field.name]
            value = _check_type(field.name, kind, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            if value is None:
                continue
            if is_required(field) and value == "":
                raise UserError(f"--{field.name} is required: it must not be empty")
            _check_range(field, kind, value)
        self._check()

    def _check(self) -> None:
        """Rules that tie fields together; each class adds its own and calls its parent's."""


# ---- what several commands share


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataFilesConfig(Config):
    """Which data set, and where it lies."""

    dataset: str = flag("scenes", "name of the data set, as the catalog lists it", group="data")
    data_dir: str | None = flag(
        None,
        "folder of the data set (never written to; generated scenes need none)",
        group="data",
        metavar="DIR",
        on_resume="free",  # the records are keyed by the files' fingerprint, not by their path
    )
    dataset_config: str | None = flag(
        None,
        "JSON file that describes --dataset=folder (nothing given: dataset.json in --data_dir)",
        group="data",
        metavar="FILE",
        on_resume="free",  # what it says is part of the fingerprint
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetConfig(DataFilesConfig):
    """The data set, and at which size its records are prepared."""

    cache_dir: str | None = flag(
        None,
        "folder for the prepared records (nothing given: the user's cache folder)",
        group="data",
        metavar="DIR",
        on_resume="free",
    )
    image_size: Size | None = flag(
        None,
        "size at which the records are prepared (nothing given: as the files are)",
        group="data",
        minimum=32,
    )
    max_image_side: int | None = flag(
        None,
        "in place of image_size: bring the longer side of every image to N pixels",
        group="data",
        minimum=32,
    )
    image_format: str | None = flag(
        None,
        "images in the records (nothing given: the files' own, resized ones as the catalog says)",
        group="data",
        choices=("jpeg", "png"),
    )

    def _check(self) -> None:
        super()._check()
        if self.image_size is not None and self.max_image_side is not None:
            raise UserError("--image_size and --max_image_side both say the size: give one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(DatasetConfig):
    """The batches of a training."""

    crop_size: Size = flag((321, 321), "size of the random crops", group="data", minimum=32)
    batch_size: int = flag(2, "images per step, over all devices", group="data", minimum=1)
    scale_min: float = flag(0.5, "smallest random scale of an image", group="data", above=0)
    scale_max: float = flag(2.0, "largest random scale of an image", group="data", above=0)
    flip: bool = flag(True, "mirror every second image at random", group="data")
    crop_tries: int = flag(
        1,
        "crops drawn, at most, for one without a class of 75 % of its labelled pixels",
        group="data",
        minimum=1,
        maximum=100,
    )
    color_jitter: float = flag(
        0.0,
        "strength of random brightness, contrast and saturation: factors of 1 - X to 1 + X",
        group="data",
        minimum=0,
        maximum=1,
    )
    seed: int = flag(
        0, "seed of everything random: weights, data order, augmentation", minimum=0, group="run"
    )

    def _check(self) -> None:
        super()._check()
        if self.scale_min > self.scale_max:
            raise UserError(
                f"--scale_min={self.scale_min} must not be greater than "
                f"--scale_max={self.scale_max}"
            )


_CLASS_WEIGHTS = ("none", "sqrt_median_frequency", "median_frequency")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(DataConfig):
    """A run directory, its checkpoints, its validation and its devices."""

    run_dir: str = flag(
        help="folder of the run; the same command again goes on from its last checkpoint",
        metavar="DIR",
        on_resume="free",
    )
    resume: bool = flag(
        True, "go on where run_dir stands (--noresume: refuse a folder in use)", on_resume="free"
    )
    steps_per_epoch: int | None = flag(
        None, "steps per epoch (nothing given: the training set once)", minimum=1
    )
    validation_images: int | None = flag(
        None, "validate on N images, spread over the split (nothing given: all)", minimum=1
    )
    validation_every_epochs: int = flag(1, "validate after every N-th epoch", minimum=1)
    checkpoint_every_steps: int = flag(
        100, "write a checkpoint after every N-th step", minimum=1, on_resume="free"
    )
    keep_checkpoints: int = flag(3, "number of checkpoints kept", minimum=1, on_resume="free")
    deterministic: bool = flag(
        True, "same seed, same bits: TensorFlow operations without races", group="device"
    )
    distribution_strategy: str = flag(
        "one_device",
        "how the work is spread over devices",
        choices=("one_device", "mirrored"),
        group="device",
        on_resume="free",
    )
    progress: str = flag(
        "auto",
        "what is printed while it runs: a bar, a line per epoch, nothing",
        choices=("auto", "bar", "epochs", "none"),
        group="output",
        on_resume="free",
    )
    json: bool = flag(
        False,
        "print the result as one JSON object on one line, nothing else",
        group="output",
        on_resume="free",
    )


# ---- one class per command


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckConfig(DataFilesConfig):
    """Options of the check of a data set."""

    json: bool = flag(
        False, "print the result as one JSON object on one line, nothing else", group="output"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig(DatasetConfig):
    """Options of the preparation of records."""

    verify: bool = flag(False, "compare the checksum of every file of the records")
    json: bool = flag(
        False, "print the result as one JSON object on one line, nothing else", group="output"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig(RunConfig):
    """Options of the search; the defaults are the paper's recipe (sec. 4.1)."""

    num_layers: int = flag(12, "layers of the network, L", group="search space", minimum=1)
    num_blocks: int = flag(5, "blocks of a cell, B", group="search space", minimum=1)
    filter_multiplier: int = flag(
        8, "filters of a block at stride 4, F", group="search space", minimum=1
    )
    atrous: str = flag(
        "separable",
        "the atrous operation: a full or a depthwise-separable convolution",
        choices=("full", "separable"),
        group="search space",
    )
    share_operations: bool = flag(
        True, "the cells of a node share the weights of its operations", group="search space"
    )
    batch_norm_decay: float = flag(
        0.99,
        "decay of the moving statistics",
        group="search space",
        minimum=0,
        below=1,
    )
    partial_channels: int = flag(
        1,
        "K: one in K channels goes through the operations (PC-DARTS; 1: all)",
        group="fast modes: not the exact search",
        minimum=1,
    )
    mix_predecessors: bool = flag(
        False,
        "one cell a node, of its predecessors mixed by beta",
        group="fast modes: not the exact search",
    )
    sampled_paths: int = flag(
        0,
        "paths that a step draws by beta and computes, 2 or more (0: all)",
        group="fast modes: not the exact search",
        minimum=0,
    )
    path_temperature: float = flag(
        10.0,
        "temperature of the sampled paths' gradient at the start",
        group="fast modes: not the exact search",
        above=0,
    )
    min_path_temperature: float = flag(
        0.1,
        "temperature of the sampled paths' gradient at the end",
        group="fast modes: not the exact search",
        above=0,
    )
    epochs: int = flag(40, "epochs in all", group="optimisation", minimum=1, on_resume="grow")
    arch_start_epoch: int = flag(
        20, "first epoch (from 0) that updates alpha and beta", group="optimisation", minimum=0
    )
    learning_rate: float = flag(
        0.025, "learning rate of the weights at the start", group="optimisation", above=0
    )
    min_learning_rate: float = flag(
        0.001, "learning rate of the weights at the end", group="optimisation", minimum=0
    )
    momentum: float = flag(0.9, "momentum of the weights", group="optimisation", minimum=0, below=1)
    weight_decay: float = flag(
        3e-4, "L2 weight decay on the kernels", group="optimisation", minimum=0
    )
    gradient_clip_norm: float | None = flag(
        None,
        "largest global norm of the weights' gradient (nothing given: not clipped)",
        group="optimisation",
        above=0,
    )
    arch_learning_rate: float = flag(
        0.003, "learning rate of alpha and beta", group="optimisation", above=0
    )
    arch_weight_decay: float = flag(
        1e-3, "L2 weight decay on alpha and beta", group="optimisation", minimum=0
    )
    class_weights: str = flag(
        "none",
        "weights of the classes in the loss, from their frequencies",
        choices=_CLASS_WEIGHTS,
        group="optimisation",
    )
    step_mode: str = flag(
        "auto",
        "compile each kind of node (eager) or the whole step (traced)",
        choices=("auto", "eager", "traced"),
        group="device",
        on_resume="free",
    )
    dry_run: bool = flag(
        False,
        "say what the run will need (memory, seconds, parameters; on CPU), and do nothing",
        group="output",
        on_resume="free",
    )
    remat: str = flag(
        "auto",
        "compute the insides of nodes again in the backward pass in place of keeping them",
        choices=("auto", "true", "false"),
        group="device",
        on_resume="free",
    )
    jit_compile: str = flag(
        "auto",
        "compile the step by XLA (auto: on a GPU)",
        choices=("auto", "true", "false"),
        group="device",
        on_resume="free",
    )
    intra_op_threads: int = flag(
        0,
        "threads that share one operation on CPU (0: all cores); at small crops 1 is faster",
        minimum=0,
        group="device",
        on_resume="free",
    )
    inter_op_threads: int = flag(
        0,
        "operations that run at a time on CPU (0: as many as cores)",
        minimum=0,
        group="device",
        on_resume="free",
    )
    dtype_policy: str = flag(
        "float32",
        "precision of the features",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
        group="device",
    )

    def _check(self) -> None:
        super()._check()
        if self.arch_start_epoch > self.epochs:
            raise UserError(
                f"--arch_start_epoch={self.arch_start_epoch} must not be greater than "
                f"--epochs={self.epochs}: alpha and beta would never be updated"
            )
        if self.jit_compile == "true" and self.distribution_strategy != "one_device":
            raise UserError(
                "--jit_compile=true needs --distribution_strategy=one_device: inside a function "
                "that XLA compiles the replicas cannot share the statistics of a batch"
            )
        if self.min_learning_rate > self.learning_rate:
            raise UserError(
                f"--min_learning_rate={self.min_learning_rate} must not be greater than "
                f"--learning_rate={self.learning_rate}"
            )
        if self.min_path_temperature > self.path_temperature:
            raise UserError(
                f"--min_path_temperature={self.min_path_temperature} must not be greater than "
                f"--path_temperature={self.path_temperature}"
            )
        try:
            check_fast_modes(self.filter_multiplier, {name: getattr(self, name) for name in EXACT})
        except ValueError as error:
            raise UserError(f"--{error}") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeConfig(Config):
    """Options of the decoding of alpha and beta into an architecture."""

    run_dir: str | None = flag(None, "folder of a search", metavar="DIR")
    logits: str | None = flag(
        None, "file with the arrays alpha and beta, in place of a run", metavar="FILE.npz"
    )
    output: str | None = flag(
        None,
        "architecture file to write (nothing given: RUN_DIR/architecture.json)",
        group="output",
        metavar="FILE.json",
    )
    atrous: str | None = flag(
        None,
        "the atrous operation (nothing given: as the run had it; with --logits: separable)",
        choices=("full", "separable"),
        group="decoding",
    )
    top_k: int | None = flag(
        None, "also write the K best paths beside the output, as .csv", group="decoding", minimum=1
    )
    max_multi_adds: int | None = flag(
        None, "take the best path within this many Multi-Adds", group="budget", minimum=1
    )
    max_params: int | None = flag(
        None, "take the best path within this many parameters", group="budget", minimum=1
    )
    filter_multiplier: tuple[int, ...] | None = flag(
        None,
        "filters of a block at stride 4, F, to count with; of several, the largest that fits",
        group="budget",
        minimum=1,
    )
    num_classes: int = flag(19, "number of classes to count with", group="budget", minimum=2)
    input_size: Size = flag(
        (1024, 2048), "size of the image to count with", group="budget", minimum=32
    )
    head_channels: int = flag(256, "channels of the ASPP to count with", group="budget", minimum=1)
    decoder_channels: int = flag(
        48, "channels of the low-level feature to count with", group="budget", minimum=1
    )
    json: bool = flag(
        False, "print the result as one JSON object on one line, nothing else", group="output"
    )

    def _check(self) -> None:
        super()._check()
        if (self.run_dir is None) == (self.logits is None):
            raise UserError("exactly one of --run_dir and --logits is needed")
        if self.logits is not None and self.output is None:
            raise UserError("--logits needs --output: the architecture file to write")
        if self.output is not None and not self.output.endswith(".json"):
            raise UserError(f"--output={self.output}: expected a name that ends in .json")
        budget = self.max_multi_adds is not None or self.max_params is not None
        if budget and self.filter_multiplier is None:
            raise UserError("--max_multi_adds and --max_params need --filter_multiplier")


def _check_one_network(options: Any) -> None:
    if (options.architecture is None) == (options.network is None):
        raise UserError("exactly one of --architecture and --network is needed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """Options of the training of one network; the defaults are the paper's (sec. 4.2)."""

    crop_size: Size = flag((769, 769), "size of the random crops", group="data", minimum=32)
    batch_size: int = flag(16, "images per step, over all devices", group="data", minimum=1)
    architecture: str | None = flag(
        None, "architecture file, or the name of a preset", group="network", metavar="FILE|NAME"
    )
    network: str | None = flag(
        None, "name of a baseline, in place of an architecture", group="network", metavar="NAME"
    )
    init_from: str | None = flag(
        None,
        "model file to start from, of the same network; the layer of its classes is taken only "
        "where they are the same",
        group="network",
        metavar="FILE.keras",
    )
    filter_multiplier: int = flag(
        20, "filters of a block at stride 4, F", group="network", minimum=1
    )
    head_channels: int = flag(256, "channels of the ASPP", group="network", minimum=1)
    decoder_channels: int = flag(
        48, "channels of the low-level feature in the decoder", group="network", minimum=1
    )
    normalization: str = flag(
        "plain",
        "images become x / 127.5 - 1, or (x - mean) / deviation of the data set",
        choices=("plain", "dataset"),
        group="network",
    )
    drop_path_keep: float = flag(
        1.0,
        "probability at the end of keeping a path (1: no drop path)",
        group="network",
        above=0,
        maximum=1,
    )
    batch_norm_decay: float = flag(
        0.9997, "decay of the moving statistics", group="network", minimum=0, below=1
    )
    dtype_policy: str = flag(
        "float32",
        "precision of the layers",
        choices=("float32", "mixed_bfloat16"),
        group="device",
    )
    steps: int = flag(
        1_500_000,
        "training steps in all; the schedule ends with them",
        group="optimisation",
        minimum=1,
        on_resume="grow",
    )
    learning_rate: float = flag(0.05, "learning rate at the start", group="optimisation", above=0)
    power: float = flag(0.9, "power of the poly schedule", group="optimisation", above=0)
    optimizer: str = flag(
        "sgd",
        "SGD with momentum, as in the paper, or Adam, which gets further in a few hundred steps",
        choices=("sgd", "adam"),
        group="optimisation",
    )
    momentum: float = flag(
        0.9, "momentum of SGD, decay of Adam's mean", group="optimisation", minimum=0, below=1
    )
    weight_decay: float = flag(
        4e-5, "L2 weight decay on the kernels", group="optimisation", minimum=0
    )
    class_weights: str = flag(
        "none",
        "weights of the classes in the loss, from their frequencies",
        choices=_CLASS_WEIGHTS,
        group="optimisation",
    )
    hardest_fraction: float = flag(
        1.0,
        "share of the pixels, hardest first, that count in the loss",
        group="optimisation",
        above=0,
        maximum=1,
    )
    label_smoothing: float = flag(
        0.0, "label smoothing in the loss", group="optimisation", minimum=0, below=1
    )
    overlays: int = flag(
        4,
        "number of validation images drawn after every validation, always the same",
        group="output",
        minimum=0,
        on_resume="free",
    )

    def _check(self) -> None:
        super()._check()
        _check_one_network(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(DatasetConfig):
    """Options of the evaluation of a trained model on a split."""

    model: str = flag(
        help="model file, as train writes it, or a SavedModel's folder", metavar="FILE.keras|DIR"
    )
    split: str = flag("val", "split of the data set", group="data")
    output_dir: str = flag(
        help="folder for metrics.json and the overlays", group="output", metavar="DIR"
    )
    batch_size: int = flag(
        1, "images per step (one by one where their sizes differ)", group="data", minimum=1
    )
    input_size: Size | None = flag(
        None,
        "size that images are brought to for the network (nothing given: as in its training)",
        group="evaluation",
        minimum=32,
    )
    scales: tuple[float, ...] = flag(
        (1.0,), "scales whose probabilities are averaged", group="evaluation", above=0
    )
    flip: bool = flag(False, "average with the mirrored image too", group="evaluation")
    write_label_ids: bool = flag(
        False,
        "also write each prediction with the data set's own label ids, as label_ids/"
        "ID_pred_labelIds.png",
        group="output",
    )
    trivial_predictors: bool = flag(
        False,
        "also score two predictors that look at no image, made from the training labels",
        group="evaluation",
    )
    overlays: int = flag(
        8, "number of overlays written, spread over the split", group="output", minimum=0
    )
    json: bool = flag(
        False, "print the result as one JSON object on one line, nothing else", group="output"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig(Config):
    """Options of the prediction of masks for images."""

    model: str = flag(help="model file, as train writes it", metavar="FILE.keras")
    image: str = flag(help="an image, a folder of images, or a glob", metavar="PATH")
    output_dir: str = flag(help="folder for the masks and overlays", group="output", metavar="DIR")
    input_size: Size | None = flag(
        None,
        "size that images are brought to for the network (nothing given: as in its training)",
        minimum=32,
    )
    json: bool = flag(
        False, "print the result as one JSON object on one line, nothing else", group="output"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SummarizeConfig(Config):
    """Options of the count of parameters and Multi-Adds."""

    architecture: str | None = flag(
        None, "architecture file, or the name of a preset", group="network", metavar="FILE|NAME"
    )
    network: str | None = flag(
        None, "name of a baseline, in place of an architecture", group="network", metavar="NAME"
    )
    filter_multiplier: int = flag(
        20, "filters of a block at stride 4, F", group="network", minimum=1
    )
    num_classes: int = flag(19, "number of classes", group="network", minimum=2)
    input_size: Size = flag((1024, 2048), "size of the image", group="network", minimum=32)
    head_channels: int = flag(256, "channels of the ASPP", group="network", minimum=1)
    decoder_channels: int = flag(
        48, "channels of the low-level feature in the decoder", group="network", minimum=1
    )
    json: bool = flag(
        False, "print the result as one JSON object on one line, nothing else", group="output"
    )

    def _check(self) -> None:
        super()._check()
        _check_one_network(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedModelConfig(Config):
    """Options of the export as a SavedModel."""

    model: str = flag(help="model file, as train writes it", metavar="FILE.keras")
    output_dir: str = flag(
        help="folder that gets a numbered version folder", group="output", metavar="DIR"
    )
    input_size: Size | None = flag(
        None, "fixed size of the images (nothing given: any size)", group="output", minimum=32
    )
    max_image_pixels: int = flag(
        2048 * 4096,
        "largest height times width that the signature encoded_image takes",
        group="output",
        minimum=32 * 32,
    )
    json: bool = flag(
        False, "print the result as one JSON object on one line, nothing else", group="output"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TFLiteConfig(Config):
    """Options of the export as a TFLite file."""

    model: str = flag(help="model file, as train writes it", metavar="FILE.keras")
    output: str = flag(help="file to write", group="output", metavar="FILE.tflite")
    input_size: Size = flag(help="fixed size of the images", group="output", minimum=32)
    precision: str = flag(
        "float32",
        "arithmetic of the file",
        choices=("float32", "float16", "dynamic", "int8"),
        group="output",
    )
    calibration_dir: str | None = flag(
        None, "folder of images that int8 measures its ranges on", group="output", metavar="DIR"
    )
    json: bool = flag(
        False, "print the result as one JSON object on one line, nothing else", group="output"
    )

    def _check(self) -> None:
        super()._check()
        if self.precision == "int8" and self.calibration_dir is None:
            raise UserError("--precision=int8 needs --calibration_dir: a folder of typical images")
        if self.precision != "int8" and self.calibration_dir is not None:
            raise UserError(
                f"--calibration_dir is for --precision=int8 only. Received: {self.precision}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorRTConfig(Config):
    """Options of the export towards TensorRT."""

    model: str = flag(help="model file, as train writes it", metavar="FILE.keras")
    output: str = flag(help="file (onnx) or folder (tf_trt) to write", group="output")
    input_size: Size = flag(help="fixed size of the images", group="output", minimum=32)
    route: str = flag("onnx", "through an ONNX file or through TF-TRT", choices=("onnx", "tf_trt"))
    json: bool = flag(
        False, "print the result as one JSON object on one line, nothing else", group="output"
    )
