"""Preparing records: the command, its settings, and what it does when it is stopped."""

import contextlib
import dataclasses
import errno
import io
import json
import os
import signal
import subprocess
import sys
import time

import forked
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from auto_deeplab_tf import config, data
from auto_deeplab_tf.data import (
    image_files,
    parallel,
    pipeline,
    preparation,
    records,
    resizing,
    shards,
)
from auto_deeplab_tf.data import source as source_lib
from auto_deeplab_tf.data.dataset import RawDataset, RawExample, in_memory
from auto_deeplab_tf.data.source import Source
from tests.data.conftest import TOY, flip_byte


def _command(root, cache, *arguments):
    flags = [f"--data_dir={root}", f"--cache_dir={cache}", "--dataset=camvid", *arguments]
    return [sys.executable, "-m", "auto_deeplab_tf.data.prepare", *flags]


def _run(root, cache, *arguments):
    _, _, *program = _command(root, cache, *arguments)
    return forked.run(*program)


def _contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _examples(count, size=(24, 36), seed=0):
    rng = np.random.default_rng(seed)
    return [
        RawExample(
            f"{'ab'[i % 2]}_{i:04d}",
            "ab"[i % 2],
            image_files.encode_png(rng.integers(0, 256, (*size, 3), dtype=np.uint8)),
            image_files.encode_png(rng.integers(0, 3, size, dtype=np.uint8)),
        )
        for i in range(count)
    ]


def _write(directory, examples, **options):
    directory.mkdir(exist_ok=True)
    raw = examples if isinstance(examples, RawDataset) else in_memory(TOY, {"train": examples})
    settings = options.pop("settings", records.Settings())
    shards.write(directory, raw, settings, fingerprint="f", **options)
    return Source(directory, "train", TOY)


# ---- the command


