"""Model files that nobody vouches for: a Segmenter, or one clear error; nothing of them is run."""

import io
import json
import os
import struct
import zipfile

import h5py
import keras
import numpy as np
import pytest
from commands import check_refused, run
from hypothesis import strategies as st
from mutations import NASTY, changed_bytes, changed_json, hold, packed, places, refused

from auto_deeplab_tf import Segmenter, build_supernet, untrusted
from auto_deeplab_tf.architecture import Architecture, Edge
from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.served import load_segmenter
from export import model as export_model

CELL = ((Edge("prev", "skip"), Edge("prev_prev", "avg_pool_3x3")),)
ARCHITECTURE = Architecture(levels=(0,), cell=CELL, atrous="separable")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def members(folder):
    """The members of the smallest model file, by name."""
    model = Segmenter(
        ARCHITECTURE,
        num_classes=3,
        filter_multiplier=1,
        head_channels=4,
        decoder_channels=2,
        stem_channels=(2, 2, 2),
        class_names=("a", "b", "c"),
        image_size=(40, 60),
    )
    model.save(folder / "whole.keras")
    with zipfile.ZipFile(folder / "whole.keras") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def with_config(members, change):
    """The archive with its configuration changed in place."""
    config = json.loads(members["config.json"])
    change(config)
    return packed({**members, "config.json": json.dumps(config)}.items())


def with_network(members, network):
    """The archive with something else in the place of the network's configuration."""
    return with_config(members, lambda config: config["config"].update(architecture=network))


def filled(content, fill):
    """A weights file to which something was added."""
    stream = io.BytesIO(content)
    with h5py.File(stream, "r+") as file:
        fill(file)
    return stream.getvalue()


def code(source):
    """A Lambda layer as Keras writes it, of a function with this source."""
    function = eval(source)  # ours
    return keras.saving.serialize_keras_object(keras.layers.Lambda(function))


def evil_objects(canary):
    """Configurations that would run a program or read a file, were they followed."""
    lambdas = code(f"lambda x: __import__('os').mkdir({str(canary)!r}) or x")
    named = [
        ("keras.layers", "TFSMLayer", {"filepath": str(canary)}),
        ("keras.layers", "StringLookup", {"vocabulary": str(canary)}),
        ("keras.layers", "TextVectorization", {"vocabulary": str(canary)}),
        ("keras.layers", "TorchModuleWrapper", {"module": ""}),
        ("keras_hub.src.tokenizers.tokenizer", "Tokenizer", {}),
        ("keras_hub", "Tokenizer", {}),
        ("os", "mkdir", {"path": str(canary)}),
        ("keras.utils", "get_file", {"origin": f"file://{canary}"}),
        ("keras.src.utils.file_utils", "get_file", {"origin": f"file://{canary}"}),
        ("keras.src.saving.saving_lib", "load_model", {"filepath": str(canary)}),
        ("keras.callbacks", "CSVLogger", {"filename": str(canary)}),
        ("auto_deeplab_tf.segmenter", "Segmenter", {"architecture": str(canary)}),
        ("builtins", "eval", {}),
    ]
    objects = [{"module": m, "class_name": c, "config": a} for m, c, a in named]
    for module, name in (("builtins", "exec"), ("keras.utils", "get_file"), ("os", "system")):
        objects.append({"module": module, "class_name": "function", "config": name})
    objects += [{**item, "registered_name": "keras_hub>BytePairTokenizer"} for item in objects[:2]]
    objects.append({"class_name": "__numpy__", "config": {"value": 0, "dtype": "S4000000000"}})
    objects.append({"class_name": "__numpy__", "config": {"value": 0, "dtype": "4000000000f8"}})
    return [lambdas, lambdas["config"]["function"], *objects]


HUGE = dict(shape=(2**40,), dtype="f4", chunks=(2**16,))
CHANGES = {
    "huge": lambda file: file.create_dataset("huge", **HUGE),
    "filled": lambda file: file.create_dataset("big", data=np.zeros(10**6), compression="gzip"),
    "external link": lambda file: file.__setitem__("out", h5py.ExternalLink("/etc/passwd", "/")),
    "soft link": lambda file: file.__setitem__("soft", h5py.SoftLink("/nowhere")),
    "objects": lambda file: file.create_dataset("text", data=["a", "b"], dtype=h5py.string_dtype()),
    "external data": lambda file: file.create_dataset(
        "raw", (64,), "u1", external=[("/etc/passwd", 0, 64)]
    ),
    "virtual": lambda file: file.create_virtual_dataset(
        "virtual", h5py.VirtualLayout((2**40,), "f4")
    ),
}


