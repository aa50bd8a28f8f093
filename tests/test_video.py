"""Videos: each frame is read, drawn and written once, in order."""

import resource

import numpy as np
import pytest

from auto_deeplab_tf import video
from auto_deeplab_tf.errors import MissingExtraError, StorageError, UserError

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")


def write(path, size, values, fps=10):
    """A video of one gray value per frame."""
    height, width = size
    writer = imageio_ffmpeg.write_frames(str(path), (width, height), fps=fps, macro_block_size=1)
    writer.send(None)
    for value in values:
        writer.send(np.full((height, width, 3), value, np.uint8))
    writer.close()


def read(path):
    described, *frames = imageio_ffmpeg.read_frames(str(path))
    width, height = described["size"]
    return described, [np.frombuffer(one, np.uint8).reshape(height, width, 3) for one in frames]


def test_every_frame_is_drawn_in_order(tmp_path):
    values = [0, 60, 120, 180, 240, 20, 90]
    write(tmp_path / "in.mp4", (48, 64), values)
    seen = []

    def picture(frame):
        assert frame.shape == (48, 64, 3) and frame.dtype == np.uint8
        seen.append(round(frame.mean()))
        return 255 - frame

    output = tmp_path / "out.mp4"
    result = video.draw(tmp_path / "in.mp4", output, picture, 48 * 64)
    assert (result["num_frames"], result["size"], result["fps"]) == (7, [48, 64], 10)
    assert result["frames_per_second"] > 0
    np.testing.assert_allclose(seen, values, atol=3)
    described, frames = read(output)
    assert described["fps"] == 10 and described["size"] == (64, 48)
    np.testing.assert_allclose([frame.mean() for frame in frames], 255 - np.array(seen), atol=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


def test_odd_sides_grow_by_a_pixel(tmp_path):
    writer = imageio_ffmpeg.write_frames(
        str(tmp_path / "in.mkv"), (53, 41), codec="ffv1", pix_fmt_out="bgr0", macro_block_size=1
    )
    writer.send(None)
    writer.send(np.full((41, 53, 3), 100, np.uint8))
    writer.close()
    result = video.draw(tmp_path / "in.mkv", tmp_path / "out.mp4", lambda frame: frame, 10**6)
    assert result["size"] == [41, 53]
    assert read(tmp_path / "out.mp4")[0]["size"] == (54, 42)


def test_what_is_refused_leaves_no_file(tmp_path, monkeypatch):
    path, output = tmp_path / "in.mp4", tmp_path / "out.mp4"
    path.write_bytes(b"no video")
    with pytest.raises(UserError, match="cannot be read as a video"):
        video.draw(path, output, lambda frame: frame, 10**6)
    write(path, (48, 64), [0, 1])
    with pytest.raises(UserError, match="48x64 pixels, more than max_image_pixels=3000"):
        video.draw(path, output, lambda frame: frame, 3000)
    with pytest.raises(UserError, match="is the video itself"):
        video.draw(path, path, lambda frame: frame, 10**6)

    def failing(frame):
        raise KeyError

    with pytest.raises(KeyError):
        video.draw(path, output, failing, 10**6)
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    with pytest.raises(MissingExtraError, match=r"auto_deeplab_tf\[media\]"):
        video.draw(path, output, lambda frame: frame, 10**6)
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.mp4"]


@pytest.mark.parametrize("fps", [0.5, 23.976, 1000])
def test_a_whole_video_is_taken_for_whole_at_any_rate(tmp_path, fps):
    write(tmp_path / "in.mp4", (48, 64), range(0, 200, 20), fps)
    result = video.draw(tmp_path / "in.mp4", tmp_path / "out.mp4", lambda frame: frame, 10**6)
    assert result["num_frames"] == len(read(tmp_path / "out.mp4")[1]) >= 10


def test_a_video_that_the_disk_cut_leaves_the_earlier_result(tmp_path):
    write(tmp_path / "in.mp4", (48, 64), range(10))
    output = tmp_path / "out.mp4"
    output.write_bytes(b"the earlier result")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # ffmpeg is killed where it ends
    try:
        with pytest.raises(StorageError, match="out.mp4 cannot be written .*: make room there, or"):
            video.draw(tmp_path / "in.mp4", output, lambda frame: frame, 10**6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert output.read_bytes() == b"the earlier result"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


def test_a_video_with_a_frame_too_few_leaves_the_earlier_result(tmp_path, monkeypatch):
    write(tmp_path / "in.mp4", (48, 64), range(10))
    whole = imageio_ffmpeg.write_frames

    def one_fewer(*arguments, **options):
        return whole(*arguments, **options, output_params=["-vf", "select=gt(n\\,0)"])

    monkeypatch.setattr(imageio_ffmpeg, "write_frames", one_fewer)
    with pytest.raises(StorageError, match=r"\(ffmpeg wrote 9 of 10 frames\)"):
        video.draw(tmp_path / "in.mp4", tmp_path / "out.mp4", lambda frame: frame, 10**6)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]
