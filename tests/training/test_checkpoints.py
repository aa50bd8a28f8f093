"""Checkpoints: in folders of any name, on a full disk, and only into what they belong to."""

import contextlib
import resource
import shutil
import signal
import types

import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab_tf.errors import StorageError
from auto_deeplab_tf.training.callbacks import TensorBoardLogs
from auto_deeplab_tf.training.checkpoints import Checkpoints

NAMES = ["plain", "run [F=2]", "a*b?", "100 % [x] \\ y"]


def variables():
    return [tf.Variable(0, dtype=tf.int64), tf.Variable(tf.zeros([40, 500]))]


@pytest.mark.parametrize("name", NAMES)
def test_the_last_ones_are_kept_and_read_whatever_the_folder_is_called(name, tmp_path):
    folder = tmp_path / name / "checkpoints"
    written = variables()
    checkpoints = Checkpoints(folder, written, "one", keep=2)
    assert checkpoints.latest is None and not checkpoints.restore()
    for step in (3, 6, 9):
        written[0].assign(step)
        written[1].assign(tf.fill([40, 500], float(step)))
        assert checkpoints.save(step) == str(folder / f"step-{step}")
    assert sorted(path.name for path in folder.glob("*.index")) == ["step-6.index", "step-9.index"]
    read = variables()
    again = Checkpoints(folder, read, "one", keep=2)
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(), folder, 2, checkpoint_name="step")
    assert [path[-6:] for path in manager.checkpoints] == ["step-6", "step-9"]
    assert manager.latest_checkpoint.endswith("step-9")
    assert again.latest == str(folder / "step-9") and again.restore()
    for ours, theirs in zip(read, written, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    again.save(12)
    assert sorted(path.name for path in folder.glob("*.index")) == ["step-12.index", "step-9.index"]


@contextlib.contextmanager
def no_file_above(num_bytes):
    """What a full disk or a quota does to a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_named_and_leaves_the_checkpoint_before(tmp_path):
    written = variables()
    checkpoints = Checkpoints(tmp_path, written, "one")
    checkpoints.save(1)
    before = sorted(path.name for path in tmp_path.iterdir())
    with no_file_above(20_000):
        rule = r"step-2 cannot be written \(.*; it needs 80,008 bytes\): make room"
        with pytest.raises(StorageError, match=rule) as e:
            checkpoints.save(2)
    assert str(tmp_path / "step-2") in str(e.value) and "\n" not in str(e.value)
    assert str(e.value).endswith(f"resumes from {tmp_path / 'step-1'}")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert Checkpoints(tmp_path, written, "one").restore()


def test_a_disk_without_room_is_refused_before_the_run(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "run", variables(), "one", keep=3)
    needed = 4 * 80_008 + 5_000_000 + 32 * 2**20
    free = needed
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: types.SimpleNamespace(free=free if path.exists() else 0)
    )
    checkpoints.check_space(5_000_000)
    free -= 1
    rule = r"run has 37\.1 MiB free, and the run needs 37\.1 MiB \(checkpoints: 4 of 0\.1 MiB, "
    with pytest.raises(StorageError, match=rule):
        checkpoints.check_space(5_000_000)
    for step in (1, 2, 3, 4, 5):  # those that are there take no further room
        checkpoints.save(step)
    free = needed - 3 * 80_008
    checkpoints.check_space(5_000_000)
    free -= 1
    with pytest.raises(StorageError, match="checkpoints: 1 of"):
        checkpoints.check_space(5_000_000)


def test_logs_on_a_full_disk_are_named(tmp_path):
    logs = TensorBoardLogs(tmp_path / "logs")
    logs.on_train_begin()
    with no_file_above(2_000), pytest.raises(StorageError, match="logs cannot be written") as e:
        for epoch in range(3):
            logs.on_epoch_end(epoch, {"loss": 1.0, "cell": "long " * 200})
    assert "\n" not in str(e.value)


def test_what_a_checkpoint_belongs_to_and_what_an_earlier_version_wrote(tmp_path):
    Checkpoints(tmp_path, variables(), "architecture").save(1)
    with pytest.raises(ValueError, match="belongs to architecture, not to architecture and"):
        Checkpoints(tmp_path, variables(), "architecture and layout").restore()
    for others in (variables()[:-1], [*variables(), tf.Variable(0.0)], variables()[::-1]):
        with pytest.raises(ValueError, match="does not fit this program"):
            Checkpoints(tmp_path, others, "architecture").restore()
    again = Checkpoints(
        tmp_path, variables(), "architecture and layout", former_fingerprint="architecture"
    )
    assert again.restore()
    again.save(2)
    with pytest.raises(ValueError, match="layout of weights"):
        Checkpoints(tmp_path, variables(), "architecture").restore()


@pytest.fixture
def three(tmp_path):
    """A folder with checkpoints of the steps 3, 6 and 9, whose variables hold these numbers."""
    folder = tmp_path / "checkpoints"
    written = variables()
    checkpoints = Checkpoints(folder, written, "one")
    for step in (3, 6, 9):
        written[0].assign(step)
        written[1].assign(tf.random.stateless_uniform([40, 500], seed=(step, step)))
        checkpoints.save(step)
    return folder


def restored(folder):
    """(step read, the variables, the checkpoints)."""
    read = variables()
    checkpoints = Checkpoints(folder, read, "one")
    step = int(read[0]) if checkpoints.restore() else None
    if step is not None:
        np.testing.assert_array_equal(
            read[1], tf.random.stateless_uniform([40, 500], seed=(step, step))
        )
    return step, read, checkpoints


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0x10
    path.write_bytes(content)


DATA, INDEX = "step-9.data-00000-of-00001", "step-9.index"
DAMAGES = {
    "cut data": lambda folder: cut(folder / DATA, 0.5),
    "empty data": lambda folder: cut(folder / DATA, 0),
    "no data": lambda folder: (folder / DATA).unlink(),
    "flipped data": lambda folder: flip(folder / DATA, 0.7),
    "cut index": lambda folder: cut(folder / INDEX, 0.5),
    "empty index": lambda folder: cut(folder / INDEX, 0),
    "no index": lambda folder: (folder / INDEX).unlink(),
    "flipped index": lambda folder: flip(folder / INDEX, 0.3),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_goes_with_the_next(damage, three, capsys):
    DAMAGES[damage](three)
    step, read, checkpoints = restored(three)
    assert step == 6 and checkpoints.latest == str(three / "step-6")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {three / 'step-9'} is damaged (")
    assert line.endswith(f"; resuming from {three / 'step-6'}")
    read[0].assign(8)
    read[1].assign(tf.random.stateless_uniform([40, 500], seed=(8, 8)))
    checkpoints.save(8)
    assert {path.stem for path in three.glob("step-*")} == {"step-3", "step-6", "step-8"}
    assert restored(three)[0] == 8 and capsys.readouterr().err == ""
    assert tf.train.latest_checkpoint(three) == str(three / "step-8")


def test_any_flipped_bit_is_noticed_or_means_nothing(three, capsys):
    rng = np.random.default_rng(0)
    noticed = 0
    for name in [DATA, INDEX] * 30:
        path = three / name
        content = path.read_bytes()
        flip(path, rng.random())
        step, *_ = restored(three)  # compares the values
        assert step in (6, 9)
        noticed += step == 6
        path.write_bytes(content)
    assert noticed > 50, noticed


def test_all_damaged_is_an_error_and_a_first_one_begins_again(three, capsys):
    for step in (3, 6, 9):
        cut(three / f"step-{step}.index", 0.5)
    with pytest.raises(ValueError, match="no checkpoint in .* can be read: delete that folder"):
        restored(three)
    for step in (3, 6):
        for path in three.glob(f"step-{step}.*"):
            path.unlink()
    assert restored(three)[0] is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("resuming from the start")


@pytest.mark.parametrize("lost", ["no list", "cut list", "killed before the list"])
def test_the_list_of_checkpoints_is_not_needed_and_corrected(lost, three):
    listed = three / "checkpoint"
    content = listed.read_text()
    if lost == "no list":
        listed.unlink()
    elif lost == "cut list":
        cut(listed, 0.4)
    else:
        listed.write_text(
            content.replace(
                'model_checkpoint_path: "step-9"\nall', 'model_checkpoint_path: "step-6"\nall', 1
            )
        )
        assert listed.read_text() != content
    (three / "step-12_temp").mkdir()  # of a kill in the middle of a writing
    (three / "step-12_temp" / "part-00000-of-00001.index").write_bytes(b"half")
    step, read, checkpoints = restored(three)
    assert step == 9
    assert tf.train.latest_checkpoint(three) == str(three / "step-9")
    read[0].assign(12)
    read[1].assign(tf.random.stateless_uniform([40, 500], seed=(12, 12)))
    checkpoints.save(12)
    assert {path.stem for path in three.glob("step-*")} == {"step-6", "step-9", "step-12"}
    assert restored(three)[0] == 12
