import shutil
import tracemalloc
from pathlib import Path

import pandas as pd
import pytest
from conftest import identity, jpeg, tars

from landmarks.mirrors import base, folder, tables
from landmarks.mirrors.folder import FolderMirror
from landmarks.mirrors.open import open_mirror
from landmarks.mirrors.shards import write_tar
from landmarks.mirrors.web import WebMirror
from landmarks.running.command import InputError
from landmarks.running.settings import MirrorSettings


def read_all(mirror, split):
    return {
        photo: shard.read(photo) for shard in mirror.stream(split, mirror.shard_names(split)) for photo in shard.ids
    }


def test_folder_and_url_are_the_same_mirror(tiny_mirror, serve, tmp_path):
    folder = open_mirror(str(tiny_mirror))
    web = open_mirror(serve(tiny_mirror).url, tmp_path)
    for split in base.SPLITS:
        assert folder.shard_names(split) == web.shard_names(split) != []
        assert folder.ids(split) == web.ids(split) != []
        assert read_all(folder, split) == read_all(web, split) != {}
    pd.testing.assert_frame_equal(folder.train(), web.train())
    assert folder.categories() == web.categories() == {10: "Landmark 1", 20: "Landmark 2", 30: "Landmark 3"}
    assert folder.solution("retrieval").read_bytes() == web.solution("retrieval").read_bytes()
    assert tars(tmp_path) == []
    assert len(list(tiny_mirror.glob("train/images_*.tar"))) == len(folder.shard_names("train"))


def test_a_shard_that_is_no_tar_is_refused_even_without_md5(tiny_mirror, serve, tmp_path):
    shutil.copytree(tiny_mirror, tmp_path / "broken")
    (tmp_path / "broken/train/images_000.tar").write_bytes(b"<html>an error page</html>" * 99)
    (tmp_path / "broken/md5sum/train/md5.images_000.txt").unlink()
    strict = MirrorSettings(strict=True)
    web = WebMirror(serve(tmp_path / "broken").url, tmp_path / "cache", strict)
    for mirror in (web, FolderMirror(tmp_path / "broken", strict)):
        with pytest.raises(InputError, match="damaged"):
            next(mirror.stream("train", ["images_000"]))


def cut(mirror, names, keep=0.3):
    for name in names:
        path = mirror / f"{name}.tar"
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


def test_a_damaged_shard_costs_only_what_comes_after_the_fault(tiny_mirror, serve, tmp_path):
    shutil.copytree(tiny_mirror, tmp_path / "broken")
    cut(tmp_path / "broken", ["train/images_002"])
    names = [f"images_{number:03d}" for number in range(6)]
    whole = {shard.name: shard.ids for shard in FolderMirror(tiny_mirror).stream("train", names)}
    web = WebMirror(serve(tmp_path / "broken").url, tmp_path / "cache")
    for mirror in (FolderMirror(tmp_path / "broken"), web):
        for shard in mirror.stream("train", names):
            if shard.name == "images_002":
                assert shard.ids == whole[shard.name][: len(shard.ids)] and 0 < len(shard.ids) < len(whole[shard.name])
                assert [name for name, reason in shard.refused if "damaged" in reason] == ["images_002.tar"]
            else:
                assert shard.ids == whole[shard.name] and not shard.refused
    assert not (tmp_path / "cache/md5_mismatches.csv").exists()  # it does not read whole


def test_too_many_damaged_shards_end_the_run(tiny_mirror, tmp_path):
    shutil.copytree(tiny_mirror, tmp_path / "broken")
    cut(tmp_path / "broken", ["train/images_002", "train/images_003", "test/images_000", "test/images_001"], keep=0)
    names = [f"images_{number:03d}" for number in range(6)]
    with pytest.raises(InputError, match="2 of 6 train shards .* damaged, the last is images_003.*--max-damaged 0.05"):
        list(FolderMirror(tmp_path / "broken").stream("train", names))
    enough = FolderMirror(tmp_path / "broken", MirrorSettings(max_damaged=1))
    assert sum(len(shard.ids) for shard in enough.stream("train", names)) == 16
    with pytest.raises(InputError, match="no test shard of .*broken has a whole photo"):
        list(enough.stream("test", names[:2]))


def test_a_solution_that_is_given_takes_the_place_of_the_mirrors_own(tiny_mirror):
    given = MirrorSettings(solution="mine.csv")
    for task in ("recognition", "retrieval"):
        assert FolderMirror(tiny_mirror, given).solution(task) == Path("mine.csv")


def test_a_kaggle_tree_is_read_in_virtual_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "PHOTOS_PER_VIRTUAL_SHARD", 4)
    photos = {split: [identity(n) for n in numbers] for split, numbers in
              {"train": range(10), "index": range(20, 25), "test": range(30, 33)}.items()}  # fmt: skip
    for split, ids in photos.items():
        for number, photo in enumerate(ids):
            place = tmp_path.joinpath(split, *photo[:3])
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{photo}.jpg").write_bytes(jpeg(number))
    pd.DataFrame({"id": photos["train"], "landmark_id": 7}).to_csv(tmp_path / "train.csv", index=False)
    pd.DataFrame({"id": photos["test"], "landmarks": "8815 0.03"}).to_csv(
        tmp_path / "sample_submission.csv", index=False
    )
    mirror = open_mirror(str(tmp_path))
    assert [len(mirror.shard_names(split)) for split in base.SPLITS] == [3, 2, 1]
    for split, ids in photos.items():
        assert set(mirror.ids(split)) == set(ids)
        assert set(read_all(mirror, split)) == set(ids)
    assert mirror.train()["landmark_id"].tolist() == [7] * 10
    assert mirror.solution("recognition") is None


