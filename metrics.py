"""The scores of the two challenges, as the published metric code of the Google Landmarks Dataset v2 computes them.

    python metrics.py recognition|retrieval SUBMISSION.csv SOLUTION.csv

prints the scores of the public and the private test images as JSON: fractions, not percentages; null where a part has
nothing to score (no image with a landmark, no query). Rules: Weyand et al., "Google Landmarks Dataset v2", CVPR 2020,
and delf/python/datasets/google_landmarks_dataset in the TensorFlow models repository.

Predictions and solutions are dicts by test id. Test ids may be anything that sorts, landmarks any integers.
"""

import argparse
import json
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import command
import submission
from command import InputError

PRECISION_RANKS = (1, 5, 10, 50, 100)


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
    return sum(count / rank for count, rank in enumerate(hits, 1)) / _images_with_landmark(solution)


def top1_accuracy(predictions: Mapping[Any, tuple[int, float]], solution: Mapping[Any, Collection[int]]) -> float:
    """The part of the images with landmark whose prediction is right; a missing prediction is wrong.

    Arguments as for `gap`. Raises ZeroDivisionError if no image has a landmark.
    """
    correct = sum(i in predictions and predictions[i][0] in landmarks for i, landmarks in solution.items())
    return correct / _images_with_landmark(solution)


def _images_with_landmark(solution: Mapping[Any, Collection[int]]) -> int:
    return sum(len(landmarks) > 0 for landmarks in solution.values())


def mean_average_precision(
    predictions: Mapping[Any, Sequence[str]], solution: Mapping[Any, Collection[str]], depth: int = 100
) -> float:
    """mAP@depth: the mean over the solution's queries of sum over ranks k of P(k) rel(k), divided by min(n, depth).

    n is the number of a query's images in the solution. A repeat in a list is no hit, but uses up its rank.

    Args:
        predictions: index ids by query, best first; the ones after `depth` do not count. A missing query scores 0.
        solution: the relevant index ids of every query; at least one each.

    Raises:
        ValueError: a predicted query is not in `solution`.
        ZeroDivisionError: `solution` is empty, or a predicted query has no relevant images.
    """
    total = 0.0
    for query, ranks in _hits(predictions, solution, depth):
        precisions = (count / rank for count, rank in enumerate(ranks, 1))
        total += sum(precisions) / min(len(solution[query]), depth)
    return total / len(solution)


def precision(predictions: Mapping[Any, Sequence[str]], solution: Mapping[Any, Collection[str]], k: int) -> float:
    """P@k: the mean over the solution's queries of the hits among the first k, divided by k for a shorter list too.

    Arguments and errors as for `mean_average_precision`, except that a query may have no relevant images.
    """
    return sum(len(ranks) for _, ranks in _hits(predictions, solution, k)) / (k * len(solution))


def first_hit_positions(
    predictions: Mapping[Any, Sequence[str]], solution: Mapping[Any, Collection[str]], depth: int = 100
) -> list[int]:
    """The rank of the first hit of every query of the solution; depth + 1 if there is none. In no certain order.

    Arguments and ValueError as for `mean_average_precision`.
    """
    positions = [ranks[0] for _, ranks in _hits(predictions, solution, depth) if ranks]
    return positions + [depth + 1] * (len(solution) - len(positions))


def _hits(
    predictions: Mapping[Any, Sequence[str]], solution: Mapping[Any, Collection[str]], depth: int
) -> Iterator[tuple[Any, list[int]]]:
    """For each predicted query the ranks, from 1, at which its relevant images come for the first time."""
    for query, neighbours in predictions.items():
        if query not in solution:
            raise ValueError(f"query {query!r} is not in the solution")
        awaited = set(solution[query])
        ranks = []
        for rank, neighbour in enumerate(neighbours[:depth], 1):
            if neighbour in awaited:
                awaited.remove(neighbour)
                ranks.append(rank)
        yield query, ranks


def score_recognition(submission_csv: Path, solution_csv: Path) -> dict[str, dict[str, float | None]]:
    """The scores of a recognition submission: {"public": {"gap", "gap_landmarks_only", "top1"}, "private": ...}.

    Raises:
        InputError: a file cannot be read (see `submission`), or no scored image has a landmark.
    """
    solution = submission.read_recognition_solution(solution_csv)
    predictions = submission.read_recognition(submission_csv, solution)
    scores: dict[str, dict[str, float | None]] = {}
    for part in ("public", "private"):
        predicted, truth = getattr(predictions, part), getattr(solution, part)
        scores[part] = dict.fromkeys(("gap", "gap_landmarks_only", "top1"))
        if any(truth.values()):
            scores[part] = {
                "gap": gap(predicted, truth),
                "gap_landmarks_only": gap(predicted, truth, landmarks_only=True),
                "top1": top1_accuracy(predicted, truth),
            }
    return _require_scores(scores, solution_csv)


def score_retrieval(submission_csv: Path, solution_csv: Path) -> dict[str, dict[str, float | None]]:
    """The scores of a retrieval submission: {"public": {"map@100", "p@1", ..., "median_position"}, "private": ...}.

    Raises:
        InputError: a file cannot be read (see `submission`), or the solution has no query that is scored.
    """
    solution = submission.read_retrieval_solution(solution_csv)
    predictions = submission.read_retrieval(submission_csv, solution)
    names = ("map@100", *(f"p@{k}" for k in PRECISION_RANKS), "mean_position", "median_position")
    scores: dict[str, dict[str, float | None]] = {}
    for part in ("public", "private"):
        predicted, truth = getattr(predictions, part), getattr(solution, part)
        scores[part] = dict.fromkeys(names)
        if truth:
            positions = first_hit_positions(predicted, truth)
            values = [
                mean_average_precision(predicted, truth),
                *(precision(predicted, truth, k) for k in PRECISION_RANKS),
                statistics.fmean(positions),
                float(statistics.median(positions)),
            ]
            scores[part] = dict(zip(names, values, strict=True))
    return _require_scores(scores, solution_csv)


def _require_scores(scores: dict[str, dict[str, float | None]], solution_csv: Path):
    if all(value is None for part in scores.values() for value in part.values()):
        raise InputError(f"{solution_csv} has nothing to score: no Public or Private row with a landmark or an image")
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description="Score a submission against the published solution.")
    parser.add_argument("task", choices=["recognition", "retrieval"])
    parser.add_argument("submission", type=Path, help="a CSV file: id,landmarks or id,images")
    parser.add_argument("solution", type=Path, help="a CSV file: id,landmarks,Usage or id,images,Usage")
    arguments = parser.parse_args()
    score = {"recognition": score_recognition, "retrieval": score_retrieval}[arguments.task]
    print(json.dumps(score(arguments.submission, arguments.solution), indent=2))


if __name__ == "__main__":
    command.run(main)
