import errno
import os

import pytest

from landmarks.running.command import InputError
from landmarks.running.files import append_rows, md5, read_rows, whole, whole_folder


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep/file.txt"
    with whole(path) as part:
        part.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with pytest.raises(KeyboardInterrupt):
        with whole(path) as part:
            part.write_text("second")
            raise KeyboardInterrupt
    assert path.read_text() == "first"
    assert os.listdir(path.parent) == ["file.txt"]


def test_a_folder_appears_whole_and_replaces_only_one_of_ours(tmp_path):
    path = tmp_path / "deep/folder"
    for text in ("first", "second"):
        with whole_folder(path, "mark") as part:
            (part / "inner").mkdir()
            (part / "inner/file").write_text(text)
            (part / "mark").touch()
            assert not path.exists() or (path / "inner/file").read_text() == "first"
    with pytest.raises(KeyboardInterrupt), whole_folder(path, "mark") as part:
        (part / "mark").touch()
        raise KeyboardInterrupt
    assert (path / "inner/file").read_text() == "second"
    (path / "mark").unlink()
    with pytest.raises(InputError, match="was not made by this command"), whole_folder(path, "mark"):
        raise AssertionError
    assert os.listdir(path.parent) == ["folder"] and os.listdir(path) == ["inner"]


def test_a_folder_of_ours_stays_where_the_new_one_cannot_get_its_name(tmp_path, monkeypatch):
    path, replace = tmp_path / "folder", os.replace
    with whole_folder(path, "mark") as part:
        (part / "mark").write_text("first")

    def fails_for_the_new_one(source, target):
        if source.name == "new":
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_for_the_new_one)
    with pytest.raises(OSError, match="Input/output"), whole_folder(path, "mark") as part:
        (part / "mark").write_text("second")
    assert (path / "mark").read_text() == "first" and os.listdir(tmp_path) == ["folder"]


def test_rows_are_added_after_the_last_whole_line(tmp_path):
    path, header = tmp_path / "rows.csv", ["id", "reason"]
    append_rows(path, header, [("a", 'with, "quotes"')])
    with open(path, "ab") as file:
        file.write('b,"half é'.encode()[:-1])  # killed in the middle of a letter
    assert read_rows(path) == [("id", "reason"), ("a", 'with, "quotes"')]
    append_rows(path, header, [("b", "whole")])
    assert read_rows(path) == [("id", "reason"), ("a", 'with, "quotes"'), ("b", "whole")]
    assert read_rows(tmp_path / "absent.csv") == []


def test_rows_are_added_where_not_even_the_first_line_is_whole(tmp_path):
    (tmp_path / "rows.csv").write_text("id,rea")
    append_rows(tmp_path / "rows.csv", ["id", "reason"], [("a", 1)])
    assert (tmp_path / "rows.csv").read_text() == "id,reason\na,1\n"


def test_md5(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert md5(tmp_path / "x") == "900150983cd24fb0d6963f7d28e17f72"  # RFC 1321, section A.5
