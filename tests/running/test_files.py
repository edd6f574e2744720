import os

import pytest

from landmarks.running.files import md5, whole


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


def test_md5(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert md5(tmp_path / "x") == "900150983cd24fb0d6963f7d28e17f72"  # RFC 1321, section A.5
