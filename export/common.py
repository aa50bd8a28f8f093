"""What every exporter shares: checks of input, agreement with the Keras model, publishing.

No framework is imported here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib
import itertools
import json
import os
import pathlib
import shutil
import sys
import tempfile
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from auto_deeplab_tf import cli
from auto_deeplab_tf.data.dataset import IMAGE_SUFFIXES, is_hidden
from auto_deeplab_tf.errors import MissingExtraError, MissingFileError, UserError
from auto_deeplab_tf.search_space import CHANNEL_NAMES
from auto_deeplab_tf.untrusted import check_keras_file
from export import provenance

MIN_SIZE = 32
"""The least height and width of an input, in pixels: one position at stride 32."""

SEGMENTER_CLASS = "auto_deeplab_tf>Segmenter"


class Disagreement(UserError):
    """The export does not predict what the Keras model predicts, so nothing was published."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{message}; nothing was published.")


def require(module: str) -> types.ModuleType:
    """Imports an optional package.

    Raises:
        MissingExtraError: If it is not installed; the message names the extra that holds it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"this export needs {module.partition('.')[0]}, which cannot be imported ({error}): "
            "pip install auto_deeplab_tf[export]"
        ) from error


def input_text(channels: int) -> str:
    """Returns what the metadata of a model say of its images."""
    return f"{CHANNEL_NAMES[channels]}, 0..255; normalised inside"


def input_channels(metadata: Mapping[str, Any]) -> int:
    """Returns the channels of a model's images, by its metadata; 3 where they do not say.

    Args:
        metadata: As `export.model.describe` returns them.
    """
    known = {input_text(channels): channels for channels in CHANNEL_NAMES}
    return known.get(metadata.get("input", ""), 3)


def check_model_file(path: str | os.PathLike[str]) -> pathlib.Path:
    """Checks that a file is a whole .keras file of `Segmenter`; builds nothing yet.

    Returns:
        The path.

    Raises:
        MissingFileError: If there is no such file.
        UserError: If it is something else, or damaged.
    """
    path = pathlib.Path(path)
    rule = "give the model.keras that `python -m auto_deeplab_tf.train` or Segmenter.save wrote"
    if not path.is_file():
        raise MissingFileError(f"model={path}: no such file; {rule}.")
    try:
        found = check_keras_file(path).class_name
    except UserError as error:
        raise UserError(f"model={path} {error}; {rule}.") from None
    if found != SEGMENTER_CLASS:
        raise UserError(
            f"model={path} holds a Keras model of class {found!r}, not {SEGMENTER_CLASS!r}; {rule}."
        )
    return path


def check_input_size(size: Sequence[int]) -> tuple[int, int]:
    """Returns (height, width) as ints.

    Raises:
        UserError: If a side is shorter than MIN_SIZE.
    """
    height, width = (int(side) for side in size)
    if min(height, width) < MIN_SIZE:
        raise UserError(
            f"input_size={height}x{width}: height and width must each be at least {MIN_SIZE}."
        )
    return height, width


def check_output_file(path: str | os.PathLike[str], suffix: str) -> pathlib.Path:
    """Checks that a file with this suffix can be published at `path`.

    An existing file is replaced once the new one has passed its checks.

    Returns:
        The path.

    Raises:
        UserError: For another suffix, or if `path` is a folder.
    """
    path = pathlib.Path(path)
    if path.suffix != suffix:
        raise UserError(f"output={path} must end in {suffix}.")
    if path.is_dir():
        raise UserError(f"output={path} is a folder; give the name of a {suffix} file.")
    return path


def check_precision(
    precision: str, allowed: Iterable[str], calibration_dir: str | os.PathLike[str] | None
) -> None:
    """Checks that a precision is one of those allowed, and int8 alone is calibrated.

    Raises:
        UserError: If not.
    """
    if precision not in allowed:
        raise UserError(f"precision={precision} must be one of {', '.join(allowed)}.")
    if (precision == "int8") != (calibration_dir is not None):
        raise UserError(
            f"a calibration_dir goes with int8, and only with it. Received: {precision}"
        )


def random_images(
    count: int, size: tuple[int, int], seed: int = 0, channels: int = 3
) -> np.ndarray:
    """Returns images with structure at several scales.

    Plain noise is the same texture everywhere, for which a network predicts few classes.

    Args:
        count: Number of images.
        size: (height, width).
        seed: Seed of the generator.
        channels: Channels of the images.

    Returns:
        float32 [count, height, width, channels], whole numbers 0..255, so that a PNG holds them
        exactly.
    """
    height, width = size
    generator = np.random.default_rng(seed)
    images = np.zeros((count, height, width, channels))
    for cells, weight in ((2, 0.45), (5, 0.3), (16, 0.15)):
        colours = generator.uniform(0, 255, (count, cells, cells, channels))
        rows = np.arange(height) * cells // height
        columns = np.arange(width) * cells // width
        images += weight * colours[:, rows][:, :, columns]
    images += generator.uniform(0, 25, images.shape)
    return np.clip(np.round(images), 0, 255).astype(np.float32)


def find_images(folder: str | os.PathLike[str], limit: int) -> list[pathlib.Path]:
    """Returns up to `limit` images of a folder, evenly spaced in the order of their names.

    Hidden files are left out, as data sets and `predict` leave them out.

    Raises:
        MissingFileError: If there is no such folder, or no image in it.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise MissingFileError(f"calibration_dir={folder}: no such folder.")
    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not is_hidden(path.name)
    )
    if not found:
        raise MissingFileError(
            f"calibration_dir={folder} holds no image ({', '.join(IMAGE_SUFFIXES)})."
        )
    if len(found) <= limit:
        return found
    return [found[index] for index in np.linspace(0, len(found) - 1, limit).round().astype(int)]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the softmax over the last axis, as float32."""
    exponents = np.exp(logits.astype(np.float32) - logits.max(axis=-1, keepdims=True))
    probabilities: np.ndarray = exponents / exponents.sum(axis=-1, keepdims=True)
    return probabilities


def probabilities_of(
    logits: np.ndarray, class_ids: np.ndarray, reference: np.ndarray
) -> np.ndarray:
    """Returns the softmax of the logits from which an export took its argmax.

    A converter may have moved a transposition past the argmax, so the order of the axes of its
    logits is unknown. It is the order whose argmax equals the exported class ids. For a square
    image of one class there are several such orders; then the nearest to the reference is taken.

    Args:
        logits: float, the input of the argmax for each image: [N, 1, H, W, C] in any order of the
            last four axes.
        class_ids: int [N, H, W], the class ids that the export predicts.
        reference: float32 [N, H, W, C], the probabilities of the Keras model.

    Returns:
        float32 [N, H, W, C].

    Raises:
        Disagreement: If no order gives the class ids.
    """
    found = []
    for axes in itertools.permutations(range(1, logits.ndim)):
        arranged = logits.transpose(0, *axes)
        if arranged.shape[1:2] + arranged.shape[2:] != (1, *reference.shape[1:]):
            continue
        if np.array_equal(arranged[:, 0].argmax(axis=-1), class_ids):
            found.append(softmax(arranged[:, 0]))
    if not found:
        raise Disagreement(
            f"the class ids are not the argmax of the export's logits, of shape {logits.shape[1:]}"
        )
    return min(found, key=lambda probabilities: np.max(np.abs(probabilities - reference)))


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Agreement of an export with the Keras model, over all pixels of the checked images.

    Attributes:
        same_class: Share of pixels with the same class, or with one that is as probable in Keras,
            within `tie` of `compare`.
        max_error: Largest absolute difference of a softmax probability.
        mean_error: Mean absolute difference of the probability of the class that Keras chose.
        num_classes: Number of different classes that Keras predicts; with one, `same_class` says
            little.
    """

    same_class: float
    max_error: float
    mean_error: float
    num_classes: int

    def __str__(self) -> str:
        return (
            f"the same class on {100 * self.same_class:.2f} % of the pixels, of "
            f"{self.num_classes} classes; probabilities within {self.max_error:.1e}, "
            f"{self.mean_error:.1e} on average"
        )


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """The agreement that an export must reach to be published.

    Attributes:
        same_class: Smallest `Agreement.same_class`.
        max_error: Largest `Agreement.max_error`.
        mean_error: Largest `Agreement.mean_error`.
        tie: Probabilities closer than this are a tie: rounding decides which of the two classes
            argmax returns.
    """

    same_class: float
    max_error: float
    mean_error: float
    tie: float

    def check(self, agreement: Agreement, what: str) -> None:
        """Checks every bound; NaN breaks each.

        Raises:
            Disagreement: If a bound is broken; the message begins with `what`.
        """
        if (
            agreement.same_class >= self.same_class
            and agreement.max_error <= self.max_error
            and agreement.mean_error <= self.mean_error
        ):
            return
        raise Disagreement(
            f"{what} disagrees with the Keras model: {agreement}; needed are "
            f"{100 * self.same_class:g} %, {self.max_error:g} and {self.mean_error:g}"
        )


