"""What the padding of atrous convolutions explains of the paper's Multi-Adds."""

from auto_deeplab_tf.accounting import count
from auto_deeplab_tf.architecture import Architecture
from benchmarks.paper_multi_adds import INPUT_SIZE, PAPER, padded_multi_adds

PUBLISHED = Architecture.preset("auto_deeplab")


def test_what_is_left_of_the_papers_figures_is_linear_in_the_filter_multiplier():
    for filter_multiplier, paper in PAPER.items():
        padded = padded_multi_adds(PUBLISHED, filter_multiplier, INPUT_SIZE) / 1e9
        assert abs(paper - padded - 0.2685 * filter_multiplier) < 0.01


def test_where_every_rate_divides_its_map_nothing_is_padded():
    size = (576, 576)
    true = count(PUBLISHED, num_classes=19, filter_multiplier=4, input_size=size)
    assert padded_multi_adds(PUBLISHED, 4, size) == true.multi_adds
