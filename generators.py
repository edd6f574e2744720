"""A shard to batches: decode in threads, shuffle, and stay a few batches ahead of the accelerator."""

from collections.abc import Container, Generator, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from landmarks.mirrors.images import UnreadablePhoto, decode
from landmarks.mirrors.shards import Shard
from landmarks.running.threads import in_background, in_threads

BATCHES_AHEAD = 3
BATCHES_READY = 2  # on the device
PHOTOS_A_TASK = 4  # a future a photo costs a core in ten where sixteen of them decode


def shuffled(count: int, seed: int, mini_epoch: int) -> np.ndarray:
    """A permutation of range(count) that depends on (seed, mini_epoch) alone, so that a resumed run repeats it."""
    return np.random.default_rng([seed, mini_epoch]).permutation(count)


class Batches:
    """The photos of a shard in the order of `ids`, as (ids, images) with images (B, size, size, 3) uint8.

    B is `batch_size`, less in the last batch and where photos could not be read; those are named with the reason in
    `unreadable`. A batch without any readable photo is left out. Every batch is a fixed slice of `ids`, so `first`
    batches can be skipped without decoding them.
    """

    def __init__(self, shard: Shard, ids: list[str], size: int, batch_size: int, first: int = 0):
        self.shard = shard
        self.size = size
        self.slices = [ids[begin : begin + batch_size] for begin in range(0, len(ids), batch_size)][first:]
        self.unreadable: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self.slices)

    def __iter__(self) -> Iterator[tuple[list[str], np.ndarray]]:
        ahead = BATCHES_AHEAD * max((_tasks_of(len(ids)) for ids in self.slices), default=1)
        results = in_threads(self._fill, self._tasks(), ahead)
        for ids in self.slices:
            done = list(islice(results, _tasks_of(len(ids))))
            images, unreadable = done[0][0], {row: reason for _, some in done for row, reason in some}
            self.unreadable += [(ids[row], reason) for row, reason in unreadable.items()]
            if len(unreadable) < len(ids):
                yield (
                    [identity for row, identity in enumerate(ids) if row not in unreadable],
                    np.delete(images, list(unreadable), axis=0) if unreadable else images,
                )

    def _tasks(self) -> Iterator[tuple[np.ndarray, list[str], int]]:
        for ids in self.slices:
            images = np.empty((len(ids), self.size, self.size, 3), np.uint8)
            for first in range(0, len(ids), PHOTOS_A_TASK):
                yield images, ids, first

    def _fill(self, task: tuple[np.ndarray, list[str], int]) -> tuple[np.ndarray, list[tuple[int, str]]]:
        """Decode some photos of a batch to their rows of it; which of them could not be read, and why."""
        images, ids, first = task
        unreadable = []
        for row in range(first, min(first + PHOTOS_A_TASK, len(ids))):
            try:
                images[row] = decode(self.shard.read(ids[row]), self.size)
            except (OSError, UnreadablePhoto) as error:
                unreadable.append((row, str(error)))
        return images, unreadable


def of_shards(shards: Iterable[Shard], listed: Container[str], sizes: list[int], batch_size: int) -> Generator[Any]:
    """The listed photos of one shard after another, at several sizes, made while others are in use.

    For each shard its `Batches`, one of each size; then (ids, images), one of each size, of `batch_size` and on the
    device, filled up where there are fewer; then None.
    """
    from keras import ops

    def batches() -> Iterator[Any]:
        for shard in shards:
            there = [identity for identity in shard.ids if identity in listed]
            of_size = [Batches(shard, there, size, batch_size) for size in sizes]
            yield shard, of_size
            for seen in zip(*of_size, strict=False):
                filled = [np.resize(images, (batch_size, *images.shape[1:])) for _, images in seen]
                yield seen[0][0], [ops.convert_to_tensor(images) for images in filled]
            yield None

    return in_background(batches(), BATCHES_READY)


def _tasks_of(photos: int) -> int:
    return -(-photos // PHOTOS_A_TASK)
