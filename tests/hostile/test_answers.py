"""Answers of a server: status, lengths, ranges, encodings, redirects."""

import gc
import gzip
import logging
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strangers import hostile

from landmarks.mirrors import download
from landmarks.running.command import InputError

PACKED = gzip.compress(bytes(5_000_000))
LIMIT = 100_000


@st.composite
def answers(draw):
    headers = {
        "Content-Length": ["0", "5", "-1", "99999999999999999999", "many", "5, 5", "1" * 5000, "٣"],
        "Content-Range": ["bytes 0-4/5", "bytes 5-4/5", "bytes */5", "bytes 0-4/*", "x", f"bytes 0-4/{'9' * 5000}"],
        "Content-Encoding": ["gzip", "deflate", "br", "zstd", "gzip, gzip", "identity", "x"],
        "Transfer-Encoding": ["chunked", "x"],
        "Location": ["/file", "//[", "file:///etc/passwd", "http://127.0.0.1:1/", "\x00", "x" * 9000, "http://a..b/"],
        "Retry-After": ["1", "-1", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT", "x"],
        "ETag": ['"x"', "W/", "\xff", "x" * 9000],
        "Set-Cookie": ["x=y; Expires=9", "=;"],
        "X": ["x" * 70_000],
    }
    lines = draw(st.lists(st.sampled_from(sorted(headers)), max_size=4, unique=True))
    status = draw(st.sampled_from("200 200 200 206 206 204 301 302 304 308 401 404 416 429 500 503 099 1000 x".split()))
    bodies = st.sampled_from([b"photo", b"", PACKED, bytes(LIMIT + 1), b"5\r\nphoto\r\n0\r\n\r\n", b"ffffffffff\r\nx"])
    rest = "".join(f"{name}: {draw(st.sampled_from(headers[name]))}\r\n" for name in lines)
    raw = f"HTTP/1.1 {status} x\r\n{rest}\r\n".encode() + draw(bodies)
    return draw(st.sampled_from([raw] * 9 + [raw[:20], b"", b"\xff" * 100, b"HTTP/1.1 100 x\r\n\r\n" * 9 + raw]))


def send(raw: bytes):
    def answer(handler):
        handler.close_connection = True
        with suppress(OSError):
            handler.wfile.write(raw)

    return answer


@pytest.fixture
def server(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", (1, 1))
    (tmp_path / "served").mkdir()
    (tmp_path / "served/file").write_bytes(b"photo")
    monkeypatch.setattr(logging.getLogger("urllib3.connection"), "disabled", True)  # or it tells of every odd header
    yield serve(tmp_path / "served")
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # sockets that wait to be collected
@settings(hostile, max_examples=hostile.max_examples // 3)
@given(st.lists(answers(), min_size=1, max_size=4))
def test_answers(server, read_within_bounds, some):
    url = f"{server.url}/file"

    def fetch(path: Path) -> None:
        server.faults["/file"] = list(map(send, some))
        if download.download(url, path, resume=True, limit=LIMIT, patience=5):
            assert path.stat().st_size <= LIMIT and not path.with_name("x.part").exists()

    def take(_: Path) -> None:
        server.faults["/file"] = list(map(send, some))
        assert len(download.read(url, LIMIT, allow_private=True)) <= LIMIT

    def ask(_: Path) -> None:
        server.faults["HEAD /file"], server.faults["/file"] = list(map(send, some)), list(map(send, some))
        download.absence(url, patience=5)

    read_within_bounds(fetch, b"", "x", InputError)
    read_within_bounds(take, b"", "x", OSError)
    read_within_bounds(ask, b"", "x", InputError)
