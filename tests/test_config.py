"""Every option survives the way through text, and every rule is told by the name of its flag."""

import dataclasses
import os
import random

import numpy as np
import pytest

from auto_deeplab_tf import config, errors

CONFIG_CLASSES = [
    item
    for item in vars(config).values()
    if isinstance(item, type) and issubclass(item, config.Config) and item is not config.Config
]
# What a class needs before it can be built at all.
NEEDED = {
    config.DecodeConfig: {"run_dir": "runs/a"},
    config.TrainConfig: {"architecture": "auto_deeplab"},
    config.SelectConfig: {"num_random": 1},
    config.SummarizeConfig: {"architecture": "auto_deeplab"},
    config.NetworkChoiceConfig: {"architecture": "auto_deeplab"},
    config.StandInConfig: {"model_base_path": "served"},
}


def needed(config_class):
    values = dict(NEEDED.get(config_class, {}))
    for field in dataclasses.fields(config_class):
        if config.is_required(field):
            kind = config.kinds(config_class)[field.name]
            values[field.name] = (65, 97) if kind.form == "size" else f"some {field.name}"
    return values


def random_value(field, kind, rng):
    """A value that keeps the rules of the field, other than its default where there is one."""
    rules = field.metadata
    if kind.element is bool:
        return not field.default
    if rules["choices"]:
        return rng.choice(rules["choices"])
    if kind.element is str:
        return rng.choice(["a=b", "with space", "#x", "runs/é", "--odd"])
    low = rules["minimum"] if rules["minimum"] is not None else (rules["above"] or 0)
    high = rules["maximum"] or rules["below"] or low + 1000

    def one():
        if kind.element is int:
            return rng.randint(int(low) + 1, int(high))
        return low + (high - low) * rng.uniform(1e-9, 0.99)

    if kind.form == "size":
        return one(), one()
    return tuple(one() for _ in range(rng.randint(1, 3))) if kind.form == "list" else one()


@pytest.mark.parametrize("config_class", CONFIG_CLASSES)
def test_text_of_random_options_reads_back_equal(config_class):
    rng = random.Random(7)
    kinds = config.kinds(config_class)
    tried = set()
    for _ in range(60):
        values = needed(config_class)
        for field in rng.choices(dataclasses.fields(config_class), k=3):
            values[field.name] = random_value(field, kinds[field.name], rng)
        try:
            options = config_class(**values)
        except ValueError:
            continue  # a rule that ties two fields together
        tried.update(values)
        text = config.flags_text(options)
        assert config.from_flags_text(config_class, text) == options
        assert text.count("\n") == len(kinds)
    assert len(tried) >= len(kinds) // 2


@pytest.mark.parametrize("config_class", CONFIG_CLASSES)
def test_defaults_keep_their_own_rules(config_class):
    options = config_class(**needed(config_class))
    for field in dataclasses.fields(config_class):
        if not config.is_required(field) and field.name not in needed(config_class):
            assert getattr(options, field.name) == field.default


@pytest.mark.parametrize("config_class", CONFIG_CLASSES)
def test_every_bound_is_held(config_class):
    kinds = config.kinds(config_class)
    for field in dataclasses.fields(config_class):
        rules, kind = field.metadata, kinds[field.name]
        outside = []
        if rules["minimum"] is not None:
            outside.append(rules["minimum"] - 1)
        if rules["maximum"] is not None:
            outside.append(rules["maximum"] + 1)
        outside += [rules[key] for key in ("above", "below") if rules[key] is not None]
        if kind.element is float:
            outside.append(float("nan"))
            outside = [float(value) for value in outside]
        if rules["choices"]:
            outside.append("another")
        for value in outside:
            given = {"one": value, "size": (97, value), "list": (value,)}[kind.form]
            with pytest.raises(ValueError, match=f"^{field.name}="):
                config_class(**(needed(config_class) | {field.name: given}))


