"""HTTP: does a file exist, and download it whole, through cuts and server errors."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TypeVar

import requests
import tenacity
import urllib3
from tqdm import tqdm

from landmarks.running.command import InputError, check_stop, stop_event

TRIES = 5
WAIT = tenacity.wait_random_exponential(multiplier=1, max=20)  # seconds between two tries
TIMEOUT = (10, 30)  # seconds to connect, and between two reads
CHUNK = 2**20
MAX_BYTES = 16 * 2**30
session = requests.Session()
session.headers["Accept-Encoding"] = "identity"  # ranges and lengths must mean the file's own bytes
for scheme in ("http://", "https://"):
    session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=64))
CUT = (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError)  # what reading a body raises when the network fails
Result = TypeVar("Result")


class Transient(Exception):
    """A failure worth another try: 5xx, 429, time-out, cut or short body."""


def exists(url: str) -> bool:
    """Whether the server has `url`; a missing key is 404, or 403 on S3. Raises InputError when it does not answer."""

    def ask() -> bool:
        # Some servers know no HEAD and say so in many ways, so only a GET counts as a no.
        head = _request("HEAD", url)
        response = head if head.status_code < 300 else _ask(url, {"Range": "bytes=0-0"})
        if response is not None:
            response.close()
        return response is not None

    return _persist(url, ask)


def download(
    url: str,
    path: Path,
    resume: bool = False,
    limit: int = MAX_BYTES,
    check: Callable[[], None] = check_stop,
) -> bool:
    """Download `url` to `path`, which appears only when it is whole; False when the server has no such file.

    A cut transfer goes on where it was by a Range request; with `resume` also one that an earlier process began.
    What has arrived is kept when it fails.

    Args:
        limit: the most bytes to accept.
        check: called between chunks; what it raises ends the download.

    Raises:
        InputError: after `TRIES` tries without progress, or when the server refuses, or the file is too large.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    if not resume:
        part.unlink(missing_ok=True)
    transfer = _Transfer(url, part, limit, check)
    found = _persist(url, transfer.receive, arrived=lambda: _size(part))
    if found:
        os.replace(part, path)
    return found


def read(url: str, limit: int) -> bytes:
    """The body of `url`.

    Raises:
        ConnectionError: no answer, or no whole one, two times in a row.
        OSError: the server has no such file or refuses, or the body is over `limit` bytes.
    """

    def attempt() -> bytes | None:
        response = _ask(url, {})
        if response is None:
            return None
        with response:
            try:
                return response.raw.read(limit + 1, decode_content=True)
            except CUT as error:
                raise Transient(_reason(error)) from error

    try:
        body = _persist(url, attempt, tries=2)
    except InputError as error:
        raise (ConnectionError if isinstance(error.__cause__, Transient) else OSError)(str(error)) from error
    if body is None:
        raise OSError("the server has no such file")
    if len(body) > limit:
        raise OSError(f"more than {limit:,} bytes are not accepted")
    return body


def _persist(
    url: str, attempt: Callable[[], Result], tries: int = TRIES, arrived: Callable[[], int] = lambda: 0
) -> Result:
    """Call `attempt` until it raises no Transient, or `tries` calls in a row have not raised what `arrived` says."""
    most, fruitless = arrived(), 0

    def give_up(_state: tenacity.RetryCallState) -> bool:
        nonlocal most, fruitless
        now = arrived()
        fruitless = 0 if now > most else fruitless + 1
        most = max(most, now)
        return fruitless >= tries

    retry = tenacity.Retrying(
        stop=give_up,
        wait=WAIT,
        retry=tenacity.retry_if_exception_type(Transient),
        sleep=tenacity.sleep_using_event(stop_event),
        reraise=True,
    )
    try:
        return retry(attempt)
    except Transient as error:
        raise InputError(
            f"{url} could not be read, {tries} tries in a row ({error}); check the address and the network, "
            "then run the same command again: what has arrived is kept"
        ) from error


