"""What the README shows works."""

import pathlib
import re

import forked

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs(tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    check = (
        "\nimport keras"
        "\nassert class_ids.shape == masks.shape"
        "\nassert set(np.unique(class_ids)) <= {0, 1}"
        "\nagain = keras.saving.load_model('model.keras')"
        "\nnp.testing.assert_array_equal(again.predict_class_ids(images), class_ids)"
        "\nfrom auto_deeplab_tf import Architecture"
        "\nassert Architecture.load('architecture.json') == architecture"
    )
    (tmp_path / "example.py").write_text(example + check)
    monkeypatch.chdir(tmp_path)
    done = forked.run(tmp_path / "example.py")
    assert done.returncode == 0, done.stderr


def test_links_and_files_exist():
    for name in ["README.md", "BUILD.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/method.md"]:
        folder = (ROOT / name).parent
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / name).read_text()):
            assert (folder / target).exists(), f"{name} links to {target}"
    for target in re.findall(r"--flagfile=(configs/\S+?)[ `]", README):
        assert (ROOT / target).exists(), target


def test_commands_have_the_flags_that_are_shown():
    from auto_deeplab_tf import cli, config

    classes = {
        "auto_deeplab_tf.search": config.SearchConfig,
        "auto_deeplab_tf.decode": config.DecodeConfig,
        "auto_deeplab_tf.select": config.SelectConfig,
        "auto_deeplab_tf.train": config.TrainConfig,
        "auto_deeplab_tf.evaluate": config.EvaluateConfig,
        "auto_deeplab_tf.predict": config.PredictConfig,
        "export.saved_model": config.SavedModelConfig,
    }
    lines = re.findall(r"python -m (\S+) +(.*)", README.replace("\\\n", " "))
    assert {name for name, _ in lines} == set(classes)
    for name, arguments in lines:
        arguments = arguments.replace("configs/", f"{ROOT}/configs/")
        cli.parse(classes[name], arguments.split())


def test_make_targets_of_build_md_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)", (ROOT / "BUILD.md").read_text() + README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
