"""Prepares the records of a data set, once: `CACHE_DIR/NAME-SIZE-FINGERPRINT`.

The folder appears complete or not at all. Until then it has the same name with `.unfinished` behind
it, and holds the shards that are finished. A preparation that was killed, or that found no space,
resumes from them.

Where the cache is a URL, the folder has its name from the start, since an object store renames no
folder: it is complete once it has its `records.json`, which is written last. No lock keeps two
processes from preparing there at a time.
"""

import concurrent.futures
import contextlib
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from auto_deeplab_tf.data import records, shards
from auto_deeplab_tf.data.dataset import Dataset, RawDataset
from auto_deeplab_tf.errors import MissingFileError, StorageError, UserError
from auto_deeplab_tf.files import AnyPath, remove_folder

# Files of up to this size together are hashed whole, which takes about a second; larger sets by
# samples of each file.
_HASHED_WHOLE_BYTES = 2**29
_SAMPLE_BYTES = 4096


def prepared(raw: RawDataset, cache: AnyPath, settings: records.Settings) -> AnyPath:
    """Returns the folder of the records, after making it if it is not there.

    Args:
        raw: the files of the data set.
        cache: the folder that holds such folders, or one of them.
        settings: the form of the records.

    Raises:
        UserError: for data that break a rule; for records that were made with other settings.
        StorageError: where the records cannot be written.
    """
    raw.raise_defects()
    _check_format(raw, settings)
    fingerprint = _fingerprint(raw, settings)
    if (cache / records.MANIFEST).exists():
        _check_fingerprint(cache, raw, settings, fingerprint)
        return cache
    directory = cache / f"{raw.info.name}-{settings.name}-{fingerprint[:16]}"
    if not _is_there(directory):
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(cache / f"{directory.name}.lock"):
            if not _is_there(directory):  # else another process made it while this one waited
                _prepare(directory, raw, settings, fingerprint)
    _check_fingerprint(directory, raw, settings, fingerprint)
    return directory


def of_records(info: Dataset, directory: AnyPath) -> RawDataset:
    """Returns a data set of which a folder of records is there, and the files are not.

    Raises:
        UserError: for records of another data set, or of another version.
    """
    manifest = records.read_manifest(directory)
    if (manifest["dataset"], manifest["version"]) != (info.name, records.VERSION):
        raise UserError(
            f"{directory} holds records of {manifest['dataset']}, version {manifest['version']}; "
            f"wanted is {info.name}, version {records.VERSION}: name other records as cache_dir, "
            "or give data_dir to have them prepared"
        )

    def absent(*_: Any) -> Any:
        raise MissingFileError(f"{directory} holds records only: give data_dir for the files")

    return RawDataset(
        info=info,
        splits=tuple(manifest["splits"]),
        ids=absent,
        read=absent,
        root=directory,
        records_fingerprint=manifest["fingerprint"],
    )


def _is_there(directory: AnyPath) -> bool:
    return (directory if isinstance(directory, Path) else directory / records.MANIFEST).exists()


def _prepare(
    directory: AnyPath, raw: RawDataset, settings: records.Settings, fingerprint: str
) -> None:
    """Writes the records in an unfinished folder, and gives it its name when it is complete."""
    unfinished = directory
    if isinstance(directory, Path):
        unfinished = directory.with_name(f"{directory.name}.unfinished")
    name = raw.info.name
    verb = "Resuming the preparation of" if unfinished.exists() else "Preparing"
    print(f"{verb} {name} ({', '.join(raw.splits)}), once, in {directory}", file=sys.stderr)
    try:
        if (unfinished / records.MANIFEST).exists():  # stopped at its last step
            shards.clear(unfinished)
        else:
            unfinished.mkdir(exist_ok=True)
            with _progress_bar(sum(len(raw.ids(split)) for split in raw.splits)) as report:
                shards.write(unfinished, raw, settings, fingerprint=fingerprint, report=report)
        if unfinished != directory:
            unfinished.rename(directory)
    except ValueError:
        # The data have to be fixed first, and will have another fingerprint then.
        with contextlib.suppress(OSError):
            remove_folder(unfinished)
        raise
    except (OSError, tf.errors.OpError) as error:
        finished = len(list(unfinished.glob("*.tfrecord")))
        remedy = f"fix this, and the same command resumes from its {finished} finished shards"
        raise StorageError.of(unfinished, error, remedy) from error


