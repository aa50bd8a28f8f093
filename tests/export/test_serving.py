"""The stand-in server over real gRPC and HTTP: predictions, versions, hostile requests."""

import base64
import contextlib
import http.server
import io
import json
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib

import grpc
import numpy as np
import pytest
from PIL import Image

from auto_deeplab_tf import config
from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.image_results import SETTINGS_FILE
from auto_deeplab_tf.predict import predict
from export import common
from export.saved_model import export_saved_model
from export.serving import native, protos, rest, versions
from export.serving.client import Client, ServerError, segment
from export.serving.load_test import load_test

pytestmark = pytest.mark.skipif(
    native.library_path() is None, reason=f"this TensorFlow has no {native.LIBRARY}"
)

NAME = "auto_deeplab"
SIZE = (33, 80)
START_SECONDS = 240
# Starts and polls wait for a machine that does other things too.
SWITCH_SECONDS = 120
MAX_PIXELS = 300 * 300


class Server:
    """A stand-in in a process of its own, and requests to it."""

    def __init__(self, *flags):
        command = [sys.executable, "-m", "export.serving.stand_in", *flags]
        command += ["--port=0", "--rest_api_port=0", "--file_system_poll_wait_seconds=0.2"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        # Whatever happens to the test, the server ends.
        self.watchdog = threading.Timer(START_SECONDS, self.process.kill)
        self.watchdog.daemon = True
        self.watchdog.start()
        line = self.process.stdout.readline()
        found = re.fullmatch(r"stand-in for .*: gRPC on (\S+), REST on (\S+)\n", line)
        if found is None:
            self.close()
            raise AssertionError(f"the server does not start: {line!r}")
        self.grpc, self.rest = found.groups()
        self.watchdog.cancel()
        self.watchdog = threading.Timer(600, self.process.kill)
        self.watchdog.daemon = True
        self.watchdog.start()
        self.channel = grpc.insecure_channel(self.grpc, options=protos.GRPC_OPTIONS)
        stubs = protos.load("tensorflow_serving.apis.prediction_service_pb2_grpc")
        self.prediction = stubs.PredictionServiceStub(self.channel)

    def predict(self, signature, version=None, label="", **inputs):
        """The outputs over gRPC, and the version that gave them."""
        request = protos.load("tensorflow_serving.apis.predict_pb2").PredictRequest()
        request.model_spec.name = NAME
        if version is not None:
            request.model_spec.version.value = version
        if label:
            request.model_spec.version_label = label
        protos.fill_inputs(request, signature, inputs)
        response = self.prediction.Predict(request, timeout=120)
        outputs = {key: protos.to_array(value) for key, value in response.outputs.items()}
        return outputs, response.model_spec.version.value

    def http(self, path, body=None):
        """Status and parsed body of a request."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{self.rest}{path}", data)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def workers(self):
        tasks = pathlib.Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(pid) for task in tasks for pid in task.read_text().split()]

    def close(self):
        self.watchdog.cancel()
        self.process.terminate()
        try:
            self.process.wait(30)
        finally:
            self.process.kill()
            self.process.stdout.close()


@pytest.fixture(scope="module")
def base(model_file, tmp_path_factory):
    """A folder with version 1, and beside it a version 2 that names its first class otherwise."""
    folder = tmp_path_factory.mktemp("served")
    first = export_saved_model(
        model_file, folder / "base", max_image_pixels=MAX_PIXELS, warmup_size=SIZE
    ).path
    shutil.copytree(first, folder / "2")
    labels = folder / "2" / "assets" / "labels.txt"
    labels.write_text(labels.read_text("utf-8").replace("road", "street"), "utf-8")
    return folder / "base"


@pytest.fixture(scope="module")
def server(base):
    found = Server(f"--model_base_path={base}", f"--model_name={NAME}")
    yield found
    found.close()


def png(array, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", **options)
    return buffer.getvalue()


def strings(*values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


def images(count=3):
    return common.random_images(count, SIZE, seed=7)


def test_predictions_over_grpc_are_those_of_keras(server, answer):
    ids, probabilities = answer(images())
    outputs, version = server.predict("serving_default", images=images())
    assert version == 1 and outputs["class_ids"].dtype == np.int32
    assert np.mean(outputs["class_ids"] == ids) > 0.999
    outputs, _ = server.predict("probabilities", images=images())
    np.testing.assert_allclose(outputs["probabilities"], probabilities, atol=1e-4)
    files = strings(*(png(image) for image in images().astype(np.uint8)))
    outputs, _ = server.predict("encoded_image", image_bytes=files)
    found = np.stack([Image.open(io.BytesIO(mask)) for mask in outputs["mask_png_bytes"]])
    assert np.mean(found == ids) > 0.999
    outputs, _ = server.predict("labels", class_ids=np.array([0, 2, 7], np.int32))
    assert [name.decode() for name in outputs["names"]] == ["road", "Häuser", "unknown"]


def test_an_empty_batch_gives_an_empty_response_over_grpc_and_400_over_rest(server):
    outputs, _ = server.predict("serving_default", images=images(0))
    assert outputs["class_ids"].shape == (0, *SIZE)
    outputs, _ = server.predict("encoded_image", image_bytes=strings())
    assert outputs["mask_png_bytes"].shape == (0,)
    for body in ({"instances": []}, {"inputs": []}, {"inputs": {"images": []}}):
        status, response = server.http(f"/v1/models/{NAME}:predict", body)
        assert status == 400 and "at least one value" in response["error"]


def test_metadata_over_both_protocols(server, base):
    messages = protos.load("tensorflow_serving.apis.get_model_metadata_pb2")
    request = messages.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = NAME
    response = server.prediction.GetModelMetadata(request, timeout=60)
    assert (response.model_spec.name, response.model_spec.version.value) == (NAME, 1)
    found = messages.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(found)
    saved = protos.load("tensorflow.core.protobuf.saved_model_pb2").SavedModel.FromString(
        (base / "1" / "saved_model.pb").read_bytes()
    )
    expected = saved.meta_graphs[0].signature_def
    names = {"serving_default", "probabilities", "encoded_image", "labels", "metadata"}
    assert set(found.signature_def) == names
    for name in names:
        assert found.signature_def[name] == expected[name]
    status, response = server.http(f"/v1/models/{NAME}/metadata")
    assert status == 200
    assert response["model_spec"] == {"name": NAME, "signature_name": "", "version": "1"}
    info = response["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert info["inputs"]["images"]["dtype"] == "DT_FLOAT"
    assert info["method_name"] == "tensorflow/serving/predict"


def test_the_status_over_both_protocols(server):
    available = {
        "version": "1",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    for path in (f"/v1/models/{NAME}", f"/v1/models/{NAME}/versions/1"):
        status, response = server.http(path)
        assert status == 200 and available in response["model_version_status"]
    stubs = protos.load("tensorflow_serving.apis.model_service_pb2_grpc")
    messages = protos.load("tensorflow_serving.apis.get_model_status_pb2")
    request = messages.GetModelStatusRequest()
    request.model_spec.name = NAME
    response = stubs.ModelServiceStub(server.channel).GetModelStatus(request, timeout=60)
    assert (1, 30) in [(each.version, each.state) for each in response.model_version_status]


def test_rest_takes_rows_and_columns(server, answer):
    ids, _ = answer(images())
    path = f"/v1/models/{NAME}/versions/1:predict"
    values = images().tolist()
    for body, key in (
        ({"instances": values}, "predictions"),
        ({"instances": [{"images": each} for each in values]}, "predictions"),
        ({"inputs": values}, "outputs"),
        ({"inputs": {"images": values}, "signature_name": "serving_default"}, "outputs"),
    ):
        status, response = server.http(path, body)
        assert status == 200 and response.keys() == {key}
        assert np.mean(np.array(response[key]) == ids) > 0.999
    file = rest.encode(png(images()[0].astype(np.uint8)))
    for row in (file, {"image_bytes": file}):
        body = {"signature_name": "encoded_image", "instances": [row]}
        status, response = server.http(path, body)
        assert status == 200
        mask = Image.open(io.BytesIO(base64.b64decode(response["predictions"][0]["b64"])))
        assert np.mean(np.asarray(mask) == ids[0]) > 0.999
    status, response = server.http(path, {"signature_name": "metadata", "inputs": {}})
    assert status == 200 and json.loads(response["outputs"])["class_names"][1] == "sky"


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (f"/v1/models/{NAME}:predict", b"{", 400, "JSON Parse error"),
        (f"/v1/models/{NAME}:predict", b"[" * 100_000, 400, "JSON Parse error"),
        (f"/v1/models/{NAME}:predict", b"\xff\xfe\x00junk", 400, "JSON Parse error"),
        (f"/v1/models/{NAME}:predict", [1], 400, "must be a JSON object"),
        (f"/v1/models/{NAME}:predict", {}, 400, "either 'instances' or 'inputs'"),
        (f"/v1/models/{NAME}:predict", {"inputs": {"a": 1}}, 400, "inputs of serving_default must"),
        (f"/v1/models/{NAME}:predict", {"instances": [[1], [1, 2]]}, 400, "cannot be read as"),
        (f"/v1/models/{NAME}:predict", {"instances": ["x"]}, 400, "cannot be read as float32"),
        (f"/v1/models/{NAME}:predict", {"instances": [1.0]}, 400, "images must have shape"),
        (
            f"/v1/models/{NAME}:predict",
            {"instances": [{"b64": "%"}], "signature_name": "encoded_image"},
            400,
            "b64 is no base64",
        ),
        (
            f"/v1/models/{NAME}:predict",
            {"instances": [1], "signature_name": "none"},
            400,
            'name: "none" not found',
        ),
        ("/v1/models/other:predict", {"instances": [1]}, 404, "Servable not found"),
        (f"/v1/models/{NAME}/versions/9:predict", {"instances": [1]}, 404, "Specific version 9"),
        (f"/v1/models/{NAME}/versions/9", None, 404, "Could not find any versions"),
        (f"/v1/models/{NAME}:classify", {}, 400, "Malformed request"),
        ("/", None, 400, "Malformed request"),
    ],
)
def test_wrong_rest_requests_are_one_error_each(server, path, body, status, message):
    found, response = server.http(path, body)
    assert (found, message in response["error"]) == (status, True), response


@pytest.mark.parametrize(
    ("signature", "inputs", "code", "message"),
    [
        ("none", {}, "FAILED_PRECONDITION", '"none" not found'),
        ("labels", {}, "INVALID_ARGUMENT", "inputs must be"),
        ("labels", {"class_ids": np.zeros(2)}, "INVALID_ARGUMENT", "must be int32, but is float64"),
        ("serving_default", {"images": np.zeros(2, "f")}, "INVALID_ARGUMENT", "must have shape"),
        (
            "serving_default",
            {"images": np.full((1, *SIZE, 3), np.nan, "f")},
            "INVALID_ARGUMENT",
            "images must be finite",
        ),
        (
            "serving_default",
            {"images": np.zeros((1, 1, 1, 3), "f")},
            "INVALID_ARGUMENT",
            "must each be at least",
        ),
    ],
)
def test_wrong_grpc_requests_are_one_error_each(server, signature, inputs, code, message):
    with pytest.raises(grpc.RpcError) as caught:
        server.predict(signature, **inputs)
    assert caught.value.code().name == code
    assert message in caught.value.details()


def test_a_tensor_that_declares_more_than_it_holds_is_refused(server):
    request = protos.load("tensorflow_serving.apis.predict_pb2").PredictRequest()
    protos.fill_inputs(request, "serving_default", {"images": images(1)})
    request.model_spec.name = NAME
    proto = request.inputs["images"]
    for shape, content in (((2, *SIZE, 3), None), ((1, 30_000, 30_000, 3), b""), ((-1,), None)):
        del proto.tensor_shape.dim[:]
        for side in shape:
            proto.tensor_shape.dim.add(size=side)
        if content is not None:
            proto.tensor_content = content
        with pytest.raises(grpc.RpcError) as caught:
            server.prediction.Predict(request, timeout=60)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


class Stream:
    """A stream of requests from two threads, each with its version and the first label."""

    def __init__(self, server):
        self.server = server
        self.found = []
        self.errors = []
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self.run, daemon=True) for _ in range(2)]

    def run(self):
        while not self.stopped.is_set():
            try:
                outputs, version = self.server.predict("labels", class_ids=np.zeros(1, np.int32))
                self.server.predict("serving_default", images=images(1))
                self.found.append((version, outputs["names"][0].decode()))
                time.sleep(0.02)  # what is loaded meanwhile needs the cores too
            except Exception as error:
                self.errors.append(error)

    def wait_for(self, version):
        end = time.monotonic() + SWITCH_SECONDS
        while not self.found or self.found[-1][0] != version:
            assert time.monotonic() < end, f"version {version} is not served: {self.found[-1:]}"
            assert not self.errors
            time.sleep(0.05)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()


def test_no_request_is_lost_by_a_roll_over_and_a_roll_back(server, base):
    with Stream(server) as stream:
        stream.wait_for(1)
        (base.parent / "2").rename(base / "2")
        try:
            stream.wait_for(2)
        finally:
            (base / "2").rename(base.parent / "2")
        stream.wait_for(1)
    assert not stream.errors
    assert set(stream.found) == {(1, "road"), (2, "street")}
    switches = [b for a, b in zip(stream.found, stream.found[1:], strict=False) if a[0] != b[0]]
    assert 2 <= len(switches) <= 6  # two threads may interleave around each of two switches
    end = time.monotonic() + SWITCH_SECONDS
    while len(server.workers()) > 1:  # the version that is not served has ended
        assert time.monotonic() < end
        time.sleep(0.1)


# ---- hostile files


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def declaring(width, height):
    """A PNG of a few bytes that declares a size."""

    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def photograph():
    return Image.fromarray(images(1)[0].astype(np.uint8))


def hostile_files():
    """Name, file, and the message of its refusal, or None where it is a good image."""
    rgb = photograph()
    grey = rgb.convert("L")
    jpeg = encode(rgb, "JPEG")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    one = rgb.crop((0, 0, 1, 1))
    return [
        ("empty", b"", "must hold a PNG or JPEG"),
        ("junk", bytes(range(256)) * 20, "must hold a PNG or JPEG"),
        ("truncated JPEG", jpeg[: len(jpeg) // 2], "Invalid JPEG"),
        ("truncated PNG", encode(rgb, "PNG")[:-40], "Invalid PNG"),
        ("16 bits", encode(deep, "PNG"), None),
        ("grey", encode(grey, "PNG"), None),
        ("grey JPEG", encode(grey, "JPEG"), None),
        ("RGBA", encode(rgb.convert("RGBA"), "PNG"), None),
        ("CMYK", encode(rgb.convert("CMYK"), "JPEG"), None),
        (
            "animated GIF",
            encode(rgb, "GIF", save_all=True, append_images=[grey]),
            "must hold a PNG or JPEG",
        ),
        (
            "animated PNG",
            encode(rgb, "PNG", save_all=True, append_images=[rgb.rotate(90)]),
            "must be a single image",
        ),
        ("1x1", encode(one, "PNG"), "must each be at least"),
        ("1x1 JPEG", encode(one, "JPEG"), "must each be at least"),
        ("30000x30000", declaring(30_000, 30_000), "must have at most"),
    ]


def mask_over(server, protocol, *files):
    """The masks of a batch, or the text of the error, which must be the client's fault."""
    if protocol == "grpc":
        try:
            outputs, _ = server.predict("encoded_image", image_bytes=strings(*files))
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
            return error.details()
        found = list(outputs["mask_png_bytes"])
    else:
        body = {"signature_name": "encoded_image", "instances": [rest.encode(f) for f in files]}
        status, response = server.http(f"/v1/models/{NAME}:predict", body)
        if status != 200:
            assert status == 400, response
            return response["error"]
        found = [base64.b64decode(each["b64"]) for each in response["predictions"]]
    return [np.asarray(Image.open(io.BytesIO(mask))) for mask in found]


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_a_hostile_file_is_an_error_of_its_request_only(server, protocol):
    workers = server.workers()
    good = encode(photograph(), "PNG")
    for name, file, message in hostile_files():
        found = mask_over(server, protocol, file)
        if message is None:
            assert [mask.shape for mask in found] == [SIZE], name
        else:
            assert isinstance(found, str) and message in found, (name, found)
    # A good image beside a bad one is refused with it, and the message names the bad one.
    assert "[image] [1] [of a batch" in mask_over(server, protocol, good, b"junk", good)
    assert [mask.shape for mask in mask_over(server, protocol, good, good)] == [SIZE, SIZE]
    assert server.workers() == workers


def mutated(rng, file):
    """A file with some bytes changed, cut out, doubled, or its end cut off."""
    data = bytearray(file)
    for _ in range(int(rng.integers(1, 6))):
        place = int(rng.integers(len(data)))
        end = place + int(rng.integers(1, 40))
        kind = rng.integers(5)
        if kind == 0:
            data[place] = int(rng.integers(256))
        elif kind == 1:
            data[place] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            del data[place:end]
        elif kind == 3:
            data[place:place] = data[place:end]
        else:
            data[place:end] = rng.bytes(end - place)
        if not data:
            break
    return bytes(data)


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_files_do_not_end_the_process(server, count):
    workers = server.workers()
    rng = np.random.default_rng(count)
    rgb = photograph()
    files = [encode(rgb, "PNG"), encode(rgb, "JPEG"), encode(rgb, "JPEG", progressive=True)]
    files.append(encode(rgb.quantize(16), "PNG"))
    refused = 0
    for index in range(count):
        found = mask_over(server, "grpc", mutated(rng, files[index % len(files)]))
        refused += isinstance(found, str)
    assert count / 10 < refused < count  # some mutations leave a file that can be read
    assert mask_over(server, "grpc", files[0])[0].shape == SIZE
    assert server.workers() == workers


def resident_bytes(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


@pytest.mark.slow
def test_memory_does_not_grow_over_5000_requests(server):
    rng = np.random.default_rng(0)
    good, label = encode(photograph(), "PNG"), np.zeros(1, np.int32)
    used = []
    for index in range(5000):
        if index % 1000 == 500:
            pids = [server.process.pid, *server.workers()]
            used.append([resident_bytes(pid) for pid in pids])
        if index % 2:
            mask_over(server, "grpc", mutated(rng, good) if index % 4 == 1 else good)
        else:
            server.predict("labels", class_ids=label)
    print("resident MiB of front and worker:", [[n // 2**20 for n in row] for row in used])
    for first, last in zip(used[0], used[-1], strict=True):
        assert last < first + 48 * 2**20


# ---- client and load test


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    rgb = photograph()
    rgb.save(folder / "plain.png")
    rgb.save(folder / "photo.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    rgb.save(folder / "turned.jpg", quality=95, exif=exif)
    rgb.convert("CMYK").save(folder / "print.jpg", quality=95)
    rgb.save(folder / "scan.tif")
    return folder


@pytest.fixture(scope="module")
def predicted(model_file, photographs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predicted")
    predict(
        config.PredictConfig(model=str(model_file), image=str(photographs), output_dir=str(folder))
    )
    return folder


def client_config(server, protocol, **changes):
    address = server.grpc if protocol == "grpc" else server.rest
    return {"server": address, "protocol": protocol, "model_name": NAME, **changes}


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_the_client_writes_what_predict_writes(server, photographs, predicted, protocol, tmp_path):
    (tmp_path / SETTINGS_FILE).write_text("of a prediction on Ray, which is overwritten")
    result = segment(
        config.ServingClientConfig(
            **client_config(server, protocol), image=str(photographs), output_dir=str(tmp_path)
        )
    )
    assert not result["failures"] and result["num_images"] == 5
    names = sorted(path.name for path in predicted.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == names and len(names) == 10
    for name in names:
        found, expected = (np.asarray(Image.open(each / name)) for each in (tmp_path, predicted))
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype), name
        assert np.mean(found == expected) > 0.999, name


def test_the_command_names_what_failed_and_writes_the_others(server, photographs, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(photographs, folder)
    (folder / "broken.png").write_bytes(b"junk")
    photograph().resize((20, 20)).save(folder / "tiny.png")
    flags = [f"--server={server.grpc}", f"--image={folder}", f"--output_dir={tmp_path / 'out'}"]
    done = subprocess.run(
        [sys.executable, "-m", "export.serving.client", *flags, f"--model_name={NAME}", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and json.loads(done.stdout)["num_images"] == 5
    (line,) = done.stderr.splitlines()
    assert "2 images could not be segmented" in line
    assert "broken.png (it is no image" in line and "[height and width must each" in line
    assert len(list((tmp_path / "out").iterdir())) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"server": "localhost:1"}, r"server=localhost:1 has not responded within.*its port for"),
        ({"model_name": "other"}, r"\(NOT_FOUND\): Servable not found|\(HTTP 404\): Servable"),
        ({"model_version": 77}, "Specific version 77"),
    ],
)
@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_what_a_client_says_of_a_server_that_does_not_serve(server, protocol, change, message):
    options = client_config(server, protocol, deadline_seconds=0.7) | change
    with Client(**options) as client, pytest.raises(ServerError, match=message):
        client.metadata()


def test_a_client_needs_host_and_port():
    for address in ("localhost", ":8500", "localhost:0", "localhost:x", "localhost:99999"):
        with pytest.raises(UserError, match="must be HOST:PORT"):
            Client(address)
    with pytest.raises(UserError, match="protocol=soap must be one of grpc, rest"):
        Client("localhost:1", "soap")


class Busy(http.server.BaseHTTPRequestHandler):
    """Responds with the statuses of a list, one after the other."""

    statuses = []

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        status = self.statuses.pop(0)
        body = b'{"outputs": "{}"}' if status == 200 else b'{"error": "not now"}'
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def busy():
    Busy.statuses = []
    server = http.server.HTTPServer(("127.0.0.1", 0), Busy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_busy_server_is_asked_again_until_the_deadline(busy):
    with Client(busy, "rest", deadline_seconds=30) as client:
        Busy.statuses[:] = [503, 429, 200]
        assert client.metadata() == {} and not Busy.statuses
        Busy.statuses[:] = [400, 200]
        with pytest.raises(ServerError, match=r"refuses the request \(HTTP 400\): not now"):
            client.metadata()
        assert Busy.statuses == [200]
    Busy.statuses[:] = [503] * 1000
    with Client(busy, "rest", deadline_seconds=0.6) as client:
        start = time.monotonic()
        with pytest.raises(ServerError, match=r"deadline_seconds=0.6 \(not now\)"):
            client.metadata()
        assert time.monotonic() - start < 20 and len(Busy.statuses) > 980


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_the_load_test_measures_every_request(server, protocol):
    options = client_config(server, protocol, requests=12, concurrency=3)
    found = load_test(config.LoadTestConfig(**options, input_size=SIZE))
    assert (found["requests"], found["errors"], found["concurrency"]) == (12, 0, 3)
    assert 0 < found["p50_seconds"] <= found["p95_seconds"] <= found["p99_seconds"] < 60
    assert found["images_per_second"] == pytest.approx(12 / found["elapsed_seconds"])
    assert found["first_request_cold_seconds"] > 0 < found["first_request_warm_seconds"]
    json.dumps(found, allow_nan=False)


def test_a_load_test_is_bounded_and_counts_errors(server, monkeypatch):
    found = load_test(
        config.LoadTestConfig(
            **client_config(server, "grpc", requests=10**6, concurrency=2),
            input_size=SIZE,
            max_seconds=0.5,
        )
    )
    assert 0 < found["requests"] < 10**5 and found["elapsed_seconds"] < 60
    calls = iter(range(100))
    predict_one = Client.predict

    def failing(self, image):
        if next(calls) % 4 == 3:
            raise ServerError("no luck")
        return predict_one(self, image)

    monkeypatch.setattr(Client, "predict", failing)
    options = client_config(server, "grpc", requests=10, concurrency=1)
    found = load_test(config.LoadTestConfig(**options, input_size=SIZE))
    assert (found["requests"], found["errors"]) == (10, 3)
    assert found["error_messages"] == {"no luck": 3}
    with pytest.raises(ServerError, match="must have at most"):
        load_test(config.LoadTestConfig(**options, input_size=(301, 300)))


# ---- versions


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        ("", {7}),
        ("latest {}", {7}),
        ("latest { num_versions: 2 }", {3, 7}),
        ("all {}", {1, 3, 7}),
        ("specific { versions: 1 versions: 3 versions: 9 }", {1, 3}),
    ],
)
def test_which_versions_a_policy_asks_for(policy, wanted, tmp_path):
    file = tmp_path / "models.config"
    file.write_text(
        'model_config_list { config { name: "x" base_path: "y" '
        f"model_version_policy {{ {policy} }} }} }}"
    )
    (model,) = versions.read_config(str(file)).model_config_list.config
    there = dict.fromkeys((1, 3, 7), tmp_path)
    assert versions._wanted(model.model_version_policy, there) == wanted


def test_a_configuration_that_is_wrong_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        versions.read_config(str(tmp_path / "none"))
    (tmp_path / "typo").write_text("model_config_list { config { nmae: 'x' } }")
    with pytest.raises(UserError, match=r"no ModelServerConfig: .*nmae"):
        versions.read_config(str(tmp_path / "typo"))


@pytest.mark.slow
def test_two_versions_at_once_by_number_and_by_label(base, tmp_path):
    for name in ("1", "2"):
        source = base / "1" if name == "1" else base.parent / "2"
        shutil.copytree(source, tmp_path / "served" / name)
    (tmp_path / "served" / "3").mkdir()
    (tmp_path / "served" / "3" / "saved_model.pb").write_bytes(b"junk")
    file = tmp_path / "models.config"
    policy = "specific { versions: 1 versions: 2 versions: 3 }"
    labels = "".join(
        f'version_labels {{ key: "{key}" value: {value} }}'
        for key, value in {"stable": 1, "canary": 2}.items()
    )
    file.write_text(
        f'model_config_list {{ config {{ name: "{NAME}" base_path: "{tmp_path}/served" '
        f"model_version_policy {{ {policy} }} {labels} }} }}"
    )
    server = Server(f"--model_config_file={file}")
    try:
        zero = np.zeros(1, np.int32)
        for which in ({"version": 1}, {"label": "stable"}):
            outputs, version = server.predict("labels", **which, class_ids=zero)
            assert (version, outputs["names"][0]) == (1, b"road")
        for which in ({"version": 2}, {"label": "canary"}, {}):
            outputs, version = server.predict("labels", **which, class_ids=zero)
            assert (version, outputs["names"][0]) == (2, b"street")
        body = {"signature_name": "labels", "instances": [0]}
        status, response = server.http(f"/v1/models/{NAME}/labels/stable:predict", body)
        assert (status, response) == (200, {"predictions": ["road"]})
        status, response = server.http(f"/v1/models/{NAME}")
        states = {each["version"]: each for each in response["model_version_status"]}
        assert {key: each["state"] for key, each in states.items()} == {
            "1": "AVAILABLE",
            "2": "AVAILABLE",
            "3": "END",  # it cannot be loaded, which keeps no other from being served
        }
        assert states["3"]["status"]["error_message"]
    finally:
        server.close()


def test_a_worker_that_dies_is_replaced(server):
    (worker,) = server.workers()
    os.kill(worker, signal.SIGKILL)
    end = time.monotonic() + SWITCH_SECONDS
    while True:
        assert time.monotonic() < end
        with contextlib.suppress(grpc.RpcError):
            server.predict("labels", class_ids=np.zeros(1, np.int32))
            if server.workers() != [worker]:
                break
        time.sleep(0.1)
    assert server.process.poll() is None
