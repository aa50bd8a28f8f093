"""Writes docs/model_zoo.md from the counts, the measured rows and the paper's tables.

    python -m benchmarks.model_zoo

reads benchmarks/results/network_counts.csv (`python -m benchmarks.networks --counts`) and
networks.csv (`python -m benchmarks.networks --all`); what they lack is an empty cell. The page is
never edited by hand: a test compares it with what this gives.
"""

from pathlib import Path
from typing import NamedTuple

from absl import app

from auto_deeplab_tf.accounting import count
from auto_deeplab_tf.architecture import Architecture
from benchmarks import rows

PAGE = Path(__file__).parents[1] / "docs" / "model_zoo.md"
SIZES = {"1024x2048": (1024, 2048), "1025x2049": (1025, 2049)}


class Entry(NamedTuple):
    """A network of the page.

    Args:
        title: As the page names it.
        network: As `--network` names it.
        filter_multiplier: F, of Auto-DeepLab alone.
        paper_params: The paper's, in 1e6.
        paper_multi_adds: The paper's, in 1e9.
    """

    title: str
    network: str
    filter_multiplier: int | None = None
    paper_params: float | None = None
    paper_multi_adds: float | None = None


ENTRIES = (
    Entry("Auto-DeepLab-S", "auto_deeplab", 20, 10.15, 333.25),
    Entry("Auto-DeepLab-M", "auto_deeplab", 32, 21.62, 460.93),
    Entry("Auto-DeepLab-L", "auto_deeplab", 48, 44.42, 695.03),
    # The paper's row says Xception-65; its parameters are those of Xception-71 (docs/baselines.md).
    Entry("DeepLabv3+, Xception-65", "deeplabv3plus_xception65", None, 43.48, 1551.05),
    Entry("DeepLabv3+, Xception-71", "deeplabv3plus_xception71", None, 43.48, 1551.05),
    Entry("DPC, Xception-65", "dpc_xception65"),
    Entry("DPC, Xception-71", "dpc_xception71"),
    Entry("FRRN-A", "frrn_a", None, 17.76),
    Entry("FRRN-B", "frrn_b", None, 24.78),
    Entry("PSPNet, ResNet-101", "pspnet_resnet101"),
    Entry("PSPNet, ResNet-152", "pspnet_resnet152"),
    Entry("keras-hub DeepLabV3+, ResNet-50", "keras_hub_deeplabv3plus"),
    Entry("keras-hub SegFormer-B0", "keras_hub_segformer_b0"),
    Entry("tf-models-official DeepLabV3+, ResNet-50", "tf_models_official_resnet50"),
    Entry("tf-models-official DeepLabV3+, ResNet-101", "tf_models_official_resnet101"),
)

# Title; the columns of the paper; its rows; the last column is ours.
RESULT_TABLES = (
    (
        "Cityscapes val, mIoU (single model, single scale; without ImageNet unless it says so)",
        ("network", "paper"),
        (
            ("Auto-DeepLab-S", "79.74"),
            ("Auto-DeepLab-M", "80.04"),
            ("Auto-DeepLab-L", "80.33"),
            ("FRRN-A", "65.7"),
            ("FRRN-B", ""),
            ("DeepLabv3+, Xception-65, ImageNet", "79.55"),
        ),
    ),
    (
        "Cityscapes test, mIoU",
        ("network", "paper"),
        (
            ("FRRN-A", "63.0"),
            ("FRRN-B", "71.8"),
            ("Auto-DeepLab-S", "79.9"),
            ("Auto-DeepLab-L", "80.4"),
            ("Auto-DeepLab-S, coarse labels too", "80.9"),
            ("Auto-DeepLab-L, coarse labels too", "82.1"),
            ("DeepLabv3+, Xception-65, ImageNet, coarse labels too", "82.1"),
            ("DPC, Xception-71, ImageNet, coarse labels too", "82.7"),
        ),
    ),
    (
        "VOC 2012 test, mIoU (all pretrained on COCO)",
        ("network", "paper"),
        (
            ("Auto-DeepLab-S", "82.5"),
            ("Auto-DeepLab-M", "84.1"),
            ("Auto-DeepLab-L", "85.6"),
            ("PSPNet, ResNet-101", "85.4"),
            ("DeepLabv3+, Xception-65", "87.8"),
        ),
    ),
    (
        "ADE20K val, mIoU and pixel accuracy",
        ("network", "paper: mIoU", "paper: pixel accuracy", "paper: mean of both"),
        tuple(
            (name, f"{miou:.2f}", f"{accuracy:.2f}", f"{(miou + accuracy) / 2:.2f}")
            for name, miou, accuracy in (
                ("Auto-DeepLab-S", 40.69, 80.60),
                ("Auto-DeepLab-M", 42.19, 81.09),
                ("Auto-DeepLab-L", 43.98, 81.72),
                ("PSPNet, ResNet-152", 43.51, 81.38),
                ("DeepLabv3+, Xception-65", 45.65, 82.52),
            )
        ),
    ),
)


