"""A run directory: whose run it is, and its row per epoch."""

import csv
import fcntl
import io
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from auto_deeplab_tf import config as config_lib
from auto_deeplab_tf.data import records
from auto_deeplab_tf.errors import FieldError, UserError
from auto_deeplab_tf.files import AnyPath, as_path, is_partial, write_once, write_text

FLAGS_FILE = "flags.txt"
DATA_FILE = "data.json"
METRICS_FILE = "metrics.csv"
_LOCK_FILE = ".lock"


class RunDir:
    """The folder of one run.

    Making the object checks that the folder belongs to these options and writes nothing; `with`
    makes the folder, locks it and writes `flags.txt`, unless these options extend the run: then
    `write_flags` does. A folder that is a URL is not locked.

    Args:
        path: The folder.
        options: The run's config.
        resume: False refuses a folder that already holds a run.
        setting: Name of the setting that names the folder.
        writes: Whether this process is the one that locks and writes the folder; one that only
            reads it, as the other workers of a run do, finds it in any state.

    Attributes:
        before: The config with which the run was last started; None where it begins now.

    Raises:
        UserError: If the folder belongs to other options, holds a run and `resume` is False, or
            holds something else; on entering, if another process uses it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        options: config_lib.Config,
        resume: bool = True,
        setting: str = "run_dir",
        writes: bool = True,
    ):
        self.writes = writes
        self.path = as_path(path)
        self._setting = setting
        self._options = options
        self._lock: Any = None
        self.before: config_lib.Config | None = None
        flags_file = self.path / FLAGS_FILE
        if self.path.exists() and not self.path.is_dir():
            raise FieldError(f"{setting} must be a folder. Received: {self.path}, a file")
        if flags_file.exists():
            if not resume and writes:
                raise UserError(
                    f"resume=false: {self.path} already holds a run; name another {setting}."
                )
            self.before = config_lib.from_flags_text(type(options), flags_file.read_text("utf-8"))
            conflicts = config_lib.resume_conflicts(self.before, options)
            if conflicts:
                raise UserError(
                    f"{self.path} belongs to a run with other options: {'; '.join(conflicts)}. "
                    f"Name another {setting}, or give the options of that run."
                )
        elif writes and self.path.exists() and not all(map(_is_left_over, self.path.iterdir())):
            raise UserError(
                f"{self.path} is not empty and holds no run (no {FLAGS_FILE}): "
                f"name an empty or a new folder as {setting}."
            )

    def __truediv__(self, name: str) -> AnyPath:
        return self.path / name

    def __enter__(self) -> "RunDir":
        if not self.writes:
            return self
        self.path.mkdir(parents=True, exist_ok=True)
        if not isinstance(self.path, Path):
            print(
                f"note: {self.path} is not locked, since it is no folder of this machine: see that "
                "no other process uses it.",
                file=sys.stderr,
            )
            return self._begin()
        self._lock = open(self.path / _LOCK_FILE, "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise UserError(
                f"{self.path} is in use by another process: wait for it, or name another "
                f"{self._setting}."
            ) from None
        return self._begin()

    def _begin(self) -> "RunDir":
        changes = self.before and config_lib.rounding_changes(self.before, self._options)
        if changes:
            print(
                f"warning: {'; '.join(changes)}: sums are taken in another order from here on, so "
                "results differ in their last digits from those of an unchanged run, and a short "
                "search may decode another architecture.",
                file=sys.stderr,
            )
        if isinstance(self.path, Path):  # and so locked: nobody is writing these
            for path in self.path.rglob(".*.partial"):
                if is_partial(path.name):
                    path.unlink()
        if self.before is None or not config_lib.has_grown(self.before, self._options):
            self.write_flags()
        return self

    def write_flags(self) -> None:
        """Writes `flags.txt`; called once nothing refuses to extend the run any more.

        The shorter run's command is refused from here on.
        """
        if self.writes:
            text = config_lib.flags_text(self._options.with_absolute_paths())
            write_text(self / FLAGS_FILE, text)

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def record(self, name: str, value: Any) -> None:
        """Writes a fact of the run as JSON; refuses to resume a run that had another.

        Args:
            name: the file.
            value: what JSON can hold.
        """
        if self.writes:
            write_once(
                self / name,
                value,
                f"{self / name} does not hold what this run would write into it: the data have "
                "changed since the run began. Name another run_dir, or bring the old data back.",
            )

    def record_data(self, fingerprints: Mapping[str, str]) -> None:
        """Records the fingerprints of the data sets; refuses to resume with other data.

        Another version of the records has other fingerprints for the same data. A run that such a
        version began resumes with a warning.
        """
        path = self / DATA_FILE
        if not self.writes:
            return
        if path.exists() and json.loads(path.read_text("utf-8")).get("records") != records.VERSION:
            print(
                f"warning: {path} is of another version, which described data differently: this "
                "run resumes without checking that its data are unchanged.",
                file=sys.stderr,
            )
            path.unlink()
        self.record(DATA_FILE, {"records": records.VERSION, **fingerprints})


def _is_left_over(path: AnyPath) -> bool:
    """Tells whether a file is all that a run left which was killed before it wrote its flags."""
    return path.name == _LOCK_FILE or is_partial(path.name)


class MetricsFile:
    """A CSV file with a row per epoch. What a run repeats after a restart replaces what it wrote.

    Only what the seed determines belongs in it: two runs of one command write the same bytes.

    Args:
        path: The file; the columns are those of its first row.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = as_path(path)

    def rows(self) -> list[dict[str, str]]:
        """Returns the rows as texts by column; none where there is no file."""
        if not self.path.exists():
            return []
        return list(csv.DictReader(io.StringIO(self.path.read_text("utf-8"), newline="")))

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds a row for `row["epoch"]`; rows of that epoch or later are dropped."""
        kept = [old for old in self.rows() if int(old["epoch"]) < int(row["epoch"])]
        columns = list(dict.fromkeys([*(kept[0] if kept else ()), *row]))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, {name: _shortest(value) for name, value in row.items()}])
        write_text(self.path, text.getvalue())


def _shortest(value: Any) -> Any:
    """A float in the shortest text that reads back as the same number."""
    return repr(float(value)) if isinstance(value, float) else value
