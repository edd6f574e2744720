"""A shard to batches: decode in threads, shuffle, and stay a few batches ahead of the accelerator."""

from collections.abc import Callable, Container, Generator, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np

from landmarks.mirrors.images import UnreadablePhoto, decode_at
from landmarks.mirrors.shards import Shard, read_place
from landmarks.running import processes
from landmarks.running.threads import in_background, in_threads

BATCHES_AHEAD = 3
BATCHES_READY = 2  # on the device
PHOTOS_A_TASK = 8  # a future takes some 0.1 ms of one core, and of sixteen each decodes a photo in 2 ms


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
        for ids, (images,) in self.at([self.size]):
            yield ids, images

    def at(self, sizes: list[int]) -> Iterator[tuple[list[str], list[np.ndarray]]]:
        """The batches at several sizes, as (ids, images of each size); every photo is read once."""
        results = self._decoded(sizes)
        for ids in self.slices:
            images = [np.empty((len(ids), size, size, 3), np.uint8) for size in sizes]
            unreadable: dict[int, str] = {}
            for first in range(0, len(ids), PHOTOS_A_TASK):
                some, reasons = next(results)
                for whole, part in zip(images, some, strict=True):
                    whole[first : first + len(part)] = part
                unreadable |= {first + row: reason for row, reason in reasons.items()}
            self.unreadable += [(ids[row], reason) for row, reason in unreadable.items()]
            if len(unreadable) < len(ids):
                readable = [identity for row, identity in enumerate(ids) if row not in unreadable]
                rows = list(unreadable)
                yield readable, [np.delete(array, rows, axis=0) if rows else array for array in images]

    def _decoded(self, sizes: list[int]) -> Iterator[tuple[list[np.ndarray], dict[int, str]]]:
        """`decode_all` of one task after another, by threads, or by processes where these are worth it."""
        starts = [(ids, first) for ids in self.slices for first in range(0, len(ids), PHOTOS_A_TASK)]
        parts = (ids[first : first + PHOTOS_A_TASK] for ids, first in starts)
        ahead = BATCHES_AHEAD * -(-max(map(len, self.slices), default=1) // PHOTOS_A_TASK)
        if processes.worth_it() and hasattr(self.shard, "place"):
            places = ([self.shard.place(identity) for identity in part] for part in parts)
            return processes.in_processes(partial(decode_all, read_place, sizes), places, ahead)
        return in_threads(partial(decode_all, self.shard.read, sizes), parts, ahead)


def decode_all(
    read: Callable[[Any], bytes], sizes: list[int], photos: list[Any]
) -> tuple[list[np.ndarray], dict[int, str]]:
    """What `read` gives of each photo, decoded: (B, size, size, 3) uint8 of each size; and why some rows are not."""
    images = [np.empty((len(photos), size, size, 3), np.uint8) for size in sizes]
    unreadable = {}
    for row, photo in enumerate(photos):
        try:
            for array, square in zip(images, decode_at(read(photo), sizes), strict=True):
                array[row] = square
        except (OSError, UnreadablePhoto) as error:
            unreadable[row] = str(error)
    return images, unreadable


def of_shards(shards: Iterable[Shard], listed: Container[str], sizes: list[int], batch_size: int) -> Generator[Any]:
    """The listed photos of one shard after another, at several sizes, made while others are in use.

    For each shard its `Batches`; then (ids, images), one of each size, of `batch_size` and on the device, filled up
    where there are fewer; then None.
    """
    from landmarks.networks.devices import placed

    def batches() -> Iterator[Any]:
        for shard in shards:
            there = Batches(shard, [identity for identity in shard.ids if identity in listed], sizes[0], batch_size)
            yield shard, there
            for ids, seen in there.at(sizes):
                filled = [np.resize(images, (batch_size, *images.shape[1:])) for images in seen]
                yield ids, [placed(images) for images in filled]
            yield None

    return in_background(batches(), BATCHES_READY)
