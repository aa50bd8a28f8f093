"""Records that nobody vouches for: their examples, or one clear error.

Whoever changes a folder of records can make its checksums fit again, so these always do.
"""

import dataclasses
import io
import json
import os
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from mutations import NASTY, changed_bytes, changed_json, hold, refused
from PIL import Image

from auto_deeplab_tf.data import image_files, records, shards
from auto_deeplab_tf.data.dataset import RawExample, in_memory
from auto_deeplab_tf.data.source import Source, damage_named
from auto_deeplab_tf.errors import UserError
from tests.data.conftest import TOY

INFO = dataclasses.replace(TOY, mean=(), std=())
SHARD, INDEX = "train-00000.tfrecord", "train.index.npz"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of a folder of records of three examples, by name."""
    directory = tmp_path_factory.mktemp("whole")
    rng = np.random.default_rng(0)
    examples = []
    for i, size in enumerate([(24, 36), (30, 20), (24, 36)]):
        image = image_files.encode_png(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        label = image_files.encode_png(rng.integers(0, 3, size, dtype=np.uint8))
        examples.append(RawExample(f"a_{i}", "a", image, label))
    raw = in_memory(INFO, {"train": examples})
    shards.write(directory, raw, records.Settings(), fingerprint="none")
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def write(directory, files, sign=True):
    """Writes a folder of records whose manifest has the digests of its files and of itself."""
    manifest = json.loads(files[records.MANIFEST])
    for name, content in files.items():
        if name != records.MANIFEST:
            (directory / name).write_bytes(content)
            described = records.describe_file(directory / name)
            if sign and name in manifest["splits"]["train"]["files"]:
                manifest["splits"]["train"]["files"][name] = described
    sign_manifest(directory, manifest)


def sign_manifest(directory, manifest):
    digest = records._manifest_digest(manifest)
    (directory / records.MANIFEST).write_text(json.dumps({**manifest, "digest": digest}))


def read(directory):
    """Opens the records and reads all of them."""
    source = Source(directory, "train", INFO)
    with damage_named(source):
        for index in range(source.num_examples):
            image, label = source.example(index)
            assert image.shape[:2] == label.shape and image.shape[2] == 3
    assert len(list(source.ids)) == len(list(source.groups)) == source.num_examples
    assert np.isfinite([*source.info.mean, *source.info.std]).all()
    return source


def arrays_of(content):
    with np.load(io.BytesIO(content)) as file:
        return dict(file)


def npz(arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def record(payload, length=None):
    """A TFRecord with right checksums, whatever length it declares."""
    head = struct.pack("<Q", len(payload) if length is None else length)
    return head + crc32c(head) + payload + crc32c(payload)


def example(**files):
    features = {
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
        for name, content in files.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def encoded(size, file_format="PNG"):
    stream = io.BytesIO()
    Image.new("RGB" if file_format != "GIF" else "P", size[::-1]).save(stream, file_format)
    return stream.getvalue()


def declaring(png, width, height):
    """A PNG whose header declares another size, with the right checksum."""
    header = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


LABEL = image_files.encode_png(np.zeros((24, 36), np.uint8))
FILES = {
    "good": encoded((24, 36)),
    "jpeg": encoded((24, 36), "JPEG"),
    "size": encoded((24, 37)),
    "jpeg size": encoded((37, 24), "JPEG"),
    "huge": declaring(encoded((24, 36)), 16000, 16000),
    "negative": declaring(encoded((24, 36)), 2**32 - 1, 24),
    "gif": encoded((24, 36), "GIF"),
    "bmp": encoded((24, 36), "BMP"),
    "cut": encoded((24, 36))[:60],
    "short": b"\x89PNG\r\n\x1a\n",
    "empty": b"",
    "text": b"image" * 20,
}


def one_record(whole, payload):
    """A folder of one record of 24x36 pixels."""
    arrays = {name: a[:1] for name, a in arrays_of(whole[INDEX]).items()}
    manifest = json.loads(whole[records.MANIFEST])
    manifest["splits"]["train"]["num_examples"] = 1
    return {SHARD: payload, INDEX: npz(arrays), records.MANIFEST: json.dumps(manifest)}


@st.composite
def changed_records(draw, whole):
    """Files of a folder of which one was changed."""
    files = dict(whole)
    kind = draw(st.sampled_from(["manifest", "manifest", "index", "index", "shard", "record"]))
    if kind == "manifest":
        manifest = json.loads(files[records.MANIFEST])
        files[records.MANIFEST] = draw(changed_json(manifest, [*NASTY, [[1] * 3] * 3, [1] * 3]))
    elif kind == "index":
        arrays = arrays_of(files[INDEX])
        name = draw(st.sampled_from(list(arrays)))
        array = arrays[name]
        change = draw(
            st.sampled_from(["drop", "cast", "shape", "value", "value", "order", "bytes"])
        )
        if change == "drop":
            del arrays[name]
        elif change == "cast":
            kinds = ["U9", "S9"] if array.dtype.kind == "S" else ["f8", "U9", "i8", "u8"]
            arrays[name] = array.astype(draw(st.sampled_from(kinds)))
        elif change == "shape":
            arrays[name] = draw(st.sampled_from([array[:0], array[None], array[:-1], array[0]]))
        elif change == "value" and array.dtype.kind == "i":
            array.flat[draw(st.integers(0, array.size - 1))] = draw(
                st.sampled_from([-1, 0, 1, 7, 36, 2**20, 2**31 - 1])
            )
        elif change == "value":
            array[0] = draw(st.sampled_from([b"", b"\xff\xfe", b"z", b"../"]))
        elif change == "order":
            arrays[name] = array[::-1]
        files[INDEX] = npz(arrays)
        if change == "bytes":
            files[INDEX] = draw(changed_bytes(files[INDEX]))
    elif kind == "shard":
        files[SHARD] = draw(changed_bytes(files[SHARD]))
    else:
        one, other = (draw(st.sampled_from(list(FILES.values()))) for _ in range(2))
        files = one_record(whole, record(example(image=one, label=other)))
    return files


@pytest.mark.parametrize("count", [80, pytest.param(2000, marks=pytest.mark.slow)])
def test_records(tmp_path_factory, whole, count):
    directory = tmp_path_factory.mktemp("records")
    kinds = set()

    def check(files):
        try:
            write(directory, files)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            # No manifest to sign.
            (directory / records.MANIFEST).write_bytes(files[records.MANIFEST])
        _, error = refused(read, directory)
        kinds.add(error is None)
        assert error is None or str(directory) in str(error)

    hold(count, changed_records(whole), check)
    assert kinds == {True, False}


@pytest.mark.parametrize("name", FILES)
def test_images_are_decoded_at_their_size_only(tmp_path, whole, name):
    for image, label in ((FILES[name], LABEL), (FILES["jpeg"], FILES[name])):
        files = one_record(whole, record(example(image=image, label=label)))
        write(tmp_path, files)
        if name in ("good", "jpeg"):
            read(tmp_path)
        else:
            with pytest.raises(UserError, match="cannot be read as an example") as caught:
                read(tmp_path)
            if name in ("size", "jpeg size", "huge", "negative"):  # before it is decoded
                assert "an image has another size than its index" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shards", 1),
        ("shards", -1),
        ("offsets", -1),
        ("group_codes", 1),
        ("sizes", 0),
        ("ids", b"z"),
        ("ids", b"\xff"),
        ("group_names", b"\xff"),
    ],
)
def test_numbers_and_texts_that_no_index_should_have(tmp_path, whole, name, value):
    arrays = arrays_of(whole[INDEX])
    arrays[name][-1 if value == b"\xff" else 0] = value
    write(tmp_path, {**whole, INDEX: npz(arrays)})
    with pytest.raises(UserError, match=f"{INDEX} is damaged"):
        Source(tmp_path, "train", INFO)


def test_images_that_no_index_should_have(tmp_path, whole):
    """Both declare it: the limit of pixels holds."""
    files = one_record(whole, record(example(image=FILES["huge"], label=FILES["huge"])))
    arrays = arrays_of(files[INDEX])
    arrays["sizes"][:] = 16000
    files[INDEX] = npz(arrays)
    write(tmp_path, files)
    with pytest.raises(UserError, match="256000000 pixels, more than max_image_pixels=178956970"):
        read(tmp_path)


@pytest.mark.parametrize("length", [0, 2**31, 2**45, 2**63, 2**64 - 8])
def test_lengths_that_are_not_there(tmp_path, whole, length):
    """TensorFlow would allocate them: of 2**45 bytes the process would die."""
    files = one_record(whole, record(example(image=FILES["good"], label=LABEL), length))
    write(tmp_path, files)
    with pytest.raises(UserError, match=f"{SHARD} is damaged: delete the folder"):
        Source(tmp_path, "train", INFO)


@pytest.mark.parametrize("payload", [b"", b"\xff" * 40, example(image=b"x"), example()])
def test_records_that_hold_no_example(tmp_path, whole, payload):
    write(tmp_path, one_record(whole, record(payload)))
    with pytest.raises(UserError, match="cannot be read as an example of its data set: delete the"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", "..", "."])
@pytest.mark.parametrize("key", ["shards", "index", "files", "unlisted"])
def test_files_outside_of_the_folder_are_not_opened(tmp_path, whole, key, name):
    directory = tmp_path / "records"
    directory.mkdir()
    write(directory, whole)
    (tmp_path / "outside").write_bytes(whole[SHARD])
    manifest = json.loads((directory / records.MANIFEST).read_text())
    entry = manifest["splits"]["train"]
    if key != "unlisted":
        entry["files"][name] = entry["files"][INDEX if key == "index" else SHARD]
    if key != "files":
        entry.update({"index": name} if key == "index" else {"shards": [name]})
    sign_manifest(directory, manifest)
    with pytest.raises(UserError, match="records.json is damaged"):
        Source(directory, "train", INFO)


def test_pipes_in_the_place_of_files_are_not_waited_for(tmp_path, whole):
    for name in whole:
        directory = tmp_path / f"records of {name}"
        directory.mkdir()
        write(directory, whole)
        (directory / name).unlink()
        os.mkfifo(directory / name)
        if name != records.MANIFEST:
            manifest = json.loads((directory / records.MANIFEST).read_text())
            manifest["splits"]["train"]["files"][name]["bytes"] = 0
            sign_manifest(directory, manifest)
        with pytest.raises(UserError, match=f"{name} is damaged"):
            Source(directory, "train", INFO)


def test_an_index_that_declares_more_than_it_holds(tmp_path, whole):
    stream = io.BytesIO()
    header = b"{'descr': '|S64', 'fortran_order': False, 'shape': (99999999,)}\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("ids.npy", array)
    write(tmp_path, {**whole, INDEX: stream.getvalue()})
    tracemalloc.start()
    with pytest.raises(UserError, match=f"{INDEX} is damaged"):
        Source(tmp_path, "train", INFO)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_crafted_checksum_is_that_of_tensorflow(tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "file")) as writer:
        writer.write(b"payload")
    assert (tmp_path / "file").read_bytes() == record(b"payload")
