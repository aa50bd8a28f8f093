"""An operation more is one row of the table, and one class where its kind is new."""

from pathlib import Path

import forked
import pytest

from auto_deeplab_tf.search_space import OPERATIONS, Operation, register_operation

TESTS = Path(__file__).parent
NAMES = {
    "row": "sep_7x7",
    "conv": "conv_3x3",
    "blur": "blur_3x3",
    "blurred_conv": "blurred_conv_3x3",
}


@pytest.mark.parametrize(
    "kind",
    [
        "conv",
        pytest.param("blur", marks=pytest.mark.slow),
        pytest.param("row", marks=pytest.mark.slow),
        pytest.param("blurred_conv", marks=pytest.mark.slow),
    ],
)
def test_a_ninth_operation_is_searched_decoded_counted_trained_and_exported(kind, tmp_path):
    """In a process of its own: what is registered stays for the life of the process."""
    done = forked.run(TESTS / "ninth_operation.py", kind, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == f"done: {NAMES[kind]}"


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(ValueError, match="an operation 'skip' is there already: .* sep_3x3, "):
        register_operation(Operation("skip", "skip"))
    assert len(OPERATIONS) == 8
