"""TFLite files, run by LiteRT: they agree with Keras, or nothing is published."""

import json
import sys

import forked
import numpy as np
import pytest
from PIL import Image

from export import common, flatbuffer, tflite

SIZE = (97, 129)


@pytest.fixture(scope="module")
def calibration_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration")
    for index, image in enumerate(common.random_images(12, (120, 150), seed=3)):
        # A narrow range: the exporter has to keep the input 0..255 all the same.
        Image.fromarray((60 + image / 2).astype(np.uint8)).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def export(model_file, calibration_dir, tmp_path_factory):
    """Exports each precision once."""
    done = {}

    def of(precision):
        if precision not in done:
            output = tmp_path_factory.mktemp("tflite") / f"{precision}.tflite"
            output.write_bytes(b"the old one")
            images = calibration_dir if precision == "int8" else None
            done[precision] = tflite.export_tflite(model_file, output, SIZE, precision, images)
        return done[precision]

    return of


def interpreter(path):
    from ai_edge_litert.interpreter import Interpreter

    made = Interpreter(model_path=str(path))
    made.allocate_tensors()
    return made


@pytest.mark.parametrize(
    ("precision", "same", "close"),
    [("float32", 0.9999, 1e-4), ("float16", 0.99, 0.05), ("dynamic", 0.95, 0.5), ("int8", 0.9, 1)],
)
def test_answers_like_keras(export, answer, precision, same, close):
    exported = export(precision)
    assert exported.agreement.num_classes >= 4
    assert exported.agreement.max_error <= close
    images = 60 + np.round(common.random_images(2, SIZE, seed=21) / 2)
    expected, _ = answer(images)
    ids = [tflite.run(exported.path.read_bytes(), image[None])[0] for image in images]
    assert np.mean(np.concatenate(ids) == expected) >= same


@pytest.mark.parametrize("precision", ["float32", "float16", "dynamic", "int8"])
def test_one_input_of_0_to_255_and_one_output(export, precision):
    made = interpreter(export(precision).path)
    (given,), (answered,) = made.get_input_details(), made.get_output_details()
    assert given["shape"].tolist() == [1, *SIZE, 3]
    assert given["dtype"] == (np.uint8 if precision == "int8" else np.float32)
    assert given["quantization"] == ((1.0, 0) if precision == "int8" else (0.0, 0))
    assert (answered["shape"].tolist(), answered["dtype"]) == ([1, *SIZE], np.int32)
    assert made.get_signature_list() == {
        "serving_default": {"inputs": ["images"], "outputs": ["class_ids"]}
    }


def test_precisions_shrink_the_file(export):
    sizes = [export(p).path.stat().st_size for p in ("float32", "float16", "dynamic")]
    assert sizes[0] > 1.5 * sizes[1] > 1.5 * sizes[2]


def test_int8_computes_in_integers(export):
    made = interpreter(export("int8").path)
    assert not [d["name"] for d in made.get_tensor_details() if d["dtype"] == np.float32]


