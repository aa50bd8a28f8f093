"""The relaxed network contains the discrete one: one-hot alpha and beta give the decoded cell."""

import pytest
from one_hot import check_node_equals_cell
from random_architectures import random_architecture

from auto_deeplab_tf.architecture import Architecture
from auto_deeplab_tf.search_space import DECODABLE_OPERATIONS


@pytest.mark.parametrize("share_operations", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("seed", range(8))
def test_a_one_hot_node_equals_the_decoded_cell(seed, share_operations):
    """In inference and training mode; what keeps the level and what comes from the coarser one."""
    architecture = random_architecture(seed, max_blocks=5)
    check_node_equals_cell(
        architecture.cell,
        architecture.atrous,
        predecessor=1 + seed % 2,
        share_operations=share_operations,
        seed=seed,
    )


def test_the_published_cell_and_every_operation_are_among_them():
    cells = [random_architecture(seed, max_blocks=5).cell for seed in range(8)]
    published = Architecture.preset("auto_deeplab").cell
    used = {edge.op for cell in [published, *cells] for block in cell for edge in block}
    assert used == set(DECODABLE_OPERATIONS)
    check_node_equals_cell(published, "separable")
