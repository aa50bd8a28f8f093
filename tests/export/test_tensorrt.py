"""ONNX files at odd sizes, run by ONNX Runtime; the guard of TF-TRT."""

import collections
import json
import shlex
import shutil
import sys

import forked
import numpy as np
import pytest

from auto_deeplab_tf.errors import RunError
from export import common, tensorrt

# Odd, as a Resize with float scales would not stand it.
SIZE = (129, 257)


@pytest.fixture(scope="module")
def exported(model_file, tmp_path_factory):
    return tensorrt.export_tensorrt(model_file, tmp_path_factory.mktemp("onnx") / "m.onnx", SIZE)


@pytest.fixture
def tf_trt(monkeypatch):
    """Lets the TF-TRT route run: without its guard, and with a plain copy as its converter."""

    def copied(graph, result, shape):
        assert shape == (33, 40, 3)
        shutil.copytree(graph, result)

    monkeypatch.setattr(tensorrt, "check_tf_trt", lambda: None)
    monkeypatch.setattr(tensorrt, "convert_tf_trt", copied)


def test_onnx_answers_like_keras_at_an_odd_size(exported, answer):
    import onnxruntime

    assert exported.agreement.num_classes >= 4
    assert 0 < exported.agreement.max_error < 1e-4
    session = onnxruntime.InferenceSession(str(exported.path))
    (given,), (answered,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape, given.type) == ("images", [1, *SIZE, 3], "tensor(float)")
    assert (answered.name, answered.shape) == ("class_ids", [1, *SIZE])
    assert answered.type == "tensor(int32)"
    images = common.random_images(1, SIZE, seed=31)
    (ids,) = session.run(None, {"images": images})
    _, probabilities = answer(images)
    agreement = common.compare(ids, probabilities, probabilities, common.EXACT.tie)
    common.EXACT.check(agreement, "it")


def test_onnx_file(exported, segmenter):
    import onnx

    onnx.checker.check_model(str(exported.path), full_check=True)
    model = onnx.load(str(exported.path))
    assert {item.domain for item in model.opset_import} <= {"", "ai.onnx.ml"}
    resizes = [node for node in model.graph.node if node.op_type == "Resize"]
    sizes = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    # Whole sizes: a scale in float32 can lose a row.
    assert {tuple(sizes[node.input[3]][2:]) for node in resizes} >= {SIZE}
    assert {tuple(node.input[1:3]) for node in resizes} == {("", "")}
    assert not [name for name in sizes if "roi" in name or "scales" in name]
    metadata = {item.key: item.value for item in model.metadata_props}
    architecture = segmenter.network.architecture
    assert metadata["architecture_fingerprint"] == architecture.fingerprint
    assert json.loads(metadata["class_names"]) == list(segmenter.class_names)
    assert json.loads(metadata["input_size"]) == list(SIZE)


def test_no_operation_of_training_is_in_the_file(exported):
    """Normalisations are part of the kernels: Mul and Sub are those of the images."""
    import onnx

    counts = collections.Counter(node.op_type for node in onnx.load(str(exported.path)).graph.node)
    assert (counts["Mul"], counts["Sub"], counts["ArgMax"]) == (1, 1, 1)
    # The choice of the classes alone is left of what an inference takes beside these.
    assert set(counts) <= {
        *("Conv", "Relu", "Add", "Mul", "Sub", "MaxPool", "AveragePool", "GlobalAveragePool"),
        *("Resize", "Concat", "Slice", "Expand", "Pad", "Reshape", "Transpose", "ArgMax", "Cast"),
    }


def test_atrous_convolutions_stay_convolutions(exported):
    """With a free size they would become chains of Pad and SpaceToDepth."""
    import onnx

    nodes = onnx.load(str(exported.path)).graph.node
    dilations = [
        list(attribute.ints)
        for node in nodes
        for attribute in node.attribute
        if node.op_type == "Conv" and attribute.name == "dilations"
    ]
    assert [2, 2] in dilations
    assert not {"SpaceToDepth", "DepthToSpace"} & {node.op_type for node in nodes}


