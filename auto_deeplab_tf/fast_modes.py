"""The fast modes of the search: settings under which it computes less than the paper's search.

Each is off unless asked for, and a search that has one says so (docs/method.md).
"""

from __future__ import annotations

from typing import Any

from auto_deeplab_tf.errors import UserError

EXACT = {"partial_channels": 1, "sampled_paths": 0}


def fast_modes(**settings: Any) -> dict[str, Any]:
    """Returns the settings that differ from those of the exact search.

    Args:
        **settings: values of all names in `EXACT`.
    """
    return {name: settings[name] for name, exact in EXACT.items() if settings[name] != exact}


def check_fast_modes(filter_multiplier: int, settings: dict[str, Any]) -> None:
    """Checks the fast modes of a search against its width and each other.

    Args:
        filter_multiplier: F.
        settings: values of all names in `EXACT`.

    Raises:
        ValueError: beginning with the name of the setting.
    """
    partial, paths = settings["partial_channels"], settings["sampled_paths"]
    if partial < 1 or filter_multiplier % partial:
        raise UserError(
            f"partial_channels={partial} must divide filter_multiplier={filter_multiplier}: one in "
            "so many channels goes through the operations."
        )
    if paths < 0 or paths == 1:
        raise UserError(
            f"sampled_paths={paths} must be 0 (all paths) or at least 2: the weight of a lone path "
            "is a mere scale that normalisation cancels, and beta would learn nothing."
        )
