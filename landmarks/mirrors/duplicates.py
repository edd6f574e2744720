"""Copies and near-duplicates among photos, by perceptual hashes: groups of those that differ in a few bits."""

import hashlib
from itertools import count, pairwise

import numpy as np
from PIL import Image

# By benchmarks/duplicates.py on 2,940 web photos that hold no copies: of 4.3 million pairs none is within 2 bits, 3 are
# within 6, each of one landmark, and 6 within 8, one of them of two landmarks. Of copies that are smaller, or JPEGs of
# quality 30, 97 to 100 % are within 2 bits; of those cut by 1 or 2 % on each side 89 to 99 % are within 6.
COPY = 2
NEAR_DUPLICATE = 6
SIDE = 32  # of the grey photo that is hashed
FREQUENCIES = np.cos(np.pi / (2 * SIDE) * np.outer(np.arange(8), 2 * np.arange(SIDE) + 1))


def perceptual_hash(image: Image.Image, data: bytes) -> np.uint64:
    """The pHash of C. Zauner's "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010).

    The 64 lowest frequencies of the grey photo of 32 x 32, each above their median or not: bit for bit what imagehash
    gives, which takes SciPy and PyWavelets for it, 150 MB. Of a photo so even that rounding would decide, a digest of
    `data`, its file.
    """
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), float)
    if grey.std() < 1:
        return np.frombuffer(hashlib.blake2b(data, digest_size=8).digest(), np.uint64)[0]
    lowest = FREQUENCIES @ grey @ FREQUENCIES.T
    return np.packbits(lowest > np.median(lowest)).view(np.uint64)[0]


def groups(hashes: np.ndarray, distance: int, within: np.ndarray) -> np.ndarray:
    """The group of each hash: alike for those that steps of at most `distance` bits link.

    Args:
        hashes: (N,) uint64.
        within: (N,) integers; only hashes of which these are alike are compared.

    Returns:
        (N,) integers.

    Of `distance` + 1 parts of two such hashes one at least is alike, so that only hashes that share one are compared:
    of hashes that are spread evenly few do, and the time grows with N.
    """
    keys, rows = np.unique(np.stack([within.astype(np.uint64), hashes]), axis=1, return_inverse=True)
    within, hashes = keys
    pairs = [np.empty((2, 0), int)]
    for low, high in pairwise(np.linspace(0, 64, distance + 2).astype(np.uint64)):
        part = hashes << (np.uint64(64) - high) >> (np.uint64(64) - high + low)
        order = np.lexsort((part, within))
        place = np.arange(len(order))
        for ahead in count(1):
            place = place[: np.searchsorted(place, len(order) - ahead)]
            one, other = order[place], order[place + ahead]
            alike = (part[one] == part[other]) & (within[one] == within[other])
            place, one, other = place[alike], one[alike], other[alike]
            if not len(place):
                break
            near = np.bitwise_count(hashes[one] ^ hashes[other]) <= distance
            pairs.append(np.stack([one[near], other[near]]))
    return _components(len(hashes), *np.concatenate(pairs, axis=1))[rows.reshape(-1)]


def _components(size: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The least of the numbers up to `size` that pairs of them link each one with."""
    least = np.arange(size)
    while True:
        before = least.copy()
        np.minimum.at(least, left, before[right])
        np.minimum.at(least, right, before[left])
        least = least[least]
        if (least == before).all():
            return least
