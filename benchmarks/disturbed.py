"""Runs a script and lets it die, or its disk fail, at operations in its work folder: what faults.py starts.

    disturbed.py SCRIPT WORK FAULT PLACE NOTES [arguments of the script...]

An operation is a file opened to be written, a folder made, a rename or an fsync, and a deletion where the fault is none
or SIGKILL: a full disk lets files go. FAULT says what happens at the operation of number PLACE, from 1 on:

    none        nothing: NOTES gets the name of each operation
    SIGKILL     the script is killed before it
    EIO         it fails
    ENOSPC      it fails, and so do all that follow
    EFBIG       from the start on no file grows beyond PLACE bytes
    impatient   from the start on time-outs are a second

    torn        files that are opened are the only operations: one grows to half the size that it has in the folder
                `whole` beside NOTES, and no further

With PLACE 0 this happens at operations that NOTES does not name yet, and it gets their names: ENOSPC from the first of
them on, EIO and torn at each.
"""

import atexit
import errno
import io
import os
import re
import resource
import runpy
import signal
import sys
from collections import Counter
from pathlib import Path

LEAST = 64  # bytes that a file of unknown size may grow to
WRITES = os.O_WRONLY | os.O_RDWR


class Disk:
    """Hears of the operations of this process and lets them fail."""

    def __init__(self, work: str, fault: str, place: int, notes: Path):
        self.work, self.fault, self.place, self.notes = work, fault, place, notes
        self.passed, self.full = 0, False
        self.times: Counter[str] = Counter()
        named = place == 0 and fault != "none" and notes.exists()
        self.named = set(notes.read_text().splitlines()) if named else set()
        self.file = os.open(notes, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if named else os.O_TRUNC))
        self.fsync = os.fsync
        sys.addaudithook(self.hear)
        os.fsync = self.flush  # type: ignore[assignment]

    def hear(self, event: str, arguments: tuple) -> None:
        if event == "open" and arguments[2] & WRITES:
            self.operation("open", arguments[0])
        if event == "os.rename" or (event == "os.mkdir" and not os.path.isdir(arguments[0])):
            self.operation(event, arguments[0])
        if event == "os.remove" and self.fault in ("none", "SIGKILL"):
            self.operation(event, arguments[0])

    def flush(self, file: int) -> None:
        self.operation("fsync", os.readlink(f"/proc/self/fd/{file}"))
        self.fsync(file)

    def operation(self, event: str, path: object) -> None:
        if not str(path).startswith(self.work):
            return
        if self.fault == "torn":
            limit_files(resource.RLIM_INFINITY)  # the notes are a file too
            if event != "open":
                return
        self.passed += 1
        at_it = self.passed == self.place
        if self.place == 0:
            at_it = self.note(event, os.path.relpath(str(path), self.work))
        if self.fault == "torn":
            if at_it:
                self.tear(Path(str(path)))
        elif at_it and self.fault == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.fault != "none" and (at_it or self.full):
            self.full = self.fault == "ENOSPC"
            number = getattr(errno, self.fault)
            raise OSError(number, os.strerror(number), path)

    def note(self, event: str, path: str) -> bool:
        """Whether the notes did not name it, as they do now; its name says which time in this process it is."""
        name = f"{event} {re.sub('tmp[a-z0-9_]{8}', 'tmp', path)}"
        self.times[name] += 1
        name += f" {self.times[name]}"
        if name in self.named or self.full:
            return False
        os.write(self.file, f"{name}\n".encode())
        return True

    def tear(self, path: Path) -> None:
        """Let files grow to half the size of this one."""
        whole = self.notes.parent / "whole" / path.relative_to(self.work)
        whole = whole.with_name(whole.name.removeprefix("part-"))
        limit_files(whole.stat().st_size // 2 if whole.is_file() else LEAST)


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def hold_back_output() -> None:
    """Until the end, when files may grow again: the output is one too."""
    kept = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    said = sys.stdout, sys.stderr

    def tell() -> None:
        limit_files(resource.RLIM_INFINITY)
        for stream, text in zip(kept, said, strict=True):
            stream.write(text.getvalue())
            stream.flush()

    atexit.register(tell)


if __name__ == "__main__":
    script, work, fault, place, notes, *arguments = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(script))
    if fault == "EFBIG":
        limit_files(int(place))
    elif fault == "impatient":
        from landmarks.mirrors import download, outages

        download.TIMEOUT, outages.STRANGER_TRIES = (1, 1), 20
        outages.LONGEST_PAUSE = 0.2  # type: ignore[assignment]
    else:
        if fault == "torn":
            hold_back_output()
        Disk(work, fault, int(place), Path(notes))
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
