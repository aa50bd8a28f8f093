"""`Segmenter` as a Keras user meets it: fit, save, load, several devices, inference."""

import io
import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab_tf.architecture import Architecture, Edge
from auto_deeplab_tf.segmenter import Segmenter, load_segmenter
from auto_deeplab_tf.training import loop

SIZE = (32, 48)
NUM_CLASSES = 3
ARCHITECTURE = Architecture(
    levels=(1, 1),
    cell=((Edge("prev", "sep_3x3"), Edge("prev_prev", "max_pool_3x3")),),
    atrous="separable",
)


def segmenter(seed=0, num_classes=NUM_CLASSES, **arguments):
    keras.utils.set_random_seed(seed)
    small = {"filter_multiplier": 2, "head_channels": 8, "decoder_channels": 4}
    return Segmenter(ARCHITECTURE, num_classes, **(small | {"batch_norm_decay": 0.9} | arguments))


def examples(count, seed=0):
    """Images of 16x16 tiles whose colour tells the class; about a tenth of the pixels is void."""
    rng = np.random.default_rng(seed)
    tiles = rng.integers(0, NUM_CLASSES, (count, SIZE[0] // 16, SIZE[1] // 16))
    masks = tiles.repeat(16, axis=1).repeat(16, axis=2).astype("int32")
    colors = np.array([(220, 40, 30), (30, 200, 60), (40, 60, 210)], "float32")
    images = colors[masks] + rng.normal(0, 20, (*masks.shape, 3))
    masks[rng.random(masks.shape) < 0.1] = 255
    return np.clip(images, 0, 255).astype("float32"), masks


def arrays(variables):
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


@pytest.fixture(scope="module")
def trained():
    """Compiled by default, fitted on NumPy, with everything that the hand-over file carries."""
    model = segmenter(
        class_names=("road", "tree", "sky"),
        palette=[(1, 2, 3), (40, 50, 60), (250, 0, 255)],
        class_weights=(1.0, 2.0, 0.5),
        image_size=SIZE,
    )
    images, masks = examples(16)
    history = model.fit(images, masks, batch_size=4, epochs=12, verbose=0)
    return model, history.history


def test_fit_on_numpy_learns_without_a_compile(trained):
    model, history = trained
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    images, masks = examples(5, seed=1)
    results = model.evaluate(images, masks, batch_size=2, verbose=0, return_dict=True)
    assert set(results) == {"loss", "miou", "pixel_accuracy"}
    assert results["miou"] > 0.7
    # Each pixel of the last, partial batch counted once, the void ones not at all.
    assert model.confusion_matrix.sum() == (masks != 255).sum()
    loss, matrix = model.score(tf.data.Dataset.from_tensor_slices((images, masks)).batch(3))
    np.testing.assert_array_equal(matrix, model.confusion_matrix)
    assert loss == pytest.approx(results["loss"], rel=1e-5)
    assert model.predict(images, verbose=0).shape == (5, *SIZE, NUM_CLASSES)
    # The poly learning rate ends with the last step.
    assert int(model.optimizer.iterations) == 48
    assert float(model.optimizer.learning_rate) == pytest.approx(0, abs=1e-6)


def test_a_saved_segmenter_comes_back_whole(trained, tmp_path):
    model, _ = trained
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again) is Segmenter
    images, masks = examples(2, seed=2)
    np.testing.assert_array_equal(again(images), model(images))
    assert again.get_config() == model.get_config()
    assert again.class_names == ("road", "tree", "sky")
    np.testing.assert_array_equal(again.palette, model.palette)
    assert again.palette.dtype == np.uint8
    assert again.architecture == ARCHITECTURE
    assert again.architecture.fingerprint == ARCHITECTURE.fingerprint
    assert again.image_size == SIZE and again.class_weights == (1.0, 2.0, 0.5)
    # The loss came along: its settings weigh the classes.
    batches = tf.data.Dataset.from_tensors((images, masks))
    assert again.score(batches)[0] == model.score(batches)[0]


def test_the_optimizer_is_saved_where_compile_was_given_one(tmp_path):
    model = segmenter()
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), run_eagerly=True)
    model.fit(*examples(4), batch_size=2, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert int(again.optimizer.iterations) == 2 and again.optimizer.momentum == 0.9
    for ours, theirs in zip(
        arrays(again.optimizer.variables), arrays(model.optimizer.variables), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    model.save(tmp_path / "small.keras", include_optimizer=False)
    assert int(load_segmenter(tmp_path / "small.keras").optimizer.iterations) == 0
    assert int(model.optimizer.iterations) == 2


def change_config(path, changed, change):
    """Copies a .keras file with another config.json."""
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(changed, "w") as after:
        for name in before.namelist():
            content = before.read(name)
            if name == "config.json":
                config = json.loads(content)
                change(config)
                content = json.dumps(config)
            after.writestr(name, content)


def test_model_files_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "model.keras"
    segmenter().save(path)

    def other_path(config):
        config["config"]["architecture"]["config"]["architecture"]["levels"] = [0, 1]

    change_config(path, tmp_path / "changed.keras", other_path)
    with pytest.raises(ValueError, match="fingerprint") as refused:
        load_segmenter(tmp_path / "changed.keras")
    assert "\n" not in str(refused.value) and "changed.keras" in str(refused.value)
    with pytest.raises(FileNotFoundError, match="--model=.*none.keras: no such file"):
        load_segmenter(tmp_path / "none.keras")
    (tmp_path / "text.keras").write_text("weights")
    with pytest.raises(ValueError, match="is no .keras file"):
        load_segmenter(tmp_path / "text.keras")
    (tmp_path / "cut.keras").write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="cut.keras"):
        load_segmenter(tmp_path / "cut.keras")
    inputs = keras.Input((4,))
    keras.Model(inputs, keras.layers.Dense(1)(inputs)).save(tmp_path / "other.keras")
    with pytest.raises(ValueError, match="holds a Functional, not a Segmenter"):
        load_segmenter(tmp_path / "other.keras")


def run_steps(model, steps=3, batch_size=4):
    """Some steps of the commands' loop; the replicas get different numbers of void pixels."""
    images, masks = examples(steps * batch_size, seed=3)
    masks[::batch_size, :20] = 255
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    model.optimizer.build(model.trainable_variables)
    model.total_steps = steps
    batches = tf.data.Dataset.from_tensor_slices((images, masks)).batch(batch_size, True)
    return loop.fit(model, batches.skip, epochs=1, steps_per_epoch=steps, verbose=0).history


def test_two_devices_equal_one(mirrored):
    settings = {
        "class_weights": (1, 2, 0.5),
        "hardest_fraction": 0.5,
        "weight_decay": 0.01,
        # Scheduled, but so that it drops nothing: each replica draws for images of its own.
        "drop_path_keep": 1 - 1e-6,
    }
    one = segmenter(**settings)
    before = arrays(one.trainable_variables)
    history = run_steps(one)
    with mirrored.scope():
        two = segmenter(**settings)
        history_of_two = run_steps(two)
    for name, values in history.items():
        np.testing.assert_allclose(history_of_two[name], values, rtol=1e-5, err_msg=name)
    for start, ours, theirs in zip(
        before, arrays(one.trainable_variables), arrays(two.trainable_variables), strict=True
    ):
        assert np.abs(ours - start).max() > 1e-4
        np.testing.assert_allclose(theirs, ours, atol=1e-5 * max(np.abs(ours).max(), 0.1))
    for ours, theirs in zip(
        arrays(one.non_trainable_variables), arrays(two.non_trainable_variables), strict=True
    ):
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5)
    for model in (one, two):
        progress, draws = arrays([model.network.progress, model.network.drop_path.num_draws])
        assert progress == np.float32(2 / 3) and draws == 3


