"""A network's start from the weights of another, trained for other classes."""

import os
from typing import Any

from auto_deeplab_tf.errors import UserError

# Settings in which the two may differ: they shape no weight, or only those of the class layer.
_FREE = frozenset(
    "name trainable dtype num_classes mean std input_size batch_norm_decay drop_path_keep "
    "drop_path_seed fingerprint".split()
)
# What is learnt besides the trainable variables; the other variables count steps.
_STATISTICS = ("moving_mean", "moving_variance")


def take_weights(model: Any, source: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Copies the weights of a trained `Segmenter` into another one.

    The class layer is taken too where both have the same class names; otherwise it stays as it was
    initialised.

    Args:
        model: The `Segmenter` that begins.
        source: The one that was read from `path`.
        path: Where the source comes from, for messages.

    Returns:
        {"model": path, "taken": number of weights taken, "new": names of those that are not}.

    Raises:
        UserError: Where the networks differ in more than their classes; it says in what.
    """
    _check_same_network(model.network, source.network, path)
    ours, theirs = _by_name(model.network), _by_name(source.network)
    new: set[str] = set()
    if model.num_classes != source.num_classes or model.class_names != source.class_names:
        of_classes = {id(variable) for variable in model.network.class_layer.variables}
        new = {name for name, variable in ours.items() if id(variable) in of_classes}
    for name in ours.keys() | theirs.keys():
        if name not in ours or name not in theirs:
            raise UserError(
                f"init_from={path} holds another network: only one of the two has the weight {name}"
            )
        if name not in new and ours[name].shape != theirs[name].shape:
            raise UserError(
                f"init_from={path} holds another network: the weight {name} is "
                f"{list(theirs[name].shape)} there and {list(ours[name].shape)} here"
            )
    taken = [name for name in ours if name not in new]
    for name in taken:
        ours[name].assign(theirs[name].numpy())
    return {"model": os.fspath(path), "taken": len(taken), "new": sorted(new)}


def _check_same_network(ours: Any, theirs: Any, path: str | os.PathLike[str]) -> None:
    if type(ours) is not type(theirs):
        raise UserError(
            f"init_from={path} holds a {type(theirs).__name__}, and this trains a "
            f"{type(ours).__name__}: the weights of one do not fit the other"
        )
    if len(ours.mean) != len(theirs.mean):
        raise UserError(
            f"init_from={path} takes images of {len(theirs.mean)} channels, and the data set has "
            f"{len(ours.mean)}: the weights of the first layer do not fit"
        )
    here, there = ours.get_config(), theirs.get_config()
    for key in sorted(here.keys() | there.keys()):
        if key in _FREE or here.get(key) == there.get(key):
            continue
        if key == "architecture":
            raise UserError(
                f"init_from={path} has another architecture than this training: give the one that "
                "it was trained with"
            )
        raise UserError(
            f"init_from={path} has {key} {there.get(key)!r}, and this training "
            f"{here.get(key)!r}: give {key}={there.get(key)}"
        )


def _by_name(network: Any) -> dict[str, Any]:
    """What has been learnt, by its path inside the network, whatever the network is called."""
    trainable = {id(variable) for variable in network.trainable_variables}
    return {
        variable.path.partition("/")[2]: variable
        for variable in network.weights
        if id(variable) in trainable or variable.name in _STATISTICS
    }
