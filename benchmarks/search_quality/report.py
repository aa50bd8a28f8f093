"""What results.csv says, by the rules of PROTOCOL.md; nothing but the file is read."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import scipy.stats

from benchmarks.search_quality import latency, methods, population

Rows = list[dict[str, str]]
RESAMPLES = 10_000
PERCENTILE = 90.0  # Searched networks have to lie above it, with the whole interval.
NETWORKS = 3  # Of each method; before, nothing is decided.
SEEDS = {"reported": 3, "scenes": 1}  # Of each of these networks.
KEPT_RANKS = 0.7  # Tau between two lengths of training at which the shorter one will do.
LOWER_IS_BETTER = ("loss_1_8", "loss_1_4", "loss_1_2")
OPINIONS = (
    *LOWER_IS_BETTER,
    "val_miou_1_8",
    "val_miou_1_4",
    "val_miou_1_2",
    "multi_adds",
    "params",
    "num_skips",
    "num_pools",
    "depth",
    "shortest_chain",
    "filter_multiplier",
    "mean_level",
)


def report(rows: Rows, opinions: Sequence[dict[str, str]] = ()) -> str:
    """Returns the page that `--report` prints, from results.csv and opinions.csv."""
    reported = _of_split(rows, "reported")
    trials = [row for row in rows if row["kind"] == "trial"]
    parts = [
        _networks(rows),
        _lengths(trials),
        *_comparisons(rows, "reported"),
        _second_set(rows),
        _opinions("tuning", [row for row in trials if int(row["steps"]) <= population.STEPS]),
        _opinions("reported", reported),
        _opinions_of_searches(reported, opinions),
    ]
    return "\n\n".join(part for part in parts if part)


def _networks(rows: Rows) -> str:
    lines = [
        "kind           network                 split     steps  F   Multi-Adds  cells  parameters"
        "  latency  mIoU of each seed"
    ]
    groups = grouped(rows, lambda row: (row["split"], row["kind"], row["name"], int(row["steps"])))
    for (split, kind, name, steps), group in sorted(groups.items()):
        mious = "  ".join(
            f"{float(row['val_miou']):.3f} [{float(row['val_miou_low']):.3f}, "
            f"{float(row['val_miou_high']):.3f}]"
            for row in group
        )
        row = group[0]
        lines.append(
            f"{kind:14} {name:23} {split:9} {steps:5}  {row['filter_multiplier']:3} "
            f"{int(row['multi_adds']) / 1e6:7.0f} M    {float(row['cell_share']):4.0%}   "
            f"{int(row['params']):9,}  {row.get(latency.COLUMN, ''):>7}  {mious}"
        )
    return "\n".join(lines)


def _lengths(rows: Rows) -> str:
    """Kendall's tau between the results of a training and of one three times as long."""
    by_length = grouped(rows, lambda row: int(row["steps"]))
    lines = []
    for short, long in itertools.pairwise(sorted(by_length)):
        pairs = _paired(by_length[short], by_length[long])
        if len(pairs) < 3:
            continue
        tau = scipy.stats.kendalltau(*zip(*pairs, strict=True)).statistic
        verdict = "ranks hold" if tau >= KEPT_RANKS and len(pairs) >= 6 else "not shown to hold"
        lines.append(
            f"{short} against {long} steps, {len(pairs)} networks: tau {tau:.2f}, {verdict}"
        )
    return "\n".join(lines)


def _paired(short: Rows, long: Rows) -> list[tuple[float, float]]:
    later = {(row["architecture"], row["seed"]): float(row["val_miou"]) for row in long}
    return [
        (float(row["val_miou"]), later[row["architecture"], row["seed"]])
        for row in short
        if (row["architecture"], row["seed"]) in later
    ]


def _percentile(rows: Rows, kind: str, planned: int) -> str:
    """Where the networks of a kind, of so many seeds each, stand among the random ones."""
    found, random = _seeds(rows, kind), _seeds(rows, "random")
    if not found or len(random) < 2:
        return ""
    standing = percentile(_means(found), _means(random))
    low, high = _interval(percentile, found, random)
    verdict = _verdict(low > PERCENTILE, planned, found)
    deviation = _seed_deviation([*random, *found])
    difference = _difference_of_means(_means(found), _means(random))
    return (
        f"{kind} ({len(found)}) among random ({len(random)}): percentile {standing:.0f}, 95 % "
        f"interval {low:.0f} to {high:.0f}: {verdict} to be above {PERCENTILE:.0f}"
        f"\ndifference to the random mean {difference:+.4f}" + _in_deviations(difference, deviation)
    )


