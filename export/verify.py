"""Checks that an export is as it was published, and made from a certain model.

    python -m export.verify --path=served --model=RUN/model.keras
    python -m export.verify --path=model.onnx

Compares the SHA-256 of every file with the manifest that the exporter wrote, and with --model that
of the model it was made from. Exit code 1, one line: a file was changed, added or removed, or the
model is another one.
"""

from __future__ import annotations

import pathlib

from auto_deeplab_tf import cli, config
from export import provenance

cli.define(config.VerifyConfig)


def main() -> None:
    """Verifies as the flags say and prints what was found."""
    options = cli.read(config.VerifyConfig)
    model = None if options.model is None else pathlib.Path(options.model)
    manifest = provenance.verify(pathlib.Path(options.path), model)
    if options.json:
        cli.print_json(manifest)
        return
    print(
        f"verified {manifest['path']}: {len(manifest['files'])} files as published by "
        f"{manifest['package']}, from {manifest['model']['name']} "
        f"(SHA-256 {manifest['model']['sha256']})"
    )


if __name__ == "__main__":
    cli.run(main)
