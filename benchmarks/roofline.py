"""The least time that an iteration of the paper's search can take on a device, on paper.

    python -m benchmarks.roofline

Multiply-adds and bytes are counted from the formulation (`benchmarks.cost`; a test holds
the multiply-adds to those of a traced graph). Each class of operation takes the longer of its
arithmetic at the device's peak and its bytes at the device's bandwidth. Depthwise convolutions run
at the peak of the vector units, other convolutions at that of the matrix units. Kernel launches,
caches and occupancy are left out: it is a bound, not a forecast. Writes results/roofline.csv.
"""

from typing import Any, NamedTuple

from absl import app

from benchmarks import rows

PATH = rows.RESULTS / "roofline.csv"
SIZE = (321, 321)
BATCH_SIZES = (2, 16)


class Device(NamedTuple):
    """A device by its maker's figures.

    Args:
        name: of the device.
        dtype: of the features.
        value_bytes: of one value.
        matrix_flops: operations a second of convolutions; a multiply-add is two.
        vector_flops: of depthwise convolutions.
        bandwidth: bytes a second.
    """

    name: str
    dtype: str
    value_bytes: int
    matrix_flops: float
    vector_flops: float
    bandwidth: float


DEVICES = (
    Device("P100", "float32", 4, 9.3e12, 9.3e12, 732e9),
    Device("H100 SXM", "float32", 4, 494e12, 67e12, 3350e9),  # convolutions in TF32
    Device("H100 SXM", "bfloat16", 2, 989e12, 67e12, 3350e9),
    # No figure of the vector units is published; an estimate from their width and clock.
    Device("TPU v4", "bfloat16", 2, 275e12, 4.3e12, 1200e9),
)


def rows_of_devices() -> list[dict[str, Any]]:
    """One row for each device and batch size."""
    from auto_deeplab_tf.nn.supernet import build_supernet
    from benchmarks import cost

    counts = cost.count(build_supernet(input_size=SIZE), SIZE)
    return [
        _row(cost.iteration(counts, n, remat=False), d, n) for d in DEVICES for n in BATCH_SIZES
    ]


def _row(works: dict[str, Any], device: Device, batch_size: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "device": device.name,
        "dtype": device.dtype,
        "batch_size": batch_size,
        "giga_multi_adds": round(sum(w.multi_adds for w in works.values()) / 1e9, 1),
        "gigabytes": round(device.value_bytes * sum(w.values for w in works.values()) / 1e9, 1),
    }
    total = 0.0
    for name, work in works.items():
        peak = device.vector_flops if name == "depthwise" else device.matrix_flops
        arithmetic = 2 * work.multi_adds / peak
        traffic = device.value_bytes * work.values / device.bandwidth
        total += max(arithmetic, traffic)
        row[f"{name}_ms"] = round(1e3 * max(arithmetic, traffic), 1)
        row[f"{name}_bound_by"] = "arithmetic" if arithmetic > traffic else "memory"
    return row | {"iteration_ms": round(1e3 * total, 1)}


def main(_: list[str]) -> None:
    rows.write(PATH, rows_of_devices())
    print(f"written: {PATH}")


if __name__ == "__main__":
    app.run(main)