def _request(method: str, url: str, headers: dict[str, str] | None = None) -> requests.Response:
    """One request, its body not read yet. Raises Transient for what another try may mend."""
    check_stop()
    try:
        response = session.request(method, url, headers=headers, stream=True, timeout=TIMEOUT, allow_redirects=True)
    except (requests.ConnectionError, requests.Timeout) as error:
        raise Transient(_reason(error)) from error
    except (requests.RequestException, ValueError) as error:  # ValueError: a host's name that no socket accepts
        raise InputError(f"{url} cannot be read: {error}") from error
    if (response.status_code >= 500 and response.status_code != 501) or response.status_code in (408, 429):
        response.close()
        raise Transient(f"HTTP {response.status_code}")
    return response


def _ask(url: str, headers: dict[str, str]) -> requests.Response | None:
    """The answer to a GET, its body not read yet; None when the server has no such file."""
    response = _request("GET", url, headers)
    if response.status_code in (200, 206) or (response.status_code == 416 and headers):
        return response
    response.close()
    if response.status_code in (403, 404, 410):
        return None
    raise InputError(f"{url} cannot be read: HTTP {response.status_code}; check the address")


@dataclass
class _Transfer:
    """One file on its way to `part`; every `receive` goes on where the last one was cut."""

    url: str
    part: Path
    limit: int
    check: Callable[[], None]
    validator: dict[str, str] = field(default_factory=dict)

    def receive(self) -> bool:
        """Bring `part` to its full length; raise Transient, keeping what arrived, when the transfer ends before."""
        begin = _size(self.part)
        response = _ask(self.url, {"Range": f"bytes={begin}-", **self.validator} if begin else {})
        if response is None:
            return False
        with response:
            if response.status_code == 416:
                if response.headers.get("Content-Range") == f"bytes */{begin}":
                    return True
                self._begin_again("the part on disk is longer than the file")
            encoded = response.headers.get("Content-Encoding", "identity") != "identity"
            place = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if response.status_code == 200:
                begin, total = 0, None if encoded else response.raw.length_remaining
            elif place and int(place[1]) == begin and not encoded:
                total = None if place[2] == "*" else int(place[2])
            else:
                self._begin_again("the server sent another range than the one asked for")
            if (total or 0) > self.limit:
                raise InputError(f"{self.url} is {total:,} bytes; more than {self.limit:,} are not accepted")
            # Without it, a file that changes between two tries would be glued together from both versions.
            weak = response.headers.get("ETag", "W/").startswith("W/")
            unchanged = response.headers.get("Last-Modified" if weak else "ETag")
            self.validator = {"If-Range": unchanged} if unchanged else {}
            self._copy_body(response, begin, total, encoded)
        if total is not None and _size(self.part) != total:
            raise Transient(f"the transfer was cut at {_size(self.part):,} of {total:,} bytes")
        return True

    def _begin_again(self, reason: str) -> NoReturn:
        self.part.unlink(missing_ok=True)
        raise Transient(reason)

    def _copy_body(self, response: requests.Response, begin: int, total: int | None, encoded: bool) -> None:
        name = self.url.rsplit("/", 1)[-1]
        bar = tqdm(desc=name, initial=begin, total=total, unit="B", unit_scale=True, leave=False)
        with open(self.part, "r+b" if begin else "wb") as file, bar:
            file.seek(begin)
            file.truncate()
            try:
                # read1 hands over what has arrived; iter_content would lose up to a chunk of it when it is cut.
                while chunk := response.raw.read1(CHUNK, decode_content=encoded):
                    self.check()
                    file.write(chunk)
                    bar.update(len(chunk))
                    if file.tell() > self.limit:
                        raise InputError(f"{self.url} sends more than {self.limit:,} bytes, which are not accepted")
            except CUT as error:
                raise Transient(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """The innermost cause in one short line: requests wraps it in up to four layers."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {error}"[:200]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
