"""Files without a framework that nobody vouches for: an object, or one clear error."""

import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from commands import check_refused, run
from hypothesis import strategies as st
from mutations import NASTY, changed_bytes, changed_json, dump, hold, packed, refused

from auto_deeplab_tf import decoding, untrusted
from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.data.sets.folder_config import FolderConfig
from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.search_space import MAX_BLOCKS, MAX_LAYERS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("untrusted")


@pytest.fixture
def little_memory():
    """Fails where more than 64 MiB are allocated at a time, by Python or NumPy."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**26


# ---- JSON


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (b'{"a": 1, "b": 2, "b": 3}', "key 'b' comes twice"),
        (b'{"a": NaN}', "not a JSON file: NaN is not a JSON number"),
        (b'{"a": -Infinity}', "not a JSON file: -Infinity is not a JSON number"),
        (b'{"a": 1e999}', "not a JSON file: '1e999' is beyond the range of numbers"),
        (b'{"a": "\\ud800"}', "not a JSON file: .* surrogates not allowed"),
        (b'{"\\ud800": 1}', "not a JSON file: .* surrogates not allowed"),
        (b"[" * 66 + b"]" * 66, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"1" * 5000, "not a JSON file: Exceeds the limit"),
        (b'"\xff"', "not a JSON file: .*utf-8"),
    ],
)
def test_json_that_cannot_be_written_again_is_refused(text, rule):
    with pytest.raises(UserError, match=rule):
        untrusted.parse_json(text)


def test_json_within_the_limits_is_read(folder):
    path = folder / "value.json"
    text = json.dumps({"a": [1.5, None, "\u00e9\U0001f600", {"b": True}]})
    path.write_text(text + " " * (untrusted.MAX_JSON_BYTES - len(text)))
    assert untrusted.read_json(path) == json.loads(text)
    assert untrusted.parse_json(b"[" * 65 + b"]" * 65)
    with path.open("a") as file:
        file.write(" ")
    with pytest.raises(UserError, match="more than 4194304 bytes"):
        untrusted.read_json(path)


# ---- architecture.json


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_architectures(folder, count):
    whole = Architecture.preset("auto_deeplab")
    path = folder / "architecture.json"
    kinds = set()

    def check(content):
        path.write_bytes(content)
        found, error = refused(Architecture.load, path)
        kinds.add(error is None)
        if error is None:
            assert Architecture.from_json(found.to_json()) == found
            assert found.num_layers <= MAX_LAYERS and found.num_blocks <= MAX_BLOCKS
        else:
            assert str(error).startswith(f"{path}: ")

    content = whole.to_dict()
    hold(count, changed_json(content) | changed_bytes(whole.to_json().encode()), check)
    assert kinds == {True, False}


def test_sizes_of_an_architecture_are_bounded():
    content = Architecture.preset("auto_deeplab").to_dict()
    assert Architecture.from_dict({**content, "levels": [0] * MAX_LAYERS}).num_layers == MAX_LAYERS
    with pytest.raises(UserError, match="levels must have at most 256 layers. Received: 257"):
        Architecture.from_dict({**content, "levels": [0] * 257})
    with pytest.raises(UserError, match="cell must have at most 64 blocks. Received: 65"):
        Architecture.from_dict({**content, "cell": content["cell"][:1] * 65})


# ---- logits.npz


def _npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _header(text, version=1):
    """The beginning of a .npy file with a header of one's own."""
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode()


