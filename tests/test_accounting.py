"""Counts of the published networks, pinned; what the counts of any network must satisfy."""

import subprocess
import sys

import numpy as np
import pytest
from random_architectures import random_architecture

from auto_deeplab_tf.accounting import count, largest_filter_multiplier
from auto_deeplab_tf.architecture import Architecture, Edge

PUBLISHED = Architecture.preset("auto_deeplab")
SETTINGS = {"num_classes": 19, "filter_multiplier": 20, "input_size": (1024, 2048)}

# Filter multiplier; parameters in 1e6; Multi-Adds in 1e9 at 1024x2048 and at 1025x2049.
TABLE = [(20, 10.15, 317.54, 320.45), (32, 21.62, 434.99, 439.92), (48, 44.42, 653.58, 662.42)]


@pytest.mark.parametrize(("filter_multiplier", "params", "even", "odd"), TABLE)
def test_published_networks_to_the_printed_digit(filter_multiplier, params, even, odd):
    for size, multi_adds in (((1024, 2048), even), ((1025, 2049), odd)):
        result = count(
            PUBLISHED, num_classes=19, filter_multiplier=filter_multiplier, input_size=size
        )
        assert f"{result.params / 1e6:.2f}" == f"{params:.2f}"
        assert f"{result.multi_adds / 1e9:.2f}" == f"{multi_adds:.2f}"


def test_shapes_of_the_parts_at_321():
    result = count(PUBLISHED, num_classes=19, filter_multiplier=10, input_size=(321, 321))
    assert [(row.name, row.output_shape) for row in result.parts] == [
        ("stem", (81, 81, 128)),
        ("cell_0", (81, 81, 50)),
        ("cell_1", (81, 81, 50)),
        ("cell_2", (81, 81, 50)),
        ("cell_3", (41, 41, 100)),
        ("cell_4", (21, 21, 200)),
        ("cell_5", (41, 41, 100)),
        ("cell_6", (21, 21, 200)),
        ("cell_7", (21, 21, 200)),
        ("cell_8", (11, 11, 400)),
        ("cell_9", (11, 11, 400)),
        ("cell_10", (21, 21, 200)),
        ("cell_11", (41, 41, 100)),
        ("aspp", (41, 41, 256)),
        ("decoder", (81, 81, 19)),
    ]


def test_a_layer_by_hand():
    """Cell 3 of the published network reads stride 4 (81x81) and runs at stride 8 (41x41)."""
    layers = count(PUBLISHED, num_classes=19, filter_multiplier=10, input_size=(321, 321)).layers
    rows = {row.name: row for row in layers}
    at_4, at_8 = 81 * 81, 41 * 41
    assert rows["cell_3/prev"][2:] == (50 * 20 + 2 * 20, 50 * 20 * at_4)
    # Of the two halves of a separable operation in a stride-2 position both write at stride 8.
    unit = 9 * 20 + 20 * 20
    assert rows["cell_3/block_0_prev_sep_3x3"][2:] == (2 * (unit + 40), 2 * unit * at_8)
    full = 25 * 20 * 20
    assert rows["cell_3/block_0_prev_prev_atrous_5x5"][2:] == (full + 40, full * at_8)
    # The pooled branch has one position; the last convolution a bias in place of BN.
    assert rows["aspp/pooling"][2:] == (100 * 256 + 512, 100 * 256)
    assert rows["decoder/classes"][2:] == (256 * 19 + 19, 256 * 19 * at_4)


def test_an_operation_goes_down_where_it_reads_an_input_of_a_cell_that_does():
    """skip costs a projection there and nothing elsewhere: at a level kept, in a block read."""
    cell = [
        [Edge("prev", "skip"), Edge("prev_prev", "skip")],
        [Edge("prev_prev", "skip"), Edge("block_0", "skip")],
    ]
    built = Architecture(levels=(0, 1, 1), cell=cell, atrous="full")
    layers = count(built, num_classes=2, filter_multiplier=5, input_size=(65, 97)).layers
    skips = {row.name: row for row in layers if row.name.endswith("_skip")}
    filters, positions = 10, 9 * 13
    projection = (filters**2 + 2 * filters, filters**2 * positions)
    for name, row in skips.items():
        assert row.output_shape == ((9, 13, 10) if name[5] != "0" else (17, 25, 5))
        goes_down = name[5] == "1" and "_prev" in name
        assert (row.params, row.multi_adds) == (projection if goes_down else (0, 0)), name
    names = [
        *("stem/unit_0", "stem/unit_1", "stem/unit_2"),
        *(
            f"cell_{index}/{part}"
            for index in range(3)
            for part in (
                *("prev", "prev_prev", "block_0_prev_skip", "block_0_prev_prev_skip"),
                *("block_1_prev_prev_skip", "block_1_block_0_skip"),
            )
            # Two blocks of 5 channels are the 10 that cell 2 has at its level.
            if (index, part) != (2, "prev_prev")
        ),
        *("aspp/pointwise", "aspp/atrous_0", "aspp/atrous_1", "aspp/atrous_2", "aspp/pooling"),
        *("aspp/joined", "decoder/low_level", "decoder/conv_0", "decoder/conv_1"),
        "decoder/classes",
    ]
    assert [row.name for row in layers] == names


