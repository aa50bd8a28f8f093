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

import time

from absl import logging

from auto_deeplab_tf import cli, config
from auto_deeplab_tf.errors import MissingExtraError, RunError, UserError

cli.define(config.SearchConfig)


class ResourceExhaustedError(Exception):
    """Named as TensorFlow's."""


def main():
    options = cli.read(config.SearchConfig)
    raised = {
        "value": UserError("two\\nlines"),
        "run": RunError("the loss is not finite"),
        "memory": ResourceExhaustedError("failed to allocate\\nmemory for a tensor"),
        "array": MemoryError("Unable to allocate 7 TiB"),
        "extra": MissingExtraError("needs onnx: pip install auto_deeplab_tf[export]"),
        "bug": KeyError("bug"),
        "rule": ValueError("a rule of ours"),
        "import": ImportError("no module of that name"),
        "unnamed": OSError("not of a file"),
    }
    if options.dataset in raised:
        raise raised[options.dataset]
    if options.dataset == "file":
        open("no/such/file")
    if options.dataset == "wait":
        print("waiting", flush=True)
        time.sleep(60)
    if options.dataset == "text":
        print(config.flags_text(options), end="")
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
    "auto_deeplab_tf.select": config.SelectConfig,
    "auto_deeplab_tf.evaluate": config.EvaluateConfig,
    "auto_deeplab_tf.predict": config.PredictConfig,
    "auto_deeplab_tf.summarize": config.SummarizeConfig,
    "export.saved_model": config.SavedModelConfig,
    "export.tflite": config.TFLiteConfig,
    "export.tensorrt": config.TensorRTConfig,
    "export.verify": config.VerifyConfig,
    "export.serving.client": config.ServingClientConfig,
    "export.serving.load_test": config.LoadTestConfig,
    "export.serving.native": config.NativeConfig,
    "export.serving.stand_in": config.StandInConfig,
}


def start(command):
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *command], stdout=pipe, stderr=pipe, text=True)


def run(command):
    process = start(command)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def entry_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "entry.py"
    path.write_text(textwrap.dedent(ENTRY_POINT).lstrip())
    return str(path)


@pytest.fixture
def entry_point(entry_file):
    return lambda *flags: run([entry_file, *flags])


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
        (["--flagfile=none.flags"], "error: --flagfile=none.flags: No such file or directory"),
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
        ("extra", "error: needs onnx: pip install auto_deeplab_tf[export]\n"),
        (
            "memory",
            "error: out of memory; lower --batch_size, --crop_size or --filter_multiplier "
            "(failed to allocate memory for a tensor)\n",
        ),
        (
            "array",
            "error: out of memory; lower --batch_size, --crop_size or --filter_multiplier "
            "(Unable to allocate 7 TiB)\n",
        ),
    ],
)
def test_errors_exit_with_1_and_one_line(entry_point, dataset, line):
    assert entry_point("--run_dir=a", f"--dataset={dataset}") == (1, "", line)
    code, out, err = entry_point("--run_dir=a", f"--dataset={dataset}", "--verbosity=1")
    assert (code, out) == (1, "")
    assert err.startswith("Traceback") and err.endswith(line)


@pytest.mark.parametrize(
    ("dataset", "line"),
    [
        ("bug", "KeyError: 'bug'"),
        ("rule", "ValueError: a rule of ours"),
        ("import", "ImportError: no module of that name"),
        ("unnamed", "OSError: not of a file"),
    ],
)
def test_an_error_of_our_own_keeps_its_traceback(entry_point, dataset, line):
    code, _, err = entry_point("--run_dir=a", f"--dataset={dataset}")
    assert code == 1
    assert err.startswith("Traceback") and err.endswith(f"{line}\n")


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


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_ends_without_a_traceback(entry_file, number, code, line):
    process = start([entry_file, "--run_dir=a", "--dataset=wait"])
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, f"{line}; the same command resumes\n")


def test_a_reader_that_goes_away_is_no_error(entry_file):
    for flags, code in ((["--help"], 0), (["--run_dir=a"], 141)):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, entry_file, *flags],
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


def parsed(*arguments):
    return cli.parse(config.SearchConfig, ["--run_dir=a", *arguments])


def test_an_included_flag_file_is_found_beside_the_including_one(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "outer.flags").write_text(
        "\ufeff--seed=1\n// a comment\n--flagfile=sub/inner.flags\n--flagfile\nthere.flags\n",
        "utf-8",
    )
    (tmp_path / "sub" / "inner.flags").write_text("--seed=2\r\n--flagfile=leaf.flags\r\n")
    (tmp_path / "sub" / "leaf.flags").write_text("--batch_size=3\n")
    (tmp_path / "elsewhere" / "leaf.flags").write_text("--batch_size=4\n")
    (tmp_path / "elsewhere" / "there.flags").write_text("--json\n")
    options = parsed("--flagfile=../outer.flags")
    # The leaf beside the including file comes before the one in the working directory.
    assert (options.seed, options.batch_size, options.json) == (2, 3, True)
    (tmp_path / "sub" / "leaf.flags").unlink()
    assert parsed("--flagfile", "../outer.flags").batch_size == 4
    (tmp_path / "sub" / "inner.flags").write_text("--flagfile=../outer.flags\n")
    with pytest.raises(cli.FlagsError, match="outer.flags includes itself: .*inner.flags > "):
        parsed("--flagfile=../outer.flags")
    (tmp_path / "bytes.flags").write_bytes(b"\xff\xfe")
    with pytest.raises(cli.FlagsError, match="bytes.flags is not a text file in UTF-8"):
        parsed(f"--flagfile={tmp_path}/bytes.flags")


def test_a_retired_flag_is_read_in_a_flag_file_at_its_old_default_only(tmp_path):
    file = tmp_path / "old.flags"
    for line in ("--mix_predecessors=false", "--nomix_predecessors"):
        file.write_text(f"{line}\n--seed=7\n")
        assert parsed(f"--flagfile={file}").seed == 7
    for line in ("--mix_predecessors=true", "--mix_predecessors"):
        file.write_text(f"{line}\n")
        with pytest.raises(cli.FlagsError, match="^--mix_predecessors=true: this version has no"):
            parsed(f"--flagfile={file}")
    with pytest.raises(cli.FlagsError, match="unknown flag --mix_predecessors"):
        parsed("--mix_predecessors=false")


def test_the_home_folder_is_expanded_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.flags").write_text("--data_dir=~/set [1] 数据\n")
    options = parsed("--flagfile=~/run.flags", "--cache_dir=~", "--dataset=~/no_path")
    assert options.data_dir == f"{tmp_path}/set [1] 数据"
    assert (options.cache_dir, options.dataset) == (str(tmp_path), "~/no_path")
    for config_class in COMMANDS.values():
        for field in dataclasses.fields(config_class):
            # What `--help` calls a file or a folder is one.
            place = str(field.metadata["metavar"]).startswith(("DIR", "FILE", "PATH", "RUN,"))
            assert field.metadata["path"] == place, field.name


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
        config.SelectConfig: ["--num_random=1", "--max_params=1000"],
        config.SummarizeConfig: ["--architecture=a.json"],
        config.StandInConfig: ["--model_base_path=a"],
        config.DecodeConfig: ["--run_dir=a", "--filter_multiplier=8,12"],
    }.get(config_class, [])
    options = cli.parse(config_class, arguments)
    (tmp_path / "flags.txt").write_text(config.flags_text(options))
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
