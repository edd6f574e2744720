"""Local features on disk, a file a shard, within a bound."""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path

import numpy as np

from landmarks.local_features.points import SMALLEST_SIDE, Extractor, LocalFeatures, decode, none_found
from landmarks.mirrors.base import Mirror
from landmarks.mirrors.images import UnreadablePhoto
from landmarks.mirrors.shards import Shard
from landmarks.running.arrays import stated_bytes
from landmarks.running.command import InputError, check_stop
from landmarks.running.features_file import outline
from landmarks.running.files import whole
from landmarks.running.progress import Progress
from landmarks.running.skipped import record_skipped
from landmarks.running.threads import in_threads

DECODED_AHEAD = 16
TOGETHER = 2**22  # pixels of the photos that are extracted at once: 16 of 512 px
NOTE = "checked.json"  # beside the files of local features: size and time of those that were read through
LENGTHS_AT = 26  # bytes into a zip's header of a member: how long its name and its extra field are
POINT_BYTES = 8  # x and y in a file, as float32; then a byte for each dimension of the descriptor


class KeptFeatures(Mapping[str, LocalFeatures]):
    """Local features by photo id in the files of `keep_features`, each read when it is asked for, from any thread.

    No file stays open: where a photo's array lies is known, and its checksum is verified whenever it is read.
    """

    def __init__(self, paths: list[Path]):
        self._places: dict[str, tuple[Path, int, int, int]] = {}
        for path in paths:
            self._places.update({identity: (path, *place) for identity, place in _places(path).items()})

    def __getitem__(self, identity: str) -> LocalFeatures:
        path, *place = self._places[identity]
        try:
            return _read(path, *place)
        except (ValueError, OSError, EOFError, struct.error) as error:
            path.with_name(NOTE).unlink(missing_ok=True)  # so that the next run checks it
            raise InputError(f"{path} is damaged ({error}); run the same command again") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def shard_of(self, identity: str) -> str:
        """The name of the shard with that photo."""
        return self._places[identity][0].stem


def keep_features(
    open_it: Callable[[], Extractor],
    mirror: Mirror,
    split: str,
    embedded: list[Path],
    wanted: Sequence[str],
    folder: Path,
    size: int,
    work: Path,
    most: int | None = None,
    elsewhere: Callable[[dict[str, list[str]], dict[str, Path], Callable], None] | None = None,
) -> KeptFeatures:
    """Write the local features of the wanted photos to `folder/SPLIT/`, those that are not there yet.

    A shard has one file, an .npz with an array for each photo, which checks itself whenever it is read. A photo takes
    8 + D bytes a point: 72 KB with 1,000 points of XFeat, so that 100,000 photos take 7.2 GB. In memory there are a
    few photos and those that are decoded ahead. What is damaged is made again; photos that cannot be read have no
    points. A file is read through once, unless it changes: `checked.json` beside them notes which were.

    Args:
        open_it: opens the extractor; called only if there is something to do.
        embedded: the split's features files, as `features.embed` returns them; they tell which shard has which photo.
        wanted: ids, those that are needed most first.
        size: of a photo's longer side in pixels.
        work: `skipped.csv` there names photos that could not be read.
        most: so many photos at most: the last of the wanted ones are not made, and of those that are there already the
            ones that are not wanted go first.
        elsewhere: makes them in place of this machine, given the photos and the file of each shard, and what adds the
            bytes of a file with these photos, (n,) uint8, to that.

    Returns:
        The features of all photos that are kept, also of earlier runs.
    """
    there = {path.stem: path for path in embedded}
    files = {name: folder / split / f"{name}.npz" for name in there}
    has = _whole_ids(list(files.values()))
    chosen = set(islice(dict.fromkeys([*wanted, *chain.from_iterable(has.values())]), most))
    needed = chosen.intersection(wanted)
    todo: dict[str, list[str]] = {}
    for name, path in Progress(there.items(), f"shards of local features of {split}", unit=" shards"):
        old = has[files[name]]
        new = [identity for identity in outline(path).ids.tolist() if identity in needed and identity not in old]
        if new or not old <= chosen:
            todo[name] = new
    extractor = cache(open_it)
    if any(todo.values()) and not elsewhere:
        extractor()  # what it lacks is told before a file changes
    for name in [name for name, new in todo.items() if not new]:
        with _rewritten(files[name], chosen & has[files[name]]):
            pass
    todo = made_now = {name: new for name, new in todo.items() if new}
    if elsewhere:

        def add(path: Path, data: np.ndarray) -> None:
            with _rewritten(path, chosen & has[path]) as file, zipfile.ZipFile(io.BytesIO(data.data)) as made:
                for member in made.infolist():
                    file.writestr(zipfile.ZipInfo(member.filename), made.read(member))

        here = set(todo).difference(mirror.shard_names(split))  # photos that were added to this work folder
        away = {name: new for name, new in todo.items() if name not in here}
        elsewhere(away, {name: files[name] for name in away}, add)
        todo = {name: new for name, new in todo.items() if name in here}
    for shard in Progress(mirror.stream(split, list(todo)), f"local features of {split}", len(todo), disable=not todo):
        path = files[shard.name]
        _keep_shard(extractor(), shard, split, todo[shard.name], path, chosen & has[path], size, work)
    return KeptFeatures([path for name, path in files.items() if path.exists() and (has[path] or name in made_now)])


def job(
    extract: Extractor, split: str, wanted: Mapping[str, list[str]], size: int, _: Mirror, shard: Shard, path: Path,
    work: Path,
) -> None:  # fmt: skip
    """Write a file of the local features of those photos of a shard that are wanted of it."""
    _keep_shard(extract, shard, split, wanted[shard.name], path, (), size, work)


