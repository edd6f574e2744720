"""A shard: some thousands of photos, read one at a time by id from a tar or a folder tree."""

import os
import re
import stat
import tarfile
import threading
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Protocol

from landmarks.running.command import InputError
from landmarks.running.files import whole

LONGEST_ID = 83
PHOTO_ID = re.compile(rf"\w{{3}}[\w-]{{0,{LONGEST_ID - 3}}}", re.ASCII)
MEMBER_NAME = re.compile(r"(\w)/(\w)/(\w)/((?:\1\2\3)[\w-]{0,80})\.jpg", re.ASCII)
MAX_PHOTO_BYTES = 64 * 2**20
MAX_HEADER_BYTES = 2**16  # a long name or a PAX header
MAX_MEMBERS = 2**20  # they take 650 MB of memory; a shard of the public mirror has 8,192
MAX_GLOBAL = 100  # records of PAX headers for all members: tarfile gives each member a copy
LONG_NUMBER = re.compile(rb"\d{256}")  # tarfile of some Python versions looks for records in the square of its length


Place = tuple[str, int, int | None]  # a file, and where in it so many bytes are; None: all of it


def valid_id(identity: str) -> bool:
    """Whether an id can be a member's name."""
    return PHOTO_ID.fullmatch(identity) is not None


class DamagedShard(InputError):
    """A tar that cannot be read to its end."""


class Shard(Protocol):
    """Photos under a common name, from a mirror or in the place of its own: each is read by its id."""

    name: str
    ids: list[str]
    refused: list[tuple[str, str]]  # what is passed over, a member or an id, and why

    def read(self, identity: str) -> bytes: ...

    def close(self) -> None: ...


class TarShard:
    """The photos of one tar, read by offset: nothing is extracted and no path from the tar touches the disk.

    Only regular members named `a/b/c/ID.jpg` (a, b, c: the first three characters of ID) of at most 64 MiB count.
    `ids` lists their ids in the tar's order, `refused` every other member as (name, reason). Folders are passed over.

    With `salvage` a tar that is cut or malformed has the photos that lie whole before the fault, which `damage` tells,
    as `refused` does under the tar's own name.

    Raises:
        DamagedShard: without `salvage`, the tar is cut or malformed.
    """

    def __init__(self, path: Path, salvage: bool = False):
        self.path = Path(path)
        self.name = self.path.stem
        self.refused: list[tuple[str, str]] = []
        self.places: dict[str, tuple[int, int]] = {}  # offset and size of each photo, by id
        self.damage = ""
        self._lock = threading.Lock()
        self._file = open(self.path, "rb")
        try:
            self._read_directory()
        except (DamagedShard, tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError) as error:
            if not salvage:
                self._file.close()
                raise DamagedShard(f"{self.path}: {error}") from error
            self.damage = f"damaged: {error}; the {len(self.places):,} photos before that are used"
            self.refused.append((self.path.name, self.damage))
        self.ids = list(self.places)

    def _read_directory(self) -> None:
        for member in read_members(self._file):
            reason = self._reason_to_refuse(member)
            if reason:
                self.refused.append((member.name, reason))
            elif not member.isdir():
                self.places[member.name[len("a/b/c/") : -len(".jpg")]] = (member.offset_data, member.size)

    def _reason_to_refuse(self, member: tarfile.TarInfo) -> str | None:
        if member.isdir():
            return None
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None:
            return "not a regular file"
        match = MEMBER_NAME.fullmatch(member.name)
        if not match:
            return "not named a/b/c/ID.jpg"
        if member.size > MAX_PHOTO_BYTES:
            return f"larger than {MAX_PHOTO_BYTES >> 20} MiB"
        if match.group(4) in self.places:
            return "id seen before"
        return None

    def size(self, identity: str) -> int:
        """Bytes of the encoded photo."""
        return self.places[identity][1]

    def place(self, identity: str) -> Place:
        """Where the encoded photo is on disk, for `read_place`."""
        return str(self.path), *self.places[identity]

    def read(self, identity: str) -> bytes:
        """The encoded photo. Safe to call from several threads."""
        offset, size = self.places[identity]
        with self._lock:
            self._file.seek(offset)
            return self._file.read(size)

    def close(self) -> None:
        self._file.close()