def _check_format(raw: RawDataset, settings: records.Settings) -> None:
    info = raw.info
    if settings.image_format == "jpeg" and (info.channels == 4 or info.image_bits == 16):
        raise UserError(
            f"image_format=jpeg holds 1 or 3 channels of 8 bits; images of {info.name} have "
            f"{info.channels} of {info.image_bits}: use png"
        )


def _check_fingerprint(
    directory: AnyPath, raw: RawDataset, settings: records.Settings, fingerprint: str
) -> None:
    """Refuses records that were not made from these files with these settings.

    Raises:
        UserError: saying in what they differ.
    """
    manifest = records.read_manifest(directory)
    found = {"dataset": manifest["dataset"], **manifest.get("settings", {})}
    wanted = {"dataset": raw.info.name, **settings.as_json()}
    if manifest["fingerprint"] == fingerprint and (not raw.records_fingerprint or found == wanted):
        return
    if found == wanted:
        difference = "from other files (their names, sizes or contents differ) or by other code"
    else:
        difference = f"with {_as_text(found)}, and this run is to have {_as_text(wanted)}"
    raise UserError(
        f"{directory} holds records that were made {difference}: name another cache_dir, such as "
        "the folder that holds this one, and they are prepared there"
    )


def _as_text(settings: dict[str, Any]) -> str:
    """Settings as NAME=VALUE, those that are given."""
    texts = {
        name: "x".join(map(str, value)) if isinstance(value, list) else value
        for name, value in settings.items()
    }
    return ", ".join(f"{name}={text}" for name, text in texts.items() if text is not None)


def _fingerprint(raw: RawDataset, settings: records.Settings) -> str:
    """Digest of everything that the records depend on, so that changed data get new records."""
    if raw.records_fingerprint:
        return raw.records_fingerprint
    info = raw.info
    content = {
        "records": records.VERSION,
        "dataset": info.name,
        "label_ids": sorted(info.label_ids.items()),
        "image_format": info.image_format,
        "channels": [info.channels, info.image_bits],
        "measured": not info.mean,
        "record_settings": settings.as_json(),
        "splits": raw.splits,
        "settings": dict(raw.settings),
        "files": files_digest(raw.files),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def files_digest(paths: Mapping[str, Path]) -> str:
    """Returns a digest of the names, sizes and contents of files; times of change do not count.

    Where the files hold 512 MiB or less together, every byte counts. In a larger set each file
    counts with its size and with 4 KiB at its start, middle and end. What can go unnoticed then is
    a file that was changed between these places and kept its size: in practice an uncompressed TIFF
    or a JPEG that is edited in place. PNG files hold checksums of their pixels at their end, and
    the listing of Cityscapes adds the checksums that a zip file holds of its members.

    Args:
        paths: the files, by the names that count.
    """
    names = sorted(paths)
    stats = [paths[name].stat() for name in names]
    # A process that opens several splits hashes once: this change time cannot be set by a user.
    rows = [(n, str(paths[n]), s.st_size, s.st_ctime_ns) for n, s in zip(names, stats, strict=True)]
    key = hashlib.sha256(repr(rows).encode()).hexdigest()
    if key not in _digests:
        whole = sum(stat.st_size for stat in stats) <= _HASHED_WHOLE_BYTES
        with concurrent.futures.ThreadPoolExecutor() as pool:
            found = pool.map(lambda name: _content_digest(paths[name], whole), names, chunksize=64)
            digest = hashlib.sha256()
            for name, stat, content in zip(names, stats, found, strict=True):
                digest.update(repr((name, stat.st_size, content)).encode())
        _digests[key] = digest.hexdigest()
    return _digests[key]


_digests: dict[str, str] = {}


def _content_digest(path: Path, whole: bool) -> str:
    """SHA-256 of a file, or of samples of it."""
    with path.open("rb", buffering=0) as file:
        if whole:
            return hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
        digest = hashlib.sha256()
        for start in (0, (size - _SAMPLE_BYTES) // 2, size - _SAMPLE_BYTES):
            file.seek(max(0, start))
            digest.update(file.read(_SAMPLE_BYTES))
        return digest.hexdigest()


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
def _lock(path: AnyPath) -> Iterator[None]:
    """Holds a lock file; the system frees it when the process dies, however it dies.

    There are no such locks behind a URL.
    """
    if not isinstance(path, Path):
        yield
        return
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
