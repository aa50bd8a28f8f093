import os
import shutil
import threading

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from auto_deeplab_tf import data
from auto_deeplab_tf.data import preparation, shards
from auto_deeplab_tf.data.source import Source
from auto_deeplab_tf.errors import UserError
from tests.data.conftest import flip_byte


def _open(root, cache, **options):
    return data.open_split("camvid", "train", data_dir=root, cache_dir=cache, **options)


def test_the_second_opening_reads_the_cache(make_camvid, cache, monkeypatch):
    root = make_camvid({"train": 3, "val": 1})
    first = _open(root, cache)
    assert [path.name for path in cache.iterdir()] == [first.directory.name]
    monkeypatch.setattr(shards, "write", None)  # preparing again would call it
    again = _open(root, cache)
    assert again.directory == first.directory
    other_split = data.open_split("camvid", "val", data_dir=root, cache_dir=cache)
    assert other_split.directory == first.directory and other_split.num_examples == 1


def test_the_limit_of_pixels_holds_for_records_without_their_files(make_camvid, cache):
    records = _open(make_camvid({"train": 2}, size=(18, 25)), cache).directory
    assert _open(None, records, max_image_pixels=450).num_examples == 2
    with pytest.raises(UserError, match="450 pixels, more than max_image_pixels=449: raise it"):
        _open(None, records, max_image_pixels=449)


def test_a_changed_file_is_noticed(make_camvid, cache):
    root = make_camvid({"train": 3})
    before = _open(root, cache)
    label = root / "trainannot" / f"{before.ids[0]}.png"
    changed = root / "trainannot" / f"{before.ids[1]}.png"
    label.write_bytes(changed.read_bytes())
    after = _open(root, cache)
    assert after.directory != before.directory
    np.testing.assert_array_equal(after.example(0)[1], after.example(1)[1])
    # The time of change does not count; a file that is gone does.
    os.utime(label, ns=(1, 1))
    assert _open(root, cache).directory == after.directory
    label.unlink()
    (root / "train" / f"{before.ids[0]}.png").unlink()
    assert _open(root, cache).num_examples == 2


