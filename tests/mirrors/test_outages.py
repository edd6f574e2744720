import errno
import os
import socket
import ssl
import threading
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from landmarks.mirrors import download, outages
from landmarks.mirrors.outages import Failure, Unanswered, persist
from landmarks.running import command
from landmarks.running.command import InputError, Stopped

FAR_DATES = [f"Fri, 31 Dec {year} 23:59:59 GMT" for year in (99999, 10**10)]
URL = "http://mirror.test/file"


@pytest.fixture
def known(monkeypatch) -> None:
    """The server of URL has answered before."""
    monkeypatch.setattr(outages, "answered", {"http://mirror.test"})


@pytest.fixture
def server(serve, tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served/file").write_bytes(b"body")
    return serve(tmp_path / "served")


def status(code: int, **headers):
    def send(handler):
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return send


class Away:
    """Fails until the clock shows `back`."""

    def __init__(self, clock, back: float, **failure):
        self.clock, self.back, self.failure = clock, back, failure
        self.calls: list[float] = []

    def __call__(self) -> str:
        self.calls.append(self.clock.now)
        if self.clock.now < self.back:
            raise Failure("no route", **self.failure)
        return "answer"


def test_a_server_that_has_answered_is_waited_for(impatient, known, capsys):
    assert persist(URL, Away(impatient, back=1700), patience=1800) == "answer"
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "http://mirror.test is away (no route); waiting for it until 20" in said[0]


def test_a_short_failure_is_not_worth_a_line(impatient, known, capsys):
    persist(URL, Away(impatient, back=0.1), patience=1800)
    assert capsys.readouterr().err == ""


def test_the_patience_has_an_end_with_one_last_try_at_it(impatient, known):
    away = Away(impatient, back=1e9)
    with pytest.raises(Unanswered, match=f"{URL} could not be read, .* within 2:00:00: no route; check the address"):
        persist(URL, away, patience=7200)
    assert away.calls[-1] == pytest.approx(7200)


def test_no_patience_is_one_try(impatient, known):
    away = Away(impatient, back=1e9)
    with pytest.raises(Unanswered):
        persist(URL, away, patience=0)
    assert away.calls == [0]


def test_pauses_grow_up_to_a_minute(impatient, known, monkeypatch):
    monkeypatch.setattr(outages.random, "uniform", lambda least, most: most)
    away = Away(impatient, back=400)
    persist(URL, away, patience=1800)
    pauses = [round(after - before) for before, after in zip(away.calls, away.calls[1:], strict=False)]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60]


def test_a_server_that_has_never_answered_is_given_up_soon(impatient, capsys):
    away = Away(impatient, back=1e9)
    with pytest.raises(Unanswered):
        persist(URL, away, patience=1e6)
    assert 3 <= len(away.calls) <= outages.STRANGER_TRIES
    assert impatient.now <= outages.STRANGER_PATIENCE
    assert capsys.readouterr().err == ""


