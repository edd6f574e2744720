"""A loopback server of a mirror that lies, or fails, at random requests."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import md5
from pathlib import Path

from conftest import Handler, Server

FAULTS = ("all", "cut", "busy", "length", "md5", "range", "change", "hang", "drip")


class Liar(Handler):
    """Serves a folder with ranges and ETags, and lies or fails as `server.fault` says at random requests.

    What no client could find out is done to shards alone, whose md5 is published: a table has none.
    """

    server: "LiarServer"
    tag = ""

    def do_HEAD(self):
        if self.server.draws("busy", 7):
            return self.be_busy()
        return super().do_HEAD()

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        body, draws, is_shard = path.read_bytes(), self.server.draws, path.suffix == ".tar"
        self.tag = f'"{md5(body).hexdigest()}"'
        if self.headers.get("If-Range", self.tag) != self.tag and not draws("change", 2):
            del self.headers["Range"]
        begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        if draws("busy", 7):
            return self.be_busy()
        if draws("length", 5):
            if is_shard and begin < len(body) and self.server.draws("length", 2):
                return self.send_range(body[: -len(body) // 3])
            return self.send_range(body + bytes(100), cut=len(body) - begin)
        if path.name.startswith("md5") and draws("md5", 2):
            body = md5(body).hexdigest().encode() + body[32:]
        if begin and draws("range", 2):
            if self.server.draws("range", 2):
                del self.headers["Range"]
                begin = 0  # all of it under the length of all of it: what no client could notice is not sent
            else:
                begin -= 1
                self.headers.replace_header("Range", f"bytes={begin}-")
        if draws("change", 3) and is_shard:
            self.tag = '"older"'
            body = bytes(byte ^ 1 for byte in body)
            return self.send_range(body, cut=(len(body) - begin) // 2)
        if draws("cut", 5) or draws("range", 2):
            return self.send_range(body, cut=(len(body) - begin) // 2)
        if draws("hang", 7):
            self.send_range(body, cut=(len(body) - begin) // 2)
            self.wfile.flush()
            return time.sleep(1.5)
        if draws("drip", 5):
            return self.drip(body, begin)
        return self.send_range(body)

    def be_busy(self):
        self.send_response(503)
        if self.server.draws("busy", 2):
            self.send_header("Retry-After", "1")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def drip(self, body: bytes, begin: int):
        """A byte every 30th of a second, like one a second where a time-out is 30 seconds; cut after some."""
        self.send_range(body, cut=0)
        for position in range(begin, min(begin + 60, len(body))):
            self.wfile.write(body[position : position + 1])
            self.wfile.flush()
            time.sleep(1 / 30)

    def end_headers(self):
        if self.tag:
            self.send_header("ETag", self.tag)
        super().end_headers()


class LiarServer(Server):
    """A loopback server whose faults follow from a seed and the order of the requests."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.RequestHandlerClass = partial(Liar, directory=str(folder))
        self.fault, self.draw = "", random.Random(0)

    def handle_error(self, *_):
        """Say nothing of clients that have left."""

    def draws(self, fault: str, of: int) -> bool:
        """Whether this request gets the fault, 1 in so many."""
        return self.fault in (fault, "all") and self.draw.randrange(of) == 0


@contextmanager
def serving(folder: Path) -> Iterator[LiarServer]:
    server = LiarServer(folder)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
