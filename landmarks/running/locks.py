"""One run at a time in a folder: the others are told in one line who holds it."""

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from landmarks.running.command import InputError
from landmarks.running.said import say

LOCK = ".lock"
HOLDER = ".lock.json"  # beside it, since opening a lock empties its file
PROBE_SECONDS = 2  # another reader that looks whether somebody writes holds the lock for a moment


@contextmanager
def held(*folders: Path) -> Iterator[None]:
    """Hold these folders, which are made if need be, for the block.

    The system lets go of a lock when its process ends, even by kill -9, so none is ever stale; what a dead process has
    noted beside it is written over. Where a file system knows no locks a warning says so, and the run goes on.

    Raises InputError if another process holds one of them, and says which: host, pid, since when, and its command.
    """
    from filelock import FileLock, Timeout  # a twentieth of a second, which --help need not wait for

    locks = []
    try:
        for folder in sorted({folder.resolve() for folder in folders}):
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / LOCK)
            try:
                lock.acquire(blocking=False)
            except Timeout as error:
                raise InputError(
                    f"{folder} is in use {_holder(folder)}; wait until that has ended, or give another folder"
                ) from error
            except (NotImplementedError, OSError) as error:  # as of some network file systems: no lock is no fault
                say(f"warning: {folder} cannot be locked ({error}): run nothing else in it")
                continue
            locks.append((folder, lock))
            now = datetime.now().astimezone().isoformat(timespec="seconds")
            holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": now, "command": Path(sys.argv[0]).name}
            (folder / HOLDER).write_text(json.dumps(holder))
        yield
    finally:
        for folder, lock in locks:
            (folder / HOLDER).unlink(missing_ok=True)
            lock.release()


def require_idle(folder: Path) -> None:
    """Raise InputError while another process holds a folder that is only to be read; many may read at a time."""
    lock = folder / LOCK
    if not os.access(lock, os.W_OK):  # nobody has ever held it, or nobody can write here
        return
    from filelock import FileLock, Timeout

    try:
        with FileLock(lock, timeout=PROBE_SECONDS):
            pass
    except Timeout as error:
        raise InputError(f"{folder} is being written {_holder(folder)}; wait until that has ended") from error
    except (NotImplementedError, OSError):  # no locks here, so nobody can hold one; who writes has been warned
        return


def _holder(folder: Path) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        holder = json.loads((folder / HOLDER).read_text())
        return f"by {holder['command']}, process {holder['pid']} on {holder['host']}, since {holder['since']}"
    return "by another process"
