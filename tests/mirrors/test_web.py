import shutil
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import make_mirror, recipe_with, tars

import recognition
import retrieval
from landmarks.mirrors.web import WebMirror
from landmarks.running import command
from landmarks.running.command import InputError
from landmarks.running.files import md5
from landmarks.running.settings import MirrorSettings


def status(code: int):
    return lambda handler: handler.send_error(code)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 500, 1000])
def test_the_number_of_shards_is_found_by_asking(count, monkeypatch):
    asked = []

    def exists(url, patience):
        asked.append(url)
        return int(url[-7:-4]) < count

    monkeypatch.setattr("landmarks.mirrors.download.exists", exists)
    names = WebMirror("http://mirror", Path("unused")).shard_names("train")
    assert names == [f"images_{number:03d}" for number in range(count)]
    assert len(asked) <= 22


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_at_most_ahead_and_one_shards_are_on_disk(tiny_mirror, serve, tmp_path, ahead):
    mirror = WebMirror(serve(tiny_mirror).url, tmp_path, MirrorSettings(ahead=ahead))
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
    mirror = WebMirror(serve(tiny_mirror).url, tmp_path, MirrorSettings(ahead=ahead))
    names = [f"images_00{number}" for number in (0, 0, 1, 2, 2, 2, 0, 1, 0)]
    assert [(shard.name, len(shard.read(shard.ids[0])) > 0) for shard in mirror.stream("train", names)] == [
        (name, True) for name in names
    ]
    assert tars(tmp_path) == []


def test_what_a_killed_run_left_is_used_kept_or_deleted(tiny_mirror, serve, tmp_path):
    server = serve(tiny_mirror)
    (tmp_path / "train").mkdir()
    for name in ("images_001.tar", "images_004.tar"):
        shutil.copy(tiny_mirror / "train" / name, tmp_path / "train")
    (tmp_path / "train/images_003.tar.part").write_bytes(b"part")
    mirror = WebMirror(server.url, tmp_path)
    for shard in mirror.stream("train", ["images_001"]):
        assert shard.name == "images_001"
        assert tars(tmp_path) == ["images_001.tar", "images_004.tar"]  # what has cost most is kept
    assert not [path for path, _ in server.requests if path.endswith(".tar")]


def test_what_came_from_one_address_is_not_taken_for_what_another_has(tiny_mirror, serve, tmp_path):
    other = make_mirror(tmp_path / "other", train=9)
    cache = tmp_path / "cache"
    for folder in (tiny_mirror, other, tiny_mirror):
        mirror = WebMirror(serve(folder).url, cache)
        assert mirror.ids("train") == pd.read_csv(folder / "metadata/train.csv")["id"].tolist()
        for shard in mirror.stream("train", ["images_000"]):
            assert shard.path.read_bytes() == (folder / "train/images_000.tar").read_bytes()
            assert mirror.fingerprint("train", "images_000") == md5(folder / "train/images_000.tar")
            (cache / "train/images_000.tar.part").write_bytes(b"of a run that was killed")


def test_a_table_that_is_malformed_is_downloaded_again_by_the_next_run(tiny_mirror, serve, tmp_path):
    server = serve(tiny_mirror)
    for table, read in (("train", WebMirror.train), ("train_label_to_category", WebMirror.categories)):
        server.faults[f"/metadata/{table}.csv"] = [lambda h: h.send_range(b"id,landmark_id,category\n1")]
        with pytest.raises(InputError, match=f"{table}.csv is not a CSV"):
            read(WebMirror(server.url, tmp_path))
        assert len(read(WebMirror(server.url, tmp_path)))


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_a_stream_leaves_to_the_others_what_it_has_room_for(tiny_mirror, serve, tmp_path, ahead):
    """As at a resume, whose first streams are of splits that are done already, or nearly."""
    server = serve(tiny_mirror)
    body = (tiny_mirror / "index/images_000.tar").read_bytes()
    half = tmp_path / "index/images_000.tar.part"
    half.parent.mkdir()
    half.write_bytes(body[:1024])
    mirror = WebMirror(server.url, tmp_path, MirrorSettings(ahead=ahead))
    assert not list(mirror.stream("test", [])) and half.exists()
    for shard in mirror.stream("train", ["images_005"]):
        assert shard.ids and len(tars(tmp_path)) <= ahead + 1
    assert half.exists() == (ahead > 0)
    for shard in mirror.stream("index", ["images_000"]):
        assert shard.path.read_bytes() == body
    asked = [wanted for path, wanted in server.requests if path == "/index/images_000.tar"]
    assert asked == (["bytes=1024-"] if ahead else [None])
    half.write_bytes(body[:1024])
    for _ in mirror.stream("train", [f"images_{number:03d}" for number in (0, 0, 0, *range(5))]):
        assert len(tars(tmp_path)) <= ahead + 1
    assert tars(tmp_path) == []


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
    command._say_warnings()
    assert capsys.readouterr().err.count("recorded in") == 1


