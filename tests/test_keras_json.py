"""Another project's ~/.keras/keras.json: its backend and floatx are overridden, or named."""

import json
import os
import subprocess
import sys

import pytest


def run(program, home, **content):
    """Runs a program in a process with that keras.json; returns (stdout, last line of stderr)."""
    (home / ".keras").mkdir()
    (home / ".keras" / "keras.json").write_text(json.dumps(content))
    environment = {**os.environ, "HOME": str(home)}
    environment.pop("KERAS_BACKEND", None)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    return done.stdout.strip(), (done.stderr.strip().splitlines() or [""])[-1]


@pytest.mark.parametrize(
    ("module", "content", "message"),
    [
        ("segmenter", {"backend": "jax"}, "set KERAS_BACKEND=tensorflow"),
        ("searcher", {"floatx": "float16"}, "floatx must be 'float32', and is 'float16'"),
    ],
)
def test_what_cannot_train_is_named_at_import(module, content, message, tmp_path):
    _, error = run(f"import auto_deeplab_tf.{module}", tmp_path, **content)
    assert error.startswith("auto_deeplab_tf.errors.UserError: ") and message in error
    assert "keras.json" in error


def test_commands_run_on_tensorflow(tmp_path):
    program = "import auto_deeplab_tf.cli, keras; print(keras.backend.backend())"
    assert run(program, tmp_path, backend="jax")[0] == "tensorflow"
