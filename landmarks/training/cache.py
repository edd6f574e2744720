"""Train photos decoded once and kept on disk as they are, so that later epochs need no download and no decoding."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from generators import Batches
from landmarks.mirrors.base import Mirror
from landmarks.mirrors.shards import Shard
from landmarks.running.arrays import digest
from landmarks.running.command import warn
from landmarks.running.files import whole

ROOM = 2**30  # bytes of the disk that are left to others
LARGEST_NOTE = 2**28  # bytes: a million photos


class CachedShard:
    """A shard whose photos are decoded: those that were wanted, in its order."""

    refused: list[tuple[str, str]] = []

    def __init__(self, path: Path, name: str, ids: list[str], unreadable: dict[str, str]):
        self.name, self.ids, self.unreadable = name, ids, unreadable
        self.rows = {identity: row for row, identity in enumerate(ids)}
        self.photos = np.load(path, mmap_mode="r")  # (N, S, S, 3) uint8

    def read(self, identity: str) -> bytes:
        return self.photos[self.rows[identity]].tobytes()

    def close(self) -> None:
        del self.photos


class Cache:
    """A mirror's train shards, and beside them those of its photos that were decoded before.

    A shard is kept when an epoch has gone through all of it, as long as there is room. Files of other photos, another
    size or another mirror are made anew.

    Args:
        folder: for `NAME-SIZE.npy`, (N, S, S, 3) uint8, and `NAME-SIZE.json`, which says what is in it.
        classes: the class of every photo that is learnt, by id.
        image_size: S, in pixels.
        limit: bytes that the folder may take.
    """

    def __init__(self, mirror: Mirror, folder: Path, classes: pd.Series, image_size: int, limit: float):
        self.mirror, self.folder, self.classes, self.size, self.limit = mirror, folder, classes, image_size, limit

    def stream(self, split: str, names: list[str]) -> Iterator[Shard]:
        """As `Mirror.stream`; one epoch after another, each of which finds what those before it have left."""
        while names:
            epoch = names[: next((n for n, name in enumerate(names) if name in names[:n]), len(names))]
            names = names[len(epoch) :]
            kept = {name: shard for name in epoch if (shard := self._open(name)) is not None}
            fresh = self.mirror.stream(split, [name for name in epoch if name not in kept])
            for name in epoch:
                yield kept[name] if name in kept else next(fresh)
            next(fresh, None)  # which ends it, and clears the last shard away

    def batches(self, shard: Shard, ids: list[str], size: int, batch_size: int, first: int = 0) -> Batches:
        """Batches of a shard of `stream`."""
        if isinstance(shard, CachedShard):
            return CachedBatches(shard, ids, size, batch_size, first)
        return (
            Batches(shard, ids, size, batch_size, first) if first else KeptBatches(self, shard, ids, size, batch_size)
        )

    def path(self, name: str) -> Path:
        return self.folder / f"{name}-{self.size}.npy"

    def has_room(self, size: int) -> bool:
        there = sum(path.stat().st_size for path in self.folder.glob("*.npy"))
        return there + size <= self.limit and size + ROOM <= shutil.disk_usage(self.folder).free

    def made_from(self, shard: str) -> str:
        """What the photos of a shard follow from, but for the mirror's own words."""
        mirror = self.mirror
        return digest(mirror.fingerprint("train", shard) or mirror.name, "\n".join(self.classes.index).encode())

    def _open(self, name: str) -> CachedShard | None:
        path = self.path(name)
        note = path.with_suffix(".json")
        try:
            if note.stat().st_size > LARGEST_NOTE:
                return None
            told = json.loads(note.read_text())
            if told["made_from"] != self.made_from(name):
                return None
            shard = CachedShard(path, name, told["ids"], told["unreadable"])
            right = shard.photos.shape == (len(shard.ids), self.size, self.size, 3) and shard.photos.dtype == np.uint8
            return shard if right else None
        except (OSError, ValueError, KeyError, TypeError):  # not there, cut, or of somebody else
            return None


class CachedBatches(Batches):
    """Batches of photos that are decoded already."""

    shard: CachedShard

    def __iter__(self) -> Iterator[tuple[list[str], np.ndarray]]:
        for ids in self.slices:
            self.unreadable += [(one, self.shard.unreadable[one]) for one in ids if one in self.shard.unreadable]
            readable = [one for one in ids if one not in self.shard.unreadable]
            if readable:
                yield readable, self.shard.photos[[self.shard.rows[one] for one in readable]]


class KeptBatches(Batches):
    """Batches of a shard's photos, which are in the cache when all have been taken."""

    def __init__(self, cache: Cache, *arguments):
        super().__init__(*arguments)
        self.cache = cache

    def __iter__(self) -> Iterator[tuple[list[str], np.ndarray]]:
        cache, wanted = self.cache, {identity for ids in self.slices for identity in ids}
        ids = [identity for identity in self.shard.ids if identity in wanted]
        shape = (len(ids), self.size, self.size, 3)
        cache.folder.mkdir(parents=True, exist_ok=True)
        if not ids or not cache.has_room(int(np.prod(shape))):
            if ids:
                warn("shards are not cached, as there is no room", f"{self.shard.name} in {cache.folder}")
            yield from super().__iter__()
            return
        rows = {identity: row for row, identity in enumerate(ids)}
        path = cache.path(self.shard.name)
        path.with_suffix(".json").unlink(missing_ok=True)
        with whole(path) as part:
            photos = np.lib.format.open_memmap(part, "w+", np.uint8, shape)
            for some, images in super().__iter__():
                photos[[rows[identity] for identity in some]] = images
                yield some, images
            photos.flush()
        note = {"made_from": cache.made_from(self.shard.name), "ids": ids, "unreadable": dict(self.unreadable)}
        with whole(path.with_suffix(".json")) as part:
            part.write_text(json.dumps(note))
