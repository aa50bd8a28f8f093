"""Segments images by a server: TensorFlow Serving, or the stand-in.

    python -m export.serving.client --server=localhost:8500 --image=photos --output_dir=results

writes STEM_mask.png and STEM_overlay.png as `python -m auto_deeplab_tf.predict` does. Each image is
one request of the signature encoded_image; a server that is busy or restarts is asked again until
the deadline. An image that fails does not keep the others from being segmented: it is named at the
end, and the exit code is 1. In Python:

    with Client("localhost:8500") as client:
        class_ids = client.predict(pathlib.Path("photo.jpg").read_bytes())
"""

from __future__ import annotations

import base64
import concurrent.futures
import http.client
import io
import json
import pathlib
import random
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from PIL import ExifTags, Image

from auto_deeplab_tf import cli, config, image_results
from auto_deeplab_tf.data import image_files
from auto_deeplab_tf.errors import RunError, UserError
from export import common
from export.serving import protos

cli.define(config.ServingClientConfig)

JPEG_MAGIC, PNG_MAGIC = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
SIGNATURE = "encoded_image"
# What a server says that may accept the request a moment later.
_RETRIED_CODES = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED")
_RETRIED_STATUS = (429, 502, 503)
_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 2.0


class ServerError(RunError):
    """A request that failed: the server's message, or that there is no server."""


class _Busy(Exception):
    """A failure that is tried again."""


class Client:
    """Requests to one model of a server; may be used from several threads at once.

    Args:
        server: "HOST:PORT" of the protocol.
        protocol: "grpc" or "rest".
        model_name: Name of the model on the server.
        model_version: Its version; None: the server's choice.
        deadline_seconds: Seconds until a request is given up, with all its retries.

    Raises:
        UserError: For a server that is not HOST:PORT, or another protocol.
        MissingExtraError: If grpcio or tensorflow-serving-api is not installed.
    """

    def __init__(
        self,
        server: str,
        protocol: str = "grpc",
        model_name: str = config.DEFAULT_MODEL_NAME,
        model_version: int | None = None,
        deadline_seconds: float = 60.0,
    ) -> None:
        host, _, port = server.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise UserError(f"server={server} must be HOST:PORT, such as localhost:8500.")
        if protocol not in config.PROTOCOLS:
            raise UserError(f"protocol={protocol} must be one of {', '.join(config.PROTOCOLS)}.")
        self.server = server
        self.model_name = model_name
        self.model_version = model_version
        self.deadline_seconds = deadline_seconds
        kind = _Grpc if protocol == "grpc" else _Rest
        self._transport = kind(server, model_name, model_version)

    @classmethod
    def of(cls, options: config.ServerConfig) -> Client:
        """Returns the client of the server that a command's options name."""
        return cls(
            options.server,
            options.protocol,
            options.model_name,
            options.model_version,
            options.deadline_seconds,
        )

    def predict(self, image_bytes: bytes) -> np.ndarray:
        """Segments one encoded image.

        Args:
            image_bytes: A PNG or JPEG file.

        Returns:
            Class ids, uint8 or uint16 [H, W].

        Raises:
            ServerError: If the server refuses the image, or has not responded by the deadline.
        """
        (mask,) = self.call(SIGNATURE, {"image_bytes": [image_bytes]})
        try:
            with Image.open(io.BytesIO(mask)) as opened:
                class_ids = np.asarray(opened)
        except (OSError, TypeError) as error:
            raise ServerError(
                f"server={self.server} does not return PNG masks: is {self.model_name} a model of "
                "export.saved_model?"
            ) from error
        return class_ids.astype(np.uint8 if class_ids.dtype == np.uint8 else np.uint16)

    def metadata(self) -> dict[str, Any]:
        """Returns what the model says of itself: class names, palette, image size, and more.

        Raises:
            ServerError: If the server does not have it.
        """
        text = self.call("metadata", {})
        try:
            found: dict[str, Any] = json.loads(text)
        except (ValueError, TypeError) as error:
            raise ServerError(
                f"server={self.server}: the signature metadata of {self.model_name} is no JSON."
            ) from error
        return found

    def call(self, signature: str, inputs: Mapping[str, list[bytes]]) -> Any:
        """Sends one request, again while the server is busy, until the deadline.

        Args:
            signature: Name of a signature with one output of strings.
            inputs: Lists of strings by name.

        Returns:
            The output: `bytes`, or a list of them.

        Raises:
            ServerError: If the server refuses it, or has not responded by the deadline.
        """
        end = time.monotonic() + self.deadline_seconds
        wait = _FIRST_WAIT_SECONDS
        reason = "no response"
        while (left := end - time.monotonic()) > 0:
            try:
                return self._transport.call(signature, inputs, left)
            except _Busy as error:
                reason = " ".join(str(error).split())
            # Clients that were turned away together do not come back together.
            pause = random.uniform(0.5, 1.0) * wait
            if time.monotonic() + pause >= end:
                break
            time.sleep(pause)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
        raise ServerError(
            f"server={self.server} has not responded within deadline_seconds="
            f"{self.deadline_seconds:g} ({reason}): is it running, and is this its port for "
            f"{self._transport.name}?"
        )

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Grpc:
    name = "gRPC"

    def __init__(self, server: str, model_name: str, model_version: int | None) -> None:
        self._grpc = common.require("grpc")
        self._messages = protos.load("tensorflow_serving.apis.predict_pb2")
        self._spec = self._messages.PredictRequest().model_spec
        self._spec.name = model_name
        if model_version is not None:
            self._spec.version.value = model_version
        self._channel = self._grpc.insecure_channel(server, options=protos.GRPC_OPTIONS)
        self._method = self._channel.unary_unary(
            "/tensorflow.serving.PredictionService/Predict",
            lambda request: request.SerializeToString(),
            self._messages.PredictResponse.FromString,
        )

    def call(self, signature: str, inputs: Mapping[str, list[bytes]], seconds: float) -> Any:
        request = self._messages.PredictRequest()
        request.model_spec.CopyFrom(self._spec)
        arrays = {}
        for key, values in inputs.items():
            arrays[key] = np.empty(len(values), object)
            arrays[key][:] = values
        protos.fill_inputs(request, signature, arrays)
        try:
            response = self._method(request, timeout=seconds)
        except self._grpc.RpcError as error:
            code = error.code().name
            if code in _RETRIED_CODES:
                raise _Busy(error.details()) from error
            if code == "DEADLINE_EXCEEDED":
                raise _Busy("no response") from error
            raise _refused(code, error.details()) from error
        (output,) = response.outputs.values()
        array = protos.to_array(output)
        return array.item() if array.ndim == 0 else list(array)

    def close(self) -> None:
        self._channel.close()