@pytest.mark.parametrize("seed", range(10))
def test_rows_add_up(seed):
    result = count(
        random_architecture(seed, max_layers=12, max_blocks=5),
        num_classes=7,
        filter_multiplier=3,
        input_size=(97, 131),
        head_channels=9,
        decoder_channels=5,
    )
    for rows in (result.layers, result.parts):
        assert result.params == sum(row.params for row in rows)
        assert result.multi_adds == sum(row.multi_adds for row in rows)
    assert len({row.name for row in result.layers}) == len(result.layers)


def test_a_path_that_begins_at_level_1_reads_the_stem_at_stride_4():
    cell = ((Edge("prev", "skip"), Edge("prev_prev", "skip")),)
    settings = SETTINGS | {"filter_multiplier": 8, "input_size": (64, 96)}
    stay, down = (
        {row.name: row for row in count(Architecture((level,), cell, "full"), **settings).layers}
        for level in (0, 1)
    )
    # `prev` is projected before it is reduced, at 16x24 in both: 128 channels to 8 or to 16.
    for rows, filters in ((stay, 8), (down, 16)):
        assert rows["cell_0/prev"].multi_adds == 16 * 24 * 128 * filters
    # A skip that reduces is a projection; one that does not is free.
    assert stay["cell_0/block_0_prev_skip"].multi_adds == 0
    assert down["cell_0/block_0_prev_skip"].multi_adds == 8 * 12 * 16 * 16


def test_the_smallest_settings_are_counted():
    smallest = dict.fromkeys(("num_classes", "filter_multiplier", "head_channels"), 1)
    smallest |= {"decoder_channels": 1, "stem_channels": (1, 1, 1), "input_size": (32, 32)}
    assert count(PUBLISHED, **smallest).params > 0


def test_separable_atrous_costs_less_than_full():
    separable = Architecture(PUBLISHED.levels, PUBLISHED.cell, "separable")
    assert count(separable, **SETTINGS).params < count(PUBLISHED, **SETTINGS).params
    assert count(separable, **SETTINGS).multi_adds < count(PUBLISHED, **SETTINGS).multi_adds


def test_numpy_integers_do_not_overflow_nor_leak():
    settings = SETTINGS | {"filter_multiplier": np.int32(48), "input_size": np.int32([1024, 2048])}
    result = count(PUBLISHED, **settings)
    assert result == count(PUBLISHED, **(SETTINGS | {"filter_multiplier": 48}))
    assert type(result.multi_adds) is int


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_classes": 0}, "num_classes must be an integer of 1 or more. Received: 0."),
        ({"filter_multiplier": 2.5}, "filter_multiplier takes N. Received: 2.5"),
        ({"head_channels": -1}, "head_channels=-1: must be at least 1"),
        ({"decoder_channels": True}, "decoder_channels takes N. Received: True"),
        ({"stem_channels": (8, 8)}, "stem_channels must be 3 integers of 1 or more"),
        ({"stem_channels": (8, 0, 8)}, "stem_channels=8,0,8: must be at least 1"),
        ({"input_size": (31, 64)}, "input_size must be (height, width), each 32 pixels or more"),
        ({"input_size": (64, 31)}, "input_size must be (height, width), each 32 pixels or more"),
        ({"input_channels": 2}, "input_channels must be 1, 3 or 4. Received: 2."),
        ({"input_size": (64,)}, "input_size must be (height, width)"),
    ],
)
def test_settings_out_of_range(changed, message):
    with pytest.raises(ValueError) as error:
        count(PUBLISHED, **(SETTINGS | changed))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_needs_no_framework():
    program = (
        "import sys, auto_deeplab_tf.accounting\n"
        "assert not {'tensorflow', 'keras', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("seed", range(3))
def test_the_largest_f_within_a_budget_is_what_counting_up_finds(seed):
    architecture = random_architecture(seed)
    network = {"num_classes": 11, "input_size": (120, 160), "stem_channels": (12, 12, 24)}
    counts = [count(architecture, filter_multiplier=f, **network) for f in range(1, 20)]
    # Half a network at F 1, then what F 1 to 18 need, and one less.
    multi_adds = [counts[0].multi_adds // 2]
    multi_adds += [counted.multi_adds - less for counted in counts[:-1] for less in (0, 1)]
    for budget in multi_adds:
        expected = sum(counted.multi_adds <= budget for counted in counts)
        found = largest_filter_multiplier(
            architecture, max_multi_adds=budget, max_params=1e9, **network
        )
        assert found == expected
    few = counts[6].params
    by_both = largest_filter_multiplier(
        architecture, max_multi_adds=1e12, max_params=few, **network
    )
    assert by_both == 7
