"""Reads a whole data set once, and reports what it holds and every defect.

Reports pairs, sizes, class frequencies and ignored share of each split, and each defect with its
file: a missing mask or image, sizes that differ, an id out of range, a file that cannot be read, a
name that occurs twice, a stray file. Exits with 1 if there is any defect. Nothing is written.
"""

import collections
import sys
from typing import Any

from auto_deeplab_tf import cli, config

cli.define(config.CheckConfig)

_SHOWN_SIZES = 8


def main() -> int:
    """Checks, prints the report, and returns the exit code."""
    options = cli.read(config.CheckConfig)
    result = check(options)
    if options.json:
        cli.print_json(result)
    else:
        _print(result)
    return 1 if result["num_defects"] else 0


def check(options: config.CheckConfig) -> dict[str, Any]:
    """Checks as the command does; returns what it reports."""
    from auto_deeplab_tf.data import sets

    raw = sets.find(
        options.dataset, options.data_dir, options.dataset_config, options.max_image_pixels
    )
    defects = [
        {"kind": defect.kind, "file": defect.path, "text": defect.text} for defect in raw.defects
    ]
    splits, notes = {}, list(raw.notes)
    for split in raw.splits:
        splits[split], found, note = _check_split(raw, split)
        defects += found
        # Only what is learnt from must have every class.
        notes += [note] if note and split == "train" else []
    return {
        "dataset": options.dataset,
        "data_dir": options.data_dir,
        "channels": raw.info.channels,
        "bits": raw.info.image_bits,
        "splits": splits,
        "notes": notes,
        "num_defects": len(defects),
        "defects": defects,
    }


def _check_split(raw: Any, split: str) -> tuple[dict[str, Any], list[dict[str, str]], str | None]:
    import numpy as np

    from auto_deeplab_tf.data import image_files, parallel, records
    from auto_deeplab_tf.data.dataset import absent_classes_note

    info = raw.info
    pixels = np.zeros(256, np.int64)
    sums = np.zeros((3, info.channels), np.int64)
    sizes: collections.Counter[str] = collections.Counter()
    groups: collections.Counter[str] = collections.Counter()
    defects = []

    def examine(image_id: str) -> Any:
        example = raw.read(split, image_id)
        return example, example and image_files.examine(example, info)

    for example, examined in parallel.ordered_map(examine, raw.ids(split)):
        if example is None:  # the data set leaves it out
            continue
        groups[example.group] += 1
        for problem in examined.problems:
            text = f"{split}, {example.image_id}: {problem.error}"
            file = problem.path or example.image_id
            defects.append({"kind": problem.kind, "file": file, "text": text})
        if examined.image is not None:
            sizes["{}x{}".format(*examined.image.shape[:2])] += 1
            sums += records.channel_sums(examined.image)
        if examined.label is not None:
            pixels += np.bincount(examined.label.ravel(), minlength=256)
    total = max(1, int(pixels.sum()))
    frequencies = (pixels[: info.num_classes] / total).tolist()
    result: dict[str, Any] = {
        "pairs": sum(groups.values()),
        "groups": len(groups),
        "sizes": dict(sizes.most_common()),
        "class_frequencies": dict(zip(info.class_names, frequencies, strict=True)),
        "ignored_share": float(pixels[info.ignore_label] / total),
    }
    if sums[0].any():
        result["mean"], result["std"] = records.channel_statistics(sums, info.image_bits)
    counts = pixels[: info.num_classes].tolist()
    # Where no label map could be read, the defects say all that is known.
    note = absent_classes_note(info, split, counts) if pixels.any() else None
    return result, defects, note


def _print(result: dict[str, Any]) -> None:
    for split, found in result["splits"].items():
        shown = list(found["sizes"].items())
        sizes = ", ".join(f"{size} ({count})" for size, count in shown[:_SHOWN_SIZES])
        more = f" and {len(shown) - _SHOWN_SIZES} other sizes" if len(shown) > _SHOWN_SIZES else ""
        print(f"{split}: {found['pairs']} pairs in {found['groups']} groups; {sizes}{more}")
        for name, share in found["class_frequencies"].items():
            print(f"  {name:<24}{share:9.5f}{'' if share else '  absent'}")
        print(f"  {'(ignored)':<24}{found['ignored_share']:9.5f}")
        for name in ("mean", "std"):
            if name in found:
                print(f"  {name:<24}{', '.join(f'{value:.2f}' for value in found[name])}")
    for defect in result["defects"]:
        file = "" if defect["file"] in defect["text"] else f"{defect['file']}: "
        print(f"{defect['kind']}: {file}{defect['text']}", file=sys.stderr)
    for note in result["notes"]:
        print(note, file=sys.stderr)
    print(f"{result['num_defects']} defects" if result["num_defects"] else "no defects")


if __name__ == "__main__":
    cli.run(main)
