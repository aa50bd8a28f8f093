"""Hand-designed networks by name, with the interface of `nn.network.Network`.

A baseline is a `nn.segmentation_network.SegmentationNetwork`: images [N, H, W, C] in 0..255 ->
logits [N, H, W, num_classes]. This is the one place that knows their names.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, NamedTuple

from auto_deeplab_tf.errors import MissingExtraError, UserError


class Baseline(NamedTuple):
    """Where a baseline's class stands, and the arguments that make it this one.

    Named, not imported: the list of names is asked for where no framework is loaded.
    """

    module: str
    class_name: str
    settings: dict[str, Any]
    # What it is built from, where that is no package that is always installed.
    package: str | None = None


BASELINES = {
    "deeplabv3plus_xception65": Baseline("deeplabv3plus", "DeepLabV3Plus", {"depth": 65}),
    "deeplabv3plus_xception71": Baseline("deeplabv3plus", "DeepLabV3Plus", {"depth": 71}),
    "dpc_xception65": Baseline("deeplabv3plus", "DeepLabV3Plus", {"depth": 65, "context": "dpc"}),
    "dpc_xception71": Baseline("deeplabv3plus", "DeepLabV3Plus", {"depth": 71, "context": "dpc"}),
    "frrn_a": Baseline("frrn", "FRRN", {"variant": "a"}),
    "frrn_b": Baseline("frrn", "FRRN", {"variant": "b"}),
    "pspnet_resnet101": Baseline("pspnet", "PSPNet", {"depth": 101}),
    "pspnet_resnet152": Baseline("pspnet", "PSPNet", {"depth": 152}),
    "keras_hub_deeplabv3plus": Baseline(
        "keras_hub_references", "KerasHubDeepLabV3Plus", {}, package="keras_hub"
    ),
    "keras_hub_segformer_b0": Baseline(
        "keras_hub_references", "KerasHubSegFormerB0", {}, package="keras_hub"
    ),
}


def check_name(name: str) -> None:
    """Refuses what `--network` does not take.

    Raises:
        ValueError: For a name that is not in `BASELINES`.
        MissingExtraError: For one whose package is not installed.
    """
    if name not in BASELINES:
        raise UserError(
            f"network={name}: no baseline of that name; allowed: {', '.join(BASELINES)}"
        )
    package = BASELINES[name].package
    if package is not None and importlib.util.find_spec(package) is None:
        raise MissingExtraError(
            f"network={name} needs {package}, which is not installed: "
            "pip install auto_deeplab_tf[references]"
        )


def register_classes() -> None:
    """Imports the classes of all baselines, so that Keras finds them where it reads a file."""
    for module in sorted({baseline.module for baseline in BASELINES.values()}):
        importlib.import_module(f"auto_deeplab_tf.baselines.{module}")


def build_baseline(
    name: str,
    num_classes: int = 19,
    input_size: tuple[int, int] | None = None,
    **settings: Any,
) -> Any:
    """Builds the baseline of that name.

    Args:
        name: What `--network` takes.
        num_classes: Number of classes, 1 or more.
        input_size: (height, width), or None for any.
        **settings: The other arguments of its class: `mean`, `std`, `batch_norm_decay` and `dtype`
            of every network, `width_multiplier` of those that are not keras-hub's.

    Returns:
        A `SegmentationNetwork`.

    Raises:
        ValueError: For a name that is not in `BASELINES`, or a setting out of its range.
        MissingExtraError: For a network whose package is not installed.

    >>> build_baseline("frrn_a", num_classes=11).count_params()  # doctest: +SKIP
    """
    check_name(name)
    baseline = BASELINES[name]
    module = importlib.import_module(f"auto_deeplab_tf.baselines.{baseline.module}")
    build = getattr(module, baseline.class_name)
    return build(num_classes, input_size, **(baseline.settings | settings))