def test_the_command_prints_what_it_made_and_resumes_after_a_kill(make_camvid, tmp_path):
    root = make_camvid({"train": 180, "val": 9}, size=(97, 131))
    cache = tmp_path / "killed"
    process = subprocess.Popen(_command(root, cache), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if len(list(cache.glob("*.unfinished/train-*.json"))) >= 2:
            break
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (unfinished,) = cache.glob("*.unfinished")
    finished = {
        path.name: path.stat().st_mtime_ns
        for path in unfinished.glob("*.tfrecord")
        if path.with_suffix(".json").exists()
    }
    assert 2 <= len(finished) < 7 and not (unfinished / "records.json").exists()

    done = _run(root, cache, "--json")
    assert done.returncode == 0, done.stderr
    assert "Resuming the preparation of camvid" in done.stderr and "189/189" in done.stderr
    result = json.loads(done.stdout)
    assert [path.name for path in cache.iterdir()] == [os.path.basename(result["directory"])]
    (directory,) = cache.iterdir()
    kept = {name: (directory / name).stat().st_mtime_ns for name in finished}
    assert kept == finished  # not written again
    train, val = result["splits"]["train"], result["splits"]["val"]
    assert (train["num_examples"], val["num_examples"]) == (180, 9)
    assert train["image_size"] == [97, 131] and "halves" not in val
    assert abs(train["halves"]["train_a"] - train["halves"]["train_b"]) <= 1 + 10

    source = data.open_split("camvid", "train", data_dir=root, cache_dir=tmp_path / "whole")
    assert _contents(source.directory) == _contents(directory)


@contextlib.contextmanager
def _small_disk(folder, size):
    """Mounts a file system of a size; yields a function that gives it another."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a small file system can be mounted by root only")

    def resize(size):
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_no_space_left_on_the_device(make_camvid, tmp_path):
    # 100 images of 38 kB in shards of 32.
    root, cache = make_camvid({"train": 100}, size=(97, 131)), tmp_path / "cache"
    with _small_disk(cache, "3m") as resize:
        done = _run(root, cache)
        assert done.returncode == 1 and done.stdout == ""
        *_, line = done.stderr.strip().splitlines()
        assert line.startswith(f"error: {cache}/camvid") and "Traceback" not in done.stderr
        assert "cannot be written (No space left on device): fix this, and the same" in line
        assert line.endswith("resumes from its 2 finished shards")
        shard, _ = sorted(cache.glob("*.unfinished/*.tfrecord"))
        time_of_shard = shard.stat().st_mtime_ns
        assert not list(cache.glob("*.unfinished/*.part"))
        resize("20m")
        source = data.open_split("camvid", "train", data_dir=root, cache_dir=cache)
        assert (source.directory / shard.name).stat().st_mtime_ns == time_of_shard
        whole = data.open_split("camvid", "train", data_dir=root, cache_dir=tmp_path / "whole")
        assert _contents(source.directory) == _contents(whole.directory)


def test_a_write_that_fails_leaves_what_is_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_MIN_EXAMPLES_PER_SHARD", 2)
    whole = _write(tmp_path / "whole", _examples(7))
    sync, calls = shards._sync, []

    def full(path):
        calls.append(path)
        if len(calls) == 4:  # the second file of the second shard
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        sync(path)

    monkeypatch.setattr(shards, "_sync", full)
    with pytest.raises(OSError, match="No space left on device"):
        _write(tmp_path / "stopped", _examples(7))
    assert not list((tmp_path / "stopped").glob("*.part"))
    again = _write(tmp_path / "stopped", _examples(7))
    assert len(calls) == 4 + 2 * 3  # the first shard is not written again, the second is
    assert _contents(again.directory) == _contents(whole.directory)


def test_a_kill_before_the_last_step(make_camvid, tmp_path):
    root, cache = make_camvid({"train": 3}), tmp_path / "cache"
    directory = data.open_split("camvid", "train", data_dir=root, cache_dir=cache).directory
    before = _contents(directory)
    unfinished = cache / f"{directory.name}.unfinished"
    directory.rename(unfinished)
    (unfinished / "train-00000.json").write_text("{}")
    data.open_split("camvid", "train", data_dir=root, cache_dir=cache)
    assert _contents(directory) == before
    assert [path.name for path in cache.iterdir()] == [directory.name]


def test_verify_names_a_shard_that_was_changed(make_camvid, tmp_path):
    root, cache = make_camvid({"train": 3, "val": 2}), tmp_path / "cache"
    options = config.PrepareConfig(
        dataset="camvid", data_dir=str(root), cache_dir=str(cache), verify=True
    )
    from auto_deeplab_tf.data import prepare

    result = prepare.prepare(options)
    assert result["verified"] and list(result["splits"]) == ["train", "val"]
    path = data.open_split("camvid", "val", data_dir=root, cache_dir=cache).directory
    flip_byte(path / "val-00000.tfrecord", 100)
    with pytest.raises(ValueError, match=r"val-00000.tfrecord is damaged: delete the folder"):
        prepare.prepare(options)


# ---- the settings


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("image_format", [None, "png", "jpeg"])
@pytest.mark.parametrize("image_size", [None, (24, 36), (31, 17)])
def test_labels_are_exact_and_unchanged_images_keep_their_bytes(
    tmp_path, suffix, image_format, image_size
):
    rng = np.random.default_rng(0)
    # Smooth, so that JPEG is near it.
    image = np.cumsum(rng.integers(0, 7, (24, 36, 3)), axis=1).clip(max=255).astype(np.uint8)
    label_ids = rng.choice([0, 1, 2, 9], (24, 36)).astype(np.uint8)
    stored = image_files.encode_png(image) if suffix == ".png" else image_files.encode_jpeg(image)
    raw = RawExample("a_0", "a", stored, image_files.encode_png(label_ids))
    settings = records.Settings(image_size, image_format=image_format)
    source = _write(tmp_path, [raw], settings=settings)
    size = image_size or (24, 36)
    rows = [int((i + 0.5) * 24 / size[0]) for i in range(size[0])]
    columns = [int((i + 0.5) * 36 / size[1]) for i in range(size[1])]
    expected = np.where(label_ids == 9, 255, label_ids)[rows][:, columns]
    np.testing.assert_array_equal(source.example(0)[1], expected)
    record = tf.train.Example.FromString(
        next(tf.data.TFRecordDataset(str(tmp_path / "train-00000.tfrecord")).as_numpy_iterator())
    )
    (encoded,) = record.features.feature["image"].bytes_list.value
    found = Image.open(io.BytesIO(encoded))
    assert found.size == (size[1], size[0])
    own_format = "png" if suffix == ".png" else "jpeg"
    if size == (24, 36) and image_format in (None, own_format):
        assert encoded == stored
    else:
        assert found.format == (image_format or TOY.image_format).upper()
        pixels = resizing.resize_image(np.asarray(Image.open(io.BytesIO(stored))), size)
        tolerance = 0 if found.format == "PNG" else 4
        assert np.abs(np.asarray(found).astype(int) - pixels).mean() <= tolerance


@pytest.mark.parametrize("sizes", [((6, 9), (3, 3)), ((7, 5), (3, 2)), ((4, 3), (9, 8))])
def test_a_resized_label_is_the_one_under_each_pixels_centre(sizes):
    (height, width), size = sizes
    label = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    found = resizing.resize_label(label, size)
    for row, column in np.ndindex(*size):
        # In halves of a source pixel, so that the centre (2 i + 1) / 2 stays a whole number.
        centre = (2 * row + 1) * height // (2 * size[0]), (2 * column + 1) * width // (2 * size[1])
        assert found[row, column] == label[centre]


def test_the_longer_side_is_brought_to_a_length():
    settings = records.Settings(max_image_side=512)
    for size, expected in [
        ((683, 512), (512, 384)),
        ((512, 683), (384, 512)),
        ((100, 200), (256, 512)),
        ((300, 300), (512, 512)),
        ((1, 4000), (1, 512)),
        ((512, 333), (512, 333)),
    ]:
        assert settings.size_of(size) == expected
    assert settings.name == "max512"
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 3000, (50, 2)).tolist():
        found = settings.size_of((height, width))
        assert max(found) == 512
        exact = min(height, width) * 512 / max(height, width)
        assert abs(min(found) - max(1, exact)) <= 0.5
        assert (found[0] < found[1]) <= (height < width)


def test_settings_that_break_a_rule():
    for options, message in [
        ({"image_size": (0, 18)}, "image_size must be two positive numbers"),
        ({"max_image_side": 0}, "max_image_side must be 1 or more"),
        ({"image_size": (3, 4), "max_image_side": 9}, "both set the size: give one"),
        ({"image_format": "gif"}, "image_format must be jpeg or png"),
    ]:
        with pytest.raises(ValueError, match=message):
            records.Settings(**options)
    with pytest.raises(ValueError, match="both set the size: give one"):
        config.PrepareConfig(image_size=(64, 64), max_image_side=100)


def test_records_of_other_settings_are_refused(make_camvid, tmp_path):
    root, cache = make_camvid({"train": 2}), tmp_path / "cache"
    where = {"data_dir": root}
    small = data.open_split("camvid", "train", cache_dir=cache, image_size=(12, 18), **where)
    assert small.directory.name.startswith("camvid-12x18-")
    # The folder of records itself serves where it fits.
    again = data.open_split(
        "camvid", "train", cache_dir=small.directory, image_size=(12, 18), **where
    )
    assert again.directory == small.directory
    with pytest.raises(ValueError) as caught:
        data.open_split("camvid", "train", cache_dir=small.directory, image_format="jpeg", **where)
    assert caught.match(
        "holds records that were made with dataset=camvid, image_size=12x18, and this run is "
        "to have dataset=camvid, image_format=jpeg: name another cache_dir"
    )
    # A folder that was renamed is not taken for another.
    full = data.open_split("camvid", "train", cache_dir=cache, **where).directory
    for path in full.iterdir():
        path.unlink()
    full.rmdir()
    small.directory.rename(full)
    with pytest.raises(ValueError, match="made with dataset=camvid, image_size=12x18, and"):
        data.open_split("camvid", "train", cache_dir=cache, **where)
    changed = next((root / "train").iterdir())
    changed.write_bytes(changed.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="made from other files"):
        data.open_split("camvid", "train", cache_dir=full, image_size=(12, 18), **where)


def test_another_table_of_ids_makes_other_records(tmp_path):
    directories = {
        preparation.prepared(
            in_memory(dataclasses.replace(TOY, label_ids=ids), {"train": _examples(1)}),
            tmp_path,
            records.Settings(),
        )
        for ids in (TOY.label_ids, {**TOY.label_ids, 1: 2})
    }
    assert len(directories) == 2


def test_jpeg_cannot_hold_every_image(tmp_path):
    raw = in_memory(dataclasses.replace(TOY, image_bits=16), {"train": _examples(1)})
    with pytest.raises(ValueError, match="image_format=jpeg holds 1 or 3 channels of 8 bits; "):
        preparation.prepared(raw, tmp_path, records.Settings(image_format="jpeg"))


# ---- shards


def _counted(examples):
    """The examples as a data set, and a list of the ids that are read."""
    raw, seen = in_memory(TOY, {"train": examples}), []

    def read(split, image_id):
        seen.append(image_id)
        return raw.read(split, image_id)

    return dataclasses.replace(raw, read=read), seen


class _Stop(Exception):
    pass


@pytest.mark.parametrize("seed", range(6))
def test_stopped_anywhere_the_records_become_the_same(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(shards, "_MIN_EXAMPLES_PER_SHARD", 5)
    rng = np.random.default_rng(seed)
    raw, seen = _counted(_examples(33))
    whole = _write(tmp_path / "whole", raw)
    assert sorted(path.name for path in whole.directory.iterdir()) == [
        "records.json",
        *(f"train-{i:05d}.tfrecord" for i in range(7)),
        "train.index.npz",
    ]
    stopped = tmp_path / "stopped"
    stop = rng.integers(1, 33)
    reported = []

    def report(count):
        reported.append(count)
        if sum(reported) >= stop:
            raise _Stop

    with pytest.raises(_Stop):
        _write(stopped, raw, report=report)
    assert not (stopped / "records.json").exists() and not list(stopped.glob("*.part"))
    finished = len(list(stopped.glob("*.json")))
    assert finished == (stop - 1) // 5
    seen.clear()
    if finished:
        # What is damaged since is written again, the others are not.
        damaged = int(rng.integers(finished))
        flip_byte(stopped / f"train-{damaged:05d}.tfrecord", int(rng.integers(1000)))
    reported = []
    again = _write(stopped, raw, report=reported.append)
    assert sum(reported) == 33
    assert _contents(again.directory) == _contents(whole.directory)
    again = [*range(damaged * 5, damaged * 5 + 5)] if finished else []
    expected = [raw.ids("train")[i] for i in (*again, *range(finished * 5, 33))]
    assert sorted(seen) == sorted(expected)


def test_every_example_has_a_shard():
    for count in (1, 31, 32, 33, 367, 2975, 20210, 1_000_000):
        spans = shards.spans(count)
        assert [i for span in spans for i in (span.start, span.stop)][1:-1:2] == [
            span.start for span in spans[1:]
        ]
        assert spans[0].start == 0 and spans[-1].stop == count
        assert len(spans) <= 256 and all(len(span) >= 32 for span in spans[:-1])


def test_examples_that_the_set_leaves_out(tmp_path):
    raw, _ = _counted(_examples(40))
    kept = raw.ids("train")[35:]

    def read(split, image_id):
        return raw.read(split, image_id) if image_id in kept else None

    some = dataclasses.replace(raw, read=read)
    source = _write(tmp_path / "records", some)  # its first shard is empty
    assert source.ids == tuple(sorted(kept))
    assert {source.example(i)[0].shape[0] for i in range(5)} == {24}
    for nothing in (dataclasses.replace(raw, read=lambda *a: None), in_memory(TOY, {"train": []})):
        with pytest.raises(ValueError, match="toy: split train has no images"):
            _write(tmp_path / "none", nothing)


def test_results_come_in_order_whatever_thread_is_first():
    rng = np.random.default_rng(0)
    waits = rng.uniform(0, 0.01, 40)
    taken = []

    def slow(i):
        time.sleep(waits[i])
        return i * i

    def items():
        for i in range(40):
            taken.append(i)
            yield i

    results = parallel.ordered_map(slow, items(), threads=4)
    for i in range(40):
        assert next(results) == i * i
        assert len(taken) <= i + 9  # a few are in work, and no more
    with pytest.raises(ZeroDivisionError):
        list(parallel.ordered_map(lambda i: 1 // (3 - i), range(10), threads=2))


# ---- bytes that change


def test_large_records_are_checked_as_they_are_read(tmp_path, monkeypatch):
    """Above the size that is read at opening: sizes and index then, each record when it is read."""
    monkeypatch.setattr("auto_deeplab_tf.data.source._CHECKED_AT_OPENING_BYTES", 0)
    monkeypatch.setattr(shards, "_MIN_EXAMPLES_PER_SHARD", 4)
    source = _write(tmp_path / "records", _examples(8))
    shard = source.directory / "train-00001.tfrecord"
    size = shard.stat().st_size
    for position in np.random.default_rng(0).integers(0, size, 12).tolist():
        flip_byte(shard, position)
        opened = Source(source.directory, "train", TOY)
        read = 0
        with (
            pytest.raises(ValueError, match="train-00001.tfrecord is damaged: delete the folder"),
            source_lib.damage_named(opened),
        ):
            for _ in pipeline.evaluation_batches(opened, 1, num_parallel_calls=1):
                read += 1
        assert read < 8, position
        flip_byte(shard, position)
    flip_byte(source.directory / "train.index.npz", 200)
    with pytest.raises(ValueError, match="train.index.npz is damaged"):
        Source(source.directory, "train", TOY)
    flip_byte(source.directory / "train.index.npz", 200)
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match="train-00001.tfrecord is damaged"):
        Source(source.directory, "train", TOY)


def test_ids_and_groups_are_sequences_of_texts(tmp_path):
    source = _write(tmp_path / "records", [*_examples(5)][::-1])
    assert source.ids == ("a_0000", "a_0002", "a_0004", "b_0001", "b_0003")
    assert source.groups == ("a", "a", "a", "b", "b") and source.groups != ("a",) * 5
    assert source.ids[1:3] == ("a_0002", "a_0004") and source.ids[-1] == "b_0003"
    assert set(source.groups) == {"a", "b"} and "b_0001" in source.ids
    assert repr(source.ids) == "Texts('a_0000', 'a_0002', 'a_0004', ...)"