def test_a_photo_that_is_listed_but_missing_from_a_tree_is_an_os_error(tmp_path):
    (tmp_path / "test/a/b/d").mkdir(parents=True)
    (tmp_path / "test/a/b/d/abd1.jpg").write_bytes(jpeg(0))
    (tmp_path / "test.csv").write_text("id\nabc1\n")
    (shard,) = open_mirror(str(tmp_path)).stream("test", ["images_000"])
    with pytest.raises(OSError):
        shard.read("abc1")


BAD_TABLES = {
    "id,url,landmark_id\nabc1,http://x/a,b.jpg,1\n": "line 2: 4 cells",
    "id,url,landmark_id\nabc1,u,1\nabc2,u\n": "line 3: 2 cells",
    "id,landmark_id\nabc1,1\n\nabc2,-1\n": "line 4: '-1'",
    "id,landmark_id\nabc1,1_0\n": "line 2: '1_0'",
    "id,landmark_id\n../../etc/x,1\n": "line 2: '../../etc/x'",
    "id,landmark_id\nab\x00c,1\n": "line ",
    "id,landmark_id\n" + "a" * 200_000 + ",1\n": "line 2: (field larger|'aaaa)",
    "id,url\nabc1,u\n": "landmark_id",
    "": "does not name id",
    "id,landmark_id\nabc1,x\n": "x",
    "id,landmark_id\nabc1,\n": "train.csv",
    "id,landmark_id\nabc1,99999999999999999999\n": "train.csv",
    "id,landmark_id\nabc1,1\nabc1,2\n": "twice",
    "id,landmark_id\n": "no photo",
    "\x00\xff\x00": "train.csv",
}


@pytest.mark.parametrize("table", BAD_TABLES)
def test_a_malformed_csv_is_named(tmp_path, table):
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata/train.csv").write_bytes(table.encode("latin1"))
    with pytest.raises(InputError, match=BAD_TABLES[table]) as error:
        FolderMirror(tmp_path).train()
    assert "train.csv" in str(error.value)


def test_a_line_without_end_does_not_fill_the_memory(tmp_path):
    path, most = tmp_path / "train.csv", 100 * 2**20
    for begin in (b"", b"id,landmark_id\nabc1,1\n"):
        with open(path, "wb") as file:
            file.write(begin)
            file.truncate(most)  # zeros, which take no disk
        tracemalloc.start()
        with pytest.raises(InputError, match="train.csv is not a CSV"):
            FolderMirror(tmp_path).train()
        assert tracemalloc.get_traced_memory()[1] < most / 10
        tracemalloc.stop()


@pytest.mark.parametrize(
    "text", ["\ufeffid,landmark_id\r\nABCd,10\r\n", '"landmark_id","x, y","id"\n"10","a\nb","ABCd"\n\n']
)
def test_other_dialects_of_csv_are_read(tmp_path, text):
    (tmp_path / "train.csv").write_bytes(text.encode())
    assert FolderMirror(tmp_path).train().values.tolist() == [["ABCd", 10]]


@pytest.mark.parametrize("text", ["{0}  images_000.tar\n", "MD5 (images_000.tar) = {0}\n"])
def test_the_published_md5_is_found_in_what_md5sum_and_md5_write(tmp_path, text):
    (tmp_path / "md5sum/train").mkdir(parents=True)
    (tmp_path / "md5sum/train/md5.images_000.txt").write_text(text.format("0123456789ABCDEF" * 2))
    assert FolderMirror(tmp_path).published_md5("train", "images_000") == "0123456789abcdef" * 2


def test_an_empty_tree_is_no_mirror(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train.csv").write_text("id,landmark_id\nabc1,1\n")
    with pytest.raises(InputError, match="no mirror with train photos"):
        open_mirror(str(tmp_path)).require("train")


def test_wrong_mirrors_are_named(tmp_path, serve):
    with pytest.raises(InputError, match="no folder"):
        open_mirror(str(tmp_path / "nowhere"))
    for source in (str(tmp_path), serve(tmp_path).url):
        with pytest.raises(InputError, match="no mirror with train photos"):
            open_mirror(source, tmp_path / "cache").require("train")
    with pytest.raises(InputError, match="metadata/test.csv"):
        open_mirror(str(tmp_path)).ids("test")


def test_only_shard_names_count(tmp_path):
    (tmp_path / "train").mkdir()
    for name in ("images_000.tar", "part-images_001.tar", "images_x.tar", "images_002.tar.part"):
        write_tar(tmp_path / "train" / name, [])
    assert FolderMirror(tmp_path).shard_names("train") == ["images_000"]


def test_a_table_is_read_once(tiny_mirror, monkeypatch):
    read = []
    monkeypatch.setattr(base, "read_table", lambda *arguments: read.append(arguments) or tables.read_table(*arguments))
    mirror = FolderMirror(tiny_mirror)
    for _ in range(2):
        assert mirror.train()["id"].tolist() == mirror.ids("train")
        mirror.ids("test")
    assert [path.stem for path, _ in read] == ["train", "test"]
