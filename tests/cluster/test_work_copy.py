"""A work folder and its copy on a real S3 server on loopback, moto's."""

import threading
from pathlib import Path

import pytest

from landmarks.cluster import work_copy
from landmarks.cluster.work_copy import Copy, fetched, kept
from landmarks.mirrors import download as downloads
from landmarks.mirrors import stores
from landmarks.running.command import InputError, Stopped
from landmarks.running.files import whole
from landmarks.running.locks import held

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def write(work: Path, **files: str) -> None:
    """Files as a run leaves them; a name's __ is a folder, its last _ a dot."""
    for name, text in files.items():
        with whole(work / ".".join(name.replace("__", "/").rsplit("_", 1))) as part:
            part.write_text(text)


def contents(work: Path) -> dict[str, str]:
    return {
        path.relative_to(work).as_posix(): path.read_text()
        for path in work.rglob("*") if path.is_file() and not path.name.startswith(".")
    }  # fmt: skip


def keep_up(work: Path, bucket: str) -> None:
    Copy(work, bucket).keep_up(lambda: None)


def fetch(work: Path, bucket: str) -> Path:
    work.mkdir(exist_ok=True)
    Copy(work, bucket).fetch()
    return work


def test_another_machine_goes_on_with_all_that_is_whole(bucket, tmp_path):
    one = tmp_path / "one"
    write(one, model_keras="m", features__train__images_000_npz="f", mirror__train__images_000_tar="t")
    (one / "features/train/part-images_001.npz").write_text("half")
    (one / "x.keras.part").write_text("half")
    with held(one):
        keep_up(one, bucket)
    two = fetch(tmp_path / "two", bucket)
    assert contents(two) == {"model.keras": "m", "features/train/images_000.npz": "f"}
    assert set(stores.listed(bucket)) == set(contents(two))


def test_changes_and_deletions_go_both_ways_and_nothing_is_copied_twice(bucket, tmp_path, monkeypatch):
    one = tmp_path / "one"
    write(one, a_txt="1", b_txt="1", c_txt="1")
    keep_up(one, bucket)
    two = fetch(tmp_path / "two", bucket)
    write(two, a_txt="22", d_txt="2")
    (two / "b.txt").unlink()
    uploads, upload = [], stores.upload
    monkeypatch.setattr(stores, "upload", lambda path, url: (uploads.append(path.name), upload(path, url))[1])
    keep_up(two, bucket)
    assert uploads == ["a.txt", "d.txt"]
    fetch(one, bucket)
    assert contents(one) == contents(two) == {"a.txt": "22", "c.txt": "1", "d.txt": "2"}
    keep_up(one, bucket)
    assert uploads == ["a.txt", "d.txt"]
    monkeypatch.setattr(downloads, "download", lambda *_, **__: pytest.fail("downloaded again"))
    fetch(one, bucket)
    fetch(two, bucket)


def test_a_folder_that_was_emptied_is_filled_again_and_its_copy_stays(bucket, tmp_path):
    one = tmp_path / "one"
    write(one, a_txt="1", b_txt="1")
    keep_up(one, bucket)
    for path in one.glob("*"):
        if not path.name.startswith("."):  # as the shell's * leaves it
            path.unlink()
    fetch(one, bucket)
    keep_up(one, bucket)
    assert contents(one) == {"a.txt": "1", "b.txt": "1"} and set(stores.listed(bucket)) == {"a.txt", "b.txt"}


