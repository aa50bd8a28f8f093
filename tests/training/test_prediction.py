"""What a search is predicted to need, as a function of its settings."""

import pytest

from auto_deeplab_tf.nn.supernet import build_supernet
from auto_deeplab_tf.training import prediction

SPEEDS = prediction.Speeds(5e10, 1e10, 2e10, 1e-6)


def test_seconds_grow_with_crop_batch_and_recomputation():
    supernet = build_supernet(5, 3, 2, 4)

    def seconds(size=(65, 65), batch_size=2, remat=True, traced=False, supernet=supernet):
        return prediction.step_seconds(supernet, size, batch_size, remat, traced, SPEEDS)

    call = prediction.CALLS_OF_A_STEP * prediction.CALL_SHARE * SPEEDS.call_seconds
    small, large = seconds(batch_size=2), seconds(batch_size=4)
    # What does not grow with the batch are the calls.
    calls = (2 * small - large) / call
    assert calls > 100 and abs(calls - round(calls)) < 1e-6 * calls
    assert seconds(size=(129, 129)) > large > small
    assert seconds(traced=True) < seconds(remat=False) < small
    # Two paths lie on 2 * 3 nodes at most.
    sampled = build_supernet(5, 3, 2, 4, sampled_paths=2)
    nodes = len([s for s in sampled.segments if s.name.startswith("layer")])
    assert seconds(supernet=sampled) == pytest.approx(small * 6 / nodes)
    assert seconds(supernet=sampled, traced=True) == seconds(traced=True)


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
