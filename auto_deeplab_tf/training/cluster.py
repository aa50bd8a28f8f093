"""The processes that train together, as the environment variable TF_CONFIG names them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from auto_deeplab_tf.errors import UserError

VARIABLE = "TF_CONFIG"
MULTI_WORKER = "multi_worker_mirrored"
# The jobs that train, in the order in which TensorFlow numbers their tasks.
_JOBS = ("chief", "worker")
_EXAMPLE = (
    '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
)


@dataclasses.dataclass(frozen=True)
class Workers:
    """The workers of a training, and which of them this process is.

    Attributes:
        index: This worker, from 0.
        count: Number of workers.
    """

    index: int = 0
    count: int = 1

    @property
    def is_chief(self) -> bool:
        """Whether this process locks and writes the common run folder."""
        return self.index == 0

    @classmethod
    def of(cls, distribution_strategy: str) -> Workers:
        """Returns the workers of a command: those of TF_CONFIG where its strategy has several.

        Raises:
            UserError: See `from_environment`.
        """
        return from_environment() if distribution_strategy == MULTI_WORKER else cls()


def from_environment(environment: Mapping[str, str] = os.environ) -> Workers:
    """Reads the workers from TF_CONFIG.

    Raises:
        UserError: If it is missing or malformed, has a job that does not train, or names a task
            that is not in its cluster.
    """
    text = environment.get(VARIABLE)
    if not text:
        raise UserError(
            f"distribution_strategy={MULTI_WORKER} needs the environment variable {VARIABLE}, in "
            f"every worker with its own index, such as {_EXAMPLE}. Received: none"
        )
    try:
        content = json.loads(text)
        cluster, task = content["cluster"], content["task"]
        job, index = task["type"], int(task["index"])
        jobs = {name: _addresses(hosts) for name, hosts in cluster.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{VARIABLE} must be JSON such as {_EXAMPLE} ({type(error).__name__}: {error}). "
            f"Received: {text}"
        ) from None
    if not set(jobs) <= set(_JOBS) or job not in jobs:
        raise UserError(
            f"{VARIABLE}: the cluster has the jobs {' and '.join(_JOBS)} only, and the task is of "
            f"one of them. Received: cluster {', '.join(jobs) or 'empty'}, task {job}"
        )
    if not 0 <= index < len(jobs[job]):
        raise UserError(
            f"{VARIABLE} names the task {job} {index}, but its cluster has "
            f"{len(jobs[job])} of that job: the index counts from 0, and every worker has its own"
        )
    everyone = [address for name in _JOBS for address in jobs.get(name, ())]
    if len(set(everyone)) < len(everyone):
        raise UserError(
            f"{VARIABLE}: every worker needs an address of its own. Received: {', '.join(everyone)}"
        )
    before = _JOBS[: _JOBS.index(job)]
    return Workers(sum(len(jobs.get(name, ())) for name in before) + index, len(everyone))


def _addresses(hosts: Any) -> list[str]:
    """The addresses of a job, each HOST:PORT."""
    if not isinstance(hosts, list) or not hosts:
        raise ValueError(f"the workers of a job are a list of HOST:PORT, not {hosts!r}")
    for host in hosts:
        _, colon, port = host.rpartition(":")
        if not colon or not port.isdigit():
            raise ValueError(f"a worker is HOST:PORT, not {host!r}")
    return hosts
