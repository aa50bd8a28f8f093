"""The served SavedModel: every signature agrees with Keras, or nothing is published."""

import io
import json
import pathlib
import pickle
import re
import shutil
import struct
import subprocess
import sys
import types
import zlib

import forked
import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2

from auto_deeplab_tf import Segmenter
from export import common, signatures
from export.saved_model import export_saved_model
from export.serving import native

SIZES = [(97, 129), (64, 32), (33, 80)]


@pytest.fixture(scope="module")
def exported(model_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("free") / "served"
    (folder / "4").mkdir(parents=True)
    return export_saved_model(model_file, folder, max_image_pixels=100 * 140)


@pytest.fixture(scope="module")
def served(exported):
    return tf.saved_model.load(str(exported.path))


@pytest.fixture(scope="module")
def served_fixed(model_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fixed")
    return tf.saved_model.load(str(export_saved_model(model_file, folder, (97, 129)).path))


def png(array, **options):
    buffer = io.BytesIO()
    Image.fromarray(array, **options).save(buffer, format="PNG")
    return buffer.getvalue()


def jpeg(array, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="JPEG", quality=92, **options)
    return buffer.getvalue()


def masks(served, *images):
    answers = served.signatures["encoded_image"](image_bytes=tf.constant(images, tf.string))
    return [np.asarray(Image.open(io.BytesIO(mask))) for mask in answers["mask_png_bytes"].numpy()]


def check_same(class_ids, images, answer):
    _, probabilities = answer(images)
    agreement = common.compare(class_ids, probabilities, probabilities, common.EXACT.tie)
    common.EXACT.check(agreement, "it")


def test_the_report_is_of_a_real_comparison(exported):
    assert exported.path.name == "5"
    assert sorted(path.name for path in exported.path.parent.iterdir()) == ["4", "5"]
    assert exported.agreement.num_classes >= 4
    assert 0 < exported.agreement.max_error < 1e-4


@pytest.mark.parametrize("size", SIZES)
def test_any_batch_of_any_size_answers_like_keras(served, answer, size):
    images = common.random_images(3, size, seed=7)
    _, probabilities = answer(images)
    ids = served.signatures["serving_default"](images=tf.constant(images))["class_ids"]
    assert ids.dtype == tf.int32
    check_same(ids.numpy(), images, answer)
    got = served.signatures["probabilities"](images=tf.constant(images))["probabilities"].numpy()
    np.testing.assert_allclose(got, probabilities, atol=1e-4)


def test_an_empty_batch(served):
    empty = tf.zeros([0, 40, 50, 3])
    ids = served.signatures["serving_default"](images=empty)["class_ids"]
    assert (ids.dtype, ids.shape) == (tf.int32, [0, 40, 50])
    assert masks(served) == []


def test_images_that_are_too_small_are_refused_as_by_keras(served, segmenter):
    images = tf.zeros([1, 31, 64, 3])
    with pytest.raises(ValueError, match="32 pixels or more"):
        segmenter(images)
    for name in ("serving_default", "probabilities"):
        with pytest.raises(tf.errors.InvalidArgumentError, match="must each be at least.*32"):
            served.signatures[name](images=images)


def test_declared_shapes(served, served_fixed):
    for loaded, size in ((served, (None, None)), (served_fixed, (97, 129))):
        function = loaded.signatures["serving_default"]
        assert function.structured_input_signature[1]["images"].shape.as_list() == [None, *size, 3]
        assert function.structured_outputs["class_ids"].shape.as_list() == [None, *size]


def test_a_fixed_size_answers_like_keras(served_fixed, answer):
    images = common.random_images(2, (97, 129), seed=8)
    ids = served_fixed.signatures["serving_default"](images=tf.constant(images))["class_ids"]
    check_same(ids.numpy(), images, answer)


def test_encoded_images_of_all_kinds_in_one_batch(served, answer):
    rgb = common.random_images(1, (60, 70), seed=9)[0].astype(np.uint8)
    grey = common.random_images(1, (41, 33), seed=10)[0, ..., 0].astype(np.uint8)
    as_rgb = np.repeat(grey[..., None], 3, axis=-1)
    palette = Image.fromarray(rgb).quantize(32)
    buffer = io.BytesIO()
    palette.save(buffer, format="PNG")
    compressed = jpeg(rgb)
    cases = [
        (png(rgb), rgb),
        (png(np.dstack([rgb, rgb[..., 0]])), rgb),  # alpha is dropped, not blended
        (png(grey), as_rgb),
        (png(grey.astype(np.uint16) * 256 + 77), as_rgb),
        (tf.io.encode_png(rgb.astype(np.uint16) * 256 + 200).numpy(), rgb),
        (buffer.getvalue(), np.asarray(palette.convert("RGB"))),
        (
            compressed,
            tf.io.decode_jpeg(compressed, channels=3, dct_method="INTEGER_ACCURATE").numpy(),
        ),
        (jpeg(grey), None),
        (jpeg(rgb, progressive=True), None),
    ]
    answers = masks(served, *(data for data, _ in cases))
    for mask, (data, image) in zip(answers, cases, strict=True):
        if image is None:
            image = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE").numpy()
        assert mask.shape == image.shape[:2] and mask.dtype == np.uint8
        check_same(mask[None], image[None].astype(np.float32), answer)


def test_a_fixed_size_takes_encoded_images_of_other_sizes(served_fixed, segmenter):
    images = [
        common.random_images(1, size, seed=11)[0].astype(np.uint8)
        for size in [(97, 129), (194, 258), (40, 300), (20, 25)]
    ]
    for mask, image in zip(masks(served_fixed, *map(png, images)), images, strict=True):
        expected = segmenter.predict_class_ids(image, input_size=(97, 129))
        assert mask.shape == expected.shape
        assert np.mean(mask == expected) > 0.999


def test_encoded_images_are_seen_at_the_size_of_the_training(segmenter, model_file, tmp_path):
    small = Segmenter.from_config(segmenter.get_config() | {"image_size": (60, 80)})
    small.set_weights(segmenter.get_weights())
    small.save(tmp_path / "small.keras")
    exported = export_saved_model(tmp_path / "small.keras", tmp_path / "served")
    served = tf.saved_model.load(str(exported.path))
    image = common.random_images(1, (194, 258), seed=11)[0].astype(np.uint8)
    (mask,) = masks(served, png(image))
    expected = segmenter.predict_class_ids(image, input_size=(60, 80))
    own = segmenter.predict_class_ids(image)
    assert np.mean(mask == expected) > 0.999 > np.mean(mask == own)
    metadata = json.loads(served.signatures["metadata"]()["metadata_json"].numpy())
    assert metadata["image_size"] == [60, 80]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width, height):
    """A well-formed PNG of a few bytes that claims a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "must hold a PNG or JPEG file"),
        (b"junk", "must hold a PNG or JPEG file"),
        (b"GIF89a" + b"\0" * 100, "must hold a PNG or JPEG file"),
        (b"\x89PNG\r\n\x1a\n", "Invalid PNG"),
        (b"\x89PNG\r\n\x1a\n" + b"\0\0\0\x40" * 100, "Invalid"),
        (b"\xff\xd8\xff" + b"j" * 100, "Invalid"),
        (png_claiming(2**31 - 1, 2**31 - 1), "must have at most"),
        (png_claiming(140, 101), "predict --tile takes larger ones"),
        (png_claiming(40, 40), "Invalid PNG"),
        (png(np.zeros((31, 40, 3), np.uint8)), "must each be at least"),
        (png(np.zeros((40, 50, 3), np.uint8))[:-30], "Invalid PNG"),
    ],
)
def test_hostile_bytes_are_an_invalid_argument(served, data, message):
    good = png(np.zeros((40, 50, 3), np.uint8))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        masks(served, good, data)
    # One bad request does not spoil the next one.
    assert masks(served, good)[0].shape == (40, 50)


def test_labels_and_metadata(exported, served, segmenter):
    names = served.signatures["labels"](class_ids=tf.constant([6, 2, 0, 7, -1]))["names"].numpy()
    assert [name.decode() for name in names] == ["person", "Häuser", "road", "unknown", "unknown"]
    asset = (exported.path / "assets" / "labels.txt").read_text("utf-8")
    assert asset.splitlines() == list(segmenter.class_names)
    metadata = json.loads(served.signatures["metadata"]()["metadata_json"].numpy())
    assert metadata == json.loads((exported.path / "assets.extra" / "metadata.json").read_text())
    architecture = segmenter.network.architecture
    assert metadata["architecture_fingerprint"] == architecture.fingerprint
    assert metadata["architecture"] == architecture.to_dict()
    assert metadata["input_size"] is None


def test_the_asset_travels_with_the_folder(exported, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(exported.path, moved)
    loaded = tf.saved_model.load(str(moved))
    names = loaded.signatures["labels"](class_ids=tf.constant([1]))["names"].numpy()
    assert names.tolist() == [b"sky"]


@pytest.fixture(scope="module")
def graph(exported):
    """The file's one graph with its signatures, as a proto."""
    content = (exported.path / "saved_model.pb").read_bytes()
    (graph,) = saved_model_pb2.SavedModel.FromString(content).meta_graphs
    return graph


@pytest.fixture(scope="module")
def functions(graph):
    """The functions in the file; the signatures call them."""
    return graph.graph_def.library.function


def test_no_operation_needs_xla(functions):
    assert functions
    for function in functions:
        assert not function.attr["_XlaMustCompile"].b, function.signature.name


def test_the_network_is_in_the_file_once(functions, segmenter):
    calls = [node.op for function in functions for node in function.node_def]
    layers = [
        layer for layer in segmenter._flatten_layers() if isinstance(layer, keras.layers.Conv2D)
    ]
    assert calls.count("Conv2D") == len(layers) > 10


def test_no_operation_of_training_is_in_the_file(functions):
    """Normalisations are part of the kernels; nothing is drawn, and no variable is written."""
    calls = {
        node.op
        for function in functions
        for node in function.node_def
        # Reading the file is a function of the file, too.
        if not function.signature.name.startswith("__inference__traced_restore")
    }
    assert {"Conv2D", "ReadVariableOp"} <= calls
    assert not [op for op in calls if re.search("Norm|Random|Dropout|Moments|^Assign|Grad", op)]
    assert calls.isdisjoint({"ResizeBilinear"}), "XLA gets it wrong"


def test_the_loader_of_the_server_predicts_alike(exported, served, answer, tmp_path):
    """Every signature by the C++ loader alone, without Python TensorFlow, as a server loads it."""
    if native.library_path() is None:
        pytest.skip(f"this TensorFlow has no {native.LIBRARY}")
    images = common.random_images(2, (97, 129), seed=12)
    pixels = images.astype(np.uint8)
    files = [png(pixels[0]), jpeg(pixels[1])]
    requests = [
        ("serving_default", {"images": images}),
        ("probabilities", {"images": images}),
        ("encoded_image", {"image_bytes": np.array(files, object)}),
        ("labels", {"class_ids": np.array([2, 0, 9], np.int32)}),
        ("metadata", {}),
        ("serving_default", {"images": images[:0]}),
        ("encoded_image", {"image_bytes": np.array([], object)}),
        ("encoded_image", {"image_bytes": np.array([b"junk"], object)}),
        ("metadata", {}),  # a constant, which the first response must not have freed
    ]
    (tmp_path / "requests").write_bytes(pickle.dumps(requests))
    client = pathlib.Path(__file__).with_name("native_client.py")
    done = subprocess.run(
        [sys.executable, client, exported.path, tmp_path / "requests", tmp_path / "responses"],
        check=True,
        capture_output=True,
        text=True,
        timeout=240,
    )
    print(done.stdout)  # the latencies
    *responses, empty, no_files, refused, again = pickle.loads(
        (tmp_path / "responses").read_bytes()
    )
    assert responses[0]["class_ids"].dtype == np.int32
    check_same(responses[0]["class_ids"], images, answer)
    np.testing.assert_allclose(responses[1]["probabilities"], answer(images)[1], atol=1e-4)
    expected = [np.asarray(mask) for mask in masks(served, *files)]
    for found, mask in zip(responses[2]["mask_png_bytes"], expected, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(found))), mask)
    names = [name.decode() for name in responses[3]["names"]]
    assert names == ["Häuser", "road", "unknown"]
    metadata = (exported.path / "assets.extra" / "metadata.json").read_text().strip()
    assert responses[4]["metadata_json"].item().decode() == metadata
    assert again["metadata_json"].item().decode() == metadata
    assert empty["class_ids"].shape == (0, 97, 129)
    assert no_files["mask_png_bytes"].shape == (0,)
    assert refused[0] == native.INVALID_ARGUMENT and "must hold a PNG or JPEG" in refused[1]