def _choice(rows: Rows) -> str:
    """How much the choice among random networks could gain where no seed disturbed it."""
    random = _seeds(rows, "random")
    of_seeds = _seed_deviation(_seeds(rows))
    if of_seeds is None or len(random) < 2:
        return ""
    of_training = np.std([seeds[0] for seeds in random], ddof=1)
    of_networks = np.sqrt(max(0.0, of_training**2 - of_seeds**2))
    draws = methods.DRAWS
    best = scipy.stats.norm.ppf((draws - 0.375) / (draws + 0.25))  # Blom (1958)
    return (
        f"deviation of random networks, one training each, {of_training:.4f}; of seeds "
        f"{of_seeds:.4f}; so of networks {of_networks:.4f}: the truly best of {draws} normal draws "
        f"would be {best * of_networks:+.4f} from their mean"
    )


def percentile(values: npt.ArrayLike, population: npt.ArrayLike) -> np.ndarray:
    """Returns the percentage of `population` below the mean of `values`; ties count half.

    Both along the last axis.
    """
    mean = np.mean(values, axis=-1, keepdims=True)
    below, above = (np.mean(of, axis=-1) for of in (population < mean, population > mean))
    return 50 * (1 + below - above)


def _difference(rows: Rows, kind: str, planned: int) -> str:
    """By how much the networks of a kind are better than those of random search."""
    found, other = _seeds(rows, kind), _seeds(rows, "random_search")
    if not found or not other:
        return ""
    deviation = _seed_deviation([*found, *other])
    difference = _difference_of_means(_means(found), _means(other))
    low, high = _interval(_difference_of_means, found, other)
    said = (
        f"{kind} minus random search {difference:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}"
        f"{_in_deviations(difference, deviation)}"
    )
    if deviation is None:  # without which the rule says nothing
        return said
    verdict = _verdict(difference > deviation, planned, found, other)
    return f"{said}: {verdict} to be better by more than the deviation of seeds"


def _difference_of_means(values: npt.ArrayLike, others: npt.ArrayLike) -> np.ndarray:
    return np.mean(values, axis=-1) - np.mean(others, axis=-1)


def _interval(
    compare: Callable[[np.ndarray, np.ndarray], np.ndarray],
    networks: Sequence[Sequence[float]],
    others: Sequence[Sequence[float]],
) -> tuple[float, float]:
    """The 95 % interval of a comparison by a bootstrap: networks, and the seeds within each."""
    generator = np.random.default_rng(0)

    def drawn(some: Sequence[Sequence[float]]) -> np.ndarray:
        """The means of as many networks, (RESAMPLES, networks)."""
        number = generator.integers(len(some), size=(RESAMPLES, len(some)))
        means = np.empty(number.shape)
        for this, seeds in enumerate(some):
            places = number == this
            means[places] = generator.choice(seeds, (places.sum(), len(seeds))).mean(axis=-1)
        return means

    low, high = np.quantile(compare(drawn(networks), drawn(others)), (0.025, 0.975))
    return float(low), float(high)


def _means(networks: Sequence[Sequence[float]]) -> list[float]:
    return [float(np.mean(seeds)) for seeds in networks]


def _verdict(shown: bool, planned: int, *methods: Sequence[Sequence[float]]) -> str:
    """What a comparison says, once all networks are there with the seeds that were planned."""
    found = min(sum(len(seeds) >= planned for seeds in method) for method in methods)
    if found < NETWORKS:
        return f"undecided ({found} of {NETWORKS} networks)"
    return "shown" if shown else "not shown"


def _comparisons(rows: Rows, split: str) -> list[str]:
    """Those of PROTOCOL.md on one set of images; empty where a kind has no rows."""
    of_split, planned = _of_split(rows, split), SEEDS[split]
    return [
        _choice(of_split),
        *(
            _percentile(of_split, kind, planned)
            for kind in ("searched", "predicted", "random_search")
        ),
        *(_difference(of_split, kind, planned) for kind in ("searched", "predicted")),
    ]


