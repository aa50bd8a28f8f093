"""`python -m auto_deeplab_tf.data.check`: everything that is wrong with a set, in one go."""

import json

import numpy as np
import pytest
import real_sets
import tiny_camvid
from commands import call, run
from PIL import Image

from auto_deeplab_tf import cli, config
from auto_deeplab_tf.data import check
from tests.data.conftest import truncate


def checked(name, folder, *more):
    flags = [f"--dataset={name}", *([f"--data_dir={folder}"] if folder else []), *more]
    return check.check(cli.parse(config.CheckConfig, flags))


def test_a_sound_set_is_counted(tmp_path):
    root = tiny_camvid.write(tmp_path / "CamVid", {"train": 5, "val": 2})
    result = checked("camvid", root)
    assert result["num_defects"] == 0 and result["defects"] == []
    train = result["splits"]["train"]
    assert train["pairs"] == 5 and train["sizes"] == {"32x48": 5} and train["groups"] == 1
    labels = np.stack([np.asarray(Image.open(p)) for p in (root / "trainannot").iterdir()])
    shares = list(train["class_frequencies"].values())
    assert shares == pytest.approx([(labels == i).mean() for i in range(11)])
    assert train["ignored_share"] == pytest.approx((labels == tiny_camvid.VOID).mean())
    images = np.stack([np.asarray(Image.open(p)) for p in (root / "train").iterdir()])
    np.testing.assert_allclose(train["mean"], images.mean((0, 1, 2)))
    np.testing.assert_allclose(train["std"], images.std((0, 1, 2)))


def test_every_defect_is_named_in_one_go(tmp_path):
    root = tiny_camvid.write(tmp_path / "CamVid", {"train": 9, "val": 2})
    train, annot = root / "train", root / "trainannot"
    (annot / "0016E5_00000.png").unlink()
    (train / "0016E5_00001.png").unlink()
    Image.fromarray(np.zeros((32, 47), np.uint8)).save(annot / "0016E5_00002.png")
    Image.fromarray(np.full((32, 48), 77, np.uint8)).save(annot / "0016E5_00003.png")
    truncate(train / "0016E5_00004.png")
    (annot / "0016E5_00005.png").write_text("not an image")
    Image.open(train / "0016E5_00006.png").save(train / "0016E5_00006.jpg")
    (train / "notes.doc").write_bytes(b"x")
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(annot / "0016E5_00007.png")
    done = run("data.check", "--dataset=camvid", f"--data_dir={root}", "--json")
    assert done.returncode == 1
    result = json.loads(done.stdout)
    found = sorted(
        (defect["kind"], defect["file"].rsplit("/", 1)[1]) for defect in result["defects"]
    )
    assert found == [
        ("duplicate stem", "0016E5_00006.png"),
        ("id out of range", "0016E5_00003.png"),
        ("mask of another kind", "0016E5_00007.png"),
        ("missing image", "0016E5_00001.png"),
        ("missing mask", "0016E5_00000.png"),
        ("size mismatch", "0016E5_00002.png"),
        ("stray file", "notes.doc"),
        ("unreadable image", "0016E5_00004.png"),
        ("unreadable mask", "0016E5_00005.png"),
    ]
    assert result["num_defects"] == 9
    text = {defect["kind"]: defect["text"] for defect in result["defects"]}
    assert "found 77" in text["id out of range"]
    assert "found 32x48 and 32x47" in text["size mismatch"]
    assert "truncated" in text["unreadable image"]


def test_a_sound_set_ends_with_0_and_what_it_holds(tmp_path, monkeypatch, capsys):
    real_sets.write_voc(tmp_path, ["2007_000032"], ["2007_000033"])
    flags = ["--dataset=voc2012", f"--data_dir={tmp_path}"]
    assert call(check, config.CheckConfig, flags, monkeypatch) == 0
    out = capsys.readouterr().out
    assert "train: 1 pairs in 1 groups; 20x31 (1)" in out and out.strip().endswith("no defects")


def test_a_coco_image_that_is_missing_is_named(tmp_path):
    box = [0, 0, 39, 0, 39, 39, 0, 39]
    annotations = [
        {"image_id": i, "category_id": 1, "segmentation": [box], "iscrowd": 0} for i in (1, 2)
    ]
    real_sets.write_coco(tmp_path, "val", [(1, (40, 40)), (2, (40, 40))], annotations)
    assert checked("coco", tmp_path)["splits"]["val"]["pairs"] == 2
    (tmp_path / "val2017" / "000000000002.jpg").unlink()
    (defect,) = checked("coco", tmp_path)["defects"]
    assert defect["kind"] == "unreadable image"
    assert defect["file"].endswith("val2017/000000000002.jpg")


def test_ade20k_and_a_folder(tmp_path):
    real_sets.write_ade20k(tmp_path, (2, 1))
    result = checked("ade20k", tmp_path)
    assert result["num_defects"] == 0 and len(result["splits"]["train"]["sizes"]) == 2
    for name in ("images", "masks"):
        (tmp_path / "mine" / name).mkdir(parents=True)
    (tmp_path / "mine" / "dataset.json").write_text('{"classes": ["a", "b"]}')
    (defect,) = checked("folder", tmp_path / "mine")["defects"]
    assert defect["kind"] == "empty split"


def test_classes_without_a_pixel_are_named(tmp_path, monkeypatch, capsys):
    root = tiny_camvid.write(tmp_path / "CamVid", {"train": 2, "val": 1})
    (note,) = checked("camvid", root)["notes"]
    assert "train of camvid: 7 classes (Pavement, " in note and "not one pixel" in note
    flags = ["--dataset=camvid", f"--data_dir={root}"]
    assert call(check, config.CheckConfig, flags, monkeypatch) == 0
    assert note in capsys.readouterr().err.splitlines()
    # Label maps that cannot be read are no news of classes.
    for mask in (root / "trainannot").iterdir():
        mask.write_bytes(b"no picture")
    result = checked("camvid", root)
    assert not result["notes"] and result["num_defects"] == 2
