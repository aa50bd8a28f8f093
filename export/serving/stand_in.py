"""A stand-in for tensorflow_model_server: its protocols, for tests and development.

    python -m export.serving.stand_in --model_base_path=served --port=8500 --rest_api_port=8501

Two kinds of processes: this front, with the messages of TensorFlow Serving over gRPC and HTTP, and
for each version a worker that runs it through TensorFlow's C API. It answers on the local machine
only, and its speed says nothing about TensorFlow Serving's.
"""

from __future__ import annotations

import concurrent.futures
import http.server
import json
import re
import socketserver
import threading
import time
from typing import Any

from auto_deeplab_tf import cli, config
from auto_deeplab_tf.errors import MissingFileError, UserError
from export import common
from export.serving import protos, rest, versions
from export.serving.native import INVALID_ARGUMENT, NativeError

cli.define(config.StandInConfig)

HOST = "127.0.0.1"
MAX_BODY_BYTES = 256 * 2**20
_CONNECTIONS = 64
_SERVING = "tensorflow_serving.apis."
_STATES = {20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}
# HTTP status for codes of gRPC.
_HTTP = {3: 400, 4: 504, 5: 404, 8: 429, 9: 400, 11: 400, 12: 501, 14: 503}
_PATH = re.compile(
    r"/v1/models/(?P<name>[^/:]+)(/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
    r"(?P<method>/metadata|:[a-z]+)?"
)


class StandIn:
    """The front: both servers, and the thread that looks for versions.

    Args:
        options: The settings; `port` and `rest_api_port` may be 0.

    Attributes:
        port: Port of gRPC.
        rest_port: Port of REST.
        models: The versions behind it.
    """

    def __init__(self, options: config.StandInConfig) -> None:
        source: Any = options.model_config_file
        if source is None:
            source = versions.make_config(options.model_name, str(options.model_base_path))
        self._options = options
        self.models = versions.Models(source, options.intra_op_threads, options.enable_model_warmup)
        self._stopped = threading.Event()
        self._grpc, self.port = _grpc_server(self.models, options.port)
        try:
            self._http = _HttpServer((HOST, options.rest_api_port), _Handler)
        except OSError as error:
            raise UserError(f"rest_api_port={options.rest_api_port}: {error.strerror}") from error
        self._http.models = self.models
        self.rest_port: int = self._http.server_address[1]

    def start(self) -> None:
        """Loads the versions that are there, then accepts requests."""
        try:
            self.models.poll()
        except BaseException:
            self.models.close()
            raise
        self._grpc.start()
        for target in (self._http.serve_forever, self._poll):
            threading.Thread(target=target, daemon=True).start()

    def stop(self) -> None:
        """Ends the servers and the workers."""
        self._stopped.set()
        self._grpc.stop(grace=1.0).wait()
        self._http.shutdown()
        self._http.server_close()
        self.models.close()

    def _poll(self) -> None:
        while not self._stopped.wait(self._options.file_system_poll_wait_seconds):
            try:
                self.models.poll()
            except (UserError, MissingFileError, OSError) as error:
                cli_line = " ".join(str(error).split())
                print(f"configuration not read: {cli_line}", flush=True)


# ---- gRPC


def _grpc_server(models: versions.Models, port: int) -> tuple[Any, int]:
    grpc = common.require("grpc")
    codes = {code.value[0]: code for code in grpc.StatusCode}

    def handler(method: Any, request: Any) -> Any:
        def call(message: Any, context: Any) -> Any:
            try:
                return method(models, message, context.time_remaining())
            except NativeError as error:
                context.abort(codes[error.code], error.message)
            except UserError as error:
                context.abort(codes[INVALID_ARGUMENT], str(error))

        return grpc.unary_unary_rpc_method_handler(
            call, request.FromString, lambda response: response.SerializeToString()
        )

    predict = protos.load(f"{_SERVING}predict_pb2").PredictRequest
    metadata = protos.load(f"{_SERVING}get_model_metadata_pb2").GetModelMetadataRequest
    status = protos.load(f"{_SERVING}get_model_status_pb2").GetModelStatusRequest
    services = {
        "PredictionService": {
            "Predict": handler(_predict, predict),
            "GetModelMetadata": handler(_metadata, metadata),
        },
        "ModelService": {"GetModelStatus": handler(_status, status)},
    }
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(_CONNECTIONS), options=protos.GRPC_OPTIONS
    )
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(f"tensorflow.serving.{name}", methods)
            for name, methods in services.items()
        ]
    )
    try:
        return server, server.add_insecure_port(f"{HOST}:{port}")
    except RuntimeError as error:
        raise UserError(f"port={port} cannot be used ({error}); name another.") from error


def _use(models: versions.Models, spec: Any) -> Any:
    version = spec.version.value if spec.HasField("version") else None
    return models.use(spec.name, version, spec.version_label)


