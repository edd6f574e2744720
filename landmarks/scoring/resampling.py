"""How far scores would scatter with other test photos: the bootstrap, by half, and paired between two submissions."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from landmarks.scoring import solutions, submissions
from landmarks.scoring.measures import find_hits, mean_average_precision

HALVES = ("public", "private")
CHUNK = 2**20  # resamples x photos at once: 8 MiB for each array of them

# Weights, (resamples, photos) int64, say how often each photo was drawn; a measure is (resamples,) float64 from them.
Measure = Callable[[np.ndarray], np.ndarray]


class Estimate(NamedTuple):
    """A measure of a half, or the mean of both halves, or the difference of two submissions: all linear in resamples.

    NaN where there is nothing to score.
    """

    value: float  # of the photos as they are
    resamples: np.ndarray  # (resamples,) float64

    @property
    def standard_error(self) -> float:
        """The standard deviation over the resamples; those without a photo to score are left out."""
        scored = self.resamples[~np.isnan(self.resamples)]
        return float(scored.std(ddof=1)) if len(scored) > 1 else float("nan")


def mean(estimates: list[Estimate]) -> Estimate:
    """Of halves, or of models that were trained from different seeds, in the same resamples."""
    return Estimate(
        float(np.mean([one.value for one in estimates])), np.mean([one.resamples for one in estimates], axis=0)
    )


def difference(one: Estimate, other: Estimate) -> Estimate:
    """Paired: what both owe to the photos that were drawn falls out, if they are of the same solution and seed."""
    return Estimate(one.value - other.value, one.resamples - other.resamples)


def resample(
    task: str, submission_csv: Path, solution_csv: Path, resamples: int = 1000, seed: int = 0
) -> dict[str, dict[str, Estimate]]:
    """{"public": {measure: estimate}, "private": ..., "mean": of both}: gap and top1, or map@100.

    Each resample draws as many of a half's scored photos as it has, with replacement: photos of no landmark too, and
    of a retrieval solution its queries. Two submissions to the same solution have the same resamples. In GAP's ranking
    the copies of a photo follow each other. Source: Efron, "Bootstrap Methods: Another Look at the Jackknife", The
    Annals of Statistics, 1979.

    Args:
        task: "recognition" or "retrieval".

    Raises:
        InputError: a file cannot be read (see `submissions`).
    """
    estimates: dict[str, dict[str, Estimate]] = {}
    for number, (half, (photos, measures)) in enumerate(_measures(task, submission_csv, solution_csv).items()):
        found: dict[str, list[np.ndarray]] = {name: [] for name in measures}
        for weights in _draw(photos, resamples, np.random.default_rng([seed, number])):
            for name, measure in measures.items():
                found[name].append(measure(weights))
        values = {name: np.concatenate(parts) for name, parts in found.items()}
        estimates[half] = {name: Estimate(float(value[0]), value[1:]) for name, value in values.items()}
    names = estimates["public"]
    return {**estimates, "mean": {name: mean([estimates[half][name] for half in HALVES]) for name in names}}


def standard_errors(
    task: str, submission_csv: Path, solution_csv: Path, against: Path | None = None
) -> dict[str, dict[str, dict[str, float | None]]]:
    """For each half and their mean each measure's `value` and `standard_error`; null where there is nothing to score.

    With `against`, another submission, also the `difference` from it and `difference_standard_error`, which is paired.

    Raises InputError as `resample`.
    """
    own = resample(task, submission_csv, solution_csv)
    other = resample(task, against, solution_csv) if against else None
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for part, measures in own.items():
        found[part] = {}
        for name, estimate in measures.items():
            figures = {"value": estimate.value, "standard_error": estimate.standard_error}
            if other:
                less = difference(estimate, other[part][name])
                figures |= {"difference": less.value, "difference_standard_error": less.standard_error}
            found[part][name] = {key: None if np.isnan(figure) else figure for key, figure in figures.items()}
    return found


def _draw(photos: int, resamples: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Weights in chunks; the first row counts each photo once."""
    yield np.ones((1, photos), np.int64)
    step = max(1, CHUNK // max(photos, 1))
    for begin in range(0, resamples, step):
        rows = min(step, resamples - begin)
        drawn = generator.integers(photos, size=(rows, photos)) if photos else np.empty((rows, 0), np.int64)
        drawn += np.arange(rows)[:, None] * photos
        yield np.bincount(drawn.ravel(), minlength=rows * photos).reshape(rows, photos)


def _measures(task: str, submission_csv: Path, solution_csv: Path) -> dict[str, tuple[int, dict[str, Measure]]]:
    """How many photos of each half are scored, and its measures."""
    by_half: dict[str, tuple[int, dict[str, Measure]]] = {}
    if task == "recognition":
        solution = solutions.read_recognition_solution(solution_csv)
        predictions = submissions.read_recognition(submission_csv, solution)
        for half in HALVES:
            truth = getattr(solution, half)
            by_half[half] = len(truth), _recognition(getattr(predictions, half), truth)
    else:
        solution = solutions.read_retrieval_solution(solution_csv)
        predictions = submissions.read_retrieval(submission_csv, solution)
        for half in HALVES:
            hits = find_hits(getattr(predictions, half), getattr(solution, half))
            precisions = np.array([mean_average_precision([one]) for one in hits])
            by_half[half] = len(hits), {"map@100": _ratio(precisions, np.ones(len(hits)))}
    return by_half


def _recognition(predicted: dict[Any, tuple[int, float]], truth: dict[Any, list[int]]) -> dict[str, Measure]:
    """`gap` and `top1`, as in `measures`, of photos that are drawn several times."""
    ids = list(truth)
    row_of = {identity: row for row, identity in enumerate(ids)}
    ranking = sorted(predicted, key=lambda identity: (-predicted[identity][1], identity))
    order = np.array([row_of[identity] for identity in ranking], np.int64)
    right = np.array([predicted[identity][0] in truth[identity] for identity in ranking], bool)
    with_landmark = np.array([len(truth[identity]) > 0 for identity in ids], float)
    correct = np.zeros(len(ids))
    correct[order] = right

    def gap(weights: np.ndarray) -> np.ndarray:
        drawn = weights[:, order]
        ranks = np.cumsum(drawn, axis=1)[:, right]  # of the last copy
        copies = drawn[:, right]
        hits = np.cumsum(copies, axis=1)
        total = np.zeros(len(weights))
        for back in range(copies.max(initial=0)):  # the last copy, the one before it, ...
            there = copies > back
            total += np.divide(hits - back, ranks - back, out=np.zeros(there.shape), where=there).sum(axis=1)
        return _divide(total, weights @ with_landmark)

    return {"gap": gap, "top1": _ratio(correct, with_landmark)}


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> Measure:
    return lambda weights: _divide(weights @ numerator, weights @ denominator)


def _divide(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
