import base64
import gzip
import os
import tracemalloc
from contextlib import suppress
from types import SimpleNamespace

import pytest
from conftest import Handler

from landmarks.mirrors import download
from landmarks.running import command
from landmarks.running.command import InputError, Stopped

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


def test_a_table_is_on_the_disk_before_it_gets_its_name(server, tmp_path, monkeypatch):
    named = []
    monkeypatch.setattr(os, "fsync", lambda _: named.append((tmp_path / "file").exists()))
    assert download.download(f"{server.url}/file", tmp_path / "file")
    assert named == [False]


def test_more_cuts_than_tries_are_fine_while_bytes_arrive(server, tmp_path):
    server.faults["/file"] = [cut(100_000)] * 20
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


def test_it_gives_up_with_one_clear_line_and_keeps_the_part(server, tmp_path, impatient):
    server.faults["/file"] = [cut(1_000_000)] + [status(503)] * 99
    with pytest.raises(InputError, match=r"/file could not be read.*0:01:00.*HTTP 503.*run the same command again"):
        download.download(f"{server.url}/file", tmp_path / "file", patience=60)
    assert 60 <= impatient.now < 62
    assert (tmp_path / "file.part").stat().st_size == 1_000_000
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("code", [403, 404])
def test_a_missing_file(server, tmp_path, code):
    server.faults["/file"] = [status(code)] * 2
    server.faults["HEAD /file"] = [status(code)]
    assert not download.exists(f"{server.url}/file")
    assert not download.download(f"{server.url}/file", tmp_path / "file")
    assert download.exists(f"{server.url}/file")


@pytest.mark.parametrize("code", [400, 403, 404, 405, 501])
def test_a_server_that_answers_only_get(server, code):
    server.faults["HEAD /file"] = [status(code)]
    assert download.exists(f"{server.url}/file")


def answer(code: int, body: bytes, **headers):
    def send(handler):
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = True

    return send


