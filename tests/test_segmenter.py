"""`Segmenter` as a Keras user meets it: forms of data, callbacks, saving, devices, inference."""

import contextlib
import io
import json
import warnings
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import auto_deeplab_tf
from auto_deeplab_tf.architecture import Architecture, Edge
from auto_deeplab_tf.errors import RunError, UserError
from auto_deeplab_tf.segmenter import Segmenter
from auto_deeplab_tf.served import load_segmenter
from auto_deeplab_tf.training import loop

SIZE = (32, 48)
NUM_CLASSES = 3
ARCHITECTURE = Architecture(
    levels=(1,),
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
        class_weights={2: 0.5, 0: 1.0, 1: 2.0},  # as Keras has them
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


class Steps(keras.callbacks.Callback):
    """Notes (epoch, batch) of every step, and stops where it is told to."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.seen, self.tests, self._stop_after = [], 0, stop_after

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append((self.epoch, batch))
        self.model.stop_training = len(self.seen) == self._stop_after

    def on_test_begin(self, logs=None):
        self.tests += 1


class Batches(keras.utils.PyDataset):
    def __init__(self, images, masks, **kwargs):
        super().__init__(**kwargs)
        self.images, self.masks, self.epochs = images, masks, 0

    def __len__(self):
        return len(self.images) // 2

    def __getitem__(self, index):
        part = slice(2 * index, 2 * index + 2)
        return self.images[part], self.masks[part]

    def on_epoch_end(self):
        self.epochs += 1


def generator(images, masks, passes=10**6):
    for _ in range(passes):
        for start in range(0, len(images), 2):
            yield images[start : start + 2], masks[start : start + 2]


def batches(images, masks):
    return tf.data.Dataset.from_tensor_slices((images, masks)).batch(2)


FORMS = {
    "arrays": lambda x, y: ((x, y), {"batch_size": 2}),
    "dataset": lambda x, y: ((batches(x, y),), {}),
    "endless dataset": lambda x, y: ((batches(x, y).repeat(),), {"steps_per_epoch": 3}),
    "short dataset": lambda x, y: ((batches(x, y).take(2),), {"steps_per_epoch": 3}),
    "PyDataset": lambda x, y: ((Batches(x, y),), {}),
    "PyDataset with workers": lambda x, y: ((Batches(x, y, workers=2),), {}),
    "generator": lambda x, y: ((generator(x, y),), {"steps_per_epoch": 3}),
    "by step": lambda x, y: ((batches(x, y).repeat().skip,), {"steps_per_epoch": 3}),
}


@pytest.fixture(scope="module")
def compiled():
    """A model whose step is traced once, where `fit` by default makes a new optimizer each time."""
    model = segmenter()
    model.compile(keras.optimizers.SGD(0.01))
    return model


@pytest.mark.parametrize("form", FORMS)
def test_fit_takes_every_form_of_data(form, compiled):
    images, masks = examples(6)
    model, steps = compiled, Steps()
    model.completed_steps.assign(0)
    model.optimizer.iterations.assign(0)
    data, more = FORMS[form](images, masks)
    history = model.fit(*data, epochs=2, verbose=0, callbacks=[steps], **more)
    assert steps.seen == [(epoch, batch) for epoch in range(2) for batch in range(3)]
    assert history.epoch == [0, 1] and set(history.history) == {"loss", "miou", "pixel_accuracy"}
    assert int(model.completed_steps) == int(model.optimizer.iterations) == model.total_steps == 6
    if form != "short dataset":  # which shows two thirds of the set, and begins again
        assert model.confusion_matrix.sum() == (masks != 255).sum()
    if isinstance(data[0], Batches):
        assert data[0].epochs >= 2


def test_a_generator_that_ends_too_early_is_an_error():
    with pytest.raises(RunError, match="data ended after step 3, before epoch 1 did"):
        segmenter().fit(generator(*examples(6), passes=1), epochs=3, steps_per_epoch=3, verbose=0)


def test_an_epoch_of_unknown_length_ends_with_its_data():
    model, steps = segmenter(), Steps()
    model.compile(keras.optimizers.SGD(0.01))
    unknown = batches(*examples(6)).filter(lambda x, y: True)
    model.fit(unknown, epochs=2, verbose=0, callbacks=[steps])
    assert steps.seen == [(epoch, batch) for epoch in range(2) for batch in range(3)]
    assert int(model.completed_steps) == 6


def test_validation_is_keras_own(compiled):
    images, masks = examples(8)
    model, steps = segmenter(), Steps()
    arguments = {"batch_size": 2, "epochs": 4, "verbose": 0, "callbacks": [steps]}
    history = model.fit(
        images, masks, validation_split=0.25, validation_freq=2, initial_epoch=1, **arguments
    )
    # Six images in three steps an epoch; the last two were set apart.
    assert steps.seen[0] == (1, 0) and len(steps.seen) == 9 and steps.tests == 2
    assert history.epoch == [1, 2, 3] and len(history.history["val_miou"]) == 2
    assert int(model.completed_steps) == 12
    results = model.evaluate(images[6:], masks[6:], batch_size=2, verbose=0, return_dict=True)
    assert history.history["val_loss"][-1] == pytest.approx(results["loss"])
    assert history.history["val_miou"][-1] == pytest.approx(results["miou"])

    model = compiled
    for data, more in (
        (batches(images[6:], masks[6:]), {}),
        (Batches(images[6:], masks[6:]), {}),
        (generator(images[6:], masks[6:]), {"validation_steps": 1}),
        ((images[6:], masks[6:]), {"validation_batch_size": 1}),
    ):
        history = model.fit(
            images,
            masks,
            batch_size=2,
            verbose=0,
            validation_data=data,
            validation_freq=[1],
            **more,
        )
        assert set(history.history) >= {"val_loss", "val_miou", "val_pixel_accuracy"}


def test_a_training_that_keras_backed_up_is_continued(tmp_path):
    images, masks = examples(4)
    arguments = {"batch_size": 2, "epochs": 3, "verbose": 0, "shuffle": False}

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    def interrupt_second(epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt

    whole = segmenter()
    whole.fit(images, masks, **arguments)
    interrupt = keras.callbacks.LambdaCallback(on_epoch_begin=interrupt_second)
    with pytest.raises(KeyboardInterrupt):
        segmenter().fit(images, masks, callbacks=[backup(), interrupt], **arguments)
    again, steps = segmenter(seed=5), Steps()
    again.fit(images, masks, callbacks=[backup(), steps], **arguments)
    assert steps.seen[0] == (1, 0) and int(again.completed_steps) == 6
    for ours, theirs in zip(arrays(again.variables), arrays(whole.variables), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_callback_stops_the_training_where_it_says():
    images, masks = examples(6)
    model, steps = segmenter(), Steps(stop_after=2)
    history = model.fit(images, masks, batch_size=2, epochs=3, verbose=0, callbacks=[steps])
    assert steps.seen == [(0, 0), (0, 1)] and history.epoch == [0]
    assert int(model.completed_steps) == 2


def test_images_that_are_not_finite_are_refused():
    images, masks = examples(2)
    images = images.astype("float32")
    images[1, 2, 3] = np.nan
    in_second_batch = tf.data.Dataset.from_tensor_slices((images, masks)).batch(1)
    model = segmenter()
    for use in (
        lambda: model.fit(images, masks, verbose=0),
        lambda: model.fit(batches(images, masks), verbose=0),
        lambda: model.fit(in_second_batch, verbose=0),
        lambda: model.predict_class_ids(images),
    ):
        with pytest.raises(UserError, match="images must be finite"):
            use()


def test_steps_of_an_epoch_are_a_whole_number():
    model = segmenter()
    model.compile(keras.optimizers.SGD(0.1))  # whose schedule does not ask for them
    with pytest.raises(UserError, match="steps_per_epoch must be a whole number"):
        model.fit(batches(*examples(2)).repeat(), steps_per_epoch=4 / 3, verbose=0)


def test_metrics_end_with_the_next_compile():
    model = segmenter()
    model.compile(metrics=[keras.metrics.SparseCategoricalAccuracy(name="extra")])
    model.compile()
    assert "extra" not in model.fit(*examples(2), verbose=0).history


def test_a_loss_that_is_not_finite_stops_the_training():
    images, masks = examples(4)
    model = segmenter()
    model.compile(keras.optimizers.SGD(1e38))
    arguments = {"batch_size": 2, "epochs": 4, "verbose": 0}
    with pytest.raises(RunError, match="loss became (nan|inf) at step [12]"):
        model.fit(images, masks, **arguments)
    history = model.fit(images, masks, callbacks=[keras.callbacks.TerminateOnNaN()], **arguments)
    assert history.epoch == [0] and not np.isfinite(history.history["loss"][0])


def test_callbacks_know_that_larger_scores_are_better(tmp_path):
    images, masks = examples(2)
    chosen = []
    for name in ("miou", "val_miou", "pixel_accuracy", "val_pixel_accuracy"):
        file = tmp_path / f"{name}.keras"
        chosen.append(keras.callbacks.EarlyStopping(name))
        chosen.append(keras.callbacks.ModelCheckpoint(file, name, save_best_only=True))
    model = segmenter()
    model.compile(metrics=[keras.metrics.SparseCategoricalAccuracy(name="extra")])
    history = model.fit(images, masks, validation_data=(images, masks), callbacks=chosen, verbose=0)
    assert set(history.history) >= {"loss", "miou", "extra", "val_extra", "val_miou"}
    for callback in chosen:
        assert bool(callback.monitor_op(2.0, 1.0))
        assert float(callback.best) == pytest.approx(history.history[callback.monitor][0])
    # What is saved are the metrics of the user alone.
    again = keras.saving.load_model(file)
    assert again.get_compile_config() == model.get_compile_config()


def test_float16_scales_its_loss(tmp_path):
    images, masks = examples(2)
    model = segmenter(dtype="mixed_float16")
    history = model.fit(images, masks, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    for optimizer in (None, keras.optimizers.SGD(0.1)):
        if optimizer is not None:
            model.compile(optimizer)
        model.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras")
        assert isinstance(again.optimizer, keras.optimizers.LossScaleOptimizer)
        np.testing.assert_array_equal(again(images), model(images))
    assert not isinstance(segmenter().optimizer, keras.optimizers.LossScaleOptimizer)


def test_what_makes_a_worthless_model_is_warned_of(compiled):
    model = compiled
    images, masks = examples(2)
    binary = np.where(masks == 1, 255, 0)
    with pytest.warns(UserWarning, match=r"classes 1, 2 have not one pixel .* ignore label 255.*"):
        model.fit(images, binary, verbose=0)
    with pytest.warns(UserWarning, match="classes 1, 2 have not one pixel"):
        model.fit(batches(images, binary), verbose=0)
    for data in ((images / 255, masks), (batches(images / 255, masks),)):
        with pytest.warns(UserWarning, match="images must be 0..255, but their largest value is"):
            model.fit(*data, verbose=0)
    with pytest.warns(UserWarning, match="images must be 0..255"):
        model.predict_class_ids(images / 255)
    with pytest.warns(UserWarning, match="no score: all pixels carry the ignore label 255"):
        results = model.evaluate(images, np.full_like(masks, 255), verbose=0, return_dict=True)
    assert np.isnan(results["miou"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.fit(images, masks, verbose=0)
        model.fit(batches(images, masks), verbose=0)
        model.predict_class_ids((images / 255).astype("uint8"))
        detached = segmenter()
        scale = detached.detach_preprocessing()
        detached.predict_class_ids(np.asarray(scale(images)))


def test_a_bare_network_is_a_model_file(tmp_path):
    model = segmenter()
    model.network.save(tmp_path / "network.keras")
    again = auto_deeplab_tf.load_model(tmp_path / "network.keras")
    images, _ = examples(1)
    np.testing.assert_array_equal(again(images), model(images))
    assert again.class_names is None and again.architecture == ARCHITECTURE


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
    assert again.score(batches)[0] == pytest.approx(model.score(batches)[0], rel=1e-5)


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
        config["config"]["architecture"]["config"]["architecture"]["levels"] = [0]

    change_config(path, tmp_path / "changed.keras", other_path)
    with pytest.raises(ValueError, match="fingerprint") as refused:
        load_segmenter(tmp_path / "changed.keras")
    assert "\n" not in str(refused.value) and "changed.keras" in str(refused.value)
    with pytest.raises(FileNotFoundError, match="model=.*none.keras: no such file"):
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
        # The replicas draw what one draws for the global batch.
        "drop_path_keep": 0.5,
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


@pytest.mark.slow
def test_two_devices_share_a_last_batch_of_one_image(mirrored):
    """Filled up by an image that is ignored: with statistics at rest both count the same."""
    images, masks = examples(5)
    found, logits = [], []
    for scope in (contextlib.nullcontext(), mirrored.scope()):
        with scope:
            model = segmenter(dtype="float32")
            model.compile(keras.optimizers.SGD(0.0))
        for layer in model.network._flatten_layers():
            if "norm" in layer.name:
                layer.trainable = False
        history = model.fit(
            images, masks, batch_size=4, shuffle=False, verbose=0, validation_data=(images, masks)
        ).history
        assert model.confusion_matrix.sum() == (masks != 255).sum()
        found.append(history)
        unlike = tf.data.Dataset.from_generator(
            lambda: (images[part] for part in (slice(1), slice(1, 4), slice(4, 5))),
            output_signature=tf.TensorSpec((None, *images.shape[1:])),
        )
        logits.append(model.predict(images, batch_size=4, verbose=0))
        logits += [model.predict(x, verbose=0) for x in (unlike, batches(images, masks))]
    assert logits[0].shape == (*masks.shape, 3)
    for other in logits[1:]:
        np.testing.assert_allclose(other, logits[0], rtol=1e-4, atol=1e-5)
    assert found[0].keys() == found[1].keys()
    for name, values in found[0].items():
        np.testing.assert_allclose(found[1][name], values, rtol=1e-5, err_msg=name)


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


@pytest.mark.parametrize(
    "strange, rule",
    [
        (lambda masks: masks.astype("float32"), r"integers \[N, H, W\].*Received: dtype float32"),
        (lambda masks: np.eye(3)[masks % 3], r"neither one-hot nor colours.*\[2, 32, 48, 3\]"),
        (lambda masks: masks[:1], r"one \[H, W\] for each image.*masks \[1, 32, 48\]"),
        (lambda masks: masks[:, :30], r"of its height and width.*masks \[2, 30, 48\]"),
        (lambda masks: masks[0, 0], r"a batch of them.*Received: shape \[48\]"),
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
    for use in (model.fit, model.evaluate):
        with pytest.raises(UserError, match="classes 0..2 and the ignore label"):
            use(batches, verbose=0)
    with pytest.raises(ValueError, match="without class_weight: weigh classes by Segmenter"):
        model.fit(images, masks, class_weight={0: 1.0})
    with pytest.raises(ValueError, match="without sample_weight"):
        model.fit(batches.map(lambda x, y: (x, tf.maximum(y, 0), x[..., 0])), verbose=0)
    with pytest.raises(ValueError, match="without sample_weight"):
        fine = np.minimum(masks, 2)
        model.fit(images, fine, validation_data=(images, fine, images[..., 0]), verbose=0)
    with pytest.raises(ValueError, match="give steps_per_epoch"):
        model.fit(batches.repeat(), verbose=0)
    model.trainable = False
    with pytest.raises(ValueError, match="no variable is trainable"):
        model.fit(images, masks, verbose=0)


@pytest.mark.parametrize(
    "arguments, rule",
    [
        ({"class_names": ("a", "b")}, r"one name per class \(3\). Received: 2 names"),
        ({"class_names": ("a", "b", "a")}, "must differ"),
        ({"palette": [(0, 0, 256)] * 3}, "one colour"),
        ({"class_weights": (1.0, 1.0)}, r"one number per class \(3\)"),
        ({"class_weights": {0: 1.0, 1: 2.0}}, r"a weight for each class 0\.\.2"),
        ({"ignore_label": 1}, "must not be one of the classes"),
        ({"hardest_fraction": 0.0}, "hardest_fraction"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0: must be at least 0"),
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
