import shutil
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import identity, jpeg

import command
import mirror as mirrors
from command import InputError
from mirror import FolderMirror, WebMirror, open_mirror
from shards import write_tar


def read_all(mirror, split):
    return {
        photo: shard.read(photo) for shard in mirror.stream(split, mirror.shard_names(split)) for photo in shard.ids
    }


def tars(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*/images_*.tar*"))


def status(code: int):
    return lambda handler: handler.send_error(code)


def test_folder_and_url_are_the_same_mirror(tiny_mirror, serve, tmp_path):
    folder = open_mirror(str(tiny_mirror))
    web = open_mirror(serve(tiny_mirror).url, tmp_path)
    for split in mirrors.SPLITS:
        assert folder.shard_names(split) == web.shard_names(split) != []
        assert folder.ids(split) == web.ids(split) != []
        assert read_all(folder, split) == read_all(web, split) != {}
    pd.testing.assert_frame_equal(folder.train(), web.train())
    assert folder.categories() == web.categories() == {10: "Landmark 1", 20: "Landmark 2", 30: "Landmark 3"}
    assert folder.solution("retrieval").read_bytes() == web.solution("retrieval").read_bytes()
    assert tars(tmp_path) == []
    assert len(list(tiny_mirror.glob("train/images_*.tar"))) == len(folder.shard_names("train"))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 500, 1000])
def test_the_number_of_shards_is_found_by_asking(count, monkeypatch):
    asked = []

    def exists(url):
        asked.append(url)
        return int(url[-7:-4]) < count

    monkeypatch.setattr("download.exists", exists)
    names = WebMirror("http://mirror", Path("unused")).shard_names("train")
    assert names == [f"images_{number:03d}" for number in range(count)]
    assert len(asked) <= 22


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_at_most_ahead_and_one_shards_are_on_disk(tiny_mirror, serve, tmp_path, ahead):
    mirror = WebMirror(serve(tiny_mirror).url, tmp_path, ahead)
    names = mirror.shard_names("train")
    assert len(names) > 4
    most = 0
    for number, _ in enumerate(mirror.stream("train", names)):
        deadline = time.monotonic() + 5
        expected = min(ahead + 1, len(names) - number)
        while time.monotonic() < deadline and len(tars(tmp_path)) < expected:
            time.sleep(0.005)
        most = max(most, len(tars(tmp_path)))
    assert most == ahead + 1
    assert tars(tmp_path) == []


@pytest.mark.parametrize("ahead", [0, 1, 2, 3])
def test_a_shard_may_come_again_at_once(tiny_mirror, serve, tmp_path, ahead):
    mirror = WebMirror(serve(tiny_mirror).url, tmp_path, ahead)
    names = [f"images_00{number}" for number in (0, 0, 1, 2, 2, 2, 0, 1, 0)]
    assert [(shard.name, len(shard.read(shard.ids[0])) > 0) for shard in mirror.stream("train", names)] == [
        (name, True) for name in names
    ]
    assert tars(tmp_path) == []


def test_what_a_killed_run_left_is_used_or_deleted(tiny_mirror, serve, tmp_path):
    server = serve(tiny_mirror)
    (tmp_path / "train").mkdir()
    for name in ("images_001.tar", "images_004.tar"):
        shutil.copy(tiny_mirror / "train" / name, tmp_path / "train")
    (tmp_path / "train/images_003.tar.part").write_bytes(b"part")
    mirror = WebMirror(server.url, tmp_path)
    for shard in mirror.stream("train", ["images_001"]):
        assert shard.name == "images_001"
        assert tars(tmp_path) == ["images_001.tar"]
    assert not [path for path, _ in server.requests if path.endswith(".tar")]


def test_a_damaged_transfer_is_noticed_by_its_md5_and_repeated(tiny_mirror, serve, tmp_path):
    server = serve(tiny_mirror)
    body = (tiny_mirror / "train/images_000.tar").read_bytes()
    server.faults["/train/images_000.tar"] = [lambda h: h.send_range(body[:600] + b"?" + body[601:])]
    mirror = WebMirror(server.url, tmp_path)
    for shard in mirror.stream("train", ["images_000"]):
        assert shard.path.read_bytes() == body
    assert not (tmp_path / "md5_mismatches.csv").exists()


def lying_mirror(tiny_mirror, tmp_path) -> Path:
    shutil.copytree(tiny_mirror, tmp_path / "lying")
    (tmp_path / "lying/md5sum/train/md5.images_000.txt").write_text(f"{'0' * 32}  images_000.tar\n")
    return tmp_path / "lying"


