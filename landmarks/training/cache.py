"""Train photos decoded once and kept on disk as they are, so that later epochs need no download and no decoding."""

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from generators import Batches
from landmarks.mirrors.base import Mirror
from landmarks.mirrors.shards import Shard
from landmarks.running.command import InputError, warn
from landmarks.running.digest import digest
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
    size or another mirror are made anew. Several runs may share a folder: each shard is kept by one of them.

    Args:
        folder: for `NAME-SIZE.npy`, (N, S, S, 3) uint8, and `NAME-SIZE.json`, which says what is in it.
        classes: the class of every photo that is learnt, by id.
        image_size: S, in pixels.
        limit: bytes that the folder may take.
    """

    def __init__(self, mirror: Mirror, folder: Path, classes: pd.Series, image_size: int, limit: float):
        self.mirror, self.folder, self.size, self.limit = mirror, folder, image_size, limit
        self.learnt = digest("\n".join(classes.index).encode())

    def stream(self, split: str, names: list[str]) -> Iterator[Shard]:
        """As `Mirror.stream`; one epoch after another, each of which finds what those before it have left."""
        while names:
            epoch = names[: next((n for n, name in enumerate(names) if name in names[:n]), len(names))]
            names = names[len(epoch) :]
            kept = {name for name in epoch if self.opened(name) is not None}  # a system lets few files be open at once
            fresh = self.mirror.stream(split, [name for name in epoch if name not in kept])
            for name in epoch:
                yield self._kept(name) if name in kept else next(fresh)
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
        return digest(self.mirror.fingerprint("train", shard) or self.mirror.name, self.learnt)

    def _kept(self, name: str) -> CachedShard:
        shard = self.opened(name)
        if shard is None:
            raise InputError(
                f"{self.path(name)} went, or was changed by a run with other photos, which wants another --cache: "
                "run the same command again"
            )
        return shard

    def opened(self, name: str) -> CachedShard | None:
        """A shard that is kept; None if it is not, or was made from anything else."""
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
        path = cache.path(self.shard.name)
        lock = FileLock(path.with_suffix(".lock"), thread_local=False)  # a closed iterator may end in any thread
        with suppress(Timeout, NotImplementedError, OSError):  # then it is not locked, as is told below
            lock.acquire(blocking=False)
        try:
            if not lock.is_locked:
                warn("shards are not cached, as another run keeps them or locks are not known there", str(path))
            elif ids and cache.opened(self.shard.name) is None:  # else another run has kept it since
                if cache.has_room(int(np.prod(shape))):
                    yield from self._keep(path, ids, shape)
                    return
                warn("shards are not cached, as there is no room", f"{self.shard.name} in {cache.folder}")
            yield from super().__iter__()
        finally:
            lock.release()

    def _keep(self, path: Path, ids: list[str], shape: tuple[int, ...]) -> Iterator[tuple[list[str], np.ndarray]]:
        rows = {identity: row for row, identity in enumerate(ids)}
        path.with_suffix(".json").unlink(missing_ok=True)
        with whole(path) as part:
            photos = np.lib.format.open_memmap(part, "w+", np.uint8, shape)
            for some, images in super().__iter__():
                photos[[rows[identity] for identity in some]] = images
                yield some, images
            photos.flush()
        note = {"made_from": self.cache.made_from(self.shard.name), "ids": ids, "unreadable": dict(self.unreadable)}
        with whole(path.with_suffix(".json")) as part:
            part.write_text(json.dumps(note))