@st.composite
def changed_archives(draw, members, canary):
    """A model file with its members, its configuration, its weights or its bytes changed."""
    members = dict(members)
    kind = draw(
        st.sampled_from(
            ["config"] * 4 + ["objects"] * 3 + ["weights"] * 3 + ["members", "bytes", "sizes"]
        )
    )
    if kind == "config":
        content = json.loads(members["config.json"])
        members["config.json"] = draw(changed_json(content, [*NASTY, [1, 1], "float16", "mse"]))
    elif kind == "objects":
        config = [json.loads(members["config.json"])]
        at, key = draw(st.sampled_from(list(places(config))))
        at[key] = draw(st.sampled_from(evil_objects(canary)))
        members["config.json"] = json.dumps(config[0])
    elif kind == "weights":
        weights = members["model.weights.h5"]
        change = draw(st.sampled_from([*CHANGES.values(), None, None, None, None]))
        members["model.weights.h5"] = (
            draw(changed_bytes(weights)) if change is None else filled(weights, change)
        )
    elif kind == "members":
        one, other = draw(st.permutations(list(members)))[:2]
        members[one] = members[other]
        if draw(st.booleans()):
            del members[other]
    content = packed(members.items())
    if kind == "bytes":
        content = draw(changed_bytes(content))
    elif kind == "sizes":  # of a member in the archive's directory
        start = content.rindex(b"PK\x01\x02") + draw(st.sampled_from([8, 10, 16, 20, 24, 42]))
        number = struct.pack("<I", draw(st.sampled_from([0, 1, 2**16, 2**31, 2**32 - 1])))
        content = content[:start] + number + content[start + 4 :]
    return content


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [25, pytest.param(1000, marks=pytest.mark.slow)])
def test_model_files(folder, members, count):
    path, canary = folder / "model.keras", folder / "canary"
    kinds = set()

    def check(content):
        path.write_bytes(content)
        found, error = refused(load_segmenter, path)
        kinds.add(error is None)
        if error is None:
            assert isinstance(found, Segmenter)
            assert sum(int(np.prod(v.shape)) for v in found.variables) < 10**6
            json.dumps(found.get_config()["class_names"])
        else:
            assert f"model={path}" in str(error)
        assert not canary.exists()

    hold(count, changed_archives(members, canary), check)
    assert kinds == {True, False}
    assert keras.Variable.__init__.__qualname__.startswith("Variable")


# ---- code


def test_no_object_that_runs_code_or_reads_files_is_made(tmp_path, members):
    canary, path = tmp_path / "canary", tmp_path / "model.keras"
    for evil in evil_objects(canary):
        path.write_bytes(with_network(members, evil))
        # Not refused by name: Keras finds no such class or function, the Segmenter no network.
        unknown = ("os", "builtins", "auto_deeplab_tf.segmenter")
        by_keras = evil.get("module") in unknown and evil["class_name"] != "__lambda__"
        rule = "cannot be read" if by_keras else "is no .keras file .config.json: it "
        with pytest.raises(UserError, match=f"model.keras {rule}"):
            load_segmenter(path)
    assert not canary.exists()


def test_lambdas_are_refused_by_keras_too(tmp_path, members, monkeypatch):
    """`safe_mode` is on: what the check of the configuration missed would still not run."""
    canary, path = tmp_path / "canary", tmp_path / "model.keras"
    evil = code(f"lambda x: __import__('os').mkdir({str(canary)!r}) or x")
    path.write_bytes(with_network(members, evil))
    monkeypatch.setattr(untrusted, "_check_objects", lambda config: None)
    with pytest.raises(UserError, match="cannot be read: .*arbitrary code execution"):
        load_segmenter(path)
    assert not canary.exists()


def test_a_network_is_never_read_from_a_file_that_is_named(tmp_path, members):
    """A Segmenter takes an architecture's file as well; one that is saved must hold its network."""
    ARCHITECTURE.save(tmp_path / "architecture.json")
    path = tmp_path / "model.keras"
    for name in ("auto_deeplab", str(tmp_path / "architecture.json")):
        path.write_bytes(with_network(members, name))
        with pytest.raises(UserError, match="the saved model must hold its network. Received: '"):
            load_segmenter(path)


# ---- memory


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("architecture", "config", "filter_multiplier"), 10**6),
        (("architecture", "config", "head_channels"), 10**9),
        (("architecture", "config", "num_classes"), 10**8),
        (("architecture", "config", "stem_channels"), [2, 2, 10**9]),
    ],
)
def test_variables_that_the_file_does_not_hold_are_not_allocated(tmp_path, members, keys, value):
    def change(config):
        config = config["config"]
        for key in keys[:-1]:
            config = config[key]
        config[keys[-1]] = value

    path = tmp_path / "model.keras"
    path.write_bytes(with_config(members, change))
    with pytest.raises(UserError, match="declares variables larger than the weights"):
        load_segmenter(path)


