"""Checkpoints: in folders of any name, on a full disk, and only into what they belong to."""

import contextlib
import resource
import signal

import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab_tf.errors import StorageError
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