@contextmanager
def _rewritten(path: Path, old: Collection[str]) -> Iterator[zipfile.ZipFile]:
    """A shard's file with none but the `old` photos in it, to write more to."""
    before = KeptFeatures([path]) if old else {}
    with whole(path) as part, zipfile.ZipFile(part, "w") as file:
        for identity in before:
            if identity in old:
                _write(file, identity, before[identity])
        yield file


def _keep_shard(
    extract: Extractor,
    shard: Shard,
    split: str,
    new: list[str],
    path: Path,
    old: Collection[str],
    size: int,
    work: Path,
) -> None:
    """Write a shard's file: those of the `old` photos in it, then the `new` ones."""
    unreadable = []
    with _rewritten(path, old) as file:
        together = max(1, TOGETHER // size**2)
        decoded = in_threads(partial(_decode, shard, size), new, 2 * together)
        photos = zip(new, Progress(decoded, path.stem, len(new), unit=" photos", leave=False), strict=True)
        while some := dict(islice(photos, together)):
            check_stop()
            unreadable += [(identity, photo) for identity, photo in some.items() if isinstance(photo, str)]
            seen = {
                identity: photo
                for identity, photo in some.items()
                if isinstance(photo, np.ndarray) and min(photo.shape[:2]) >= SMALLEST_SIDE
            }
            found = dict(zip(seen, extract(list(seen.values())), strict=True)) if seen else {}
            for identity in some:
                _write(file, identity, found.get(identity, none_found()))
    record_skipped(work, split, shard.name, [*shard.refused, *unreadable])


def _decode(shard: Shard, size: int, identity: str) -> np.ndarray | str:
    try:
        return decode(shard.read(identity), size)
    except (OSError, UnreadablePhoto) as error:
        return str(error)


def _write(file: zipfile.ZipFile, identity: str, features: LocalFeatures) -> None:
    array = io.BytesIO()
    np.save(array, _pack(features), allow_pickle=False)
    file.writestr(zipfile.ZipInfo(f"{identity}.npy"), array.getvalue())  # which has no time: the same bytes again


def _pack(features: LocalFeatures) -> np.ndarray:
    """(N, 8 + D) uint8: a descriptor's values in -1..1 become a byte each, which moves a cosine by less than 0.01."""
    points = np.ascontiguousarray(features.points, "<f4").view(np.uint8).reshape(-1, POINT_BYTES)
    return np.hstack([points, np.rint(features.descriptors * 127).astype(np.int8).view(np.uint8)])


def _unpack(array: np.ndarray) -> LocalFeatures:
    if array.dtype != np.uint8 or array.ndim != 2 or array.shape[1] < POINT_BYTES:
        raise ValueError("it holds something else than local features")
    points = np.ascontiguousarray(array[:, :POINT_BYTES]).view("<f4").astype(np.float32)
    descriptors = array[:, POINT_BYTES:].view(np.int8).astype(np.float32)
    descriptors /= np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), 1)
    return LocalFeatures(points, descriptors)


def _whole_ids(paths: list[Path]) -> dict[Path, set[str]]:
    """The photos in each file of local features; none if it is not there or anything in it is damaged.

    A file of the size and time that `checked.json` notes has been read through, all others are now.
    """
    has: dict[Path, set[str]] = {}
    checked: dict[str, list[int]] = {}
    note = paths[0].with_name(NOTE) if paths else None
    try:
        noted = json.loads(note.read_text()) if note else {}
        checked = noted if isinstance(noted, dict) else {}
    except (FileNotFoundError, ValueError):
        pass
    stamps: dict[str, list[int]] = {}
    for path in Progress(paths, "check local features", unit=" files"):
        check_stop()
        has[path] = set()
        try:
            stat, places = path.stat(), _places(path)
            stamp = [stat.st_size, stat.st_mtime_ns]
            if checked.get(path.name) != stamp:
                for place in places.values():
                    _read(path, *place)
            has[path], stamps[path.name] = set(places), stamp
        except (ValueError, OSError, EOFError, struct.error, InputError):
            pass
    if note and stamps != checked:
        with whole(note) as part:
            part.write_text(json.dumps(stamps))
    return has


def _places(path: Path) -> dict[str, tuple[int, int, int]]:
    """Where the array of each photo lies in a file: its header's offset, its size and CRC-32.

    Raises ValueError or OSError for what is no such file.
    """
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
    # All that zipfile raises for a spoilt file: struct.error for a cut record, NotImplementedError for a version of zip
    # or a compression that a flipped bit asks for.
    except (zipfile.BadZipFile, EOFError, struct.error, NotImplementedError, UnicodeError) as error:
        raise ValueError(str(error)) from error
    largest = path.stat().st_size
    if any(member.compress_type != zipfile.ZIP_STORED or member.file_size > largest for member in members):
        raise ValueError("it holds something else than local features")
    return {
        member.filename.removesuffix(".npy"): (member.header_offset, member.file_size, member.CRC) for member in members
    }


def _read(path: Path, offset: int, size: int, crc32: int) -> LocalFeatures:
    with open(path, "rb") as file:
        file.seek(offset + LENGTHS_AT)
        file.seek(sum(struct.unpack("<HH", file.read(4))), 1)  # the member's name and what else its header has
        data = file.read(size)
    if zlib.crc32(data) != crc32:
        raise ValueError("its checksum is wrong")
    try:
        if stated_bytes(io.BytesIO(data)) > len(data):
            raise ValueError("it would be larger than the file")
        array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # numpy raises almost anything on a damaged header
        raise ValueError(str(error)) from error
    return _unpack(array)
