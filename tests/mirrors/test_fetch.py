"""`mirror.py fetch`: a list of URLs becomes a mirror."""

import io
import re
import sys

import pandas as pd
import pytest
from conftest import identity, jpeg, photos_in, read_all
from PIL import Image

import mirror as mirrors
from landmarks.mirrors import build, convert
from landmarks.mirrors.folder import FolderMirror
from landmarks.running.command import InputError


def test_fetch_downloads_shrinks_and_lists_what_failed(tmp_path, serve):
    (tmp_path / "web").mkdir()
    for number in range(12):
        (tmp_path / f"web/{number}.jpg").write_bytes(jpeg(number, (300, 200)))
    (tmp_path / "web/broken.jpg").write_bytes(b"broken")
    server = serve(tmp_path / "web")
    server.faults["/1.jpg"] = [lambda handler: handler.send_error(503)]
    names = [*(f"{number}.jpg" for number in range(12)), "broken.jpg", "missing.jpg"]
    rows = [(identity(n), f"{server.url}/{name}", str(n % 3)) for n, name in enumerate(names)]
    rows += [("../evil", f"{server.url}/2.jpg", "1"), (identity(99), f"{server.url}/2.jpg", "None")]
    pd.DataFrame(rows, columns=["id", "url", "landmark_id"]).to_csv(tmp_path / "train.csv", index=False)

    def fetch():
        convert.fetch(tmp_path / "train.csv", tmp_path / "out", "train", 100, threads=4, seed=0, allow_private=True)

    fetch()
    photos = read_all(tmp_path / "out", "train")
    assert set(photos) == {identity(n) for n in range(12)} == set(FolderMirror(tmp_path / "out").ids("train"))
    assert all(min(Image.open(io.BytesIO(data)).size) == 100 for data in photos.values())
    failed = pd.read_csv(tmp_path / "out/failed.csv")
    assert set(failed["id"]) == {identity(12), identity(13), "../evil", identity(99)}
    asked = len(server.requests)
    fetch()
    assert len(server.requests) == asked
    assert len(pd.read_csv(tmp_path / "out/failed.csv")) == 4
    assert not list(tmp_path.glob("**/evil*"))

    (tmp_path / "index.csv").write_text("\n".join(["id,url", *(f"{i},{u}" for i, u, _ in rows[:5])]))
    convert.fetch(tmp_path / "index.csv", tmp_path / "out", "index", 100, threads=4, seed=0, allow_private=True)
    assert len(FolderMirror(tmp_path / "out").ids("index")) == 5
    assert len(FolderMirror(tmp_path / "out").ids("train")) == 12


def test_fetch_reads_private_addresses_only_when_it_may(tmp_path, serve, monkeypatch, capsys):
    server = serve(photos_in(tmp_path / "web", 6))
    rows = [(identity(n), f"{server.url}/{n}.jpg", 1) for n in range(6)] + [(identity(6), "file:///etc/hostname", 1)]
    pd.DataFrame(rows, columns=["id", "url", "landmark_id"]).to_csv(tmp_path / "train.csv", index=False)
    monkeypatch.chdir(tmp_path)

    def fetch(out: str, *flags: str) -> pd.DataFrame:
        monkeypatch.setattr(sys, "argv", ["mirror.py", "fetch", "train.csv", out, *flags])
        mirrors.main()
        return pd.read_csv(f"{out}/failed.csv").set_index("url")["reason"]

    with pytest.raises(InputError, match="not one photo could be read; out/failed.csv says why"):
        fetch("out")
    assert server.requests == []
    failed = pd.read_csv("out/failed.csv").set_index("url")["reason"]
    assert failed.pop("file:///etc/hostname").startswith(
        "file:///etc/hostname cannot be read: only http:// and https://"
    )
    assert len(failed) == 6 and all(
        "127.0.0.1 is at the private address 127.0.0.1; --allow-private" in r for r in failed
    )
    with pytest.raises(InputError, match="private addresses allowed.; give another folder"):
        fetch("out", "--allow-private")
    assert fetch("other", "--allow-private").index.tolist() == ["file:///etc/hostname"]
    assert len(FolderMirror(tmp_path / "other").ids("train")) == 6


def test_fetch_refuses_a_proxy_which_would_hide_the_addresses(tmp_path, monkeypatch):
    (tmp_path / "train.csv").write_text("id,url,landmark_id\nabc1,http://photos.test/x,1\n")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="HTTPS_PROXY.*--allow-private"):
        convert.fetch(tmp_path / "train.csv", tmp_path / "out", "train", 100, 1, 0)
    assert not (tmp_path / "out").exists()


