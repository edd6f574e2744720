"""Files that appear whole or not at all."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from landmarks.running.command import InputError, check_stop


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside `path` (same suffix) to write to; renamed to `path` if the block ends well, deleted if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"part-{path.name}")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def make_writable(folder: Path) -> None:
    """Make a folder if need be and try to write in it. Raises InputError when that cannot be."""
    try:
        with whole(folder / "try") as part:
            part.touch()
        (folder / "try").unlink()
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
