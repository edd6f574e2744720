"""The measures of the two challenges, as the published metric code of the Google Landmarks Dataset v2 computes them.

Rules: Weyand et al., "Google Landmarks Dataset v2", CVPR 2020, and delf/python/datasets/google_landmarks_dataset in the
TensorFlow models repository. Predictions and solutions are dicts by test id. Test ids may be anything that sorts,
landmarks any integers.
"""

import statistics
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from itertools import count
from operator import truediv
from typing import Any, NamedTuple


def gap(
    predictions: Mapping[Any, tuple[int, float]],
    solution: Mapping[Any, Collection[int]],
    landmarks_only: bool = False,
) -> float:
    """Global average precision (micro-AP) at top-1: sum over ranks i of P(i) rel(i) / number of images with landmark.

    Predictions are ranked by descending score, ties by ascending test id. One on an image without landmark is wrong
    and lowers the precision of all below it; an image with landmark that is not predicted counts as missed.

    Args:
        predictions: (landmark, score) by test id; at most one for an image.
        solution: the landmarks of every test image; none for an image without landmark. Any of several is right.
        landmarks_only: leave out predictions on images without landmark. Kaggle does not: such a GAP is optimistic.

    Raises:
        KeyError: a predicted image is not in `solution`.
        ZeroDivisionError: no image has a landmark.

    Source: Perronnin et al., "A Family of Contextual Measures of Similarity between Distributions", CVPR 2009.
    """
    order = sorted(predictions, key=lambda image: (-predictions[image][1], image))
    ranking = [image for image in order if not landmarks_only or len(solution[image]) > 0]
    hits = [rank for rank, image in enumerate(ranking, 1) if predictions[image][0] in solution[image]]
    return sum(map(truediv, count(1), hits)) / _images_with_landmark(solution)


def top1_accuracy(predictions: Mapping[Any, tuple[int, float]], solution: Mapping[Any, Collection[int]]) -> float:
    """The part of the images with landmark whose prediction is right; a missing prediction is wrong.

    Arguments as for `gap`. Raises ZeroDivisionError if no image has a landmark.
    """
    correct = sum(i in predictions and predictions[i][0] in landmarks for i, landmarks in solution.items())
    return correct / _images_with_landmark(solution)


def expected_calibration_error(confidence: Sequence[float], right: Sequence[bool], bins: int = 15) -> float:
    """How far confidences (N,) are from the part that is right, in the mean over `bins` of as many photos each.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, whose bins are as wide as each other.
    Raises ZeroDivisionError if there are none.
    """
    order = sorted(range(len(confidence)), key=lambda place: confidence[place])
    edges = [len(order) * number // bins for number in range(bins + 1)]
    groups = [order[begin:end] for begin, end in zip(edges, edges[1:], strict=False)]
    return sum(abs(sum(confidence[i] - right[i] for i in group)) for group in groups) / len(order)


def brier_score(confidence: Sequence[float], right: Sequence[bool]) -> float:
    """The mean squared difference of confidences (N,) and whether they were right. Raises ZeroDivisionError for none.

    Source: Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review, 1950.
    """
    return sum((one - hit) ** 2 for one, hit in zip(confidence, right, strict=True)) / len(confidence)


def _images_with_landmark(solution: Mapping[Any, Collection[int]]) -> int:
    return sum(len(landmarks) > 0 for landmarks in solution.values())


class Hits(NamedTuple):
    """Where a query's relevant images come in its list of neighbours."""

    ranks: list[int]  # from 1, ascending; a repeated neighbour is a hit only once, but uses up its ranks
    relevant: int  # images that the solution lists


def find_hits(predictions: Mapping[Any, Sequence[str]], solution: Mapping[Any, Collection[str]]) -> list[Hits]:
    """The hits of every query of the solution; a query without prediction has none.

    Args:
        predictions: index ids by query, best first.
        solution: the relevant index ids of every query.

    Raises:
        ValueError: a predicted query is not in `solution`.
    """
    unknown = set(predictions) - set(solution)
    if unknown:
        raise ValueError(f"query {min(unknown)!r} is not in the solution")
    hits = []
    for query, relevant in solution.items():
        awaited, found = set(relevant), predictions.get(query, ())
        ranks = [rank for rank, neighbour in enumerate(found, 1) if neighbour in awaited]
        first = {found[rank - 1]: rank for rank in reversed(ranks)}
        if len(first) < len(ranks):  # some come twice
            ranks = sorted(first.values())
        hits.append(Hits(ranks, len(relevant)))
    return hits


def mean_average_precision(hits: Sequence[Hits], depth: int = 100) -> float:
    """mAP@depth: the mean over queries of sum over ranks k <= depth of P(k) rel(k), divided by min(relevant, depth).

    Raises ZeroDivisionError if there is no query, or one without relevant images.
    """
    total = 0.0
    for ranks, relevant in hits:
        total += sum(map(truediv, count(1), ranks[: bisect_right(ranks, depth)])) / min(relevant, depth)
    return total / len(hits)


def precision(hits: Sequence[Hits], k: int) -> float:
    """P@k: the mean over queries of the hits among the first k neighbours, divided by k for a shorter list too."""
    return sum(bisect_right(ranks, k) for ranks, _ in hits) / (k * len(hits))


def mean_median_position(hits: Sequence[Hits], depth: int = 100) -> tuple[float, float]:
    """Mean and median over queries of the first hit's rank, which is depth + 1 where there is none up to depth."""
    positions = [min([*ranks[:1], depth + 1]) for ranks, _ in hits]
    return statistics.fmean(positions), float(statistics.median(positions))
