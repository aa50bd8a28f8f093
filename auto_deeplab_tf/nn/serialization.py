"""How Keras writes and reads the classes of this package: names, and arguments as configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import keras

Class = TypeVar("Class", bound=type)


def register(cls: Class) -> Class:
    """Registers a class for Keras serialisation under this package's name."""
    decorate: Callable[[Class], Class] = keras.saving.register_keras_serializable(
        package="auto_deeplab_tf"
    )
    return decorate(cls)


class Configured:
    """Mixin of layers and models whose configuration is their constructor's arguments.

    Each argument that a class names must be kept as an attribute of the same name. A class
    overrides `get_config` where an attribute is nothing that JSON holds.
    """

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructors, by name."""
        config: dict[str, Any] = super().get_config()  # type: ignore[misc]
        for cls in type(self).__mro__:
            if issubclass(cls, Configured) and "__init__" in vars(cls):
                _, *parameters = inspect.signature(vars(cls)["__init__"]).parameters.values()
                config |= {
                    parameter.name: getattr(self, parameter.name)
                    for parameter in parameters
                    if parameter.kind
                    not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
                }
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> Any:
        """Builds an instance from `get_config`'s content, that of earlier versions included."""
        # Batch statistics are always those of all replicas; it was an argument once.
        return cls(**{name: value for name, value in config.items() if name != "synchronized"})
