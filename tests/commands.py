"""Commands as tests run them: to their end, or until they are killed; and what they leave."""

import os
import subprocess
import sys

import forked

from auto_deeplab_tf import cli


def call(module, config_class, arguments, monkeypatch):
    """Calls a command's `main` in this process, with its flags."""
    options = cli.parse(config_class, arguments)
    monkeypatch.setattr(cli, "read", lambda _: options)
    return module.main()


def run(module, *arguments):
    """Runs `python -m auto_deeplab_tf.MODULE` to its end, in a process of its own."""
    return forked.run(f"auto_deeplab_tf.{module}", *arguments)


def run_on_jax(program, folder, variables, **arrays):
    """Runs a program on Keras' JAX backend, in a process of its own and without TensorFlow.

    Args:
        program: finds `arrays` as `data`, gives the values of `variables` to a network of its own
            by `assign(network)`, and saves what it found by `save(...)`.

    Returns:
        What it saved.
    """
    import numpy as np

    values = {f"v{index:05d}": np.asarray(v) for index, v in enumerate(variables)}
    np.savez(folder / "in.npz", **values, **arrays)
    prelude = f"""
import sys
import numpy as np
data = dict(np.load(r"{folder}/in.npz"))
values = [data.pop(f"v{{index:05d}}") for index in range({len(values)})]
def assign(network):
    for variable, value in zip(network.variables, values, strict=True):
        variable.assign(value)
def save(*arrays, **named):
    assert "tensorflow" not in sys.modules
    np.savez(r"{folder}/out.npz", *map(np.asarray, arrays), **named)
"""
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", prelude + program], check=True, env=environment)
    return np.load(folder / "out.npz")


def latest_variables(run_dir, step=None):
    """Reads the newest checkpoint of a run, or the one of a step: name -> array."""
    import tensorflow as tf

    folder = run_dir / "checkpoints"
    latest = tf.train.latest_checkpoint(folder) if step is None else str(folder / f"step-{step}")
    reader = tf.train.load_checkpoint(latest)
    return {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if "save_counter" not in name and name != "_CHECKPOINTABLE_OBJECT_GRAPH"
    }


def snapshot(path):
    """All files under a folder, with their contents and times of change."""
    return {
        file.relative_to(path): (file.stat().st_mtime_ns, file.read_bytes())
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def contents(path):
    """All files under a folder, with their contents."""
    return {name: content for name, (_, content) in snapshot(path).items()}


def check_refused(done, *words):
    """Checks that a command ended with 1, one line on stderr with these words, and no result."""
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    for word in words:
        assert word in lines[0]
