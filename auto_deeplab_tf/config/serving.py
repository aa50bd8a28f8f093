"""The settings of the commands around a server: client, load test, stand-in, the C API alone."""

from __future__ import annotations

import dataclasses

from auto_deeplab_tf.config.fields import Size, flag
from auto_deeplab_tf.config.options import OutputConfig, ThreadsConfig
from auto_deeplab_tf.errors import FieldError
from auto_deeplab_tf.search_space import MINIMUM_SIZE

PROTOCOLS = ("grpc", "rest")
DEFAULT_MODEL_NAME = "auto_deeplab"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NativeConfig(ThreadsConfig, OutputConfig):
    """Settings of the measurement of a SavedModel through TensorFlow's C API."""

    model: str = flag(help="folder of a SavedModel", metavar="DIR", path=True)
    input_size: Size = flag((513, 513), "size of the image", minimum=MINIMUM_SIZE)
    requests: int = flag(20, "number of requests after the first", minimum=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StandInConfig(ThreadsConfig):
    """Settings of the stand-in server, named as those of tensorflow_model_server."""

    model_base_path: str | None = flag(
        None, "folder of numbered versions", metavar="DIR", path=True
    )
    model_name: str = flag(DEFAULT_MODEL_NAME, "name of the model")
    model_config_file: str | None = flag(
        None,
        "ModelServerConfig as text, in place of the folder and the name; read again at each poll",
        metavar="FILE",
        path=True,
    )
    port: int = flag(8500, "port of gRPC (0: a free one)", minimum=0, maximum=65535)
    rest_api_port: int = flag(8501, "port of REST (0: a free one)", minimum=0, maximum=65535)
    file_system_poll_wait_seconds: float = flag(
        1.0, "seconds between two looks for versions", above=0
    )
    enable_model_warmup: bool = flag(
        True, "replay the warm-up requests of a version before it is used"
    )

    def _check(self) -> None:
        super()._check()
        if (self.model_base_path is None) == (self.model_config_file is None):
            raise FieldError(
                "give either model_base_path or model_config_file",
                "model_base_path",
                "model_config_file",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig(OutputConfig):
    """The server that a client talks to."""

    server: str = flag(help="host and port of the server, for that protocol", metavar="HOST:PORT")
    protocol: str = flag("grpc", "protocol of the requests", choices=PROTOCOLS)
    model_name: str = flag(DEFAULT_MODEL_NAME, "name of the model on the server")
    model_version: int | None = flag(None, "version (default: the server's choice)", minimum=0)
    concurrency: int = flag(4, "number of requests at the same time", minimum=1, maximum=1024)
    deadline_seconds: float = flag(
        60.0, "seconds until an image is given up, with all its retries", above=0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServingClientConfig(ServerConfig):
    """Settings of the prediction of masks by a server."""

    image: str = flag(help="an image, a folder of images, or a glob", metavar="PATH", path=True)
    output_dir: str = flag(
        help="folder for the masks and overlays", group="output", metavar="DIR", path=True
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadTestConfig(ServerConfig):
    """Settings of the load test of a server."""

    requests: int = flag(100, "number of requests", minimum=1, maximum=1_000_000)
    image: str | None = flag(
        None, "PNG or JPEG file to send (default: a random one)", metavar="FILE", path=True
    )
    input_size: Size = flag((513, 513), "size of the random image", minimum=MINIMUM_SIZE)
    max_seconds: float = flag(300.0, "seconds after which no further request is sent", above=0)
