"""Flags that the measurements of a bilevel step share: the size of the supernet, what is timed."""

from absl import flags

flags.disclaim_key_flags()  # --help shows them as those of the module that calls `define`

NAMES = (
    "crop_size",
    "batch_size",
    "num_layers",
    "num_blocks",
    "filter_multiplier",
    "iterations",
)


def define(
    batch_size: int,
    num_layers: int,
    iterations: int,
    min_iterations: int = 1,
    values: flags.FlagValues = flags.FLAGS,
) -> None:
    """Defines `NAMES` and `json`.

    Args:
        batch_size: Default.
        num_layers: Default.
        iterations: Default.
        min_iterations: Lower bound of iterations.
        values: Where to define them.
    """
    for name, default, text, lower_bound in (
        ("crop_size", 65, "height and width of the crops", 32),
        ("batch_size", batch_size, "crops of each half, over all workers", 1),
        ("num_layers", num_layers, "L", 1),
        ("num_blocks", 5, "B", 1),
        ("filter_multiplier", 8, "F", 1),
        ("iterations", iterations, "iterations that are timed", min_iterations),
    ):
        flags.DEFINE_integer(name, default, text, lower_bound, flag_values=values)
    flags.DEFINE_boolean(
        "json", False, "print one JSON object on one line, nothing else", flag_values=values
    )


def arguments(values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Returns `NAMES` and their values as a command takes them."""
    return [f"--{name}={values[name].value}" for name in NAMES]
