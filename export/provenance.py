"""The manifest of an export: digests of its files and of the model that it was made from.

A SavedModel has it inside, as `assets.extra/manifest.json`; a file FILE has it beside it, as
`FILE.manifest.json`. No framework is imported here.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

from auto_deeplab_tf.errors import MissingFileError, UserError

FOLDER_MANIFEST = "assets.extra/manifest.json"
FILE_MANIFEST_SUFFIX = ".manifest.json"
_PACKAGES = ("tensorflow", "keras", "numpy", "onnx", "tf2onnx", "ai-edge-litert")


def manifest_path(path: pathlib.Path) -> pathlib.Path:
    """Returns the place of the manifest of an exported folder or file."""
    if path.is_dir():
        return path / FOLDER_MANIFEST
    return path.with_name(path.name + FILE_MANIFEST_SUFFIX)


def write(
    path: pathlib.Path, model: pathlib.Path, metadata: Mapping[str, Any], name: str | None = None
) -> pathlib.Path:
    """Writes the manifest of a folder or file that is about to be published.

    Args:
        path: The export, complete but for its manifest.
        model: The model.keras that it was made from.
        metadata: What the export says of its network (`export.model.describe`).
        name: The name that a file will have; default: its own.

    Returns:
        The manifest's path.
    """
    content = {
        "manifest_version": 1,
        "package": metadata["package"],
        "architecture_fingerprint": metadata["architecture_fingerprint"],
        # The licence of the software; the model's own is for those who trained it to state.
        "license": {"software": "Apache-2.0", "model": None},
        "versions": {"python": platform.python_version(), **_versions()},
        "model": {"name": model.name, **_describe(model)},
        "files": {name or key: _describe(file) for key, file in _files(path).items()},
    }
    target = manifest_path(path)
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", "utf-8")
    return target


def verify(path: pathlib.Path, model: pathlib.Path | None = None) -> dict[str, Any]:
    """Compares an export with its manifest, and the manifest with a model.

    Args:
        path: A file, the folder of a SavedModel, or a folder of numbered versions (the highest).
        model: The model.keras that it should have been made from.

    Returns:
        The manifest, and the path that was checked as `path`.

    Raises:
        MissingFileError: If the export, its manifest or the model does not exist.
        UserError: If a file was changed, added or removed, or the model is another one.
    """
    path = _version(path)
    source = manifest_path(path)
    if not source.is_file():
        raise MissingFileError(
            f"path={path} has no manifest ({source}): it was not exported by this version or later."
        )
    try:
        manifest = json.loads(source.read_text("utf-8"))
        expected = dict(manifest["files"])
        expected_model = dict(manifest["model"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{source} is no manifest ({error}); export the model again.") from error
    found = {key: _describe(file) for key, file in _files(path).items()}
    problems = [f"{key} is missing" for key in sorted(expected.keys() - found.keys())]
    problems += [f"{key} was added" for key in sorted(found.keys() - expected.keys())]
    problems += [
        f"{key} was changed"
        for key in sorted(found.keys() & expected.keys())
        if found[key] != expected[key]
    ]
    if problems:
        raise UserError(f"path={path} is not as it was published: {'; '.join(problems)}.")
    if model is not None:
        if not model.is_file():
            raise MissingFileError(f"model={model}: no such file.")
        if _describe(model)["sha256"] != expected_model.get("sha256"):
            raise UserError(
                f"path={path} was made from another model than model={model}: from "
                f"{expected_model.get('name')} with SHA-256 {expected_model.get('sha256')}."
            )
    return {**manifest, "path": str(path)}


def _version(path: pathlib.Path) -> pathlib.Path:
    if not path.exists():
        raise MissingFileError(f"path={path}: no such file or folder.")
    if path.is_file() or (path / "saved_model.pb").is_file():
        return path
    versions = [entry for entry in path.iterdir() if entry.name.isdecimal() and entry.is_dir()]
    if not versions:
        raise UserError(f"path={path} is neither a SavedModel nor a folder of numbered versions.")
    return max(versions, key=lambda entry: int(entry.name))


def _files(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the files of an export but its manifest, by name relative to it."""
    if path.is_file():
        return {path.name: path}
    files = sorted(file for file in path.rglob("*") if file.is_file())
    names = {file.relative_to(path).as_posix(): file for file in files}
    return {name: file for name, file in names.items() if name != FOLDER_MANIFEST}


def _describe(path: pathlib.Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
