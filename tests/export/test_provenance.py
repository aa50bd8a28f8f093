"""The manifest of an export, and what `export.verify` finds; no framework."""

import hashlib
import json

import forked
import pytest

from auto_deeplab_tf.errors import MissingFileError, UserError
from export import common, provenance

METADATA = {"package": "auto_deeplab_tf 0", "architecture_fingerprint": "abc"}


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.keras"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def served(tmp_path, model):
    """Two versions of a SavedModel; the newer one by number is the earlier one by text."""
    for name in ("9", "10"):
        version = tmp_path / "served" / name
        (version / "variables").mkdir(parents=True)
        (version / "saved_model.pb").write_text(f"graph {name}")
        (version / "variables" / "data").write_bytes(bytes(100))
        provenance.write(version, model, METADATA)
    return tmp_path / "served"


@pytest.fixture
def file(tmp_path, model):
    staged = tmp_path / "staged" / "any.onnx"
    staged.parent.mkdir()
    staged.write_bytes(b"content")
    common.publish_file(staged, tmp_path / "model.onnx", model, METADATA)
    assert not list(staged.parent.iterdir())
    return tmp_path / "model.onnx"


def test_a_manifest_names_files_model_versions_and_licence(served, file, model):
    manifest = json.loads((served / "10" / "assets.extra" / "manifest.json").read_text())
    assert manifest["files"] == {
        "saved_model.pb": {"sha256": hashlib.sha256(b"graph 10").hexdigest(), "bytes": 8},
        "variables/data": {"sha256": hashlib.sha256(bytes(100)).hexdigest(), "bytes": 100},
    }
    assert manifest["model"] == {
        "name": "model.keras",
        "sha256": hashlib.sha256(b"weights").hexdigest(),
        "bytes": 7,
    }
    assert manifest["architecture_fingerprint"] == "abc"
    assert {"python", "tensorflow", "keras"} <= set(manifest["versions"])
    assert manifest["license"]["software"] == "Apache-2.0"
    beside = json.loads(file.with_name("model.onnx.manifest.json").read_text())
    assert set(beside["files"]) == {"model.onnx"}


def test_what_was_published_is_verified(served, file, model):
    assert provenance.verify(file, model)["path"] == str(file)
    assert provenance.verify(served / "9", model)["path"] == str(served / "9")
    assert provenance.verify(served)["path"] == str(served / "10")


def changed(version):
    (version / "variables" / "data").write_bytes(bytes(99) + b"1")


def added(version):
    (version / "assets.extra" / "more").touch()


def removed(version):
    (version / "saved_model.pb").unlink()
    (version / "saved_model.pb").symlink_to("nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed, "is not as it was published: variables/data was changed"),
        (added, "is not as it was published: assets.extra/more was added"),
        (removed, "is not as it was published: saved_model.pb is missing"),
    ],
)
def test_every_change_is_named(served, change, message):
    change(served / "10")
    with pytest.raises(UserError, match=message):
        provenance.verify(served)
    provenance.verify(served / "9")


def test_another_model_is_named(file, model, tmp_path):
    model.write_bytes(b"trained further")
    with pytest.raises(UserError, match="was made from another model than model=.*SHA-256"):
        provenance.verify(file, model)
    with pytest.raises(MissingFileError, match="no such file"):
        provenance.verify(file, tmp_path / "none.keras")


def test_what_has_no_manifest(file, tmp_path):
    with pytest.raises(MissingFileError, match="no such file or folder"):
        provenance.verify(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither a SavedModel nor a folder of numbered versions"):
        provenance.verify(tmp_path / "empty")
    manifest = provenance.manifest_path(file)
    for content in ("junk", "{}", "[]"):
        manifest.write_text(content)
        with pytest.raises(UserError, match="is no manifest"):
            provenance.verify(file)
    manifest.unlink()
    with pytest.raises(MissingFileError, match="has no manifest"):
        provenance.verify(file)


def test_command(served, model):
    def verify(*more):
        return forked.run("export.verify", f"--path={served}", *more)

    done = verify(f"--model={model}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"verified {served}/10: 2 files as published by auto_deeplab_tf")
    assert json.loads(verify("--json").stdout)["path"] == f"{served}/10"
    changed(served / "10")
    done = verify()
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: --path={served}/10 is not as it was published")
