"""The JSON file that describes a folder of images and masks; docs/data.md has the format."""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from auto_deeplab_tf.data.dataset import IGNORE_LABEL, Dataset, packed_color, voc_colors
from auto_deeplab_tf.errors import MissingFileError, UserError
from auto_deeplab_tf.untrusted import read_json, shown

CONFIG_FILE = "dataset.json"
_EXAMPLE = '{"classes": ["background", "cell"]}'
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CLASS_KEYS = ("name", "ids", "color", "mask_colors")


@dataclasses.dataclass(frozen=True)
class FolderClass:
    """One class.

    Attributes:
        name: its name.
        color: the colour that it is drawn in.
        label_ids: what the masks hold for it: ids, or packed colours.
    """

    name: str
    color: tuple[int, int, int]
    label_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """What the JSON file says. Its keys are the fields but for `path` and `content`.

    Raises:
        ValueError: names the file, the key, the value and the rule.
    """

    path: Path
    content: Mapping[str, Any]
    classes: tuple[FolderClass, ...]
    masks: str = "ids"
    ignore: tuple[int, ...] = ()
    images_dir: str = "images"
    masks_dir: str = "masks"
    mask_suffix: str = ""
    val_fraction: float | None = None
    split_seed: int = 0
    group: str | None = None
    frames_per_block: int | None = None
    channels: int | None = None
    bits: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    default_val_fraction = 0.1

    @classmethod
    def load(cls, path: Path) -> "FolderConfig":
        """Reads and checks the file."""
        if not path.is_file():
            raise MissingFileError(
                f"{path}: no such file; dataset=folder needs a JSON file with the class names, "
                f"such as {_EXAMPLE}"
            )
        try:
            content = read_json(path)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        return cls._checked(path, content)

    @classmethod
    def _checked(cls, path: Path, content: Any) -> "FolderConfig":
        check = _Checker(path)
        fields = [field.name for field in dataclasses.fields(cls)][2:]
        check.keys("the file", content, fields)
        values = dict(content)
        masks = check.choice("masks", values.get("masks", "ids"), ("ids", "colors"))
        values["classes"] = check.classes(values.get("classes"), masks)
        ignore = check.array("ignore", values.get("ignore", [255] if masks == "ids" else []))
        values["ignore"] = tuple(check.label_id("ignore", item, masks) for item in ignore)
        for key in ("images_dir", "masks_dir"):
            check.folder(key, values.get(key, ""))
        suffix = values.get("mask_suffix", "")
        check.rule(isinstance(suffix, str), "mask_suffix", suffix, "what mask names end in")
        check.number(values, "val_fraction", float, 0.0, 0.9)
        check.number(values, "split_seed", int, 0, 2**63)
        check.number(values, "frames_per_block", int, 1, 10**9)
        for key, allowed in (("channels", (1, 3, 4)), ("bits", (8, 16))):
            if key in values:
                check.choice(key, values[key], allowed)
        for key in ("mean", "std"):
            values[key] = tuple(check.statistics(key, values.get(key, []), values.get("channels")))
        check.rule(
            len(values["mean"]) == len(values["std"]), "std", list(values["std"]),
            "as many numbers as mean",
        )  # fmt: skip
        if "group" in values:
            check.regex("group", values["group"])
        config = cls(path=path, content=content, **values)
        check.label_ids_once(config)
        if "ignore" not in content:  # 255 by default, but a class may have it
            owned = {label_id for entry in config.classes for label_id in entry.label_ids}
            free = tuple(label_id for label_id in config.ignore if label_id not in owned)
            config = dataclasses.replace(config, ignore=free)
        return config

    @property
    def may_mean_255(self) -> bool:
        """Whether masks of 0 and 255 can mean two classes: two names, and no ids are given."""
        entries = self.content["classes"]
        plain = all(isinstance(entry, str) or "ids" not in entry for entry in entries)
        return plain and len(entries) == 2 and self.masks == "ids" and "ignore" not in self.content

    def with_255(self) -> "FolderConfig":
        """Returns the same description with 255 as the id of the second class."""
        first, second = self.classes
        second = dataclasses.replace(second, label_ids=(255,))
        return dataclasses.replace(self, classes=(first, second), ignore=())

    def description(self, channels: int, bits: int) -> Dataset:
        """Returns the description of the set, for images of so many channels and bits."""
        if self.mean and len(self.mean) != channels:
            raise UserError(
                f"{self.path}: mean must have {channels} numbers, one per channel of the images. "
                f"Received: {list(self.mean)}"
            )
        label_ids = {
            label_id: class_id
            for class_id, entry in enumerate(self.classes)
            for label_id in entry.label_ids
        }
        return Dataset(
            name="folder",
            class_names=tuple(entry.name for entry in self.classes),
            colors=tuple(entry.color for entry in self.classes),
            label_ids=label_ids | {label_id: IGNORE_LABEL for label_id in self.ignore},
            splits=(),
            mean=self.mean,
            std=self.std,
            frames_per_block=self.frames_per_block,
            channels=channels,
            image_bits=bits,
            color_labels=self.masks == "colors",
        )


