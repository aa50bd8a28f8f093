"""The peak of a process' memory, by what Linux says of it and by what other systems do."""

import resource
import types

import pytest

from auto_deeplab_tf import memory


def test_the_peak_stays_when_the_memory_is_given_back():
    before = memory.peak_memory_mib()
    size = int(before + 64)  # more than this process had at any time
    block = bytearray(size * 2**20)
    block[::4096] = bytes(len(block[::4096])).replace(b"\0", b"\1")
    del block
    assert size <= memory.peak_memory_mib() < before + size + 64


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 2**20), ("freebsd14", 2**10)])
def test_other_systems_count_in_units_of_their_own(monkeypatch, platform, unit):
    usage = types.SimpleNamespace(ru_maxrss=300 * unit)
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    monkeypatch.setattr(memory.sys, "platform", platform)
    assert memory.peak_memory_mib() == 300
