"""Predictions held against the truth, photo by photo: which are right, how sure they were, and what is confused."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from landmarks.scoring import solutions, submissions
from landmarks.scoring.measures import find_hits, mean_average_precision
from landmarks.scoring.solutions import Solution

FIRST = 10  # neighbours of a query that are shown
BINS = 15  # of as many photos each, as the expected calibration error has them
FEWEST = 8  # in one of them: of a rate of a half the standard error is 0.18 then


def recognised(submission_csv: Path, solution_csv: Path | None) -> pd.DataFrame:
    """Every scored test photo, by id: the predicted `landmark` and `score`, `half`, the landmarks `shown`, and `right`.

    `landmark` is -1 and `score` NaN where there is no prediction. Without a solution every photo with a prediction is
    there, its `half` is empty and `right` is False.

    Raises InputError if a file cannot be read.
    """
    solution = solutions.read_recognition_solution(solution_csv) if solution_csv else _all(submission_csv)
    predictions = submissions.read_recognition(submission_csv, solution)
    rows = []
    for half in ("public", "private"):
        predicted = getattr(predictions, half)
        for identity, shown in getattr(solution, half).items():
            landmark, score = predicted.get(identity, (-1, np.nan))
            rows.append((identity, landmark, score, half if solution_csv else "", shown, landmark in shown))
    table = pd.DataFrame(rows, columns=["id", "landmark", "score", "half", "shown", "right"]).set_index("id")
    return table if solution_csv else table[table["landmark"] >= 0]


def retrieved(submission_csv: Path, solution_csv: Path | None) -> pd.DataFrame:
    """Every scored query, by id: `half`, average `precision`, how many are `relevant`, the `first` ten, and `right`.

    Without a solution every query with neighbours is there, and `precision` is NaN.

    Raises InputError if a file cannot be read.
    """
    solution = solutions.read_retrieval_solution(solution_csv) if solution_csv else _all(submission_csv)
    predictions = submissions.read_retrieval(submission_csv, solution)
    rows: list[tuple] = []
    for half in ("public", "private"):
        predicted, truth = getattr(predictions, half), getattr(solution, half)
        for (identity, relevant), hits in zip(truth.items(), find_hits(predicted, truth), strict=True):
            first = predicted[identity][:FIRST] if identity in predicted else []
            precision = mean_average_precision([hits]) if solution_csv else np.nan
            right = [rank in hits.ranks for rank in range(1, len(first) + 1)]
            rows.append((identity, half if solution_csv else "", precision, len(relevant), first, right))
    names = ["id", "half", "precision", "relevant", "first", "right"]
    table = pd.DataFrame(rows, columns=names).set_index("id")
    return table if solution_csv else table[table["first"].map(len) > 0]


def _all(submission_csv: Path) -> Solution:
    """Every test photo of a submission, as if it showed nothing."""
    rows = solutions.rows_of(submission_csv)
    next(rows, None)
    return Solution({row[0]: [] for _, row in rows}, {}, set())


def ranked(photos: pd.DataFrame) -> pd.DataFrame:
    """The photos with a prediction in GAP's order, with the `precision` up to each (`recognised` gives the rest)."""
    predicted = photos[photos["score"].notna()].rename_axis("id")
    ranking = predicted.sort_values(["score", "id"], ascending=[False, True])
    return ranking.assign(precision=ranking["right"].cumsum() / np.arange(1, len(ranking) + 1))


def gap(photos: pd.DataFrame) -> float:
    """GAP of these photos, as `measures.gap`; NaN if none shows a landmark."""
    ranking, with_landmark = ranked(photos), int((photos["shown"].map(len) > 0).sum())
    return float(ranking["precision"][ranking["right"]].sum()) / with_landmark if with_landmark else float("nan")


class Threshold(NamedTuple):
    """A score from which on the landmark is believed, and below which a photo is said to show none."""

    score: float
    answers: int  # that are right then: the landmark from it on, "none" below it
    of: int


def best_threshold(photos: pd.DataFrame) -> Threshold | None:
    """The threshold with the most right answers, the lowest of equal ones; None if there is no prediction."""
    ranking = photos[photos["score"].notna()].sort_values("score", ascending=False)
    if ranking.empty:
        return None
    none = ranking["shown"].map(len) == 0
    unpredicted = int(((photos["shown"].map(len) == 0) & photos["score"].isna()).sum())
    answers = ranking["right"].cumsum() + none.sum() - none.cumsum() + unpredicted
    answers = answers.where(ranking["score"] != ranking["score"].shift(-1))  # equal ones go together
    best = int(np.flatnonzero(answers == answers.max())[-1])
    return Threshold(float(ranking["score"].iloc[best]), int(answers.iloc[best]), len(photos))


def reliability(photos: pd.DataFrame) -> pd.DataFrame:
    """Mean `score`, the part that is `right` and its standard `error` in bins of as many `photos` each.

    The least sure come first; these are the bins of `expected_calibration_error`, or fewer where photos are few.
    """
    ranking = photos[photos["score"].notna()].sort_values("score", kind="stable")
    count = min(BINS, max(len(ranking) // FEWEST, 1)) if len(ranking) else 0
    edges = np.arange(count + 1) * len(ranking) // max(count, 1)
    bins = [ranking.iloc[begin:end] for begin, end in zip(edges[:-1], edges[1:], strict=True)]
    rows = [(one["score"].mean(), one["right"].mean(), len(one)) for one in bins]
    table = pd.DataFrame(rows, columns=["score", "right", "photos"], dtype=float)
    return table.assign(error=np.sqrt(table["right"] * (1 - table["right"]) / table["photos"]))


class Confusion(NamedTuple):
    """Photos of a landmark that were taken for another."""

    shown: int
    said: int
    photos: int
    of: int  # test photos that show the landmark


def confusions(photos: pd.DataFrame, most: int = 10) -> list[Confusion]:
    """The pairs of landmarks that were confused most often, however unsure; a photo's first landmark counts."""
    with_landmark = photos[photos["shown"].map(len) > 0]
    first = with_landmark["shown"].str[0]
    of = Counter(first)
    wrong = with_landmark["score"].notna() & ~with_landmark["right"]
    pairs = Counter(zip(first[wrong], with_landmark["landmark"][wrong], strict=True))
    found = [Confusion(int(shown), int(said), count, of[shown]) for (shown, said), count in pairs.items()]
    return sorted(found, key=lambda one: (-one.photos, -one.photos / one.of, one.shown, one.said))[:most]


def named_without(photos: pd.DataFrame, threshold: float, most: int = 5) -> list[tuple[int, int]]:
    """The landmarks that photos of none are taken for most often, at the threshold, and how often."""
    none = photos[(photos["shown"].map(len) == 0) & (photos["score"] >= threshold)]
    return sorted(Counter(none["landmark"].tolist()).items(), key=lambda one: (-one[1], one[0]))[:most]
