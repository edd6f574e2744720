"""Submissions: written, read with their solution, and checked before they are sent."""

import csv
import math
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from landmarks.running.command import InputError
from landmarks.running.files import whole
from landmarks.scoring.solutions import HEADERS, Cell, IdLists, Solution, read, rows_of

MAX_NEIGHBOURS = 100
MAX_SHOWN = 20  # faults of one kind
RECOGNITION_CELL = re.compile(r"[0-9]+ ([-+.0-9a-zA-Z]+) ?")  # int() and float() would take 1_000 too


class Predictions(NamedTuple):
    """What a submission says of the scored test images, by their `Usage`; empty predictions are left out."""

    public: Mapping[str, Any]
    private: Mapping[str, Any]


def write_recognition(
    path: Path, ids: Iterable[str], landmarks: Mapping[str, int], scores: Mapping[str, float]
) -> None:
    """Write one row for each of `ids`, every test id: its landmark and score, or an empty cell if it has none.

    `landmarks` and `scores` hold the ids that have a prediction. A score is written so that reading gives every bit
    back, of float32 too. Raises InputError if a score is not finite: the model has diverged.
    """

    def rows() -> Iterator[tuple[str, str]]:
        for identity in ids:
            cell = ""
            if identity in landmarks:
                score = float(scores[identity])
                if not math.isfinite(score):
                    raise InputError(
                        f"the score of test image {identity} is {score}: the model is spoilt, train it again"
                    )
                cell = f"{int(landmarks[identity])} {score!r}"
            yield identity, cell

    _write(path, HEADERS["recognition"], rows())


def write_retrieval(path: Path, ids: Iterable[str], neighbours: Iterable[Sequence[str]]) -> None:
    """Write one row for each of `ids`, every test id, with its index ids, best first; one row is held at a time.

    Raises ValueError unless `neighbours` has one list of at most 100 index ids for each test id.
    """

    def rows() -> Iterator[tuple[str, str]]:
        for identity, found in zip(ids, neighbours, strict=True):
            if len(found) > MAX_NEIGHBOURS:
                raise ValueError(f"test image {identity} has {len(found)} neighbours, more than {MAX_NEIGHBOURS}")
            yield identity, " ".join(found)

    _write(path, HEADERS["retrieval"], rows())


def copy(path: Path, to: str) -> None:
    """Put a submission under the name that a competition wants too; nowhere where `to` is empty."""
    if to:
        with whole(Path(to)) as part:
            shutil.copyfile(path, part)
        print(f"{to}: the same, to submit")


