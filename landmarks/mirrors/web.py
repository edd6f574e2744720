"""A mirror at a URL: shards come when they are wanted and go when they are done."""

import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from landmarks.mirrors import download
from landmarks.mirrors.base import SPLITS, Mirror
from landmarks.mirrors.shards import DamagedShard, TarShard
from landmarks.running import command
from landmarks.running.command import InputError, warn
from landmarks.running.digest import digest
from landmarks.running.files import append_rows, md5, read_rows, whole
from landmarks.running.settings import MirrorSettings

if TYPE_CHECKING:
    import pandas as pd

ADDRESS = "address.md5"  # where a cache's files came from
MISMATCHES = "md5_mismatches.csv"
MAX_SHARDS = 1000  # images_NNN has three digits


class WebMirror(Mirror):
    """A mirror at a URL: what is used is downloaded into `cache`, and a shard is deleted as soon as it is done.

    While one shard is in use the next `ahead` are downloaded, so at most `ahead + 1` are on disk; what a stopped run
    left stays for the stream that wants it while there is room. A shard whose md5 differs from the published one is
    downloaded a second time; if it differs again, it is used (train shard 000 of the public mirror has never matched),
    said once and recorded in `cache/md5_mismatches.csv`; with `strict_md5` it is refused. One that is damaged still has
    the photos before the fault, unless the settings are `strict`. Once the server has answered it may be away for
    `patience` seconds at a time.
    """

    def __init__(self, url: str, cache: Path, settings: MirrorSettings | None = None):
        super().__init__(url.rstrip("/"), settings)
        self.url = self.name
        self.cache = cache
        self._shard_counts: dict[str, int] = {}
        self._noting = threading.Lock()
        self._claiming = threading.Lock()
        self._is_claimed = False

    def path(self, relative: str) -> Path | None:
        self._claim()
        path = self.cache / relative
        if not path.is_file() and not download.download(
            f"{self.url}/{relative}", path, patience=self.settings.patience
        ):
            return None
        with open(path, "rb") as file:
            is_web_page = file.read(100).lstrip().startswith(b"<")
        if is_web_page:  # what some servers send, as if all were well, for a file that they do not have
            path.unlink()
        return None if is_web_page else path

    def shard_names(self, split: str) -> list[str]:
        if split not in self._shard_counts:
            self._shard_counts[split] = self._count_shards(split)
        return [f"images_{number:03d}" for number in range(self._shard_counts[split])]

    def absence(self, relative: str) -> str:
        reason = download.absence(f"{self.url}/{relative}", self.settings.patience)
        return f" ({reason})" if reason else ""

    def stream(self, split: str, names: list[str]) -> Iterator[TarShard]:
        self._claim()
        self._clear_shards(
            wanted=[self._place(split, name) for name in names[: self.settings.ahead + 1]],
            room=max(self.settings.ahead + 1 - len(set(names)), 0),
        )
        waiting = iter(names)
        abandoned = threading.Event()

        def check() -> None:
            command.check_stop()
            if abandoned.is_set():
                raise command.Stopped("the shards are not wanted any more")

        pool = ThreadPoolExecutor(max(1, self.settings.ahead))  # a server may give one connection less than the link
        fetched: deque[tuple[str, Future]] = deque()

        def fetch_next(count: int) -> None:
            for name in islice(waiting, count):
                under_way = dict(fetched).get(name)
                fetched.append((name, under_way or pool.submit(self._fetch, split, name, check)))

        try:
            fetch_next(self.settings.ahead + 1)
            while fetched:
                name, path = fetched.popleft()
                with closing(TarShard(path.result(), salvage=not self.settings.strict)) as shard:
                    if shard.damage:
                        self.tolerate(split, shard)
                    yield shard
                if name not in dict(fetched):  # an epoch may begin with the shard that the last one ended with
                    shard.path.unlink()
                fetch_next(1)
        finally:
            abandoned.set()
            pool.shutdown(cancel_futures=True)

    def fingerprint(self, split: str, name: str, earlier: str = "") -> str:
        """As `Mirror.fingerprint`. Tables and md5s are downloaded once for a `cache`: that holds what it began with."""
        published = self.published_md5(split, name)
        return earlier if published is None or published in earlier.split() else published

    def _claim(self) -> None:
        """Delete what came from another address: the same mirror has it there too, and another one has its own."""
        with self._claiming:
            if self._is_claimed:
                return
            note, address = self.cache / ADDRESS, digest(self.url).encode()  # which may hold a password
            before = note.read_bytes() if note.exists() else None
            if before not in (None, address):
                for folder in ("metadata", "ground_truth", "md5sum", *SPLITS):
                    shutil.rmtree(self.cache / folder, ignore_errors=True)
            if before != address:
                with whole(note) as part:
                    part.write_bytes(address)
            self._is_claimed = True

    def _read(self, path: Path, columns: list[str]) -> "pd.DataFrame":
        try:
            return super()._read(path, columns)
        except InputError as error:
            path.unlink(missing_ok=True)  # it may have arrived so, or be mended there: the next run looks
            there = f"{self.url}/{path.relative_to(self.cache).as_posix()}"
            raise InputError(str(error).replace(str(path), there)) from error

    def _count_shards(self, split: str) -> int:
        """Shards are numbered without a gap, so doubling and bisection find the last in about 2 log2(count) steps."""

        def has(number: int) -> bool:
            return number < MAX_SHARDS and download.exists(
                f"{self.url}/{split}/images_{number:03d}.tar", self.settings.patience
            )

        if not has(0):
            return 0
        there, missing = 0, 1
        while has(missing):
            there, missing = missing, 2 * missing
        while missing - there > 1:
            middle = (there + missing) // 2
            there, missing = (middle, missing) if has(middle) else (there, middle)
        return missing

    def _place(self, split: str, name: str) -> Path:
        return self.cache / split / f"{name}.tar"

    def _clear_shards(self, wanted: list[Path], room: int) -> None:
        """Delete what a killed run has left but for the `room` largest, so that the promise about the disk holds."""
        left = sorted(self.cache.glob("*/images_*.tar*"), key=lambda path: path.stat().st_size, reverse=True)
        for path in [path for path in left if path.with_name(path.name.removesuffix(".part")) not in wanted][room:]:
            path.unlink()

    def _fetch(self, split: str, name: str, check: Callable[[], None]) -> Path:
        """The shard on disk, verified; a shard with a fault is downloaded a second time."""
        path = self._place(split, name)
        relative = f"{split}/{name}.tar"
        for is_second in (False, True):
            expected = self.published_md5(split, name)
            if not path.exists():
                if not download.download(
                    f"{self.url}/{relative}", path, resume=True, check=check, patience=self.settings.patience
                ):
                    raise InputError(
                        f"{self.url}/{relative} is not there any more{self.absence(relative)}; check the mirror and "
                        "run again"
                    )
            found = md5(path)
            accepts = not self.settings.strict_md5
            matches = expected in (None, found) or (accepts and found in self._accepted_mismatches())
            fault = (
                f"its md5 is {found}, published is {expected}; without --strict-md5 it is used if the tar reads whole"
            )
            if matches or (is_second and accepts):
                shard = TarShard(path, salvage=True)
                shard.close()
                fault = shard.damage
                if not fault or (is_second and not self.settings.strict):
                    if not (matches or fault):
                        self.accept_mismatch(relative, expected, found)
                    return path
            path.unlink()
            (self.cache / f"md5sum/{split}/md5.{name}.txt").unlink(missing_ok=True)  # which may be what arrived wrong
        raise DamagedShard(f"{self.url}/{relative} is damaged, after a second download too: {fault}")

    def _accepted_mismatches(self) -> set[str]:
        return {found for _, _, found in read_rows(self.cache / MISMATCHES)}

    def accept_mismatch(self, relative: str, expected: str | None, found: str) -> None:
        """Record that a shard is used although its md5 is another one than the published, and warn of it."""
        path = self.cache / MISMATCHES
        with self._noting:
            append_rows(path, ["shard", "expected", "found"], [[relative, expected or "", found]])
        warn(
            f"{self.url}/{relative} has md5 {found}, published is {expected}, after a second download too; "
            f"used, because the tar reads whole, and recorded in {path}"
        )
