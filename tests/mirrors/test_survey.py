import io
import os
import re
import sys
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
from conftest import jpeg, photos_in
from PIL import Image

import mirror as mirrors
from landmarks.mirrors import convert, images
from landmarks.mirrors import survey as surveys
from landmarks.mirrors.base import SPLITS
from landmarks.mirrors.folder import FolderMirror
from landmarks.mirrors.shards import TarShard
from landmarks.mirrors.survey import survey
from landmarks.running import command
from landmarks.running.command import InputError


def landmarks_of(found) -> dict[str, int]:
    """How many photos each landmark has, by category; those of no landmark under an empty name."""
    return found.photos["landmark_id"].map(found.categories).fillna("").value_counts().to_dict()


def nested_folder(root: Path) -> Path:
    for number, place in enumerate(("eu/tower", "eu/bridge", "asia")):
        photos_in(root / place, 4, 10 * number)
    return root


def run_import(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of `mirror.py import`."""
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["mirror.py", "import", *arguments])
    with pytest.raises(SystemExit) as ended:
        command.run(mirrors.main)
    return ended.value.code, *capsys.readouterr()


def test_photos_below_a_landmarks_folder_are_refused_and_their_folders_named(tmp_path, monkeypatch, capsys):
    nested_folder(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    code, _, errors = run_import(monkeypatch, capsys, "mine", "out")
    assert (code, errors.count("\n")) == (2, 1)
    for named in ("eu/bridge", "eu/tower", "--nested", "move"):
        assert named in errors
    assert not (tmp_path / "out").exists()


def test_nested_makes_each_folder_with_photos_a_landmark_named_by_its_path(tmp_path, monkeypatch, capsys):
    nested_folder(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    code, table, _ = run_import(monkeypatch, capsys, "mine", "out", "--nested")
    assert code == 0
    assert re.search(r"landmarks +3$", table, re.MULTILINE)
    mirror = FolderMirror(tmp_path / "out")
    assert mirror.categories() == {1: "asia", 2: "eu/bridge", 3: "eu/tower"}
    urls = pd.read_csv(tmp_path / "out/metadata/train.csv")
    assert {(mirror.categories()[n], str(Path(url).parent)) for n, url in urls[["landmark_id", "url"]].values} == {
        (name, str(tmp_path / "mine" / name)) for name in mirror.categories().values()
    }


def test_a_folder_may_hold_photos_of_its_own_and_those_of_other_landmarks(tmp_path):
    photos_in(nested_folder(tmp_path) / "eu/more", 3, 50)
    (tmp_path / "eu/own.jpg").write_bytes(jpeg(99))
    assert landmarks_of(survey(tmp_path, None, True)) == {
        "asia": 4, "eu": 1, "eu/bridge": 4, "eu/more": 3, "eu/tower": 4,
    }  # fmt: skip


def test_flat_folders_give_the_same_ids_with_nested_and_without(tmp_path):
    photos_in(tmp_path / "Tower", 4)
    photos_in(tmp_path / "Gate", 4, 10)
    flat, nested = (survey(tmp_path, None, nested) for nested in (False, True))
    pd.testing.assert_frame_equal(flat.photos, nested.photos)
    assert flat.categories == nested.categories == {1: "Gate", 2: "Tower"}
    assert flat.photos["id"].tolist()[2:4] == ["37edb89d9f9267e3", "b914fdf89bd0fc63"]  # as ever


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({"Tower": 9}, "fewer than two landmarks have photos"),
        ({"Tower": 1, "Gate": 1, "Dome": 1}, "no landmark has 3 photos"),
        ({"Tower": 2, "Gate": 2}, "no landmark has 3 photos"),
        ({}, "holds no folder of photos"),
    ],
)
def test_what_gives_no_train_index_and_test_is_refused(tmp_path, monkeypatch, capsys, folders, message):
    (tmp_path / "mine").mkdir()
    for number, (name, count) in enumerate(folders.items()):
        photos_in(tmp_path / "mine" / name, count, 10 * number)
    code, _, errors = run_import(monkeypatch, capsys, f"{tmp_path}/mine", f"{tmp_path}/out")
    assert code == 2
    assert message in errors
    assert not (tmp_path / "out").exists()


def test_a_folder_of_photos_of_no_landmark_that_has_none_is_refused(tmp_path, monkeypatch, capsys):
    photos_in(tmp_path / "mine/Tower", 4)
    photos_in(tmp_path / "mine/Gate", 4, 10)
    (tmp_path / "none").mkdir()
    for name, reason in (("readme.txt", "no photo's suffix: .txt"), ("broken.jpg", "not a photo")):
        (tmp_path / "none" / name).write_text("text")
        code, _, errors = run_import(
            monkeypatch, capsys, f"{tmp_path}/mine", f"{tmp_path}/out", "--non-landmarks", f"{tmp_path}/none"
        )
        assert code == 2
        assert re.search(rf"--non-landmarks .*none.*{reason}", errors)
    assert not (tmp_path / "out").exists()


def test_photos_count_only_where_they_can_be_read(tmp_path):
    photos_in(tmp_path / "Tower", 4)
    photos_in(tmp_path / "Gate", 1, 10)
    for name in ("Tower/0.jpg", "Tower/1.jpg"):
        (tmp_path / name).write_bytes(jpeg(3)[:200])
    with pytest.raises(InputError, match="without what is passed over .2 OSError: Trunc.*no landmark has 3 photos"):
        survey(tmp_path, None, False)


def test_landmarks_of_fewer_photos_are_taken_beside_others(tmp_path, monkeypatch, capsys):
    photos_in(tmp_path / "mine/Tower", 3)
    photos_in(tmp_path / "mine/Gate", 2, 10)
    photos_in(tmp_path / "mine/Dome", 1, 20)
    code, table, _ = run_import(monkeypatch, capsys, f"{tmp_path}/mine", f"{tmp_path}/out")
    assert code == 0
    assert re.search(r"without a test or index photo +2$", table, re.MULTILINE)
    assert [len(FolderMirror(tmp_path / "out").ids(split)) for split in SPLITS] == [3, 1, 2]


def test_everything_that_is_passed_over_is_named_with_its_reason(tmp_path, monkeypatch):
    photos_in(tmp_path / "Tower", 3)
    photos_in(tmp_path / "Gate", 3, 10)
    (tmp_path / "Gate/notes").write_text("")
    (tmp_path / "Gate/plan.pdf").write_text("")
    (tmp_path / "loose.jpg").write_bytes(jpeg(99))
    (tmp_path / "Gate/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "Gate/more").symlink_to(tmp_path / "Tower")
    (tmp_path / "Empty/deep").mkdir(parents=True)
    (tmp_path / "Gate/large.jpg").write_bytes(jpeg(98) + b" " * 2000)
    (tmp_path / "Gate/locked.jpg").write_bytes(jpeg(97))
    monkeypatch.setattr(surveys, "MAX_PHOTO_BYTES", 2000)
    read_bytes = Path.read_bytes

    def locked(path):
        if path.name == "locked.jpg":
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", locked)
    found = survey(tmp_path, None, False)
    assert {os.path.relpath(path, tmp_path): reason for _, path, reason in found.passed_over} == {
        "Gate/notes": "no photo's suffix (notes)",
        "Gate/plan.pdf": "no photo's suffix: .pdf",
        "Gate/gone.jpg": "a link to a folder, or to nothing",
        "Gate/more": "a link to a folder, or to nothing",
        "Gate/large.jpg": "larger than 0 MiB",
        "Gate/locked.jpg": "Permission denied",
        "loose.jpg": "in no landmark's folder",
        "Empty": "a folder without a photo",
    }
    assert landmarks_of(found) == {"Gate": 3, "Tower": 3}


def test_a_landmarks_folder_may_be_a_link(tmp_path):
    photos_in(tmp_path / "elsewhere", 3)
    photos_in(tmp_path / "mine/Gate", 3, 10)
    (tmp_path / "mine/Tower").symlink_to(tmp_path / "elsewhere")
    assert landmarks_of(survey(tmp_path / "mine", None, False)) == {"Gate": 3, "Tower": 3}


def test_heic_is_named_with_what_it_needs_where_that_is_missing(tmp_path, monkeypatch):
    photos_in(tmp_path / "Tower", 3)
    photos_in(tmp_path / "Gate", 3, 10)
    (tmp_path / "Gate/phone.HEIC").write_bytes(b"")
    monkeypatch.setattr(images, "FORMATS", tuple(name for name in images.FORMATS if name != "HEIF"))
    (passed_over,) = survey(tmp_path, None, False).passed_over
    assert passed_over[1:] == (str(tmp_path / "Gate/phone.HEIC"), ".heic needs `pip install pillow-heif`")


def test_heic_becomes_a_photo_of_its_landmark(tmp_path):
    pytest.importorskip("pillow_heif", reason="pip install pillow-heif, for photos of phones")
    photos_in(tmp_path / "mine/Tower", 3)
    photos_in(tmp_path / "mine/Gate", 3, 10)
    Image.open(io.BytesIO(jpeg(20, (90, 60)))).save(tmp_path / "mine/Gate/phone.HEIC", "HEIF")
    convert.import_folder(tmp_path / "mine", tmp_path / "out", None, 0)
    photos = []
    for path in (tmp_path / "out").glob("*/*.tar"):
        with closing(TarShard(path)) as shard:
            photos += map(shard.read, shard.ids)
    assert len(photos) == 7
    assert all(data.startswith(b"\xff\xd8") for data in photos)
    assert any(Image.open(io.BytesIO(data)).size == (90, 60) for data in photos)
