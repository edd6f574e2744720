"""Photos compared in the order of what that can gain, kept as it goes on, and within a time if there is a limit."""

import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from landmarks.running.command import check_stop
from landmarks.running.files import append_rows, read_rows
from landmarks.running.progress import Progress

FIRST = 256  # photos in the first round of a budget
LEAST = 32  # in the last one
CAUTION = 0.8  # the part of the time left that a round may take, by those before
KEPT_EVERY = 500  # photos

Candidates = Mapping[str, Sequence[str]]
Counts = Iterable[tuple[str, list[int]]]  # inliers with each candidate, by photo


class Row(NamedTuple):
    """What the comparisons of a photo have found."""

    made_of: int  # a digest of what they follow from
    inliers: int  # the most of any
    match: str  # the candidate with those, the first one; "" if there was none to compare with
    compared: int  # how many there were
    seconds: float  # this photo's share of the time that its round took


def by_gain(score: pd.Series) -> list[str]:
    """The ids of predictions, those first whose verification can gain the most GAP.

    A wrong prediction lowers the precision at the rank of every right one below it: what it costs falls with its rank.
    A right one costs nothing wherever it stands. So the highest scores come first.
    """
    return score.sort_values(ascending=False, kind="stable").index.tolist()


def compare_in_rounds(
    candidates: Candidates,
    made_of: str,
    path: Path,
    compare: Callable[[Candidates], tuple[Candidates, Counts]],
    budget: float = 0,
) -> dict[str, Row]:
    """Compare photos with their candidates in their order, but those whose rows an earlier run has left in a file.

    Without a budget they are one round. With one, the first round is small, and how long the two before took for so
    many photos tells how many the next may have; one that has begun is ended. What earlier runs took is counted.

    Args:
        made_of: all that a comparison follows from beside the candidates: rows of anything else are made again.
        path: the file.
        compare: takes photos with their candidates; gives the candidates that can be compared, and the counts.
        budget: seconds; 0: no limit.

    Returns:
        Rows by id; with a budget there may be none of the last photos.
    """
    digests = {photo: zlib.crc32("\n".join([made_of, *row]).encode()) for photo, row in candidates.items()}
    known = {photo: row for photo, row in _read(path).items() if digests.get(photo) == row.made_of}
    todo = [photo for photo in candidates if photo not in known]
    rounds: list[tuple[int, float]] = []
    while True:
        check_stop()
        count = _fitting(rounds, budget - sum(row.seconds for row in known.values())) if budget else len(todo)
        some, todo = todo[:count], todo[count:]
        began = last = time.monotonic()
        compared, counts = compare({photo: candidates[photo] for photo in some})
        counting = iter(Progress(counts, "compare", len(some), unit=" photos", disable=not some))
        while part := list(islice(counting, KEPT_EVERY)):
            before, last = last, time.monotonic()
            rows = {
                photo: Row(
                    digests[photo],
                    max(found, default=0),
                    compared[photo][int(np.argmax(found))] if found else "",
                    len(found),
                    round((last - before) / len(part), 6),
                )
                for photo, found in part
            }
            append_rows(path, ["id", *Row._fields], [(photo, *row) for photo, row in rows.items()])
            known |= rows
        rounds.append((len(some), time.monotonic() - began))
        if not some or not todo:
            return known


def _read(path: Path) -> dict[str, Row]:
    """The rows of an earlier run; what is damaged is left out."""
    rows = {}
    for photo, *cells in read_rows(path)[1:]:
        try:
            made_of, inliers, match, compared, seconds = cells
            rows[photo] = Row(int(made_of), int(inliers), match, int(compared), float(seconds))
        except ValueError:
            continue
    return rows


def _fitting(rounds: list[tuple[int, float]], left: float) -> int:
    """How many photos the next round may have by those before, (photos, seconds), in so many seconds; 0: no more."""
    if left <= 0:
        return 0
    if not rounds:
        return FIRST
    count, took = rounds[-1]
    each, fixed = took / count, 0.0
    if len(rounds) > 1 and count > rounds[-2][0] and took > rounds[-2][1]:
        each = (took - rounds[-2][1]) / (count - rounds[-2][0])
        fixed = max(took - each * count, 0)
    fitting = int(CAUTION * (left - fixed) / max(each, 1e-9))
    if len(rounds) == 1:
        fitting = min(fitting, 2 * FIRST)
    return fitting if fitting >= LEAST else 0