def test_other_models_are_bounded_too(tmp_path):
    inputs = keras.Input((4,))
    keras.Model(inputs, keras.layers.Dense(1)(inputs)).save(tmp_path / "other.keras")
    with zipfile.ZipFile(tmp_path / "other.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def change(config):
        config["config"]["layers"][1]["config"]["units"] = 10**10

    (tmp_path / "other.keras").write_bytes(with_config(members, change))
    with pytest.raises(UserError, match="declares variables larger than the weights"):
        load_segmenter(tmp_path / "other.keras")


@pytest.mark.parametrize("size", [[10**6, 10**6], [0, 5], [5], [5.0, 5.0], "44", [2**40, 1]])
def test_images_of_a_model_are_bounded(tmp_path, members, size):
    path = tmp_path / "model.keras"
    path.write_bytes(with_config(members, lambda config: config["config"].update(image_size=size)))
    with pytest.raises(UserError, match=r"image_size must be \(height, width\), at most 178956970"):
        load_segmenter(path)


@pytest.mark.parametrize("name", CHANGES)
def test_weights_that_are_elsewhere_or_not_there(tmp_path, members, name):
    path = tmp_path / "model.keras"
    weights = filled(members["model.weights.h5"], CHANGES[name])
    path.write_bytes(packed({**members, "model.weights.h5": weights}.items()))
    size = name in ("huge", "filled")
    rule = "would take .* bytes, and it has" if size else "holds links or objects"
    with pytest.raises(UserError, match=f"model.weights.h5 {rule}" if not size else rule):
        load_segmenter(path)


def test_archives_that_unpack_to_far_more(tmp_path, members):
    path = tmp_path / "model.keras"
    path.write_bytes(packed(members.items(), zipfile.ZIP_DEFLATED))
    assert isinstance(load_segmenter(path), Segmenter)  # packed again: fine
    bomb = {**members, "metadata.json": bytes(2**24)}
    path.write_bytes(packed(bomb.items(), zipfile.ZIP_DEFLATED))
    with pytest.raises(UserError, match="would take 1[0-9]+ bytes, more than the [0-9]+ allowed"):
        load_segmenter(path)
    path.write_bytes(packed({**members, "config.json": b" " * (2**22 + 1)}.items()))
    with pytest.raises(UserError, match="its config.json has more than 4194304 bytes"):
        load_segmenter(path)


# ---- members


def _link(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


@pytest.mark.parametrize("name", ["../up", "/abs", "assets/x", "a\\..\\b", _link("link"), "x\n"])
def test_other_members_are_refused(tmp_path, members, name):
    path = tmp_path / "model.keras"
    path.write_bytes(packed([*members.items(), (name, b"/etc/passwd")]))
    with pytest.raises(UserError, match="model.keras is no .keras file .it has another member, '"):
        load_segmenter(path)
    assert os.listdir(tmp_path) == ["model.keras"] and not (tmp_path.parent / "up").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_that_are_doubled_missing_or_packed_otherwise(tmp_path, members):
    path = tmp_path / "model.keras"
    for name in ("config.json", "model.weights.h5"):
        path.write_bytes(packed([*members.items(), (name, members[name])]))
        with pytest.raises(UserError, match="is no .keras file .two members of one name"):
            load_segmenter(path)
        path.write_bytes(packed([item for item in members.items() if item[0] != name]))
        with pytest.raises(UserError, match=f"is no .keras file .it has no {name}"):
            load_segmenter(path)
    path.write_bytes(packed(members.items(), zipfile.ZIP_LZMA))
    with pytest.raises(UserError, match="is no .keras file .'[a-z.]*' is compressed in an unknown"):
        load_segmenter(path)
    content = bytearray(packed(members.items()))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is no .keras file .'[a-z.]*' is encrypted"):
        load_segmenter(path)


# ---- other files of that name


def test_a_search_where_a_network_is_expected(tmp_path):
    build_supernet(
        num_classes=2,
        num_layers=1,
        num_blocks=1,
        filter_multiplier=1,
        input_size=(33, 33),
        stem_channels=(2, 2, 2),
    ).save(tmp_path / "model.keras")
    for load in (load_segmenter, export_model.load):
        with pytest.raises(UserError, match="model.keras holds .*Supernet'?, not a?"):
            load(tmp_path / "model.keras")


def test_what_is_no_model_file_ends_commands_with_one_line(tmp_path, members):
    image = tmp_path / "image.png"
    keras.utils.save_img(image, np.zeros((40, 40, 3)))
    paths = {name: tmp_path / f"{name}.keras" for name in ("empty", "folder", "pipe", "lambda")}
    paths["empty"].touch()
    paths["folder"].mkdir()
    os.mkfifo(paths["pipe"])
    evil = code("lambda x: x")
    paths["lambda"].write_bytes(with_network(members, evil))
    words = {
        "empty": "is no .keras file",
        "folder": "no such file",
        "pipe": "no such file",
        "lambda": "which may run code or read files",
    }
    for name, word in words.items():
        with pytest.raises((UserError, FileNotFoundError), match=word):
            load_segmenter(paths[name])
    flags = f"--model={paths['lambda']}", f"--image={image}", f"--output_dir={tmp_path / 'out'}"
    check_refused(run("predict", *flags), words["lambda"], flags[0])


def test_the_check_reads_what_keras_reads(folder, members):
    """Names, numbers of values, and nothing of the file's own claims."""
    found = untrusted.check_keras_file(folder / "whole.keras")
    assert found.class_name == "auto_deeplab_tf>Segmenter"
    with h5py.File(io.BytesIO(members["model.weights.h5"])) as file:
        sizes = []
        file.visititems(lambda _, item: sizes.append(getattr(item, "size", 0)))
    assert found.num_values == sum(sizes) > 500
