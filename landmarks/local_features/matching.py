"""Local features of two photos to the matches that one affine map or homography explains: the inliers.

Matches are mutual nearest neighbours with Lowe's ratio test (IJCV 2004, section 7.1); MAGSAC++ (Barath et al., CVPR
2020), as OpenCV has it, fits the map. A search with BLAS does in one matrix product what a brute-force matcher does
point by point: 5 to 8 times as fast for 1,000 points a photo.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from landmarks.local_features.points import LocalFeatures, Matching, opencv
from landmarks.running.command import check_stop, prepare_backend
from landmarks.running.threads import in_threads

MAX_ITERATIONS = 2000  # of MAGSAC; 10 inliers among 110 matches are found, which 500 iterations miss
LARGEST_STRETCH = 10.0  # between two photos of one thing, in either direction
AHEAD = 64  # photos whose results may wait for that of a slower one
READ_AHEAD = 8  # photos that wait for the accelerator, with the features of all their candidates


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
    return explained(a, b, match(a, b, how), how, seed=seed)


def explained(
    a: LocalFeatures, b: LocalFeatures, pairs: np.ndarray, how: Matching, beyond: int = 0, seed: int = 0
) -> np.ndarray:
    """`inliers` among matches that are known; none as soon as there cannot be more than `beyond`."""
    pairs = pairs[_first(a.points[pairs[:, 0]])]
    pairs = pairs[_first(b.points[pairs[:, 1]])]
    least = max({"affine": 3, "homography": 4}[how.transformation], beyond + 1)
    for _ in range(how.fits):
        if len(pairs) < least:
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
) -> Iterator[tuple[str, list[int]]]:
    """How many inliers each photo has with its candidates, in their order, up to the first with more than `enough`.

    With an `enough` it is the most of a photo that matters: a candidate with no more matches than an earlier one has
    inliers counts 0, and no map is fitted. The most, and which candidate has them first, are the same.

    Photos are shared out among the cores in threads, each with one thread of BLAS: its own ones would get into each
    other's way, 14 ms a pair against 2. With an accelerator the matches of a photo with all its candidates are found
    there at once, and the threads fit the maps.

    Args:
        candidates: ids in `others`, by id in `photos`.

    Yields:
        The id of each photo and its counts, in the order of `candidates`.

    Raises:
        InputError: OpenCV or threadpoolctl is not installed.
        Stopped: the process was asked to end.
    """
    opencv()
    from threadpoolctl import threadpool_limits

    prepare_backend()
    from landmarks.networks.devices import accelerated, full_precision

    def count(photo: LocalFeatures, matches: Iterable[tuple[LocalFeatures, np.ndarray]]) -> list[int]:
        counts: list[int] = []
        for other, pairs in matches:
            check_stop()
            beyond = max(counts, default=0) if enough < math.inf else 0
            counts.append(len(explained(photo, other, pairs, how, beyond)))
            if counts[-1] > enough:
                break
        return counts

    def read_and_count(identity: str) -> list[int]:
        photo = photos[identity]
        theirs = map(others.__getitem__, candidates[identity])
        return count(photo, ((other, match(photo, other, how)) for other in theirs))

    def read(identity: str) -> tuple[LocalFeatures, list[LocalFeatures]]:
        return photos[identity], [others[candidate] for candidate in candidates[identity]]

    def matched() -> Iterator[tuple[LocalFeatures, Iterable[tuple[LocalFeatures, np.ndarray]]]]:
        from landmarks.local_features.products import match_all

        for photo, theirs in in_threads(read, candidates, READ_AHEAD):
            yield photo, zip(theirs, match_all(photo, theirs, how), strict=True)

    with threadpool_limits(1, "blas"), full_precision():
        if accelerated():
            counts = in_threads(lambda one: count(*one), matched(), AHEAD)
        else:
            counts = in_threads(read_and_count, candidates, AHEAD)
        yield from zip(candidates, counts, strict=True)


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
