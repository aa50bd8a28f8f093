"""Tiles: they cover an image once, blend where they overlap, and bound the memory."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from auto_deeplab_tf import tiling
from auto_deeplab_tf.errors import UserError

tifffile = pytest.importorskip("tifffile")


@pytest.mark.parametrize("length", [*range(40, 75), 200, 1001])
@pytest.mark.parametrize(("tile", "overlap"), [(40, 0), (40, 7), (39, 13), (33, 11)])
def test_the_weights_of_all_tiles_sum_to_one(length, tile, overlap):
    total = np.zeros(length)
    found = tiling.spans(length, tile, overlap)
    for span in found:
        end = span.begin + len(span.weights)
        assert span.start <= span.begin and end <= span.start + tile <= length
        total[span.begin : end] += span.weights
    np.testing.assert_allclose(total, 1, atol=1e-6)
    # As few as the overlap allows.
    assert (len(found) - 1) * (tile - overlap) + overlap < length
    for one, two in zip(found, found[1:], strict=False):
        assert one.begin + len(one.weights) - two.begin == overlap == one.fading


@pytest.mark.parametrize(("tile", "overlap"), [(50, 0), (40, 14)])
def test_tiles_that_do_not_fit_are_refused(tile, overlap):
    with pytest.raises(ValueError, match="do not fit"):
        tiling.spans(40, tile, overlap)


@pytest.mark.parametrize("tile", [(16, 24), (30, 100), (100, 30), (200, 200)])
@pytest.mark.parametrize("overlap", [0, 5])
def test_predictions_that_need_no_context_do_not_depend_on_tiles(tile, overlap):
    logits = np.random.default_rng(0).normal(size=(71, 90, 4)).astype(np.float32)

    def window(top, left, height, width):
        assert (height, width) == (min(tile[0], 71), min(tile[1], 90))
        return logits[top : top + height, left : left + width]

    bands = list(tiling.class_ids((71, 90), tile, overlap, window))
    np.testing.assert_array_equal(np.concatenate(bands), logits.argmax(-1))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("confidence", "shared"), [(5.0, 1), (12.0, 0), (1.5, 2)])
def test_the_overlap_blends_linearly(axis, confidence, shared):
    """Of two tiles that disagree, the second is `confidence` times as sure as the first."""

    def window(*place):
        second = place[axis] > 0
        found = np.zeros((*place[2:], 2), np.float32)
        found[..., int(second)] = confidence if second else 1.0
        return found

    size, tile = np.roll([(20, 54), (20, 30)], 1 - axis, axis=1).tolist()
    mask = np.concatenate(list(tiling.class_ids(tuple(size), tuple(tile), 6, window)))
    # From 24 to 30 the second one's weights are (k + 1/2) / 6: it wins from 1 / (1 + confidence).
    line = np.moveaxis(mask, axis, 0)[:, 3]
    assert line.tolist() == [0] * (24 + shared) + [1] * (30 - shared)


def write_tiff(path, image, **options):
    tifffile.imwrite(path, image, **options)
    return path


def images():
    rng = np.random.default_rng(1)
    rgb = rng.integers(0, 256, (75, 111, 3)).astype(np.uint8)
    smooth = np.add.outer(np.arange(75), np.arange(111)).astype(np.uint8)
    return {
        "tiled": (rgb, {"tile": (32, 16), "photometric": "rgb"}),
        "strips": (rgb, {"rowsperstrip": 7, "photometric": "rgb"}),
        "deflate": (rgb, {"tile": (32, 32), "photometric": "rgb", "compression": "deflate"}),
        "lzw": (
            smooth,
            {"tile": (32, 32), "photometric": "minisblack", "compression": "lzw"}
            | {"predictor": True},
        ),
        "planes": (
            np.moveaxis(rgb, -1, 0),
            {"tile": (32, 32), "photometric": "rgb", "planarconfig": "separate"},
        ),
        "16 bits": (rgb[..., 0].astype(np.uint16) * 200, {"tile": (64, 64)}),
        "big-endian": (rgb[..., 0].astype(np.uint16) * 200, {"byteorder": ">", "tile": (16, 16)}),
    }


@pytest.mark.parametrize("name", images())
@pytest.mark.parametrize("channels", [1, 3])
def test_windows_of_a_tiff_are_those_of_the_whole_image(name, channels, tmp_path):
    image, options = images()[name]
    if options.get("compression") == "lzw":
        pytest.importorskip("imagecodecs")
    path = write_tiff(tmp_path / "image.tif", image, **options)
    from auto_deeplab_tf.data import image_files

    plain = write_tiff(
        tmp_path / "plain.tif",
        np.moveaxis(image, 0, -1) if name == "planes" else image,
        photometric=options.get("photometric", "minisblack"),
    )
    whole = image_files.read_photograph(plain.read_bytes(), channels)
    with tiling.open_windows(path, channels, 1) as windows:
        assert windows.size == (75, 111)
        for top, left, height, width in ((0, 0, 75, 111), (30, 15, 40, 70), (74, 110, 1, 1)):
            window = windows.read(top, left, height, width)
            assert window.dtype == whole.dtype
            np.testing.assert_array_equal(window, whole[top : top + height, left : left + width])


def test_tiffs_that_are_refused(tmp_path):
    image = np.zeros((40, 40), np.float32)
    cases = {
        "it holds 2 images": np.zeros((2, 40, 40), np.uint8),
        "its pixels are float32": image,
    }
    for message, content in cases.items():
        path = write_tiff(tmp_path / "image.tif", content, photometric="minisblack")
        with pytest.raises(UserError, match=message), tiling.open_windows(path, 3, 1):
            pass
    path = write_tiff(
        tmp_path / "image.tif", np.zeros((40, 40), np.uint8), extratags=[(274, 3, 1, 6, True)]
    )
    with pytest.raises(UserError, match="orientation"), tiling.open_windows(path, 3, 1):
        pass
    path.write_bytes(b"junk")
    with (
        pytest.raises(UserError, match="cannot be read as a TIFF"),
        tiling.open_windows(path, 3, 1),
    ):
        pass
    write_tiff(path, np.arange(1600).astype(np.uint8).reshape(40, 40), compression="deflate")
    content = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        start = file.pages[0].dataoffsets[0]
    path.write_bytes(content[: start + 5] + b"junk" * 8 + content[start + 37 :])
    with tiling.open_windows(path, 3, 1) as windows:
        with pytest.raises(UserError, match="cannot be read as a TIFF"):
            windows.read(0, 0, 40, 40)


@pytest.mark.parametrize(("bits", "dtype"), [(4, np.uint8), (12, np.uint16)])
def test_tiffs_of_other_bits_are_refused(bits, dtype, tmp_path):
    pytest.importorskip("imagecodecs")
    image = np.zeros((40, 40), dtype)
    path = write_tiff(tmp_path / "image.tif", image, bitspersample=bits, photometric="minisblack")
    with pytest.raises(UserError, match=f"of {bits} bits; 8 or 16"):
        with tiling.open_windows(path, 3, 1):
            pass


def test_memory_is_that_of_a_tile(tmp_path, monkeypatch):
    """A prediction of an image of 24 million pixels, in a few MB."""
    monkeypatch.setattr(tiling, "_CACHE_BYTES", 2**20)
    size = (4000, 6000)
    path = tmp_path / "large.tif"
    image = np.zeros((*size, 3), np.uint8)
    image[1000:1010, 2000:2010] = 255
    write_tiff(path, image, tile=(256, 256), photometric="rgb")
    del image
    tracemalloc.start()
    try:
        with (
            tiling.open_windows(path, 3, 1) as windows,
            tiling.PngWriter(tmp_path / "mask.png", size) as mask,
        ):

            def logits(*window):
                bright = windows.read(*window)[..., :1] > 128
                return np.concatenate([~bright, bright], -1).astype(np.float32)

            for band in tiling.class_ids(size, (256, 256), 32, logits):
                mask.write(band)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A band of class ids and of its PNG rows; not the 72 MB of the image, whose float32 logits
    # alone would take 192 MB.
    assert peak < 40e6
    written = np.asarray(Image.open(tmp_path / "mask.png"))
    assert written.shape == size and written.sum() == 100 and written[1005, 2005] == 1


@pytest.mark.parametrize(("shape", "bits"), [((37, 53), 8), ((37, 53), 16), ((37, 53, 3), 8)])
def test_a_png_written_in_parts(shape, bits, tmp_path):
    values = np.random.default_rng(2).integers(0, 2**bits, shape)
    path = tmp_path / "image.png"
    with tiling.PngWriter(path, shape[:2], shape[2] if len(shape) == 3 else 1, bits) as writer:
        for start in range(0, 37, 10):
            writer.write(values[start : start + 10])
        assert not path.exists()
    np.testing.assert_array_equal(np.asarray(Image.open(path)), values)
    with pytest.raises(KeyError), tiling.PngWriter(path, shape[:2]) as writer:
        raise KeyError
    assert [entry.name for entry in tmp_path.iterdir()] == ["image.png"]
    with pytest.raises(ValueError, match="0 rows were written of 37"):
        with tiling.PngWriter(path, shape[:2]):
            pass


def test_two_files_are_written_at_the_same_time(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    rows = np.ones((4, 5), np.uint8)
    with tiling.PngWriter(paths[0], (4, 5)) as first, tiling.PngWriter(paths[1], (4, 5)) as second:
        first.write(rows)
        second.write(2 * rows)
    for value, path in enumerate(paths, 1):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), value * rows)
