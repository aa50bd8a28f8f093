"""The command line of every entry point: absl flags made from a config class.

    cli.define(config.SearchConfig)

    def main() -> None:
        options = cli.read(config.SearchConfig)
        ...

    if __name__ == "__main__":
        cli.run(main)

Exit codes: 0 on success and on --help, 1 with one line on stderr for an error the user can fix
(its traceback with --verbosity=1), 2 for wrong flags, 75 where --max_hours is over, 130 after an
interrupt, 141 where the reader of stdout has gone, 143 after SIGTERM. An error that is not meant
for the user keeps its traceback.

TensorFlow is imported neither here nor by an entry point before its `main` runs: --help and the
message for a wrong flag come at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import json
import math
import os
import re
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging

from auto_deeplab_tf import config as config_lib
from auto_deeplab_tf.errors import (
    MissingExtraError,
    MissingFileError,
    RunError,
    StorageError,
    UserError,
    is_out_of_memory,
)
from auto_deeplab_tf.files import as_path

# TensorFlow's C++ start-up lines would stand between the user and the one line that matters. It
# reads the variable when it is imported, and never again.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# The commands run on TensorFlow, whatever backend a keras.json names for other projects.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

_FOR_USERS = (UserError, MissingFileError, StorageError, MissingExtraError, RunError)
# What takes memory, and can be lowered, where a command has it.
_MEMORY_FLAGS = ("batch_size", "crop_size", "input_size", "scales", "filter_multiplier")
_COMMON = (
    ("--flagfile=FILE", "read flags from a file, one per line; later ones win"),
    ("--verbosity=N", "1 also shows the traceback of an error"),
    ("--help, --helpfull", "this text; also the flags of the libraries"),
)

_config_of_module: dict[str, type[config_lib.Config]] = {}
_result_stream: Any = None


class FlagsError(UserError):
    """Flags that do not fit: `run` exits with 2."""


def define(config_class: type) -> None:
    """Makes the fields of a config class the flags of the calling module's command.

    Nothing is registered before `run`, so any number of entry points can be imported together.
    """
    _config_of_module[sys._getframe(1).f_globals["__name__"]] = config_class


def read(config_class: type) -> Any:
    """The options as parsed by `run`.

    Raises:
        FlagsError: for a required flag that is missing, or a value that breaks a rule.
    """
    return _read(config_class, flags.FLAGS)


def parse(config_class: type, arguments: Sequence[str]) -> Any:
    """Reads options from a list of arguments, without a command (tests, scripts).

    Raises:
        FlagsError: as `read`, and for an unknown flag.
    """
    values = _flag_values(config_class)
    _parse(values, ["", *arguments], config_class)
    return _read(config_class, values)


def run(main: Callable[[], Any]) -> NoReturn:
    """Parses the flags that the module of `main` has defined, calls it, and exits."""
    module = main.__globals__
    config_class = _config_of_module.get(module["__name__"])
    if config_class is not None:
        flags.FLAGS.append_flag_values(_flag_values(config_class))

    def parser(argv: list[str]) -> list[str]:
        _answer_help(argv, module, config_class)
        try:
            rest = _parse(flags.FLAGS, argv, config_class)
        except FlagsError as error:
            _complain(str(error))
            sys.exit(2)
        if flags.FLAGS["verbosity"].using_default_value:
            # absl would show what TensorFlow tells of its own doings from here on.
            flags.FLAGS.verbosity = logging.WARNING
        return rest

    app.run(lambda argv: _guard(main), flags_parser=parser)
    raise SystemExit(0)


def print_json(result: Mapping[str, Any]) -> None:
    """Prints a result as one object on one line; numbers that are not finite become null."""
    text = json.dumps(_finite(result), allow_nan=False)
    print(text, file=_result_stream or sys.stdout, flush=True)


# ---- running


def _guard(main: Callable[[], Any]) -> int:
    """Calls main and turns what it raises into an exit code and one line."""
    global _result_stream
    _result_stream = sys.stdout
    # With --json nothing but the result reaches stdout, whatever a library prints.
    wants_json = "json" in flags.FLAGS and flags.FLAGS["json"].value is True
    quiet = contextlib.redirect_stdout(sys.stderr) if wants_json else contextlib.nullcontext()
    config_class = _config_of_module.get(main.__globals__["__name__"])
    hint = "; the same command resumes" if config_class and config_class.resumes else ""

    def terminate(*_: Any) -> None:
        # Not by print, which the signal may have come in the middle of.
        os.write(2, f"terminated{hint}\n".encode())
        sys.exit(128 + signal.SIGTERM)

    # What is half done is cleared away; a training first saves (training/termination.py).
    signal.signal(signal.SIGTERM, terminate)
    try:
        with quiet:
            return main() or 0
    except KeyboardInterrupt as error:
        # A training says what it has saved.
        print(str(error) or f"interrupted{hint}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _close_stdout()
        return 141  # what a shell gives for SIGPIPE
    except Exception as error:
        message = _message(error, config_class)
        if message is None:
            raise
        if flags.FLAGS.verbosity >= 1:
            traceback.print_exc()
        _complain(message)
        return 2 if isinstance(error, FlagsError) else 1


def _message(error: Exception, config_class: type | None) -> str | None:
    """The line for an error that its user can fix; None for any other."""
    if isinstance(error, _FOR_USERS):
        return _with_dashes(error, config_class)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if is_out_of_memory(error):
        known = config_lib.kinds(config_class) if config_class else ()
        lower = [f"--{name}" for name in _MEMORY_FLAGS if name in known]
        remedy = f"; lower {', '.join(lower[:-1])} or {lower[-1]}" if len(lower) > 1 else ""
        return f"out of memory{remedy} ({textwrap.shorten(str(error), 200)})"
    return None


def _complain(message: str) -> None:
    """Writes one line, in which what would move a terminal's cursor stands escaped."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(message.split()))
    print("error:", line, file=sys.stderr)