@pytest.mark.parametrize(
    "wrong",
    [
        answer(206, BODY[:100], Content_Range="bytes 0-99/3000000", Content_Length="100"),
        answer(206, BODY[:100], Content_Length="100"),
        answer(206, b"--x", Content_Type="multipart/byteranges; boundary=x"),
        answer(206, b"packed", Content_Range="bytes 1000000-2999999/3000000", Content_Encoding="gzip"),
    ],
)
def test_another_range_than_the_one_asked_for_is_not_used(server, tmp_path, wrong):
    server.faults["/file"] = [cut(1_000_000), wrong]
    assert download.download(f"{server.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY
    assert [r for _, r in server.requests] == [None, "bytes=1000000-", None]


def test_a_body_that_is_compressed_unasked_is_unpacked(server, tmp_path):
    packed = gzip.compress(BODY)
    length = str(len(packed))
    server.faults["/file"] = [
        answer(200, packed[:1_000_000], Content_Encoding="gzip", Content_Length=length),
        *[answer(200, packed, Content_Encoding="gzip", Content_Length=length)] * 2,
    ]
    assert download.download(f"{server.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY
    assert download.read(f"{server.url}/file", len(BODY), allow_private=True) == BODY


def test_a_small_body_that_unpacks_to_a_large_one_does_not_fill_the_memory(server):
    """urllib3 2.2 unpacked all of it, 4 GiB from 4 MB, before it counted."""
    packed, limit = gzip.compress(bytes(2**27)), 2**20
    server.faults["/file"] = [answer(200, packed, Content_Encoding="gzip", Content_Length=str(len(packed)))]
    tracemalloc.start()
    with pytest.raises(OSError, match="more than 1.05MB"):
        download.read(f"{server.url}/file", limit, allow_private=True)
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_what_netrc_knows_of_a_host_is_not_told_to_another(server, tmp_path, monkeypatch):
    """As requests 2.32.3 did: CVE-2024-47081."""
    (tmp_path / "netrc").write_text("machine host.example login me password word\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    told = []
    server.faults["/file"] = [lambda handler: (told.append(handler.headers["Authorization"]), handler.send_range(BODY))]
    download.read(server.url.replace("http://", "http://host.example:@") + "/file", len(BODY), allow_private=True)
    password = base64.b64encode(b"me:word").decode()
    assert told and password not in str(told)


@pytest.mark.parametrize("length", ["many", "-5", f"{len(BODY)}, {len(BODY)}"])
def test_an_odd_content_length(server, tmp_path, length):
    server.faults["/file"] = [answer(200, BODY, Content_Length=length)]
    assert download.download(f"{server.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY


@pytest.mark.parametrize("code", [202, 204, 304, 416])
def test_an_answer_without_the_file_is_not_taken_for_it(server, tmp_path, code):
    server.faults["/file"] = [answer(code, b"")]
    with pytest.raises(InputError, match=f"HTTP {code}"):
        download.download(f"{server.url}/file", tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["served"]


@pytest.mark.parametrize(
    "url", ["http://", "http://a..b/x", f"http://{'a' * 70}.org/x", "http://[::1", "ftp://x/y", "x"]
)
def test_a_url_that_cannot_be_one(url):
    with pytest.raises(InputError, match="cannot be read: .*(check the address|only http)"):
        download.exists(url)
    with pytest.raises(OSError):
        download.read(url, 100, allow_private=True)


def test_existence_is_asked_for_without_the_body_whatever_the_server_knows(server):
    server.faults["HEAD /file"] = [status(503), status(501)]
    assert download.exists(f"{server.url}/file")
    assert download.exists(f"{server.url}/file")
    assert server.requests == [("HEAD /file", None)] * 2 + [("/file", "bytes=0-0"), ("HEAD /file", None)]


def test_other_refusals_are_final(server, tmp_path):
    server.faults["/file"] = [status(401)]
    with pytest.raises(InputError, match="/file cannot be read: HTTP 401, the server asks for a name.*netrc"):
        download.download(f"{server.url}/file", tmp_path / "file")
    assert len(server.requests) == 1


def test_too_large_a_file_is_refused(server, tmp_path):
    with pytest.raises(InputError, match="more than 1.00kB are not accepted"):
        download.download(f"{server.url}/file", tmp_path / "file", limit=1000)
    with pytest.raises(OSError, match="not accepted"):
        download.read(f"{server.url}/file", limit=1000, allow_private=True)


def test_a_length_of_5000_digits_is_no_range(server, tmp_path):
    def endless(handler: Handler):
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 1000-{len(BODY) - 1}/{'9' * 5000}")
        handler.end_headers()

    (tmp_path / "file.part").write_bytes(BODY[:1000])
    server.faults["/file"] = [endless]
    assert download.download(f"{server.url}/file", tmp_path / "file", resume=True)
    assert (tmp_path / "file").read_bytes() == BODY


def test_without_room_for_the_rest_nothing_more_is_written(server, tmp_path, monkeypatch):
    (tmp_path / "file.part").write_bytes(BODY[:2_000_000])
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=999_999))
    with pytest.raises(InputError, match="no space left on the disk: the rest of .*/file takes 1.00MB"):
        download.download(f"{server.url}/file", tmp_path / "file", resume=True)
    assert (tmp_path / "file.part").stat().st_size == 2_000_000
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    assert download.download(f"{server.url}/file", tmp_path / "file", resume=True)


def test_a_stop_request_ends_it_and_keeps_the_part(server, tmp_path):
    server.faults["/file"] = [cut(1_000_000), lambda handler: command.stop_event.set() or handler.send_error(503)]
    with pytest.raises(Stopped):
        download.download(f"{server.url}/file", tmp_path / "file")
    assert (tmp_path / "file.part").stat().st_size == 1_000_000


def test_read(server):
    server.faults["/file"] = [cut(1000)]
    assert download.read(f"{server.url}/file", limit=len(BODY), allow_private=True) == BODY
    server.faults["/file"] = [cut(1000), status(503)]
    with pytest.raises(ConnectionError, match="HTTP 503"):
        download.read(f"{server.url}/file", limit=len(BODY), allow_private=True)


@pytest.mark.parametrize(("code", "cause"), [(403, "the server forbids it"), (404, "no such file"), (410, "any more")])
def test_why_there_is_no_file(server, code, cause):
    server.faults["/file"] = [status(code)] * 2
    server.faults["HEAD /file"] = [status(code)]
    assert f"HTTP {code}" in (reason := download.absence(f"{server.url}/file")) and cause in reason
    with pytest.raises(OSError, match=f"HTTP {code}.*{cause}.*check the address"):
        download.read(f"{server.url}/file", limit=100, allow_private=True)
    assert download.absence(f"{server.url}/file") == ""


def test_a_small_body_that_unpacks_to_a_large_one_is_not_unpacked(server):
    bomb = gzip.compress(bytes(100_000_000), 1)
    server.faults["/file"] = [answer(200, bomb, Content_Encoding="gzip", Content_Length=str(len(bomb)))]
    tracemalloc.start()
    try:
        with pytest.raises(OSError, match="more than 1.00MB"):
            download.read(f"{server.url}/file", limit=1_000_000, allow_private=True)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def redirect(target: str):
    return answer(302, b"", Location=target)


def test_redirects_are_followed_five_times(server):
    server.faults["/a"] = [redirect("/a")] * 4 + [redirect("/file")] + [redirect("/a")] * 9
    assert download.read(f"{server.url}/a", limit=len(BODY), allow_private=True) == BODY
    server.requests.clear()
    with pytest.raises(OSError, match="5 redirects"):
        download.read(f"{server.url}/a", limit=len(BODY), allow_private=True)
    assert len(server.requests) == 6


def test_the_body_of_a_redirect_is_not_read(server):
    sent = []

    def endless(handler: Handler):
        handler.send_response(302)
        handler.send_header("Location", "/file")
        handler.end_headers()
        with suppress(OSError):
            while len(sent) < 100:
                handler.wfile.write(BODY)
                sent.append(len(BODY))
        handler.close_connection = True

    server.faults["/a"] = [endless]
    assert download.read(f"{server.url}/a", limit=len(BODY), allow_private=True) == BODY
    assert len(sent) < 10


@pytest.mark.parametrize("other", ["file:///etc/passwd", "ftp://127.0.0.1/x", "/etc/passwd"])
def test_only_http_is_read(server, other):
    for url in (other, f"{server.url}/a"):
        server.faults["/a"] = [redirect(other)]
        with pytest.raises(OSError, match="only http:// and https://|HTTP 404"):
            download.read(url, limit=10_000, allow_private=True)
