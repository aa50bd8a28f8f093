"""Parameters and Multi-Adds of any network that is built, from the layers that a call passes.

The same definition as `accounting.count`, which needs no network and no framework: parameters are
the trainable ones; Multi-Adds are those of convolutions for one image, output positions times taps,
whatever the backend then computes: taps on padding count, and the positions that an implementation
of atrous convolutions pads do not.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras

from auto_deeplab_tf.accounting import Count, LayerCount
from auto_deeplab_tf.nn.conv import ConvBN

_Shape = tuple[int, ...]


def count_network(network: keras.Model, input_size: tuple[int, int]) -> Count:
    """Counts a network's parameters and Multi-Adds for one image; nothing is computed.

    A row is a `ConvBN`, or a layer with weights of its own outside of one; a part is a layer of the
    network itself.

    Args:
        network: A `SegmentationNetwork`.
        input_size: (height, width) of the image, each 32 or more.

    Raises:
        ValueError: For images smaller than the network takes.
    """
    rows = _units(network)
    parts = list(network.layers)
    shapes: dict[int, _Shape] = {}
    multi_adds: dict[int, int] = {}

    def note(layer: Any, output: Any) -> None:
        shapes[id(layer)] = tuple(keras.tree.flatten(output)[-1].shape)[1:]
        if _is_convolution(layer):
            taps = math.prod(layer.kernel.shape) * math.prod(shapes[id(layer)][:2])
            multi_adds[id(layer)] = multi_adds.get(id(layer), 0) + taps

    watched = {id(layer): layer for layer in (*parts, *rows)}
    watched |= {id(layer): layer for layer in _flat(network) if _is_convolution(layer)}
    with _watching(watched.values(), note):
        # Symbolically: shapes run through the layers, no values.
        _Trace(network)(keras.KerasTensor((1, *input_size, network.input_channels)))

    def row(layer: Any) -> LayerCount:
        inside = [layer, *_flat(layer)]
        return LayerCount(
            str(layer.path).removeprefix(f"{network.name}/"),
            shapes.get(id(layer), ()),  # type: ignore[arg-type]
            sum(math.prod(variable.shape) for variable in layer.trainable_variables),
            sum(multi_adds.get(id(each), 0) for each in inside),
        )

    # In the order of computation; what no call reaches has parameters all the same.
    order = {layer: position for position, layer in enumerate(shapes)}
    rows.sort(key=lambda layer: order.get(id(layer), len(order)))
    parts.sort(key=lambda layer: order.get(id(layer), len(order)))
    layers = tuple(row(layer) for layer in rows)
    params = sum(each.params for each in layers)
    called = tuple(row(part) for part in parts if id(part) in shapes)
    # A network that calls what is inside its layers, and not them, has no parts but its rows.
    whole = sum(part.params for part in called) == params
    return Count(
        params, sum(each.multi_adds for each in layers), layers, called if whole else layers
    )


class _Trace(keras.Operation):
    """The network's call as an operation of its own: Keras then traces all that is inside.

    The network itself returns its output shape alone from a symbolic call.
    """

    def __init__(self, network: keras.Model) -> None:
        super().__init__()
        self._network = network

    def call(self, images: Any) -> Any:
        return self._network(images, training=False)


@contextlib.contextmanager
def _watching(layers: Any, note: Callable[[Any, Any], None]) -> Iterator[None]:
    """Tells `note` each call of these layers and what came out, while the block runs."""

    def watched(layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        def calling(*args: Any, **kwargs: Any) -> Any:
            output = call(*args, **kwargs)
            note(layer, output)
            return output

        return calling

    layers = list(layers)
    for layer in layers:
        object.__setattr__(layer, "call", watched(layer, layer.call))
    try:
        yield
    finally:
        for layer in layers:
            object.__delattr__(layer, "call")


def _flat(layer: Any) -> list[Any]:
    """All layers inside a layer, in the order in which they were made."""
    return list(layer._flatten_layers(include_self=False))


def _units(network: keras.Model) -> list[Any]:
    layers = _flat(network)
    inside = {id(each) for layer in layers if isinstance(layer, ConvBN) for each in _flat(layer)}
    return [
        layer
        for layer in layers
        if isinstance(layer, ConvBN)
        or (id(layer) not in inside and not _flat(layer) and layer.trainable_variables)
    ]


def _is_convolution(layer: Any) -> bool:
    return isinstance(layer, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D))
