"""The matches of a photo with several others on an accelerator: all similarities as one matrix product."""

from collections.abc import Sequence

import numpy as np
from keras import ops

from landmarks.local_features.points import LocalFeatures, Matching

MOST = 2**28  # similarities at once, a gigabyte of them: more candidates are taken in several turns
POINTS = 256  # photos are filled up to a multiple of so many points: back ends may compile anew for each shape


def match_all(photo: LocalFeatures, others: Sequence[LocalFeatures], how: Matching) -> list[np.ndarray]:
    """What `matching.match` finds for the photo and each of the others; waits for the device.

    Where points are nearly as near as each other, the last bits of a product decide, which differ between devices, as
    they do between libraries for linear algebra. The products have to be in full float32 (`devices.full_precision`).
    """
    found = [np.empty((0, 2), np.int64)] * len(others)
    rows = [row for row, other in enumerate(others) if min(len(photo.points), len(other.points)) > 1]
    if not rows:
        return found
    width = _filled(max(len(others[row].points) for row in rows))
    at_once = max(1, MOST // (width * _filled(len(photo.points))))
    if len(rows) > at_once:
        parts = [others[begin : begin + at_once] for begin in range(0, len(others), at_once)]
        return [pairs for part in parts for pairs in match_all(photo, part, how)]
    count = 1 << (len(rows) - 1).bit_length()
    dimensions = photo.descriptors.shape[1]
    there = np.zeros((count, width, dimensions), np.float32)
    is_point = np.zeros((count, width), bool)
    for place, row in enumerate(rows):
        there[place, : len(others[row].points)] = others[row].descriptors
        is_point[place, : len(others[row].points)] = True
    here = np.zeros((_filled(len(photo.points)), dimensions), np.float32)
    here[: len(photo.points)] = photo.descriptors
    nearest, matches = _mutual(here, there, is_point, np.arange(len(here)) < len(photo.points), how)
    for place, row in enumerate(rows):
        those = np.flatnonzero(matches[:, place])
        found[row] = np.stack([those, nearest[those, place]], axis=1)
    return found


def _filled(points: int) -> int:
    return -(-points // POINTS) * POINTS


def _mutual(
    here: np.ndarray, there: np.ndarray, is_there: np.ndarray, is_here: np.ndarray, how: Matching
) -> tuple[np.ndarray, np.ndarray]:
    """Of points (N, D) the nearest ones among each of (C, M, D), (N, C), and whether that is a match, (N, C) bool."""
    count, width, dimensions = there.shape
    columns = ops.transpose(ops.reshape(ops.convert_to_tensor(there), (count * width, dimensions)))
    similarity = ops.reshape(ops.matmul(ops.convert_to_tensor(here), columns), (len(here), count, width))
    similarity = ops.where(is_there & is_here[:, None, None], similarity, -2.0)  # below that of any two points
    nearest, best = ops.argmax(similarity, axis=2), ops.max(similarity, axis=2)
    of_nearest = ops.transpose(ops.take_along_axis(ops.max(similarity, axis=0), ops.transpose(nearest), axis=1))
    matches = ops.logical_and(best >= of_nearest, best >= how.least)
    matches = ops.logical_and(matches, is_here[:, None])
    if how.ratio < 1:
        is_nearest = ops.equal(np.arange(width), nearest[:, :, None])
        second = ops.max(ops.where(is_nearest, -1.0, similarity), axis=2)
        second = ops.maximum(second, -1.0)
        matches = ops.logical_and(matches, 1 - best < how.ratio**2 * (1 - second))
    return ops.convert_to_numpy(nearest).astype(np.int64), ops.convert_to_numpy(matches)
