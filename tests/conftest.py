"""What tests of every part share."""

import os
import signal
import sys

import pytest

# A shell has its background jobs ignore Ctrl-C, and so would every command that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Read when TensorFlow is imported, which happens after this file.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Of what XLA and JAX compile here, compiling takes nearly all the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

NUM_CPU_DEVICES = 2
# The files of most CPU time, which run first: one that began last would leave a core idle. Those
# of few tests matter most.
SLOW_FILES = (
    "test_train_evaluate_predict.py",
    "test_segmenter.py",
    "test_search.py",
    "test_saved_model.py",
    "test_select.py",
    "test_bilevel.py",
    "test_serving.py",
    "test_supernet.py",
    "test_remote.py",
    "test_xla.py",
    "test_readme.py",
    "test_ninth_operation.py",
    "test_tensorrt.py",
    "test_tflite.py",
    "test_untrusted_models.py",
)


def _split_cpu():
    """Gives TensorFlow two logical CPU devices; possible only before its first operation."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    if not tf.config.get_logical_device_configuration(cpu):
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * NUM_CPU_DEVICES
        )


def _leave_datasets_untuned():
    """Ends tf.data's tuning of running iterators, whose threads keep deletions waiting.

    The thread that tunes an iterator may miss that it is told to end, above all where all cores
    are busy, and sleeps on: for as long as the iterator is old, at most a minute. Whoever deletes
    the iterator waits for it, such as the garbage collection of any later test: one of them was
    seen to wait 146 s for what two devices had left. The product's own pipelines are untuned; this
    is for data sets that tests make.
    """
    import tensorflow as tf
    from tensorflow.python.data.ops import dataset_ops

    apply = dataset_ops.DatasetV2._apply_debug_options  # of every iterator, when it is made

    def untuned(dataset):
        options = tf.data.Options()
        options.autotune.enabled = False
        return apply(dataset.with_options(options))

    dataset_ops.DatasetV2._apply_debug_options = untuned


def pytest_collection_modifyitems(items):
    rank = {name: place for place, name in enumerate(SLOW_FILES)}
    # Stable: the order within a file stays.
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_collection_finish(session):
    # After collection, because then nothing has run yet; and only where some test imported
    # TensorFlow, because tests of the parts without it should start at once.
    if "tensorflow" in sys.modules:
        _split_cpu()
        _leave_datasets_untuned()


@pytest.fixture(scope="session")
def mirrored():
    """The `MirroredStrategy` over both logical CPU devices, one for the whole process."""
    _split_cpu()
    from auto_deeplab_tf.training import distribution

    return distribution.strategy("mirrored")
