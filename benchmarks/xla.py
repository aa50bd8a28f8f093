"""What XLA makes of the search's functions: kernels, compile time, and transposes that are left.

    python -m benchmarks.xla --target=cpu --crop_size=65
    python -m benchmarks.xla --target=h100 --dtype_policy=mixed_bfloat16 --crop_size=321
    python -m benchmarks.xla --target=tpu_v4 --segment=layer_2_level_1 --functions=forward

One forward and two pullbacks of every kind of segment, as `--jit_compile` compiles them in the
eager step, at batch 2. A row for each function into results/xla.csv: summed over the kinds what is
compiled, and over all segments the kernels that one call of each runs (a bilevel iteration calls
every forward twice and every pullback once).

No accelerator is needed: `cpu` is TensorFlow's own XLA; the others are XLA's compile-only clients,
which take the lowered functions. They need `pip install "jax[cuda12]==0.10.2"` or
`"jax[tpu]==0.10.2"`, in an environment of its own that is put on the path. What they compile was
lowered for a CPU (the plain kernels of `nn/backend.py`), without autotuning and without Triton's
products; nothing of it runs: the figures are counts, and a TPU's cycles XLA's estimate. A TPU's
functions take minutes each.

`transposes` counts kernels that do nothing but bring a map (of the batch, with its rows and
columns) into another order; `with_transposes` those that also do something else, which costs no
pass over memory of its own.
"""

import collections
import dataclasses
import itertools
import math
import os
import re
import time
from collections.abc import Iterator
from typing import Any

from absl import app, flags

from benchmarks import rows, search_step

FLAGS = flags.FLAGS
RESULTS = rows.RESULTS / "xla.csv"
FUNCTIONS = ("forward", "weights", "architecture")

# The H100's entry in XLA's list of devices (openxla/xla, tools/hlo_opt/gpu_specs).
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

