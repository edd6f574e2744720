"""Local features of two photos to the matches that one affine map or homography explains: the inliers.

Matches are mutual nearest neighbours with Lowe's ratio test (IJCV 2004, section 7.1); MAGSAC++ (Barath et al., CVPR
2020), as OpenCV has it, fits the map. A search with BLAS does in one matrix product what a brute-force matcher does
point by point: 5 to 8 times as fast for 1,000 points a photo.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from landmarks.local_features.points import LocalFeatures, opencv
from landmarks.running.command import check_stop
from landmarks.running.progress import Progress
from landmarks.running.threads import in_threads

MAX_ITERATIONS = 2000  # of MAGSAC; 10 inliers among 110 matches are found, which 500 iterations miss
LARGEST_STRETCH = 10.0  # between two photos of one thing, in either direction
AHEAD = 64  # photos whose results may wait for that of a slower one


class Matching(NamedTuple):
    """How features of one extractor are matched. A transformation is "affine" or "homography"."""

    ratio: float  # a match must be nearer than the second-nearest point by this factor; 1: no ratio test
    least: float  # cosine similarity that a match must have
    pixels: float  # how far an inlier may lie from where the map puts it
    transformation: str = "affine"
    fits: int = 4  # maps that are tried, while they cannot be between two photos of one thing


# SIFT and XFeat: the best AUC on 200 pairs of real train photos of one landmark and 200 of two, at 512 and 640 px; the
# published matchers have a ratio of 0.8 for SIFT and a similarity of 0.82 for XFeat. DELF's are the published ones:
# match_images.py in research/delf of the TensorFlow models (distance 0.8, affine, 20 pixels). A symmetric front fits
# its own mirror image as well, and with features that were learnt from mirrored photos better: the AUC with 1, 2 and 4
# fits is 0.76, 0.80 and 0.82 for DELF, 0.62, 0.62 and 0.60 for SIFT, and 0.75 throughout for XFeat. Untrained DELF has
# AUC 0.829 at these; 0.768 at the published ones, 0.815 without the ratio test, 0.77 at a ratio of 0.9.
MATCHING = {
    "delf": Matching(ratio=1.0, least=0.68, pixels=20.0),
    "savedmodel": Matching(ratio=1.0, least=0.68, pixels=20.0),
    "sift": Matching(ratio=0.95, least=0.0, pixels=4.0, fits=1),
    "untrained": Matching(ratio=0.95, least=0.5, pixels=20.0),
    "xfeat": Matching(ratio=1.0, least=0.8, pixels=20.0),
}


def match(a: LocalFeatures, b: LocalFeatures, how: Matching) -> np.ndarray:
    """Pairs of points that are each other's nearest by cosine similarity: (M, 2) rows of `a` and `b`, int64.

    The ratio test compares the Euclidean distances of the unit descriptors, from `a` to `b`. A photo with fewer than
    two points has no second-nearest one and matches nothing.
    """
    if min(len(a.points), len(b.points)) < 2:
        return np.empty((0, 2), np.int64)
    similarity = a.descriptors @ b.descriptors.T
    nearest = similarity.argmax(axis=1)
    best = similarity[np.arange(len(nearest)), nearest]
    rows = np.flatnonzero((best >= similarity.max(axis=0)[nearest]) & (best >= how.least))
    columns, best = nearest[rows], best[rows]
    if how.ratio < 1:
        others = similarity[rows]
        others[np.arange(len(rows)), columns] = -1
        distinct = 1 - best < how.ratio**2 * (1 - others.max(axis=1))  # a squared distance is 2 - 2 similarity
        rows, columns = rows[distinct], columns[distinct]
    return np.stack([rows, columns], axis=1)


def inliers(a: LocalFeatures, b: LocalFeatures, how: Matching, seed: int = 0) -> np.ndarray:
    """The matches that lie within `how.pixels` of one map from `a` to `b`: (K, 2) rows of `a` and `b`.

    A point (to the pixel) counts once, however many descriptors it has. None are left when there are fewer matches
    than the map needs, 3 for an affine one and 4 for a homography. A map that cannot be between two photos of one thing
    is set aside with its matches, and the others are fitted again, up to `how.fits` times: it turns the photo over, or
    stretches or shrinks it more than tenfold, as one that sends all to a spot does.
    """
    pairs = match(a, b, how)
    pairs = pairs[_first(a.points[pairs[:, 0]])]
    pairs = pairs[_first(b.points[pairs[:, 1]])]
    for _ in range(how.fits):
        if len(pairs) < {"affine": 3, "homography": 4}[how.transformation]:
            break
        fitted, within = _fit(a.points[pairs[:, 0]], b.points[pairs[:, 1]], how, seed)
        if not within.any():
            break
        if _is_plausible(fitted, a.points[pairs[within, 0]].mean(axis=0)):
            return pairs[within]
        pairs = pairs[~within]
    return pairs[:0]


def compare(
    candidates: Mapping[str, Sequence[str]],
    photos: Mapping[str, LocalFeatures],
    others: Mapping[str, LocalFeatures],
    how: Matching,
    enough: float = math.inf,
) -> dict[str, list[int]]:
    """How many inliers each photo has with its candidates, in their order, up to the first with more than `enough`.

    Photos are shared out among the cores in threads, each with one thread of BLAS: its own ones would get into each
    other's way, 14 ms a pair against 2.

    Args:
        candidates: ids in `others`, by id in `photos`.

    Raises:
        InputError: OpenCV or threadpoolctl is not installed.
        Stopped: the process was asked to end.
    """
    opencv()
    from threadpoolctl import threadpool_limits

    def count(identity: str) -> list[int]:
        photo, counts = photos[identity], []
        for candidate in candidates[identity]:
            check_stop()
            counts.append(len(inliers(photo, others[candidate], how)))
            if counts[-1] > enough:
                break
        return counts

    with threadpool_limits(1, "blas"):
        counts = in_threads(count, candidates, AHEAD)
        return dict(zip(candidates, Progress(counts, "compare", len(candidates), unit=" photos"), strict=True))


def _first(points: np.ndarray) -> np.ndarray:
    """The rows of the points that no earlier one shares a pixel with, ascending."""
    x, y = np.rint(points).astype(np.int64).T
    return np.sort(np.unique((x << 32) + y, return_index=True)[1])


def _fit(a: np.ndarray, b: np.ndarray, how: Matching, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A map (2 or 3, 3) from points `a` to `b` and which of them it explains, (M,) bool."""
    parameters = opencv().UsacParams()
    parameters.score = opencv().SCORE_METHOD_MAGSAC
    parameters.loMethod = opencv().LOCAL_OPTIM_SIGMA
    parameters.final_polisher = opencv().MAGSAC
    parameters.threshold = how.pixels
    parameters.confidence = 0.999
    parameters.maxIterations = MAX_ITERATIONS
    parameters.randomGeneratorState = seed
    estimate = opencv().estimateAffine2D if how.transformation == "affine" else opencv().findHomography
    fitted, within = estimate(a, b, parameters)
    if fitted is None:
        return np.zeros((3, 3)), np.zeros(len(a), bool)
    return fitted, within[:, 0] > 0


def _is_plausible(fitted: np.ndarray, centre: np.ndarray) -> bool:
    """Whether the map keeps the side that is seen and its size, within reason, around `centre`."""
    corners = np.array([[*centre, 1], [centre[0] + 1, centre[1], 1], [centre[0], centre[1] + 1, 1]])
    mapped = corners @ fitted.T
    mapped = mapped[:, :2] / (mapped[:, 2:] if mapped.shape[1] == 3 else 1)
    slope = (mapped[1:] - mapped[0]).T
    if not np.isfinite(slope).all() or np.linalg.det(slope) <= 0:
        return False
    stretch = np.linalg.svd(slope, compute_uv=False)
    return 1 / LARGEST_STRETCH < stretch[1] and stretch[0] < LARGEST_STRETCH
