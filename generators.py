"""A shard to batches: decode in threads, shuffle, and stay a few batches ahead of the accelerator."""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from landmarks.mirrors.images import UnreadablePhoto, decode
from landmarks.mirrors.shards import Shard
from landmarks.running.threads import in_threads

BATCHES_AHEAD = 3


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
        ahead = BATCHES_AHEAD * max(map(len, self.slices), default=1)
        photos = in_threads(self._decode, (identity for part in self.slices for identity in part), ahead)
        for part in self.slices:
            decoded = list(islice(photos, len(part)))
            read = [(identity, image) for identity, image in decoded if isinstance(image, np.ndarray)]
            self.unreadable += [(identity, reason) for identity, reason in decoded if isinstance(reason, str)]
            if read:
                ids, images = zip(*read, strict=True)
                yield list(ids), np.stack(images)

    def _decode(self, identity: str) -> tuple[str, np.ndarray | str]:
        try:
            return identity, decode(self.shard.read(identity), self.size)
        except (OSError, UnreadablePhoto) as error:
            return identity, str(error)
