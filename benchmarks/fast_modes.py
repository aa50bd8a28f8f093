"""What the fast modes of the search decode, beside the exact search of the same seed.

    python -m benchmarks.fast_modes --mode=exact [--cache_dir=DIR]     (and for each of `MODES`)
    python -m benchmarks.fast_modes

The second prints the comparison. Time and memory of the modes are `benchmarks.search_step`'s, with
the flag of the mode.

Protocol, written before the first result. Searches on the generated scenes at 96x192: L 4, B 2,
F 4, crop 65x129, batch 2, 3 epochs of 40 steps, alpha and beta from the second epoch on at a
learning rate of 0.125, so that they can travel 10, for each of `SEEDS` and `MODES`; what a seed
fixes (initial weights, alpha and beta, data, augmentation) is the same in all modes. A process for
each mode; a search that is in the results already is not repeated.

Of every search: mIoU of the supernet on 16 validation images, after the last step; path and cell;
the share of edges (source and operation) that its cell has in common with that of the exact search
of the same seed; the mean distance of the two paths, in levels.

The yardstick is the exact search against itself, between its seeds. A mode is said to decode
"other" architectures where each of its shares is below, or each of its path distances above, all
those between the exact seeds; to give an "other" mIoU where its range and the exact search's do not
overlap. Everything else is "not shown": so few short searches cannot tell it from noise.
"""

import itertools
import os
import statistics
from typing import Any

from absl import app, flags

from benchmarks import rows

RESULTS = rows.RESULTS / "fast_modes.csv"
MODES: dict[str, dict[str, Any]] = {
    "exact": {},
    "partial_channels": {"partial_channels": 2},
    "sampled_paths": {"sampled_paths": 2},
}
SEEDS = (0, 1, 2)
EPOCHS, STEPS_PER_EPOCH = 3, 40

FLAGS = flags.FLAGS
flags.DEFINE_enum("mode", None, list(MODES), "searches of this mode; none: only the comparison")
flags.DEFINE_string("cache_dir", None, "folder for the prepared records")


def search(mode: str, seed: int) -> dict[str, Any]:
    """Runs one search; returns its row."""
    import keras

    from auto_deeplab_tf.data import pipeline, source, split
    from auto_deeplab_tf.searcher import ArchitectureSearch
    from auto_deeplab_tf.training import distribution
    from auto_deeplab_tf.training.schedules import Cosine

    distribution.prepare(seed, True)
    train, validation = (
        source.open_split("scenes", name, cache_dir=FLAGS.cache_dir, image_size=(96, 192))
        for name in ("train", "val")
    )
    halves = split.source_halves(train)
    steps = EPOCHS * STEPS_PER_EPOCH
    temperature = keras.optimizers.schedules.PolynomialDecay(10.0, steps, 0.1)
    found = ArchitectureSearch(
        train.info.num_classes,
        num_layers=4,
        num_blocks=2,
        filter_multiplier=4,
        path_temperature=temperature,
        seed=seed,
        **MODES[mode],
    )
    found.compile(
        keras.optimizers.SGD(Cosine(0.05, 0.001, steps), momentum=0.9),
        keras.optimizers.Adam(0.125),
    )
    found.fit(
        lambda step, pairs: pipeline.search_batches(
            train,
            halves,
            pairs=pairs,
            start_step=step,
            batch_size=2,
            crop_size=(65, 129),
            seed=seed,
            scale_range=(0.5, 2.0),
            flip=True,
        ),
        epochs=EPOCHS,
        steps_per_epoch=STEPS_PER_EPOCH,
        arch_start_epoch=1,
        verbose=0,
    )
    score = found.model.score(pipeline.validation_batches(validation, 2, 16))
    report = found.report()
    return {
        "mode": mode,
        "seed": seed,
        "val_miou": round(score["val_miou"], 4),
        "levels": report["levels"],
        "cell": report["cell"],
        "command": f"python -m benchmarks.fast_modes --mode={mode}",
        **rows.machine(),
    }


def edges(row: dict[str, Any]) -> set[tuple[int, str]]:
    """The edges of a row's cell: (block, "operation(source)")."""
    blocks = row["cell"].split(" | ")
    return {(index, edge) for index, block in enumerate(blocks) for edge in block.split(" + ")}


def agreement(first: dict[str, Any], second: dict[str, Any]) -> tuple[float, float]:
    """The share of common edges, 0 to 1, and the mean distance of the paths in levels."""
    common = len(edges(first) & edges(second)) / len(edges(first))
    paths = [[int(level) for level in row["levels"].split("-")] for row in (first, second)]
    return common, statistics.mean(abs(a - b) for a, b in zip(*paths, strict=True))


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """One line for each mode, by the rule of the protocol."""
    by_mode = {mode: [row for row in rows if row["mode"] == mode] for mode in MODES}
    exact = {row["seed"]: row for row in by_mode["exact"]}
    pairs = [agreement(*pair) for pair in itertools.combinations(exact.values(), 2)]
    of_exact = [float(row["val_miou"]) for row in exact.values()]
    lines = [f"exact, seed against seed: {_ranges(pairs)}; mIoU {_range(of_exact)}"]
    for mode, of_mode in by_mode.items():
        if mode == "exact" or not of_mode:
            continue
        found = [agreement(row, exact[row["seed"]]) for row in of_mode if row["seed"] in exact]
        miou = [float(row["val_miou"]) for row in of_mode]
        other = max(f[0] for f in found) < min(p[0] for p in pairs) or min(
            f[1] for f in found
        ) > max(p[1] for p in pairs)
        apart = max(miou) < min(of_exact) or min(miou) > max(of_exact)
        lines.append(
            f"{mode} against exact: {_ranges(found)}: "
            f"{'other' if other else 'a difference is not shown'}; mIoU {_range(miou)}: "
            f"{'other' if apart else 'a difference is not shown'}"
        )
    return lines


def _range(values):
    return f"{min(values):.3f} to {max(values):.3f}"


def _ranges(found):
    shares, distances = zip(*found, strict=True)
    return f"edges in common {_range(shares)}, path distance {_range(distances)}"


def read() -> list[dict[str, Any]]:
    return [{**row, "seed": int(row["seed"])} for row in rows.read(RESULTS)]


def main(_: list[str]) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for seed in SEEDS if FLAGS.mode else ():
        if any((row["mode"], row["seed"]) == (FLAGS.mode, seed) for row in read()):
            continue
        row = search(FLAGS.mode, seed)
        rows.write(RESULTS, [*read(), row])
        print(row, flush=True)
    if len([row for row in read() if row["mode"] == "exact"]) > 1:
        print("\n".join(verdicts(read())))


if __name__ == "__main__":
    app.run(main)
