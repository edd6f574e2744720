"""Photos that were added to a finished work folder, WORK/added: the table of them, and the photos themselves.

The table, `photos.csv`, tells which are there: it is written last when photos come, and first when they go. What else
lies in the folder is left of a command that was stopped: the same command uses it, any other clears it away.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from landmarks.mirrors import images
from landmarks.mirrors.base import Mirror
from landmarks.mirrors.build import printable, write_csv
from landmarks.mirrors.images import UnreadablePhoto
from landmarks.mirrors.shards import FolderShard, Shard, member_name, read_photo
from landmarks.mirrors.tables import read_table
from landmarks.running.command import InputError, check_stop
from landmarks.running.files import whole
from landmarks.running.progress import Progress

ADDED = "added"  # in a work folder; and the name of its shard
COLUMNS = ["id", "landmark", "category", "hash", "url"]


def read(work: Path) -> pd.DataFrame:
    """The table: `id`, `landmark_id` (Int64, NA where none is known), `category` (its name), `hash` (uint64: the
    perceptual one) and `url` (the file that it came from). It is empty where nothing was added.

    Raises InputError if it is malformed.
    """
    path = work / ADDED / "photos.csv"
    remedy = f"bring back the one that add wrote, or take all out: python retrieval.py remove {work} --all"
    try:
        table = read_table(path, COLUMNS) if path.exists() else pd.DataFrame(columns=COLUMNS)
        landmark = [int(cell) if cell else pd.NA for cell in table.pop("landmark")]
        hashes = np.array([int(cell, 16) for cell in table["hash"]], np.uint64)
        return table.assign(landmark_id=pd.array(landmark, "Int64"), hash=hashes)
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from error
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path} is no table of added photos: {error}; {remedy}") from error


def write(work: Path, table: pd.DataFrame) -> None:
    """Say which photos are there: from then on that is so."""
    text = {name: table[name].map(printable) for name in ("category", "url")}
    hashes = [f"{one:016x}" for one in table["hash"]]
    write_csv(work / ADDED / "photos.csv", table.assign(**text, hash=hashes, landmark=table["landmark_id"])[COLUMNS])


def shard(work: Path, ids: Iterable[str]) -> FolderShard:
    """These photos, to be read by their ids."""
    return FolderShard(work / ADDED / "photos", ADDED, list(ids))


def photos_of(work: Path, ids: Iterable[str]) -> dict[str, bytes]:
    """The photos of these ids, encoded, but for those that are there no more."""
    found = {}
    for identity in (one := shard(work, ids)).ids:
        with suppress(OSError):
            found[identity] = one.read(identity)
    return found


class WithAdded(Mirror):
    """A mirror, and the photos that were added to a work folder as one more shard, to be streamed."""

    def __init__(self, mirror: Mirror, work: Path):
        super().__init__(mirror.name, mirror.settings)
        self._mirror, self._work = mirror, work

    def path(self, relative: str) -> Path | None:
        return self._mirror.path(relative)

    def shard_names(self, split: str) -> list[str]:
        return self._mirror.shard_names(split)

    def fingerprint(self, split: str, name: str, earlier: str = "") -> str:
        return self._mirror.fingerprint(split, name, earlier)

    def stream(self, split: str, names: list[str]) -> Iterator[Shard]:
        yield from self._mirror.stream(split, [name for name in names if name != ADDED])
        if ADDED in names:
            yield shard(self._work, read(self._work)["id"])


def take_in(work: Path, paths: Iterable[str]) -> tuple[dict[str, str], list[tuple[str, str, str]]]:
    """Copy photos into the folder, as JPEGs.

    Returns:
        Their ids by path, which follow from what is in the files; and what could not be read, as (id, path, reason).
    """
    ids, failures = {}, []
    for path in Progress(list(paths), "take in", unit=" photos"):
        check_stop()
        try:
            data = read_photo(Path(path))
            identity = hashlib.blake2b(data, digest_size=8).hexdigest()
            copy = work / ADDED / "photos" / member_name(identity)
            if not copy.exists():
                jpeg = images.as_jpeg(data)
                with whole(copy) as part:
                    part.write_bytes(jpeg)
            ids[path] = identity
        except (OSError, UnreadablePhoto) as error:
            failures.append(("", path, getattr(error, "strerror", None) or str(error)))
    return ids, failures


def clear(work: Path, ids: Iterable[str]) -> None:
    """Delete all photos but those of these ids, and what a command that was stopped has left half-written."""
    photos = work / ADDED / "photos"
    there = {photos / member_name(identity) for identity in ids}
    for path in (work / ADDED).rglob("*"):
        if path.is_file() and (path.name.startswith("part-") or (path.is_relative_to(photos) and path not in there)):
            path.unlink()
