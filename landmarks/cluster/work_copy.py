"""A copy of the work folder in an object store: brought before a run, kept up while it goes on, whole when it ends.

The work folder stays on this disk. Each file in it is one that appeared whole and says itself what it was made from, so
its copy is good whenever the run is cut off; a stopped run goes on elsewhere from there.
"""

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import Field, TypeAdapter

from landmarks.running.command import InputError, Parser, Stopped, warn
from landmarks.running.files import whole
from landmarks.running.locks import held
from landmarks.running.settings import is_store

NOTE = ".store.json"  # in the work folder: each file's version in the store, and its size and time here
SECONDS = 30  # between two looks at what has changed
NOTED = TypeAdapter(dict[str, dict[str, Annotated[list[str | int], Field(min_length=3, max_length=3)]]])
PENDING = ""  # the version of what is being uploaded
COMING = -1  # the size of what is being downloaded


def fetched(arguments: list[str]) -> list[str]:
    """A command line whose `--work` may be in an object store, with a folder here, brought from there, in its place.

    The folder has the last part of the URL's name, unless `--work` names one and `--store` the URL.

    Raises InputError if the store cannot be read, or a file has changed both here and there.
    """
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--work", default="")
    parser.add_argument("--store", default="")
    given, others = parser.parse_known_args(arguments)
    url = (given.store or given.work).rstrip("/")
    if not is_store(url) or {"-h", "--help"} & set(arguments):
        return arguments
    work = url.rsplit("/", 1)[-1] if is_store(given.work) or not given.work else given.work
    if "," in given.work:
        raise InputError(
            f"--work {given.work}: one folder alone can have a copy in a store; copy the others here first"
        )
    with held(Path(work)):
        Copy(Path(work), url).fetch()
    return [*others, "--work", work, "--store", url]


@contextmanager
def kept(work: Path, url: str) -> Iterator[None]:
    """Keep up the copy of a work folder during the block, and complete it at its end, however that comes.

    Raises InputError if the store does not take it for as long as a server's patience lasts.
    """
    if not url:
        yield
        return
    copy, ends = Copy(work, url), threading.Event()

    def check() -> None:
        if ends.is_set():
            raise Stopped("the last copy begins")

    def keep_up() -> None:
        while not ends.wait(SECONDS):
            try:
                copy.keep_up(check)
            except InputError as error:
                warn(f"the copy of {work} is behind, until the store answers", str(error))
            except Stopped:
                return

    thread = threading.Thread(target=keep_up, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()
        copy.keep_up(lambda: None)  # after a signal too
        print(f"{url} has all of {work}")


class Copy:
    """A work folder and its copy; what was copied, and when, is noted in the folder."""

    def __init__(self, work: Path, url: str):
        self.work, self.url, self.note = work, url.rstrip("/"), work / NOTE
        try:
            noted = NOTED.validate_json(self.note.read_bytes()) if self.note.exists() else {}
        except ValueError as error:
            raise InputError(
                f"{self.note} is damaged, and nobody can tell what was changed here since {url} was copied: move "
                f"{work} away, and it is brought anew"
            ) from error
        self.noted: dict[str, list] = noted.get(self.url, {})  # version there, size and time here

    def fetch(self) -> None:
        """Bring what is new in the store, and delete here what is there no more, where it has not changed here."""
        from landmarks.mirrors import stores  # and with it fetched what --help need not wait for
        from landmarks.mirrors.download import MAX_BYTES, download
        from landmarks.running.progress import Progress

        there = {name: version for name, version in self._ask(stores.listed).items() if _is_kept(name)}
        here, coming = self._here(), []
        if not here.keys() & self.noted.keys():  # an emptied folder, whose note `rm -r WORK/*` leaves: not deletions
            self.noted = {}
        for name, version in there.items():
            known = self.noted.get(name, [None, None, None])
            if known[0] in (version, PENDING) and known[1] != COMING:
                continue
            if name in here and known[1] != COMING and here[name] != known[1:]:
                raise InputError(
                    f"{self.work / name} and {self.url}/{name} have both changed since they were the same: delete the "
                    "one that is not wanted, and run the same command again"
                )
            coming.append(name)
        self.noted |= {name: [there[name], COMING, COMING] for name in coming}
        self._save()
        for name in Progress(coming, f"fetch {self.url}", unit=" files", disable=not coming):
            path = self.work / name
            if not download(f"{self.url}/{name}", path, resume=False, limit=MAX_BYTES):
                raise InputError(
                    f"{self.url}/{name} is there no more: another run writes it; wait until that has ended"
                )
            self.noted[name] = [there[name], *_stamp(path)]
            self._save()
        for name in set(self.noted) - set(there):
            if here.get(name) == self.noted[name][1:] and self.noted[name][0] != PENDING:
                (self.work / name).unlink()
            del self.noted[name]
        self._save()

    def keep_up(self, check: Callable[[], None]) -> None:
        """Upload what has changed here, the oldest first, and then delete there what is gone from here.

        Files that another run has put there stay: several may share the work by `--shards`.

        Args:
            check: called while the store is waited for; what it raises ends this.
        """
        from landmarks.mirrors import stores
        from landmarks.mirrors.outages import Absent

        here = self._here()
        changed = [name for name, stamp in here.items() if self.noted.get(name, [PENDING])[1:] != stamp]
        changed += [name for name in here if name not in changed and self.noted[name][0] == PENDING]
        self.noted |= {name: [PENDING, *here[name]] for name in changed}
        self._save()
        for name in sorted(changed, key=lambda name: here[name][1]):
            check()
            try:
                version = self._ask(lambda url, path=self.work / name: stores.upload(path, url), name, check)
            except Absent as error:
                if (self.work / name).exists():
                    raise InputError(f"{self.url} cannot be written: {error}") from error
                continue  # it went while it was read, and the next look sees so
            self.noted[name] = [version, *here[name]]
            self._save()
        for name in set(self.noted) - set(here):
            try:
                self._ask(stores.delete, name, check)
            except Absent:
                pass
            del self.noted[name]
            self._save()

    def _ask(self, action: Callable, name: str = "", check: Callable[[], None] = lambda: None):
        from landmarks.mirrors.outages import persist

        url = f"{self.url}/{name}".rstrip("/")
        return persist(url, lambda: action(url), check=check)

    def _here(self) -> dict[str, list[int]]:
        found = {}
        for folder, folders, names in os.walk(self.work):
            relative = Path(folder).relative_to(self.work)
            folders[:] = [name for name in folders if _is_kept((relative / name).as_posix())]
            for name in names:
                if _is_kept((relative / name).as_posix()):
                    try:
                        found[(relative / name).as_posix()] = _stamp(Path(folder) / name)
                    except FileNotFoundError:
                        continue
        return found

    def _save(self) -> None:
        with whole(self.note) as part:
            part.write_text(json.dumps({self.url: self.noted}))


def _stamp(path: Path) -> list[int]:
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]


def _is_kept(name: str) -> bool:
    """Whether a file is copied: all but downloads, the sample, locks, other hosts' own, and what is not whole yet."""
    parts = PurePosixPath(name).parts
    unfinished = any(part.startswith(("part-", ".")) or part.endswith(".part") for part in parts)
    return bool(parts) and parts[0] not in ("mirror", "hosts", "/") and not unfinished