def test_a_wrong_published_md5_is_accepted_once_recorded_and_not_downloaded_again(tiny_mirror, serve, tmp_path, capsys):
    server = serve(lying_mirror(tiny_mirror, tmp_path))
    for _ in range(2):
        for shard in WebMirror(server.url, tmp_path / "cache").stream("train", ["images_000"]):
            assert shard.ids
    downloads = [path for path, _ in server.requests if path == "/train/images_000.tar"]
    assert len(downloads) == 3  # twice for the first use, once for the second
    record = pd.read_csv(tmp_path / "cache/md5_mismatches.csv", dtype=str)
    assert record[["shard", "expected"]].values.tolist() == [["train/images_000.tar", "0" * 32]]
    assert capsys.readouterr().err.count("recorded in") == 1


def test_strict_md5_stops_with_one_clear_line(tiny_mirror, serve, tmp_path):
    mirror = WebMirror(serve(lying_mirror(tiny_mirror, tmp_path)).url, tmp_path / "cache", strict_md5=True)
    with pytest.raises(InputError, match="train/images_000.tar is damaged.*published is 0000.*--strict-md5"):
        next(mirror.stream("train", ["images_000"]))
    assert tars(tmp_path / "cache") == []


def test_a_shard_that_is_no_tar_is_refused_even_without_md5(tiny_mirror, serve, tmp_path):
    shutil.copytree(tiny_mirror, tmp_path / "broken")
    (tmp_path / "broken/train/images_000.tar").write_bytes(b"<html>an error page</html>" * 99)
    (tmp_path / "broken/md5sum/train/md5.images_000.txt").unlink()
    web = WebMirror(serve(tmp_path / "broken").url, tmp_path / "cache")
    for mirror in (web, FolderMirror(tmp_path / "broken")):
        with pytest.raises(InputError, match="damaged"):
            next(mirror.stream("train", ["images_000"]))


def test_leaving_a_stream_early_ends_its_downloads(tiny_mirror, serve, tmp_path):
    server = serve(tiny_mirror)
    stream = WebMirror(server.url, tmp_path).stream("train", ["images_000", "images_001", "images_002"])
    next(stream)
    stream.close()
    assert [path for path, _ in server.requests].count("/train/images_002.tar") == 0


def test_a_stop_request_ends_a_stream(tiny_mirror, serve, tmp_path):
    stream = WebMirror(serve(tiny_mirror).url, tmp_path).stream("train", ["images_000", "images_001"])
    command.stop_event.set()
    with pytest.raises(command.Stopped):
        list(stream)


def test_a_kaggle_tree_is_read_in_virtual_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(mirrors, "PHOTOS_PER_VIRTUAL_SHARD", 4)
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
    assert [len(mirror.shard_names(split)) for split in mirrors.SPLITS] == [3, 2, 1]
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


@pytest.mark.parametrize(
    "text", ["\ufeffid,landmark_id\r\nABCd,10\r\n", '"landmark_id","x, y","id"\n"10","a\nb","ABCd"\n\n']
)
def test_other_dialects_of_csv_are_read(tmp_path, text):
    (tmp_path / "train.csv").write_bytes(text.encode())
    assert FolderMirror(tmp_path).train().values.tolist() == [["ABCd", 10]]


def test_a_web_page_in_place_of_a_file_means_that_there_is_none(tiny_mirror, serve, tmp_path):
    server = serve(tiny_mirror)
    page = b"\n<!DOCTYPE html><title>All is well</title>"
    for path in ("/metadata/train.csv", "/md5sum/train/md5.images_000.txt"):
        server.faults[path] = [lambda handler: handler.send_range(page)]
    mirror = WebMirror(server.url, tmp_path)
    with pytest.raises(InputError, match="no metadata/train.csv"):
        mirror.train()
    assert mirror.published_md5("train", "images_000") is None
    assert len(mirror.train()) == 24  # nothing of it was kept
    assert mirror.published_md5("train", "images_000") is not None


@pytest.mark.parametrize("text", ["{0}  images_000.tar\n", "MD5 (images_000.tar) = {0}\n"])
def test_the_published_md5_is_found_in_what_md5sum_and_md5_write(tmp_path, text):
    (tmp_path / "md5sum/train").mkdir(parents=True)
    (tmp_path / "md5sum/train/md5.images_000.txt").write_text(text.format("0123456789ABCDEF" * 2))
    assert FolderMirror(tmp_path).published_md5("train", "images_000") == "0123456789abcdef" * 2


def test_strict_md5_refuses_what_was_once_accepted_without(tiny_mirror, serve, tmp_path):
    server = serve(lying_mirror(tiny_mirror, tmp_path))
    for _ in WebMirror(server.url, tmp_path / "cache").stream("train", ["images_000"]):
        pass
    with pytest.raises(InputError, match="published is 0000"):
        next(WebMirror(server.url, tmp_path / "cache", strict_md5=True).stream("train", ["images_000"]))


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