# For float32 arithmetic in another order. Measured: 1e-7 to 1e-5; of a network after 8 steps, whose
# logits reach some hundreds, up to 6e-4 at single pixels and 1.1e-5 on average; of the published
# one with random weights at 1025x2049, 1.6e-3 at single pixels and 6e-7 on average.
EXACT = Tolerance(same_class=0.999, max_error=1e-2, mean_error=1e-4, tie=1e-4)

# 8 bits cost accuracy; a file far below these is broken, not rounded.
INT8 = Tolerance(same_class=0.90, max_error=1.0, mean_error=0.10, tie=1e-3)


def compare(
    class_ids: np.ndarray, probabilities: np.ndarray, reference: np.ndarray, tie: float
) -> Agreement:
    """Compares the predictions of an export with those of Keras.

    Args:
        class_ids: int [N, H, W], the class ids of the export.
        probabilities: float [N, H, W, C], the softmax of its logits.
        reference: float32 [N, H, W, C], the softmax of the Keras model's logits for these images.
        tie: See `Tolerance`.

    Returns:
        The agreement.

    Raises:
        Disagreement: For other shapes, and for class ids outside 0..C-1.
    """
    if class_ids.shape != reference.shape[:-1] or probabilities.shape != reference.shape:
        raise Disagreement(
            f"the export gives shapes {class_ids.shape} and {probabilities.shape}, the Keras model "
            f"{reference.shape[:-1]} and {reference.shape}"
        )
    if class_ids.size and not 0 <= class_ids.min() <= class_ids.max() < reference.shape[-1]:
        raise Disagreement(
            f"the export gives class ids {class_ids.min()}..{class_ids.max()}, outside "
            f"0..{reference.shape[-1] - 1}"
        )
    best = reference.argmax(axis=-1)
    top = np.take_along_axis(reference, best[..., None], axis=-1)[..., 0]
    predicted = np.take_along_axis(reference, class_ids[..., None].astype(np.int64), axis=-1)[
        ..., 0
    ]
    export_top = np.take_along_axis(probabilities, best[..., None], axis=-1)[..., 0]
    return Agreement(
        same_class=float(np.mean(top - predicted <= tie)),
        max_error=float(np.max(np.abs(probabilities - reference))),
        mean_error=float(np.mean(np.abs(export_top - top))),
        num_classes=int(np.unique(best).size),
    )