def test_a_lost_variable_publishes_nothing_and_keeps_the_old_file(model_file, tmp_path, zeroed):
    output = tmp_path / "model.onnx"
    output.write_bytes(b"the old one")
    with pytest.raises(common.Disagreement, match="the ONNX file, in batches of 1, disagrees"):
        tensorrt.export_tensorrt(model_file, output, (33, 40))
    assert output.read_bytes() == b"the old one"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_an_invalid_file_is_refused(exported, tmp_path):
    """tf2onnx ends without an error on operations that it cannot translate."""
    import onnx

    from export import onnx as onnx_lib

    model = onnx.load(str(exported.path))
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "TfRelu"
    broken = tmp_path / "broken.onnx"
    onnx.save(model, str(broken))
    images = common.random_images(1, SIZE)
    with pytest.raises(common.Disagreement, match="ONNX's checker refuses the file"):
        onnx_lib.check(broken, images, np.zeros((1, *SIZE, 7)))


@pytest.mark.parametrize(
    ("batch", "precision", "expected"),
    [
        (1, "float32", []),
        (1, "float16", ["--fp16"]),
        (
            None,
            "int8",
            [
                "--fp16",
                "--int8",
                "--minShapes=images:1x33x40x3",
                "--optShapes=images:4x33x40x3",
                "--maxShapes=images:8x33x40x3",
            ],
        ),
    ],
)
def test_the_trtexec_command(batch, precision, expected):
    file = tensorrt.pathlib.Path("my models/net.onnx")
    command = tensorrt.trtexec_command(file, (batch, 33, 40, 3), precision)
    assert shlex.split(command) == [
        "trtexec",
        "--onnx=my models/net.onnx",
        "--saveEngine=my models/net.plan",
        *expected,
    ]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    from auto_deeplab_tf import overlay

    folder = tmp_path_factory.mktemp("photos")
    for index, image in enumerate(common.random_images(6, (49, 65), seed=5)):
        overlay.save_png(folder / f"{index}.png", image.astype(np.uint8))
    return folder