def read_members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The members of a tar, as its headers tell them, with bounds on what these may claim.

    Raises DamagedShard where it is cut or malformed, and what tarfile does.
    """
    size = os.fstat(file.fileno()).st_size
    end = 0
    with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:
        for count, member in enumerate(tar, 1):
            if count > MAX_MEMBERS:
                raise DamagedShard(f"more than {MAX_MEMBERS:,} members")
            if len(tar.pax_headers) > MAX_GLOBAL:
                raise DamagedShard(f"{len(tar.pax_headers):,} records for all members")
            if not end < tar.offset <= size:  # tarfile of some Python versions would go round in circles
                raise DamagedShard(f"cut within member {member.name[:100]!a}, or of a wrong size")
            end = tar.offset
            yield member
    file.seek(end)
    tail = file.read(2 * tarfile.BLOCKSIZE)
    if len(tail) < tarfile.BLOCKSIZE or any(tail):
        raise DamagedShard("cut before the end-of-archive block")


class _Headers:
    """A tar's headers as tarfile reads them, which believes whatever length they claim."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.seek, self.tell, self.write, self.close = file.seek, file.tell, file.write, file.close

    def read(self, size: int) -> bytes:
        if size > MAX_HEADER_BYTES:
            raise DamagedShard(f"a header of {size:,} bytes")
        data = self.file.read(size)
        if LONG_NUMBER.search(data):
            raise DamagedShard("a header with a number of 256 digits")
        return data


class FolderShard:
    """Some photos of an extracted tree ROOT/a/b/c/ID.jpg, as a Kaggle kernel has it, under a shard's name.

    `refused` lists what cannot be an id, so that no path leads out of ROOT.
    """

    def __init__(self, root: Path, name: str, ids: list[str]):
        self.root = root
        self.name = name
        self.ids = [identity for identity in ids if valid_id(identity)]
        self.refused = [(identity, "not an id that can be a file's name") for identity in ids if not valid_id(identity)]

    def size(self, identity: str) -> int:
        """Bytes of the encoded photo; -1 when it is missing."""
        try:
            return os.stat(f"{self.root}/{member_name(identity)}").st_size
        except OSError:
            return -1

    def place(self, identity: str) -> Place:
        """Where the encoded photo is on disk, for `read_place`."""
        return str(self.root / member_name(identity)), 0, None

    def read(self, identity: str) -> bytes:
        """The encoded photo. Raises OSError when it is missing, too large, or a device or pipe that may have no end."""
        return read_photo(self.root / member_name(identity))

    def close(self) -> None:
        pass


def read_place(place: Place) -> bytes:
    """The encoded photo at a place that a shard told, in another process too. Raises OSError as `read` does."""
    path, offset, size = place
    if size is None:
        return read_photo(Path(path))
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


def read_photo(path: Path) -> bytes:
    """An encoded photo. Raises OSError when it is missing, too large, or a device or pipe that may have no end."""
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise OSError("not a regular file")
    if state.st_size > MAX_PHOTO_BYTES:
        raise OSError(f"larger than {MAX_PHOTO_BYTES >> 20} MiB")
    return path.read_bytes()


def write_tar(path: Path, photos: Iterable[tuple[str, bytes]]) -> None:
    """Write (id, JPEG bytes) pairs as a shard; the file appears under its name only when it is whole.

    Times and owners are zero, so that the same photos give the same bytes.
    """
    with whole(path) as part, tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
        for identity, data in photos:
            member = tarfile.TarInfo(member_name(identity))
            member.size = len(data)
            tar.addfile(member, BytesIO(data))


def member_name(identity: str) -> str:
    """Where a photo is in a tar or a tree: a/b/c/ID.jpg."""
    return "/".join([*identity[:3], f"{identity}.jpg"])
