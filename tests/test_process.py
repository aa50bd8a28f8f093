"""Memory and age of a process, by what Linux says of it and by what other systems do."""

import resource
import subprocess
import sys
import time
import types

import pytest

from auto_deeplab_tf import process


def test_the_peak_stays_when_the_memory_is_given_back():
    before = process.peak_memory_mib()
    size = int(before + 64)  # more than this process had at any time
    block = bytearray(size * 2**20)
    block[::4096] = bytes(len(block[::4096])).replace(b"\0", b"\1")
    del block
    assert size <= process.peak_memory_mib() < before + size + 64


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 2**20), ("freebsd14", 2**10)])
def test_other_systems_count_in_units_of_their_own(monkeypatch, platform, unit):
    usage = types.SimpleNamespace(ru_maxrss=300 * unit)
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    monkeypatch.setattr(process.sys, "platform", platform)
    assert process.peak_memory_mib() == 300


AGE = """
import time
started = time.time()
time.sleep(0.3)
from auto_deeplab_tf.process import seconds_since_start
print(seconds_since_start(), time.time() - started)
"""


def test_the_age_counts_from_the_start_of_the_process():
    before = time.monotonic()
    done = subprocess.run([sys.executable, "-c", AGE], capture_output=True, text=True, check=True)
    age, since_first_line = map(float, done.stdout.split())
    assert since_first_line <= age + 0.02 and age < time.monotonic() - before + 0.02


def test_other_systems_count_from_the_import(monkeypatch):
    monkeypatch.setattr(process.sys, "platform", "darwin")
    assert 0 <= process.seconds_since_start() <= time.monotonic() - process._IMPORTED
