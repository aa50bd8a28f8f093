"""Training batches of a tf.data service: those of one process, with two workers, one, or none."""

import itertools
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab_tf import config
from auto_deeplab_tf.data import pipeline, service, source
from tests.data.conftest import flip_byte

WORKER = """
import sys, tensorflow as tf
service = tf.data.experimental.service
port, dispatcher = sys.argv[1:]
worker = service.WorkerServer(service.WorkerConfig(
    dispatcher_address=dispatcher, worker_address=f"127.0.0.1:{port}", port=int(port),
    heartbeat_interval_ms=200))
print("ready", flush=True)
worker.join()
"""
OPTIONS = {"batch_size": 3, "crop_size": (8, 16), "seed": 5}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def cluster():
    """A dispatcher in this process and two workers in processes of their own, on loopback."""
    dispatcher = tf.data.experimental.service.DispatchServer(
        tf.data.experimental.service.DispatcherConfig(port=0, worker_timeout_ms=2000)
    )
    address = dispatcher.target.removeprefix("grpc://")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(free_port()), address],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        assert dispatcher._num_workers() == 2
        yield dispatcher.target, workers
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def check_equal(found, expected):
    for ours, theirs in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture
def nothing_is_made_here(monkeypatch):
    whole = service._in_order

    def in_order(remote, wanted, here, address):
        yield from whole(remote, wanted, lambda number: pytest.fail("made here"), address)

    monkeypatch.setattr(service, "_in_order", in_order)


def test_the_flag_takes_an_address():
    with pytest.raises(ValueError, match="^data_service=localhost:1: expected grpc://HOST:PORT"):
        config.DataConfig(data_service="localhost:1")
    options = config.DataConfig(data_service="grpc://localhost:1")
    assert pipeline.batch_options(options)["data_service"] == "grpc://localhost:1"


def test_an_address_where_nothing_listens_is_named(numbered_source):
    address = f"grpc://127.0.0.1:{free_port()}"
    rule = f"^data_service={address}: no dispatcher of a tf.data service listens there"
    with pytest.raises(ValueError, match=rule):
        pipeline.training_batches(numbered_source, data_service=address, **OPTIONS)


@pytest.mark.usefixtures("nothing_is_made_here")
def test_two_workers_make_the_batches_of_one_process_from_any_step(cluster, numbered_source):
    halves = np.array([0, 2, 4, 6]), np.array([1, 3, 5])
    whole = pipeline.search_batches(numbered_source, halves, **OPTIONS).take(12)
    expected = [tf.nest.map_structure(lambda x: x.numpy(), batch) for batch in whole]
    for start in (0, 5):
        found = pipeline.search_batches(
            numbered_source, halves, data_service=cluster[0], start_step=start, **OPTIONS
        )
        assert found.element_spec == whole.element_spec
        assert found.cardinality() == tf.data.INFINITE_CARDINALITY
        count = 0
        for batch, other in zip(found.take(12 - start), expected[start:], strict=True):
            check_equal(batch, other)
            count += 1
        assert count == 12 - start


def test_a_worker_sends_each_number_with_its_rows_and_no_number_comes_twice(cluster):
    remote = service._remote(lambda row: row * row, 2, 3, cluster[0])
    found = {int(number): rows.numpy().tolist() for number, rows in remote.take(40)}
    assert len(found) == 40 and min(found) == 3
    assert all(rows == [(2 * number) ** 2, (2 * number + 1) ** 2] for number, rows in found.items())


def test_a_damaged_record_is_named_as_without_a_service(cluster, numbered_source):
    flip_byte(numbered_source.directory / "train-00000.tfrecord", 40)
    found = pipeline.training_batches(numbered_source, data_service=cluster[0], **OPTIONS)
    with (
        pytest.raises(ValueError, match="train-00000.tfrecord is damaged"),
        source.damage_named(numbered_source),
    ):
        for _ in found.take(5):
            pass


def test_batches_are_put_in_order_and_after_any_failure_made_here(monkeypatch, capsys):
    monkeypatch.setattr(service, "_MAX_EARLY", 2)

    def remote():
        yield from ((number, f"sent {number}") for number in (1, 0, 3, 4, 2, 5))
        b"\xff".decode()  # as where TensorFlow's message repeats bytes of a record

    def here(number):
        return tf.data.Dataset.range(number, 99)

    found = list(itertools.islice(service._in_order(remote(), 0, here, "an address"), 8))
    made = [number for number, batch in enumerate(found) if not isinstance(batch, str)]
    assert [int(found[number]) for number in made] == made == [2, 6, 7]
    assert [found[n] for n in (0, 1, 3, 4, 5)] == [f"sent {n}" for n in (0, 1, 3, 4, 5)]
    (warning,) = capsys.readouterr().err.splitlines()
    assert "data_service=an address fails ('utf-8' codec can't decode" in warning


def test_a_worker_that_is_killed_costs_no_batch(cluster, numbered_source, monkeypatch):
    monkeypatch.setattr(service, "_MAX_EARLY", 4)
    expected = pipeline.training_batches(numbered_source, **OPTIONS)
    found = pipeline.training_batches(numbered_source, data_service=cluster[0], **OPTIONS)
    pairs = zip(itertools.islice(found, 60), itertools.islice(expected, 60), strict=True)
    for number, (batch, other) in enumerate(pairs):
        check_equal(batch, other)
        if number == 3:
            os.kill(cluster[1][1].pid, signal.SIGKILL)
    # The last one too: this process makes the batches.
    monkeypatch.setattr(service, "_SECONDS_TO_WAIT", 1.0)
    os.kill(cluster[1][0].pid, signal.SIGKILL)
    found = pipeline.training_batches(numbered_source, data_service=cluster[0], **OPTIONS)
    for batch, other in zip(found.take(3), expected.take(3), strict=True):
        check_equal(batch, other)
