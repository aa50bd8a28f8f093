"""Whole bilevel iterations of the supernet on Keras' JAX backend: their time, or a short search.

    KERAS_BACKEND=jax python -m benchmarks.jax_search --crop_size=321 --batch_size=2
    KERAS_BACKEND=jax python -m benchmarks.jax_search --data=camvid.npz --crop_size=97x129 \\
        --batch_size=4 --steps=3000 --warmup_steps=300

No TensorFlow is imported. `Bilevel.step` computes what `training.bilevel.BilevelModel.train_step`
does (tests/test_benchmark_jax.py): each kind of segment is a function that XLA compiles, ahead of
time and in parallel threads; the loss and the two updates are two functions more. A step never
waits for the device.

Without `--data` random crops are timed. With it a search runs on the images of a split of CamVid,
of the .npz that `search_quality.jax_data` makes. Rows go to `--output` as soon as they are known.
Rows of different devices do not belong in one comparison. `benchmarks.jax_gpu` does both in one go.
"""

import collections
import concurrent.futures
import contextlib
import fcntl
import functools
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras
import numpy as np
from absl import app, flags
from jax.experimental import serialize_executable

from auto_deeplab_tf import decoding
from auto_deeplab_tf.nn.execution import Execution, runner
from auto_deeplab_tf.nn.node import NodeKind
from auto_deeplab_tf.nn.normalization import update_weights
from auto_deeplab_tf.nn.supernet import build_supernet
from auto_deeplab_tf.training.schedules import Cosine
from benchmarks.jax_common import Rows, count_pixels, draw_batch, mean_iou, mean_loss
from benchmarks.jax_gpu import COMPILED
from benchmarks.search_quality import jax_data

FLAGS = flags.FLAGS
STARTED = time.monotonic()
# What a CUDA graph may hold. With CUDNN and CONVOLUTION among it, JAX 0.11.2 on an H100 ended in
# "unknown cudnn status: 5003" at the first iteration; without them it has not run yet.
GRAPHS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,DYNAMIC_SLICE_FUSION"


class Bilevel:
    """The two alternating updates of `training.bilevel.BilevelModel`, on JAX.

    Args:
        supernet: `Supernet`, without sampled paths.
        optimizer, architecture_optimizer: Keras optimizers, of the weights and of alpha and beta.
        class_weights, ignore_label: Of the loss.
        weight_decay, arch_weight_decay, batch_norm_decay: As in `BilevelModel`.
    """

    def __init__(
        self,
        supernet,
        optimizer,
        architecture_optimizer,
        *,
        class_weights=None,
        ignore_label=255,
        weight_decay=3e-4,
        arch_weight_decay=1e-3,
        batch_norm_decay=0.99,
    ):
        self.supernet = supernet
        self._moving = [s.moving for s in supernet.segments if s.moving is not None]
        self._variables = {
            "weights": supernet.trainable_variables,
            "architecture": supernet.architecture_variables,
        }
        self._optimizers = {"weights": optimizer, "architecture": architecture_optimizer}
        for wrt, variables in self._variables.items():
            self._optimizers[wrt].build(variables)
        kernels = {id(segment.kernels) for segment in supernet.segments}
        decays = {
            "weights": [
                weight_decay if id(v) in kernels else 0.0 for v in self._variables["weights"]
            ],
            "architecture": [arch_weight_decay] * len(self._variables["architecture"]),
        }

        def update(wrt, gradients, values, state, moving, moments):
            gradients = [
                gradient + decay * value if decay else gradient
                for gradient, value, decay in zip(gradients, values, decays[wrt], strict=True)
            ]
            keep, add = update_weights(batch_norm_decay, state[0])  # the optimizer's iterations
            moving = [keep * old + add * new for old, new in zip(moving, moments, strict=True)]
            values, state = self._optimizers[wrt].stateless_apply(state, gradients, values)
            return values, state, moving

        self._loss = jax.jit(
            jax.value_and_grad(
                functools.partial(mean_loss, class_weights=class_weights, ignore_label=ignore_label)
            )
        )
        # The old weights and states of the optimizer make room for the new ones.
        self._update = {
            wrt: jax.jit(functools.partial(update, wrt), donate_argnums=(1, 2, 3))
            for wrt in self._variables
        }

    def gradients(self, wrt, batch):
        """Returns (loss, gradients of "weights" or "architecture", batch statistics)."""
        images, labels = batch
        computed = self.supernet.forward(images, True)
        loss, upstream = self._loss(computed.logits, labels)
        moments = [m for m in computed.moments if m is not None]
        return loss, self.supernet.backward(computed, upstream, wrt), moments

    def update(self, wrt, batch):
        """Takes one step on a batch (images float32 [N, H, W, 3], labels int32 [N, H, W]).

        Returns:
            The loss before it, on the device.
        """
        loss, gradients, moments = self.gradients(wrt, batch)
        moving = self._moving if wrt == "weights" else []
        changed = [self._variables[wrt], self._optimizers[wrt].variables, moving]
        values = ([variable.value for variable in variables] for variables in changed)
        updated = self._update[wrt](gradients, *values, moments if moving else [])
        for variables, new in zip(changed, updated, strict=True):
            for variable, value in zip(variables, new, strict=True):
                variable.assign(value)
        return loss

    def step(self, batch_a, batch_b):
        """One bilevel step: the weights on train_a, then alpha and beta on train_b.

        Returns:
            The two losses, on the device.
        """
        return self.update("weights", batch_a), self.update("architecture", batch_b)