@pytest.mark.parametrize(
    ("config_class", "values", "message"),
    [
        (
            config.SearchConfig,
            {"epochs": 4, "arch_start_epoch": 5},
            "arch_start_epoch=5 must not be greater than epochs=4: alpha and beta would never ",
        ),
        *(
            (
                config.SearchConfig,
                {"formulation": "plain"} | other,
                "formulation=plain needs distribution_strategy=one_device and dtype_policy=float32",
            )
            for other in (
                {"distribution_strategy": "mirrored"},
                {"dtype_policy": "mixed_bfloat16"},
            )
        ),
        (
            config.SearchConfig,
            {"jit_compile": "true", "distribution_strategy": "mirrored"},
            "^jit_compile=true needs distribution_strategy=one_device: inside a function that XLA "
            "compiles, replicas cannot share the statistics of a batch$",
        ),
        (
            config.TrainConfig,
            {"architecture": "a", "tpu": "grpc://10.0.0.2:8470"},
            "^tpu=grpc://10.0.0.2:8470 needs distribution_strategy=tpu. Received: one_device$",
        ),
        (
            config.SearchConfig,
            {"learning_rate": 1e-4},
            "min_learning_rate=0.001 must not be greater than learning_rate=0.0001",
        ),
        (
            config.SearchConfig,
            {"filter_multiplier": 8, "partial_channels": 3},
            "partial_channels=3 must divide filter_multiplier=8",
        ),
        (config.SearchConfig, {"sampled_paths": 1}, "sampled_paths=1 must be 0 .*or at least 2"),
        (
            config.SearchConfig,
            {"min_path_temperature": 11.0},
            "min_path_temperature=11.0 must not be greater than path_temperature=10.0",
        ),
        (
            config.SearchConfig,
            {"scale_min": 2.0, "scale_max": 1.0},
            "scale_min=2.0 must not be greater than scale_max=1.0",
        ),
        (config.SearchConfig, {"run_dir": ""}, "run_dir is required"),
        (config.SearchConfig, {"crop_size": (97, 31)}, "crop_size=97x31: must be at least 32"),
        (config.SearchConfig, {"epochs": 2.0}, "epochs takes N. Received: 2.0"),
        (config.SearchConfig, {"epochs": True}, "epochs takes N. Received: True"),
        (config.SearchConfig, {"resume": "False"}, "resume takes BOOL. Received: 'False'"),
        (config.SearchConfig, {"crop_size": (97,)}, r"crop_size takes HxW. Received: \(97,\)"),
        (config.SearchConfig, {"data_dir": "a\nb"}, "data_dir=.*without line breaks"),
        (config.SearchConfig, {"data_dir": " a"}, "data_dir=.*without spaces at its ends"),
        (config.TrainConfig, {"network": "other"}, "exactly one of architecture and network"),
        (config.EvaluateConfig, {"scales": ()}, "scales=: needs at least one value"),
    ],
)
def test_a_broken_rule_names_the_setting(config_class, values, message):
    with pytest.raises(ValueError, match=message):
        config_class(**(needed(config_class) | values))


def test_sizes_and_lists_from_text():
    kinds = config.kinds(config.EvaluateConfig)
    assert config.parse_value(kinds["image_size"], "97x480") == (97, 480)
    assert config.parse_value(kinds["image_size"], "65") == (65, 65)
    assert config.parse_value(kinds["image_size"], "") is None
    assert config.parse_value(kinds["scales"], "0.5, 1,1.75") == (0.5, 1.0, 1.75)
    assert config.parse_value(config.kinds(config.DecodeConfig)["max_params"], "3e6") == 3_000_000
    for text in ("97*480", "97x", "x97", "-97x480", "97.5x480", "97x480x3"):
        with pytest.raises(ValueError, match="expected HEIGHTxWIDTH"):
            config.parse_value(kinds["image_size"], text)
    with pytest.raises(ValueError, match="expected a number"):
        config.parse_value(kinds["scales"], "0.5,,1")
    with pytest.raises(ValueError, match="expected a whole number"):
        config.parse_value(kinds["overlays"], "1.5")


def test_flag_text_of_another_command_is_refused():
    text = config.flags_text(config.SearchConfig(run_dir="runs/a"))
    with pytest.raises(ValueError, match="no flag of EvaluateConfig: '--intra_op_threads=0'"):
        config.from_flags_text(config.EvaluateConfig, text)
    with pytest.raises(ValueError, match=r"epochs=x: expected a whole number \(line 2\)"):
        config.from_flags_text(config.SearchConfig, "# a run\n--epochs=x\n")


def test_a_run_goes_on_only_with_more_epochs_and_other_devices():
    before = config.SearchConfig(run_dir="runs/a", epochs=30)

    def conflicts(**changes):
        return config.resume_conflicts(before, dataclasses.replace(before, **changes))

    assert conflicts() == ()
    assert conflicts(epochs=31, step_mode="traced", progress="none", run_dir="moved") == ()
    assert conflicts(epochs=29) == ("epochs=29 (the run has '30')",)
    assert conflicts(seed=1, crop_size=(97, 97)) == (
        "crop_size=97x97 (the run has '321x321')",
        "seed=1 (the run has '0')",
    )
    rounding = {"step_mode": "traced", "remat": "true", "jit_compile": "true"}
    assert conflicts(**rounding) == ()
    changed = dataclasses.replace(before, **rounding, epochs=31, progress="none")
    assert config.rounding_changes(before, changed) == tuple(
        f"{name}={value} (the run has 'auto')" for name, value in rounding.items()
    )
    assert config.rounding_changes(before, dataclasses.replace(before, epochs=31)) == ()
    train = config.TrainConfig(run_dir="runs/a", architecture="auto_deeplab")
    assert config.resume_conflicts(train, before) == (
        "TrainConfig cannot be resumed as SearchConfig",
    )