class _Rest:
    name = "REST"

    def __init__(self, server: str, model_name: str, model_version: int | None) -> None:
        version = "" if model_version is None else f"/versions/{model_version}"
        self._path = f"/v1/models/{model_name}{version}:predict"
        self._server = server
        self._local = threading.local()  # a connection carries one request at a time
        self._connections: list[http.client.HTTPConnection] = []

    def call(self, signature: str, inputs: Mapping[str, list[bytes]], seconds: float) -> Any:
        values = {
            key: [{"b64": base64.b64encode(each).decode()} for each in strings]
            for key, strings in inputs.items()
        }
        body = json.dumps({"signature_name": signature, "inputs": values}).encode()
        status, content = self._post(body, seconds)
        try:
            response = json.loads(content)
        except ValueError:
            response = None
        if not isinstance(response, dict):
            response = {"error": f"HTTP status {status}, and no JSON: is this a REST port?"}
        if status in _RETRIED_STATUS:
            raise _Busy(response.get("error", f"HTTP status {status}"))
        if status != 200 or "outputs" not in response:
            raise _refused(f"HTTP {status}", str(response.get("error", response)))
        return _decoded(response["outputs"])

    def _post(self, body: bytes, seconds: float) -> tuple[int, bytes]:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = http.client.HTTPConnection(self._server)
            self._connections.append(connection)
        connection.timeout = seconds
        if connection.sock is not None:
            connection.sock.settimeout(seconds)
        try:
            connection.request("POST", self._path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        except http.client.BadStatusLine as error:
            connection.close()
            # An empty one: the server ended the connection, as it does when it restarts.
            closed = isinstance(error, http.client.RemoteDisconnected)
            raise _Busy("the connection was closed" if closed else "no HTTP response") from error
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise _Busy(str(error) or type(error).__name__) from error

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    if isinstance(value, dict) and value.keys() == {"b64"}:
        return base64.b64decode(value["b64"])
    return value.encode() if isinstance(value, str) else value


def _refused(code: str, message: str | None) -> ServerError:
    text = " ".join((message or "no message").split())
    # TensorFlow appends the node of the graph.
    text = text.partition(" [[{{")[0]
    return ServerError(f"the server refuses the request ({code}): {text[:500]}")


def encoded(path: pathlib.Path, image: np.ndarray, channels: int) -> bytes:
    """Returns the bytes that are sent for an image file.

    A JPEG or PNG that the signature decodes as `predict` does is sent as it is, any other as PNG.

    Args:
        path: The file.
        image: What `predict` reads from it: [H, W, channels], 0..255.
        channels: 1 or 3.
    """
    content = path.read_bytes()
    jpeg, png = content.startswith(JPEG_MAGIC), content.startswith(PNG_MAGIC)
    if jpeg or (png and image.dtype == np.uint8 and b"eXIf" not in content and channels == 3):
        with Image.open(io.BytesIO(content)) as opened:
            if (png or opened.mode in ("L", "RGB")) and _is_turned_alike(opened):
                return content
    return image_files.encode_png(np.rint(image).astype(np.uint8))


def _is_turned_alike(image: Image.Image) -> bool:
    """Whether the signature turns an image as `predict` does: it does not look into XMP."""
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    tag = ExifTags.Base.Orientation
    return bool(exif.get(tag, 1) == image.getexif().get(tag, 1))


def segment(options: config.ServingClientConfig) -> dict[str, Any]:
    """Segments as the command does; returns what it wrote, and the images that failed.

    Raises:
        ServerError: If the server does not respond, or does not have the model.
        MissingFileError: If there is no image.
        UserError: For images whose results would overwrite one another.
    """
    paths = image_results.find_images(options.image)
    output_dir = pathlib.Path(options.output_dir)
    image_results.check_names(paths, output_dir)
    with Client.of(options) as client:
        metadata = client.metadata()
        num_classes = len(metadata["class_names"])
        channels = common.input_channels(metadata)
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / image_results.SETTINGS_FILE).unlink(missing_ok=True)

        def one(path: pathlib.Path) -> dict[str, Any]:
            start = time.monotonic()
            image = image_files.read_photograph(path.read_bytes(), channels)
            class_ids = client.predict(encoded(path, image, channels))
            if class_ids.shape != image.shape[:2]:
                raise UserError(
                    f"the mask has another size, {class_ids.shape}, than the image, "
                    f"{image.shape[:2]}"
                )
            mask, drawing = image_results.write_results(
                image, class_ids, num_classes, metadata.get("palette"), output_dir, path
            )
            return {
                "image": str(path),
                "mask": str(mask),
                "overlay": str(drawing),
                "size": list(image.shape[:2]),
                "seconds": time.monotonic() - start,
            }

        written, failures = [], []
        with concurrent.futures.ThreadPoolExecutor(options.concurrency) as pool:
            for path, future in [(path, pool.submit(one, path)) for path in paths]:
                try:
                    written.append(future.result())
                except (OSError, ValueError, ServerError) as error:
                    failures.append(f"{path} ({' '.join(str(error).split())})")
    return {
        "server": options.server,
        "model_name": options.model_name,
        "output_dir": options.output_dir,
        "num_images": len(written),
        "images": written,
        "failures": failures,
        "left_out": image_results.left_out(pathlib.Path(options.image)),
    }


def main() -> None:
    """Segments as the flags say and prints what was written."""
    options = cli.read(config.ServingClientConfig)
    result = segment(options)
    count = len(result["images"]) + len(result["failures"])
    if options.json:
        cli.print_json(result)
    else:
        print(
            f"{len(result['images'])} of {count} images: masks and overlays in {options.output_dir}"
        )
    if result["failures"]:
        sys.stdout.flush()
        raise UserError(
            f"{len(result['failures'])} images could not be segmented: "
            f"{'; '.join(result['failures'])}"
        )


if __name__ == "__main__":
    cli.run(main)
