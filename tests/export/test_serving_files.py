"""The files for TensorFlow Serving parse and name each other rightly; no framework, no server."""

import pathlib

import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from auto_deeplab_tf import config
from export.serving import versions

FOLDER = pathlib.Path(versions.__file__).parent
VALUE, BOOL, STRING, INT64 = "value", "bool", "string", "int64"
# What the server's own messages have (session_bundle_config.proto, monitoring_config.proto); the
# package of its protos does not hold these.
MESSAGES = {
    "Value": {"value": INT64},
    "BatchingParameters": {
        "max_batch_size": VALUE,
        "batch_timeout_micros": VALUE,
        "max_enqueued_batches": VALUE,
        "num_batch_threads": VALUE,
        "allowed_batch_sizes": INT64,
    },
    "PrometheusConfig": {"enable": BOOL, "path": STRING},
    "MonitoringConfig": {"prometheus_config": "PrometheusConfig"},
}


def parsed(kind, text):
    """Parses a text message of one of MESSAGES."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="serving.proto", package="serving")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (key, type_) in enumerate(fields.items(), 1):
            one = message.field.add(name=key, number=number, label=field.LABEL_OPTIONAL)
            if key == "allowed_batch_sizes":
                one.label = field.LABEL_REPEATED
            plain = {BOOL: field.TYPE_BOOL, STRING: field.TYPE_STRING, INT64: field.TYPE_INT64}
            if type_ in plain:
                one.type = plain[type_]
            else:
                one.type = field.TYPE_MESSAGE
                one.type_name = ".serving." + ("Value" if type_ == VALUE else type_)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"serving.{kind}"))
    return text_format.Parse(text, found())


def text(name):
    return (FOLDER / name).read_text("utf-8")


def kubernetes():
    return {each["kind"]: each for each in yaml.safe_load_all(text("kubernetes.yaml"))}


def compose():
    return yaml.safe_load(text("compose.yaml"))["services"]


def test_the_model_is_named_as_the_commands_name_it():
    (model,) = versions.read_config(str(FOLDER / "models.config")).model_config_list.config
    assert (model.name, model.model_platform) == (config.DEFAULT_MODEL_NAME, "tensorflow")
    mounted = [volume.rpartition("}")[2] for volume in compose()["server"]["volumes"]]
    assert f":{model.base_path}:ro" in mounted
    container = kubernetes()["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert any(model.base_path.startswith(f"{mount}/") for mount in mounts)
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] == f"/v1/models/{model.name}"


@pytest.mark.parametrize("name", ["batching_fixed_size.config", "batching_encoded.config"])
def test_batching_parameters(name):
    found = parsed("BatchingParameters", text(name))
    assert found.max_batch_size.value > 1 and found.batch_timeout_micros.value > 0
    assert found.num_batch_threads.value > 0 and found.max_enqueued_batches.value > 0
    sizes = list(found.allowed_batch_sizes)
    # The server's rule: they rise, and the last one is the largest batch.
    assert sizes == sorted(set(sizes))
    assert not sizes or sizes[-1] == found.max_batch_size.value
    assert bool(sizes) == (name == "batching_fixed_size.config")


def test_prometheus_reads_what_the_server_writes():
    found = parsed("MonitoringConfig", text("monitoring.config")).prometheus_config
    assert found.enable
    (job,) = yaml.safe_load(text("prometheus.yaml"))["scrape_configs"]
    assert job["metrics_path"] == found.path
    assert job["static_configs"] == [{"targets": ["server:8501"]}] and "server" in compose()
    template = kubernetes()["Deployment"]["spec"]["template"]
    assert template["metadata"]["annotations"]["prometheus.io/path"] == found.path


def test_compose_and_kubernetes_start_the_server_alike():
    services, objects = compose(), kubernetes()
    assert objects.keys() == {"ConfigMap", "PersistentVolumeClaim", "Deployment", "Service"}
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == services["server"]["image"]
    assert container["args"] == services["server"]["command"]
    assert container["command"] == services["server"]["entrypoint"] == ["tensorflow_model_server"]
    used = {flag.partition("/config/")[2] for flag in container["args"] if "/config/" in flag}
    mounted = {
        volume.split(":")[1].removeprefix("/config/")
        for volume in services["server"]["volumes"]
        if volume.startswith("./")
    }
    assert used == mounted == objects["ConfigMap"]["data"].keys()
    assert all((FOLDER / name).is_file() for name in used)
    names = {volume["name"] for volume in pod["volumes"]}
    assert names == {mount["name"] for mount in container["volumeMounts"]}
    claim = pod["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert claim == objects["PersistentVolumeClaim"]["metadata"]["name"]
    assert pod["volumes"][1]["configMap"]["name"] == objects["ConfigMap"]["metadata"]["name"]
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Service"]["spec"]["selector"] == labels
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": 8500, "rest": 8501}
    for port in objects["Service"]["spec"]["ports"]:
        assert ports[port["targetPort"]] == port["port"]


def test_the_config_map_holds_the_files():
    for name, content in kubernetes()["ConfigMap"]["data"].items():
        lines = [line for line in text(name).splitlines() if not line.startswith("#")]
        assert content.splitlines() == lines, name
