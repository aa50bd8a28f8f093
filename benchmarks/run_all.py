"""Reruns the measurements that fit in a quarter of an hour; generates docs/performance.md.

    python -m benchmarks.run_all

Writes search_step.csv, input_pipeline.csv, large_set.csv and roofline.csv of benchmarks/results.
Every row of the first three names its command, the commit, the processor and the versions, and is
measured in a process of its own. Run it on a machine that does nothing else. `--traced_paper` adds
the paper's supernet in one traced graph, which takes four minutes a row.
"""

from absl import app, flags

from benchmarks import page, roofline, rows

FLAGS = flags.FLAGS
flags.DEFINE_boolean("traced_paper", False, "also the paper's supernet in one traced graph")

# The paper's supernet, its nodes recomputed and kept, at three crops; a small one in one graph;
# then the fused formulation beside the plain one, where that one can be run.
SETTINGS = (
    "--crop_size=65 --batch_size=2 --threads=1 --iterations=5",
    "--crop_size=65 --batch_size=2 --threads=1 --iterations=5 --remat=false",
    "--crop_size=65 --batch_size=2 --threads=2 --iterations=5",
    "--crop_size=129 --batch_size=2 --threads=1 --iterations=3",
    "--crop_size=129 --batch_size=2 --threads=1 --iterations=3 --remat=false",
    "--crop_size=321 --batch_size=2 --threads=2 --iterations=1",
    "--crop_size=321 --batch_size=2 --threads=2 --iterations=1 --remat=false",
    "--crop_size=129 --batch_size=2 --threads=1 --num_layers=3 --iterations=3 --step_mode=traced",
    "--crop_size=129 --batch_size=2 --threads=1 --num_layers=3 --iterations=3 --step_mode=traced "
    "--remat=true",
    "--crop_size=65 --batch_size=2 --threads=1 --num_layers=2 --iterations=5",
    "--crop_size=65 --batch_size=2 --threads=1 --num_layers=2 --iterations=1 --formulation=plain",
)
TRACED_PAPER = (
    "--crop_size=65 --batch_size=2 --threads=1 --iterations=2 --step_mode=traced",
    "--crop_size=65 --batch_size=2 --threads=1 --iterations=2 --step_mode=traced --remat=true",
)
INPUTS = ("pairs", "pairs_resize_whole", "pairs_tf_models", "records", "pngs", "search_wait")
LARGE_SETS = ("--num_examples=1000", "--num_examples=1000000")


def main(_: list[str]) -> None:
    measured = []
    for setting in SETTINGS + (TRACED_PAPER if FLAGS.traced_paper else ()):
        row = rows.measure("benchmarks.search_step", setting)
        measured.append(row)
        print(
            f"{setting}\n    {row['seconds_per_iteration']} s an iteration, "
            f"{row['peak_rss_mib']} MiB, first after {row['seconds_to_first_iteration']} s",
            flush=True,
        )
    rows.write(rows.RESULTS / "search_step.csv", measured)
    for name in INPUTS:
        row = rows.measure("benchmarks.input_pipeline", f"--measurement={name}")
        rows.put(rows.RESULTS / "input_pipeline.csv", row)
    for setting in LARGE_SETS:
        rows.put(rows.RESULTS / "large_set.csv", rows.measure("benchmarks.large_set", setting))
    rows.write(roofline.PATH, roofline.rows_of_devices())
    page.write()
    print(f"written: {rows.RESULTS}, {page.PAGE}")


if __name__ == "__main__":
    app.run(main)
