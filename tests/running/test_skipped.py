from contextlib import closing

import pytest
from conftest import identity, jpeg

from landmarks.mirrors.shards import TarShard, write_tar
from landmarks.running import command, skipped
from landmarks.running.skipped import record_skipped, skipped_photos


@pytest.fixture
def shard(tmp_path):
    photos = [(identity(number), jpeg(number)) for number in range(10)]
    photos[3] = (photos[3][0], b"no photo")
    write_tar(tmp_path / "images_000.tar", photos)
    with closing(TarShard(tmp_path / "images_000.tar")) as shard:
        yield shard


def test_skipped_photos_are_recorded_once(shard, tmp_path, capsys):
    shard.refused.append(("../evil,\n\x1b[31m.jpg", "not named a/b/c/ID.jpg"))
    for _ in range(2):
        record_skipped(tmp_path, "test", shard.name, [*shard.refused, ("abc1", "broken\nline")])
    lines = (tmp_path / "skipped.csv").read_text().splitlines()
    assert lines[0] == "split,shard,name,reason"
    assert len(lines) == 3
    assert lines[2] == "test,images_000,abc1,broken line"
    assert "\x1b" not in (tmp_path / "skipped.csv").read_text()
    command._say_warnings()
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "\x1b" not in warning
    assert f"{tmp_path}/skipped.csv says, the first test,images_000," in warning and "(and 1 more)" in warning


def test_what_other_shards_have_passed_over_is_not_read_again(tmp_path, monkeypatch):
    record_skipped(tmp_path, "test", "images_000", [("abc1", "broken")])
    monkeypatch.setattr(skipped, "read_rows", pytest.fail)
    record_skipped(tmp_path, "test", "images_001", [("abc1", "broken")])
    record_skipped(tmp_path, "test", "images_002", [])
    lines = (tmp_path / "skipped.csv").read_text().splitlines()
    assert lines[1:] == ["test,images_000,abc1,broken", "test,images_001,abc1,broken"]


def test_a_line_that_a_kill_cut_is_written_again(tmp_path):
    record_skipped(tmp_path, "test", "images_000", [("abc1", "broken"), ("abc2", "cut, early")])
    text = (tmp_path / "skipped.csv").read_text()
    for cut in (text.index(",abc1"), text.index(", early")):
        (tmp_path / "skipped.csv").write_text(text[:cut])
        skipped_photos(tmp_path, "test", "images_000")
        record_skipped(tmp_path, "test", "images_000", [("abc1", "broken"), ("abc2", "cut, early")])
        assert (tmp_path / "skipped.csv").read_text() == text
    assert skipped_photos(tmp_path, "test", "images_000") == {"abc1", "abc2"}
