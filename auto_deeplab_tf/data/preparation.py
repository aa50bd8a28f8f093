"""Prepares the records of a data set, once: `CACHE_DIR/NAME-SIZE-FINGERPRINT`.

The folder appears complete or not at all. Until then everything is in the folder of the same name
that ends with `.unfinished`: TFDS's own build of the set (`tfds`), and the records (`records`) with
those shards that are finished. A preparation that was killed, or that found no space, goes on from
them.
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from auto_deeplab_tf.data import records, shards
from auto_deeplab_tf.data.origin import Origin, RawExample
from auto_deeplab_tf.errors import UserError


def prepared(origin: Origin, cache: Path, settings: records.Settings) -> Path:
    """Returns the folder of the records, after making it if it is not there.

    Args:
        origin: the files of the data set.
        cache: the folder that holds such folders, or one of them.
        settings: the form of the records.

    Raises:
        ValueError: for data that break a rule; for records that were made with other settings.
        OSError: where the records cannot be written.
    """
    _check_format(origin, settings)
    fingerprint = _fingerprint(origin, settings)
    if (cache / records.MANIFEST).exists():
        _check_fingerprint(cache, origin, settings, fingerprint)
        return cache
    directory = cache / f"{origin.info.name}-{settings.name}-{fingerprint[:16]}"
    unfinished = cache / f"{directory.name}.unfinished"
    if not directory.exists() or unfinished.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(cache / f"{directory.name}.lock"):
            if not directory.exists():  # else another process made it while this one waited
                _prepare(directory, unfinished, origin, settings, fingerprint)
            shutil.rmtree(unfinished, ignore_errors=True)
    _check_fingerprint(directory, origin, settings, fingerprint)
    return directory


def _prepare(
    directory: Path,
    unfinished: Path,
    origin: Origin,
    settings: records.Settings,
    fingerprint: str,
) -> None:
    """Builds the set with TFDS beside the records, and writes the records from it."""
    name = origin.info.name
    verb = "Going on to prepare" if unfinished.exists() else "Preparing"
    print(f"{verb} {name} ({', '.join(origin.splits)}), once, in {directory}", file=sys.stderr)
    target = unfinished / "records"
    try:
        if (target / records.MANIFEST).exists():  # stopped at its last step
            shards.clear(target)
        else:
            target.mkdir(parents=True, exist_ok=True)
            builder = _build(origin, unfinished / "tfds")
            members = {
                split: _BuiltSplit(builder, origin, tfds_split)
                for split, tfds_split in origin.splits.items()
            }
            with _progress_bar(sum(map(len, members.values()))) as report:
                shards.write(
                    target, origin.info, members, settings, fingerprint=fingerprint, report=report
                )
        target.rename(directory)
    except ValueError:
        # The data have to be mended first, and will have another fingerprint then.
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    except tf.errors.DataLossError as error:
        shutil.rmtree(unfinished / "tfds", ignore_errors=True)
        raise OSError(
            f"what TFDS had built of {name} under {unfinished} was damaged, and is removed: run "
            "the same command again"
        ) from error
    except (OSError, tf.errors.OpError) as error:
        raise _stopped(error, unfinished, target, name) from error


def _stopped(error: Exception, unfinished: Path, target: Path, name: str) -> OSError:
    """The one line for a preparation that could not write, and that goes on when run again."""
    reason = getattr(error, "message", None) or str(error)
    if os.strerror(errno.ENOSPC) in str(error):
        reason = "no space left on device"
    finished = len(list(target.glob("*.tfrecord")))
    return OSError(
        f"preparing {name} in {unfinished} stopped: {reason}. Finished shards stay ({finished} of "
        "them): mend this, and the same command goes on from there"
    )


def _check_format(origin: Origin, settings: records.Settings) -> None:
    info = origin.info
    if settings.image_format == "jpeg" and (info.channels == 4 or info.image_bits == 16):
        raise UserError(
            f"--image_format=jpeg holds 1 or 3 channels of 8 bits; images of {info.name} have "
            f"{info.channels} of {info.image_bits}: use png"
        )


def _check_fingerprint(
    directory: Path, origin: Origin, settings: records.Settings, fingerprint: str
) -> None:
    """Refuses records that were not made from these files with these settings.

    Raises:
        ValueError: saying in what they differ.
    """
    manifest = records.read_manifest(directory)
    if manifest["fingerprint"] == fingerprint:
        return
    found = {"dataset": manifest["dataset"], **manifest.get("settings", {})}
    wanted = {"dataset": origin.info.name, **settings.as_json()}
    if found == wanted:
        difference = "from other files (their names, sizes or times differ) or by other code"
    else:
        difference = f"with {_flags(found)}, and this run is to have {_flags(wanted)}"
    raise UserError(
        f"{directory} holds records that were made {difference}: name another --cache_dir, such as "
        "the folder that holds this one, and they are prepared there"
    )


def _flags(settings: dict[str, Any]) -> str:
    """Settings as the flags that give them."""
    texts = []
    for name, value in settings.items():
        if value is not None:
            text = "x".join(map(str, value)) if isinstance(value, list) else value
            texts.append(f"--{name}={text}")
    return " ".join(texts)


def _fingerprint(origin: Origin, settings: records.Settings) -> str:
    info = origin.info
    content = {
        "records": records.VERSION,
        "dataset": info.name,
        "label_ids": sorted(info.label_ids.items()),
        "image_format": info.image_format,
        "channels": [info.channels, info.image_bits],
        "measured": not info.mean,
        "record_settings": settings.as_json(),
        "splits": list(origin.splits),
        "settings": dict(origin.settings),
        "files": origin.listing(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _build(origin: Origin, directory: Path):
    """Builds the set with TFDS, without the network and with nothing printed to stdout.

    What a complete build left is used; what an incomplete one left is removed.
    """
    import tensorflow_datasets as tfds  # takes seconds; not needed where the records are there

    directory.mkdir(exist_ok=True)
    for path in directory.rglob("*incomplete*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
    if sys.stderr.isatty():
        tfds.enable_progress_bar()
    else:
        tfds.disable_progress_bar()
    module, _, name = origin.builder.partition(":")
    builder_class = getattr(importlib.import_module(module), name)
    builder = builder_class(data_dir=directory, **origin.builder_options)
    options = tfds.download.DownloadConfig(manual_dir=origin.manual_dir)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it announces a download
            builder.download_and_prepare(download_config=options)
    except OSError:
        raise
    except Exception as error:  # whatever the builder, or an archive that it unpacks, answers
        if os.strerror(errno.ENOSPC) in str(error):  # TFDS hands it on as a RuntimeError
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"the files in {origin.manual_dir} could not be read: {reason}") from error
    return builder


class _BuiltSplit:
    """The examples of a split as TFDS has built it, in its order: `shards.Members`."""

    def __init__(self, builder: Any, origin: Origin, tfds_split: str):
        self._builder = builder
        self._origin = origin
        self._split = tfds_split

    def __len__(self) -> int:
        return self._builder.info.splits[self._split].num_examples

    def __getitem__(self, span: slice) -> Iterator[RawExample]:
        import tensorflow_datasets as tfds

        origin = self._origin
        # Encoded images come through as they are: decoding a palette image with TensorFlow would
        # turn ids into luminance.
        skip = {key: tfds.decode.SkipDecoding() for key in (origin.image_key, origin.label_key)}
        dataset = self._builder.as_dataset(
            split=f"{self._split}[{span.start}:{span.stop}]",
            decoders=skip,
            shuffle_files=False,
            # File after file: the examples of a span, and no more of them in memory than needed.
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        )
        for example in tfds.as_numpy(dataset):
            image_id = example["image_id"].decode()
            yield RawExample(
                image_id,
                origin.group_of(image_id),
                example[origin.image_key],
                example[origin.label_key],
            )


@contextlib.contextmanager
def _progress_bar(num_examples: int) -> Iterator[Callable[[int], None]]:
    """Shows on stderr how far the examples are: a bar on a terminal, else one line at the end."""
    import keras

    with contextlib.redirect_stdout(sys.stderr):
        verbose = 1 if sys.stderr.isatty() else 2
        bar = keras.utils.Progbar(num_examples, verbose=verbose, unit_name="image")
    done = 0

    def report(examples: int) -> None:
        nonlocal done
        done += examples
        with contextlib.redirect_stdout(sys.stderr):
            bar.update(done)

    yield report


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds a lock file; the system frees it when the process dies, however it dies."""
    while True:
        file = path.open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
        # Its last holder may have deleted it while this process waited: then the lock is on a file
        # that is gone.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                break
        file.close()
    try:
        yield
    finally:
        path.unlink()
        file.close()
