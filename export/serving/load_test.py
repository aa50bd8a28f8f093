"""Measures a server under load: latency, throughput, errors.

    python -m export.serving.load_test --server=localhost:8500 --requests=200 --concurrency=8 --json

Every request holds one encoded image, the same. Two requests come first, one after the other:
"cold" is the first that this test sends (cold only if no one else has sent any), "warm" the second.
Figures hold for the machine, the image size and the concurrency that are printed with them, and
those of the stand-in are not TensorFlow Serving's. Exit code 1 if every request failed.
"""

from __future__ import annotations

import collections
import concurrent.futures
import io
import os
import pathlib
import platform
import threading
import time
from typing import Any

import numpy as np
from PIL import Image

from auto_deeplab_tf import cli, config
from auto_deeplab_tf.errors import MissingFileError, RunError, UserError
from export import common
from export.serving.client import Client, ServerError

cli.define(config.LoadTestConfig)


def load_test(options: config.LoadTestConfig) -> dict[str, Any]:
    """Sends the requests and returns the figures; latencies are of requests without error.

    Raises:
        MissingFileError: If there is no such image.
        UserError: If it is neither PNG nor JPEG.
        ServerError: If the first request fails.
    """
    image, size = _image(options)
    with Client.of(options) as client:
        cold, warm = _seconds(client, image), _seconds(client, image)
        latencies: list[float] = []
        errors: collections.Counter[str] = collections.Counter()
        lock = threading.Lock()
        left = iter(range(options.requests))
        start = time.perf_counter()

        def send() -> None:
            while time.perf_counter() - start < options.max_seconds:
                with lock:
                    if next(left, None) is None:
                        return
                try:
                    seconds = _seconds(client, image)
                except ServerError as error:
                    with lock:
                        errors[str(error)] += 1
                else:
                    with lock:
                        latencies.append(seconds)

        with concurrent.futures.ThreadPoolExecutor(options.concurrency) as pool:
            for sender in [pool.submit(send) for _ in range(options.concurrency)]:
                sender.result()
        elapsed = time.perf_counter() - start
    quantiles = np.quantile(latencies, [0.5, 0.95, 0.99]) if latencies else [None] * 3
    return {
        "server": options.server,
        "protocol": options.protocol,
        "model_name": options.model_name,
        "image_size": list(size),
        "image_bytes": len(image),
        "batch_size": 1,
        "concurrency": options.concurrency,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores (of the client)",
        "requests": len(latencies) + errors.total(),
        "errors": errors.total(),
        "error_messages": dict(errors.most_common(5)),
        "first_request_cold_seconds": cold,
        "first_request_warm_seconds": warm,
        **{
            f"{name}_seconds": None if value is None else float(value)
            for name, value in zip(("p50", "p95", "p99"), quantiles, strict=True)
        },
        "images_per_second": len(latencies) / elapsed,
        "elapsed_seconds": elapsed,
    }


def _seconds(client: Client, image: bytes) -> float:
    start = time.perf_counter()
    client.predict(image)
    return time.perf_counter() - start


def _image(options: config.LoadTestConfig) -> tuple[bytes, tuple[int, int]]:
    if options.image is None:
        buffer = io.BytesIO()
        array = common.random_images(1, options.input_size)[0].astype(np.uint8)
        Image.fromarray(array).save(buffer, "PNG")
        return buffer.getvalue(), options.input_size
    path = pathlib.Path(options.image)
    if not path.is_file():
        raise MissingFileError(f"image={path}: no such file.")
    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as opened:
            return content, (opened.height, opened.width)
    except OSError as error:
        raise UserError(f"image={path} is neither a PNG nor a JPEG file.") from error


def main() -> None:
    """Measures as the flags say and prints the figures."""
    options = cli.read(config.LoadTestConfig)
    result = load_test(options)
    if options.json:
        cli.print_json(result)
    else:
        for name, value in result.items():
            print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
    if result["errors"] and result["errors"] == result["requests"]:
        raise RunError(f"all {result['requests']} requests failed: {result['error_messages']}")


if __name__ == "__main__":
    cli.run(main)
