import io
import os
import re
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import jpeg, photos_in
from PIL import Image

import mirror as mirrors
from landmarks.mirrors import convert, duplicates, images, shards
from landmarks.mirrors import survey as surveys
from landmarks.mirrors.base import SPLITS
from landmarks.mirrors.folder import FolderMirror
from landmarks.mirrors.shards import TarShard
from landmarks.mirrors.survey import survey
from landmarks.running import command
from landmarks.running.command import InputError
from landmarks.sample.photos import photo as sample_photo


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
    monkeypatch.setattr(shards, "MAX_PHOTO_BYTES", 2000)
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


def reasons_of(found, root: Path) -> dict[str, str]:
    return {os.path.relpath(path, root): reason.replace(f"{root}/", "") for _, path, reason in found.passed_over}


def reencoded(data: bytes, **options) -> bytes:
    encoded = io.BytesIO()
    Image.open(io.BytesIO(data)).save(encoded, "JPEG", **options)
    return encoded.getvalue()


def test_the_same_photo_in_two_landmarks_is_left_out_of_both_and_named(tmp_path):
    for number, name in enumerate(("Tower", "Gate", "none")):
        photos_in(tmp_path / name, 4, 10 * number)
    for name in ("mine/Tower", "mine/Gate"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / Path(name).name).rename(tmp_path / name)
    photo = sample_photo("sample:0/1/0")
    for name, data in {"mine/Tower/x.jpg": photo, "mine/Gate/y.jpg": reencoded(photo, quality=50)}.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "none/z.jpg").write_bytes((tmp_path / "mine/Gate/0.jpg").read_bytes())
    found = survey(tmp_path / "mine", tmp_path / "none", False)
    assert reasons_of(found, tmp_path) == {
        "mine/Tower/x.jpg": "the same photo has another label (mine/Gate/y.jpg)",
        "mine/Gate/y.jpg": "the same photo has another label (mine/Tower/x.jpg)",
        "mine/Gate/0.jpg": "the same photo has another label (none/z.jpg)",
        "none/z.jpg": "the same photo has another label (mine/Gate/0.jpg)",
    }
    assert landmarks_of(found) == {"Gate": 3, "Tower": 4, "": 4}


def test_of_the_same_photo_twice_in_a_landmark_the_larger_file_stays(tmp_path):
    photos_in(tmp_path / "Tower", 3)
    photos_in(tmp_path / "Gate", 3, 10)
    photo = sample_photo("sample:0/1/0")
    (tmp_path / "Gate/a.jpg").write_bytes(reencoded(photo, quality=50))
    (tmp_path / "Gate/b.jpg").write_bytes(photo)
    (tmp_path / "Gate/c.jpg").write_bytes(photo)
    found = survey(tmp_path, None, False)
    assert reasons_of(found, tmp_path) == {
        name: "a copy of a photo of its landmark (Gate/b.jpg)" for name in ("Gate/a.jpg", "Gate/c.jpg")
    }
    assert found.photos["url"].str.endswith("Gate/b.jpg").sum() == 1


def test_copies_do_not_count_as_the_photos_that_a_landmark_needs(tmp_path, monkeypatch, capsys):
    photos_in(tmp_path / "mine/Tower", 2)
    photos_in(tmp_path / "mine/Gate", 2, 10)
    (tmp_path / "mine/Gate/copy.jpg").write_bytes((tmp_path / "mine/Gate/0.jpg").read_bytes())
    code, _, errors = run_import(monkeypatch, capsys, f"{tmp_path}/mine", f"{tmp_path}/out")
    assert code == 2
    assert "1 a copy of a photo of its landmark" in errors
    assert not (tmp_path / "out").exists()


@pytest.fixture
def hashes(monkeypatch) -> dict[bytes, int]:
    """The perceptual hashes of photos that are to have others than their own."""
    given: dict[bytes, int] = {}
    perceptual_hash = duplicates.perceptual_hash
    monkeypatch.setattr(
        duplicates, "perceptual_hash", lambda image, data: np.uint64(given.get(data) or perceptual_hash(image, data))
    )
    return given