class Exported(NamedTuple):
    """The published path, and its agreement with the Keras model."""

    path: pathlib.Path
    agreement: Agreement


def report(exported: Exported, as_json: bool, **more: str) -> None:
    """Prints what was published: as text, or as one JSON object that also holds `more`."""
    if as_json:
        agreement = dataclasses.asdict(exported.agreement)
        cli.print_json({"path": str(exported.path), **agreement, **more})
    else:
        print(f"published {exported.path}: {exported.agreement}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops what is written to stdout and stderr, by C++ too: converters bypass every logger.

    What matters comes as an exception, or shows in the check of the result.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    try:
        with open(os.devnull, "w") as sink:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, descriptor in zip((1, 2), saved, strict=True):
            os.dup2(descriptor, stream)
            os.close(descriptor)


@contextlib.contextmanager
def staging_folder(parent: pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes a new folder with a hidden name in `parent`.

    The block writes there, checks, and renames (`os.replace`, `publish_version`) as its last step;
    the rename is atomic because both lie on one file system. What is left in the folder is removed
    at the end, and so is `parent` if it was made for this and nothing was published.

    Yields:
        The new folder.

    Raises:
        NotADirectoryError: If `parent` is a file.
    """
    if parent.exists() and not parent.is_dir():
        raise NotADirectoryError(
            f"{parent} is a file, where a folder is needed; give another output."
        )
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    staged = pathlib.Path(tempfile.mkdtemp(prefix=".export-", dir=parent))
    # mkdtemp makes it readable by its owner only; the server may be another user.
    staged.chmod(0o755)
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        for folder in made:
            with contextlib.suppress(OSError):  # not empty: something was published
                folder.rmdir()


def publish_file(
    staged: pathlib.Path, output: pathlib.Path, model: pathlib.Path, metadata: Mapping[str, Any]
) -> None:
    """Renames a checked file to `output`, and its manifest, written here, beside it."""
    manifest = provenance.write(staged, model, metadata, output.name)
    # The manifest first: whoever sees the new file finds it.
    os.replace(manifest, provenance.manifest_path(output))
    os.replace(staged, output)


def publish_version(staged: pathlib.Path, root: pathlib.Path) -> pathlib.Path:
    """Renames `staged` to the next free version number in `root`.

    A server that polls `root` sees whole versions only: it takes folders whose name is a number,
    and the rename is atomic. If another export takes the number in between, the rename fails and
    the next number is tried.

    Returns:
        The new path.
    """
    while True:
        versions = [int(entry.name) for entry in root.iterdir() if entry.name.isdecimal()]
        target = root / str(max(versions, default=0) + 1)
        try:
            staged.rename(target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
        else:
            return target


def worst(agreements: Sequence[Agreement]) -> Agreement:
    """Returns the worst value of each kind."""
    return Agreement(
        same_class=min(one.same_class for one in agreements),
        max_error=max(one.max_error for one in agreements),
        mean_error=max(one.mean_error for one in agreements),
        num_classes=min(one.num_classes for one in agreements),
    )


def to_strings(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Returns the metadata with every value that is not a string as JSON."""
    return {
        key: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for key, value in metadata.items()
    }


def to_json(metadata: Mapping[str, Any]) -> str:
    """Returns the metadata as one line of JSON with sorted keys."""
    return json.dumps(metadata, sort_keys=True)
