"""A run folder: what a kill left in it keeps nobody from resuming, and is cleared away."""

import pytest

from auto_deeplab_tf import config, files
from auto_deeplab_tf.training.run_dir import FLAGS_FILE, RunDir


class Killed(BaseException):
    pass


@pytest.mark.parametrize("begun", [False, True])
def test_a_kill_inside_the_writing_of_a_file_does_not_keep_the_run_from_resuming(
    begun, tmp_path, monkeypatch
):
    path = tmp_path / "run"
    options = config.SearchConfig(run_dir=str(path))
    if begun:
        with RunDir(path, options):
            pass

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        # A process that is killed clears nothing away.
        patched.setattr(files.os, "replace", kill)
        patched.setattr(files.Path, "unlink", lambda *_, **__: None)
        with RunDir(path, options):
            pass
    (left,) = path.glob(".*.partial")
    if begun:
        (path / "checkpoints").mkdir()
        (path / "checkpoints" / left.name).write_text("half")
    assert (path / FLAGS_FILE).exists() == begun
    with RunDir(path, options) as run:
        run.record("fact.json", 1)
    kept = {file.name for file in path.rglob("*") if file.is_file()}
    assert kept == {".lock", FLAGS_FILE, "fact.json"}


def test_other_files_keep_a_folder_from_becoming_a_run(tmp_path):
    for name in ("notes.txt", ".notes.partial"):
        folder = tmp_path / name.strip(".")
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(ValueError, match="is not empty and holds no run"):
            RunDir(folder, config.SearchConfig(run_dir=str(folder)))


def test_a_fact_of_a_run_is_written_once_and_another_is_refused(tmp_path):
    with RunDir(tmp_path / "run", config.SearchConfig(run_dir=str(tmp_path / "run"))) as run:
        run.record("fact.json", {"a": [1]})
        file = tmp_path / "run" / "fact.json"
        before = file.stat()
        run.record("fact.json", {"a": [1]})
        with pytest.raises(ValueError, match=r"fact.json does not hold .*data have changed"):
            run.record("fact.json", {"a": [2]})
        after = file.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert file.read_text() == '{\n "a": [\n  1\n ]\n}\n'