def _predict(models: versions.Models, request: Any, seconds: float | None) -> Any:
    with _use(models, request.model_spec) as version:
        name = request.model_spec.signature_name or "serving_default"
        inputs = {key: protos.to_array(value) for key, value in request.inputs.items()}
        outputs = version.predict(name, inputs, seconds)
    unknown = set(request.output_filter) - outputs.keys()
    if unknown:
        raise NativeError(INVALID_ARGUMENT, f"output tensor alias not found: {min(unknown)}")
    response = protos.load(f"{_SERVING}predict_pb2").PredictResponse()
    _fill_spec(response.model_spec, request.model_spec.name, version.number)
    response.model_spec.signature_name = name
    for key in request.output_filter or outputs:
        protos.from_array(outputs[key], response.outputs[key])
    return response


def _metadata(models: versions.Models, request: Any, seconds: float | None) -> Any:
    if list(request.metadata_field) != ["signature_def"]:
        raise NativeError(INVALID_ARGUMENT, "metadata_field must be signature_def")
    messages = protos.load(f"{_SERVING}get_model_metadata_pb2")
    with _use(models, request.model_spec) as version:
        found = messages.SignatureDefMap()
        for name, signature in version.signatures.items():
            found.signature_def[name].ParseFromString(signature.proto)
    response = messages.GetModelMetadataResponse()
    _fill_spec(response.model_spec, request.model_spec.name, version.number)
    response.metadata["signature_def"].Pack(found)
    return response


def _status(models: versions.Models, request: Any, seconds: float | None) -> Any:
    spec = request.model_spec
    response = protos.load(f"{_SERVING}get_model_status_pb2").GetModelStatusResponse()
    version = spec.version.value if spec.HasField("version") else None
    for number, (state, message) in models.states(spec.name, version).items():
        one = response.model_version_status.add(version=number, state=state)
        one.status.error_code = 2 if message else 0
        one.status.error_message = message
    return response


def _fill_spec(spec: Any, name: str, version: int) -> None:
    spec.name = name
    spec.version.value = version


# ---- REST


class _HttpServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = _CONNECTIONS
    models: versions.Models


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 600
    server: _HttpServer

    def do_GET(self) -> None:  # noqa: N802
        self._respond(self._get)

    def do_POST(self) -> None:  # noqa: N802
        self._respond(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Writes nothing: requests are not logged."""

    def _respond(self, method: Any) -> None:
        try:
            status, body = 200, method()
        except NativeError as error:
            status, body = _HTTP.get(error.code, 500), _error(error.message)
        except UserError as error:
            status, body = 400, _error(str(error))
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _target(self, *methods: str | None) -> dict[str, Any]:
        match = _PATH.fullmatch(self.path)
        if match is None or match["method"] not in methods:
            raise NativeError(INVALID_ARGUMENT, f"Malformed request: {self.command} {self.path}")
        version = None if match["version"] is None else int(match["version"])
        return {"name": match["name"], "version": version, "label": match["label"]}

    def _get(self) -> bytes:
        target = self._target("/metadata", None)
        models = self.server.models
        if self.path.endswith("/metadata"):
            from google.protobuf import json_format

            messages = protos.load(f"{_SERVING}get_model_metadata_pb2")
            with models.use(**target) as version:
                found = messages.SignatureDefMap()
                for name, signature in version.signatures.items():
                    found.signature_def[name].ParseFromString(signature.proto)
            spec = {"name": target["name"], "signature_name": "", "version": str(version.number)}
            signatures = json_format.MessageToDict(
                found,
                preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
            )
            return json.dumps(
                {"model_spec": spec, "metadata": {"signature_def": signatures}}
            ).encode()
        if target["label"] is not None:
            with models.use(**target) as version:
                target["version"] = version.number
        states = models.states(target["name"], target["version"])
        return json.dumps(
            {
                "model_version_status": [
                    {
                        "version": str(number),
                        "state": _STATES[state],
                        "status": {
                            "error_code": "UNKNOWN" if message else "OK",
                            "error_message": message,
                        },
                    }
                    for number, (state, message) in sorted(states.items(), reverse=True)
                ]
            },
            indent=1,
        ).encode()

    def _post(self) -> bytes:
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal() or int(size) > MAX_BODY_BYTES:
            self.close_connection = True  # the body is not read
            raise UserError(f"the body must have a Content-Length of at most {MAX_BODY_BYTES}.")
        content = self.rfile.read(int(size))
        with self.server.models.use(**self._target(":predict")) as version:
            name, inputs, rows = rest.parse(content, version.signatures)
            return rest.format_outputs(version.predict(name, inputs), rows)


def _error(message: str) -> bytes:
    return json.dumps({"error": message}).encode()


# ---- the command


def main() -> None:
    """Serves as the flags say until SIGTERM or Ctrl-C."""
    server = StandIn(cli.read(config.StandInConfig))
    server.start()
    try:
        print(
            f"stand-in for tensorflow_model_server: gRPC on {HOST}:{server.port}, REST on "
            f"{HOST}:{server.rest_port}",
            flush=True,
        )
        while True:
            time.sleep(3600)
    finally:
        server.stop()


if __name__ == "__main__":
    cli.run(main)