def _with_dashes(error: BaseException, config_class: type | None) -> str:
    """The message of an error as the command line writes it: `--` before the names of flags.

    These are the settings that a `FieldError` names, and all that stand in the form `name=value`.
    """
    if config_class is None:
        return str(error)
    names = list(config_lib.kinds(config_class))
    named = [rf"{name}\b" for name in getattr(error, "names", ()) if name in names]
    pattern = "|".join([f"(?:{'|'.join(names)})=", *named])
    return re.sub(rf"(?<![\w/.-])(?={pattern})", "--", str(error))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# ---- parsing


class _ValueParser(flags.ArgumentParser):
    """Reads one flag by the kind of its field."""

    def __init__(self, kind: config_lib.Kind) -> None:
        self._kind = kind
        self.syntactic_help = ""

    def parse(self, argument: Any) -> Any:
        if not isinstance(argument, str):
            return argument  # a default, already a value
        return config_lib.parse_value(self._kind, argument)

    def flag_type(self) -> str:
        return self._kind.metavar


class _ValueSerializer(flags.ArgumentSerializer):
    def __init__(self, kind: config_lib.Kind) -> None:
        self._kind = kind

    def serialize(self, value: Any) -> str:
        return config_lib.format_value(self._kind, value)


def _flag_values(config_class: type) -> flags.FlagValues:
    values = flags.FlagValues()
    kinds = config_lib.kinds(config_class)
    for field in dataclasses.fields(config_class):
        kind = kinds[field.name]
        default = None if config_lib.is_required(field) else field.default
        text = field.metadata["help"]
        if kind.element is bool:
            flags.DEFINE_boolean(field.name, default, text, flag_values=values)
        else:
            flags.DEFINE(
                _ValueParser(kind),
                field.name,
                default,
                text,
                flag_values=values,
                serializer=_ValueSerializer(kind),
            )
    return values


def _parse(values: flags.FlagValues, argv: list[str], config_class: type | None) -> list[str]:
    try:
        rest = values([argv[0], *_with_flag_files(argv[1:])])
    except flags.UnrecognizedFlagError as error:
        raise FlagsError(_unknown(error.flagname, values, config_class)) from None
    except flags.Error as error:
        raise FlagsError(_reworded(str(error))) from None
    if len(rest) > 1:
        raise FlagsError(f"unexpected argument {rest[1]!r}: options are written --name=value")
    return rest


def _with_flag_files(arguments: Sequence[str], inside: tuple[str, ...] = ()) -> list[str]:
    """Returns the arguments with every --flagfile replaced by the flags that it holds.

    A flag file has one flag per line, empty lines, and comments after # or //. One that is included
    is looked for from the folder of the including file, then from the working directory.

    Args:
        arguments: The arguments, or the lines of a flag file.
        inside: The flag files that are being read, the outermost first.
    """
    expanded: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if argument == "--":
            return [*expanded, argument, *rest]
        if name not in ("--flagfile", "-flagfile"):
            expanded.append(argument)
            continue
        file = os.path.expanduser(value if equals else next(rest, ""))
        beside = os.path.join(os.path.dirname(inside[-1]), file) if inside else file
        path = beside if inside and as_path(beside).is_file() else file
        if os.path.realpath(path) in map(os.path.realpath, inside):
            raise FlagsError(f"--flagfile={path} includes itself: {' > '.join([*inside, path])}")
        expanded += _with_flag_files(_flag_lines(path), (*inside, path))
    return expanded


