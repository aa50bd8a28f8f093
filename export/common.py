"""What every exporter shares: checks of input, agreement with the Keras model, publishing.

No framework is imported here.
"""

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
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from auto_deeplab_tf import cli
from auto_deeplab_tf.errors import MissingFileError, UserError

MIN_SIZE = 32
"""The least height and width of an input, in pixels: one position at stride 32."""

SEGMENTER_CLASS = "auto_deeplab_tf>Segmenter"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


class Disagreement(ValueError):
    """What was exported does not answer like the Keras model it was made from."""


def require(module: str) -> types.ModuleType:
    """Imports an optional package.

    Raises:
        ImportError: where it is not installed; the text names the extra that holds it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this export needs {module.partition('.')[0]}, which cannot be imported ({error}): "
            "pip install auto_deeplab_tf[export]"
        ) from error


def check_model_file(path: str | os.PathLike) -> pathlib.Path:
    """Returns `path` where it is a whole .keras file of `Segmenter`; builds nothing yet.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is something else.
    """
    path = pathlib.Path(path)
    rule = "give the model.keras that `python -m auto_deeplab_tf.train` or Segmenter.save wrote"
    if not path.is_file():
        raise MissingFileError(f"--model={path}: no such file; {rule}.")
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError) as error:
        raise UserError(f"--model={path} is no .keras file ({error}); {rule}.") from error
    if damaged:
        raise UserError(f"--model={path} is damaged (in {damaged}); copy or save it again.")
    found = config.get("registered_name") if isinstance(config, dict) else None
    if found != SEGMENTER_CLASS:
        raise UserError(
            f"--model={path} holds a Keras model of class {found!r}, not {SEGMENTER_CLASS!r}; "
            f"{rule}."
        )
    return path


def check_input_size(size: Sequence[int]) -> tuple[int, int]:
    """Returns (height, width) as ints.

    Raises:
        ValueError: where a side is shorter than MIN_SIZE.
    """
    height, width = (int(side) for side in size)
    if min(height, width) < MIN_SIZE:
        raise UserError(
            f"--input_size={height}x{width}: height and width must each be at least {MIN_SIZE}."
        )
    return height, width


def check_output_file(path: str | os.PathLike, suffix: str) -> pathlib.Path:
    """Returns `path` where a file of that suffix can be published there.

    A file that is there already is no obstacle: it is replaced when the new one has passed.

    Raises:
        ValueError: for another suffix, or where a folder has that name.
    """
    path = pathlib.Path(path)
    if path.suffix != suffix:
        raise UserError(f"--output={path} must end in {suffix}.")
    if path.is_dir():
        raise UserError(f"--output={path} is a folder; give the name of a {suffix} file.")
    return path


def random_images(
    count: int, size: tuple[int, int], seed: int = 0, channels: int = 3
) -> np.ndarray:
    """Returns images with structure at several scales.

    Plain noise is one texture everywhere, for which a network answers few classes.

    Args:
        count: number of images.
        size: (height, width).
        seed: of the generator.
        channels: of the images.

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


