"""Settings as fields of frozen dataclasses: what they hold, their text and their rules.

A field is declared once, with `flag`: its default, one line of help and the rule its value must
keep. The same rules hold on the command line, in a flag file and in Python. The text of a value
(`parse_value`, `format_value`) is defined here too, so that a run folder can hold the resolved
settings as a flag file, `flags.txt`, and read them back without the command line.
"""

from __future__ import annotations

import dataclasses
import difflib
import filecmp
import math
import numbers
import operator
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

from auto_deeplab_tf.errors import FieldError, UserError
from auto_deeplab_tf.files import absolute

Size = tuple[int, int]  # (height, width) in pixels; HEIGHTxWIDTH in text

AUTO: typing.Literal["auto"] = "auto"  # Where a field allows it: chosen from the other settings.

# Flags that are gone, with the text of their old default. A flags.txt that holds one at its default
# is read without it; any other value was a choice that this version cannot follow.
RETIRED = {"mix_predecessors": "false", "entropy_weight": "0.0"}

_BOUNDS = {
    "minimum": (operator.ge, "at least"),
    "maximum": (operator.le, "at most"),
    "above": (operator.gt, "greater than"),
    "below": (operator.lt, "smaller than"),
}
_REQUIRED = dataclasses.MISSING
_ConfigT = TypeVar("_ConfigT", bound="Config")


def flag(
    default: Any = _REQUIRED,
    help: str = "",
    *,
    group: str = "run",
    choices: Sequence[str] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    on_resume: str = "same",
    metavar: str | None = None,
    path: bool = False,
) -> Any:
    """Declares one setting: a dataclass field that is also a command-line flag.

    Args:
        default: The value when the flag is not given; left out, the flag is required.
        help: One line, without the default (the command line adds it).
        group: Heading under which `--help` lists the flag.
        choices: The allowed texts.
        minimum: Smallest allowed value; of a size or a list, of each element.
        maximum: Largest allowed value.
        above: The value must be greater than this.
        below: The value must be smaller than this.
        on_resume: What a resumed run may do with it: "same" (nothing), "grow" (a larger value is
            allowed), "free" (it changes no result: logs, paths of caches) or "rounding" (it changes
            the order of sums alone: allowed, with a warning).
        metavar: The word for the value in `--help`.
        path: Whether it names a file or a folder, or a list of them: `~` is expanded, and a resumed
            run may name the same file in another way.

    Returns:
        A `dataclasses.field`.

    Raises:
        ValueError: For a help that is not one line, or an unknown `on_resume`.
    """
    if not help or "\n" in help:
        raise ValueError(f"the help of a flag is one line of text. Received: {help!r}")
    if on_resume not in ("same", "grow", "free", "rounding"):
        raise ValueError(f"on_resume is same, grow, free or rounding. Received: {on_resume!r}")
    metadata = {
        "help": help,
        "group": group,
        "choices": tuple(choices) if choices else None,
        "minimum": minimum,
        "maximum": maximum,
        "above": above,
        "below": below,
        "on_resume": on_resume,
        "metavar": metavar,
        "path": path,
    }
    return dataclasses.field(default=default, metadata=metadata)


def changed(base: type[Config], name: str, default: Any, **metadata: Any) -> Any:
    """Declares a flag of a base class again, for a command with another default.

    Args:
        base: The class that declares the flag.
        name: Its name.
        default: The default here.
        **metadata: Arguments of `flag` that differ too.

    Returns:
        A `dataclasses.field`.
    """
    rules = next(field.metadata for field in dataclasses.fields(base) if field.name == name)
    return flag(default, **{**rules, **metadata})


class Kind(NamedTuple):
    """What a field holds: an element type, one or many of it, and what is allowed in its place."""

    element: type  # bool, int, float or str
    form: str  # "one", "size" or "list"
    optional: bool  # None
    auto: bool = False  # the word auto

    @property
    def metavar(self) -> str:
        """The word for the value in `--help`."""
        word = {bool: "BOOL", int: "N", float: "X", str: "TEXT"}[self.element]
        text = {"one": word, "size": "HxW", "list": f"{word},{word},..."}[self.form]
        return f"{text}|{AUTO}" if self.auto else text