def test_weight_decay_acts_on_kernels_only():
    """Momentum 0.9, rate 0.1, decay 0.01, no loss: after 50 steps 0.644 of each kernel is left."""
    model = segmenter(weight_decay=0.01)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    before = arrays(model.trainable_variables)
    images, masks = examples(1)
    images, masks = images.repeat(50, axis=0), masks.repeat(50, axis=0)
    model.fit(images, np.full_like(masks, 255), batch_size=1, verbose=0)
    weight, velocity = 1.0, 0.0
    for _ in range(50):
        velocity = 0.9 * velocity + 0.01 * weight
        weight -= 0.1 * velocity
    assert weight == pytest.approx(0.644, abs=5e-4)
    decayed = 0
    for start, now in zip(before, arrays(model.trainable_variables), strict=True):
        expected = weight * start if start.ndim > 1 else start
        np.testing.assert_allclose(now, expected, rtol=1e-4, atol=1e-7)
        decayed += start.ndim > 1
    assert decayed > 5


class Progress(keras.callbacks.Callback):
    """Notes how far the network thought the training was in each step."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(float(self.model.network.progress))


def test_the_training_drives_drop_path():
    images, masks = examples(4)
    model = segmenter(drop_path_keep=0.5)
    progress = Progress()
    model.fit(images, masks, batch_size=2, epochs=2, verbose=0, callbacks=[progress])
    assert progress.seen == [0.0, 0.25, 0.5, 0.75]
    assert int(model.network.drop_path.num_draws) == 4
    # Inference drops nothing.
    np.testing.assert_array_equal(model(images), model(images))
    fresh = segmenter(drop_path_keep=0.5)
    with pytest.raises(ValueError, match="drop path needs the number of steps"):
        fresh.train_step((images, masks))


def test_mixed_precision_trains():
    model = segmenter(dtype="mixed_bfloat16")
    before = arrays(model.trainable_variables)
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    images, masks = examples(2)
    history = model.fit(images, masks, verbose=0).history
    assert np.isfinite(history["loss"][0])
    after = arrays(model.trainable_variables)
    assert all(np.any(a != b) for a, b in zip(before, after, strict=True))
    assert model(images).dtype == tf.float32


@pytest.mark.parametrize(
    "strange, rule",
    [
        (lambda masks: masks.astype("float32"), "must be integers. Received: dtype float32"),
        (lambda masks: np.where(masks == 2, 3, masks), "classes 0..2 and the ignore label 255"),
        (lambda masks: np.where(masks == 2, -1, masks), "Received: -1"),
    ],
)
def test_wrong_masks_are_refused(strange, rule):
    model = segmenter()
    images, masks = examples(2)
    before = arrays(model.trainable_variables)
    with pytest.raises(ValueError, match=rule):
        model.fit(images, strange(masks), verbose=0)
    for ours, theirs in zip(before, arrays(model.trainable_variables), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_wrong_masks_of_a_dataset_are_refused():
    images, masks = examples(2)
    masks[1, 5, 7] = 3
    model = segmenter()
    model.compile(run_eagerly=True)
    batches = tf.data.Dataset.from_tensors((images, masks))
    with pytest.raises(tf.errors.InvalidArgumentError, match="classes 0..2 and the ignore label"):
        model.fit(batches, verbose=0)
    with pytest.raises(ValueError, match="takes no class_weight"):
        model.fit(images, masks, class_weight={0: 1.0})
    with pytest.raises(ValueError, match="without sample weights"):
        model.fit(batches.map(lambda x, y: (x, tf.maximum(y, 0), x[..., 0])), verbose=0)
    with pytest.raises(ValueError, match="give steps_per_epoch"):
        model.fit(batches.repeat(), verbose=0)


@pytest.mark.parametrize(
    "arguments, rule",
    [
        ({"class_names": ("a", "b")}, r"one name per class \(3\). Received: 2 names"),
        ({"class_names": ("a", "b", "a")}, "must differ"),
        ({"palette": [(0, 0, 256)] * 3}, "one colour"),
        ({"class_weights": (1.0, 1.0)}, r"one number per class \(3\)"),
        ({"ignore_label": 1}, "must not be one of the classes"),
        ({"hardest_fraction": 0.0}, "hardest_fraction"),
        ({"weight_decay": -1.0}, "weight_decay must be >= 0"),
        ({"num_classes": None}, "num_classes must be given"),
    ],
)
def test_settings_that_do_not_fit_are_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        segmenter(**arguments)


def softmax(logits):
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def test_scales_and_mirror_images_are_averaged(trained):
    from auto_deeplab_tf.nn.resize import resize_bilinear

    model, _ = trained
    images, _ = examples(2, seed=4)
    images[:, :, 24:] = images[:, :, 24:] * 0.4 + 70  # so that the answers differ by scale
    options = {"scales": (0.75, 1.0, 1.5), "flip": True}
    averaged = model.class_ids(images, **options)
    assert averaged.shape == (2, *SIZE) and averaged.dtype == tf.int32

    expected = 0
    for size in ((24, 36), SIZE, (47, 71)):  # (side - 1) * scale + 1
        scaled = resize_bilinear(images, size)
        for step in (1, -1):
            answer = model._logits(scaled[:, :, ::step])[:, :, ::step]
            expected = expected + softmax(np.asarray(resize_bilinear(answer, SIZE)))
    np.testing.assert_array_equal(averaged, expected.argmax(-1))
    np.testing.assert_array_equal(model.predict_class_ids(images, **options), averaged)

    larger = model.class_ids(images, (50, 70), **options)
    assert larger.shape == (2, 50, 70)


def test_with_flip_a_mirrored_image_gets_the_mirrored_answer(trained):
    model, _ = trained
    # Noise, for which the network alone does not have this symmetry.
    images = np.random.default_rng(0).uniform(0, 255, (2, *SIZE, 3)).astype("float32")
    mirrored = images[:, :, ::-1]
    plain = np.asarray(model.class_ids(images))
    assert np.any(plain[:, :, ::-1] != np.asarray(model.class_ids(mirrored)))
    flipped = np.asarray(model.class_ids(images, flip=True))
    np.testing.assert_array_equal(
        flipped[:, :, ::-1], np.asarray(model.class_ids(mirrored, flip=True))
    )


def test_raw_images_of_any_size_are_segmented_at_their_own(trained):
    model, _ = trained
    images, masks = examples(3, seed=5)
    images = images.astype("uint8")
    whole = model.predict_class_ids(images)
    assert whole.shape == masks.shape and whole.dtype == np.int32
    assert (whole == masks)[masks != 255].mean() > 0.8
    np.testing.assert_array_equal(model.predict_class_ids(images[1]), whole[1])
    # Smaller than the network takes, and of unlike sizes.
    parts = [images[0], images[1, :20, :40], images[2, :31]]
    answers = model.predict_class_ids(parts)
    assert [answer.shape for answer in answers] == [(32, 48), (20, 40), (31, 48)]
    np.testing.assert_array_equal(answers[0], whole[0])
    enlarged = images.repeat(2, axis=1).repeat(2, axis=2)
    answer = model.predict_class_ids(enlarged, input_size=SIZE)
    assert answer.shape == (3, 64, 96)
    assert (answer[:, ::2, ::2] == whole).mean() > 0.95
    assert model.command_input_size((64, 96)) == SIZE
    assert model.command_input_size((96, 64)) == (48, 32)
    with pytest.raises(ValueError, match=r"takes images \[H, W, 3\]"):
        model.predict_class_ids(images[..., 0])


def test_the_preprocessing_can_be_detached(tmp_path):
    model = segmenter(mean=(100.0, 110.0, 120.0), std=(60.0, 70.0, 80.0))
    images, _ = examples(2)
    expected = np.asarray(model(images))
    layer = model.detach_preprocessing()
    np.testing.assert_allclose(model(layer(images)), expected, atol=1e-4)
    assert np.abs(np.asarray(model(images)) - expected).max() > 0.01
    np.testing.assert_allclose(model.detach_preprocessing()(images), images, rtol=1e-6)


def test_keras_export_serves_any_size(trained, tmp_path):
    model, _ = trained
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    for size in (SIZE, (40, 33)):
        images = np.random.default_rng(1).uniform(0, 255, (2, *size, 3)).astype("float32")
        np.testing.assert_allclose(served.serve(images), model(images), atol=1e-4)


def test_a_network_of_ones_own_is_trained_too():
    """Anything from images to logits with the attributes that baselines have."""

    @keras.saving.register_keras_serializable(package="test_segmenter")
    class Pixelwise(keras.Model):
        mean, std, drop_path_keep, num_classes = (0.0,) * 3, (1.0,) * 3, 1.0, NUM_CLASSES

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.layer = keras.layers.Conv2D(NUM_CLASSES, 1)
            self.layer.build((None, None, None, 3))
            self.built = True

        def call(self, images, training=None):
            return self.layer(images / 255.0)

    model = Segmenter(Pixelwise())
    assert model.architecture is None and model.num_classes == NUM_CLASSES
    images, masks = examples(8)
    history = model.fit(images, masks, batch_size=4, epochs=10, verbose=0).history
    assert history["miou"][-1] > history["miou"][0]
    with pytest.raises(ValueError, match=r"must be that of the network \(3\). Received: 4"):
        Segmenter(Pixelwise(), 4)
    buffer = io.StringIO()
    model.summary(print_fn=lambda line: buffer.write(line))
    assert "pixelwise" in buffer.getvalue()
