"""Memory and age of a process, on Linux and elsewhere; commands that it runs."""

import concurrent.futures
import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading
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


SAVES = """
import signal, sys, time
def save(number, frame):
    sys.exit(128 + number)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, save)
open(sys.argv[1], "w").close()
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_to_the_command(number, tmp_path):
    started = tmp_path / "started"

    def kill():
        while not started.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    threading.Thread(target=kill).start()
    code, *_ = process.run_command([sys.executable, "-c", SAVES, str(started)])
    assert code == 128 + number
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    code, *_ = process.run_command(["sh", "-c", f"kill -{int(number)} $$; sleep 60"])
    assert code == 128 + number


PARENT = """
import sys
from auto_deeplab_tf.process import run_command
run_command(["sh", "-c", f"echo $$ > {sys.argv[1]}; exec sleep 60"])
"""


def test_a_command_ends_when_its_parent_is_killed(tmp_path):
    file = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(file)])
    while not (file.exists() and file.read_text().strip()):
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    child = pathlib.Path("/proc", file.read_text().strip(), "stat")
    end = time.monotonic() + 10
    # What ended is a zombie where nobody waits for orphans.
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_thread_runs_commands_on_a_core_in_the_session_of_its_process(tmp_path):
    code = (
        "import os, sys; found = os.sched_getaffinity(0), os.getsid(0), os.getcwd(), os.environ;"
        "print(*found, flush=True); print('and this', file=sys.stderr); sys.exit(3)"
    )
    core = max(os.sched_getaffinity(0))
    settings = {"with_stdout": True, "core": core, "cwd": tmp_path, "env": {"ONLY": "1"}}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        done = pool.submit(process.run_command, [sys.executable, "-c", code], **settings).result()
    session = os.getsid(0)
    start = f"{{{core}}} {session} {tmp_path} environ({{'ONLY': '1'"
    assert done.code == 3 and done.output.startswith(start), done.output
    assert done.output.endswith("and this\n")
