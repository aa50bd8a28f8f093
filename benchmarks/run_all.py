"""Reruns the measurements that fit in ten minutes; generates docs/performance.md.

    python -m benchmarks.run_all

Every row of benchmarks/results names its command, the commit, the processor and the versions, and
is measured in a process of its own. Run it on a machine that does nothing else. `--rounds=3` goes
through the settings three times, so that those that are compared alternate, and keeps of each the
row of median time. `--long` adds what takes an hour: the search at crop 321 and at larger batches,
in one traced graph, its fast modes, other networks at 513x513, the input pipeline, large sets, and
losses read every ten steps. What mixed precision and the fast modes decode have commands of their
own: `benchmarks.mixed_precision`, `.fast_modes`.
"""

import statistics

from absl import app, flags

from benchmarks import networks, page, roofline, rows

FLAGS = flags.FLAGS
flags.DEFINE_integer("rounds", 1, "how often each setting is measured", lower_bound=1)
flags.DEFINE_boolean("long", False, "also what takes longer than ten minutes in all")

# The paper's supernet, its nodes recomputed and kept; on two threads; a small one, and the same in
# the plain formulation.
SETTINGS = (
    "--crop_size=65 --batch_size=2 --threads=1 --iterations=6",
    "--crop_size=65 --batch_size=2 --threads=1 --iterations=6 --remat=false",
    "--crop_size=65 --batch_size=2 --threads=2 --iterations=6",
    "--crop_size=65 --batch_size=2 --threads=1 --inter_op_threads=2 --iterations=6",
    "--crop_size=129 --batch_size=2 --threads=1 --iterations=4",
    "--crop_size=129 --batch_size=2 --threads=1 --iterations=4 --remat=false",
    "--crop_size=65 --batch_size=2 --threads=1 --num_layers=2 --iterations=10",
)
PLAIN = (
    "--crop_size=65 --batch_size=2 --threads=1 --num_layers=2 --iterations=1 --formulation=plain",
)
LONG = (
    "--crop_size=65 --batch_size=2 --threads=1 --iterations=6 --partial_channels=4",
    "--crop_size=65 --batch_size=2 --threads=1 --iterations=20 --warmup=15 --sampled_paths=2",
    "--crop_size=129 --batch_size=2 --threads=2 --iterations=4",
    "--crop_size=129 --batch_size=2 --threads=1 --inter_op_threads=2 --iterations=4",
    "--crop_size=321 --batch_size=2 --threads=2 --iterations=2",
    "--crop_size=321 --batch_size=2 --threads=2 --iterations=2 --remat=false",
    "--crop_size=321 --batch_size=2 --threads=1 --inter_op_threads=2 --iterations=2",
)
# Each takes minutes to trace; large batches are run once, for their memory.
ONCE = (
    "--crop_size=65 --batch_size=2 --threads=1 --iterations=4 --step_mode=traced",
    "--crop_size=65 --batch_size=2 --threads=1 --iterations=4 --step_mode=traced --remat=true",
    "--crop_size=321 --batch_size=6 --threads=2 --iterations=0 --remat=false",
    "--crop_size=321 --batch_size=32 --threads=2 --iterations=0",
)
PROFILE = "--crop_size=65 --batch_size=2 --threads=1"
INPUTS = ("pairs", "pairs_resize_whole", "pairs_tf_models", "records", "pngs", "search_wait")
LOGS = ("--case=search", "--case=train")
LARGE_SETS = ("--num_examples=1000", "--num_examples=1000000")


def measure(settings: tuple[str, ...], rounds: int) -> None:
    """Measures settings of `search_step` in turn; of each the row of median time is kept."""
    found: dict[str, list[dict]] = {setting: [] for setting in settings}
    for _ in range(rounds):
        for setting, measured in found.items():
            row = rows.measure("benchmarks.search_step", setting)
            measured.append(row)
            print(
                f"{setting}\n    {row['seconds_per_iteration']} s an iteration, "
                f"{row['peak_rss_mib']} MiB, first after {row['seconds_to_first_iteration']} s",
                flush=True,
            )
            rows.put(rows.RESULTS / "search_step.csv", median(measured))


def median(measured: list[dict]) -> dict:
    """The row of median seconds (of two the faster), with all of them."""
    seconds = [row["seconds_per_iteration"] for row in measured]
    if None in seconds:
        return measured[0]
    middle = measured[seconds.index(statistics.median_low(seconds))]
    return {**middle, "seconds_of_runs": " ".join(map(str, seconds))}


def main(_: list[str]) -> None:
    measure(SETTINGS, FLAGS.rounds)
    measure(PLAIN, 1)
    rows.put(
        rows.RESULTS / "search_profile.csv", rows.measure("benchmarks.search_profile", PROFILE)
    )
    for setting in networks.crop_settings() if FLAGS.long else networks.quick_settings():
        rows.put(networks.RESULTS, rows.measure(networks.MODULE, setting))
    if FLAGS.long:
        measure(LONG, FLAGS.rounds)
        measure(ONCE, 1)
        for name in INPUTS:
            row = rows.measure("benchmarks.input_pipeline", f"--measurement={name}")
            rows.put(rows.RESULTS / "input_pipeline.csv", row)
        for setting in LOGS:
            row = rows.measure("benchmarks.log_every_steps", setting)
            rows.put(rows.RESULTS / "log_every_steps.csv", row)
        for setting in LARGE_SETS:
            rows.put(rows.RESULTS / "large_set.csv", rows.measure("benchmarks.large_set", setting))
    rows.write(roofline.PATH, roofline.rows_of_devices())
    page.write()
    print(f"written: {rows.RESULTS}, {page.PAGE}")


if __name__ == "__main__":
    app.run(main)
