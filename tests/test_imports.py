"""Imports run one way: a file imports only from groups before its own."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# The groups in their order; a name that ends with a dot is a folder.
GROUPS = [
    "errors",
    "remote",
    "files",
    "untrusted",
    "addresses",
    "process",
    "search_space",
    "architecture",
    "config.",
    "accounting",
    "decoding",
    "sampling",
    "predictor",
    "method",
    "nn.",
    "baselines.",
    "data.",
    "training.",
    "visualize",
    "overlay",
    "image_results",
    "tiling",
    "video",
    "segmenter",
    "served",
    "ray_cluster",
    "prediction",
    "searcher",
    "selection",
    "cli",
]
ENTRY_POINTS = {
    "auto_deeplab_tf.search",
    "auto_deeplab_tf.decode",
    "auto_deeplab_tf.select",
    "auto_deeplab_tf.train",
    "auto_deeplab_tf.evaluate",
    "auto_deeplab_tf.predict",
    "auto_deeplab_tf.summarize",
    "auto_deeplab_tf.data.check",
    "auto_deeplab_tf.data.prepare",
}
FRAMEWORKS = {"tensorflow", "tensorflow_datasets", "official", "tf_keras", "jax", "torch"}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_name(path): path
    for package in ("auto_deeplab_tf", "export")
    for path in sorted((ROOT / package).rglob("*.py"))
}
# The package's own file names the public names of all of them, lazily.
CHECKED = [name for name in FILES if name != "auto_deeplab_tf"]


def imports(module):
    """Full names of all modules that a file imports, inside its functions too."""
    tree = ast.parse(FILES[module].read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = (
                    module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
                )
                for _ in range(node.level - 1):
                    package = package.rpartition(".")[0]
                base = f"{package}.{base}" if base else package
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.add(full if full in FILES else base)
    return found


def own(module):
    return {name for name in imports(module) if name in FILES}


def group(module):
    """Position in the order; entry points and export come last."""
    if module in ENTRY_POINTS or module.partition(".")[0] == "export":
        return len(GROUPS)
    name = module.removeprefix("auto_deeplab_tf.")
    for position, entry in enumerate(GROUPS):
        if name == entry or (entry.endswith(".") and f"{name}.".startswith(entry)):
            return position
    raise AssertionError(f"{module} has no place in the order: add it to GROUPS")


@pytest.mark.parametrize("module", CHECKED)
def test_a_file_imports_from_earlier_groups_only(module):
    for imported in own(module) - {"auto_deeplab_tf"}:
        assert group(imported) <= group(module), f"{module} imports {imported}"


@pytest.mark.parametrize("module", CHECKED)
def test_entry_points_and_exports_are_imported_by_nothing_of_the_package(module):
    if module.startswith("export"):
        assert not own(module) & ENTRY_POINTS
        return
    assert not own(module) & ENTRY_POINTS
    assert not any(name.partition(".")[0] == "export" for name in imports(module))


def test_no_cycles():
    done, open_ = set(), []

    def visit(module):
        assert module not in open_, " -> ".join([*open_[open_.index(module) :], module])
        if module in done:
            return
        open_.append(module)
        for imported in own(module) - {"auto_deeplab_tf"}:
            visit(imported)
        done.add(open_.pop())

    for module in CHECKED:
        visit(module)


@pytest.mark.parametrize("module", CHECKED)
def test_frameworks_stay_where_they_belong(module):
    roots = {name.partition(".")[0] for name in imports(module)}
    name = module.removeprefix("auto_deeplab_tf.")
    # `files` imports the one file of other filesystems where a path is a URL.
    if name != "remote" and (group(module) <= GROUPS.index("config.") or name == "cli"):
        assert not roots & (FRAMEWORKS | {"keras"})
    # Fast paths of one backend live in one file, each beside its plain default; what is compiled,
    # in another.
    framework_files = ("nn.backend", "nn.execution")
    if (name == "nn" or name.startswith("nn.")) and name not in framework_files:
        assert not roots & FRAMEWORKS


def test_the_command_line_knows_only_the_options():
    # Of the files it knows where they are: flag files may be behind a URL.
    known = {f"auto_deeplab_tf{name}" for name in ("", ".config", ".errors", ".files")}
    assert own("auto_deeplab_tf.cli") <= known
    for module in CHECKED:
        if "auto_deeplab_tf.cli" in own(module):
            assert module in ENTRY_POINTS or module.startswith("export."), module


def test_every_entry_point_is_known():
    for module in CHECKED:
        statements = ast.parse(FILES[module].read_text()).body
        if any(
            isinstance(statement, ast.If) and "__main__" in ast.unparse(statement.test)
            for statement in statements
        ):
            assert module in ENTRY_POINTS or module.startswith("export."), module


@pytest.mark.parametrize("module", CHECKED)
def test_only_commands_name_flags(module):
    """Library code names a setting as Python does; the command line adds the dashes."""
    name = module.removeprefix("auto_deeplab_tf.")
    if group(module) == len(GROUPS) or name.startswith(("cli", "config.")):
        return
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, (ast.Expr, ast.Constant)):
            text = getattr(node, "value", None)
            if isinstance(node, ast.Expr) and isinstance(text, ast.Constant):
                text.value = ""  # a docstring
            elif isinstance(text, str):
                assert not re.search(r"(?<![\w-])--[a-z]\w+", text), text
