"""The command that counts: its table, its JSON, its errors."""

import json
import subprocess
import sys

import pytest
from random_architectures import random_architecture

from auto_deeplab_tf.accounting import count


def summarize(*flags):
    return subprocess.run(
        [sys.executable, "-m", "auto_deeplab_tf.summarize", *flags], capture_output=True, text=True
    )


def test_json_is_one_object_on_one_line():
    result = summarize(
        "--architecture=auto_deeplab",
        "--filter_multiplier=20",
        "--num_classes=19",
        "--input_size=1024x2048",
        "--json",
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1
    content = json.loads(result.stdout)
    assert set(content) == {"params", "multi_adds", "layers"}
    assert (content["params"], content["multi_adds"]) == (10_147_427, 317_541_632_000)
    assert sum(layer["params"] for layer in content["layers"]) == content["params"]
    assert sum(layer["multi_adds"] for layer in content["layers"]) == content["multi_adds"]
    assert set(content["layers"][0]) == {"name", "output_shape", "params", "multi_adds"}


def test_every_flag_reaches_the_count(tmp_path):
    architecture = random_architecture(3)
    architecture.save(tmp_path / "architecture.json")
    result = summarize(
        f"--architecture={tmp_path / 'architecture.json'}",
        "--filter_multiplier=5",
        "--num_classes=7",
        "--input_size=97x131",
        "--head_channels=24",
        "--decoder_channels=11",
        "--json",
    )
    expected = count(
        architecture,
        filter_multiplier=5,
        num_classes=7,
        input_size=(97, 131),
        head_channels=24,
        decoder_channels=11,
    )
    content = json.loads(result.stdout)
    assert content["params"] == expected.params
    assert content["multi_adds"] == expected.multi_adds
    assert [layer["name"] for layer in content["layers"]] == [row.name for row in expected.layers]


def test_table_has_a_line_for_each_part():
    lines = summarize("--architecture=auto_deeplab", "--filter_multiplier=10").stdout.splitlines()
    parts = [line.split()[0] for line in lines[1:-2]]
    assert parts == ["stem", *(f"cell_{index}" for index in range(12)), "aspp", "decoder"]
    # 10,520 weights in kernels at each of 256 * 512 positions, 380 in batch normalisation.
    assert lines[4].split() == ["cell_2", "256x512x50", "10,900", f"{10_520 * 256 * 512:,}"]
    assert lines[-2].split()[0] == "total"
    assert lines[-1].endswith("Multi-Adds for an image of 1024x2048")


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--architecture=unheard_of"], 1, "one of auto_deeplab"),
        (["--architecture=auto_deeplab", "--input_size=31x64"], 2, "at least 32"),
        (["--architecture=auto_deeplab", "--num_classes=0"], 2, "--num_classes=0"),
        (["--architecture=auto_deeplab", "--filter_mult=8"], 2, "--filter_multiplier"),
        ([], 2, "exactly one of --architecture and --network is needed"),
        (["--architecture=auto_deeplab", "--network=frrn_a"], 2, "exactly one of --architecture"),
        (["--network=resnet"], 1, "--network=resnet: no baseline of that name; allowed: deeplab"),
    ],
)
def test_errors_are_one_line(flags, code, message):
    result = summarize(*flags)
    assert result.returncode == code
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr


def test_a_baseline_is_counted_too():
    flags = ("--network=frrn_a", "--num_classes=7", "--input_size=97x131")
    content = json.loads(summarize(*flags, "--json").stdout)
    assert set(content) == {"params", "multi_adds", "layers"}
    # 12 classes fewer than the pinned count: 48 weights and a bias each.
    assert content["params"] == 17_746_803 - 12 * 49
    assert sum(layer["params"] for layer in content["layers"]) == content["params"]
    assert sum(layer["multi_adds"] for layer in content["layers"]) == content["multi_adds"]
    classes = content["layers"][-1]
    assert classes["name"] == "classes" and classes["output_shape"] == [97, 131, 7]
    assert classes["multi_adds"] == 97 * 131 * 48 * 7
    lines = summarize(*flags).stdout.splitlines()
    assert lines[1].split()[:3] == ["root", "97x131x48", "3,696"]
    assert lines[-1].endswith("Multi-Adds for an image of 97x131")