def page(results: Path = rows.RESULTS) -> str:
    """Returns the page's text."""
    counts = {row["network"]: row for row in rows.read(results / "network_counts.csv")}
    measured = rows.read(results / "networks.csv")
    header = (
        "network",
        "parameters",
        "paper",
        *(f"Multi-Adds at {size}" for size in SIZES),
        "paper",
        "s an image",
        "peak MiB",
        "training, images/s",
    )
    lines = [
        "# Model zoo",
        "",
        "<!-- Made by `python -m benchmarks.model_zoo`; not edited by hand. -->",
        "",
        "Networks with 19 classes. Multi-Adds are those of convolutions, taps on padding included; "
        "matrix products of attention and dense layers do not count. The paper's figures for "
        "Auto-DeepLab are 4 to 5 % higher than those at 1025x2049. Over half of that are the "
        "padded maps that TF1 ran atrous convolutions on, which its profiler counted; 0.2685 B x F "
        "is left, unexplained (`python -m benchmarks.paper_multi_adds`). The paper's row of "
        "DeepLabv3+ says Xception-65 and has the parameters of Xception-71; those of FRRN include "
        "the moving statistics ([baselines.md](baselines.md)).",
        "",
        _measured_text(measured),
        "",
        *_table(header, [_row(entry, counts, measured) for entry in ENTRIES]),
    ]
    for title, columns, table in RESULT_TABLES:
        ours = [name.replace("paper", "ours") for name in columns[1:]]
        cells = [(*row, *("" for _ in ours)) for row in table]
        lines += ["", f"## {title}", "", *_table((*columns, *ours), cells)]
    return "\n".join(lines) + "\n"


def _measured_text(measured: list[dict[str, str]]) -> str:
    text = (
        "Seconds and peak memory of the whole process: one image of 1025x2049, to class ids at its "
        "size, 2 threads. Training: batches of 2 at 513x513, float32. From "
        "[networks.csv](../benchmarks/results/networks.csv), where each row has its command"
    )
    machines = sorted({f"{row['cpu']}, {row['versions']}" for row in measured})
    return f"{text} ({'; '.join(machines)})." if machines else f"{text}."


def _row(
    entry: Entry, counts: dict[str, dict[str, str]], measured: list[dict[str, str]]
) -> tuple[str, ...]:
    params, multi_adds = _counted(entry, counts.get(entry.network, {}))
    forward = _find(entry, measured, "forward", "1025x2049")
    train = _find(entry, measured, "train", "513x513")
    return (
        f"{entry.title} (`{entry.network}`)",
        f"{params / 1e6:.2f} M" if params else "",
        f"{entry.paper_params:.2f} M" if entry.paper_params else "",
        *(f"{value / 1e9:.2f} B" if value else "" for value in multi_adds),
        f"{entry.paper_multi_adds:.2f} B" if entry.paper_multi_adds else "",
        f"{float(forward['seconds_per_image']):.2f}" if forward else "",
        f"{float(forward['peak_rss_mib']):.0f}" if forward else "",
        f"{float(train['images_per_second']):.3f}" if train else "",
    )


def _counted(entry: Entry, row: dict[str, str]) -> tuple[int | None, list[int | None]]:
    """Parameters, and Multi-Adds at each of `SIZES`; None where nobody counted them."""
    if entry.filter_multiplier is not None:
        architecture = Architecture.preset(entry.network)
        settings = {"num_classes": 19, "filter_multiplier": entry.filter_multiplier}
        found = [count(architecture, input_size=size, **settings) for size in SIZES.values()]
        return found[0].params, [each.multi_adds for each in found]
    values = [row.get(name) for name in ("params", *(f"multi_adds_{size}" for size in SIZES))]
    params, *multi_adds = (int(value) if value else None for value in values)
    return params, multi_adds


def _find(
    entry: Entry, measured: list[dict[str, str]], mode: str, input_size: str
) -> dict[str, str] | None:
    wanted = {
        "network": entry.network,
        "filter_multiplier": str(entry.filter_multiplier or ""),
        "mode": mode,
        "input_size": input_size,
        "threads": "2",
    }
    found = [row for row in measured if all(row[name] == value for name, value in wanted.items())]
    return found[-1] if found else None


def _table(header: tuple[str, ...], cells: list[tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return lines + [f"| {' | '.join(row)} |" for row in cells]


def main(_: list[str]) -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")


if __name__ == "__main__":
    app.run(main)
