import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab_tf.data import augment

PADDING = (11.0, 22.0, 33.0)


def _window(image, label, scaled, offset, crop_size, flipped=False):
    image, label = augment.sample_window(
        tf.constant(image),
        tf.constant(label),
        tf.constant(scaled, tf.float32),
        tf.constant(offset, tf.float32),
        tf.constant(flipped),
        crop_size=crop_size,
        padding=PADDING,
        ignore_label=255,
    )
    return image.numpy(), label.numpy()


def _crop(image, label, seed, crop_size=(33, 49), scale_range=(0.5, 2.0), flip=True, **options):
    return augment.random_crop(
        image,
        label,
        seed,
        crop_size=crop_size,
        scale_range=scale_range,
        flip=flip,
        ignore_label=255,
        **({"padding": PADDING} | options),
    )


def _random(height=37, width=53, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image, rng.integers(0, 20, (height, width), dtype=np.uint8)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("offset", [(0, 0), (5, 12), (17, 20)])
def test_at_scale_one_a_window_is_a_slice(offset, flipped):
    image, label = _random()
    crop, crop_label = _window(image, label, (37, 53), offset, (20, 33), flipped)
    rows, columns = slice(offset[0], offset[0] + 20), slice(offset[1], offset[1] + 33)
    step = -1 if flipped else 1
    np.testing.assert_array_equal(crop_label, label[rows, columns][:, ::step])
    np.testing.assert_allclose(crop, image[rows, columns][:, ::step], atol=0.05)


@pytest.mark.parametrize("scaled", [(19, 27), (30, 41), (74, 106), (61, 90)])
def test_a_window_is_cut_out_of_the_resized_image(scaled):
    image, label = _random()
    whole = tf.image.resize(tf.constant(image), scaled, method="bilinear").numpy()
    labels = tf.image.resize(tf.constant(label[..., None]), scaled, method="nearest").numpy()[
        ..., 0
    ]
    crop_size = (scaled[0] - 4, scaled[1] - 7)
    for offset in [(0, 0), (4, 7), (2, 3)]:
        crop, crop_label = _window(image, label, scaled, offset, crop_size)
        rows = slice(offset[0], offset[0] + crop_size[0])
        columns = slice(offset[1], offset[1] + crop_size[1])
        np.testing.assert_allclose(crop, whole[rows, columns], atol=0.1)
        # Apart from positions halfway between two pixels, which either may take.
        assert (crop_label == labels[rows, columns]).mean() > 0.97


def test_outside_is_padding_and_ignored():
    image, label = _random()
    crop, crop_label = _window(image, label, (37, 53), (-4, -6), (48, 70))
    inside = np.zeros((48, 70), bool)
    inside[4 : 4 + 37, 6 : 6 + 53] = True
    np.testing.assert_array_equal(crop_label[inside], label.ravel())
    assert (crop_label[~inside] == 255).all()
    np.testing.assert_array_equal(
        crop[~inside], np.broadcast_to(PADDING, (sum(~inside.ravel()), 3))
    )


@pytest.mark.parametrize("axis", [0, 1])
def test_image_and_label_move_together(axis):
    # Stripes: half of the way from one to the next, the blended image and the nearest label
    # change sides at the same place, whatever the scale.
    stripe = np.repeat(np.random.default_rng(3).integers(0, 2, 20), 3)
    label = np.broadcast_to(stripe[:, None] if axis == 0 else stripe[None, :], (60, 60))
    label = np.ascontiguousarray(label, np.uint8)
    image = np.repeat(label[..., None] * np.uint8(200), 3, axis=2)
    seen = 0
    for i in range(40):
        crop, crop_label = _crop(image, label, (7, i))
        crop, crop_label = crop.numpy(), crop_label.numpy()
        outside = crop_label == 255
        np.testing.assert_array_equal(outside, (crop == PADDING).all(axis=-1))
        clear = ~outside & (np.abs(crop[..., 0] - 100.0) > 1.0)
        np.testing.assert_array_equal(crop_label[clear], crop[clear][:, 0] > 100.0)
        seen += clear.sum()
    assert seen > 20000


def test_all_follows_from_the_seed():
    image, label = _random()
    first, again, other = (_crop(image, label, seed) for seed in [(1, 2), (1, 2), (1, 3)])
    assert (first[0].numpy() == again[0].numpy()).all()
    assert (first[1].numpy() == again[1].numpy()).all()
    assert not (first[0].numpy() == other[0].numpy()).all()
    assert first[0].dtype == tf.float32 and first[1].dtype == tf.int32


def test_windows_reach_every_corner_and_both_directions():
    # Each pixel of this image tells its row and column.
    label = np.zeros((9, 12), np.uint8)
    image = np.zeros((9, 12, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(9)[:, None], np.arange(12)[None, :]
    corners, num_flipped = set(), 0
    for i in range(150):
        crop, _ = _crop(image, label, (0, i), crop_size=(7, 10), scale_range=(1.0, 1.0))
        crop = np.rint(crop.numpy()).astype(int)
        flipped = crop[0, 0, 1] > crop[0, -1, 1]
        num_flipped += flipped
        corners.add((crop[0, 0, 0], crop[0, -1 if flipped else 0, 1]))
    assert corners == {(y, x) for y in range(3) for x in range(3)}
    assert 50 < num_flipped < 100
    still = [_crop(image, label, (0, i), (9, 12), (1.0, 1.0), False)[0] for i in range(8)]
    assert all((np.rint(crop) == image).all() for crop in still)


def test_scales_span_their_range():
    # A bright column of 20 pixels in the middle, seen whole: its width tells the scale.
    label = np.zeros((40, 100), np.uint8)
    label[:, 40:60] = 1
    image = np.zeros((40, 100, 3), np.uint8)
    scales = [
        (_crop(image, label, (1, i), (21, 201), (0.5, 2.0))[1].numpy()[10] == 1).sum() / 20
        for i in range(120)
    ]
    assert 0.45 < min(scales) < 0.6 and 1.9 < max(scales) < 2.1
    assert 1.15 < np.mean(scales) < 1.35


def test_a_window_of_one_pixel():
    image, label = _random()
    crop, crop_label = _window(image, label, (37, 53), (10, 20), (1, 1))
    assert crop_label[0, 0] == label[10, 20]
    np.testing.assert_allclose(crop[0, 0], image[10, 20], atol=0.05)


def _colored(height=37, width=53, seed=0):
    """A label map of rectangles of three classes; the image is 200 in the class's channel."""
    label = np.random.default_rng(seed).integers(0, 3, (height // 9 + 1, width // 11 + 1))
    label = label.repeat(9, axis=0).repeat(11, axis=1)[:height, :width].astype(np.uint8)
    return np.eye(3, dtype=np.uint8)[label] * np.uint8(200), label


@pytest.mark.parametrize("options", [{"crop_tries": 3}, {"crop_tries": 2, "color_jitter": 0.3}])
@pytest.mark.parametrize("size", [(37, 53), (9, 121), (1, 1)])
def test_a_label_coloured_image_keeps_telling_its_label(size, options):
    # Odd sizes, both directions, padding on every side.
    image, label = _colored(*size)
    plain_options = options | {"color_jitter": 0.0}
    seen = padded = 0
    for i in range(25):
        crop, crop_label = (x.numpy() for x in _crop(image, label, (3, i), (21, 35), **options))
        plain, plain_label = _crop(image, label, (3, i), (21, 35), **plain_options)
        np.testing.assert_array_equal(crop_label, plain_label)
        outside = crop_label == 255
        np.testing.assert_array_equal(outside, (crop == PADDING).all(axis=-1))
        whole = ~outside & (plain.numpy().max(axis=-1) > 199.0)  # no blend of two classes
        np.testing.assert_array_equal(crop_label[whole], crop[whole].argmax(axis=-1))
        seen, padded = seen + whole.sum(), padded + outside.sum()
    assert padded > 100 and seen > 20


def test_defaults_keep_the_first_window_and_its_colours():
    image, label = _random()
    for i in range(10):
        first, again = _crop(image, label, (1, i)), _crop(image, label, (1, i), crop_tries=1)
        np.testing.assert_array_equal(first[0], again[0])
        # Every window of noise has many classes: more tries are not needed.
        tried = _crop(image, label, (1, i), crop_tries=10)
        np.testing.assert_array_equal(first[0], tried[0])
        np.testing.assert_array_equal(first[1], tried[1])
        # Neither the window nor the labels depend on the colours.
        np.testing.assert_array_equal(first[1], _crop(image, label, (1, i), color_jitter=0.5)[1])


def _largest_share(label):
    counts = np.bincount(label[label != 255], minlength=1)
    return counts.max() / counts.sum() if counts.sum() else 1.0


def test_tries_find_windows_of_more_than_one_class():
    # One class but for a small square and a void strip: most windows hold nothing else.
    label = np.zeros((60, 90), np.uint8)
    label[:, 80:] = 255
    label[20:34, 30:44] = 1
    image = np.zeros((60, 90, 3), np.uint8)

    def shares(tries):
        options = {"crop_size": (20, 22), "scale_range": (1.0, 1.0), "crop_tries": tries}
        return np.array(
            [_largest_share(_crop(image, label, (0, i), **options)[1].numpy()) for i in range(60)]
        )

    plain, tried = shares(1), shares(20)
    assert (plain < 0.75).mean() < 0.3 and (tried < 0.75).mean() > 0.8
    # What was good at once is kept; so is the first where no window will do.
    good = plain < 0.75
    np.testing.assert_array_equal(tried[good], plain[good])
    for empty in (0, 255):
        same = np.full((60, 90), empty, np.uint8)
        grid = np.arange(60 * 90).reshape(60, 90, 1).repeat(3, axis=2).astype(np.uint8)
        first, tried = (_crop(grid, same, (0, 4), crop_tries=n)[0].numpy() for n in (1, 9))
        np.testing.assert_array_equal(first, tried)


@pytest.mark.parametrize("crop_size", [(20, 26), (100, 75), (1, 7)])
def test_shares_are_those_of_the_windows(crop_size):
    _, label = _colored(60, 90)
    label[:7] = 255
    scaled = (75, 80)
    offsets = [(0, 0), (5, 12), (-30, 20), (60, -40), (200, 0)]
    shares = augment.largest_shares(
        label, tf.constant(scaled, tf.float32), tf.constant(offsets, tf.float32), crop_size, 255
    )
    for share, offset in zip(shares.numpy(), offsets, strict=True):
        _, window = _window(np.zeros((60, 90, 3), np.uint8), label, scaled, offset, crop_size)
        # All pixels of a small window are looked at, a part of those of a large one.
        error = 0.1 if max(crop_size) > 32 else 0.01
        assert share == pytest.approx(_largest_share(window), abs=error)


def _jittered(pixels, change, mean):
    return augment.jitter_colors(tf.constant(pixels), tf.constant(change, tf.float32), mean).numpy()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_jitter_changes_brightness_contrast_and_saturation(channels):
    pixels = np.random.default_rng(0).uniform(60, 130, (5, 7, channels)).astype(np.float32)
    mean = (90.0, 100.0, 110.0, 50.0)[:channels]
    colors = min(channels, 3)
    weights = np.float32([0.299, 0.587, 0.114])
    kept = _jittered(pixels, (1.0, 1.0, 1.0), mean)
    np.testing.assert_allclose(kept, pixels, atol=1e-3)
    brighter = _jittered(pixels, (1.2, 1.0, 1.0), mean)
    np.testing.assert_allclose(brighter[..., :colors], 1.2 * pixels[..., :colors], rtol=1e-5)
    flat = _jittered(pixels, (1.0, 0.0, 1.0), mean)
    np.testing.assert_allclose(flat[..., :colors], np.broadcast_to(mean[:colors], (5, 7, colors)))
    if channels >= 3:
        gray = _jittered(pixels, (1.0, 1.0, 0.0), mean)[..., :3]
        luminance = pixels[..., :3] @ weights
        np.testing.assert_allclose(gray, luminance[..., None].repeat(3, axis=2), rtol=1e-5)
    # All three at once, in their order, then cut to 0..255.
    b, c, s = 1.9, 1.7, 0.4
    y = b * (np.float32(mean[:colors]) + c * (pixels[..., :colors] - np.float32(mean[:colors])))
    if channels >= 3:
        gray = (y @ weights)[..., None]
        y = gray + s * (y - gray)
    changed = _jittered(pixels, (b, c, s), mean)
    np.testing.assert_allclose(changed[..., :colors], np.clip(y, 0, 255), atol=0.01)
    assert changed.max() == 255.0
    np.testing.assert_array_equal(changed[..., 3:], pixels[..., 3:])


def test_colours_are_drawn_apart_from_the_window():
    """The factors of the colours do not depend on the places of the crop attempts."""
    image, label = np.full((9, 9, 3), 100, np.uint8), np.zeros((9, 9), np.uint8)
    options = {"crop_size": (3, 3), "crop_tries": 2, "padding": (50.0,) * 3}
    places, colors = [], []
    for i in range(300):
        places.append(tf.random.stateless_uniform([2], augment._folded(tf.constant((9, i)), 1)))
        colors.append(_crop(image, label, (9, i), color_jitter=0.5, **options)[0][1, 1, 0])
    # Brightness and contrast make up the colour; the third draw, saturation, shows on no gray.
    correlation = np.corrcoef(np.array(places).T, np.array(colors))[2, :2]
    assert np.abs(correlation).max() < 0.2


def test_jitter_spans_its_strength():
    # A gray image at the data set's mean: only the brightness shows.
    image = np.full((40, 40, 3), 100, np.uint8)
    label = np.zeros((40, 40), np.uint8)
    options = {"crop_size": (3, 3), "padding": (100.0,) * 3}
    factors = [
        _crop(image, label, (2, i), color_jitter=0.4, **options)[0].numpy()[1, 1, 0] / 100
        for i in range(80)
    ]
    assert 0.6 <= min(factors) < 0.65 and 1.35 < max(factors) <= 1.4


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("options", [{}, {"crop_tries": 4, "color_jitter": 0.5}])
def test_the_same_in_eager_code_and_in_a_dataset(channels, options):
    image, label = _colored()
    image = image.repeat(2, axis=2)[..., :channels]
    options = {**options, "padding": (*PADDING, 44.0)[:channels]}
    dataset = tf.data.Dataset.range(12).map(
        lambda i: _crop(image, label, tf.stack([tf.constant(5, tf.int64), i]), **options),
        num_parallel_calls=4,
    )
    for i, (crop, crop_label) in enumerate(dataset):
        assert crop.shape == (33, 49, channels) and crop_label.shape == (33, 49)
        eager, eager_label = _crop(image, label, tf.constant([5, i], tf.int64), **options)
        np.testing.assert_array_equal(crop, eager)
        np.testing.assert_array_equal(crop_label, eager_label)
