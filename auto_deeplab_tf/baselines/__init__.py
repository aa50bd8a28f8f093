"""Hand-designed networks by name, with the interface of `nn.network.Network`.

A baseline is a Keras model, images [N, H, W, 3] in 0..255 -> logits [N, H, W, num_classes], with
the attributes `num_classes`, `mean`, `std` and `drop_path_keep`. This is the one place that knows
their names.
"""

from collections.abc import Callable
from typing import Any

BUILDERS: dict[str, Callable[..., Any]] = {}


def check_name(name: str) -> None:
    """Refuses what `--network` does not take.

    Raises:
        ValueError: for a name that is not in `BUILDERS`.
    """
    if name not in BUILDERS:
        allowed = ", ".join(BUILDERS) or "none so far; train an --architecture instead"
        raise ValueError(f"--network={name}: no baseline of that name; allowed: {allowed}")


def build_baseline(name: str, **settings: Any) -> Any:
    """Builds the baseline of that name.

    Args:
        name: what `--network` takes.
        **settings: `num_classes`, `mean`, `std`, `batch_norm_decay`, `dtype`.

    Raises:
        ValueError: for a name that is not in `BUILDERS`.
    """
    check_name(name)
    return BUILDERS[name](**settings)
