"""Does a URL's file exist, and download it whole, through cuts and server errors: by HTTP; see stores.py for others."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

import requests
import urllib3

from landmarks.mirrors import stores
from landmarks.mirrors.addresses import PublicAdapter
from landmarks.mirrors.outages import PATIENCE, Absent, Failure, Unanswered, failure_of, persist, receive_answer
from landmarks.running.command import InputError, check_stop
from landmarks.running.files import arrived, require_space, to_disk
from landmarks.running.progress import Progress
from landmarks.running.said import size_of
from landmarks.running.settings import is_store

TIMEOUT = (10, 30)  # seconds to connect, and between two reads
CHUNK = 2**20
MAX_BYTES = 16 * 2**30
MAX_REDIRECTS = 5
PHOTO_TRIES = 2
PHOTO_PATIENCE = 60  # seconds that a server's Retry-After may hold up one photo of a list
CUT = (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError)  # what reading a body raises when the network fails
REFUSALS = {
    401: ("the server asks for a name and a password", "put them into ~/.netrc"),
    403: ("the server forbids it", "check the address and whether it is open to you; S3 says so of a missing file too"),
    404: ("the server has no such file", "check the address"),
    410: ("the server has no such file any more", "check the address"),
}


def _session(adapter: requests.adapters.HTTPAdapter) -> requests.Session:
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"  # ranges and lengths must mean the file's own bytes
    session.max_redirects = MAX_REDIRECTS
    session.hooks["response"].append(_leave_body_of_redirect)
    for scheme in ("http://", "https://"):
        session.mount(scheme, adapter)
    return session


def _leave_body_of_redirect(response: requests.Response, **_: object) -> None:
    """Else requests would read it, however long it is."""
    if response.is_redirect:
        response.close()


anywhere = _session(requests.adapters.HTTPAdapter(pool_maxsize=64))
public = _session(PublicAdapter(pool_maxsize=64))


def exists(url: str, patience: float = PATIENCE) -> bool:
    """Whether the server has `url`. Raises InputError when it does not answer."""
    return not absence(url, patience)


def absence(url: str, patience: float = PATIENCE) -> str:
    """Why the server does not give `url`; empty when it does. Raises InputError when it does not answer."""

    def ask() -> None:
        # Some servers know no HEAD and say so in many ways, so only a GET counts as a no.
        response = _request("HEAD", url)
        if response.status_code >= 300:
            response = _ask(url, {"Range": "bytes=0-0"})
        response.close()

    try:
        persist(url, partial(stores.find, url) if is_store(url) else ask, patience)
    except Absent as reason:
        return str(reason)
    return ""


def download(
    url: str,
    path: Path,
    resume: bool = False,
    limit: int = MAX_BYTES,
    check: Callable[[], None] = check_stop,
    patience: float = PATIENCE,
) -> bool:
    """Download `url` to `path`, which appears only when it is whole; False when the server does not give such a file.

    A cut transfer goes on where it was by a range; with `resume` also one that an earlier process began.
    What has arrived is kept when it fails.

    Args:
        limit: the most bytes to accept.
        check: called between chunks and while waiting; what it raises ends the download.
        patience: seconds without progress, as of `persist`.

    Raises:
        InputError: the patience is at an end, or the server refuses, or the file is too large.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    if not resume:
        part.unlink(missing_ok=True)
    transfer = (stores.Transfer if is_store(url) else _Transfer)(url, part, limit, check)
    try:
        persist(url, transfer.receive, patience, arrived=lambda: arrived(part), check=check)
    except Absent:
        return False
    if not resume:  # a table has no md5 that would tell a half-written one after a power cut, as a shard has
        to_disk(part)
    os.replace(part, path)
    return True


def read(url: str, limit: int, allow_private: bool = False) -> bytes:
    """The body of `url`, a file of at most `limit` bytes.

    Args:
        allow_private: follow it to private addresses too.

    Raises:
        ConnectionError: no answer, or no whole one, `PHOTO_TRIES` times in a row.
        OSError: the server has no such file or refuses, or the body is over `limit` bytes, or the address is private.
    """

    def attempt() -> bytes:
        with _ask(url, {}, anywhere if allow_private else public) as response:
            try:
                return response.raw.read(limit + 1, decode_content=True)
            except CUT as error:
                raise failure_of(error) from error

    try:
        body = persist(url, attempt, PHOTO_PATIENCE, PHOTO_TRIES)
    except Unanswered as error:
        raise ConnectionError(str(error.__cause__)) from error
    except InputError as error:
        raise OSError(str(error)) from error
    if len(body) > limit:
        raise OSError(f"more than {size_of(limit)} are not accepted")
    return body


