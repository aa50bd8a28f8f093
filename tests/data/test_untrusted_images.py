"""Image files and folders that nobody vouches for: an array, or one clear error."""

import functools
import io
import json
import os

import numpy as np
import pytest
import tifffile
from hypothesis import strategies as st
from mutations import changed_bytes, hold
from PIL import Image

from auto_deeplab_tf import data
from auto_deeplab_tf.data import image_files
from auto_deeplab_tf.errors import UserError

MAX_PIXELS = 10**5


def encoded(mode, file_format, **options):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, file_format, **options)
    return stream.getvalue()


def deep_tiff(channels, **options):
    pixels = np.random.default_rng(0).integers(0, 2**16, (24, 36, channels), dtype=np.uint16)
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, photometric="rgb", **options)
    return stream.getvalue()


@functools.cache
def files():
    """Images of every kind; made when they are used, since one needs TensorFlow."""
    return (
        *(encoded(mode, "PNG") for mode in ("RGB", "P", "L", "1", "RGBA")),
        encoded("RGB", "JPEG"),
        encoded("RGB", "TIFF"),
        encoded("L", "TIFF", compression="tiff_deflate"),
        encoded("RGB", "TIFF", compression="tiff_lzw"),
        deep_tiff(3),
        deep_tiff(4, compression="zlib", predictor=True),
        image_files.encode_png(np.full((24, 36, 3), 300, np.uint16)),
    )


@st.composite
def changed_images(draw):
    content = draw(st.sampled_from(files()))
    # Headers and tags stand at the ends, and are where it matters.
    at = draw(st.sampled_from([200, 500, 10**9]))
    return draw(changed_bytes(content[:at])) + content[at:]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_images(count):
    kinds = set()

    def check(content):
        try:
            decoded = image_files.decode(content, MAX_PIXELS)
            assert image_files.image_traits(content)[0] in (1, 3, 4)
            for array in (decoded.stored(), decoded.pixels()):
                assert 0 < array.shape[0] * array.shape[1] <= MAX_PIXELS
            kinds.add(True)
        except (OSError, UserError) as error:
            assert "\n" not in " ".join(str(error).split())
            kinds.add(False)

    hold(count, changed_images(), check)
    assert kinds == {True, False}


def test_no_program_is_run_for_an_image(tmp_path, monkeypatch):
    """Pillow has Ghostscript read PostScript: no format that this project takes."""
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/canary\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 36 24\n%%EndComments\nshowpage\n%%EOF\n"
    assert Image.open(io.BytesIO(content)).format == "EPS"
    with pytest.raises(OSError, match="no image of a known format"):
        image_files.decode(content)
    with pytest.raises(OSError):
        image_files.image_traits(content)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["images/b.png", "masks/b.png"])
def test_a_pipe_among_the_images_is_named_and_not_waited_for(tmp_path, name):
    root = tmp_path / "set"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
        for stem in "abc":
            Image.new("L", (36, 24)).save(root / folder / f"{stem}.png")
    (root / "dataset.json").write_text(json.dumps({"classes": ["a", "b"]}))
    (root / name).unlink()
    os.mkfifo(root / name)
    with pytest.raises(UserError, match=f"{name} is no regular file"):
        data.open_split("folder", "train", data_dir=root, cache_dir=tmp_path / "cache")
