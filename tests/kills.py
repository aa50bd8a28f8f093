"""Runs commands, each in a process of its own, and has some kill themselves at a chosen moment.

Where a command is to be killed, its process first puts a trap into a function that the product
calls: nothing of this is in the product.
"""

import os
import resource
import signal
import subprocess
import sys
import threading

import commands as commands_lib
import forked
import numpy as np


def kill(number=signal.SIGKILL):
    os.kill(os.getpid(), number)


class _Countdown:
    """A function that is true when it is called for the `times`-th time."""

    def __init__(self, times):
        self._left = times

    def __call__(self):
        self._left -= 1
        return self._left == 0


def in_step(times, share, number=signal.SIGKILL):
    """So many seconds after the beginning of a step, the `times`-th of the process."""
    import keras

    begin, due = keras.callbacks.CallbackList.on_train_batch_begin, _Countdown(times)

    def begin_and_kill(self, batch, logs=None):
        if due():
            threading.Timer(share, kill, [number]).start()
        begin(self, batch, logs)

    keras.callbacks.CallbackList.on_train_batch_begin = begin_and_kill


def in_checkpoint(times, share):
    """While a checkpoint is written: before its files get their names, or with a torn one."""
    from tensorflow.python.ops import gen_io_ops

    merge, due = gen_io_ops.merge_v2_checkpoints, _Countdown(times)

    def merge_and_kill(prefixes, destination, **kwargs):
        dies = due()
        if dies and share < 0.25:
            kill()
        done = merge(prefixes, destination, **kwargs)
        if dies:
            if share < 0.75:  # as where the system had not written all of it
                name = "index" if share < 0.5 else "data-00000-of-00001"
                file = f"{destination.numpy().decode()}.{name}"
                os.truncate(file, int(share * os.path.getsize(file)))
            kill()
        return done

    gen_io_ops.merge_v2_checkpoints = merge_and_kill


def in_writing(times, share, name):
    """While a file of that name gets it, atomically: before or after."""
    replace, due = os.replace, _Countdown(times)

    def replace_and_kill(source, target, **kwargs):
        dies = os.path.basename(target) == name and due()
        if dies and share < 0.5:
            kill()
        replace(source, target, **kwargs)
        if dies:
            kill()

    os.replace = replace_and_kill


def in_validation(times, share):
    """While images are scored, after so many batches."""
    from auto_deeplab_tf.training import metrics

    score, due = metrics.score, _Countdown(times)

    def score_and_kill(logits, *args, **kwargs):
        def counted(images):
            found = logits(images)
            if due():
                kill()
            return found

        return score(counted, *args, **kwargs)

    metrics.score = score_and_kill


def in_time(times, share):
    """So many seconds after the start."""
    threading.Timer(times * share, kill).start()


def in_command(times, share):
    """So many seconds after the process has begun its `times`-th command."""
    begin, due = subprocess.Popen.__init__, _Countdown(times)

    def begin_and_kill(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        if due():
            threading.Timer(share, kill).start()

    subprocess.Popen.__init__ = begin_and_kill


def tell_threads():
    """No kill: the command ends with a line that tells the threads of its TensorFlow."""
    import tensorflow as tf

    from auto_deeplab_tf import cli

    end = cli.app.run

    def run_and_tell(*args, **kwargs):
        try:
            end(*args, **kwargs)
        finally:
            threads = tf.config.threading
            numbers = (
                threads.get_intra_op_parallelism_threads(),
                threads.get_inter_op_parallelism_threads(),
            )
            print("threads", *numbers, file=sys.stderr)

    cli.app.run = run_and_tell


def on_small_disk(num_bytes):
    """No kill, but what a full disk or a quota does: no file grows larger than that."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def run(module, arguments, trap=None):
    """Runs a command in a process of its own, which a trap may kill.

    Args:
        module: Its name in the package.
        trap: The name of a function of this module, and its arguments.

    Returns:
        (exit code, negative where a signal killed it; what it wrote).
    """
    done = forked.run(f"auto_deeplab_tf.{module}", *arguments, trap=trap)
    return done.returncode, done.stdout + done.stderr


def check_same_search(ours, theirs):
    """Compares two search runs bit for bit: rows, architecture, logits, every variable."""
    names = ("metrics.csv", "architecture.json", "logits.npz", "split.json", "data.json")
    _check_same(ours, theirs, names)


def check_same_training(ours, theirs):
    """Compares two trainings bit for bit: rows, every variable, the models' weights."""
    from auto_deeplab_tf.served import load_segmenter

    names = ("metrics.csv", "architecture.json", "data.json", "overlays/epoch_00002.png")
    _check_same(ours, theirs, names)
    for name in ("model.keras", "last.keras"):
        models = [load_segmenter(folder / name).variables for folder in (ours, theirs)]
        for a, b in zip(*models, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"{name} {a.path}")


def _check_same(ours, theirs, names):
    for name in names:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    a, b = (commands_lib.latest_variables(folder) for folder in (ours, theirs))
    assert a.keys() == b.keys() and len(a) > 20
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)