def make_pairs(folder: Path, hashes: dict[bytes, int]) -> None:
    """Of photos 0 to 11 let 0 and 1, 2 and 3, ... be near-duplicates: four bits are apart."""
    for number in range(12):
        base = (number // 2 + 1) * 0x0F0E_1357_9BDF_2468 % 2**60
        hashes[(folder / f"{number}.jpg").read_bytes()] = base ^ (15 * (number % 2))


@pytest.mark.parametrize("seed", range(5))
def test_near_duplicates_of_a_landmark_stay_in_one_split_and_are_named(tmp_path, monkeypatch, capsys, hashes, seed):
    photos_in(tmp_path / "mine/Tower", 10)
    photos_in(tmp_path / "mine/Gate", 12, 20)
    make_pairs(tmp_path / "mine/Gate", hashes)
    code, table, _ = run_import(monkeypatch, capsys, f"{tmp_path}/mine", f"{tmp_path}/out", "--seed", str(seed))
    assert code == 0
    assert re.search(r"near-duplicates, kept together \(near_duplicates.csv\) +12$", table, re.MULTILINE)
    near = pd.read_csv(tmp_path / "out/near_duplicates.csv")
    assert sorted(near["url"]) == sorted(map(str, (tmp_path / "mine/Gate").iterdir()))
    for number in range(0, 12, 2):
        pair = near[near["url"].str.contains(rf"/(?:{number}|{number + 1})\.jpg$")]
        assert (pair["group"].nunique(), pair["split"].nunique()) == (1, 1)
        assert set(pair["id"]) <= set(FolderMirror(tmp_path / "out").ids(pair["split"].iloc[0]))
    assert near["split"].value_counts().to_dict() == {"train": 8, "index": 2, "test": 2}


def test_a_mirror_is_never_made_from_photos_that_are_divided_otherwise_than_before(tmp_path, hashes):
    photos_in(tmp_path / "mine/Tower", 4)
    photos_in(tmp_path / "mine/Gate", 12, 20)
    convert.import_folder(tmp_path / "mine", tmp_path / "out", None, 0)
    make_pairs(tmp_path / "mine/Gate", hashes)
    with pytest.raises(InputError, match="was begun by"):
        convert.import_folder(tmp_path / "mine", tmp_path / "out", None, 0)


def test_near_duplicates_are_one_of_the_photos_that_a_landmark_needs(tmp_path, hashes):
    for number, name in enumerate(("Tower", "Gate")):
        for place, path in enumerate(sorted(photos_in(tmp_path / name, 3, 10 * number).iterdir())):
            hashes[path.read_bytes()] = (number + 1) * 0x0F0E_1357_9BDF_2468 % 2**60 ^ (7 << 4 * place)
    with pytest.raises(InputError, match="no landmark has 3 photos that differ"):
        survey(tmp_path, None, False)


@pytest.mark.parametrize("seed", range(5))
def test_many_photos_of_one_moment_go_to_train(tmp_path, monkeypatch, capsys, hashes, seed):
    photos_in(tmp_path / "mine/Tower", 4)
    photos_in(tmp_path / "mine/Gate", 30, 20)
    for number in range(25):
        hashes[(tmp_path / f"mine/Gate/{number}.jpg").read_bytes()] = 1 << 60 | 15 << 2 * number
    code, _, _ = run_import(monkeypatch, capsys, f"{tmp_path}/mine", f"{tmp_path}/out", "--seed", str(seed))
    assert code == 0
    near = pd.read_csv(tmp_path / "out/near_duplicates.csv")
    assert near["split"].tolist() == ["train"] * 25


@pytest.mark.parametrize(("bits", "left_out"), [(0b11, 2), (0b1111, 0)])
def test_photos_of_two_landmarks_are_the_same_only_within_two_bits(tmp_path, hashes, bits, left_out):
    photos_in(tmp_path / "Tower", 4)
    photos_in(tmp_path / "Gate", 4, 20)
    for name, flipped in (("Tower", 0), ("Gate", bits)):
        hashes[(tmp_path / name / "0.jpg").read_bytes()] = 1 << 60 ^ flipped
    found = survey(tmp_path, None, False)
    assert len(found.passed_over) == left_out
    assert len(found.photos) == 8 - left_out
    assert found.photos["group"].is_unique


def test_photos_to_be_added_are_compared_with_those_before(tmp_path):
    photos_in(tmp_path / "Tower", 2, 10)
    photos_in(tmp_path / "Gate", 2, 20)
    (tmp_path / "loose.jpg").write_bytes(jpeg(30))
    (tmp_path / "Gate/again.jpg").write_bytes(jpeg(10))  # has two labels
    (tmp_path / "notes").write_text("no photo")

    def number(names: list[str]) -> dict[str, int]:
        return {name: 100 + len(name) for name in names}

    none = pd.DataFrame(columns=["id", "url", "landmark_id", "hash"])
    found = surveys.survey_more(tmp_path, False, none, number)
    assert landmarks_of(found) == {"Tower": 1, "Gate": 2, "": 1}
    assert found.categories == {104: "Gate", 105: "Tower"}
    assert sorted(reason.partition(" (")[0] for _, _, reason in found.passed_over) == [
        "no photo's suffix", "the same photo has another label", "the same photo has another label",
    ]  # fmt: skip
    before = found.photos.assign(id=[f"abc{place}" for place in range(4)])
    (tmp_path / "Gate/again.jpg").unlink()
    (tmp_path / "Tower/small.jpg").write_bytes(jpeg(21))  # that of the gate, which stays
    found = surveys.survey_more(tmp_path, False, before, number)
    assert found.photos["url"].tolist() == [str(tmp_path / "Tower/0.jpg")]
    reasons = {path: reason for _, path, reason in found.passed_over}
    assert reasons[str(tmp_path / "Gate/0.jpg")] == (f"a copy of a photo of its landmark ({tmp_path / 'Gate/0.jpg'})")
    assert reasons[str(tmp_path / "Tower/small.jpg")] == (
        f"the same photo has another label ({tmp_path / 'Gate/1.jpg'})"
    )
    with pytest.raises(InputError, match="holds no photo"):
        surveys.survey_more(photos_in(tmp_path / "empty", 0), False, none, number)