@pytest.mark.parametrize("whole", [True, False])
def test_the_fingerprint_follows_contents_and_no_times(make_camvid, tmp_path, monkeypatch, whole):
    if not whole:  # as in a set of more than 512 MiB
        monkeypatch.setattr(preparation, "_HASHED_WHOLE_BYTES", 0)
    root = make_camvid({"train": 3}, size=(97, 131))
    copy = shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    fingerprints = {
        _open(folder, tmp_path / f"cache of {folder.name}").fingerprint for folder in (root, copy)
    }
    assert len(fingerprints) == 1
    label = copy / "trainannot" / "0016E5_000000.png"
    stat = label.stat()
    size, pixels = stat.st_size, np.asarray(Image.open(label)).copy()
    for column in range(40):  # until one pixel is another and the size the same
        changed = pixels.copy()
        changed[40, column] = (changed[40, column] + 1) % 12
        Image.fromarray(changed).save(label)
        if label.stat().st_size == size:
            break
    assert label.stat().st_size == size
    os.utime(label, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert _open(copy, tmp_path / "cache").fingerprint not in fingerprints
    shorter = copy / "train" / "0016E5_000000.png"
    shorter.rename(shorter.with_name("0016E5_000009.png"))
    label.rename(label.with_name("0016E5_000009.png"))
    renamed = _open(copy, tmp_path / "cache").fingerprint
    Image.fromarray(pixels).save(label.with_name("0016E5_000009.png"))
    assert _open(copy, tmp_path / "cache").fingerprint not in {renamed, *fingerprints}


def test_samples_of_a_large_file_and_what_they_miss(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "_HASHED_WHOLE_BYTES", 0)
    path = tmp_path / "file"
    content = np.random.default_rng(0).bytes(100_000)
    path.write_bytes(content)
    before = preparation.files_digest({"a": path})
    for position, noticed in ((100, True), (50_000, True), (99_990, True), (25_000, False)):
        # A path of its own, since a digest is kept as long as the file does not change.
        changed = tmp_path / f"changed{position}"
        changed.write_bytes(
            content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
        )
        assert (preparation.files_digest({"a": changed}) != before) == noticed
    assert preparation.files_digest({"b": path}) != before


def test_what_a_killed_process_left_is_replaced(make_camvid, cache):
    root = make_camvid({"train": 2})
    directory = _open(root, cache).directory
    unfinished = cache / f"{directory.name}.unfinished"
    directory.rename(unfinished)
    (unfinished / "records.json").unlink()
    (unfinished / "train-00000.tfrecord").write_bytes(b"half")
    (cache / f"{directory.name}.lock").touch()
    assert _open(root, cache).num_examples == 2
    assert [path.name for path in cache.iterdir()] == [directory.name]


def test_two_at_once_prepare_once(make_camvid, cache, monkeypatch):
    root = make_camvid({"train": 2})
    calls = []
    write = shards.write
    monkeypatch.setattr(shards, "write", lambda *a, **k: (calls.append(1), write(*a, **k)))
    found = []
    threads = [threading.Thread(target=lambda: found.append(_open(root, cache))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and len(calls) == 1
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("name", ["train-00000.tfrecord", "train.index.npz", "records.json"])
def test_a_flipped_byte_is_noticed(make_source, name):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 24, 36, 3), dtype=np.uint8)
    source = make_source([(f"a_{i}", image, image[..., 0] % 3) for i, image in enumerate(images)])
    path = source.directory / name
    size = path.stat().st_size
    for position in (0, size // 2, size - 3):
        flip_byte(path, position)
        with pytest.raises(ValueError, match=rf"{name} is damaged: delete the folder"):
            Source(source.directory, "train", source.info)
        flip_byte(path, position)
    Source(source.directory, "train", source.info)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="damaged"):
        Source(source.directory, "train", source.info)
    path.unlink()
    with pytest.raises((ValueError, OSError), match=name):
        Source(source.directory, "train", source.info)


def test_a_record_that_changes_later_is_noticed_when_read(numbered_source):
    flip_byte(numbered_source.directory / "train-00000.tfrecord", 40)
    noticed = 0
    for i in range(7):
        try:
            numbered_source.example(tf.constant(i, tf.int64))
        except tf.errors.DataLossError:
            noticed += 1
    assert noticed == 1


def test_examples_are_found_in_any_shard(make_source, monkeypatch):
    monkeypatch.setattr(shards, "_MIN_EXAMPLES_PER_SHARD", 2)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (9, 16, 20, 3), dtype=np.uint8)
    labels = rng.integers(0, 3, (9, 16, 20), dtype=np.uint8)
    order = rng.permutation(9)  # written in any order, found by id
    source = make_source([(f"a_{i}", images[i], labels[i]) for i in order])
    assert len(list(source.directory.glob("*.tfrecord"))) == 5
    assert source.ids == tuple(f"a_{i}" for i in range(9))
    for i in (8, 0, 5, 4, 4):
        image, label = source.example(tf.constant(i, tf.int64))
        np.testing.assert_array_equal(image, images[i])
        np.testing.assert_array_equal(label, labels[i])


def test_label_statistics(make_source):
    first, second = np.zeros((4, 5), np.uint8), np.full((4, 5), 2, np.uint8)
    second[0] = 9
    image = np.zeros((4, 5, 3), np.uint8)
    source = make_source([("a_0", image, first), ("a_1", image, second)])
    assert source.class_pixels.tolist() == [20, 0, 15]
    assert source.present_pixels.tolist() == [20, 0, 20]
    assert source.ignored_pixels == 5


def test_an_id_must_not_occur_twice(make_source):
    image, label = np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.uint8)
    with pytest.raises(ValueError, match="image id a_0 occurs twice"):
        make_source([("a_0", image, label), ("a_0", image, label)])


def test_the_cache_follows_the_users_folders(make_camvid, tmp_path, monkeypatch):
    root = make_camvid({"train": 2})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    source = data.open_split("camvid", "train", data_dir=root)
    assert source.directory.parent == tmp_path / "xdg" / "auto_deeplab_tf"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    source = data.open_split("camvid", "train", data_dir=root)
    assert source.directory.parent == tmp_path / "home" / ".cache" / "auto_deeplab_tf"
