"""What a search is predicted to need, as a function of its settings."""

from auto_deeplab_tf.nn.supernet import build_supernet
from auto_deeplab_tf.training import prediction

SPEEDS = prediction.Speeds(5e10, 1e10, 2e10, 1e-6)


def test_seconds_grow_with_crop_batch_and_recomputation():
    supernet = build_supernet(5, 3, 2, 4)

    def seconds(size=(65, 65), batch_size=2, remat=False):
        return prediction.step_seconds(supernet, size, batch_size, remat, SPEEDS)

    calls = 7 * prediction.CALL_SHARE * SPEEDS.call_seconds
    small, large = seconds(batch_size=2), seconds(batch_size=4)
    # What does not grow with the batch are the calls.
    constant = 2 * small - large
    assert constant > 0
    assert constant % calls < 1e-9 * calls or calls - constant % calls < 1e-6 * calls
    assert seconds(size=(129, 129)) > large > small
    assert seconds(remat=True) > small


def test_memory_adds_up():
    supernet = build_supernet(5, 3, 2, 4)

    def memory(size=(65, 65), batch_size=2, remat=True, traced=False, resident=500.0):
        return prediction.peak_memory_mib(supernet, size, batch_size, remat, traced, resident)

    assert memory(resident=700.0) - memory() == 200.0
    assert memory(traced=True) > memory()
    assert memory(remat=False) > memory()
    first, second, third = (memory(batch_size=n) for n in (2, 4, 6))
    assert second > first
    assert abs((third - second) - (second - first)) < 1e-6


def test_speeds_are_measured_in_order_of_magnitude():
    speeds = prediction.measure_speeds()
    assert 1e9 < speeds.depthwise < speeds.convolution < 1e13
    assert 1e8 < speeds.elementwise < 1e13
    assert 1e-8 < speeds.call_seconds < 1e-3
