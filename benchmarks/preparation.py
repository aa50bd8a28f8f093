"""Speed of preparing records: Cityscapes-sized PNGs to 512x1024, by the product's own writer.

    python -m benchmarks.preparation --cores=1 --json

The images are generated scenes at 1024x2048 with noise, so that their PNGs are about as large as
Cityscapes' (2.3 MB); labels are maps of that size. One process measures one number of cores.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks import rows

FLAGS = flags.FLAGS
flags.DEFINE_integer("cores", 1, "cores that the process may use", lower_bound=1)
flags.DEFINE_integer("num_images", 8, "images to prepare", lower_bound=1)
flags.DEFINE_boolean("json", False, "print one JSON object on one line, nothing else")

_FACTOR = 8  # a scene of 128x256 at the size of Cityscapes


def main(_: list[str]) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    allowed = sorted(os.sched_getaffinity(0))
    if FLAGS.cores > len(allowed):
        raise app.UsageError(f"--cores={FLAGS.cores}: this process may use {len(allowed)}")
    os.sched_setaffinity(0, allowed[: FLAGS.cores])
    result = measure()
    rows.show(result, FLAGS.json)


def measure() -> dict[str, Any]:
    """Times the writing of all images, twice; the second time counts."""
    from auto_deeplab_tf.data import records, sets, shards
    from auto_deeplab_tf.data.dataset import in_memory

    members = [_example(i) for i in range(FLAGS.num_images)]
    raw = in_memory(sets.describe("cityscapes"), {"train": members})
    settings = records.Settings(image_size=(512, 1024))
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            start, start_cpu = time.perf_counter(), time.process_time()
            shards.write(Path(folder), raw, settings, fingerprint="benchmark")
            seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
            written = sum(path.stat().st_size for path in Path(folder).iterdir())
    return {
        "images_per_second": round(len(members) / seconds, 2),
        "cpu_seconds_per_image": round(cpu / len(members), 4),
        "source_mib_per_image": round(sum(len(m.image) for m in members) / len(members) / 2**20, 2),
        "record_mib_per_image": round(written / len(members) / 2**20, 2),
    }


def _example(number: int) -> Any:
    import numpy as np

    from auto_deeplab_tf.data import image_files, resizing, scenes
    from auto_deeplab_tf.data.dataset import RawExample

    image, label = scenes.render(f"bench_{number % 8:06d}_000019")
    size = (image.shape[0] * _FACTOR, image.shape[1] * _FACTOR)
    noise = np.random.default_rng(number).normal(0, 1.5, (*size, 3))
    large = resizing.resize_image(image.astype(np.float32), size) + noise
    return RawExample(
        f"city_{number:06d}",
        "city",
        image_files.encode_png(np.clip(np.rint(large), 0, 255).astype(np.uint8)),
        image_files.encode_png(resizing.resize_label(label, size)),
    )


if __name__ == "__main__":
    app.run(main)
