"""Files that appear whole or not at all."""

import csv
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from tempfile import TemporaryFile

from landmarks.running.command import InputError, check_stop
from landmarks.running.said import size_of


def require_stored(archive: zipfile.ZipFile) -> None:
    """Raise ValueError if anything in it is compressed: ours never is, and of a stranger's 1 MB might become 1 GB."""
    if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
        raise ValueError("what it holds is compressed")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside `path` (same suffix) to write to; renamed to `path` if the block ends well, deleted if not.

    It is on the disk before it gets its name: a power cut leaves the old file or the new one, and never half of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"part-{path.name}")
    try:
        yield part
        to_disk(part)
        os.replace(part, path)
        with suppress(OSError):  # some systems and file systems do not let a folder be opened for that
            to_disk(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def append_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Add rows to a CSV that `header` begins; a line that a run has left half-written when it was killed goes first.

    No cell may hold the end of a line.
    """
    whole_lines = path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0
    with open(path, "a", newline="", encoding="utf-8") as file:
        file.truncate(whole_lines)
        csv.writer(file, lineterminator="\n").writerows([*([] if whole_lines else [header]), *rows])


def read_rows(path: Path) -> list[tuple[str, ...]]:
    """The whole lines of such a CSV, the first one too; none where there is no file."""
    data = path.read_bytes() if path.exists() else b""
    text = data[: data.rfind(b"\n") + 1].decode(errors="replace")
    return list(map(tuple, csv.reader(StringIO(text, newline=""))))


def require_ours(folder: Path, mark: str) -> None:
    """Raise InputError unless there is nothing at `folder`, or a folder with a file `mark`, as those made here have."""
    if folder.exists() and not (folder / mark).is_file():
        raise InputError(f"{folder} is there, and was not made by this command: give another place, or move it away")


@contextmanager
def whole_folder(folder: Path, mark: str) -> Iterator[Path]:
    """A new folder to write to, a file `mark` among all else, which becomes `folder` only if the block ends well.

    Raises InputError, as `require_ours` does, where something else is there.
    """
    require_ours(folder, mark)
    part = folder.with_name(f"part-{folder.name}")
    new, old = part / "new", part / "old"
    shutil.rmtree(part, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        yield new
        for path in new.rglob("*"):
            if path.is_file():
                to_disk(path)
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    except BaseException:
        if old.exists():
            os.replace(old, folder)
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def to_disk(path: Path) -> None:
    """Have what is written to a file, or of a folder which names are in it, survive a power cut."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def arrived(part: Path) -> int:
    """Bytes of a file that is on its way; 0 before it has begun."""
    return part.stat().st_size if part.exists() else 0


def require_space(folder: Path, size: float, what: str) -> None:
    """Raise InputError unless there are `size` bytes free where `folder` is, before they are begun to be written.

    Args:
        what: with its verb, like "a checkpoint takes".
    """
    there = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if size > free:
        raise InputError(
            f"no space left on the disk: {what} {size_of(size)}, {size_of(free)} are free in {folder}; "
            "free some and run the same command again"
        )


def make_writable(folder: Path) -> None:
    """Make a folder if need be and try to write in it. Raises InputError when that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):  # which leaves no name behind, even when it is killed here
            pass
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); give another folder or mend it") from error


def md5(path: Path) -> str:
    """The file's md5 as 32 hex digits."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(2**22):
            digest.update(chunk)
            check_stop()
    return digest.hexdigest()


def prepare_folder(folder: Path, sources: list[Path], **settings) -> None:
    """Make `folder` ready for arrays made from features: files in it that were made otherwise are deleted.

    A note there, `made_from.json`, holds the settings and each source file's name, size and time. So features made from
    those of a model that was trained again do not stay, and no more do those whose sources were copied, which have new
    times.
    """
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
    made_from, note = json.dumps({"settings": settings, "sources": stamps}), folder / "made_from.json"
    if not note.exists() or note.read_text(errors="replace") != made_from:
        for path in folder.glob("*.npz"):
            path.unlink()
        with whole(note) as part:
            part.write_text(made_from)