def test_two_runs_that_share_the_work_leave_each_other_s_files(bucket, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    write(one, model_keras="m")
    keep_up(one, bucket)
    fetch(two, bucket)
    write(one, features__a_npz="1")
    write(two, features__b_npz="2")
    keep_up(one, bucket)
    keep_up(two, bucket)
    keep_up(one, bucket)
    assert set(contents(fetch(tmp_path / "three", bucket))) == {"model.keras", "features/a.npz", "features/b.npz"}


def test_what_has_changed_on_both_sides_is_left_to_the_user(bucket, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    write(one, a_txt="1")
    keep_up(one, bucket)
    fetch(two, bucket)
    write(one, a_txt="of one")
    write(two, a_txt="of the other")
    keep_up(one, bucket)
    with pytest.raises(InputError, match="have both changed"):
        fetch(two, bucket)
    assert contents(two) == {"a.txt": "of the other"}
    write(tmp_path / "new", a_txt="never copied")
    with pytest.raises(InputError, match="have both changed"):
        fetch(tmp_path / "new", bucket)


@pytest.mark.parametrize(
    "damaged", [b"", b"{", b"\xff", b"[]", b'{"url": {"a.txt": 1}}', b'{"url": {"a.txt": ["v", 1]}}']
)
def test_a_note_that_is_damaged_is_one_line(tmp_path, damaged):
    (tmp_path / work_copy.NOTE).write_bytes(damaged)
    with pytest.raises(InputError, match=r"store\.json is damaged.*move"):
        Copy(tmp_path, "url")


def test_a_kill_between_an_upload_and_its_note_costs_an_upload(bucket, tmp_path, monkeypatch):
    one = tmp_path / "one"
    write(one, a_txt="1", b_txt="1")
    keep_up(one, bucket)
    write(one, a_txt="222")

    def die(path, url):
        upload(path, url)
        raise KeyboardInterrupt

    upload = stores.upload
    monkeypatch.setattr(stores, "upload", die)
    with pytest.raises(KeyboardInterrupt):
        keep_up(one, bucket)
    monkeypatch.setattr(stores, "upload", upload)
    fetch(one, bucket)
    keep_up(one, bucket)
    assert contents(one) == contents(fetch(tmp_path / "two", bucket)) == {"a.txt": "222", "b.txt": "1"}


def test_a_kill_while_it_is_fetched_is_gone_on_with(bucket, tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    write(one, a_txt="1", b_txt="1")
    keep_up(one, bucket)
    download = downloads.download

    def die(url, path, **given):
        if not path.name.startswith("a"):
            raise KeyboardInterrupt
        return download(url, path, **given)

    monkeypatch.setattr(downloads, "download", die)
    with pytest.raises(KeyboardInterrupt):
        fetch(two, bucket)
    monkeypatch.setattr(downloads, "download", download)
    assert contents(fetch(two, bucket)) == contents(one)


def test_the_copy_is_kept_up_while_the_run_goes_on_and_after_a_stop(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(work_copy, "SECONDS", 0.01)
    write(tmp_path / "one", a_txt="1")
    there = threading.Event()
    with pytest.raises(Stopped), kept(tmp_path / "one", bucket):
        for _ in range(1000):
            if "a.txt" in stores.listed(bucket):
                break
            there.wait(0.01)
        else:
            pytest.fail("not copied while the run goes on")
        write(tmp_path / "one", b_txt="1")
        raise Stopped("by a test")
    assert set(stores.listed(bucket)) == {"a.txt", "b.txt"}


def test_a_command_works_in_a_folder_of_that_name(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url = f"{bucket}/runs/first"
    write(tmp_path / "elsewhere", a_txt="1")
    keep_up(tmp_path / "elsewhere", url)
    assert fetched(["--work", url, "--epochs=1"]) == ["--epochs=1", "--work", "first", "--store", url]
    assert contents(tmp_path / "first") == {"a.txt": "1"}
    assert fetched([f"--store={url}/", "--work=here"]) == ["--work", "here", "--store", url]
    assert contents(tmp_path / "here") == {"a.txt": "1"}
    for unchanged in (["--work", "first"], ["--mirror", "s3://bucket/x"], ["--work", url, "--help"], []):
        assert fetched(unchanged) == unchanged
    with pytest.raises(InputError, match="one folder alone"):
        fetched(["--work", "a,b", "--store", url])


def test_a_bucket_that_is_not_there_is_told(bucket, tmp_path):
    write(tmp_path / "one", a_txt="1")
    with pytest.raises(InputError, match="cannot be written"):
        keep_up(tmp_path / "one", "s3://no-such-bucket-at-all/x")


def test_names_that_lead_out_of_the_folder_are_not_brought():
    for name in ("../x", "/etc/x", "a/../../x", "mirror/x", ".lock", "a/part-x", "x.part", ""):
        assert not work_copy._is_kept(name)
    assert work_copy._is_kept("features/train/images_000.npz")