def _of_split(rows: Rows, split: str) -> Rows:
    return [row for row in rows if row["split"] == split]


def _in_deviations(difference: float, deviation: float | None) -> str:
    if deviation is None:
        return " (deviation of seeds not known: no network has two)"
    return f", {difference / deviation:+.1f} deviations of seeds ({deviation:.4f})"


def _seed_deviation(networks: Iterable[Sequence[float]]) -> float | None:
    """The pooled deviation of the seeds of one network; None where no network has two."""
    several = [np.asarray(seeds) for seeds in networks if len(seeds) > 1]
    freedom = sum(len(seeds) - 1 for seeds in several)
    squares = sum(((seeds - seeds.mean()) ** 2).sum() for seeds in several)
    return float(np.sqrt(squares / freedom)) if freedom else None


def _second_set(rows: Rows) -> str:
    """The comparisons on the generated scenes, and whether the networks have the same order."""
    pairs = _paired(_of_split(rows, "scenes"), _longest(_of_split(rows, "reported")))
    if len(pairs) < 3:
        return ""
    title = f"Generated scenes, {len(pairs)} networks: tau with the reported split {_tau(pairs)}"
    return "\n".join([title, *filter(None, _comparisons(rows, "scenes"))])


def _opinions(title: str, rows: Rows) -> str:
    """Kendall's tau between each cheap opinion and the final mIoU, seed 0, longest training."""
    rows = _longest(rows)
    if len(rows) < 3:
        return ""
    lines = [f"Kendall's tau with the final mIoU, {title} split, {len(rows)} networks"]
    for name in OPINIONS:
        sign = -1 if name in LOWER_IS_BETTER else 1
        label = f"-{name}" if sign < 0 else name
        pairs = [(sign * _opinion(row, name), float(row["val_miou"])) for row in rows]
        lines.append(f"  {label:17} {_tau(pairs)}")
    return "\n".join(lines)


def _opinion(row: dict[str, str], name: str) -> float:
    """A column of results.csv, or the mean level of the path: 0 is stride 4 in all layers."""
    if name == "mean_level":
        return float(np.mean([int(level) for level in row["levels"]]))
    return float(row[name])


def _opinions_of_searches(rows: Rows, opinions: Iterable[dict[str, str]]) -> str:
    """The same of what each search thinks of the networks."""
    final = {row["architecture"]: float(row["val_miou"]) for row in _longest(rows)}
    lines = []
    for search, of_search in grouped(opinions, lambda row: row["search"]).items():
        known = [row for row in of_search if row["architecture"] in final]
        if len(known) < 3:
            continue
        lines.append(f"Kendall's tau with the final mIoU, {search}, {len(known)} networks")
        for name in ("log_prob_cell", "log_prob_path", "inherited_miou"):
            pairs = [(float(row[name]), final[row["architecture"]]) for row in known]
            lines.append(f"  {name:14} {_tau(pairs)}")
    return "\n".join(lines)


def _longest(rows: Rows) -> Rows:
    """The rows of seed 0 and of the longest training."""
    longest = max((int(row["steps"]) for row in rows), default=0)
    return [row for row in rows if row["seed"] == "0" and row["steps"] == str(longest)]


def _tau(pairs: Sequence[tuple[float, float]]) -> str:
    result = scipy.stats.kendalltau(*zip(*pairs, strict=True))
    if np.isnan(result.statistic):
        return "the same for all"
    p = f"p {result.pvalue:.3f}" if result.pvalue >= 0.001 else "p < 0.001"
    return f"{result.statistic:+.2f} ({p})"


def _seeds(rows: Rows, kind: str | None = None) -> list[list[float]]:
    """The mIoU of each seed, for each network of a kind, or for all."""
    of_kind = (row for row in rows if kind in (None, row["kind"]))
    groups = grouped(of_kind, lambda row: (row["kind"], row["name"]))
    return [[float(row["val_miou"]) for row in group] for group in groups.values()]


def grouped(rows: Iterable[dict[str, str]], key: Callable) -> dict:
    """Returns the rows of each value of `key`, in their order."""
    groups = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(groups)