def test_no_operation_of_training_is_in_the_file(export):
    """Normalisations are part of the kernels: MUL and SUB are those of the images."""
    operators = [each["op_name"] for each in interpreter(export("float32").path)._get_ops_details()]
    assert (operators.count("MUL"), operators.count("SUB")) == (1, 1)
    assert set(operators) <= {
        *("CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "MUL", "SUB", "RELU", "MAX_POOL_2D"),
        *("AVERAGE_POOL_2D", "MEAN", "RESIZE_BILINEAR", "CONCATENATION", "STRIDED_SLICE", "SLICE"),
        *("SPLIT", "SPLIT_V", "BROADCAST_TO", "PAD", "PADV2", "RESHAPE", "ARG_MAX", "DELEGATE"),
    }


@pytest.mark.slow
def test_the_converter_still_needs_the_repair_of_broadcasts(
    export, model_file, calibration_dir, tmp_path, monkeypatch
):
    """Where this fails with a newer TensorFlow, `requantize_broadcasts` can go."""
    monkeypatch.setattr(flatbuffer, "requantize_broadcasts", lambda content: content)
    with pytest.raises(common.Disagreement, match="the TFLite file disagrees with the Keras"):
        tflite.export_tflite(model_file, tmp_path / "m.tflite", SIZE, "int8", calibration_dir)


def test_broadcasts_copy_at_one_scale(export):
    made = interpreter(export("int8").path)
    scale = {d["index"]: d["quantization"] for d in made.get_tensor_details()}
    operations = [op for op in made._get_ops_details() if op["op_name"] == "BROADCAST_TO"]
    assert operations
    for operation in operations:
        assert scale[operation["inputs"][0]] == scale[operation["outputs"][0]]


def test_metadata(export, segmenter):
    metadata = json.loads(flatbuffer.read_metadata(export("int8").path.read_bytes()))
    assert metadata["architecture_fingerprint"] == segmenter.network.architecture.fingerprint
    assert metadata["class_names"] == list(segmenter.class_names)
    assert (metadata["precision"], metadata["input_size"]) == ("int8", list(SIZE))


def test_a_file_without_our_metadata_says_so(export):
    from tensorflow.lite.tools import flatbuffer_utils

    content = bytearray(export("float32").path.read_bytes())
    model = flatbuffer_utils.convert_bytearray_to_object(content)
    model.metadata = []
    bare = bytes(flatbuffer_utils.convert_object_to_bytearray(model))
    with pytest.raises(ValueError, match="has no metadata entry 'auto_deeplab_tf'"):
        flatbuffer.read_metadata(bare)


def test_a_lost_variable_publishes_nothing_and_keeps_the_old_file(model_file, tmp_path, zeroed):
    output = tmp_path / "model.tflite"
    output.write_bytes(b"the old one")
    with pytest.raises(common.Disagreement, match="the TFLite file disagrees with the Keras"):
        tflite.export_tflite(model_file, output, (33, 40))
    assert output.read_bytes() == b"the old one"
    assert [path.name for path in tmp_path.iterdir()] == ["model.tflite"]


def test_an_old_file_is_replaced_by_one_that_passed(export):
    path = export("float32").path
    assert not path.read_bytes().startswith(b"the old one")
    names = sorted(other.name for other in path.parent.iterdir())
    assert names == [path.name, f"{path.name}.manifest.json"]


def test_a_conversion_that_leaves_the_variables_out_is_refused(answer, tmp_path):
    """The known trap of Keras 3: such a file answers 0 everywhere."""
    import tensorflow as tf

    without_variables = tf.function(
        lambda images: {
            "class_ids": tf.argmax(
                0 * tf.tile(images, [1, 1, 1, 3])[..., :7], -1, output_type=tf.int32
            )
        },
        input_signature=[tf.TensorSpec([1, *SIZE, 3], name="images")],
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [without_variables.get_concrete_function()]
    )
    file = tmp_path / "model.tflite"
    file.write_bytes(converter.convert())
    images = common.random_images(2, SIZE, seed=23)
    _, probabilities = answer(images)
    for tolerance in tflite.TOLERANCES.values():
        with pytest.raises(common.Disagreement, match="disagrees with the Keras model"):
            tflite.check(file, images, probabilities, tolerance)


def test_an_operation_of_tensorflow_only_is_refused(tmp_path):
    import tensorflow as tf

    module = tf.Module()
    module.serve = tf.function(
        lambda images: {
            "class_ids": tf.cast(tf.math.bincount(tf.cast(images, tf.int32)), tf.int32)
        },
        input_signature=[tf.TensorSpec([1, 4, 4, 3], name="images")],
    )
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.serve})
    with pytest.raises(ValueError, match="TFLite cannot hold this network in float32"):
        tflite.convert(tmp_path, "float32", lambda: iter(()))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("model.bin", SIZE), ValueError, r"must end in \.tflite"),
        (("model.tflite", (16, 64)), ValueError, "must each be at least 32"),
        (("model.tflite", SIZE, "int4"), ValueError, "must be one of float32, float16"),
        (("model.tflite", SIZE, "int8"), ValueError, "calibration_dir goes with int8"),
        (("model.tflite", SIZE, "float32", "."), ValueError, "calibration_dir goes with int8"),
        (("model.tflite", SIZE, "int8", "none"), FileNotFoundError, "no such folder"),
        (("model.tflite", SIZE, "int8", "empty"), FileNotFoundError, "holds no image"),
    ],
)
def test_what_cannot_be_exported(model_file, tmp_path, monkeypatch, arguments, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=message):
        tflite.export_tflite(model_file, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_without_litert_the_extra_is_named(model_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(ImportError, match=r"needs ai_edge_litert.*auto_deeplab_tf\[export\]"):
        tflite.export_tflite(model_file, tmp_path / "model.tflite", SIZE)


def test_command(model_file, tmp_path):
    output = tmp_path / "model.tflite"
    flags = [f"--model={model_file}", f"--output={output}", "--input_size=33x64"]
    done = forked.run("export.tflite", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"published {output}: the same class on 100.00 % of the pixels")
    assert interpreter(output).get_input_details()[0]["shape"].tolist() == [1, 33, 64, 3]
