"""`ArchitectureSearch` from Python: the forms of its data, and where in them a step stands."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab_tf import config, searcher
from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.nn.segments import Layout
from auto_deeplab_tf.nn.supernet import Supernet, build_supernet


def numbered(first, count):
    """Batches of one 2x2 image; every pixel of batch i is first + i."""
    numbers = np.arange(first, first + count)
    images = np.broadcast_to(numbers[:, None, None, None], (count, 2, 2, 3)).astype("float32")
    return images, np.broadcast_to(numbers[:, None, None], (count, 2, 2)).astype("int32")


def numbers(dataset, count):
    """The numbers of the next batches: one each, or one of either half."""
    seen = []
    for batch in dataset.take(count):
        halves = batch if isinstance(batch[0], tuple) else (batch,)
        for images, masks in halves:
            assert float(images[0, 0, 0, 0]) == int(masks[0, 0, 0])
        seen.append(tuple(int(masks[0, 0, 0]) for _, masks in halves))
    return seen


def forms():
    halves = (numbered(0, 5), numbered(10, 3))
    datasets = tuple(tf.data.Dataset.from_tensor_slices(half).batch(1) for half in halves)
    return {"arrays": halves, "datasets": datasets, "pairs": tf.data.Dataset.zip(datasets)}


@pytest.mark.parametrize("form", ["arrays", "datasets", "pairs"])
def test_an_epoch_begins_where_the_last_one_ended(form):
    data_at, steps_per_epoch = searcher._as_function(forms()[form], 1, 2)
    assert steps_per_epoch == 2
    whole = {both: numbers(data_at(0, both), 9) for both in (False, True)}
    length = 3 if form == "pairs" else 5
    assert whole[False] == [(step % length,) for step in range(9)]
    assert whole[True] == [(step % length, 10 + step % 3) for step in range(9)]
    for step in range(1, 8):
        for both in (False, True):
            assert numbers(data_at(step, both), 2) == whole[both][step : step + 2], (step, both)


def test_an_epoch_is_the_shorter_half_once_unless_said():
    for form, data in forms().items():
        assert searcher._as_function(data, 1, None)[1] == 3, form
    endless = forms()["pairs"].repeat()
    with pytest.raises(ValueError, match="steps_per_epoch must be given"):
        searcher._as_function(endless, 1, None)
    data_at, _ = searcher._as_function(endless, 1, 4)
    assert numbers(data_at(4, True), 1) == [(1, 11)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, "data must be"),
        ((numbered(0, 3), numbered(0, 1)), "at least one batch"),
        (lambda step, pairs: None, "steps_per_epoch must be given"),
    ],
)
def test_data_of_another_form_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        searcher._as_function(data, 2, None)


def test_labels_and_images_that_do_not_fit_are_refused_or_warned_of():
    search = searcher.ArchitectureSearch(
        num_classes=3, num_layers=1, num_blocks=1, filter_multiplier=1
    )
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (2, 32, 33, 3)).astype("float32")
    masks = rng.integers(0, 3, (2, 32, 33)).astype("int32")
    strange = np.where(masks == 2, 3, masks)
    batches = tf.data.Dataset.from_tensors((images, strange))
    holed = tf.data.Dataset.from_tensors((np.full_like(images, np.inf), masks))
    for half, rule in (
        ((images, strange), "classes 0..2 and the ignore label 255 only. Received: 3"),
        ((images, masks.astype("float32")), "masks must be integers"),
        ((images, masks[:, :30]), "of its height and width"),
        (batches, "classes 0..2 and the ignore label 255 only"),
        (batches.map(lambda x, y: (x, tf.cast(y, tf.float32))), "masks must be integers"),
        (batches.map(lambda x, y: (x, tf.one_hot(y, 3, dtype=tf.int32))), "neither one-hot"),
        (batches.map(lambda x, y: (x, y[:, :30])), "of its height and width"),
        (holed, "images must be finite, 0..255, but hold NaN or infinity"),
        (images, "data must be two halves"),
    ):
        with pytest.raises(ValueError, match=rule):
            search.fit((half, half), epochs=1, verbose=0)
    half, weighted = (images, masks), (images, masks, masks)
    batch, weighted_batch = map(tf.data.Dataset.from_tensors, (half, weighted))
    for data in (
        (half, half, half),
        (half,),
        (weighted, weighted),
        (weighted_batch, weighted_batch),
        tf.data.Dataset.zip((batch, batch, batch)),
    ):
        with pytest.raises(ValueError, match="data must be .* Received: tuple of length [13]$"):
            search.fit(data, epochs=1, verbose=0)
    with pytest.raises(ValueError, match="classes 0..2 and the ignore label"):
        search.fit(tf.data.Dataset.zip((batches, batches)), epochs=1, verbose=0)
    half = (images / 255, np.where(masks == 2, 255, masks))
    with pytest.warns(UserWarning) as warned:
        search._checked((half, half))
    texts = " ".join(str(warning.message) for warning in warned)
    assert "class 2 has not one pixel" in texts and "images must be 0..255" in texts


def test_classes_that_the_first_epoch_of_a_dataset_lacks_are_warned_of(monkeypatch):
    search = searcher.ArchitectureSearch(4, **SMALL)
    search.compile(total_steps=4)
    monkeypatch.setattr(search, "report", lambda: {})
    seen = []

    def train_step(batch):
        seen.append(batch)
        return {"loss": 0.0}

    monkeypatch.setattr(search.model, "train_step", train_step)
    images = np.zeros((3, 1, 32, 33, 3), "float32")
    masks = np.stack([np.full((1, 32, 33), label, "uint8") for label in (0, 255, 2)])
    half = tf.data.Dataset.from_tensor_slices((images, masks))
    every = {"arch_start_epoch": 0, "traced": False, "verbose": 0}
    with pytest.warns(UserWarning, match="classes 1, 3 have not one pixel in the training masks"):
        search.fit((half, half), epochs=1, **every)
    assert [int(masks[0, 0, 0]) for (_, masks), _ in seen] == [0, 255, 2]
    # All later epochs have been warned of with the first one.
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        search.fit((half, half), epochs=2, **every)
    assert len(seen) == 6


def test_checkpoints_belong_to_the_order_of_the_weights_in_their_vectors():
    """Another order has the same sizes, and would be read without an error."""
    search = searcher.ArchitectureSearch(
        num_classes=3, num_layers=1, num_blocks=1, filter_multiplier=1
    )
    before = search.fingerprint
    assert search.fingerprint == before
    kind = next(s.kind for s in search.model.supernet.segments if s.name == "layer_0_level_0")
    layout = kind.kernels
    shapes = dict(reversed(layout.shapes.items()))
    vars(kind)["kernels"] = Layout(shapes, layout._initial)
    assert kind.kernels.size == layout.size
    assert search.fingerprint != before


SMALL = {"num_layers": 1, "num_blocks": 1, "filter_multiplier": 1}


def test_settings_are_given_whole_or_as_keywords():
    whole = config.ArchitectureSearchConfig(**SMALL, weight_decay=0.5)
    for search in (
        searcher.ArchitectureSearch(3, whole),
        searcher.ArchitectureSearch(3, **SMALL, weight_decay=0.5),
    ):
        assert search.model.supernet.settings == whole.part(config.SupernetConfig)
        assert search.model.settings == whole.part(config.BilevelConfig)
    with pytest.raises(TypeError, match="whole or as keywords"):
        searcher.ArchitectureSearch(3, whole, num_layers=1)
    with pytest.raises(TypeError, match="no setting 'num_layer'; did you mean 'num_layers'"):
        searcher.ArchitectureSearch(3, num_layer=1)
    with pytest.raises(TypeError, match="no setting 'num_block'; did you mean 'num_blocks'"):
        build_supernet(num_block=1)


@pytest.mark.parametrize(("epochs", "first"), [(40, 20), (3, 1), (1, 0)])
def test_alpha_and_beta_wait_for_half_of_the_epochs_as_in_the_command(monkeypatch, epochs, first):
    seen = {}
    monkeypatch.setattr(
        searcher.loop, "fit", lambda model, data_at, **kwargs: seen.update(data_at=data_at)
    )
    search = searcher.ArchitectureSearch(3, **SMALL)
    search.fit(lambda step, pairs: pairs, epochs=epochs, steps_per_epoch=2)
    assert [seen["data_at"](step) for step in range(2 * epochs)] == (
        [False] * 2 * first + [True] * 2 * (epochs - first)
    )
    defaults = (config.SearchConfig.epochs, config.SearchConfig.arch_start_epoch)
    assert epochs != defaults[0] or first == defaults[1]


def test_a_file_with_weights_in_another_order_is_refused():
    supernet = build_supernet(3, 1, 1, 1)
    written = supernet.get_config()
    assert Supernet.from_config(written).settings == supernet.settings
    with pytest.raises(UserError, match="lie in another order"):
        Supernet.from_config(written | {"layout": "0" * 64})


def test_the_configuration_of_an_older_file_is_read():
    older = build_supernet(3, 1, 1, 1).get_config() | {"input_size": (32, 48)}
    older |= {"mix_predecessors": False}
    del older["layout"], older["stem_channels"], older["formulation"]
    with pytest.warns(UserWarning, match="checked by their sizes only"):
        assert Supernet.from_config(older).settings == build_supernet(3, 1, 1, 1).settings
    with pytest.raises(UserError, match="mix_predecessors"):
        Supernet.from_config(older | {"mix_predecessors": True})
