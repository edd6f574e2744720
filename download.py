"""HTTP: does a file exist, and download it whole, through cuts and server errors."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import requests
import tenacity
import urllib3
from tqdm import tqdm

from command import InputError, check_stop, stop_event

TRIES = 5
WAIT = tenacity.wait_random_exponential(multiplier=1, max=20)  # seconds between two tries
TIMEOUT = (10, 30)  # seconds to connect, and between two reads
CHUNK = 2**20
MAX_BYTES = 16 * 2**30

session = requests.Session()
session.headers["Accept-Encoding"] = "identity"  # ranges and lengths must mean the file's own bytes
for scheme in ("http://", "https://"):
    session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=64))


class Transient(Exception):
    """A failure worth another try: 5xx, 429, time-out, cut or short body."""


def exists(url: str) -> bool:
    """Whether the server has `url`; a missing key is 404, or 403 on S3. Raises InputError when it does not answer."""
    return _persist(url, lambda: _ask(url, {}, "HEAD") is not None)


def download(
    url: str,
    path: Path,
    resume: bool = False,
    limit: int = MAX_BYTES,
    progress: bool = True,
    check: Callable[[], None] = check_stop,
    tries: int = TRIES,
) -> bool:
    """Download `url` to `path`, which appears only when it is whole; False when the server has no such file.

    A cut transfer goes on where it was by a Range request; with `resume` also one that an earlier process began.
    What has arrived is kept when it fails.

    Args:
        limit: the most bytes to accept.
        check: called between chunks; what it raises ends the download.
        tries: in a row that bring no new byte before it gives up.

    Raises:
        InputError: after `tries` tries without progress, or when the server refuses, or the file is too large.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    if not resume:
        part.unlink(missing_ok=True)
    transfer = _Transfer(url, part, limit, progress, check)
    found = _persist(url, transfer.receive, tries, lambda: _size(part))
    if found:
        os.replace(part, path)
    return found


def read(url: str, limit: int) -> bytes:
    """The body of `url`. Raises OSError when the server has no such file, fails twice, or sends over `limit` bytes."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "body"
        try:
            if not download(url, path, limit=limit, progress=False, tries=2):
                raise OSError("the server has no such file")
        except InputError as error:
            raise OSError(str(error)) from error
        return path.read_bytes()


def _persist(url: str, attempt: Callable[[], bool], tries: int = TRIES, arrived: Callable[[], int] = lambda: 0) -> bool:
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


def _ask(url: str, headers: dict[str, str], method: str = "GET") -> requests.Response | None:
    """One request, its body not read yet; None when the server has no such file."""
    check_stop()
    try:
        response = session.request(method, url, headers=headers, stream=True, timeout=TIMEOUT, allow_redirects=True)
    except (requests.ConnectionError, requests.Timeout) as error:
        raise Transient(_reason(error)) from error
    except requests.RequestException as error:
        raise InputError(f"{url} cannot be read: {error}") from error
    if response.status_code in (200, 206, 416) and method == "GET":
        return response
    response.close()
    if response.status_code in (405, 501) and method == "HEAD":  # some servers know no HEAD
        response = _ask(url, {"Range": "bytes=0-0"})
        if response is not None:
            response.close()
        return response
    if response.status_code < 300:
        return response
    if response.status_code in (403, 404, 410):
        return None
    if response.status_code >= 500 or response.status_code in (408, 429):
        raise Transient(f"HTTP {response.status_code}")
    raise InputError(f"{url} cannot be read: HTTP {response.status_code}; check the address")


@dataclass
class _Transfer:
    """One file on its way to `part`; every `receive` goes on where the last one was cut."""

    url: str
    part: Path
    limit: int
    progress: bool
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
                self.part.unlink()
                raise Transient("the part on disk is longer than the file")
            begin, total = _extent(response, begin)
            if (total or 0) > self.limit:
                raise InputError(f"{self.url} is {total:,} bytes; more than {self.limit:,} are not accepted")
            # Without it, a file that changes between two tries would be glued together from both versions.
            weak = response.headers.get("ETag", "W/").startswith("W/")
            unchanged = response.headers.get("Last-Modified" if weak else "ETag")
            self.validator = {"If-Range": unchanged} if unchanged else {}
            self._copy_body(response, begin, total)
        if total is not None and _size(self.part) != total:
            raise Transient(f"the transfer was cut at {_size(self.part):,} of {total:,} bytes")
        return True

    def _copy_body(self, response: requests.Response, begin: int, total: int | None) -> None:
        name = self.url.rsplit("/", 1)[-1]
        bar = tqdm(
            desc=name, initial=begin, total=total, unit="B", unit_scale=True, leave=False, disable=not self.progress
        )
        with open(self.part, "r+b" if begin else "wb") as file, bar:
            file.seek(begin)
            file.truncate()
            try:
                # read1 hands over what has arrived; iter_content would lose up to a chunk of it when the transfer is cut.
                while chunk := response.raw.read1(CHUNK):
                    self.check()
                    file.write(chunk)
                    bar.update(len(chunk))
                    if file.tell() > self.limit:
                        raise InputError(f"{self.url} sends more than {self.limit:,} bytes, which are not accepted")
            except (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
                raise Transient(_reason(error)) from error


def _extent(response: requests.Response, begin: int) -> tuple[int, int | None]:
    """Where this body begins in the file and how long the file is; a server may send all of it instead of a range."""
    place = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if response.status_code == 206 and place and int(place[1]) == begin:
        return begin, None if place[2] == "*" else int(place[2])
    length = response.headers.get("Content-Length")
    return 0, int(length) if length else None


def _reason(error: Exception) -> str:
    """The innermost cause in one short line: requests wraps it in up to four layers."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {error}"[:200]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