def test_int8_with_any_number_of_images(model_file, tmp_path, photos, answer):
    import onnx
    import onnxruntime

    from export import onnx as onnx_lib

    output = tmp_path / "model.onnx"
    exported = tensorrt.export_tensorrt(
        model_file, output, (49, 65), "onnx", "int8", photos, dynamic_batch=True
    )
    assert exported.agreement.same_class >= common.INT8.same_class
    assert exported.agreement.max_error > common.EXACT.max_error  # it does compute in 8 bits
    assert onnx_lib.input_shape(output) == (None, 49, 65, 3)
    nodes = onnx.load(str(output)).graph.node
    types = [node.op_type for node in nodes]
    assert not {"SpaceToDepth", "DepthToSpace"} & {*types}
    constants = {item.name: item for item in onnx.load(str(output)).graph.initializer}
    makers = {name: node for node in nodes for name in node.output}
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    for node in convolutions:
        for name in node.input[:2]:
            assert makers[name].op_type == "DequantizeLinear"
        # Weights and activations are symmetric.
        points = [constants[makers[name].input[2]] for name in node.input[:2]]
        assert not any(onnx.numpy_helper.to_array(point).any() for point in points)
    session = onnxruntime.InferenceSession(str(output))
    images = common.random_images(3, (49, 65), seed=31)
    (ids,) = session.run(None, {"images": images})
    assert ids.shape == (3, 49, 65)
    for image, each in zip(images, ids, strict=True):
        np.testing.assert_array_equal(session.run(None, {"images": image[None]})[0][0], each)
    expected, _ = answer(images)
    assert np.mean(ids == expected) > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model.pb", SIZE), r"must end in \.onnx"),
        (("model.onnx", (31, 64)), "must each be at least 32"),
        (("model.onnx", SIZE, "trt"), "route=trt must be one of onnx, tf_trt"),
        (("model.onnx", SIZE, "onnx", "int4"), "precision=int4 must be one of float32, float16"),
        (("model.onnx", SIZE, "onnx", "int8"), "a calibration_dir goes with int8"),
        (("model", SIZE, "tf_trt", "float16"), "are for route=onnx"),
    ],
)
def test_what_cannot_be_exported(model_file, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        tensorrt.export_tensorrt(model_file, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["onnx", "onnxruntime", "tf2onnx"])
def test_without_a_package_the_extra_is_named(model_file, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"auto_deeplab_tf\[export\]"):
        tensorrt.export_tensorrt(model_file, tmp_path / "model.onnx", (33, 40))
    assert not list(tmp_path.iterdir())


def test_tf_trt_says_why_not_and_what_to_use(model_file, tmp_path):
    with pytest.raises(RunError) as raised:
        tensorrt.export_tensorrt(model_file, tmp_path / "model", SIZE, "tf_trt")
    message = str(raised.value)
    assert "was built without TensorRT" in message
    assert "Use route=onnx and build the engine with trtexec" in message
    assert "TensorFlow up to 2.17" in message
    assert "\n" not in message
    assert not list(tmp_path.iterdir())


def test_tf_trt_looks_at_the_build_then_the_library_then_the_gpu(monkeypatch):
    import tensorflow as tf
    from tensorflow.compiler.tf2tensorrt import _pywrap_py_utils

    monkeypatch.setattr(tf.sysconfig, "get_build_info", lambda: {"is_tensorrt_build": True})
    with pytest.raises(RunError, match="TensorRT is switched off"):
        tensorrt.check_tf_trt()
    monkeypatch.setattr(_pywrap_py_utils, "is_tensorrt_enabled", lambda: True)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    with pytest.raises(RunError, match="TensorFlow sees no GPU here"):
        tensorrt.check_tf_trt()
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"])
    tensorrt.check_tf_trt()


def test_tf_trt_publishes_what_answers_like_keras(model_file, tmp_path, tf_trt):
    output = tmp_path / "model"
    exported = tensorrt.export_tensorrt(model_file, output, (33, 40), "tf_trt")
    assert exported.path == output and exported.agreement.same_class > 0.99
    assert (output / "saved_model.pb").is_file()
    assert "architecture_fingerprint" in (output / "assets.extra" / "metadata.json").read_text()
    with pytest.raises(FileExistsError, match="exists already; give a new name"):
        tensorrt.export_tensorrt(model_file, output, (33, 40), "tf_trt")


@pytest.mark.slow
def test_tf_trt_with_a_lost_variable_publishes_nothing(model_file, tmp_path, tf_trt, zeroed):
    with pytest.raises(common.Disagreement, match="the TF-TRT model disagrees with the"):
        tensorrt.export_tensorrt(model_file, tmp_path / "model", (33, 40), "tf_trt")
    assert not list(tmp_path.iterdir())


def command(*flags):
    done = forked.run("export.tensorrt", *flags)
    return done.returncode, done.stdout, done.stderr


def test_command(model_file, tmp_path):
    output = tmp_path / "model.onnx"
    code, out, err = command(f"--model={model_file}", f"--output={output}", "--input_size=33x64")
    assert code == 0, err
    published, next_step = out.splitlines()
    assert published.startswith(f"published {output}: the same class on 100.00 %")
    assert next_step == (
        "on the machine that serves: "
        f"trtexec --onnx={output} --saveEngine={output.with_suffix('.plan')}"
    )


def test_command_of_the_route_that_is_not_there(model_file, tmp_path):
    code, out, err = command(
        f"--model={model_file}",
        f"--output={tmp_path / 'm'}",
        "--input_size=64x64",
        "--route=tf_trt",
    )
    assert (code, out) == (1, "")
    assert err.startswith("error: --route=tf_trt cannot work") and err.count("\n") == 1
    assert np.all([path.name != "m" for path in tmp_path.iterdir()])
