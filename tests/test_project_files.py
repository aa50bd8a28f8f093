"""The files around the code: declared packages, pins, the citation, the refused words."""

import ast
import importlib.metadata
import pathlib
import re
import sys
import tomllib

import pytest
import yaml

import tools.check_words as check_words
from auto_deeplab_tf import __version__
from tests.conftest import SLOW_FILES

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# What brings a package that is imported under another's name.
PART_OF = {"official": "tf-models-official", "tf_keras": "tf-models-official"}


def imported(folder):
    """The names of the outside packages that the files of a folder import."""
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module)
    own = {"auto_deeplab_tf", "export", "benchmarks", "tests", "tools"}
    own |= {path.stem for path in (ROOT / "tests").glob("*.py")}
    return {name.partition(".")[0] for name in found} - sys.stdlib_module_names - own


def declared(*requirements):
    return {re.match(r"[\w-]+", text)[0].lower().replace("_", "-") for text in requirements}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        # dev: JAX, for the fast paths on that backend.
        ("auto_deeplab_tf", ("references", "media", "ray", "dev")),
        ("export", ("export",)),
        ("benchmarks", ("export", "references", "openvino", "dev")),
        ("tests", ("export", "references", "media", "dev")),
    ],
)
def test_every_imported_package_is_declared(folder, extras):
    names = declared(
        *PROJECT["dependencies"], *(text for extra in extras for text in EXTRAS[extra])
    )
    by_import = importlib.metadata.packages_distributions()
    for package in imported(folder):
        providers = by_import.get(package, []) + [PART_OF.get(package, package)]
        assert declared(*providers) & names, f"{folder} imports {package}, which is not declared"


def test_every_declared_package_is_pinned():
    pins = declared(*re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.M))
    everything = [*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)]
    assert declared(*everything) <= pins


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["version"] == __version__
    assert {"message", "title", "authors"} <= set(citation)
    paper = citation["preferred-citation"]
    assert paper["authors"][0] == {"family-names": "Liu", "given-names": "Chenxi"}
    assert paper["year"] == 2019 and paper["identifiers"][0]["value"] == "arXiv:1901.02985"


def test_the_changelog_has_this_version_and_each_heading_once():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[{re.escape(__version__)}\]", text, re.M)
    for section in re.split(r"^## ", text, flags=re.M)[1:]:
        headings = re.findall(r"^### (\w+)", section, re.M)
        assert len(set(headings)) == len(headings)
        assert set(headings) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_words_are_refused_and_excepted_where_they_are_right():
    text = "The run goes on where it was.\nYou can mend it.\n"
    assert [line[:8] for line in check_words.problems("docs/a.md", text)] == ["docs/a.m"] * 2
    assert "resumes" in check_words.problems("docs/a.md", text)[0]
    assert not check_words.problems("docs/a.md", "A recommendation, amended; ongoing work.")
    assert check_words.problems("docs/a.md", "two lanes")
    assert not check_words.problems("auto_deeplab_tf/data/scenes/street.py", "two lanes")


def test_no_refused_word_is_left():
    assert check_words.main([]) == 0


def test_slow_files_that_run_first_are_there():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert [names.count(name) for name in SLOW_FILES] == [1] * len(SLOW_FILES)
