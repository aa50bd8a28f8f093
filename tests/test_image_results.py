"""Which files a prediction writes, and that it overwrites none of those it reads."""

import pytest

from auto_deeplab_tf.errors import FieldError
from auto_deeplab_tf.image_results import check_names, results_of


def test_a_video_has_one_result_and_an_image_two(tmp_path):
    for name in ("a.b.png", "a.b.TIF"):
        found = [path.name for path in results_of(tmp_path, tmp_path / "in" / name)]
        assert found == ["a.b_mask.png", "a.b_overlay.png"]
    for name in ("a.b.mp4", "a.b.MOV"):
        (found,) = results_of(tmp_path, tmp_path / "in" / name)
        assert found == tmp_path / "a.b_overlay.mp4"


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["a.mp4", "a_overlay.mp4"], "a_overlay.mp4 is one of the videos"),
        (["a_overlay.mp4", "a.mov"], "a_overlay.mp4 is one of the videos"),
        (["a.png", "a_overlay.png"], "a_overlay.png is one of the images"),
        (["a.jpg", "a_mask.png"], "a_mask.png is one of the images"),
    ],
)
def test_what_is_read_is_not_overwritten(tmp_path, names, kind):
    paths = [tmp_path / "clips" / name for name in names]
    with pytest.raises(FieldError, match=f"{kind} and would be overwritten: name another") as error:
        check_names(paths, tmp_path / "clips")
    assert error.value.names == ("output_dir",)
    check_names(paths, tmp_path / "out")
    check_names(paths[:1], tmp_path / "clips")


def test_a_video_s_results_are_none_of_an_image(tmp_path):
    check_names([tmp_path / "a.mp4", tmp_path / "a_mask.png"], tmp_path)
