"""Against a real S3 server on loopback, moto's: what leaves this process are requests of S3."""

import os
import shutil
import sys
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import scripts
from conftest import make_mirror, tars

from landmarks.mirrors import check, download, stores
from landmarks.mirrors.folder import FolderMirror
from landmarks.mirrors.open import open_mirror, require_place
from landmarks.mirrors.outages import Absent, Failure, Unanswered
from landmarks.mirrors.web import WebMirror
from landmarks.running.command import InputError
from landmarks.running.settings import MirrorSettings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def put(folder: Path, url: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            stores.upload(path, f"{url}/{path.relative_to(folder).as_posix()}")


def faulty(monkeypatch, faults: list):
    """Ranges of S3 that come as these functions of (data) have it, in turn, and then as they are; their beginnings."""
    s3fs = pytest.importorskip("s3fs")

    begins, real = [], s3fs.S3FileSystem._cat_file

    async def cat_file(self, path, start=None, end=None):
        begins.append(start)
        data = await real(self, path, start=start, end=end)
        return faults.pop(0)(data) if faults else data

    monkeypatch.setattr(s3fs.S3FileSystem, "_cat_file", cat_file)
    s3fs.S3FileSystem.clear_instance_cache()  # an instance keeps the methods that it began with
    return begins


def s3_client():
    return pytest.importorskip("boto3").client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])


def cut(_: bytes) -> bytes:
    raise ConnectionResetError("reset by a test")


def test_a_mirror_in_a_bucket_is_the_mirror_in_its_folder(bucket, tiny_mirror, tmp_path):
    put(tiny_mirror, bucket)
    there, here = open_mirror(bucket, tmp_path), FolderMirror(tiny_mirror)
    assert isinstance(there, WebMirror)
    for split in ("train", "index", "test"):
        assert there.ids(split) == here.ids(split)
        assert there.shard_names(split) == here.shard_names(split)
        for one, other in zip(
            there.stream(split, there.shard_names(split)), here.stream(split, here.shard_names(split)), strict=True
        ):
            assert one.ids == other.ids and [one.read(i) for i in one.ids] == [other.read(i) for i in other.ids]
            assert there.fingerprint(split, one.name) in here.fingerprint(split, one.name)
    assert there.categories() == here.categories() and there.solution("recognition") is not None
    assert tars(tmp_path) == []
    assert there.path("metadata/nothing.csv") is None


def test_a_shard_with_another_md5_is_fetched_twice_and_refused_where_md5_is_strict(bucket, tiny_mirror, tmp_path):
    folder = tmp_path / "mirror"
    shutil.copytree(tiny_mirror, folder)
    (folder / "md5sum/test/md5.images_000.txt").write_text(f"{'0' * 32}  images_000.tar\n")
    put(folder, bucket)
    strict = WebMirror(bucket, tmp_path / "strict", MirrorSettings(strict_md5=True))
    with pytest.raises(InputError, match="published is 000"):
        list(strict.stream("test", ["images_000"]))
    lenient = WebMirror(bucket, tmp_path / "lenient")
    assert [len(shard.ids) for shard in lenient.stream("test", ["images_000"])]
    assert (tmp_path / "lenient/md5_mismatches.csv").exists()


