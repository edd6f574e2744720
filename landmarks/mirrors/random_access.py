"""Any photo of a local mirror at any time, as batches of P classes x K photos need it."""

from bisect import bisect_left
from collections.abc import Iterable
from itertools import compress
from pathlib import Path

import numpy as np

from landmarks.mirrors.base import Mirror
from landmarks.mirrors.folder import FolderMirror
from landmarks.mirrors.shards import FolderShard, TarShard
from landmarks.running.command import InputError, check_stop
from landmarks.running.progress import Progress


class RandomAccess:
    """The photos of several shards, read by id in any order: to `generators.Batches` one large shard.

    `ids` lists those of `wanted` that are there, sorted; `refused` the members that the shards refuse, and a wanted id
    that comes a second time, as (name, reason), where the name begins with the shard's.

    Memory: 26 bytes a photo and 46 while it is built, measured on 100,000 in 500 shards, beside the strings of
    `wanted`, which are used again: 41 MB for 1.58 million. Members that are not wanted take none, but the time to read
    every header, 45 s a million. A file is opened for each read, so that no thread waits for another and no descriptor
    is held: 15 microseconds more than `os.pread`, where decoding a photo of 256 px takes 800.

    Args:
        names: of the shards.
        wanted: the ids to keep.
        size: of photos, in pixels, in the command that the error message gives.

    Raises:
        InputError: the mirror is not in a folder, or a shard is damaged.
    """

    def __init__(self, mirror: Mirror, split: str, names: list[str], wanted: Iterable[str], size: int):
        if not isinstance(mirror, FolderMirror):
            raise InputError(
                f"triplets need random access, any photo at any time, which {mirror.name} does not give: make a small "
                f"local copy with `python mirror.py shrink {mirror.name} OUT --size {size}` and train on --mirror OUT"
            )
        self.name = names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}"
        self.ids = sorted(wanted)
        self.refused: list[tuple[str, str]] = []
        self._shards: list[Path | FolderShard] = []
        self._shard = np.full(len(self.ids), -1, np.int32)
        self._offset = np.zeros(len(self.ids), np.int64)
        self._length = np.zeros(len(self.ids), np.int32)
        for shard in Progress(mirror.stream(split, names), f"index {split}", len(names), unit=" shards", leave=False):
            check_stop()
            self._add(shard)
        found = self._shard >= 0
        self.ids = list(compress(self.ids, found))
        self._shard, self._offset, self._length = self._shard[found], self._offset[found], self._length[found]

    def _add(self, shard: TarShard | FolderShard) -> None:
        self.refused += [(f"{shard.name}/{name}", reason) for name, reason in shard.refused]
        for identity in shard.ids:
            row = self._row(identity)
            if row is None:
                continue
            if self._shard[row] >= 0:
                self.refused.append((f"{shard.name}/{identity}", "id seen before"))
                continue
            self._shard[row] = len(self._shards)
            if isinstance(shard, TarShard):
                self._offset[row], self._length[row] = shard.places[identity]
        self._shards.append(shard.path if isinstance(shard, TarShard) else shard)

    def _row(self, identity: str) -> int | None:
        row = bisect_left(self.ids, identity)
        return row if row < len(self.ids) and self.ids[row] == identity else None

    def read(self, identity: str) -> bytes:
        """The encoded photo. Safe to call from several threads.

        Raises:
            KeyError: it is not in `ids`.
            OSError: its file is gone, or too large.
        """
        row = self._row(identity)
        if row is None:
            raise KeyError(identity)
        shard = self._shards[self._shard[row]]
        if isinstance(shard, FolderShard):
            return shard.read(identity)
        with open(shard, "rb") as file:
            file.seek(self._offset[row])
            return file.read(self._length[row])

    def close(self) -> None:
        """Nothing is open: as a shard has it."""
