"""How long a server may be away before a run ends, and the one line that says why it gives no answer."""

import math
import random
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from landmarks.running.command import InputError, check_stop, stop_event
from landmarks.running.said import say

if TYPE_CHECKING:
    import requests  # a tenth of a second, which --help need not wait for

PATIENCE = 30 * 60  # seconds, where no --patience is given
STRANGER_TRIES = 5  # for a server that has never answered: its name is wrong, or there is no network
STRANGER_PATIENCE = 20  # seconds for it: two time-outs of a connection
LONGEST_PAUSE = 60  # seconds between two tries, where the server asks for no longer one
UNSAID = 10  # seconds away that are not worth a line
CAUSES: list[tuple[type[Exception], str, str]] = [
    (socket.gaierror, "the host name is not found", "check its spelling and the network"),
    (
        ssl.SSLCertVerificationError,
        "the server's TLS certificate is not valid",
        "check the address and this machine's clock, or name your own authority's file in REQUESTS_CA_BUNDLE",
    ),
    (ssl.SSLError, "no TLS connection", "check whether the address begins with http:// or https://"),
    (ConnectionRefusedError, "the connection is refused", "check host and port, and whether the server runs"),
    (TimeoutError, "no answer in time", "check the address and the network"),
]
Result = TypeVar("Result")
clock = time.monotonic
answered: set[str] = set()  # servers that have answered in this process


@dataclass(eq=False)
class Failure(Exception):
    """No answer, or no whole one."""

    cause: str
    advice: str = "check the address and the network"
    retry_after: float = 0.0
    may_mend: bool = True

    def __str__(self) -> str:
        return f"{self.cause}; {self.advice}"


class Absent(InputError):
    """The server does not give a file: 404, 410, or 403, which S3 says of a missing one too."""


class Unanswered(InputError):
    """No answer, or no whole one, for as long as the patience lasted. Its cause is the last `Failure`."""


def persist(
    url: str,
    attempt: Callable[[], Result],
    patience: float = PATIENCE,
    tries: int | None = None,
    arrived: Callable[[], int] = lambda: 0,
    check: Callable[[], None] = check_stop,
) -> Result:
    """Call `attempt` until it raises no `Failure`, with pauses that grow until there is progress.

    Args:
        patience: the most seconds without progress, for a server that has answered in this process; any other is given
            up after `STRANGER_TRIES` or `STRANGER_PATIENCE`.
        tries: the most failures in a row; None for any number, with a line on stderr when a server is away for longer.
        arrived: what has arrived so far; more of it is progress.
        check: called at least once a second; what it raises ends the waiting.

    Raises:
        Unanswered: the patience or the tries are at an end, or another try would mend nothing.
    """
    server = server_of(url)
    since, most, failures, is_said = clock(), arrived(), 0, False
    while True:
        try:
            return attempt()
        except Failure as error:
            failure = error
        is_stranger = server not in answered
        if arrived() > most:
            since, most, failures, is_said = clock(), arrived(), 0, False
        else:
            failures += 1
        left = since + (min(patience, STRANGER_PATIENCE) if is_stranger else patience) - clock()
        most_failures = tries or (STRANGER_TRIES if is_stranger else math.inf)
        if not failure.may_mend or (failures and (failures >= most_failures or left <= 0)):
            away = timedelta(seconds=round(clock() - since))
            raise Unanswered(
                f"{url} could not be read, {failures} failures in a row within {away}: {failure}, then run the same "
                "command again: what has arrived is kept"
            ) from failure
        # The first part is random, lest all who wait come back at once.
        pause = min(max(random.uniform(0, min(2 ** (failures - 1), LONGEST_PAUSE)), failure.retry_after), left)
        if not (tries or is_stranger or is_said) and clock() - since + pause > UNSAID:
            until = datetime.now() + timedelta(seconds=left)
            say(f"warning: {server} is away ({failure.cause}); waiting for it until {until:%Y-%m-%d %H:%M:%S} at most")
            is_said = True
        _wait(pause, check)


def receive_answer(url: str, response: "requests.Response") -> None:
    """Note that the server of `url` has answered. Raises Failure for an answer that only says: not now."""
    status = response.status_code
    # Without Retry-After a 5xx may come from a proxy that has not found the server.
    if status < 500 or "Retry-After" in response.headers:
        answered.add(server_of(url))
    if status in (408, 429) or (status >= 500 and status != 501):
        response.close()
        cause = "the server is asked too often" if status == 429 else "the server has trouble of its own"
        raise Failure(f"HTTP {status}, {cause}", "wait a while", _retry_after(response))


def failure_of(error: BaseException) -> Failure:
    """What an error of requests or urllib3 means; they wrap the cause in up to four layers."""
    layers = [error]
    while layers[-1].__context__ is not None:
        layers.append(layers[-1].__context__)
    for kind, cause, advice in CAUSES:
        for layer in layers:
            if isinstance(layer, kind):
                return Failure(f"{cause} ({layer})"[:200], advice, may_mend=kind is not ssl.SSLCertVerificationError)
    return Failure(f"{type(layers[-1]).__name__}: {layers[-1]}"[:200])


def server_of(url: str) -> str:
    """What is away when a URL is: its scheme and host, or bucket."""
    return "/".join(url.split("/")[:3])


def _retry_after(response: "requests.Response") -> float:
    import urllib3

    try:
        return urllib3.Retry().get_retry_after(response.raw) or 0.0
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):  # neither seconds nor a date of this world
        return 0.0


def _wait(seconds: float, check: Callable[[], None]) -> None:
    until = clock() + seconds
    while (left := until - clock()) > 0:
        check()
        if stop_event.wait(min(left, 1)):
            time.sleep(min(left, 1))  # `check` may go on all the same, as the last copy of a work folder does