# Instructions that run nothing.
FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "copy-done",
    "slice-done",
    "partition-id",
}
MOVES = {"transpose", "copy"}
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?(\S+) = (\(.*?\)|\S+) ([a-z][\w-]*)\(")


def define_flags() -> None:
    flags.DEFINE_enum("target", "cpu", ["cpu", "h100", "tpu_v4"], "whose code XLA makes")
    flags.DEFINE_string("segment", None, "the name of one segment; none: all")
    flags.DEFINE_list("functions", list(FUNCTIONS), "which of forward, weights, architecture")
    flags.DEFINE_boolean("put", False, "write the rows into results/xla.csv")


@dataclasses.dataclass
class Account:
    """What an optimised HLO module runs.

    Attributes:
        kernels: instructions of the entry computation that run something.
        transposes: of them those that only bring a map into another order.
        with_transposes: of them those that do so beside other work.
        cycles: the compiler's estimate, where it makes one.
    """

    kernels: int = 0
    transposes: int = 0
    with_transposes: int = 0
    cycles: int = 0

    def plus(self, other: "Account", times: int = 1) -> "Account":
        sums = {
            field.name: getattr(self, field.name) + times * getattr(other, field.name)
            for field in dataclasses.fields(self)
        }
        return Account(**sums)


def computations(module: str) -> dict[str, list[tuple[str, str, str]]]:
    """Returns name -> [(shape, opcode, line)] of an HLO module's text; the entry's name is ""."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    name = None
    for line in module.splitlines():
        head = re.match(r"^(ENTRY )?%?(\S+) \(.*\{$", line)
        if head:
            name = "" if head.group(1) else head.group(2)
            found[name] = []
        elif line.startswith("}"):
            name = None
        elif name is not None and (instruction := INSTRUCTION.match(line)):
            found[name].append((instruction.group(2), instruction.group(3), line))
    return found


def account(module: str, positions: list[int]) -> Account:
    """Counts what a module runs.

    Args:
        module: text of the optimised HLO.
        positions: a tensor is a map where it holds a multiple of one of these values.
    """
    parts, result = computations(module), Account()

    def is_move(shape: str, opcode: str) -> bool:
        return opcode in MOVES and any(size % p == 0 for size in sizes(shape) for p in positions)

    def inside(line: str) -> Iterator[tuple[str, str]]:
        for called in re.findall(r"(?:calls|to_apply)=%?([^\s,)]+)", line):
            for shape, opcode, inner in parts.get(called, []):
                yield shape, opcode
                yield from inside(inner)

    for shape, opcode, line in parts[""]:
        if opcode in FREE:
            continue
        result.kernels += 1
        done = [(shape, opcode), *inside(line)]
        moves = [op for op in done if is_move(*op)]
        works = [op for _, op in done if op not in FREE | MOVES | {"fusion", "call", "reshape"}]
        if moves and works:
            result.with_transposes += 1
        elif moves:
            result.transposes += 1
        cycles = re.search(r'"estimated_cycles":"(\d+)"', line)
        result.cycles += int(cycles.group(1)) if cycles else 0
    return result


def sizes(shape: str) -> list[int]:
    """The numbers of values of the tensors in an HLO shape."""
    return [
        math.prod(int(extent) for extent in extents.split(",") if extent)
        for extents in re.findall(r"[a-z]\w*\[([\d,]*)\]", shape)
    ]


def map_positions(batch_size: int, size: tuple[int, int]) -> list[int]:
    """N * h * w for every h and w at a stride of 2 to 32; two strides where a resize is half done.

    Smaller ones than 64 would take kernels for maps.
    """
    extents = [{-(-extent // 2**power) for power in range(1, 6)} for extent in size]
    found = {batch_size * height * width for height, width in itertools.product(*extents)}
    return sorted(positions for positions in found if positions >= 64)


def lowered(model: Any, images: Any) -> Iterator[tuple[Any, int, dict[str, Any]]]:
    """Yields of each kind a segment, their number, and function name -> what gives its HLO.

    The arguments are those of a forward pass.
    """
    import tensorflow as tf

    from auto_deeplab_tf.nn.execution import Execution, runner

    supernet = model.supernet
    states = supernet.forward(images, training=True).states
    segments = [segment for segment in supernet.segments if FLAGS.segment in (None, segment.name)]
    counts = collections.Counter(segment.kind for segment in segments)
    firsts = {segment.kind: segment for segment in reversed(segments)}
    for kind, segment in firsts.items():
        arguments = segment.arguments(segment.read(), states)
        upstream = tuple(tf.zeros_like(states[name]) for name in segment.writes)
        functions = runner(kind, Execution(remat=True, jit_compile=True)).functions
        found = {}
        for name in FLAGS.functions:
            if name == "weights" and kind.kernels.size + kind.affine.size == 0:
                continue
            given = arguments if name == "forward" else (*arguments, (), upstream)
            found[name] = functions[name].experimental_get_compiler_ir(*given)
        yield segment, counts[kind], found


def compile_only_client() -> Any:
    """Returns a device of the target, which is not there: its client compiles and cannot run."""
    os.environ["JAX_PLATFORMS"] = {"h100": "cpu,cuda", "tpu_v4": "cpu,tpu"}[FLAGS.target]
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # Without a device to try them on, XLA finds no tiles for some of Triton's products.
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    )
    from jax.experimental import topologies

    if FLAGS.target == "h100":
        settings = {"platform": "cuda", "topology_name": "", "topology": "1x1x1"}
        topology = topologies.get_topology_desc(**settings, target_config=H100)
    else:
        topology = topologies.get_topology_desc(platform="tpu", topology_name="v4:2x2x1")
    return topology.devices[0]


def optimized(device: Any, compiler_ir: Any) -> str:
    """Compiles a lowered function for a device that is not there; returns the optimised HLO."""
    from jax._src.interpreters import mlir
    from jax._src.lib import xla_client
    from jax._src.lib.mlir import ir

    computation = xla_client.XlaComputation(compiler_ir(stage="hlo_serialized"))
    text = xla_client._xla.mlir.xla_computation_to_mlir_module(computation)
    with mlir.make_ir_context():
        module = ir.Module.parse(text)
    options, devices = xla_client.CompileOptions(), xla_client.DeviceList((device,))
    compiled = device.client.compile(module, devices, options)
    return compiled.hlo_modules()[0].to_string()


def measure() -> list[dict[str, Any]]:
    """Compiles what the flags say; returns a row for each function."""
    device = None if FLAGS.target == "cpu" else compile_only_client()
    model, ((images, _), _), _ = search_step.prepare()
    positions = map_positions(FLAGS.batch_size, images.shape[1:3])
    seconds: dict[str, list[float]] = {name: [] for name in FLAGS.functions}
    of_kinds = {name: Account() for name in FLAGS.functions}
    of_segments = {name: Account() for name in FLAGS.functions}
    for segment, count, functions in lowered(model, images):
        for name, compiler_ir in functions.items():
            start = time.perf_counter()
            if device is None:
                module = compiler_ir(stage="optimized_hlo")
            else:
                module = optimized(device, compiler_ir)
            took = time.perf_counter() - start
            found = account(module, positions)
            print(f"{segment.name} {name}: {took:.1f} s, {found}", flush=True)
            seconds[name].append(took)
            of_kinds[name] = of_kinds[name].plus(found)
            of_segments[name] = of_segments[name].plus(found, count)
    return [
        {
            "command": command(),
            "function": name,
            "kinds": len(seconds[name]),
            "compile_seconds": round(sum(seconds[name]), 1),
            "slowest_seconds": round(max(seconds[name], default=0.0), 1),
            "kernels_of_kinds": of_kinds[name].kernels,
            "kernels_of_segments": of_segments[name].kernels,
            "transposes_of_segments": of_segments[name].transposes,
            "with_transposes_of_segments": of_segments[name].with_transposes,
            "estimated_cycles": of_segments[name].cycles or "",
            **rows.machine(),
        }
        for name in FLAGS.functions
    ]


def command() -> str:
    """The command of these rows, as a reader would type it."""
    names = ("target", "crop_size", "num_layers", "num_blocks", "filter_multiplier")
    said = [
        f"--{name}={FLAGS[name].value}" for name in names if not FLAGS[name].using_default_value
    ]
    if FLAGS.dtype_policy != "float32":
        said.append(f"--dtype_policy={FLAGS.dtype_policy}")
    if FLAGS.segment:
        said += [f"--segment={FLAGS.segment}", f"--functions={','.join(FLAGS.functions)}"]
    return " ".join(["python -m benchmarks.xla", *said])


def main(_: list[str]) -> None:
    found = measure()
    for row in found:
        print(row)
    if FLAGS.put:
        kept = [row for row in rows.read(RESULTS) if row["command"] != command()]
        rows.write(RESULTS, [*kept, *found])


if __name__ == "__main__":
    define_flags()
    app.run(main)