def find_images(folder: str | os.PathLike, limit: int) -> list[pathlib.Path]:
    """Returns up to `limit` images of a folder, evenly spaced in the order of their names.

    Raises:
        FileNotFoundError: where there is no such folder, or no image in it.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise MissingFileError(f"--calibration_dir={folder}: no such folder.")
    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )
    if not found:
        raise MissingFileError(
            f"--calibration_dir={folder} holds no image ({', '.join(IMAGE_SUFFIXES)})."
        )
    if len(found) <= limit:
        return found
    return [found[index] for index in np.linspace(0, len(found) - 1, limit).round().astype(int)]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the softmax over the last axis, in float32."""
    exponents = np.exp(logits.astype(np.float32) - logits.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def probabilities_of(
    logits: np.ndarray, class_ids: np.ndarray, reference: np.ndarray
) -> np.ndarray:
    """Returns the softmax of the logits from which an export took its argmax.

    A converter may have moved a transposition past the argmax, so the order of the axes of its
    logits is open: it is the one whose argmax is what the export answers (for a square image of
    one class there are several; then the one that is nearest to the reference).

    Args:
        logits: float, for each image the input of the argmax: [N, 1, H, W, C] in any order of the
            last four axes.
        class_ids: int [N, H, W], what the export answers.
        reference: float32 [N, H, W, C].

    Raises:
        Disagreement: where no order gives the answer.
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
            f"the class ids are not the argmax of the export's logits, of shape "
            f"{logits.shape[1:]}; nothing was published."
        )
    return min(found, key=lambda probabilities: np.max(np.abs(probabilities - reference)))


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How well an export answers like the Keras model, over all pixels of the checked images.

    Attributes:
        same_class: share of pixels with the same class, or with one that Keras holds for as
            probable within `tie` of `compare`.
        max_error: largest absolute difference of a softmax probability.
        mean_error: mean absolute difference of the probability of the class that Keras chose.
        num_classes: how many different classes Keras answered: of one, `same_class` says little.
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
class Demand:
    """What an export must reach to be published.

    Attributes:
        same_class, max_error, mean_error: the bounds on those of `Agreement`.
        tie: probabilities closer than this are a tie: which of two such classes argmax answers is
            left to rounding.
    """

    same_class: float
    max_error: float
    mean_error: float
    tie: float

    def check(self, agreement: Agreement, what: str) -> None:
        """Raises Disagreement where a bound is broken; NaN breaks every bound."""
        if (
            agreement.same_class >= self.same_class
            and agreement.max_error <= self.max_error
            and agreement.mean_error <= self.mean_error
        ):
            return
        raise Disagreement(
            f"{what} does not answer like the Keras model, so nothing was published: {agreement}; "
            f"needed are {100 * self.same_class:g} %, {self.max_error:g} and {self.mean_error:g}."
        )


# Where float32 arithmetic is only reordered. Measured: 1e-7 to 1e-5.
EXACT = Demand(same_class=0.999, max_error=1e-4, mean_error=1e-5, tie=1e-4)


def compare(
    class_ids: np.ndarray, probabilities: np.ndarray, reference: np.ndarray, tie: float
) -> Agreement:
    """Compares an export's answers with those of Keras.

    Args:
        class_ids: int [N, H, W], what the export answers.
        probabilities: float [N, H, W, C], the softmax of what it computes.
        reference: float32 [N, H, W, C], the softmax of the Keras model's logits for these images.
        tie: see `Demand`.

    Raises:
        Disagreement: for other shapes, and for class ids outside of 0..C-1.
    """
    if class_ids.shape != reference.shape[:-1] or probabilities.shape != reference.shape:
        raise Disagreement(
            f"the export answers shapes {class_ids.shape} and {probabilities.shape}, the Keras "
            f"model {reference.shape[:-1]} and {reference.shape}; nothing was published."
        )
    if class_ids.size and not 0 <= class_ids.min() <= class_ids.max() < reference.shape[-1]:
        raise Disagreement(
            f"the export answers class ids {class_ids.min()}..{class_ids.max()}, outside of "
            f"0..{reference.shape[-1] - 1}; nothing was published."
        )
    best = reference.argmax(axis=-1)
    top = np.take_along_axis(reference, best[..., None], axis=-1)[..., 0]
    answered = np.take_along_axis(reference, class_ids[..., None].astype(np.int64), axis=-1)[..., 0]
    export_top = np.take_along_axis(probabilities, best[..., None], axis=-1)[..., 0]
    return Agreement(
        same_class=float(np.mean(top - answered <= tie)),
        max_error=float(np.max(np.abs(probabilities - reference))),
        mean_error=float(np.mean(np.abs(export_top - top))),
        num_classes=int(np.unique(best).size),
    )


class Exported(NamedTuple):
    """The path that was published, and how it agrees with the Keras model."""

    path: pathlib.Path
    agreement: Agreement


def report(exported: Exported, as_json: bool, **more: str) -> None:
    """Prints what was published: as text, or as one JSON object with what is in `more`."""
    if as_json:
        agreement = dataclasses.asdict(exported.agreement)
        cli.print_json({"path": str(exported.path), **agreement, **more})
    else:
        print(f"published {exported.path}: {exported.agreement}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops what is written to stdout and stderr, by C++ too: converters talk past every logger.

    What matters of it comes as an exception, or shows in the check of the result.
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
    """Gives a new folder in `parent` with a hidden name.

    The block writes there, checks, and renames (`os.replace`, `publish_version`) as its last step,
    which is one step since both lie on one file system. Whatever is left in the folder is removed,
    and so is `parent` where it was made for this and nothing was published.

    Raises:
        NotADirectoryError: where `parent` is a file.
    """
    if parent.exists() and not parent.is_dir():
        raise NotADirectoryError(
            f"{parent} is a file, where a folder is needed; give another output."
        )
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    staged = pathlib.Path(tempfile.mkdtemp(prefix=".export-", dir=parent))
    staged.chmod(
        0o755
    )  # mkdtemp makes it readable by its owner only; the server may be another user
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        for folder in made:
            with contextlib.suppress(OSError):  # not empty: something was published
                folder.rmdir()


def publish_version(staged: pathlib.Path, root: pathlib.Path) -> pathlib.Path:
    """Renames `staged` to the next free version number in `root`, and returns the new path.

    A server that polls `root` sees whole versions only: it takes folders whose name is a number,
    and the rename is one step. Where another export took the number in between, the rename fails
    and the next number is tried.
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


def to_strings(metadata: Mapping) -> dict[str, str]:
    """Returns the metadata with every value that is no text as JSON."""
    return {
        key: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for key, value in metadata.items()
    }


def to_json(metadata: Mapping) -> str:
    """Returns the metadata as one line of JSON with sorted keys."""
    return json.dumps(metadata, sort_keys=True)