def test_fetch_goes_on_after_the_last_whole_shard(tmp_path, serve, monkeypatch):
    monkeypatch.setattr(build, "PHOTOS_PER_SHARD", 2)
    (tmp_path / "web").mkdir()
    (tmp_path / "web/a.jpg").write_bytes(jpeg(1))
    server = serve(tmp_path / "web")
    rows = [(identity(n), f"{server.url}/a.jpg", 1) for n in range(12)]
    pd.DataFrame(rows, columns=["id", "url", "landmark_id"]).to_csv(tmp_path / "train.csv", index=False)
    original, written = build.write_tar, []

    def interrupted(path, photos):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path.name)
        original(path, photos)

    monkeypatch.setattr(build, "write_tar", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert.fetch(tmp_path / "train.csv", tmp_path / "out", "train", 100, 2, 0, allow_private=True)
    monkeypatch.setattr(build, "write_tar", original)
    server.requests.clear()
    convert.fetch(tmp_path / "train.csv", tmp_path / "out", "train", 100, 2, 0, allow_private=True)
    assert len(server.requests) == 6
    assert len(FolderMirror(tmp_path / "out").ids("train")) == 12


@pytest.mark.filterwarnings("default::pandas.errors.ParserWarning")  # as users have it
def test_a_landmark_is_a_whole_number_to_its_last_digit_or_the_photo_is_passed_over(tmp_path, serve):
    (tmp_path / "web").mkdir()
    (tmp_path / "web/0.jpg").write_bytes(jpeg(0))
    stated = {"9007199254740993": 9007199254740993, "9007199254740992": 9007199254740992, "7.0": 7, " 8": 8}
    passed_over = ["tower", "1.5", "1e3", "-7", "9" * 20, "\u0663"]
    cells = [*stated, *passed_over, "", "None", "-1"]
    url = f"{serve(tmp_path / 'web').url}/0.jpg"
    rows = [f"{identity(n)},{url},{cell}" for n, cell in enumerate(cells)]
    (tmp_path / "list.csv").write_text("\n".join(["id,url,landmark_id", *rows]), encoding="utf-8")
    for split, none in (("train", 3), ("index", 0)):
        out = tmp_path / split
        convert.fetch(tmp_path / "list.csv", out, split, 100, threads=2, seed=0, allow_private=True)
        assert set(FolderMirror(out).ids(split)) == {identity(n) for n in range(13) if n < 4 or n >= 10 + none}
        known = pd.read_csv(out / f"metadata/{'train' if none else 'index_image_to_landmark'}.csv")
        assert dict(zip(known["id"], known["landmark_id"], strict=True)) == {
            identity(n): landmark for n, landmark in enumerate(stated.values())
        }
        assert len(pd.read_csv(out / "failed.csv")) == len(passed_over) + none


@pytest.mark.parametrize(
    "text", ["id,link\na,b\n", "id,url,landmark_id\nabc1,http://127.0.0.1:9/a,b,5\nabc2,http://127.0.0.1:9/a,6,5\n"]
)
def test_fetch_names_a_wrong_csv(tmp_path, text):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InputError, match="x.csv.*id,url,landmark_id"):
        convert.fetch(tmp_path / "x.csv", tmp_path / "out", "train", 100, 1, 0, allow_private=True)


def test_fetch_stops_when_the_network_is_gone_and_goes_on_later(tmp_path, serve, monkeypatch):
    monkeypatch.setattr(convert, "MAX_UNANSWERED", 3)
    photos_in(tmp_path / "web", 1)
    server = serve(tmp_path / "web")
    rows = [(identity(n), f"{server.url}/{'0' if n % 3 else 'gone'}.jpg", 1) for n in range(42)]
    pd.DataFrame(rows, columns=["id", "url", "landmark_id"]).to_csv(tmp_path / "train.csv", index=False)
    original = convert.download.read

    def cut_off(url, limit, allow_private):
        if len(server.requests) > 8:  # within the second of six shards
            raise ConnectionError("no route to host")
        return original(url, limit, allow_private)

    monkeypatch.setattr(convert.download, "read", cut_off)
    with pytest.raises(InputError, match="3 downloads in a row failed.*no route"):
        convert.fetch(tmp_path / "train.csv", tmp_path / "out", "train", 100, 1, 0, allow_private=True)
    monkeypatch.setattr(convert.download, "read", original)
    convert.fetch(tmp_path / "train.csv", tmp_path / "out", "train", 100, 1, 0, allow_private=True)
    assert len(FolderMirror(tmp_path / "out").ids("train")) == 28
    assert len(pd.read_csv(tmp_path / "out/failed.csv")) == 14


def test_fetch_says_what_was_made_of_this_list(tmp_path, serve, capsys):
    photos_in(tmp_path / "web", 1)
    url = serve(tmp_path / "web").url
    for split, numbers in (("train", range(12)), ("index", range(20, 25))):
        rows = [f"{identity(n)},{url}/{'gone' if n % 5 == 0 else 0}.jpg,1" for n in numbers]
        (tmp_path / f"{split}.csv").write_text("\n".join(["id,url,landmark_id", *rows]))
        convert.fetch(tmp_path / f"{split}.csv", tmp_path / "out", split, 100, 2, 0, allow_private=True)
        table = capsys.readouterr().out
        counts = {"train": (9, 0, 3), "index": (0, 4, 1)}[split]
        reason = "HTTP 404, the server has no such file: check the address"
        for what, count in zip(("train", "index", reason), counts, strict=True):
            assert re.search(rf"^ +{what} +{count}$", table, re.MULTILINE), table


def test_fetch_refuses_to_divide_what_gives_no_index(tmp_path):
    rows = [f"{identity(n)},http://127.0.0.1:9/x,{n // 2}" for n in range(8)]
    (tmp_path / "list.csv").write_text("\n".join(["id,url,landmark_id", *rows]))
    with pytest.raises(InputError, match="list.csv: no landmark has 3 photos"):
        convert.fetch(tmp_path / "list.csv", tmp_path / "out", "divide", 100, 1, 0, allow_private=True)
    assert not (tmp_path / "out").exists()


def test_a_list_that_is_absent_or_empty_is_told_as_that(tmp_path):
    with pytest.raises(InputError, match="list.csv cannot be read: No such file or directory; give"):
        convert.fetch(tmp_path / "list.csv", tmp_path / "out", "train", 64, 1, 0)
    (tmp_path / "list.csv").write_text("id,url,landmark_id\n")
    with pytest.raises(InputError, match="list.csv lists no photo: give"):
        convert.fetch(tmp_path / "list.csv", tmp_path / "out", "train", 64, 1, 0)
    assert not (tmp_path / "out").exists()
