"""Files as an attacker or a bad disk leaves them: Hypothesis strategies, alike at each run."""

import copy
import io
import json
import zipfile

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from auto_deeplab_tf.errors import MissingFileError, UserError


class Raw(str):
    """A text that stands in the JSON as it is."""


class Twice(dict):
    """An object whose first key comes twice."""


def packed(members, compression=zipfile.ZIP_STORED):
    """An archive of (name or ZipInfo, content)."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def deep(levels):
    """Lists in lists."""
    value = []
    for _ in range(levels):
        value = [value]
    return value


NASTY = [
    None, True, False, 0, 1, 2, -1, 1.5, -0.0, 1e308, 255, 256, 2**31, 2**63, 10**30, -(10**30),
    float("nan"), float("inf"), Raw("1e999"), Raw("1" * 5000), Raw("tru"), Raw("[" * 2000),
    "", "x", "x" * 5000, "a\nb\x1b[2J", "\0", "\ud800", "../../etc/passwd", "/etc/passwd", "none",
    [], {}, [0], [None], [[]], {"x": 1}, deep(30), deep(300), [1] * 3000, ["x"] * 3,
]  # fmt: skip


def dump(value):
    """Writes JSON, and what only looks like it."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        pairs = list(value.items())
        if isinstance(value, Twice):
            pairs += pairs[:1]
        return "{" + ", ".join(f"{json.dumps(key)}: {dump(item)}" for key, item in pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dump, value)) + "]"
    return json.dumps(value)


def places(value):
    """All (container, key) in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        yield value, key
        if isinstance(item, (dict, list)):
            yield from places(item)


@st.composite
def changed_json(draw, content, values=NASTY):
    """The JSON text of a content of which one to three values were removed, doubled or replaced."""
    holder = [copy.deepcopy(content)]
    for _ in range(draw(st.integers(1, 3))):
        container, key = draw(st.sampled_from(list(places(holder))))
        item = container[key]
        kind = draw(st.sampled_from(["replace"] * 4 + ["remove", "double", "near", "other"]))
        if kind == "replace":
            container[key] = copy.deepcopy(draw(st.sampled_from(values)))
        elif kind == "remove" and container is not holder:
            del container[key]
        elif kind == "double" and isinstance(item, dict) and item:
            container[key] = Twice(item)
        elif kind == "double" and isinstance(item, list):
            container[key] = item * draw(st.sampled_from([2, 100]))
        elif kind == "near" and isinstance(item, (int, float)):
            container[key] = item + draw(st.sampled_from([-1, 1, 0.5, 1000, 10**7]))
        elif kind == "other":
            other, at = draw(st.sampled_from(list(places(holder))))
            container[key] = copy.deepcopy(other[at])
    return dump(holder[0]).encode("utf-8", "surrogatepass")


@st.composite
def changed_bytes(draw, content):
    """Bytes of which some were cut, flipped, removed, repeated or replaced."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        end = at + draw(st.sampled_from([1, 4, 8, 64, 10**9]))
        kind = draw(st.sampled_from(["flip", "cut", "remove", "repeat", "fill", "insert"]))
        if kind == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del content[at:]
        elif kind == "remove":
            del content[at:end]
        elif kind == "repeat":
            content[at:at] = content[at:end]
        elif kind == "fill":
            part = content[at:end]
            content[at:end] = draw(st.sampled_from([b"\0", b"\xff"])) * len(part)
        else:
            content[at:at] = draw(st.binary(max_size=16))
    return bytes(content)


def hold(count, strategy, check):
    """Calls `check` with so many values of a strategy, the same at each run."""

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        # A failing example is reported as it was found: making it smaller can take minutes.
        phases=[Phase.generate],
    )
    @given(strategy)
    def run(value):
        check(value)

    run()


def refused(function, *arguments):
    """Calls a function; returns (its result, None), or (None, the one clear error)."""
    try:
        return function(*arguments), None
    except (UserError, MissingFileError) as error:
        assert len(str(error)) < 2500, str(error)
        return None, error
