import subprocess

import pytest

import landmarks
from landmarks.running import version as versions
from landmarks.running.version import version


@pytest.fixture(autouse=True)
def forgotten():
    version.cache_clear()
    yield
    version.cache_clear()


def git(folder, *command):
    own = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *own, "-C", str(folder), *command], check=True, capture_output=True)


def test_a_clone_tells_its_tag_its_commit_and_changes(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "one")
    commit = version(tmp_path)
    assert len(commit) >= 7 and set(commit) <= set("0123456789abcdef")
    git(tmp_path, "tag", "v1.2")
    version.cache_clear()
    assert version(tmp_path) == "v1.2"
    (tmp_path / "file").write_text("2")
    version.cache_clear()
    assert version(tmp_path) == "v1.2-dirty"


def test_a_copy_tells_its_note_and_no_repository_around_it(tmp_path, monkeypatch):
    git(tmp_path, "init")
    copy = tmp_path / "copy"
    copy.mkdir()
    assert version(copy) == "unknown"
    (copy / "VERSION").write_text("v3.4-5-gabcdef0\n")
    version.cache_clear()
    assert version(copy) == "v3.4-5-gabcdef0"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/.git").mkdir()
    monkeypatch.setattr(versions.subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError))
    assert version(tmp_path / "other") == "unknown"


def test_the_package_has_a_version():
    assert landmarks.__version__ == version()
    with pytest.raises(AttributeError):
        landmarks.nothing  # noqa: B018
