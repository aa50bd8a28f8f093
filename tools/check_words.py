"""Refuses the few words that this project once had for things that the field has words for.

    python tools/check_words.py [FILES]      default: every text file that git tracks

Run by `make check` and by pre-commit. The list is below; a word that is right in one place is
excepted there by the beginning of its path.
"""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

# Pattern, what to write instead, beginnings of the paths where it may stand.
WORDS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (r"\bgo(es)? on\b", "resumes, continues", ()),
    (r"\bnothing given\b", "default: ...", ()),
    (r"\bmend(s|ed|ing)?\b", "fix", ()),
    (r"\bdear(er|est)?\b", "expensive", ()),
    (r"\bmirror every second\b", "flip horizontally with probability 0.5", ()),
    (r"\band do nothing\b", "then exit", ()),
    (r"\bdealt?\b|\bdeals\b", "assign, distribute", ()),
    (r"\blanes?\b", "branch", ("auto_deeplab_tf/data/scenes/",)),  # of a road
    (r"\banswers? (like|as)\b", "agrees with, predicts as", ()),
    (r"\b(Origin|Demand)s?\b", "RawDataset, Tolerance", ()),
)
SUFFIXES = {".py", ".md", ".flags", ".sh", ".toml", ".yaml", ".yml", ".cff", ""}
# What was written before, or names the words to refuse them.
EXCEPTED = (
    "tools/check_words.py",
    "tests/test_project_files.py",
    "tests/fixtures/",
    "constraints.txt",
    "LICENSE",
    "CHANGELOG.md",
)


def problems(path: str, text: str) -> list[str]:
    """Lists the refused words of a file as `PATH:LINE: ...`."""
    found = []
    for pattern, instead, allowed in WORDS:
        if allowed and path.startswith(allowed):
            continue
        for match in re.finditer(pattern, text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{path}:{line}: {match[0]!r}: write {instead!r} or a plain sentence")
    return found


def main(paths: list[str]) -> int:
    """Checks the files and returns the exit code: 1 where a word was found."""
    root = pathlib.Path(__file__).resolve().parents[1]
    if not paths:
        listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True)
        if listed.returncode:
            print("not a git checkout: words are not checked", file=sys.stderr)
            return 0
        paths = listed.stdout.splitlines()
    found = []
    for path in paths:
        file = root / path
        if path.startswith(EXCEPTED) or file.suffix not in SUFFIXES or not file.is_file():
            continue
        found += problems(path, file.read_text("utf-8"))
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