def test_a_cut_download_goes_on_from_its_last_range(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "CHUNK", 1000)
    (tmp_path / "there").write_bytes(body := bytes(range(256)) * 20)
    stores.upload(tmp_path / "there", f"{bucket}/there")
    begins = faulty(monkeypatch, [bytes, cut, bytes, lambda data: data[:-1], cut])
    assert download.download(f"{bucket}/there", tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == body
    assert begins == [0, 1000, 1000, 2000, 2000, 2000, 3000, 4000, 5000]


def test_what_an_earlier_process_left_is_gone_on_with(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "CHUNK", 1000)
    (tmp_path / "there").write_bytes(bytes(3500))
    stores.upload(tmp_path / "there", f"{bucket}/there")
    faults = [bytes, bytes, *[cut] * 99]
    begins = faulty(monkeypatch, faults)
    with pytest.raises(Unanswered, match="reset by a test"):
        download.download(f"{bucket}/there", tmp_path / "here", resume=True, patience=100)
    assert (tmp_path / "here.part").stat().st_size == 2000
    begins.clear()
    faults.clear()
    assert download.download(f"{bucket}/there", tmp_path / "here", resume=True)
    assert begins == [2000, 3000] and (tmp_path / "here").read_bytes() == bytes(3500)


def test_an_object_that_changes_on_the_way_is_no_mixture(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "CHUNK", 1000)
    (tmp_path / "old").write_bytes(b"o" * 2500)
    stores.upload(tmp_path / "old", f"{bucket}/there")

    def change(data: bytes) -> bytes:
        s3_client().put_object(Bucket=bucket[5:], Key="there", Body=b"n" * 2500)
        return data

    faulty(monkeypatch, [change])
    assert download.download(f"{bucket}/there", tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == b"n" * 2500


def test_too_large_an_object_is_refused(bucket, tmp_path):
    (tmp_path / "there").write_bytes(bytes(2000))
    stores.upload(tmp_path / "there", f"{bucket}/there")
    with pytest.raises(InputError, match="more than 1.00kB are not accepted"):
        download.download(f"{bucket}/there", tmp_path / "here", limit=1000)
    assert not (tmp_path / "here").exists()


def test_what_is_not_there_is_absent_and_a_store_that_is_away_is_given_up(bucket, tmp_path, monkeypatch):
    assert not download.exists(f"{bucket}/nothing")
    assert not download.download(f"{bucket}/nothing", tmp_path / "here")
    assert not download.exists("s3://no-such-bucket-here/nothing")
    (tmp_path / "there").write_bytes(b"1")
    stores.upload(tmp_path / "there", f"{bucket}/folder/there")
    assert not download.exists(f"{bucket}/folder") and download.exists(f"{bucket}/folder/there")
    monkeypatch.setattr(stores, "ask", lambda *_: (_ for _ in ()).throw(Failure("away")))
    with pytest.raises(Unanswered, match="away"):
        download.exists(f"{bucket}/there", patience=100)


def test_what_a_store_s_package_logs_is_not_told_beside_the_error():
    """gcsfs logs each error that it raises, with its traceback."""
    pytest.importorskip("gcsfs")
    program = """
import types
import gcsfs.retry
async def at_once(_): pass
gcsfs.retry.asyncio = types.SimpleNamespace(sleep=at_once)
from landmarks.mirrors import stores
try:
    stores.find("gs://bucket/there")
except stores.Failure as failure:
    print(failure)
"""
    away = {**os.environ, "STORAGE_EMULATOR_HOST": "http://127.0.0.1:9", "FSSPEC_GS": '{"token": "anon"}'}
    done = scripts.run("-c", program, environment=away)
    assert "refused" in done.stdout and not done.stderr


def test_a_version_is_the_same_however_it_was_asked_for():
    second = datetime(2026, 11, 26, 12, 30, 5)
    listed, headed = (
        {"ETag": '"0a"', "LastModified": when, "size": 3} for when in (second.replace(microsecond=123000), second)
    )
    assert stores.version(listed) == stores.version(headed) != stores.version({**headed, "ETag": '"0b"'})
    assert stores.version({"size": 3}) == "3"


def test_a_forbidden_object_is_absent_and_says_why(monkeypatch):
    def forbid(*_):
        raise PermissionError("Access Denied")

    monkeypatch.setattr("fsspec.core.url_to_fs", lambda *_, **__: (SimpleNamespace(info=forbid), "x"))
    with pytest.raises(Absent, match="check credentials"):
        stores.find("s3://bucket/x")


def test_no_credentials_are_told_in_a_line(monkeypatch):
    class NoCredentialsError(Exception):
        pass

    def refuse(*_):
        raise NoCredentialsError("Unable to locate credentials")

    monkeypatch.setattr("fsspec.core.url_to_fs", lambda *_, **__: (SimpleNamespace(info=refuse), "x"))
    with pytest.raises(InputError, match="AWS_ACCESS_KEY_ID"):
        download.exists("s3://bucket/x")


def test_without_the_extra_the_error_names_it(monkeypatch, tmp_path):
    pytest.importorskip("fsspec")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(InputError, match="pip install -r requirements-cluster.txt"):
        open_mirror("s3://elsewhere/x", tmp_path).ids("train")


def test_a_file_url_is_a_folder(tiny_mirror):
    require_place(tiny_mirror.as_uri())
    mirror = open_mirror(tiny_mirror.as_uri())
    assert isinstance(mirror, FolderMirror) and mirror.folder == tiny_mirror
    with pytest.raises(InputError, match="is no folder"):
        require_place("file:///no/such/folder")
    with pytest.raises(InputError, match="is no folder"):
        require_place("ftp://host/mirror")


def test_check_reads_a_bucket(bucket, tmp_path, capsys):
    put(make_mirror(tmp_path / "mirror", landmarks=2), bucket)
    assert check.check(bucket) in (0, None), capsys.readouterr()