def test_strict_md5_stops_with_one_clear_line(tiny_mirror, serve, tmp_path):
    mirror = WebMirror(
        serve(lying_mirror(tiny_mirror, tmp_path)).url, tmp_path / "cache", MirrorSettings(strict_md5=True)
    )
    with pytest.raises(InputError, match="train/images_000.tar is damaged.*published is 0000.*--strict-md5"):
        next(mirror.stream("train", ["images_000"]))
    assert tars(tmp_path / "cache") == []


def test_an_md5_that_arrived_wrong_is_asked_for_again(tiny_mirror, serve, tmp_path):
    server = serve(tiny_mirror)
    path = "/md5sum/train/md5.images_000.txt"
    server.faults[path] = [lambda handler: handler.send_range(b"0" * 32)]
    strict = MirrorSettings(strict_md5=True)
    assert next(WebMirror(server.url, tmp_path, strict).stream("train", ["images_000"])).ids

    (tmp_path / path[1:]).write_text("0" * 32)  # one that a run has kept
    server.faults[path] = [lambda handler: handler.send_range(b"1" * 32)]
    with pytest.raises(InputError, match="published is 1111"):
        next(WebMirror(server.url, tmp_path, strict).stream("train", ["images_000"]))
    assert next(WebMirror(server.url, tmp_path, strict).stream("train", ["images_000"])).ids


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


def test_leaving_a_stream_does_not_wait_for_a_mirror_that_is_away(tiny_mirror, serve, tmp_path, impatient, monkeypatch):
    def wait(seconds: float) -> None:
        impatient.now += seconds
        time.sleep(0.001)

    monkeypatch.setattr(impatient, "wait", wait)
    server = serve(tiny_mirror)
    server.faults["/train/images_001.tar"] = [status(503)] * 999
    stream = WebMirror(server.url, tmp_path, MirrorSettings(patience=1e6)).stream("train", ["images_000", "images_001"])
    next(stream)
    while impatient.now < 100:
        time.sleep(0.001)
    left = impatient.now
    stream.close()
    assert impatient.now - left < 100


@pytest.mark.parametrize("code", [403, 404])
def test_what_must_be_there_is_named_with_what_the_server_says_of_it(tiny_mirror, serve, tmp_path, code):
    server = serve(tiny_mirror)
    mirror = WebMirror(server.url, tmp_path)
    for path in ("/train/images_000.tar", "/metadata/train.csv"):
        server.faults[f"HEAD {path}"] = [status(code)] * 9
        server.faults[path] = [status(code)] * 9
    with pytest.raises(InputError, match=rf"{server.url} is no mirror.*train/images_000.tar \(HTTP {code}, .* give a"):
        mirror.require("train")
    with pytest.raises(InputError, match=rf"{server.url} has no metadata/train.csv.* \(HTTP {code}, .* check the mir"):
        mirror.train()
    with pytest.raises(InputError, match=rf"{server.url}/train/images_000.tar is not there any more \(HTTP {code}, "):
        next(mirror.stream("train", ["images_000"]))