class _Checker:
    """The rules of the file; each error names the file and the key."""

    def __init__(self, path: Path):
        self._path = path

    def rule(self, holds: bool, key: str, value: Any, rule: str) -> None:
        if not holds:
            raise UserError(f"{self._path}: {key} must be {rule}. Received: {shown(value)}")

    def keys(self, what: str, content: Any, known: Sequence[str]) -> None:
        self.rule(isinstance(content, dict), what, content, "a JSON object")
        for key in content:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
                raise UserError(f"{self._path}: unknown key {shown(key)}; {hint}")

    def choice(self, key: str, value: Any, allowed: Sequence[Any]) -> Any:
        known = value in allowed and type(value) is type(allowed[0])
        self.rule(known, key, value, f"one of {', '.join(map(str, allowed))}")
        return value

    def folder(self, key: str, value: Any) -> None:
        """A path of folders below the one of the set."""
        fits = isinstance(value, str) and len(value) < 256 and "\0" not in value
        path = PurePosixPath(value if fits else "")
        fits = fits and not path.is_absolute() and ".." not in path.parts
        self.rule(fits, key, value, "a folder inside that of the data set")

    def array(self, key: str, value: Any) -> list[Any]:
        self.rule(isinstance(value, list), key, value, "a list")
        return value

    def number(self, values: Mapping[str, Any], key: str, kind: type, low: Any, high: Any) -> None:
        value = values.get(key)
        if value is None and key not in values:
            return
        fits = isinstance(value, (int, kind)) and not isinstance(value, bool)
        words = "a whole number" if kind is int else "a number"
        self.rule(fits and low <= value <= high, key, value, f"{words}, {low} to {high}")

    def statistics(self, key: str, value: Any, channels: int | None) -> list[float]:
        numbers = all(isinstance(v, (int, float)) and 0 <= v <= 255 for v in self.array(key, value))
        positive = key == "mean" or all(v > 0 for v in value if numbers)
        self.rule(numbers and positive, key, value, "numbers in 0..255, one per channel")
        if value and channels:
            self.rule(len(value) == channels, key, value, f"{channels} numbers, one per channel")
        return [float(v) for v in value]

    def regex(self, key: str, value: Any) -> None:
        try:
            re.compile(value)
        except (re.error, TypeError, OverflowError, RecursionError) as error:
            rule = f'"folder" or a regular expression ({error})'
            self.rule(False, key, value, rule)

    def color(self, key: str, value: Any) -> tuple[int, int, int]:
        fits = isinstance(value, list) and len(value) == 3
        fits = fits and all(type(v) is int and 0 <= v <= 255 for v in value)
        self.rule(fits, key, value, "a colour [red, green, blue], 0..255")
        return (value[0], value[1], value[2])

    def label_id(self, key: str, value: Any, masks: str) -> int:
        if masks == "colors":
            return packed_color(self.color(key, value))
        fits = type(value) is int and 0 <= value <= 65535
        self.rule(fits, key, value, "label ids, 0 to 65535")
        return value

    def classes(self, entries: Any, masks: str) -> tuple[FolderClass, ...]:
        rule = f"a list of 2 to 255 classes (the background is one), such as {_EXAMPLE}"
        fits = isinstance(entries, list) and 2 <= len(entries) <= 255
        self.rule(fits, "classes", entries, rule)
        found = [self._class(i, entry, masks) for i, entry in enumerate(entries)]
        names = [entry.name for entry in found]
        twice = next((name for name in names if names.count(name) > 1), None)
        self.rule(twice is None, "classes", twice, "classes of different names")
        return tuple(found)

    def _class(self, index: int, entry: Any, masks: str) -> FolderClass:
        where = f"classes[{index}]"
        entry = {"name": entry} if isinstance(entry, str) else entry
        self.keys(where, entry, _CLASS_KEYS)
        name = entry.get("name")
        fits = isinstance(name, str) and bool(name.strip()) and not _CONTROL.search(name)
        self.rule(fits, f"{where}.name", name, "a name on one line")
        color = voc_colors([index + 1])[0]
        if "color" in entry:
            color = self.color(f"{where}.color", entry["color"])
        if masks == "ids":
            self.rule(
                "mask_colors" not in entry, where, entry, 'without mask_colors (masks: "ids")'
            )
            stored = self.array(f"{where}.ids", entry.get("ids", [index]))
        else:
            self.rule("ids" not in entry, where, entry, 'without ids (masks: "colors")')
            fits = "color" in entry or "mask_colors" in entry
            self.rule(fits, where, entry, 'with color or mask_colors (masks: "colors")')
            stored = self.array(f"{where}.mask_colors", entry.get("mask_colors", [list(color)]))
            if "color" not in entry and stored:
                color = self.color(f"{where}.mask_colors", stored[0])
        self.rule(bool(stored), where, entry, "with at least one id or colour")
        label_ids = tuple(self.label_id(where, item, masks) for item in stored)
        return FolderClass(name, color, label_ids)

    def label_ids_once(self, config: FolderConfig) -> None:
        owner: dict[int, str] = {}
        for entry in config.classes:
            for label_id in entry.label_ids:
                if label_id in owner:
                    rule = f"distinct: {owner[label_id]} and {entry.name} share one"
                    self.rule(False, "the ids of the classes", label_id, rule)
                owner[label_id] = entry.name
        if "ignore" in config.content:
            for label_id in config.ignore:
                if label_id in owner:
                    rule = f"distinct from the ids of {owner[label_id]}"
                    self.rule(False, "ignore", label_id, rule)
