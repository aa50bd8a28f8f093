"""Signals are noted inside `with`, and do outside of it what they did before."""

import os
import signal
import threading

import pytest

from auto_deeplab_tf.training import termination


@pytest.fixture
def before():
    """Takes note of the signals that the code under test leaves alone."""
    seen = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = [signal.signal(number, lambda *_: seen.append("outside")) for number in numbers]
    yield seen
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_signal_is_noted_inside_only(before, number, code):
    for raised in (False, True):
        with pytest.raises(KeyError) if raised else termination.noted() as stop:
            if raised:
                with termination.noted():
                    raise KeyError
            assert stop() is None
            os.kill(os.getpid(), number)
            assert stop() == code and not before
    os.kill(os.getpid(), number)
    assert before == ["outside"]


def test_a_second_ctrl_c_is_not_noted(before):
    with pytest.raises(KeyboardInterrupt), termination.noted():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert not before


def test_where_it_is_not_wanted_and_in_another_thread_signals_are_left_alone(before):
    with termination.noted(wanted=False, max_hours=1e-9) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop() is None and before == ["outside"]
    found = []

    def in_thread(max_hours):
        with termination.noted(max_hours=max_hours) as stop:
            found.append(stop())

    for max_hours in (None, 1e-9):
        thread = threading.Thread(target=in_thread, args=(max_hours,))
        thread.start()
        thread.join()
    assert found == [None, termination.TIME_IS_UP] and termination.TIME_IS_UP == 75