def _write(path: Path, header: list[str], rows: Iterable[tuple[str, str]]) -> None:
    with whole(path) as part, open(part, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for row in rows:
            line = ",".join(row)
            if line.count(",") > 1 or any(mark in line for mark in '"\n'):
                writer.writerow(row)
            else:  # which csv takes ten times as long for
                file.write(line + "\n")


def read_recognition(path: Path, solution: Solution) -> Predictions:
    """Read `id,landmarks`: (landmark, score) by test id. One trailing space is forgiven; ignored images are not parsed.

    Raises InputError if the file cannot be read, a prediction is not `landmark_id score`, its score is NaN and so has
    no rank, or a predicted test image is repeated or not in the solution.
    """

    def parse(cell: str) -> tuple[int, float]:
        tokens = cell.removesuffix(" ").split(" ")
        if len(tokens) != 2:
            raise ValueError(f"{cell[:40]!a} has {len(tokens)} elements, not the two of `landmark_id score`")
        try:
            landmark, score = int(tokens[0]), float(tokens[1])
        except ValueError as error:
            raise ValueError(f"{cell[:40]!a} is not `landmark_id score`, a whole number and a number") from error
        if math.isnan(score):
            raise ValueError(f"{cell[:40]!a} has no score to rank by")
        return landmark, score

    return Predictions(*_read_predictions(path, "recognition", solution, parse))


def read_retrieval(path: Path, solution: Solution) -> Predictions:
    """Read `id,images`: the index ids by test id, best first; more than 100 are kept. Else as `read_recognition`."""
    public, private = _read_predictions(path, "retrieval", solution, lambda cell: cell.removesuffix(" "))
    return Predictions(IdLists(public), IdLists(private))


def _read_predictions(
    path: Path, task: str, solution: Solution, parse: Callable[[str], Cell]
) -> tuple[dict[str, Cell], dict[str, Cell]]:
    public: dict[str, Cell] = {}
    private: dict[str, Cell] = {}
    public_ids, private_ids = set(solution.public), set(solution.private)

    def take(identity: str, cell: str) -> None:
        if identity in public or identity in private:
            raise ValueError(f"test image {identity[:40]!a} is repeated")
        if not cell or identity in solution.ignored:
            return
        if identity in public_ids:
            public[identity] = parse(cell)
        elif identity in private_ids:
            private[identity] = parse(cell)
        else:
            raise ValueError(f"test image {identity[:40]!a} is not in the solution")

    read(path, HEADERS[task], take)
    return public, private


def check(task: str, path: Path, test_ids: Collection[str], index_ids: Collection[str] = ()) -> list[str]:
    """What is wrong with a submission, a line for each fault: the first 20 of each kind, and how many there are.

    `task` is "recognition" or "retrieval", `test_ids` the ids that must have one row each, `index_ids` those that a
    retrieval submission may name. Raises InputError if the file cannot be read as CSV.
    """
    shown: defaultdict[str, list[str]] = defaultdict(list)
    counts: Counter[str] = Counter()
    for kind, fault in _faults(task, path, set(test_ids), set(index_ids)):
        counts[kind] += 1
        if counts[kind] <= MAX_SHOWN:
            shown[kind].append(f"{kind}: {fault}")
    for kind, count in counts.items():
        if count > MAX_SHOWN:
            shown[kind].append(f"{kind}: {count} in all, the first {MAX_SHOWN} are listed")
    return [line for lines in shown.values() for line in lines]


def _faults(task: str, path: Path, test_ids: set[str], index_ids: set[str]) -> Iterator[tuple[str, str]]:
    rows = rows_of(path)
    header = next(rows, (1, []))[1]
    if header != HEADERS[task]:
        yield "wrong header", f"{','.join(header)[:80]!a}, not {','.join(HEADERS[task])!a}"
        return  # it is a file of another kind: each of its cells would be a fault
    count, seen = 0, set()
    for line, row in rows:
        count += 1
        identity = row[0]
        if identity in seen:
            yield "repeated id", f"line {line}: {identity[:40]!a}"
        elif identity not in test_ids:
            yield "unknown id", f"line {line}: {identity[:40]!a} is no test image of the mirror"
        seen.add(identity)
        if len(row) != 2:
            yield "malformed row", f"line {line}: {len(row)} columns, not 2"
        elif row[1]:
            cell_faults = _recognition_faults(row[1]) if task == "recognition" else _retrieval_faults(row[1], index_ids)
            yield from ((kind, f"line {line}: {fault}") for kind, fault in cell_faults)
    if count != len(test_ids):
        yield "wrong number of rows", f"{count}, but the mirror has {len(test_ids)} test images"
    yield from (("missing id", repr(identity)) for identity in sorted(test_ids - seen))


def _recognition_faults(cell: str) -> Iterator[tuple[str, str]]:
    match = RECOGNITION_CELL.fullmatch(cell)
    try:
        if not math.isfinite(float(match[1] if match else "")):
            yield "score not finite", f"{cell[:40]!a}"
    except ValueError:
        yield "malformed cell", f"{cell[:40]!a} is not `landmark_id score`"


def _retrieval_faults(cell: str, index_ids: set[str]) -> Iterator[tuple[str, str]]:
    found = cell.removesuffix(" ").split(" ")
    different = set(found)
    if len(different) == len(found) <= MAX_NEIGHBOURS and different <= index_ids and "" not in different:
        return
    times = Counter(found)
    if "" in times:
        yield "malformed cell", "the ids are not separated by single spaces"
    if len(found) > MAX_NEIGHBOURS:
        yield "too many ids", f"{len(found)}, at most {MAX_NEIGHBOURS} count"
    for identity in filter(None, times):
        if times[identity] > 1:
            yield "id repeated in a list", f"{identity[:40]!a}"
        if identity not in index_ids:
            yield "not in the index", f"{identity[:40]!a}"