def _request(
    method: str, url: str, headers: dict[str, str] | None = None, session: requests.Session = anywhere
) -> requests.Response:
    """One request, its body not read yet. Raises Failure for what another try may mend."""
    check_stop()
    try:
        response = session.request(method, url, headers=headers, stream=True, timeout=TIMEOUT, allow_redirects=True)
    except (requests.ConnectionError, requests.Timeout) as error:
        raise failure_of(error) from error
    except (requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema) as error:
        raise InputError(f"{url} cannot be read: only http:// and https:// can ({error})") from error
    except (requests.RequestException, ValueError) as error:  # ValueError: a host's name that no socket accepts
        raise InputError(f"{url} cannot be read: {error}; check the address") from error
    receive_answer(url, response)
    return response


def _ask(url: str, headers: dict[str, str], session: requests.Session = anywhere) -> requests.Response:
    """The answer to a GET, its body not read yet. Raises Absent, Failure, or InputError for another refusal."""
    response = _request("GET", url, headers, session)
    status = response.status_code
    if status in (200, 206) or (status == 416 and headers):
        return response
    response.close()
    cause, advice = REFUSALS.get(status, ("an answer without the file", "check the address"))
    if status in (403, 404, 410):
        raise Absent(f"HTTP {status}, {cause}: {advice}")
    raise InputError(f"{url} cannot be read: HTTP {status}, {cause}; {advice}")


@dataclass
class _Transfer:
    """One file on its way to `part`; every `receive` goes on where the last one was cut."""

    url: str
    part: Path
    limit: int
    check: Callable[[], None]
    validator: dict[str, str] = field(default_factory=dict)

    def receive(self) -> None:
        """Bring `part` to its full length; raise Failure, keeping what arrived, when the transfer ends before."""
        begin = arrived(self.part)
        response = _ask(self.url, {"Range": f"bytes={begin}-", **self.validator} if begin else {})
        with response:
            if response.status_code == 416:
                if response.headers.get("Content-Range") == f"bytes */{begin}":
                    return
                self._begin_again("the part on disk is longer than the file")
            encoded = response.headers.get("Content-Encoding", "identity") != "identity"
            place = re.fullmatch(
                r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18}|\*)", response.headers.get("Content-Range", "")
            )
            if response.status_code == 200:
                begin, total = 0, None if encoded else response.raw.length_remaining
            elif place and int(place[1]) == begin and not encoded:
                total = None if place[2] == "*" else int(place[2])
            else:
                self._begin_again("the server sent another range than the one asked for")
            if total and total > self.limit:
                raise InputError(f"{self.url} has {size_of(total)}; more than {size_of(self.limit)} are not accepted")
            require_space(self.part.parent, (total or begin) - begin, f"the rest of {self.url} takes")
            # Without it, a file that changes between two tries would be glued together from both versions.
            weak = response.headers.get("ETag", "W/").startswith("W/")
            unchanged = response.headers.get("Last-Modified" if weak else "ETag")
            self.validator = {"If-Range": unchanged} if unchanged else {}
            self._copy_body(response, begin, total, encoded)
        if total is not None and arrived(self.part) != total:
            raise Failure(f"the transfer was cut at {size_of(arrived(self.part))} of {size_of(total)}")

    def _begin_again(self, reason: str) -> NoReturn:
        self.part.unlink(missing_ok=True)
        raise Failure(reason)

    def _copy_body(self, response: requests.Response, begin: int, total: int | None, encoded: bool) -> None:
        name = self.url.rsplit("/", 1)[-1]
        bar = Progress(desc=name, initial=begin, total=total, unit="B", unit_scale=True, leave=False)
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
                        raise InputError(f"{self.url} sends more than {size_of(self.limit)}, which are not accepted")
            except CUT as error:
                raise failure_of(error) from error
