"""The base of the layers with batch normalisation inside, and chains of layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import keras

from auto_deeplab_tf.nn.backend import Tensor
from auto_deeplab_tf.nn.normalization import Normalization
from auto_deeplab_tf.nn.serialization import Configured

# [N, h, w, C], each None where it is not known statically.
Shape: TypeAlias = tuple[int | None, ...]


class Normalized(Configured):
    """Mixin of layers and networks that hand `norm` and `dtype` on to the layers inside.

    Attributes:
        norm: Their `Normalization`.
    """

    norm: Normalization

    @property
    def shared(self) -> dict[str, Any]:
        """The arguments that inner layers share with this one: `norm` and `dtype`."""
        return {"norm": self.norm, "dtype": self.dtype_policy}  # type: ignore[attr-defined]


class Layer(Normalized, keras.layers.Layer):
    """A layer that makes its normalisation layers, and those of its inner layers, by `norm`.

    Args:
        norm: A `Normalization`, or its attributes by name; default: that of the paper.
        **kwargs: Those of `keras.layers.Layer`, such as `name` and `dtype`.
    """

    def __init__(
        self, *, norm: Normalization | Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.norm = norm if isinstance(norm, Normalization) else Normalization(**(norm or {}))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor, by name."""
        return super().get_config() | {"norm": dataclasses.asdict(self.norm)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> Any:
        """Builds a layer from `get_config`'s content, that of earlier versions included."""
        config = dict(config)
        if "batch_norm_decay" in config:
            config["norm"] = {"decay": config.pop("batch_norm_decay")}
        return super().from_config(config, custom_objects)


def build_chain(layers: Iterable[Any], shape: Shape) -> Shape:
    """Builds layers of which each reads the one before; returns the last one's output shape."""
    for layer in layers:
        layer.build(shape)
        shape = layer.compute_output_shape(shape)
    return shape


def call_chain(layers: Iterable[Any], features: Tensor, training: bool | None) -> Tensor:
    """Calls layers of which each reads the one before; returns the last one's output."""
    for layer in layers:
        features = layer(features, training=training)
    return features


def strided_shape(shape: Shape, stride: int, filters: int) -> Shape:
    """Returns the shape [N, ceil(h / stride), ceil(w / stride), filters]; None stays None."""
    batch, *extents, _ = shape
    return (batch, *(None if e is None else -(-e // stride) for e in extents), filters)
