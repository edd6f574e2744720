"""Submissions to scores: read with their solution, measured by half, written as JSON."""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from landmarks.running.command import InputError
from landmarks.running.files import whole
from landmarks.scoring import solutions, submissions
from landmarks.scoring.measures import (
    brier_score,
    expected_calibration_error,
    find_hits,
    gap,
    mean_average_precision,
    mean_median_position,
    precision,
    top1_accuracy,
)

PRECISION_RANKS = (1, 5, 10, 50, 100)
Scores = dict[str, dict[str, float | None]]  # by half and measure


def score_recognition(submission_csv: Path, solution_csv: Path, unscored: Collection[str] = ()) -> Scores:
    """The scores of a recognition submission: {"public": {"gap", "gap_landmarks_only", "top1"}, "private": ...}.

    Test photos in `unscored` do not count: those that have served their own scores as photos of no landmark.

    Raises:
        InputError: a file cannot be read (see `submissions`), or no scored image has a landmark.
    """
    solution = solutions.read_recognition_solution(solution_csv).without(unscored)
    predictions = submissions.read_recognition(submission_csv, solution)
    scores: Scores = {}
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


def score_calibration(submission_csv: Path, solution_csv: Path, unscored: Collection[str] = ()) -> Scores:
    """How near the scores of a recognition submission are to probabilities of being right, by half.

    {"public": {"expected_calibration_error", "brier_score", "mean_score", "right"}, "private": ...}, of the photos that
    have a prediction, with a landmark and without; `right` is the part of these predictions that is right.

    None where a half has no prediction. Raises InputError if a file cannot be read (see `submissions`).
    """
    solution = solutions.read_recognition_solution(solution_csv).without(unscored)
    predictions = submissions.read_recognition(submission_csv, solution)
    scores: Scores = {}
    for part in ("public", "private"):
        predicted, truth = getattr(predictions, part), getattr(solution, part)
        scores[part] = dict.fromkeys(("expected_calibration_error", "brier_score", "mean_score", "right"))
        if predicted:
            score = [float(one) for _, one in predicted.values()]
            right = [landmark in truth[identity] for identity, (landmark, _) in predicted.items()]
            scores[part] = {
                "expected_calibration_error": expected_calibration_error(score, right),
                "brier_score": brier_score(score, right),
                "mean_score": sum(score) / len(score),
                "right": sum(right) / len(right),
            }
    return scores


def score_retrieval(submission_csv: Path, solution_csv: Path) -> Scores:
    """The scores of a retrieval submission: {"public": {"map@100", "p@1", ..., "median_position"}, "private": ...}.

    Raises:
        InputError: a file cannot be read (see `submissions`), or the solution has no query that is scored.
    """
    solution = solutions.read_retrieval_solution(solution_csv)
    predictions = submissions.read_retrieval(submission_csv, solution)
    names = ("map@100", *(f"p@{k}" for k in PRECISION_RANKS), "mean_position", "median_position")
    scores: Scores = {}
    for part in ("public", "private"):
        hits = find_hits(getattr(predictions, part), getattr(solution, part))
        scores[part] = dict.fromkeys(names)
        if hits:
            precisions = [precision(hits, k) for k in PRECISION_RANKS]
            values = [mean_average_precision(hits), *precisions, *mean_median_position(hits)]
            scores[part] = dict(zip(names, values, strict=True))
    return _require_scores(scores, solution_csv)


def write_scores(task: str, submission_csv: Path, solution_csv: Path, path: Path, **options) -> Scores:
    """Score a submission by one of `SCORERS`, and write the scores to `path` as JSON.

    The options are those of `score_recognition` or `score_retrieval`.
    """
    scores = SCORERS[task](submission_csv, solution_csv, **options)
    with whole(path) as part:
        part.write_text(json.dumps(scores, indent=2) + "\n")
    return scores


def show(task: str, scores: Scores, beside: Mapping[str, Scores]) -> None:
    """Print scores as a table, with those of others by their names beside them."""
    import pandas as pd  # a third of a second, which metrics.py need not wait for

    columns = scores | {f"{name} {half}": found for name, theirs in beside.items() for half, found in theirs.items()}
    table = pd.DataFrame(columns, dtype=float).rename_axis(task, axis="columns")
    print(table.to_string(float_format="{:.3f}".format, na_rep="-"))


def _require_scores(scores: Scores, solution_csv: Path):
    if all(value is None for part in scores.values() for value in part.values()):
        raise InputError(f"{solution_csv} has nothing to score: no Public or Private row with a landmark or an image")
    return scores


SCORERS: dict[str, Callable[..., Scores]] = {
    "recognition": score_recognition,
    "calibration": score_calibration,
    "retrieval": score_retrieval,
}