def test_progress_begins_the_patience_anew(impatient, known):
    calls = []

    def attempt() -> str:
        impatient.now += 50
        calls.append(impatient.now)
        if len(calls) == 40:
            return "answer"
        raise Failure("cut")

    assert persist(URL, attempt, patience=120, arrived=lambda: len(calls) // 2) == "answer"
    assert impatient.now > 40 * 50


@pytest.mark.parametrize(
    ("first", "is_known"),
    [(status(502), False), (status(404), True), (status(429), True), (status(503, Retry_After="1"), True)],
    ids=["502", "404", "429", "503 with Retry-After"],
)
def test_an_answer_makes_a_server_known_but_for_what_a_proxy_says_of_one_that_is_not_there(
    server, impatient, first, is_known
):
    server.faults["HEAD /file"] = [first] + [status(502)] * 99
    server.faults["/file"] = [status(502)] * 99
    with pytest.raises(
        InputError, match="HTTP 502, the server has trouble of its own; wait a while, then run the same"
    ):
        download.exists(f"{server.url}/file", patience=600)
    assert (impatient.now >= 600) == is_known
    assert is_known or impatient.now <= outages.STRANGER_PATIENCE


@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize("asked", ["300", lambda: formatdate(time.time() + 300, usegmt=True)], ids=["seconds", "date"])
def test_retry_after_is_heeded(server, tmp_path, impatient, capsys, code, asked):
    server.faults["/file"] = [status(code, Retry_After=asked if isinstance(asked, str) else asked())]
    assert download.download(f"{server.url}/file", tmp_path / "file", patience=1800)
    assert 298 <= impatient.now <= 300
    assert len(server.requests) == 2
    assert f"{server.url} is away (HTTP {code}" in capsys.readouterr().err


def test_retry_after_is_bounded_by_what_is_left_of_the_patience(server, tmp_path, impatient):
    server.faults["/file"] = [status(503, Retry_After="200")] * 3
    with pytest.raises(InputError, match="3 failures in a row within 0:05:00: HTTP 503"):
        download.download(f"{server.url}/file", tmp_path / "file", patience=300)
    assert impatient.now == pytest.approx(300)


@pytest.mark.parametrize("odd", ["soon", "-5", "1e9", "9" * 5000, *FAR_DATES, ""])
def test_an_odd_retry_after_is_passed_over(server, tmp_path, impatient, odd):
    server.faults["/file"] = [status(503, Retry_After=odd)]
    assert download.download(f"{server.url}/file", tmp_path / "file")
    assert impatient.now <= 1


def test_a_photo_of_a_list_is_not_waited_for_long(server, impatient, capsys):
    server.faults["/file"] = [status(429, Retry_After="40")]
    assert download.read(f"{server.url}/file", 100, allow_private=True) == b"body"
    assert 39 <= impatient.now <= 40
    server.faults["/file"] = [status(429, Retry_After="40000")] * 2
    with pytest.raises(ConnectionError, match="^HTTP 429, the server is asked too often; wait a while$"):
        download.read(f"{server.url}/file", 100, allow_private=True)
    assert impatient.now <= 40 + download.PHOTO_PATIENCE
    assert capsys.readouterr().err == ""


def test_a_stop_request_ends_the_waiting_at_once(known, monkeypatch):
    monkeypatch.setattr(outages, "clock", time.monotonic)
    monkeypatch.setattr(outages, "stop_event", command.stop_event)

    def attempt():
        threading.Timer(0.01, command.stop_event.set).start()
        raise Failure("no route", retry_after=600)

    begin = time.monotonic()
    with pytest.raises(Stopped):
        persist(URL, attempt, patience=5)
    assert time.monotonic() - begin < 4


def test_who_goes_on_after_a_stop_request_does_not_keep_a_core_busy(known, monkeypatch):
    monkeypatch.setattr(outages, "clock", time.monotonic)
    monkeypatch.setattr(outages, "stop_event", command.stop_event)
    command.stop_event.set()
    faults, checks = [Failure("no route", retry_after=0.2)], []

    def attempt():
        if faults:
            raise faults.pop()

    persist(URL, attempt, check=lambda: checks.append(None))
    assert 1 <= len(checks) < 10


def test_a_certificate_that_is_not_valid_is_told_at_once(server, impatient):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Path(__file__).with_name("self_signed.pem"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = server.url.replace("http:", "https:")
    with pytest.raises(
        InputError, match=f"{url}/file could not be read.*TLS certificate is not valid.*self.signed.*clock"
    ):
        download.exists(f"{url}/file")
    with pytest.raises(ConnectionError, match="TLS certificate is not valid"):
        download.read(f"{url}/file", 100, allow_private=True)
    assert server.requests == []
    assert impatient.now == 0


def test_a_server_without_tls_is_named_so(server):
    url = server.url.replace("http:", "https:")
    with pytest.raises(InputError, match=f"{url}/file could not be read.*no TLS connection.*begins with http://"):
        download.exists(f"{url}/file")


def test_a_refused_connection_is_named_so():
    with pytest.raises(InputError, match="127.0.0.1:9/file could not be read.*connection is refused.*host and port"):
        download.exists("http://127.0.0.1:9/file")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            "host name is not found.*check its spelling and the network",
        ),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "host name is not found.*the network"),
        (TimeoutError("timed out"), "no answer in time.*check the address and the network"),
        (OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH)), "unreachable; check the address and the network"),
    ],
)
@pytest.mark.parametrize("allow_private", [True, False])
def test_why_there_is_no_connection(monkeypatch, error, line, allow_private):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(InputError, match=f"{URL} could not be read.*{line}, then run the same command again"):
        download.exists(URL)
    with pytest.raises(ConnectionError, match=line):
        download.read(URL, 100, allow_private)