class Canary:
    """An object that makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


GOOD = {"alpha": np.zeros((20, 8)), "beta": np.zeros((12, 4, 3)), "atrous": np.array("full")}
BIG = "{'descr': '<f8', 'fortran_order': False, 'shape': (%s,)}\n"
BAD_ARRAYS = [
    _header(BIG % "9999999999"),
    _header(BIG % "-8, -2"),
    _header(BIG % "2, 2") + bytes(31),
    _header(BIG % "2, 2") + bytes(33),
    _header(BIG % "0, 99999999999999999999"),
    _header("{'descr': '|S4000000000', 'fortran_order': False, 'shape': ()}\n"),
    _header("{'descr': '|O', 'fortran_order': False, 'shape': ()}\n") + pickle.dumps([1]),
    _header("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1,)}\n") + bytes(8),
    _header(BIG % "1L") + bytes(8),
    _header("__import__('os').mkdir('canary')\n"),
    _header("(" * 4000),
    _header(BIG % "1", 2) + bytes(9),
    b"\x93NUMPY\x03\x00" + bytes(200),
    b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(200),
    pickle.dumps([1]),
    b"",
]


@st.composite
def _changed_npz(draw):
    arrays = [(f"{name}.npy", _npy(array)) for name, array in GOOD.items()]
    kind = draw(st.sampled_from(["bytes", "member", "header", "names", "packed"]))
    at = draw(st.integers(0, len(arrays) - 1))
    if kind == "member":
        arrays[at] = (arrays[at][0], draw(changed_bytes(arrays[at][1])))
    elif kind == "header":
        arrays[at] = (arrays[at][0], draw(st.sampled_from(BAD_ARRAYS)))
    elif kind == "names":
        name = draw(st.sampled_from(["beta.npy", "edge.npy", "../x", "/x", "operations.npy", "x"]))
        arrays.append((name, arrays[at][1]))
    compression = draw(
        st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
    )
    content = packed(arrays, compression if kind == "packed" else zipfile.ZIP_STORED)
    return draw(changed_bytes(content)) if kind == "bytes" else content


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_logits(folder, count):
    path = folder / "logits.npz"
    kinds = set()

    def check(content):
        path.write_bytes(content)
        found, error = refused(decoding.load_logits, path)
        kinds.add(error is None)
        if error is None:
            assert found.alpha.shape[1] == 8 and found.beta.shape[1:] == (4, 3)
        else:
            assert str(error).startswith(str(path))

    hold(count, _changed_npz(), check)
    assert kinds == {True, False}


@pytest.mark.parametrize("array", BAD_ARRAYS, ids=range(len(BAD_ARRAYS)))
def test_arrays_that_are_not_what_they_declare(folder, array, little_memory):
    path = folder / "bad.npz"
    path.write_bytes(packed([("alpha.npy", array), ("beta.npy", _npy(GOOD["beta"]))]))
    with pytest.raises(UserError, match="is not a complete .npz file of numbers"):
        decoding.load_logits(path)
    assert not os.path.exists("canary")


def test_pickled_objects_stay_packed(tmp_path):
    path, canary = tmp_path / "logits.npz", tmp_path / "canary"
    np.savez(path, alpha=np.array([Canary(canary)], object), beta=GOOD["beta"])
    with pytest.raises(UserError, match="is not a complete .npz file of numbers"):
        decoding.load_logits(path)
    path.write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(UserError, match="is not a complete .npz file of numbers"):
        decoding.load_logits(path)
    assert not canary.exists()


def test_what_unpacks_to_far_more_is_refused(tmp_path, little_memory):
    path = tmp_path / "logits.npz"
    np.savez_compressed(path, **GOOD)
    assert decoding.load_logits(path).atrous == "full"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("alpha.npy", "w") as file:
            for _ in range(96):
                file.write(bytes(2**20))
    assert path.stat().st_size < 2**19
    with pytest.raises(UserError, match="is not a complete .npz file of numbers"):
        decoding.load_logits(path)


# ---- dataset.json

CONFIG = {
    "classes": [
        {"name": "road", "ids": [7], "color": [128, 64, 128]},
        {"name": "vehicle", "ids": [26, 27, 28]},
        "sky",
    ],
    "ignore": [0, 255],
    "masks": "ids",
    "group": "^[^_]+",
    "frames_per_block": 10,
    "val_fraction": 0.1,
    "split_seed": 0,
    "channels": 3,
    "bits": 8,
    "mean": [105.0, 108.4, 110.3],
    "std": [78.3, 79.5, 78.3],
    "images_dir": "images",
    "masks_dir": "masks",
    "mask_suffix": "",
}


@pytest.mark.parametrize("count", [200, pytest.param(3000, marks=pytest.mark.slow)])
def test_descriptions_of_folders(folder, count):
    path = folder / "dataset.json"
    kinds = set()

    def check(content):
        path.write_bytes(content)
        found, error = refused(FolderConfig.load, path)
        kinds.add(error is None)
        if error is None:
            found, error = refused(found.description, found.channels or 3, found.bits or 8)
            if error is None:
                assert 2 <= found.num_classes <= 255 and len(found.palette) == found.num_classes
        if error is not None:
            assert str(error).startswith(f"{path}: ")

    nasty = [*NASTY, "(", "(?", "a{99999999999999999999}", "colors", "folder", 3.0, [0, 0, 0]]
    hold(count, changed_json(CONFIG, nasty) | changed_bytes(dump(CONFIG).encode()), check)
    assert kinds == {True, False}


@pytest.mark.parametrize("key", ["images_dir", "masks_dir"])
@pytest.mark.parametrize(
    "name", ["..", "../other", "images/../../other", "/etc", "a\0b", "x" * 300, 3, None, ["images"]]
)
def test_folders_outside_of_the_set_are_refused(tmp_path, key, name):
    (tmp_path / "dataset.json").write_text(json.dumps({"classes": ["a", "b"], key: name}))
    with pytest.raises(UserError, match=f"{key} must be a folder inside that of the data set"):
        FolderConfig.load(tmp_path / "dataset.json")


@pytest.mark.parametrize("group", ["(", "(?", "a{99999999999999999999}", "(" * 3000, 3])
def test_groups_that_are_no_regular_expressions(tmp_path, group):
    (tmp_path / "dataset.json").write_text(json.dumps({"classes": ["a", "b"], "group": group}))
    with pytest.raises(UserError, match="group must be .* a regular expression"):
        FolderConfig.load(tmp_path / "dataset.json")


def test_folders_inside_of_the_set_are_taken(tmp_path):
    for name in ("left images", "a/b", ".", "a..b/c"):
        (tmp_path / "dataset.json").write_text(
            json.dumps({"classes": ["a", "b"], "images_dir": name})
        )
        assert FolderConfig.load(tmp_path / "dataset.json").images_dir == name


# ---- what is no file


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
@pytest.mark.parametrize("load", [Architecture.load, decoding.load_logits, FolderConfig.load])
def test_pipes_folders_and_devices_are_no_files(tmp_path, make, load):
    path = tmp_path / "file"
    make(path)
    assert isinstance(refused(load, path)[1], FileNotFoundError)


def test_nothing_but_regular_files_is_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (untrusted.read_json, untrusted.read_npz, untrusted.check_keras_file):
        for path in ("/dev/zero", tmp_path, tmp_path / "pipe"):
            with pytest.raises(UserError, match="not a regular file"):
                read(path)


# ---- the command line


def test_commands_refuse_in_one_line(tmp_path):
    path = tmp_path / "architecture.json"
    path.write_bytes(b'{"levels": ' + b"[" * 30 + b"]" * 30 + b"}")
    check_refused(run("summarize", f"--architecture={path}"), "lacks the key 'schema_version'")
    content = Architecture.preset("auto_deeplab").to_dict() | {"x\x1b[2J\n": 1}
    path.write_text(json.dumps(content))
    check_refused(run("summarize", f"--architecture={path}"), r"unknown key 'x\x1b[2J\n'")
    logits = tmp_path / "logits.npz"
    np.savez(logits, **{"\x1b[2J": 1})
    done = run("decode", f"--logits={logits}", f"--output={tmp_path}/out.json")
    check_refused(done, r"has no array 'alpha': alpha and beta are expected. Received: \x1b[2J")
