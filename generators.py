"""A shard to batches: decode in threads, shuffle, and stay a few batches ahead of the accelerator."""

import csv
import io
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from images import UnreadablePhoto, decode
from shards import FolderShard, TarShard
from threads import cores

BATCHES_AHEAD = 3


def in_threads(function: Callable, items: Iterable, ahead: int, threads: int | None = None) -> Iterator[Any]:
    """`map(function, items)` in threads, in order, with at most `ahead` results waiting."""
    waiting = iter(items)
    pool = ThreadPoolExecutor(threads or cores())
    try:
        results = deque(pool.submit(function, item) for item in islice(waiting, ahead))
        while results:
            yield results.popleft().result()
            results.extend(pool.submit(function, item) for item in islice(waiting, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def shuffled(count: int, seed: int, mini_epoch: int) -> np.ndarray:
    """A permutation of range(count) that depends on (seed, mini_epoch) alone, so that a resumed run repeats it."""
    return np.random.default_rng([seed, mini_epoch]).permutation(count)


class Batches:
    """The photos of a shard in the order of `ids`, as (ids, images) with images (B, size, size, 3) uint8.

    B is `batch_size`, less in the last batch and where photos could not be read; those are named with the reason in
    `unreadable`. A batch without any readable photo is left out. Every batch is a fixed slice of `ids`, so `first`
    batches can be skipped without decoding them.
    """

    def __init__(self, shard: TarShard | FolderShard, ids: list[str], size: int, batch_size: int, first: int = 0):
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


def record_skipped(work: Path, split: str, shard: TarShard | FolderShard, unreadable: list[tuple[str, str]]) -> None:
    """Add what was passed over in a shard, photos and members, to `work/skipped.csv`, and name the first new one."""
    path = work / "skipped.csv"
    known = set(path.read_text(encoding="utf8").splitlines()) if path.exists() else set()
    lines = []
    for name, reason in [*shard.refused, *unreadable]:
        row = io.StringIO()
        csv.writer(row, lineterminator="").writerow([split, shard.name, ascii(name)[1:-1], " ".join(reason.split())])
        lines.append(row.getvalue())
    new = [line for line in dict.fromkeys(lines) if line not in known]
    if new:
        with open(path, "a", encoding="utf8") as file:
            file.write("".join(line + "\n" for line in ([] if known else ["split,shard,name,reason"]) + new))
        tqdm.write(f"warning: {len(new)} passed over in {split}/{shard.name} (see {path}), first {new[0]}", sys.stderr)


def skipped_photos(work: Path, split: str, name: str) -> set[str]:
    """What `record_skipped` has noted of a shard: photos and members."""
    path = work / "skipped.csv"
    if not path.exists():
        return set()
    with open(path, newline="", encoding="utf8") as file:
        return {row[2] for row in csv.reader(file) if row[:2] == [split, name]}
