import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab_tf.data import augment

PADDING = (11.0, 22.0, 33.0)


def _window(image, label, scaled, offset, crop_size, mirrored=False):
    image, label = augment.sample_window(
        tf.constant(image),
        tf.constant(label),
        tf.constant(scaled, tf.float32),
        tf.constant(offset, tf.float32),
        tf.constant(mirrored),
        crop_size=crop_size,
        padding=PADDING,
        ignore_label=255,
    )
    return image.numpy(), label.numpy()


def _crop(image, label, seed, crop_size=(33, 49), scale_range=(0.5, 2.0), flip=True):
    return augment.random_crop(
        image,
        label,
        seed,
        crop_size=crop_size,
        scale_range=scale_range,
        flip=flip,
        padding=PADDING,
        ignore_label=255,
    )


def _random(height=37, width=53, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image, rng.integers(0, 20, (height, width), dtype=np.uint8)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("offset", [(0, 0), (5, 12), (17, 20)])
def test_at_scale_one_a_window_is_a_slice(offset, mirrored):
    image, label = _random()
    crop, crop_label = _window(image, label, (37, 53), offset, (20, 33), mirrored)
    rows, columns = slice(offset[0], offset[0] + 20), slice(offset[1], offset[1] + 33)
    step = -1 if mirrored else 1
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


def test_the_same_in_eager_code_and_in_a_dataset():
    image, label = _random()
    dataset = tf.data.Dataset.range(12).map(
        lambda i: _crop(image, label, tf.stack([tf.constant(5, tf.int64), i])),
        num_parallel_calls=4,
    )
    for i, (crop, crop_label) in enumerate(dataset):
        assert crop.shape == (33, 49, 3) and crop_label.shape == (33, 49)
        eager, eager_label = _crop(image, label, tf.constant([5, i], tf.int64))
        np.testing.assert_array_equal(crop, eager)
        np.testing.assert_array_equal(crop_label, eager_label)


def test_windows_reach_every_corner_and_both_directions():
    # Each pixel of this image tells its row and column.
    label = np.zeros((9, 12), np.uint8)
    image = np.zeros((9, 12, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(9)[:, None], np.arange(12)[None, :]
    corners, mirrored = set(), 0
    for i in range(150):
        crop, _ = _crop(image, label, (0, i), crop_size=(7, 10), scale_range=(1.0, 1.0))
        crop = np.rint(crop.numpy()).astype(int)
        flipped = crop[0, 0, 1] > crop[0, -1, 1]
        mirrored += flipped
        corners.add((crop[0, 0, 0], crop[0, -1 if flipped else 0, 1]))
    assert corners == {(y, x) for y in range(3) for x in range(3)}
    assert 50 < mirrored < 100
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
