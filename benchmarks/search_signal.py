"""Is the gradient of alpha and beta a signal, and does it last? At the checkpoints of a search.

    python -m benchmarks.search_signal --run_dir=RUN [--batches=40] [--output=FILE.csv]

At each checkpoint (search with a large --keep_checkpoints) the gradient of the logits is taken on
the same batches of train_b, with the weights as they are there, and nothing is updated. A row has,
for alpha and for beta:

- `signal`: |mean| / deviation over the batches, the median over the entries. Noise alone would give
  `noise` = sqrt(2 / (pi * batches)).
- `halves`: correlation, over the entries, of the means of two halves of the batches: what another
  draw of as many images would confirm.
- `persistence`: correlation of the mean with that of the checkpoint before. Near 1: it pulls
  one way; near 0 while `halves` is high: it turns faster than the checkpoints lie apart.
- `onward`: correlation of the logits with the mean, negated: whether descent still pulls them where
  they have gone.
- `held`: the same with the gradient of the weight decay added, as the step has it. Near or below 0
  while `onward` is positive: the decay holds the logits, and more steps do not let them decide.

Entries of beta that no path reaches or that a search cannot learn (docs/method.md) are left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import pathlib
import sys
from typing import Any

import numpy as np

from auto_deeplab_tf import decoding
from auto_deeplab_tf.search_space import transitions

COLUMNS = ("signal", "noise", "halves", "persistence", "onward", "held")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run_dir", type=pathlib.Path, required=True, help="folder of a search")
    parser.add_argument("--batches", type=int, default=40, help="batches of train_b")
    parser.add_argument("--data_dir", help="folder of the data set (default: the run's)")
    parser.add_argument("--cache_dir", help="folder of the records (default: the run's)")
    parser.add_argument("--output", type=pathlib.Path, help="CSV file to write")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    options = parser.parse_args()
    if options.batches < 4:
        parser.error("--batches must be at least 4: two halves, each with a deviation")
    found = rows(options.run_dir, options.batches, options.data_dir, options.cache_dir)
    if options.json:
        for row in found:
            print(json.dumps(row))
    else:
        writer = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n")
        writer.writerow(found[0])
        writer.writerows([_short(value) for value in row.values()] for row in found)
    if options.output:
        with open(options.output, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(found[0]), lineterminator="\n")
            table.writeheader()
            table.writerows(found)


def rows(
    run_dir: pathlib.Path, count: int, data_dir: str | None = None, cache_dir: str | None = None
) -> list[dict[str, Any]]:
    """Returns a row for each checkpoint of a run."""
    from auto_deeplab_tf import searcher
    from auto_deeplab_tf.data import pipeline, split

    search, settings, train = searcher.restored(run_dir, data_dir=data_dir, cache_dir=cache_dir)
    checkpoints = search.checkpoints(run_dir / "checkpoints")
    halves = split.source_halves(train)
    batches = pipeline.training_batches(
        train, halves[1], stream=1, **pipeline.batch_options(settings)
    ).take(count)
    alpha, _ = search.logits
    entries = {
        "alpha": np.ones(alpha.shape, bool),
        "beta": identified_entries(settings.num_layers),
    }
    found, before = [], {}
    for step in checkpoints.steps:
        checkpoints.restore(step)
        gradients = [search.model.gradients("architecture", batch)[2][:2] for batch in batches]
        row: dict[str, Any] = {"step": step}
        for index, (name, logits) in enumerate(zip(entries, search.logits, strict=True)):
            learnt = entries[name]
            values = np.array([np.asarray(gradient[index], "float64") for gradient in gradients])
            values = values[:, learnt]
            measured = measure(values, before.get(name), logits[learnt], settings.arch_weight_decay)
            row |= {f"{name}_{column}": measured[column] for column in COLUMNS}
            before[name] = values.mean(axis=0)
        found.append(row)
        print(f"step {step} done", file=sys.stderr, flush=True)
    return found


def measure(
    gradients: np.ndarray, before: np.ndarray | None, logits: np.ndarray, weight_decay: float
) -> dict[str, float | None]:
    """Returns the columns of one variable, see the module.

    Args:
        gradients: [batches, entries].
        before: [entries], the mean gradient at the checkpoint before; None: at the first.
        logits: [entries].
        weight_decay: Of the step: the gradient of its L2 is that times the logits.
    """
    mean, deviation = gradients.mean(axis=0), gradients.std(axis=0, ddof=1)
    ratio = np.divide(np.abs(mean), deviation, out=np.zeros_like(mean), where=deviation > 0)
    half = len(gradients) // 2
    return {
        "signal": float(np.median(ratio)),
        "noise": math.sqrt(2 / (math.pi * len(gradients))),
        "halves": _correlation(gradients[:half].mean(axis=0), gradients[half:].mean(axis=0)),
        "persistence": None if before is None else _correlation(mean, before),
        "onward": _correlation(-mean, logits),
        "held": _correlation(-mean - weight_decay * logits, logits),
    }


def identified_entries(num_layers: int) -> np.ndarray:
    """Returns bool [L, 4, 3]: the moves of beta that a search can learn."""
    mask = np.zeros((num_layers, 4, 3), bool)
    for row in set(transitions(num_layers)) - set(decoding.unidentified_transitions(num_layers)):
        mask[row[:3]] = True
    return mask


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first, second)[0, 1])


def _short(value: Any) -> Any:
    return f"{value:.3f}" if isinstance(value, float) else value


if __name__ == "__main__":
    main()
