"""TF_CONFIG: which worker a process is, and what is refused."""

import json

import pytest

from auto_deeplab_tf.training import cluster
from auto_deeplab_tf.training.cluster import Workers

HOSTS = ["a:1", "b:2"]


def read(content):
    text = content if isinstance(content, str) else json.dumps(content)
    return cluster.from_environment({"TF_CONFIG": text})


def of(jobs, job, index):
    return {"cluster": jobs, "task": {"type": job, "index": index}}


@pytest.mark.parametrize(
    ("content", "index", "count"),
    [
        (of({"worker": HOSTS}, "worker", 0), 0, 2),
        (of({"worker": HOSTS}, "worker", 1), 1, 2),
        (of({"chief": ["c:1"], "worker": HOSTS}, "chief", 0), 0, 3),
        (of({"chief": ["c:1"], "worker": HOSTS}, "worker", "1"), 2, 3),
        (of({"worker": HOSTS[:1]}, "worker", 0), 0, 1),
    ],
)
def test_workers_are_counted_from_the_chief(content, index, count):
    assert read(content) == Workers(index, count)
    assert read(content).is_chief == (index == 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "needs the environment variable TF_CONFIG, in every worker with its own index"),
        ("{", "must be JSON such as .*JSONDecodeError"),
        ("[]", "must be JSON such as"),
        ({"cluster": {"worker": HOSTS}}, "must be JSON such as .*KeyError: 'task'"),
        (of({"worker": "a:1,b:2"}, "worker", 0), "list of HOST:PORT, not 'a:1,b:2'"),
        (of({"worker": ["a"]}, "worker", 0), "a worker is HOST:PORT, not 'a'"),
        (of({"worker": [1]}, "worker", 0), "must be JSON such as"),
        (of({"worker": HOSTS}, "worker", "first"), "must be JSON such as .*ValueError"),
        (of({"worker": HOSTS}, "worker", 2), "names the task worker 2, but its cluster has 2 of"),
        (of({"worker": HOSTS}, "worker", -1), "names the task worker -1"),
        (of({"worker": HOSTS}, "chief", 0), "cluster worker, task chief"),
        (of({"worker": HOSTS, "ps": HOSTS}, "ps", 0), "jobs chief and worker only"),
        (of({"worker": ["a:1", "a:1"]}, "worker", 0), "every worker needs an address of its own"),
    ],
)
def test_a_variable_that_names_no_worker_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        read(content)


def test_only_the_strategy_of_several_workers_reads_the_variable(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", json.dumps(of({"worker": HOSTS}, "worker", 1)))
    assert Workers.of("one_device") == Workers.of("mirrored") == Workers(0, 1)
    assert Workers.of("multi_worker_mirrored") == Workers(1, 2)
