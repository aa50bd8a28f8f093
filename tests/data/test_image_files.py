"""Image files of every kind: read as a viewer shows them, masks as their numbers, or refused."""

import dataclasses
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import tensorflow as tf
import tifffile
from PIL import Image, ImageOps

from auto_deeplab_tf import tiling
from auto_deeplab_tf.data import image_files, sets
from auto_deeplab_tf.errors import UserError

RGB = sets.describe("camvid")
SIZE = (9, 14)


def info(channels=3, bits=8, ids=range(256)):
    return dataclasses.replace(
        RGB, name="mine", channels=channels, image_bits=bits, label_ids={i: 0 for i in ids}
    )


def pixels(channels=3, bits=8, seed=0):
    shape = (*SIZE, channels) if channels > 1 else SIZE
    dtype = np.uint8 if bits == 8 else np.uint16
    return np.random.default_rng(seed).integers(0, 2**bits, shape).astype(dtype)


def saved(image, file_format="PNG", **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def tiff(array, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def with_orientation(image, orientation, file_format):
    image = Image.fromarray(image)
    exif = image.getexif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if file_format == "JPEG" else {}
    return saved(image, file_format, exif=exif, **options)


def png(rows, depth, color_type, *chunks, interlaced=0):
    """A PNG of packed rows of bytes."""

    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    height, width = SIZE
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, interlaced)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def packed(array, depth):
    bits = np.unpackbits(array[..., None], axis=-1)[..., 8 - depth :].reshape(len(array), -1)
    return [np.packbits(row).tobytes() for row in bits]


def tiff16(array, order="<", predictor=1, compress=False, tile=None, photometric=None):
    """A TIFF of 16 bits a sample, written by hand: strips or tiles, plain or deflated."""
    height, width, channels = array.shape

    def block(part):
        if predictor == 2:
            first = np.zeros_like(part[:, :1])
            part = np.diff(part, axis=1, prepend=first).astype(np.uint16)
        content = part.astype(f"{order}u2").tobytes()
        return zlib.compress(content) if compress else content

    if tile:
        padded = np.pad(array, [(0, -height % tile), (0, -width % tile), (0, 0)])
        blocks = [
            block(padded[top : top + tile, left : left + tile])
            for top in range(0, height, tile)
            for left in range(0, width, tile)
        ]
    else:
        blocks = [block(array[top : top + 4]) for top in range(0, height, 4)]
    offsets = [8 + sum(map(len, blocks[:i])) for i in range(len(blocks))]
    places = (324, 325) if tile else (273, 279)
    tags = {
        256: [width], 257: [height], 258: [16] * channels, 259: [8 if compress else 1],
        262: [(2 if channels > 2 else 1) if photometric is None else photometric],
        places[0]: offsets, 277: [channels],
        places[1]: [len(b) for b in blocks], 284: [1], 317: [predictor], 339: [1] * channels,
        **({322: [tile], 323: [tile]} if tile else {278: [4]}),
        **({338: [0]} if channels == 4 and photometric is None else {}),
    }  # fmt: skip
    body = b"".join(blocks)
    start = 8 + len(body)
    more, entries = b"", b""
    for tag in sorted(tags):
        values = tags[tag]
        content = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            place = start + 2 + 12 * len(tags) + 4 + len(more)
            content, more = struct.pack(f"{order}I", place), more + content
        entries += struct.pack(f"{order}HHI", tag, 4, len(values)) + content
    magic = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(f"{order}H", len(tags)) + entries + b"\0" * 4
    return magic + struct.pack(f"{order}I", start) + body + directory + more


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF"])
def test_images_and_masks_are_turned_by_their_orientation(orientation, file_format):
    image = np.linspace(0, 255, SIZE[0] * SIZE[1] * 3).reshape(*SIZE, 3).astype(np.uint8)
    data = with_orientation(image, orientation, file_format)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    found, as_it_is = image_files.read_image(data, info())
    np.testing.assert_array_equal(found, shown)
    assert as_it_is == (orientation == 1 and file_format != "TIFF")
    np.testing.assert_array_equal(image_files.read_photograph(data, 3), shown)
    if file_format != "JPEG":
        mask = pixels(1)
        data = with_orientation(mask, orientation, file_format)
        shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
        np.testing.assert_array_equal(image_files.read_label(data, info()), shown)


def test_a_size_mismatch_names_the_orientation():
    data = with_orientation(pixels(), 6, "PNG")
    example = image_files.RawExample("a", "", data, saved(pixels(1)))
    (problem,) = image_files.examine(example, info()).problems
    assert problem.kind == "size mismatch" and "EXIF orientation" in str(problem.error)
    example = image_files.RawExample("a", "", saved(pixels()), saved(pixels(1).T))
    (problem,) = image_files.examine(example, info()).problems
    assert problem.kind == "size mismatch" and "EXIF" not in str(problem.error)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_gray_masks_of_few_bits_are_ids(depth):
    ids = np.random.default_rng(depth).integers(0, 2**depth, SIZE).astype(np.uint8)
    data = png(packed(ids, depth), depth, 0)
    np.testing.assert_array_equal(image_files.read_label(data, info()), ids)
    # As an image, the same file is what a viewer shows.
    shown = ids[..., None].astype(int) * (255 // (2**depth - 1))
    np.testing.assert_array_equal(image_files.read_photograph(data, 1), shown)
    palette = (b"PLTE", bytes(range(3 * 2**depth)))
    indices = png(packed(ids, depth), depth, 3, palette)
    np.testing.assert_array_equal(image_files.read_label(indices, info()), ids)


def test_one_bit_masks_of_a_set_of_0_and_255():
    ids = np.random.default_rng(0).integers(0, 2, SIZE).astype(np.uint8)
    data = png(packed(ids, 1), 1, 0)
    np.testing.assert_array_equal(image_files.read_label(data, info(ids=(0, 255))), 255 * ids)


@pytest.mark.parametrize("depth", [2, 8])
def test_interlaced_masks(depth):
    ids = np.random.default_rng(0).integers(0, 2**depth, SIZE).astype(np.uint8)
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
    rows = []
    for left, top, step_x, step_y in [*passes, (0, 1, 1, 2)]:
        rows += packed(ids[top::step_y, left::step_x], depth)
    data = png(rows, depth, 0, interlaced=1)
    np.testing.assert_array_equal(image_files.read_label(data, info()), ids)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_files_keep_16_bits(channels):
    array = pixels(channels, 16)
    array = array[..., None] if channels == 1 else array
    data = tf.io.encode_png(array).numpy()
    kept = {1: 1, 2: 1, 3: 3, 4: 4}[channels]
    found, _ = image_files.read_image(data, info(kept, 16))
    np.testing.assert_array_equal(found, array[..., :kept])
    assert image_files.image_traits(data) == ({2: 1}.get(kept, kept), 16)
    photograph = image_files.read_photograph(data, kept)
    np.testing.assert_allclose(photograph, array[..., :kept] / 257, rtol=1e-6)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(
    "options",
    [{}, {"order": ">"}, {"compress": True}, {"compress": True, "predictor": 2},
     {"tile": 16}, {"tile": 16, "order": ">", "predictor": 2, "compress": True}],
)  # fmt: skip
def test_16_bit_tiff_files_keep_16_bits(channels, options):
    array = pixels(channels, 16)
    data = tiff16(array, **options)
    assert image_files.image_traits(data) == (channels, 16)
    np.testing.assert_array_equal(image_files.read_image(data, info(channels, 16))[0], array)
    with pytest.raises(UserError, match='images of mine have 8 bits a channel; found 16.*"bits"'):
        image_files.read_image(data, info(channels))


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("compression", ["zlib", "lzw"])
@pytest.mark.parametrize("parts", [{"tile": (64, 64)}, {"rowsperstrip": 7}])
def test_differences_in_a_16_bit_tiff_begin_anew_in_each_tile(channels, compression, parts):
    pytest.importorskip("imagecodecs")
    array = np.random.default_rng(0).integers(0, 2**16, (100, 150, channels)).astype(np.uint16)
    data = tiff(array, photometric="rgb", compression=compression, predictor=True, **parts)
    np.testing.assert_array_equal(image_files.decode(data).pixels(), array)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("options", [{}, {"tile": (16, 16), "compression": "zlib"}])
def test_a_fourth_band_of_a_tiff_that_is_no_alpha_is_kept(bits, byteorder, options, tmp_path):
    array = pixels(4, bits)
    extra = {"photometric": "rgb", "extrasamples": ["unspecified"]}
    data = tiff(array, byteorder=byteorder, **extra, **options)
    assert image_files.image_traits(data) == (4, bits)
    np.testing.assert_array_equal(image_files.read_image(data, info(4, bits))[0], array)
    (tmp_path / "bands.tif").write_bytes(data)
    with tiling.open_windows(tmp_path / "bands.tif", 4, 1) as windows:
        window = windows.read(0, 0, *SIZE)
    np.testing.assert_array_equal(window, image_files.read_photograph(data, 4))


def test_gray_tiff_files_of_16_bits():
    array = pixels(1, 16)
    for data in (saved(array, "TIFF"), tiff16(array[..., None], ">")):
        np.testing.assert_array_equal(image_files.read_image(data, info(1, 16))[0][..., 0], array)
        ids = image_files.read_label(data, info())
        np.testing.assert_array_equal(ids, array)


@pytest.mark.parametrize(("channels", "photometric"), [(1, 0), (4, 5)])
def test_inverted_gray_and_cmyk_tiff_files_of_16_bits_are_refused_as_images(channels, photometric):
    array = pixels(channels, 16)
    data = tiff16(array.reshape(*SIZE, channels), photometric=photometric)
    with pytest.raises(UserError, match="of 16 bits must be gray, with 0 for black, or RGB: save"):
        image_files.read_image(data, info(channels, 16))
    if channels == 1:  # of a label map the stored numbers are the ids
        np.testing.assert_array_equal(image_files.read_label(data, info()), array)


def test_a_tiff_of_12_bits_is_refused_as_an_image_and_read_as_ids():
    pytest.importorskip("imagecodecs")
    array = pixels(1, 12)
    data = tiff(array, bitspersample=12, photometric="minisblack")
    for read in (
        lambda: image_files.read_image(data, info(1, 16)),
        lambda: image_files.read_photograph(data, 3),
    ):
        with pytest.raises(UserError, match="must hold 8 or 16 bits a channel; found 12: scale"):
            read()
    np.testing.assert_array_equal(image_files.read_label(data, info()), array)


def test_a_gray_tiff_of_4_bits_is_its_brightness():
    pytest.importorskip("imagecodecs")
    array = pixels(1) % 16
    data = tiff(array, bitspersample=4, photometric="minisblack")
    np.testing.assert_array_equal(image_files.read_photograph(data, 1)[..., 0], array * 17)


def test_channels_are_brought_to_those_of_the_set():
    gray, rgb, rgba, gray_alpha = (pixels(n) for n in (1, 3, 4, 2))
    files = {
        1: saved(gray), 3: saved(rgb), 4: saved(rgba), 2: saved(Image.fromarray(gray_alpha, "LA")),
    }  # fmt: skip
    luminance = np.asarray(Image.fromarray(rgb).convert("L"))[..., None]
    opaque = np.full((*SIZE, 1), 255, np.uint8)
    gray = gray[..., None]
    of_rgba = np.asarray(Image.fromarray(rgba[..., :3]).convert("L"))[..., None]
    expected = {
        (1, 1): gray, (1, 3): gray.repeat(3, 2), (1, 4): np.dstack([gray.repeat(3, 2), opaque]),
        (3, 1): luminance, (3, 3): rgb, (3, 4): np.dstack([rgb, opaque]),
        (4, 1): of_rgba, (4, 3): rgba[..., :3], (4, 4): rgba,
        (2, 1): gray_alpha[..., :1], (2, 3): gray_alpha[..., :1].repeat(3, 2),
        (2, 4): np.dstack([gray_alpha[..., :1].repeat(3, 2), gray_alpha[..., 1:]]),
    }  # fmt: skip
    for (found, wanted), array in expected.items():
        image, as_it_is = image_files.read_image(files[found], info(wanted))
        np.testing.assert_array_equal(image, array, err_msg=f"{found} to {wanted}")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            photograph = image_files.read_photograph(files[found], wanted)
        np.testing.assert_array_equal(photograph, array)
        # A fourth channel may be a measurement: one of our own making is said.
        assert ["near-infrared" in str(w.message) for w in caught] == [True] * (
            wanted == 4 and found in (1, 3)
        )
        found_channels = {1: 1, 2: 1, 3: 3, 4: 4}[found]
        assert image_files.image_traits(files[found]) == (found_channels, 8)
        if as_it_is:  # then TensorFlow reads the same from the record
            tensor = tf.io.decode_image(files[found], channels=wanted, expand_animations=False)
            np.testing.assert_array_equal(tensor, array)


def test_cmyk_and_cameras_with_two_pictures_are_shown():
    cmyk = Image.fromarray(pixels(4), "CMYK")
    data = saved(cmyk, "TIFF")
    expected = np.asarray(cmyk.convert("RGB"))
    np.testing.assert_array_equal(image_files.read_photograph(data, 3), expected)
    first, second = (Image.fromarray(pixels(seed=seed)) for seed in (0, 1))
    data = saved(first, "MPO", save_all=True, append_images=[second], quality=100, subsampling=0)
    image, as_it_is = image_files.read_image(data, info())
    assert as_it_is and np.abs(image.astype(int) - np.asarray(first)).mean() < 3
    assert tf.io.decode_image(data, channels=3).shape == (*SIZE, 3)


@pytest.mark.parametrize(("file_format", "what"), [("TIFF", 3), ("GIF", 3), ("PNG", 3)])
def test_pages_and_frames_are_refused(file_format, what):
    images = [Image.fromarray(pixels(1, seed=seed)) for seed in range(what)]
    data = saved(images[0], file_format, save_all=True, append_images=images[1:])
    for read in (
        lambda: image_files.read_photograph(data, 3),
        lambda: image_files.read_image(data, info()),
        lambda: image_files.read_label(data, info()),
    ):
        with pytest.raises(UserError, match="must hold one image; found 3 pages or frames: save"):
            read()


def test_smaller_copies_in_a_tiff_do_not_count():
    full, small = Image.fromarray(pixels()), Image.fromarray(pixels()[::2, ::2])
    small.encoderinfo = {"tiffinfo": {254: 1}}
    data = saved(full, "TIFF", save_all=True, append_images=[small])
    np.testing.assert_array_equal(image_files.read_photograph(data, 3), full)


def test_masks_that_are_refused():
    for data, message in (
        (saved(pixels(1), "JPEG"), "must be lossless, and JPEG changes the ids"),
        (saved(pixels()), "must be an image of one channel, gray or palette; found mode RGB"),
        (saved(Image.fromarray(pixels(2), "LA")), "one channel, .* found mode LA"),
        (saved(np.zeros(SIZE, np.float32), "TIFF"), "one channel, .* found mode F"),
    ):
        with pytest.raises(UserError, match=message):
            image_files.read_label(data, info())
    opaque = np.dstack([pixels(1), np.full(SIZE, 255, np.uint8)])
    label = image_files.read_label(saved(Image.fromarray(opaque, "LA")), info())
    np.testing.assert_array_equal(label, opaque[..., 0])
    colors = dataclasses.replace(info(), color_labels=True)
    with pytest.raises(UserError, match="are RGB images of 8 bits; found mode RGB of 16 bits"):
        image_files.read_label(tf.io.encode_png(pixels(3, 16)).numpy(), colors)


def test_bands_of_a_satellite_are_refused_by_name():
    image = saved(pixels(4), "TIFF")
    bands = image.replace(
        struct.pack("<HHI", 277, 3, 1) + b"\4", struct.pack("<HHI", 277, 3, 1) + b"\5"
    )
    assert bands != image
    with pytest.raises(UserError, match="up to 4 channels"):
        image_files.decode(bands)
    # Pillow opens this one, as RGB.
    extra = io.BytesIO()
    tifffile.imwrite(extra, pixels(5), photometric="rgb", extrasamples=(0, 0))
    with pytest.raises(UserError, match="up to 4 channels; found 5: save those to use"):
        image_files.decode(extra.getvalue()).pixels()


def test_a_mask_of_equal_channels_is_told_from_one_of_colors():
    ids = pixels(1) % 3
    with pytest.raises(UserError, match="channels are equal: save one"):
        image_files.read_label(saved(np.stack([ids] * 3, -1)), info())
    with pytest.raises(UserError, match='"masks": "colors"'):
        image_files.read_label(saved(pixels(3)), info())


def test_many_strange_ids_are_counted_and_explained():
    resized = Image.fromarray(pixels(1) % 2 * 255).resize((30, 30), Image.Resampling.BILINEAR)
    with pytest.raises(UserError, match=r"\d+ more \(.*interpolation"):
        info(ids=(0, 255)).class_ids(np.asarray(resized))
    with pytest.raises(UserError, match="found 7$"):
        info(ids=(0, 255)).class_ids(np.array([[0, 7]]))


def test_the_limit_of_pixels_is_named_and_can_be_raised():
    data = saved(pixels())
    small = dataclasses.replace(info(), max_image_pixels=100)
    for read in (
        lambda: image_files.read_photograph(data, 3, 100),
        lambda: image_files.read_image(data, small),
        lambda: image_files.read_label(saved(pixels(1)), small),
    ):
        with pytest.raises(
            UserError, match=r"100 pixels; found 9x14 = 126: cut it into tiles .*, or"
        ):
            read()
    # 180 megapixels of one value: refused by its header, before a byte of it is decoded.
    header = struct.pack(">IIBBBBB", 15000, 12000, 8, 0, 0, 0, 0)
    chunk = (
        struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    )
    chunk += struct.pack(">I", 40) + b"IDAT"
    with pytest.raises(UserError, match="178956970 pixels; found 12000x15000.*max_image_pixels"):
        image_files.decode(b"\x89PNG\r\n\x1a\n" + chunk + b"\0" * 40)


def test_broken_files_are_no_images():
    whole = saved(pixels())
    for data in (b"", b"no image", whole[:-40], whole[:30]):
        with pytest.raises(OSError):
            image_files.decode(data)