def _kind(hint: Any) -> Kind:
    optional = auto = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        others = (type(None), typing.Literal["auto"])
        optional, auto = (other in typing.get_args(hint) for other in others)
        members = [member for member in typing.get_args(hint) if member not in others]
        if len(members) != 1:
            raise TypeError(f"a flag holds one type, and None or auto. Received: {hint}")
        hint = members[0]
    if hint == Size:
        return Kind(int, "size", optional, auto)
    if typing.get_origin(hint) is tuple:
        element, *rest = typing.get_args(hint)
        if rest == [Ellipsis] and element in (int, float, str):
            return Kind(element, "list", optional, auto)
    if hint in (bool, int, float, str):
        return Kind(hint, "one", optional, auto)
    raise TypeError(f"no text form for a flag of type {hint}")


def kinds(config_class: type[Config]) -> dict[str, Kind]:
    """Returns the kind of every field of a config class, in the order of its fields."""
    hints = typing.get_type_hints(config_class)
    return {field.name: _kind(hints[field.name]) for field in dataclasses.fields(config_class)}


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Tells whether a field has no default."""
    return field.default is dataclasses.MISSING


# ---- values as text


def _parse_element(element: type, text: str) -> Any:
    if element is bool:
        words = {"true": True, "1": True, "false": False, "0": False}
        if text.lower() not in words:
            raise UserError("expected true or false")
        return words[text.lower()]
    if element is str:
        return text
    try:
        if element is int and re.fullmatch("[+-]?[0-9]+", text):
            return int(text)
        number = float(text)  # 3e11 for a budget is easier to read than its twelve digits
    except ValueError:
        number = math.nan
        if element is float:
            raise UserError("expected a number") from None
    if element is int and not number.is_integer():
        raise UserError("expected a whole number")
    return element(number)


def parse_value(kind: Kind, text: str) -> Any:
    """Reads a value from its text; an empty text is None where None is allowed.

    Sizes are HEIGHTxWIDTH, or one number for a square; lists are separated by commas.

    Raises:
        UserError: Saying what was expected, without naming the flag.
    """
    if "\n" in text or "\r" in text or text != text.strip():
        raise UserError("expected text without line breaks and without spaces at its ends")
    if text == "" and kind.optional:
        return None
    if kind.auto and text == AUTO:
        return AUTO
    if kind.form == "size":
        match = re.fullmatch(r"(\d+)(?:[xX](\d+))?", text)
        if not match:
            raise UserError("expected HEIGHTxWIDTH in pixels, such as 321x513")
        return int(match[1]), int(match[2] or match[1])
    if kind.form == "list":
        return tuple(_parse_element(kind.element, part.strip()) for part in text.split(","))
    return _parse_element(kind.element, text)


def format_value(kind: Kind, value: Any) -> str:
    """Writes a value as the text that `parse_value` reads back to the same value."""
    if value is None:
        return ""
    if kind.auto and value == AUTO:
        return AUTO
    if kind.form == "size":
        return f"{value[0]}x{value[1]}"
    if kind.form == "list":
        return ",".join(map(_format_element, value))
    return _format_element(value)


def _format_element(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else repr(value)


def flags_text(config: Config) -> str:
    """Writes the resolved settings as a flag file, one flag per line: it repeats the run.

    A field that is None is written with an empty text after the `=`.
    """
    return "".join(
        f"--{name}={format_value(kind, getattr(config, name))}\n"
        for name, kind in kinds(type(config)).items()
    )


def from_flags_text(config_class: type[_ConfigT], text: str) -> _ConfigT:
    """Reads what `flags_text` wrote, by this version or an older one (see `RETIRED`).

    Raises:
        UserError: For a line that is no flag of this class, or a value that breaks its rule.
    """
    known = kinds(config_class)
    values = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"--(\w+)=(.*)", line)
        if match and is_retired(*match.groups()):
            continue
        if not match or match[1] not in known:
            raise UserError(
                f"line {number} is no flag of {config_class.__name__}: {line!r} "
                "(expected --name=value, as the command that wrote the file wrote it)"
            )
        name = match[1]
        try:
            values[name] = parse_value(known[name], match[2])
        except UserError as error:
            raise FieldError(f"{name}={match[2]}: {error} (line {number})") from None
    return config_class(**values)


def is_retired(name: str, text: str) -> bool:
    """Tells whether a flag of an old flag file is gone and can be left out.

    Raises:
        FieldError: Where it is gone and had another value than its default.
    """
    if name not in RETIRED:
        return False
    if text != RETIRED[name]:
        raise FieldError(
            f"{name}={text}: this version has no {name} any more (it reads only the old default, "
            f"{RETIRED[name]}). Continue with the version that wrote the flag, or start a new run "
            "without it."
        )
    return True


def resume_conflicts(before: Config, after: Config) -> tuple[str, ...]:
    """Lists what keeps a run written by `before` from resuming as `after`, one text per flag."""
    if type(before) is not type(after):
        return (f"{type(before).__name__} cannot be resumed as {type(after).__name__}",)
    conflicts = []
    for field in dataclasses.fields(after):
        old, new = getattr(before, field.name), getattr(after, field.name)
        rule = field.metadata["on_resume"]
        if old == new or rule in ("free", "rounding") or (rule == "grow" and new > old):
            continue
        if field.metadata["path"] and old and new and _same_files(old, new):
            continue
        conflicts.append(_changed_text(before, after, field.name))
    return tuple(conflicts)


def has_grown(before: Config, after: Config) -> bool:
    """Tells whether `after` extends a run written by `before`."""
    return any(
        field.metadata["on_resume"] == "grow"
        and getattr(before, field.name) != getattr(after, field.name)
        for field in dataclasses.fields(after)
    )


def rounding_changes(before: Config, after: Config) -> tuple[str, ...]:
    """Lists what a run written by `before` and resumed as `after` changes in its rounding."""
    return tuple(
        _changed_text(before, after, field.name)
        for field in dataclasses.fields(after)
        if field.metadata["on_resume"] == "rounding"
        and getattr(before, field.name) != getattr(after, field.name)
    )


def _changed_text(before: Config, after: Config, name: str) -> str:
    kind = kinds(type(after))[name]
    old, new = (format_value(kind, getattr(config, name)) for config in (before, after))
    return f"{name}={new} (the run has {old!r})"


def _same_files(old: Any, new: Any) -> bool:
    """Tells whether two paths, or two lists of them, name the same files."""
    if isinstance(new, str):
        return _same_file(old, new)
    return len(old) == len(new) and all(map(_same_file, old, new))


def _same_file(old: str, new: str) -> bool:
    """Tells whether two paths name the same file or folder, or two files of the same content."""
    if os.path.realpath(old) == os.path.realpath(new):
        return True
    return os.path.isfile(old) and os.path.isfile(new) and filecmp.cmp(old, new, shallow=False)


def _each(function: Callable[[str], str], value: Any) -> Any:
    """Applies a function to a text, or to each of a list of texts."""
    return function(value) if isinstance(value, str) else tuple(map(function, value))


def _absolute(path: str) -> str:
    """Returns an absolute path; what is no file, and may be the name of a preset, as it is."""
    return absolute(path) if os.path.exists(path) else path


# ---- the rules


def _check_type(name: str, kind: Kind, value: Any) -> Any:
    """Returns the value in its canonical type (lists become tuples, paths texts)."""

    def element(item: Any) -> Any:
        if kind.element is str and isinstance(item, os.PathLike):
            item = os.fspath(item)
        number = {int: numbers.Integral, float: numbers.Real}.get(kind.element, type(None))
        if isinstance(item, number) and not isinstance(item, bool):
            item = kind.element(item)  # also of NumPy's numbers
        if type(item) is not kind.element:
            raise FieldError(f"{name} takes {kind.metavar}. Received: {value!r}")
        return item

    if value is None and kind.optional:
        return None
    if kind.auto and value == AUTO:
        return AUTO
    if kind.form == "one":
        return element(value)
    if not isinstance(value, (tuple, list)) or (kind.form == "size" and len(value) != 2):
        raise FieldError(f"{name} takes {kind.metavar}. Received: {value!r}")
    return tuple(element(item) for item in value)


def _broken_rule(rules: Mapping[str, Any], item: Any) -> str | None:
    """Returns the rule that one element of a value breaks, None where it breaks none."""
    if isinstance(item, str):
        if rules["choices"] and item not in rules["choices"]:
            return f"expected one of {', '.join(rules['choices'])}"
        try:
            parse_value(Kind(str, "one", False), item)
        except UserError as error:
            return str(error)
        return None
    if not math.isfinite(item):
        return "must be finite"
    for name, (holds, words) in _BOUNDS.items():
        if rules[name] is not None and not holds(item, rules[name]):
            return f"must be {words} {rules[name]}"
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all settings: checks every field against its declaration.

    Raises:
        FieldError: Naming the field, the value and the rule.
        TypeError: For a keyword that is no field, with the nearest that is.
    """

    # Whether the same command, run again, resumes what was stopped.
    resumes: ClassVar[bool] = False

    def __new__(cls, **values: Any) -> Self:
        """Refuses settings that do not exist."""
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                nearest = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {nearest[0]!r}?" if nearest else f"it has {', '.join(names)}"
                raise TypeError(f"{cls.__name__} has no setting {name!r}; {hint}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        all_kinds = kinds(type(self))
        for field in dataclasses.fields(self):
            kind = all_kinds[field.name]
            value = _check_type(field.name, kind, getattr(self, field.name))
            if field.metadata["path"] and value is not None:
                value = _each(os.path.expanduser, value)
            object.__setattr__(self, field.name, value)
            if value is None or (kind.auto and value == AUTO):
                continue
            if is_required(field) and value == "":
                raise FieldError(f"{field.name} is required: it must not be empty")
            items = (value,) if kind.form == "one" else value
            problems = [_broken_rule(field.metadata, item) for item in items]
            for problem in problems or ["needs at least one value"]:
                if problem:
                    text = format_value(kind, value).replace("\n", r"\n")
                    raise FieldError(f"{field.name}={text}: {problem}")
        self._check()

    def _check(self) -> None:
        """Rules that tie fields together; each class adds its own and calls its parent's."""

    def with_absolute_paths(self) -> Self:
        """Returns the same settings, with paths that mean the same in every working directory."""
        paths = {
            field.name: _each(_absolute, getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.metadata["path"] and getattr(self, field.name)
        }
        return dataclasses.replace(self, **paths)

    def part(self, config_class: type[_ConfigT]) -> _ConfigT:
        """Returns the settings of a class that this one has all fields of, as that class."""
        names = [field.name for field in dataclasses.fields(config_class)]
        return config_class(**{name: getattr(self, name) for name in names})

    @classmethod
    def given(
        cls, settings: Config | None, keywords: Mapping[str, Any], others: Iterable[str] = ()
    ) -> tuple[Self, dict[str, Any]]:
        """Returns settings that an object was given, whole or as keywords, and other keywords.

        Args:
            settings: This class, or one that has all of its fields; None: as keywords.
            keywords: The keywords.
            others: Names that are no settings, beside `name`, `trainable` and `dtype` of Keras.

        Raises:
            TypeError: For a keyword that is neither, with the nearest setting, and for settings
                that are given in both ways.
        """
        others = {*others, "name", "trainable", "dtype"}
        rest = {name: value for name, value in keywords.items() if name in others}
        fields = {name: value for name, value in keywords.items() if name not in others}
        if settings is None:
            return cls(**fields), rest
        if fields:
            raise TypeError(f"settings are given whole or as keywords. Received: {[*fields]}")
        return settings.part(cls), rest
