"""SIGTERM is noted inside `with`, and does outside of it what it did before."""

import os
import signal
import threading

import pytest

from auto_deeplab_tf.training import termination


@pytest.fixture
def before():
    """Takes note of the signals that the code under test leaves alone."""
    seen = []
    handler = signal.signal(signal.SIGTERM, lambda *_: seen.append("outside"))
    yield seen
    signal.signal(signal.SIGTERM, handler)


def test_the_signal_is_noted_inside_only(before):
    for raised in (False, True):
        with pytest.raises(KeyError) if raised else termination.noted() as came:
            if raised:
                with termination.noted():
                    raise KeyError
            assert not came()
            os.kill(os.getpid(), signal.SIGTERM)
            assert came() and not before
    os.kill(os.getpid(), signal.SIGTERM)
    assert before == ["outside"]
    assert termination.EXIT_CODE == 143


def test_where_it_is_not_wanted_and_in_another_thread_the_signal_is_left_alone(before):
    with termination.noted(wanted=False) as came:
        os.kill(os.getpid(), signal.SIGTERM)
        assert not came() and before == ["outside"]
    found = []

    def in_thread():
        with termination.noted() as came:
            found.append(came())

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert found == [False]
