import os

import pytest
from conftest import Handler

import command
import download
from command import InputError, Stopped

BODY = os.urandom(3_000_000)


@pytest.fixture
def server(serve, tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served/file").write_bytes(BODY)
    return serve(tmp_path / "served")


def cut(after: int):
    return lambda handler: handler.send_range(BODY, cut=after)


def status(code: int):
    return lambda handler: handler.send_error(code)


def whole_file_again(handler: Handler):
    del handler.headers["Range"]
    handler.send_range(BODY)


def test_cuts_and_server_errors_are_survived_and_nothing_is_sent_twice(server, tmp_path):
    server.faults["/file"] = [cut(1_000_000), status(503), cut(500_000), status(429), cut(0), status(500)]
    assert download.download(f"{server.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY
    begins = [int((r or "bytes=0-")[6:-1]) for _, r in server.requests]
    assert begins == [0, 1_000_000, 1_000_000, 1_500_000, 1_500_000, 1_500_000, 1_500_000]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "served"]


def test_more_cuts_than_tries_are_fine_while_bytes_arrive(server, tmp_path):
    server.faults["/file"] = [cut(100_000)] * (3 * download.TRIES)
    assert download.download(f"{server.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    server.faults["/file"] = [cut(1_000_000), whole_file_again]
    assert download.download(f"{server.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_part_of_an_earlier_process_is_used_only_on_request(server, tmp_path):
    (tmp_path / "file.part").write_bytes(BODY[:2_000_000])
    download.download(f"{server.url}/file", tmp_path / "file", resume=True)
    assert server.requests == [("/file", "bytes=2000000-")]
    (tmp_path / "file.part").write_bytes(b"of an older version")
    download.download(f"{server.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY


@pytest.mark.parametrize("extra", [b"", b"longer than the file"])
def test_a_part_as_long_as_the_file_or_longer(server, tmp_path, extra):
    (tmp_path / "file.part").write_bytes(BODY + extra)
    download.download(f"{server.url}/file", tmp_path / "file", resume=True)
    assert (tmp_path / "file").read_bytes() == BODY


def test_it_gives_up_with_one_clear_line_and_keeps_the_part(server, tmp_path):
    server.faults["/file"] = [cut(1_000_000)] + [status(503)] * 99
    with pytest.raises(InputError, match=r"/file could not be read.*HTTP 503.*run the same command again"):
        download.download(f"{server.url}/file", tmp_path / "file")
    assert len(server.requests) == 1 + download.TRIES
    assert (tmp_path / "file.part").stat().st_size == 1_000_000
    assert not (tmp_path / "file").exists()


def test_no_server():
    with pytest.raises(InputError, match="check the address and the network"):
        download.exists("http://127.0.0.1:9/file")


@pytest.mark.parametrize("code", [403, 404])
def test_a_missing_file(server, tmp_path, code):
    server.faults["/file"] = server.faults["HEAD /file"] = [status(code)] * 2
    assert not download.exists(f"{server.url}/file")
    assert not download.download(f"{server.url}/file", tmp_path / "file")
    assert download.exists(f"{server.url}/file")


def test_existence_is_asked_for_without_the_body_whatever_the_server_knows(server):
    server.faults["HEAD /file"] = [status(503), status(501)]
    assert download.exists(f"{server.url}/file")
    assert download.exists(f"{server.url}/file")
    assert server.requests == [("HEAD /file", None)] * 2 + [("/file", "bytes=0-0"), ("HEAD /file", None)]


def test_other_refusals_are_final(server, tmp_path):
    server.faults["/file"] = [status(401)]
    with pytest.raises(InputError, match="HTTP 401"):
        download.download(f"{server.url}/file", tmp_path / "file")
    assert len(server.requests) == 1


def test_too_large_a_file_is_refused(server, tmp_path):
    with pytest.raises(InputError, match="more than 1,000 are not accepted"):
        download.download(f"{server.url}/file", tmp_path / "file", limit=1000)
    with pytest.raises(OSError, match="not accepted"):
        download.read(f"{server.url}/file", limit=1000)


def test_a_stop_request_ends_it_and_keeps_the_part(server, tmp_path):
    server.faults["/file"] = [cut(1_000_000), lambda handler: command.stop_event.set() or handler.send_error(503)]
    with pytest.raises(Stopped):
        download.download(f"{server.url}/file", tmp_path / "file")
    assert (tmp_path / "file.part").stat().st_size == 1_000_000


def test_read(server):
    assert download.read(f"{server.url}/file", limit=len(BODY)) == BODY
    with pytest.raises(OSError, match="no such file"):
        download.read(f"{server.url}/other", limit=100)