def compile_ahead(
    supernet, images_shape, threads, wrts=("weights", "architecture"), options=None, part=None
):
    """Compiles what training at this shape runs, each kind of segment once, in parallel threads.

    Args:
        supernet: `Supernet`; its `execution` says what is compiled.
        images_shape: [N, H, W, channels].
        threads: How many functions are compiled at a time.
        wrts: The gradients that will be taken.
        options: XLA's options by name, or None.
        part: Which kinds, by their numbers; None: all.

    Returns:
        (number of the kind, function name) -> executable, the numbers in the order of `kinds_of`.
    """

    def described(tree):
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)

    states = {"images": jax.ShapeDtypeStruct(images_shape, "float32")}
    for variable in supernet.architecture_variables:
        states[variable.name] = described(variable.value)
    numbers = {kind: number for number, kind in enumerate(kinds_of(supernet))}
    jobs, shapes = [], {}
    for segment in supernet.segments:
        kind = segment.kind
        run = runner(kind, supernet.execution)
        chosen = part is None or numbers[kind] in part
        if kind not in shapes and isinstance(kind, NodeKind) and not chosen:
            height, width = (-(-extent // 2 ** (kind.level + 2)) for extent in images_shape[1:3])
            channels = kind.num_blocks * kind.filters
            shape = (images_shape[0], height, width, channels)
            shapes[kind] = (jax.ShapeDtypeStruct(shape, supernet.compute_dtype),), None, None
        elif kind not in shapes:
            arguments = described(segment.arguments(segment.read(), states))
            traced = run.functions["forward"].trace(arguments)
            outputs, _, residuals = shapes[kind] = described(traced.out_info)
            names = [
                wrt
                for wrt in wrts
                if kind.input_gradients
                or (wrt == "architecture") == bool(segment.reads_architecture)
            ]
            if chosen:
                jobs += [((kind, name), (arguments, residuals, outputs)) for name in names]
                jobs.append(((kind, "forward"), (arguments,)))
        states.update(zip(segment.writes, shapes[kind][0], strict=True))

    def compiled(job):
        (kind, name), arguments = job
        function = runner(kind, supernet.execution).functions[name]
        return function.lower(*arguments).compile(compiler_options=options)

    # The longest first: pullbacks of wide nodes.
    jobs.sort(key=lambda job: job[0][0].num_normalized, reverse=True)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        executables = list(pool.map(compiled, jobs))
    found = {}
    for ((kind, name), _), executable in zip(jobs, executables, strict=True):
        found[numbers[kind], name] = runner(kind, supernet.execution).functions[name] = executable
    return found


def kinds_of(supernet):
    """The kinds of the supernet's segments, in the order of their first segments."""
    return list(dict.fromkeys(segment.kind for segment in supernet.segments))


def compile_in_processes(supernet, images_shape):
    """`compile_ahead` by the flags, in `--processes` processes: tracing holds Python's lock.

    This process starts itself again, once for each part of the kinds; a part's process writes its
    executables and ends here.
    """
    kinds = kinds_of(supernet)
    numbers = sorted(range(len(kinds)), key=lambda n: kinds[n].num_normalized, reverse=True)
    processes = min(FLAGS.processes, len(kinds))
    parts = [numbers[index::processes] for index in range(processes)]
    if FLAGS.compile_part is not None:
        index, folder = FLAGS.compile_part.split(":", 1)
        found = compile_ahead(
            supernet, images_shape, 3, options=xla_options(), part=parts[int(index)]
        )
        payload = {key: serialize_executable.serialize(value) for key, value in found.items()}
        Path(folder, index).write_bytes(pickle.dumps(payload))
        sys.exit()
    if processes < 2:
        return compile_ahead(supernet, images_shape, FLAGS.threads, options=xla_options())
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.jax_search", *sys.argv[1:]]
        running = [
            subprocess.Popen([*command, f"--compile_part={index}:{folder}"])
            for index in range(processes)
        ]
        failed, start = [], time.monotonic()
        for index, process in enumerate(running):
            if process.wait():
                failed += parts[index]
                continue
            payload = pickle.loads(Path(folder, str(index)).read_bytes())
            for (number, name), serialized in payload.items():
                executable = serialize_executable.deserialize_and_load(*serialized)
                run = runner(kinds[number], supernet.execution)
                found[number, name] = run.functions[name] = executable
            print(f"part {index}: loaded after {time.monotonic() - start:.0f} s", flush=True)
    if failed:
        print(f"compiling {len(failed)} kinds again in threads", flush=True)
        found |= compile_ahead(
            supernet, images_shape, FLAGS.threads, options=xla_options(), part=failed
        )
    return found


class Crops:
    """Random crops, flipped with probability 0.5, drawn on the device.

    Args:
        images: uint8 [n, H, W, 3].
        labels: uint8 [n, H, W].
        seed: int.
        *arguments: More of `draw_batch`, behind the batch size.
    """

    def __init__(self, images, labels, seed, *arguments):
        self._data = jnp.asarray(images), jnp.asarray(labels)
        self._arguments = arguments
        self._key, self._drawn = jax.random.key(seed), 0

    def batch(self, index=None):
        """Returns (images float32 [N, h, w, 3], labels int32 [N, h, w]): the next, or by number."""
        if index is None:
            index, self._drawn = self._drawn, self._drawn + 1
        key = jax.random.fold_in(self._key, np.uint32(index))
        return draw_batch(*self._data, key, FLAGS.batch_size, *self._arguments)


def signal(gradients):
    """How far the gradients of one architecture variable agree over batches.

    Args:
        gradients: float [K, ...], of K batches.

    Returns:
        (signal, halves): the median over the entries that move of |mean| / deviation over the
            batches (sqrt(2 / (pi K)) in the median for noise alone, times 0.85); the correlation
            of the means of both halves of the batches.
    """
    gradients = gradients.reshape(len(gradients), -1)
    deviation = gradients.std(axis=0, ddof=1)
    moves = deviation > 0
    ratio = np.median(np.abs(gradients.mean(axis=0))[moves] / deviation[moves])
    return float(ratio), correlation(gradients[::2].mean(axis=0), gradients[1::2].mean(axis=0))


def correlation(first, second):
    """The correlation of two arrays over the entries that are not 0 in both."""
    first, second = np.ravel(first), np.ravel(second)
    moves = (first != 0) | (second != 0)
    return float(np.corrcoef(first[moves], second[moves])[0, 1])


def miou(supernet, images, labels, relaxed=None):
    """mIoU on batches by statistics of their own.

    Args:
        images, labels: uint8 arrays [n, N, h, w, ...], of the batch and size that were compiled.
        relaxed: (alpha, beta) in place of the supernet's; see `Supernet.forward`.
    """
    counts = 0
    for batch_images, batch_labels in zip(images, labels, strict=True):
        computed = supernet.forward(batch_images.astype("float32"), True, relaxed=relaxed)
        logits = computed.logits
        counts = counts + count_pixels(logits, batch_labels)
    return mean_iou(counts)


def seconds_left():
    """Seconds of `--seconds` that are left to this process."""
    return FLAGS.seconds - (time.monotonic() - STARTED)


@contextlib.contextmanager
def alone():
    """A context in which no other process with the same `--lock` is in one.

    It is entered only once the file `--wait_for` is there.
    """
    while FLAGS.wait_for and not os.path.exists(FLAGS.wait_for):
        time.sleep(0.2)
    with open(FLAGS.lock or os.devnull, "w", encoding="utf-8") as file:
        if FLAGS.lock:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(size, num_classes, schedule, class_weights=None):
    """Builds the `Bilevel` of the flags.

    Args:
        size: (height, width) of the crops.
        num_classes: Number of classes.
        schedule: Of the weights' learning rate.
        class_weights: Of the loss.
    """
    supernet = build_supernet(
        num_classes,
        FLAGS.num_layers,
        FLAGS.num_blocks,
        FLAGS.filter_multiplier,
        input_size=size,
        stem_channels=tuple(map(int, FLAGS.stem_channels)),
        dtype=FLAGS.dtype_policy,
        seed=FLAGS.seed,
    )
    supernet.execution = Execution(remat=FLAGS.remat, jit_compile=True)
    adam = keras.optimizers.Adam
    return Bilevel(
        supernet,
        adam(schedule) if FLAGS.adam else keras.optimizers.SGD(schedule, momentum=0.9),
        adam(FLAGS.arch_learning_rate),
        class_weights=class_weights,
        arch_weight_decay=FLAGS.arch_weight_decay,
    )


def xla_options():
    """XLA's options of the flags: on a GPU with CUDA graphs or without."""
    if jax.default_backend() != "gpu":
        return None
    return {"xla_gpu_enable_command_buffer": GRAPHS if FLAGS.graphs else ""}


def measure(size):
    """Times iterations on random crops."""
    rows = Rows(FLAGS.output)
    bilevel = build(
        size, FLAGS.num_classes, Cosine(FLAGS.learning_rate, FLAGS.min_learning_rate, FLAGS.steps)
    )
    start = time.monotonic()
    executables = compile_in_processes(bilevel.supernet, (FLAGS.batch_size, *size, 3))
    compile_seconds = time.monotonic() - start
    print(COMPILED, flush=True)
    generator = np.random.default_rng(FLAGS.seed)
    images = generator.integers(0, 256, (8, *size, 3), "uint8")
    labels = generator.integers(0, FLAGS.num_classes, (8, *size), "uint8")
    crops = Crops(images, labels, FLAGS.seed, size)
    device = jax.devices()[0]
    with alone():
        for _ in range(FLAGS.warmup):
            start = time.monotonic()
            losses = jax.block_until_ready(bilevel.step(crops.batch(), crops.batch()))
            print(f"warm-up: {time.monotonic() - start:.1f} s", flush=True)
        wall, host = [], []
        for _ in range(FLAGS.repeats):
            jax.block_until_ready(losses)
            start = time.perf_counter()
            for _ in range(FLAGS.iterations):
                losses = bilevel.step(crops.batch(), crops.batch())
            host.append((time.perf_counter() - start) / FLAGS.iterations)
            jax.block_until_ready(losses)
            wall.append((time.perf_counter() - start) / FLAGS.iterations)
            if seconds_left() < 2 * FLAGS.iterations * wall[-1]:
                break
        memory = device.memory_stats() or {}
        rows.add(
            device=device.device_kind,
            crop_size="x".join(map(str, size)),
            batch_size=FLAGS.batch_size,
            dtype_policy=FLAGS.dtype_policy,
            graphs=FLAGS.graphs,
            remat=FLAGS.remat,
            seconds_per_iteration=round(statistics.median(wall), 5),
            host_seconds_per_iteration=round(statistics.median(host), 5),
            repeats=len(wall),
            kernels_per_iteration=kernels(bilevel.supernet, executables),
            peak_memory_mib=memory.get("peak_bytes_in_use", 0) // 2**20,
            compile_seconds=round(compile_seconds, 1),
            loss=round(float(losses[0]), 4),
            load=round(os.getloadavg()[0], 1),
            versions=f"jax {jax.__version__}, keras {keras.__version__}",
        )
        if FLAGS.trace:
            with jax.profiler.trace(FLAGS.trace):
                jax.block_until_ready(bilevel.step(crops.batch(), crops.batch()))


def kernels(supernet, executables):
    """The kernels that the segments run in an iteration, by XLA's programs: a count of calls."""
    free = (" parameter(", " constant(", " tuple(", " get-tuple-element(", " bitcast(")

    def of(executable):
        entry = executable.as_text().partition("\nENTRY ")[2].partition("\n}")[0]
        calls = [line.partition(" = ")[2] for line in entry.splitlines() if " = " in line]
        return sum(not any(name in call for name in free) for call in calls)

    times = {"forward": 2, "weights": 1, "architecture": 1}
    segments = collections.Counter(segment.kind for segment in supernet.segments)
    return sum(
        times[name] * segments[kinds_of(supernet)[number]] * of(executable)
        for (number, name), executable in executables.items()
    )


def search(size):
    """Searches on the images of `--data`, as long as `--steps` and `--seconds` allow."""
    data = jax_data.load(FLAGS.data, FLAGS.split)
    images, labels, half = (data[f"train_{name}"] for name in ("images", "labels", "half"))
    class_weights = data["class_weights"]
    schedule = Cosine(FLAGS.learning_rate, FLAGS.min_learning_rate, FLAGS.steps)
    bilevel = build(size, len(class_weights), schedule, class_weights)
    supernet = bilevel.supernet
    compile_in_processes(supernet, (FLAGS.batch_size, *size, 3))
    print(COMPILED, flush=True)
    drawing = size, jax_data.SCALES, data["mean"]
    crops_a, crops_b, probes = (
        Crops(images[half == h], labels[half == h], seed, *drawing)
        for h, seed in ((0, FLAGS.seed), (1, FLAGS.seed + 1), (1, FLAGS.seed + 2))
    )
    top, left = ((whole - crop) // 2 for whole, crop in zip(images.shape[1:3], size, strict=True))
    val_images, val_labels = (
        array[: len(array) // FLAGS.batch_size * FLAGS.batch_size, top:, left:][
            :, : size[0], : size[1]
        ].reshape(-1, FLAGS.batch_size, *size, *array.shape[3:])
        for array in (data["val_images"], data["val_labels"])
    )
    rows, means = Rows(FLAGS.output), None
    loss = arch_loss = jnp.nan

    def probe(step):
        nonlocal means
        drawn = [
            [np.asarray(g) for g in bilevel.gradients("architecture", probes.batch(k))[1]]
            for k in range(FLAGS.probes)
        ]
        alphas, betas = (np.stack(gradients) for gradients in zip(*drawn, strict=True))
        before, means = means, (alphas.mean(axis=0), betas.mean(axis=0))
        logits = [np.asarray(variable.value) for variable in supernet.architecture_variables]
        architecture = decoding.decode(*logits, "separable")
        found, decoded = (
            miou(supernet, val_images, val_labels, relaxed)
            for relaxed in (None, decoding.one_hot(architecture))
        )
        rows.add(
            device=jax.devices()[0].device_kind,
            step=step,
            seconds=round(time.monotonic() - STARTED, 1),
            loss=float(loss),
            arch_loss=float(arch_loss),
            val_miou=found,
            val_decoded_miou=decoded,
            alpha_entropy=decoding.alpha_entropy(logits[0]),
            beta_entropy=decoding.beta_entropy(logits[1]),
            alpha_signal=signal(alphas)[0],
            alpha_halves=signal(alphas)[1],
            alpha_persistence="" if before is None else correlation(before[0], means[0]),
            beta_signal=signal(betas)[0],
            beta_halves=signal(betas)[1],
            beta_persistence="" if before is None else correlation(before[1], means[1]),
            levels="-".join(map(str, architecture.levels)),
        )
        if FLAGS.logits:
            np.savez(Path(FLAGS.logits, f"{step}.npz"), alpha=logits[0], beta=logits[1])

    slowest = 0.0

    def gradients():
        bilevel.gradients("weights", crops_a.batch(0))
        jax.block_until_ready(bilevel.gradients("architecture", crops_b.batch(0)))

    with alone():
        # The schedule ends where the time does. The first pair of gradients is slow: on a GPU each
        # convolution is planned when it runs for the first time.
        start = time.monotonic()
        gradients()
        print(f"first gradients after {time.monotonic() - start:.1f} s", flush=True)
        start = time.monotonic()
        for _ in range(5):
            gradients()
        seconds = (time.monotonic() - start) / 5
        steps = schedule.steps = int(max(20, min(FLAGS.steps, 0.8 * seconds_left() / seconds)))
        print(f"{steps} steps of about {seconds:.4f} s", flush=True)
        for step in range(steps):
            if step >= FLAGS.warmup_steps and (step - FLAGS.warmup_steps) % FLAGS.probe_every == 0:
                start = time.monotonic()
                probe(step)
                slowest = max(slowest, time.monotonic() - start)
            loss = bilevel.update("weights", crops_a.batch())
            if step >= FLAGS.warmup_steps:
                arch_loss = bilevel.update("architecture", crops_b.batch())
            if step % 20 == 0:
                jax.block_until_ready(loss)  # so that the clock is that of the device
                if seconds_left() < 2 * slowest + 5:
                    break
        probe(step + 1)


def define_flags():
    """Declares the flags; a function, since tests import this module."""
    flags.DEFINE_string("crop_size", "321", "size of the crops, N or HxW")
    flags.DEFINE_integer("batch_size", 2, "crops of each half")
    flags.DEFINE_integer("num_layers", 12, "L")
    flags.DEFINE_integer("num_blocks", 5, "B")
    flags.DEFINE_integer("filter_multiplier", 8, "F")
    flags.DEFINE_list("stem_channels", "64,64,128", "filters of the stem")
    flags.DEFINE_integer("num_classes", 19, "classes, where there is no --data")
    flags.DEFINE_string("dtype_policy", "mixed_bfloat16", "precision of the features")
    flags.DEFINE_boolean("remat", False, "compute the insides of segments again in pullbacks")
    flags.DEFINE_boolean("graphs", False, "CUDA graphs, which have not run yet")
    flags.DEFINE_integer("threads", os.cpu_count(), "functions that are compiled at a time")
    flags.DEFINE_integer("processes", 1, "processes that compile; more than 1: not --threads")
    flags.DEFINE_string("compile_part", None, "used by a process that compiles: PART:FOLDER")
    flags.DEFINE_integer("seed", 0, "of the initial weights and the crops")
    flags.DEFINE_integer("warmup", 3, "iterations before the first that is timed")
    flags.DEFINE_integer("iterations", 10, "iterations in a row that are timed together")
    flags.DEFINE_integer("repeats", 5, "how many times; the median counts")
    flags.DEFINE_float("seconds", 1e9, "when to end, in seconds from the start of the process")
    flags.DEFINE_string("output", None, "the CSV file to which rows are appended")
    flags.DEFINE_string("wait_for", None, "file whose coming the measurement waits for")
    flags.DEFINE_string("lock", None, "file that one process at a time holds while it measures")
    flags.DEFINE_string("trace", None, "folder for a profile of one iteration")
    flags.DEFINE_string("data", None, ".npz of a search's images; none: random ones are timed")
    flags.DEFINE_enum("split", "tuning", ("tuning", "reported"), "of --data")
    flags.DEFINE_integer("steps", 1000, "steps of the search")
    flags.DEFINE_integer("warmup_steps", 300, "steps before alpha and beta learn")
    flags.DEFINE_integer("probe_every", 100, "architecture steps between two rows of the search")
    flags.DEFINE_integer("probes", 20, "batches of which a row's gradients are taken")
    flags.DEFINE_boolean("adam", False, "Adam for the weights, not SGD")
    flags.DEFINE_float("learning_rate", 0.025, "of the weights, at first")
    flags.DEFINE_float("min_learning_rate", 0.001, "of the weights, at the end")
    flags.DEFINE_float("arch_learning_rate", 0.003, "of alpha and beta")
    flags.DEFINE_float("arch_weight_decay", 0.001, "of alpha and beta")
    flags.DEFINE_string("logits", None, "folder for the logits of alpha and beta, .npz by the step")


def main(_):
    height, _, width = FLAGS.crop_size.partition("x")
    size = (int(height), int(width or height))
    search(size) if FLAGS.data else measure(size)


if __name__ == "__main__":
    define_flags()
    app.run(main)