def test_a_mirror_is_waited_for_as_long_as_its_patience_lasts(tiny_mirror, serve, tmp_path, impatient):
    server = serve(tiny_mirror)
    mirror = WebMirror(server.url, tmp_path, MirrorSettings(patience=500))
    assert mirror.shard_names("test")
    for ask in (
        lambda: mirror.shard_names("train"),
        lambda: mirror.ids("train"),
        lambda: next(mirror.stream("test", ["images_000"])),
        lambda: mirror.absence("train/images_000.tar"),
    ):
        impatient.now = 0.0
        for path in ("HEAD /train/images_000.tar", "/metadata/train.csv", "/test/images_000.tar"):
            server.faults[path] = [status(503)] * 99
        with pytest.raises(InputError, match="HTTP 503"):
            ask()
        assert impatient.now == pytest.approx(500)


@pytest.mark.parametrize("door", [recognition, retrieval])
def test_the_commands_give_their_patience_to_the_mirror(tmp_path, monkeypatch, door):
    def require(mirror, *_):
        raise InputError(f"patience {mirror.settings.patience:g}")

    monkeypatch.setattr(WebMirror, "require", require)
    recipe_with(work=tmp_path, mirror="http://mirror.test").keep()
    for name in ("model.keras", "labels.csv"):  # of a trained model
        (tmp_path / name).touch()
    monkeypatch.setattr(sys, "argv", ["", "--work", str(tmp_path), "--patience", "2h"])
    with pytest.raises(InputError, match="patience 7200"):
        door.main()


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


def test_strict_md5_refuses_what_was_once_accepted_without(tiny_mirror, serve, tmp_path):
    server = serve(lying_mirror(tiny_mirror, tmp_path))
    for _ in WebMirror(server.url, tmp_path / "cache").stream("train", ["images_000"]):
        pass
    with pytest.raises(InputError, match="published is 0000"):
        next(WebMirror(server.url, tmp_path / "cache", MirrorSettings(strict_md5=True)).stream("train", ["images_000"]))


def test_a_resumed_run_goes_on_with_the_shard_that_it_had_half(tiny_mirror, serve, tmp_path):
    """The held-out photos are kept; asking for their shard again would clear the train shards away."""
    import numpy as np

    from landmarks.running.settings import TrainingSettings
    from landmarks.training import schedule
    from landmarks.training.validation import Validation

    server = serve(tiny_mirror)
    training = TrainingSettings(batch_size=4)
    cache = tmp_path / "mirror"
    mirror = WebMirror(server.url, cache)
    train = mirror.train()
    classes = pd.Series(np.searchsorted([10, 20, 30], train["landmark_id"]), index=train["id"])
    names = mirror.shard_names("train")
    Validation(mirror, names[-1:], classes, tmp_path, most=2048, image_size=32, batch_size=4)
    order = [shard.name for shard, _ in schedule.stream(training, mirror, names[:-1], classes, 0)]
    half = cache / "train" / f"{order[2]}.tar.part"
    half.write_bytes((tiny_mirror / "train" / f"{order[2]}.tar").read_bytes()[:1024])

    server.requests.clear()
    mirror = WebMirror(server.url, cache)
    Validation(mirror, names[-1:], classes, tmp_path, most=2048, image_size=32, batch_size=4)
    assert half.exists()
    next(schedule.stream(training, mirror, names[:-1], classes, 2))
    asked = [wanted for path, wanted in server.requests if path.endswith(f"{order[2]}.tar")]
    assert asked == ["bytes=1024-"]
    assert not [path for path, _ in server.requests if path.endswith(f"{names[-1]}.tar")]


def test_shards_ahead_are_downloaded_at_once(tiny_mirror, serve, tmp_path, monkeypatch):
    """Each waits until three are under way, which one after another would never be."""
    together = threading.Barrier(3, timeout=20)
    fetch = WebMirror._fetch

    def wait_for_the_others(mirror, split, name, check):
        if name in ("images_000", "images_001", "images_002"):
            together.wait()
        return fetch(mirror, split, name, check)

    monkeypatch.setattr(WebMirror, "_fetch", wait_for_the_others)
    mirror = WebMirror(serve(tiny_mirror).url, tmp_path, MirrorSettings(ahead=3))
    names = mirror.shard_names("train")
    assert [shard.name for shard in mirror.stream("train", names + names[-1:])] == names + names[-1:]
