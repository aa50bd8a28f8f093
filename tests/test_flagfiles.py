"""Every file in configs/ is accepted, and says what it runs on, how long, and what to expect."""

import pathlib

import pytest

from auto_deeplab_tf import cli, config
from auto_deeplab_tf.training import schedules
from benchmarks.search_quality import methods, trainings

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "configs").glob("*.flags"))
SETS = ("camvid", "cityscapes", "voc2012", "coco", "ade20k", "folder")


@pytest.fixture(autouse=True)
def in_another_folder(monkeypatch, tmp_path):
    """Flag files find what they include from any working directory."""
    monkeypatch.chdir(tmp_path)


def named(stem):
    return next(path for path in FILES if path.stem == stem)


def read(path):
    if "search" in path.stem:
        return cli.parse(config.SearchConfig, [f"--flagfile={path}", "--run_dir=a"])
    flags = [f"--flagfile={path}", "--run_dir=a", "--architecture=auto_deeplab"]
    return cli.parse(config.TrainConfig, flags)


def test_a_file_per_use():
    wanted = {"demo_search", "demo_train", "camvid_train"}
    wanted |= {f"{name}_search" for name in SETS}
    wanted |= {f"{name}_train_{size}" for name in (*SETS, "cityscapes_coarse") for size in "sml"}
    assert {path.stem for path in FILES} >= wanted
    for path in FILES:
        assert read(path).dataset == path.stem.partition("_search")[0].partition("_train")[
            0
        ].replace("demo", "scenes")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_flags_are_accepted_and_headed_by_their_contract(path):
    read(path)
    text = path.read_text()
    header = text[: text.index("\n\n-")]
    assert all(line.startswith("#") for line in header.splitlines())
    for word in ("# Runs on ", "# Takes ", "# Expect "):
        assert header.count(word) == 1
    assert f"--flagfile=configs/{path.name}" in header
    # The command of the header is whole: it can be parsed too.
    words = header.replace("\\\n#", " ").split(f"--flagfile=configs/{path.name}")[1].split("\n")[0]
    config_class = config.SearchConfig if "search" in path.stem else config.TrainConfig
    cli.parse(config_class, [f"--flagfile={path}", *words.split()])


def test_camvid_has_the_settings_whose_worth_was_measured():
    steps = ["--run_dir=a", "--architecture=auto_deeplab", "--steps=1800", "--steps_per_epoch=225"]
    measured = cli.parse(
        config.TrainConfig, [f"--flagfile={trainings.RECIPE}", *steps, "--filter_multiplier=17"]
    )
    assert not config.resume_conflicts(measured, read(named("camvid_train")))
    searched = [f"--flagfile={methods.SEARCH}", "--run_dir=a", *methods.OF_LEVERS]
    measured = cli.parse(config.SearchConfig, searched)
    assert not config.resume_conflicts(measured, read(named("camvid_search")))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_short_search_can_decide_something(path):
    """Adam moves a logit by at most its learning rate per step."""
    options = read(path)
    if isinstance(options, config.SearchConfig) and options.steps_per_epoch:
        steps = (options.epochs - options.arch_start_epoch) * options.steps_per_epoch
        rate = options.arch_learning_rate
        assert steps * (schedules.arch_learning_rate(steps) if rate == "auto" else rate) >= 8


def test_the_recipe_of_the_paper():
    path = named("cityscapes_search")
    options = read(path)
    defaults = config.SearchConfig(run_dir="a")
    # The paper's setting is also what the defaults are.
    for name in (
        *("num_layers", "num_blocks", "filter_multiplier", "crop_size", "batch_size", "epochs"),
        *("arch_start_epoch", "learning_rate", "min_learning_rate", "momentum", "weight_decay"),
        *("arch_weight_decay", "steps_per_epoch", "class_weights"),
    ):
        assert getattr(options, name) == getattr(defaults, name), name
    assert (options.num_layers, options.num_blocks, options.filter_multiplier) == (12, 5, 8)
    assert (options.crop_size, options.batch_size) == ((321, 321), 2)
    assert (options.epochs, options.arch_start_epoch) == (40, 20)
    assert (options.learning_rate, options.min_learning_rate) == (0.025, 0.001)
    assert (options.momentum, options.weight_decay) == (0.9, 3e-4)
    assert (options.arch_learning_rate, options.arch_weight_decay) == (0.003, 1e-3)
    assert defaults.arch_learning_rate == "auto" and schedules.arch_learning_rate(14_880) == 0.003
    assert options.image_size == (512, 1024)


@pytest.mark.parametrize("name", [*SETS, "cityscapes_coarse"])
@pytest.mark.parametrize(("size", "multiplier"), [("s", 20), ("m", 32), ("l", 48)])
def test_the_three_sizes_of_the_paper_differ_in_the_filter_multiplier_only(name, size, multiplier):
    options = read(named(f"{name}_train_{size}"))
    assert options.filter_multiplier == multiplier
    conflicts = config.resume_conflicts(read(named(f"{name}_train_s")), options)
    assert len(conflicts) == (0 if size == "s" else 1)


def test_the_crops_and_steps_of_the_paper():
    crops = {"cityscapes": 769, "voc2012": 513, "coco": 513, "ade20k": 513}
    steps = {"cityscapes": 1.5e6, "voc2012": 1.5e6, "coco": 4e6, "ade20k": 4e6}
    for name, crop in crops.items():
        options = read(named(f"{name}_train_s"))
        assert options.crop_size == (crop, crop) and options.steps == steps[name]
        assert options.max_image_side == (513 if name == "ade20k" else None)
        assert (options.learning_rate, options.power, options.batch_size) == (0.05, 0.9, 16)