def _flag_lines(path: str) -> list[str]:
    """The flags of a flag file, without those that are gone and have their old default."""
    try:
        text = as_path(path).read_text("utf-8-sig")
    except OSError as error:
        raise FlagsError(f"--flagfile={path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise FlagsError(f"--flagfile={path} is not a text file in UTF-8") from None
    except UserError as error:  # a URL of an unknown filesystem
        raise FlagsError(f"--flagfile={error}") from None
    lines = [line.strip() for line in io.StringIO(text, newline=None)]
    kept = []
    for line in lines:
        flag = re.fullmatch(r"--?(no)?(\w+?)(?:=(.*))?", line)
        if not line or line.startswith(("#", "//")):
            continue
        try:
            gone = flag and config_lib.is_retired(
                flag[2], flag[3] or ("false" if flag[1] else "true")
            )
        except UserError as error:
            raise FlagsError(f"--{error} ({path})") from None
        if not gone:
            kept.append(line)
    return kept


def _unknown(name: str, values: flags.FlagValues, config_class: type | None) -> str:
    """The message for a flag that does not exist, with the nearest one that does."""
    names = list(config_lib.kinds(config_class)) if config_class else []
    switches = [key for key in names if values[key].boolean]
    words = {key: key for key in [*names, "flagfile", "verbosity", "help"]}
    words.update({f"no{key}": f"no{key}" for key in switches})
    nearest = difflib.get_close_matches(name, words, n=1, cutoff=0.6)
    hint = f"did you mean --{nearest[0]}?" if nearest else "see --help"
    return f"unknown flag --{name}; {hint}"


def _reworded(message: str) -> str:
    """Returns a message of absl in the form of ours."""
    message = message.removeprefix("flag ").removeprefix("ERROR:: ")
    switch = re.fullmatch(r"(--\w+=\S*): \('Non-boolean argument.*", message)
    return f"{switch[1]}: expected true or false" if switch else message


def _read(config_class: type, values: flags.FlagValues) -> Any:
    given = {}
    for field in dataclasses.fields(config_class):
        value = values[field.name].value
        if value is None and config_lib.is_required(field):
            raise FlagsError(f"--{field.name} is required: {field.metadata['help']}")
        given[field.name] = value
    try:
        return config_class(**given)
    except UserError as error:
        raise FlagsError(_with_dashes(error, config_class)) from error


# ---- help


def _answer_help(argv: Sequence[str], module: Mapping[str, Any], config_class: Any) -> None:
    """Prints the help and exits with 0 where it is asked for."""
    for argument in argv[1:]:
        if argument == "--":
            return
        name = argument.lstrip("-") if argument.startswith("-") else None
        if name not in ("help", "h", "?", "helpshort", "helpfull", "helpxml"):
            continue
        try:
            if name == "helpxml":
                flags.FLAGS.write_help_in_xml_format(sys.stdout)
            else:
                print(_help(module, config_class))
            if name == "helpfull":
                print(_library_help(config_class))
            sys.stdout.flush()
        except BrokenPipeError:
            _close_stdout()
        sys.exit(0)


def _close_stdout() -> None:
    """Keeps the interpreter from complaining at its end that the reader has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _help(module: Mapping[str, Any], config_class: Any) -> str:
    spec = module.get("__spec__")
    command = f"python -m {spec.name}" if spec else os.path.basename(sys.argv[0])
    parts = [(module.get("__doc__") or "").strip(), f"usage: {command} [--name=value ...]"]
    groups: dict[str, list[tuple[str, str]]] = {"run": []}
    if config_class is not None:
        kinds = config_lib.kinds(config_class)
        for field in dataclasses.fields(config_class):
            rows = groups.setdefault(field.metadata["group"], [])
            row = _help_row(field, kinds[field.name])
            rows.insert(0, row) if config_lib.is_required(field) else rows.append(row)
    last = {name: groups.pop(name) for name in ("output", "device") if name in groups}
    groups |= last | {"every command": list(_COMMON)}
    parts += [f"{group}:\n{_table(rows)}" for group, rows in groups.items() if rows]
    return "\n\n".join(part for part in parts if part)


def _help_row(field: dataclasses.Field, kind: config_lib.Kind) -> tuple[str, str]:
    rules = field.metadata
    text = rules["help"]
    if kind.element is bool:
        return f"--[no]{field.name}", f"{text} [{config_lib.format_value(kind, field.default)}]"
    values = "|".join(rules["choices"]) if rules["choices"] else None
    name = f"--{field.name}={rules['metavar'] or values or kind.metavar}"
    if config_lib.is_required(field):
        return name, f"{text} [required]"
    default = config_lib.format_value(kind, field.default)
    return name, f"{text} [{default}]" if default else text


def _table(rows: Sequence[tuple[str, str]]) -> str:
    width = 32
    lines = []
    for name, text in rows:
        separator = "  " if len(name) <= width else "\n" + " " * (width + 4)
        lines.append(f"  {name:<{width}}{separator}{text}")
    return "\n".join(lines)


def _library_help(config_class: Any) -> str:
    """The flags that absl and other libraries add, one line each."""
    own = set(config_lib.kinds(config_class)) if config_class else set()
    rows = [
        (f"--{name}", textwrap.shorten(" ".join((item.help or "").split()), 90))
        for name, item in sorted(flags.FLAGS._flags().items())
        if name not in own and len(name) > 1
    ]
    return f"\nflags of the libraries:\n{_table(rows)}"
