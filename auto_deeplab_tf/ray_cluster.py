"""A Ray cluster, the extra `ray`: where a command's work is spread over machines."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

from auto_deeplab_tf.addresses import check_listens
from auto_deeplab_tf.errors import MissingExtraError, UserError

# What is shared through a cluster of this machine alone: paths and results.
_LOCAL_STORE_BYTES = 256 * 2**20
# As `cli` sets them for a command.
_ENVIRONMENT = ("KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL")


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connects to a cluster in `with`.

    Args:
        address: HOST:PORT of its head; `auto` for the one that this machine is of; `local` for one
            that is started on this machine, and ends with `with`.

    Yields:
        The module `ray`.

    Raises:
        MissingExtraError: If Ray is not installed.
        FieldError: If nothing listens at the address.
        UserError: If there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(
            f"ray_address needs Ray ({error}): pip install auto_deeplab_tf[ray]"
        ) from error
    options: dict[str, Any] = {}
    if address == "local":
        options["num_cpus"] = len(os.sched_getaffinity(0))
        options["object_store_memory"] = _LOCAL_STORE_BYTES
        options["include_dashboard"] = False
    elif address != "auto":
        check_listens("ray_address", address, "head of a Ray cluster")
    variables = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    try:
        ray.init(
            address,
            runtime_env={"env_vars": variables},
            log_to_driver=False,
            logging_level=logging.ERROR,
            **options,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"ray_address={address}: no Ray cluster there ({reason})") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def resources(ray: Any) -> dict[str, float]:
    """Returns what a worker takes of a cluster: a GPU where there are any, else a core."""
    return {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": 1}


def num_workers(ray: Any) -> int:
    """Returns how many workers of `resources` a cluster holds at a time."""
    found = ray.cluster_resources()
    return max(1, int(found.get("GPU") or found.get("CPU", 1)))