def test_a_run_resumes_under_other_names_of_its_files(tmp_path, monkeypatch):
    def train(**paths):
        return config.TrainConfig(run_dir="a", **{"architecture": "auto_deeplab", **paths})

    model, copy, other = (tmp_path / name for name in ("m.keras", "copy.keras", "other.keras"))
    model.write_bytes(b"weights")
    copy.write_bytes(b"weights")
    other.write_bytes(b"WEIGHTS")
    for path in (model, copy, other):  # of one size and time
        os.utime(path, (1, 1))
    monkeypatch.chdir(tmp_path)
    before = train(init_from="m.keras", data_dir="no/such/folder").with_absolute_paths()
    # What is there is written so that it means the same everywhere; a name stays a name.
    assert before.init_from == str(model)
    assert (before.architecture, before.data_dir) == ("auto_deeplab", "no/such/folder")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    (tmp_path / "link").symlink_to(model)
    for same in ("../m.keras", model, "../copy.keras", "../link"):
        assert config.resume_conflicts(before, train(init_from=same)) == ()
    for changed in ("../other.keras", "m.keras"):
        (text,) = config.resume_conflicts(before, train(init_from=changed))
        assert text == f"init_from={changed} (the run has {str(model)!r})"
    later = config.resume_conflicts(before, train(init_from=copy, steps=3))
    assert later == ("steps=3 (the run has '1500000')",)
    assert config.resume_conflicts(before, train()) == (f"init_from= (the run has {str(model)!r})",)


def test_a_selection_may_drop_the_inherited_scores_that_a_search_cannot_give():
    before = config.SelectConfig(output_dir="a", train_flagfile="b", search_runs=("c",))
    after = dataclasses.replace(before, inherited_batches=0, output_dir="moved")
    assert config.resume_conflicts(before, after) == ()


EXPORT = {"model": "a", "output": "b", "input_size": (33, 33)}


@pytest.mark.parametrize(
    ("config_class", "values", "message", "names"),
    [
        (
            config.DecodeConfig,
            {"logits": "a.npz"},
            "logits needs output: the architecture file to write",
            "logits output",
        ),
        (
            config.DecodeConfig,
            {"run_dir": "a", "max_params": 3},
            "max_multi_adds and max_params need filter_multiplier",
            "max_multi_adds max_params filter_multiplier",
        ),
        *(
            (config.DecodeConfig, given, "exactly one of run_dir and logits is needed", names)
            for given, names in (
                ({}, "run_dir logits"),
                ({"run_dir": "a", "logits": "b"}, "run_dir logits"),
            )
        ),
        (
            config.TrainConfig,
            {"run_dir": "a", "architecture": "b", "network": "c"},
            "exactly one of architecture and network is needed",
            "architecture network",
        ),
        (
            config.DecodeConfig,
            {"run_dir": "a", "output": "b.JSON"},
            "output=b.JSON: expected a name that ends in .json",
            "output",
        ),
        (
            config.TFLiteConfig,
            EXPORT | {"precision": "int8"},
            "precision=int8 needs calibration_dir: a folder of typical images",
            "calibration_dir",
        ),
        (
            config.TFLiteConfig,
            EXPORT | {"calibration_dir": "c"},
            "calibration_dir is for precision=int8 only. Received: float32",
            "calibration_dir",
        ),
    ],
)
def test_a_rule_of_several_settings_names_them(config_class, values, message, names):
    with pytest.raises(errors.FieldError) as caught:
        config_class(**values)
    assert str(caught.value) == message
    assert caught.value.names == tuple(names.split())


def test_settings_that_belong_together_are_accepted():
    config.DecodeConfig(logits="a.npz", output="b.json")
    config.DecodeConfig(run_dir="a", max_params=3, filter_multiplier=(8,))
    config.TFLiteConfig(**EXPORT, precision="int8", calibration_dir="c")
    config.SearchConfig(run_dir="a", formulation="plain", jit_compile="true")
    other = {"dtype_policy": "mixed_float16", "distribution_strategy": "mirrored"}
    config.SearchConfig(run_dir="a", jit_compile="auto", **other)


