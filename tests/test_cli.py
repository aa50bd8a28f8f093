"""What a person or a script sees of a command: exit codes, one line per error, help."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from auto_deeplab_tf import cli, config

ENTRY_POINT = '''
"""Does something for the test.

A second paragraph.
"""

import signal
import time

from absl import logging

from auto_deeplab_tf import cli, config
from auto_deeplab_tf.errors import RunError, UserError

cli.define(config.SearchConfig)


def main():
    options = cli.read(config.SearchConfig)
    raised = {
        "value": UserError("two\\nlines"),
        "run": RunError("the loss is not finite"),
        "bug": KeyError("bug"),
    }
    if options.dataset in raised:
        raise raised[options.dataset]
    if options.dataset == "file":
        open("no/such/file")
    if options.dataset == "wait":
        print("waiting", flush=True)
        time.sleep(60)
    if options.dataset == "text":
        print(cli.flags_text(options), end="")
    logging.info("a library tells")
    print("chatter")
    cli.print_json({"miou": float("nan"), "crop": options.crop_size})


if __name__ == "__main__":
    cli.run(main)
'''

COMMANDS = {
    "auto_deeplab_tf.search": config.SearchConfig,
    "auto_deeplab_tf.decode": config.DecodeConfig,
    "auto_deeplab_tf.train": config.TrainConfig,
    "auto_deeplab_tf.evaluate": config.EvaluateConfig,
    "auto_deeplab_tf.predict": config.PredictConfig,
    "auto_deeplab_tf.summarize": config.SummarizeConfig,
    "export.saved_model": config.SavedModelConfig,
    "export.tflite": config.TFLiteConfig,
    "export.tensorrt": config.TensorRTConfig,
}


def start(command, **kwargs):
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *command], stdout=pipe, stderr=pipe, text=True, **kwargs
    )


def run(command):
    process = start(command)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def entry_point(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "entry.py"
    path.write_text(textwrap.dedent(ENTRY_POINT).lstrip())
    return lambda *flags: run([str(path), *flags])


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ([], "error: --run_dir is required: folder of the run"),
        (["--epoch=3"], "error: unknown flag --epoch; did you mean --epochs?"),
        (["--arch_learnig_rate=3"], "did you mean --arch_learning_rate?"),
        (["--noresum"], "error: unknown flag --noresum; did you mean --noresume?"),
        (["--noepochs"], "error: unknown flag --noepochs; did you mean --epochs?"),
        (["--zzzzzz"], "error: unknown flag --zzzzzz; see --help"),
        (["--epochs=three"], "error: --epochs=three: expected a whole number"),
        (["--crop_size=321*321"], "--crop_size=321*321: expected HEIGHTxWIDTH in pixels"),
        (["--resume=perhaps"], "error: --resume=perhaps: expected true or false"),
        (["--run_dir"], "error: Missing value for flag --run_dir"),
        (["--run_dir=a", "b"], "error: unexpected argument 'b': options are written --name=value"),
        (["--run_dir=a", "--epochs=0"], "error: --epochs=0: must be at least 1"),
        (["--run_dir=a", "--atrous=half"], "--atrous=half: expected one of full, separable"),
        (
            ["--run_dir=a", "--epochs=3"],
            "--arch_start_epoch=20 must not be greater than --epochs=3",
        ),
        (
            ["--run_dir=a", "--image_size=65", "--max_image_side=65"],
            "error: --image_size and --max_image_side both set the size",
        ),
        (["--flagfile=none.flags"], "error: Unable to open flagfile"),
    ],
)
def test_wrong_flags_exit_with_2_and_one_line(entry_point, flags, line):
    code, out, err = entry_point(*flags)
    assert (code, out) == (2, "")
    assert line in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("dataset", "line"),
    [
        ("value", "error: two lines\n"),
        ("run", "error: the loss is not finite\n"),
        ("file", "error: no/such/file: No such file or directory\n"),
    ],
)
def test_errors_exit_with_1_and_one_line(entry_point, dataset, line):
    assert entry_point("--run_dir=a", f"--dataset={dataset}") == (1, "", line)
    code, out, err = entry_point("--run_dir=a", f"--dataset={dataset}", "--verbosity=1")
    assert (code, out) == (1, "")
    assert err.startswith("Traceback") and err.endswith(line)


def test_a_bug_keeps_its_traceback(entry_point):
    code, _, err = entry_point("--run_dir=a", "--dataset=bug")
    assert code == 1
    assert "Traceback" in err and "KeyError: 'bug'" in err


def test_json_leaves_stdout_to_the_result(entry_point):
    code, out, err = entry_point("--run_dir=a", "--json", "--crop_size=65x97")
    assert code == 0
    assert json.loads(out) == {"miou": None, "crop": [65, 97]}
    assert out.count("\n") == 1
    assert err == "chatter\n"
    code, out, err = entry_point("--run_dir=a")
    assert out.startswith("chatter\n") and err == ""
    code, out, err = entry_point("--run_dir=a", "--verbosity=0")
    assert "a library tells" in err


def test_interrupt_ends_without_a_traceback(entry_point, tmp_path):
    path = tmp_path / "entry.py"
    path.write_text(textwrap.dedent(ENTRY_POINT).lstrip())
    # Started from the background of a shell, this process ignores SIGINT, and its children would.
    process = start(
        [str(path), "--run_dir=a", "--dataset=wait"],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "interrupted\n")


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    path = tmp_path / "entry.py"
    path.write_text(textwrap.dedent(ENTRY_POINT).lstrip())
    for flags, code in ((["--help"], 0), (["--run_dir=a"], 141)):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, str(path), *flags],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (code, "")


def test_flagfile(entry_point, tmp_path):
    file = tmp_path / "run.flags"
    file.write_text("# a comment\n\n--run_dir=a b\n--noresume\n--epochs=30\n--json\n")
    code, out, err = entry_point(f"--flagfile={file}", "--epochs=31", "--dataset=text")
    assert code == 0
    text = err.removesuffix("chatter\n")  # with --json what is printed goes to stderr
    options = config.from_flags_text(config.SearchConfig, text)
    assert options.run_dir == "a b"
    assert options.epochs == 31
    assert not options.resume

    file.write_text("--run_dir=a\n--epoch=30\n")
    code, out, err = entry_point(f"--flagfile={file}")
    assert (code, err) == (2, "error: unknown flag --epoch; did you mean --epochs?\n")


@pytest.mark.parametrize("config_class", sorted(COMMANDS.values(), key=lambda item: item.__name__))
def test_a_run_is_repeated_from_its_flag_file(config_class, tmp_path):
    kinds = config.kinds(config_class)
    arguments = []
    for field in dataclasses.fields(config_class):
        if config.is_required(field):
            value = "65x97" if kinds[field.name].form == "size" else f"my {field.name}"
            arguments.append(f"--{field.name}={value}")
        elif kinds[field.name].element is bool:
            arguments.append(f"--{'no' if field.default else ''}{field.name}")
    arguments += {
        config.TrainConfig: ["--architecture=a.json"],
        config.SummarizeConfig: ["--architecture=a.json"],
        config.DecodeConfig: ["--run_dir=a", "--filter_multiplier=8,12"],
    }.get(config_class, [])
    options = cli.parse(config_class, arguments)
    (tmp_path / "flags.txt").write_text(cli.flags_text(options))
    assert cli.parse(config_class, [f"--flagfile={tmp_path / 'flags.txt'}"]) == options


def test_help_lists_every_flag_once_with_one_line(entry_point):
    code, out, err = entry_point("--help")
    assert (code, err) == (0, "")
    assert out.startswith("Does something for the test.\n\nA second paragraph.\n\nusage: entry.py")
    for field in dataclasses.fields(config.SearchConfig):
        name = field.name
        assert out.count(f"  --{name}=") + out.count(f"  --[no]{name} ") == 1
        assert field.metadata["help"] in out
    assert "[required]" in out and "[321x321]" in out and "separable" in out
    assert "pdb_post_mortem" not in out
    for flag in ("--helpshort", "-h", "-?"):
        assert entry_point(flag) == (0, out, "")

    code, full, err = entry_point("--helpfull")
    assert (code, err) == (0, "")
    assert full.startswith(out.rstrip("\n")) and "--pdb_post_mortem" in full


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_answer_before_tensorflow_is_loaded(command):
    script = (
        f"import runpy, sys; sys.argv = ['x', *sys.argv[1:]]\n"
        f"try: runpy.run_module({command!r}, run_name='__main__', alter_sys=True)\n"
        "finally: assert not {'tensorflow', 'keras', 'jax'} & set(sys.modules)"
    )
    code, out, err = run(["-c", script, "--help"])
    assert (code, err) == (0, "")
    assert f"usage: python -m {command} [--name=value ...]" in out
    assert not out.startswith("usage"), "the module's docstring stands first"
    for field in dataclasses.fields(COMMANDS[command]):
        assert f"--{field.name}=" in out or f"--[no]{field.name} " in out

    code, out, err = run(["-c", script, "--hlep"])
    assert (code, out, err) == (2, "", "error: unknown flag --hlep; did you mean --help?\n")


def test_entry_points_can_be_imported_together():
    """Nothing is registered before `run`: two modules may define the same flag."""
    modules = []
    for config_class in (config.SearchConfig, config.TrainConfig):
        module = {"__name__": config_class.__name__, "cli": cli, "config_class": config_class}
        exec("cli.define(config_class)", module)
        modules.append(module)
    assert cli._config_of_module["SearchConfig"] is config.SearchConfig
    assert cli._config_of_module["TrainConfig"] is config.TrainConfig