def test_values_that_are_not_finite_are_refused_with_their_place(served):
    images = np.zeros((3, 40, 50, 3), np.float32)
    images[1, 3, 4, 0], images[2, 0, 0, 2] = np.nan, np.inf
    for name in ("serving_default", "probabilities"):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"(?s)not at these.*\[1 2\]"):
            served.signatures[name](images=tf.constant(images))


def test_an_encoded_image_that_is_refused_is_named(served):
    good = png(np.zeros((40, 50, 3), np.uint8))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"\[image\] \[2\] \[of a batch"):
        masks(served, good, good, b"junk")


def test_warm_up_requests_are_answered(model_file, segmenter, tmp_path):
    from tensorflow_serving.apis import prediction_log_pb2

    small = Segmenter.from_config(segmenter.get_config() | {"image_size": (40, 64)})
    small.set_weights(segmenter.get_weights())
    small.save(tmp_path / "small.keras")
    folder = export_saved_model(tmp_path / "small.keras", tmp_path / "served").path
    file = folder / "assets.extra" / "tf_serving_warmup_requests"
    served = tf.saved_model.load(str(folder)).signatures
    names = []
    for record in tf.data.TFRecordDataset(str(file)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        names.append(request.model_spec.signature_name)
        inputs = {key: tf.constant(tf.make_ndarray(request.inputs[key])) for key in request.inputs}
        (answer,) = served[names[-1]](**inputs).values()
        if names[-1] == "encoded_image":
            assert tf.io.decode_png(answer[0]).shape == (40, 64, 1)
        else:
            assert answer.shape[:3] == (1, 40, 64)
    assert names == ["serving_default", "probabilities", "encoded_image"]
    manifest = json.loads((folder / "assets.extra" / "manifest.json").read_text())
    assert "assets.extra/tf_serving_warmup_requests" in manifest["files"]


def test_where_the_size_of_warm_up_requests_comes_from(model_file, exported, tmp_path, monkeypatch):
    """--warmup_size, which a fixed size must equal; without any size there are no requests."""
    assert not (exported.path / "assets.extra" / "tf_serving_warmup_requests").exists()
    with pytest.raises(ValueError, match=r"warmup_size=\(64, 64\) must be input_size=\(40, 64\)"):
        export_saved_model(model_file, tmp_path / "served", (40, 64), warmup_size=(64, 64))
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis.prediction_log_pb2", None)
    with pytest.raises(ImportError, match=r"needs tensorflow_serving.*auto_deeplab_tf\[export\]"):
        export_saved_model(model_file, tmp_path / "served", warmup_size=(64, 64))
    assert not (tmp_path / "served").exists()


def test_a_variable_lost_on_the_way_publishes_nothing(model_file, tmp_path, zeroed):
    with pytest.raises(common.Disagreement, match="the SavedModel disagrees with the Keras"):
        export_saved_model(model_file, tmp_path / "served", (33, 40))
    assert not list(tmp_path.iterdir())


def broken_mask(image_bytes):
    masks = tf.io.encode_png(tf.zeros([97, 129, 1], tf.uint8))
    return {"mask_png_bytes": tf.fill(tf.shape(image_bytes), masks)}


@pytest.mark.parametrize(
    ("name", "broken", "message"),
    [
        ("serving_default", lambda images: {"class_ids": tf.zeros([2, 97, 129], tf.int32)}, "same"),
        ("probabilities", lambda images: {"probabilities": tf.zeros([2, 97, 129, 7])}, "within"),
        ("encoded_image", broken_mask, "the signature encoded_image disagrees with"),
        ("labels", lambda class_ids: {"names": tf.fill([8], "road")}, "the signature labels gives"),
        ("metadata", lambda: {"metadata_json": tf.constant("{}")}, "metadata is not as written"),
    ],
)
def test_every_signature_is_checked(exported, served, answer, monkeypatch, name, broken, message):
    images = common.random_images(2, (97, 129), seed=5)
    _, probabilities = answer(images)
    metadata = json.loads((exported.path / "assets.extra" / "metadata.json").read_text())
    expected = [[images], [probabilities], images, list(probabilities.argmax(-1)), metadata]
    loaded = types.SimpleNamespace(signatures=dict(served.signatures) | {name: broken})
    monkeypatch.setattr(tf.saved_model, "load", lambda folder: loaded)
    with pytest.raises(common.Disagreement, match=message):
        signatures.check(exported.path, *expected)


def command(*flags):
    done = forked.run("export.saved_model", *flags)
    return done.returncode, done.stdout, done.stderr


def test_command(model_file, tmp_path):
    output = tmp_path / "served"
    code, out, err = command(f"--model={model_file}", f"--output_dir={output}", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["path"] == str(output / "1") and result["same_class"] >= 0.999
    assert (output / "1" / "saved_model.pb").is_file()


def test_a_missing_model_is_one_line(tmp_path):
    code, out, err = command(f"--model={tmp_path}/none.keras", f"--output_dir={tmp_path}/served")
    assert (code, out) == (1, "")
    assert err.startswith("error: --model=") and err.count("\n") == 1 and "no such file" in err
    assert not list(tmp_path.iterdir())