def test_options_cannot_be_changed():
    options = config.SearchConfig(run_dir="runs/a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.epochs = 3
    with pytest.raises(TypeError, match="epoch"):
        config.SearchConfig(run_dir="runs/a", epoch=3)


def test_an_unknown_keyword_is_refused_with_the_nearest():
    with pytest.raises(
        TypeError, match="SupernetConfig has no setting 'num_layer'; .*'num_layers'"
    ):
        config.SupernetConfig(num_layer=3)
    with pytest.raises(TypeError, match="no setting 'zzz'; it has num_layers, num_blocks, "):
        config.SupernetConfig(zzz=3)


def test_a_part_holds_the_values_of_the_whole():
    options = config.SearchConfig(run_dir="runs/a", num_layers=3, sampled_paths=2)
    part = options.part(config.SupernetConfig)
    assert part == config.SupernetConfig(num_layers=3, sampled_paths=2)
    assert options.fast_modes == part.fast_modes == {"sampled_paths": 2}
    assert config.SupernetConfig().fast_modes == {}


def test_a_retired_flag_is_read_at_its_old_default_only():
    text = config.flags_text(config.SearchConfig(run_dir="runs/a"))
    for name, default in config.RETIRED.items():
        assert name not in config.kinds(config.SearchConfig)
        read = config.from_flags_text(config.SearchConfig, f"{text}--{name}={default}\n")
        assert read == config.SearchConfig(run_dir="runs/a")
        with pytest.raises(ValueError, match=f"^{name}=other: this version has no {name}"):
            config.from_flags_text(config.SearchConfig, f"{text}--{name}=other\n")


def test_a_flag_is_a_field_with_its_rules():
    rules = {"choices": ("a", "b"), "minimum": 1, "maximum": 2, "above": 3, "below": 4}
    rules |= {"group": "data", "on_resume": "grow", "metavar": "FILE", "path": True}
    declared = config.flag("a", "a word", **rules)
    assert (declared.default, dict(declared.metadata)) == ("a", {"help": "a word"} | rules)
    plain = config.flag(help="a word").metadata
    assert (plain["group"], plain["on_resume"], plain["path"]) == ("run", "same", False)
    assert config.is_required(config.flag(help="a word"))
    for on_resume in ("same", "grow", "free", "rounding"):
        assert config.flag(1, "a word", on_resume=on_resume).metadata["on_resume"] == on_resume
    # Declared again for a command: another default, and what else differs.
    again = config.changed(config.DataConfig, "batch_size", 7, help="images")
    before = next(f for f in dataclasses.fields(config.DataConfig) if f.name == "batch_size")
    assert (again.default, dict(again.metadata)) == (7, {**before.metadata, "help": "images"})


def test_a_flag_needs_its_line_of_help():
    with pytest.raises(ValueError, match="one line of text"):
        config.flag(3)
    with pytest.raises(ValueError, match="one line of text"):
        config.flag(3, "two\nlines")
    with pytest.raises(ValueError, match="on_resume is same, grow, free or rounding"):
        config.flag(3, "a number", on_resume="never")


def test_settings_are_given_whole_or_as_keywords():
    keywords = {"filter_multiplier": np.int64(3), "drop_path_keep": np.float32(0.5), "name": "n"}
    found, others = config.NetworkConfig.given(None, keywords | {"seed": 1}, ["seed"])
    assert found == config.NetworkConfig(filter_multiplier=3, drop_path_keep=0.5)
    assert type(found.filter_multiplier) is int and type(found.drop_path_keep) is float
    assert others == {"name": "n", "seed": 1}
    # A class that has all fields may stand for its part.
    whole = config.SegmenterConfig(filter_multiplier=3, drop_path_keep=0.5, label_smoothing=0.1)
    assert config.NetworkConfig.given(whole, {"name": "n"}) == (found, {"name": "n"})
    with pytest.raises(TypeError, match=r"whole or as keywords. Received: \['label_smoothing'\]"):
        config.SegmenterConfig.given(whole, {"label_smoothing": 0.2})
    with pytest.raises(TypeError, match="no setting 'seed'"):
        config.NetworkConfig.given(None, {"seed": 1})


def test_auto_is_a_value_where_a_field_allows_it():
    kinds = config.kinds(config.SearchConfig)
    kind = kinds["arch_learning_rate"]
    assert kind.metavar == "X|auto"
    for text, value in (("auto", "auto"), ("0.25", 0.25)):
        assert config.parse_value(kind, text) == value
        assert config.format_value(kind, value) == text
        assert (
            config.SearchConfig(run_dir="a", arch_learning_rate=value).arch_learning_rate == value
        )
    for name, value in (("learning_rate", "auto"), ("arch_learning_rate", "automatic")):
        with pytest.raises(errors.UserError, match=f"{name} takes X"):
            config.SearchConfig(run_dir="a", **{name: value})
    with pytest.raises(errors.UserError, match="arch_learning_rate=0.0: must be greater than 0"):
        config.SearchConfig(run_dir="a", arch_learning_rate=0.0)
    with pytest.raises(errors.UserError, match="expected a number"):
        config.parse_value(kinds["learning_rate"], "auto")
