"""Small data sets on disk: records of plain images, and CamVid as its users have it."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from auto_deeplab_tf.data import image_files, records, sets, shards
from auto_deeplab_tf.data.dataset import RawExample, in_memory
from auto_deeplab_tf.data.source import Source

TOY = dataclasses.replace(
    sets.describe("camvid"),
    name="toy",
    class_names=("low", "middle", "high"),
    colors=((0, 0, 0), (100, 100, 100), (200, 200, 200)),
    label_ids={0: 0, 1: 1, 2: 2, 9: 255},
)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def flip_byte(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.fixture
def cache(tmp_path):
    """The folder of records."""
    return tmp_path / "cache"


@pytest.fixture
def make_source(tmp_path):
    """Writes records of given examples and opens them."""

    def make(examples, image_size=None, name="toy"):
        directory = tmp_path / name
        directory.mkdir()
        raw = [
            RawExample(
                image_id,
                image_id.split("_")[0],
                image_files.encode_png(image),
                image_files.encode_png(label),
            )
            for image_id, image, label in examples
        ]
        settings = records.Settings(image_size)
        shards.write(directory, in_memory(TOY, {"train": raw}), settings, fingerprint="none")
        return Source(directory, "train", TOY)

    return make


@pytest.fixture
def numbered_source(make_source):
    """Seven examples of 12x20; every pixel of example i has the value i."""
    label = np.zeros((12, 20), np.uint8)
    return make_source(
        [(f"a_{i:03d}", np.full((12, 20, 3), i, np.uint8), label) for i in range(7)],
        name="numbered",
    )


@pytest.fixture
def make_camvid(tmp_path):
    """Writes a small set in CamVid's layout."""

    def make(counts, suffix=".png", size=(24, 36), name="CamVid"):
        root = tmp_path / name
        rng = np.random.default_rng(0)
        for split, count in counts.items():
            (root / split).mkdir(parents=True)
            (root / f"{split}annot").mkdir()
            for i in range(count):
                stem = f"{'0001TP' if i % 2 else '0016E5'}_{i:06d}"
                image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                label = rng.integers(0, 12, size, dtype=np.uint8)
                Image.fromarray(image).save(root / split / f"{stem}{suffix}")
                Image.fromarray(label).save(root / f"{split}annot" / f"{stem}.png")
            listed = [f"/SegNet/CamVid/{split}/x.png /SegNet/CamVid/{split}annot/x.png\n"] * count
            (root / f"{split}.txt").write_text("".join(listed))
        return root

    return make
