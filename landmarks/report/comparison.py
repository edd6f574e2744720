"""Several runs side by side: their scores with standard errors, what they differ by, and which settings do."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from landmarks.report.words import HALVES, number
from landmarks.report.work_folder import Run
from landmarks.running.command import InputError
from landmarks.running.files import md5
from landmarks.scoring import resampling
from landmarks.scoring.resampling import Estimate

RESAMPLED = (("recognition", "gap", "GAP"), ("recognition", "top1", "top-1"), ("retrieval", "map@100", "mAP@100"))
MEASURES = (  # task, measure, what it is called, and whether more is better
    ("recognition", "gap", "GAP", True), ("recognition", "gap_landmarks_only", "GAP of landmarks only", True),
    ("recognition", "top1", "top-1", True), ("retrieval", "map@100", "mAP@100", True),
    ("retrieval", "p@1", "P@1", True), ("retrieval", "p@10", "P@10", True),
    ("retrieval", "mean_position", "mean position of the first right one", False),
    ("calibration", "expected_calibration_error", "expected calibration error", False),
    ("calibration", "brier_score", "Brier score", False),
)  # fmt: skip


class Row(NamedTuple):
    """A measure of every run."""

    measure: str
    cells: list[str]
    best: list[int]  # the places of the best ones


class Table(NamedTuple):
    """Measures of some of the test photos."""

    title: str
    rows: list[Row]


def scores(runs: Sequence[Run]) -> list[Table]:
    """What every run scored: the mean of both halves with standard errors and differences, then each half."""
    tables = [Table("Mean of both halves", _resampled(runs))]
    for half in HALVES:
        rows = []
        for task, measure, name, more_is_better in MEASURES:
            values = [number(run.scores[task], half, measure) for run in runs]
            if any(value is not None for value in values):
                rows.append(Row(name, [_digits(value) for value in values], _best(values, more_is_better)))
        tables.append(Table(f"The {half} half", rows))
    return [table for table in tables if table.rows]


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs, by name: the value in each."""
    flat = [{name: value for section in run.settings.values() for name, value in section.items()} for run in runs]
    by_name = {name: [one.get(name) for one in flat] for name in flat[0]}
    return {name: values for name, values in by_name.items() if any(value != values[0] for value in values)}


def times(runs: Sequence[Run]) -> list[int]:
    """The seconds that all commands in each work folder took together, as far as they were kept."""
    return [int(run.history["seconds"].astype(float).sum()) if len(run.history) else 0 for run in runs]


def _resampled(runs: Sequence[Run]) -> list[Row]:
    rows = []
    for task, measure, name in RESAMPLED:
        found = [_estimate(run, task, measure) for run in runs]
        if not any(found):
            continue
        cells = [f"{one.value:.3f} ± {one.standard_error:.3f}" if one else "–" for one in found]
        rows.append(Row(name, cells, _best([one.value if one else None for one in found], True)))
        first = found[0]
        if first and len(runs) > 1 and _same_solution(runs, task):
            less = [resampling.difference(one, first) if one else None for one in found]
            cells = [f"{one.value:+.3f} ± {one.standard_error:.3f}" if one else "–" for one in less]
            rows.append(Row(f"{name}, less that of A", ["–", *cells[1:]], []))
    return rows


def _estimate(run: Run, task: str, measure: str) -> Estimate | None:
    solution, submission = run.solutions[task], run.work / f"{task}.csv"
    if solution is None or not submission.exists():
        return None
    try:
        found = resampling.resample(task, submission, solution)["mean"][measure]
    except InputError:  # which the page has among its remarks
        return None
    return None if np.isnan(found.value) else found


def _same_solution(runs: Sequence[Run], task: str) -> bool:
    """Whether the runs were judged by the same test photos, which differences are of."""
    return len({md5(path) for run in runs if (path := run.solutions[task])}) == 1


def _best(values: list[float | None], more_is_better: bool) -> list[int]:
    there = [value for value in values if value is not None]
    best = max(there, default=None) if more_is_better else min(there, default=None)
    return [place for place, value in enumerate(values) if value == best] if len(set(there)) > 1 else []


def _digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
