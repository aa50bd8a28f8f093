"""The real tensorflow_model_server, where there is one; skipped elsewhere.

Runs the binary that TF_SERVING_BIN names, or else the image of export/serving/compose.yaml by
Docker if it has been pulled.
"""

import contextlib
import io
import os
import pathlib
import shutil
import socket
import subprocess
import time

import numpy as np
import pytest
import yaml
from PIL import Image

from auto_deeplab_tf import config
from auto_deeplab_tf.errors import RunError
from export import common
from export.serving import client
from export.serving.load_test import load_test

FOLDER = pathlib.Path(client.__file__).parent
IMAGE = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]["server"]["image"]
START_SECONDS = 180
SIZE = (33, 80)


def has_docker_image():
    """Tells whether Docker runs and has the image; nothing is downloaded."""
    if shutil.which("docker") is None:
        return False
    with contextlib.suppress(subprocess.TimeoutExpired):
        command = ["docker", "image", "inspect", IMAGE]
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    return False


BINARY = os.environ.get("TF_SERVING_BIN")
pytestmark = pytest.mark.skipif(
    not BINARY and not has_docker_image(),
    reason=f"no tensorflow_model_server: set TF_SERVING_BIN, or docker pull {IMAGE}",
)


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


@pytest.fixture(scope="module")
def base(model_file, tmp_path_factory):
    from export.saved_model import export_saved_model

    folder = tmp_path_factory.mktemp("served")
    export_saved_model(model_file, folder / "base", warmup_size=SIZE)
    shutil.copytree(folder / "base" / "1", folder / "2")
    return folder / "base"


@pytest.fixture(scope="module")
def server(base):
    """The addresses of gRPC and REST of a server with the configuration files of this project."""
    ports = {"grpc": free_port(), "rest": free_port()}
    container = f"auto-deeplab-test-{os.getpid()}"
    if BINARY:
        command, models, files = [BINARY], base, FOLDER
    else:
        models, files = pathlib.Path("/models/auto_deeplab"), pathlib.Path("/config")
        command = ["docker", "run", "--rm", "--name", container, "--network", "host"]
        command += ["--volume", f"{base}:{models}:ro", "--volume", f"{FOLDER}:{files}:ro"]
        command += ["--entrypoint", "tensorflow_model_server", IMAGE]
    command += [
        f"--port={ports['grpc']}",
        f"--rest_api_port={ports['rest']}",
        f"--model_name={config.DEFAULT_MODEL_NAME}",
        f"--model_base_path={models}",
        "--file_system_poll_wait_seconds=1",
        "--enable_batching=true",
        f"--batching_parameters_file={files / 'batching_encoded.config'}",
        f"--monitoring_config_file={files / 'monitoring.config'}",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    addresses = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    try:
        with client.Client(addresses["grpc"], deadline_seconds=START_SECONDS) as waiting:
            waiting.metadata()
        yield addresses
    finally:
        if not BINARY:
            subprocess.run(["docker", "stop", container], capture_output=True, timeout=60)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()


def images():
    return common.random_images(3, SIZE, seed=7)


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_the_client_gets_the_masks_of_keras(server, answer, protocol):
    expected, _ = answer(images())
    with client.Client(server[protocol], protocol) as found:
        assert found.metadata()["class_names"][1] == "sky"
        for image, mask in zip(images().astype(np.uint8), expected, strict=True):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            assert np.mean(found.predict(buffer.getvalue()) == mask) > 0.999
        with pytest.raises(client.ServerError, match="must hold a PNG or JPEG"):
            found.predict(b"junk")


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_the_load_test_has_no_errors(server, protocol):
    found = load_test(
        config.LoadTestConfig(
            server=server[protocol], protocol=protocol, requests=50, concurrency=4, input_size=SIZE
        )
    )
    print(found)
    assert (found["requests"], found["errors"]) == (50, 0)


def test_a_roll_over_is_served(server, base):
    (base.parent / "2").rename(base / "2")
    end = time.monotonic() + START_SECONDS
    with client.Client(server["grpc"], model_version=2) as found:
        while True:
            try:
                assert found.metadata()
                break
            except RunError:
                assert time.monotonic() < end
                time.sleep(0.5)
