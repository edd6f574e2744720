"""The published solutions, and the strict reading of CSVs that submissions share.

Reading follows the published reader (dataset_file_io.py of the Google Landmarks Dataset v2), but never passes over a
mistake that it would swallow: another header, too many columns, a NaN score, a solution row that comes twice, a scored
query without images.
"""

import csv
import gzip
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from landmarks.running.command import InputError

HEADERS = {"recognition": ["id", "landmarks"], "retrieval": ["id", "images"]}
MAX_CELL = 16 * 2**20  # characters; a query that lists all 761,757 index ids of the public set takes 13 million
MAX_LINE = 4 * MAX_CELL  # a longer line is read in pieces, whose cells are then too large or too many
MAX_LETTERS = 2**29  # of a file; the largest of the public challenge has 0.2 billion
LINE = 2**7  # letters that a line counts for beside its own: 4 million lines at most, where a challenge has 761,757
Cell = TypeVar("Cell")  # as it is parsed


class IdLists(Mapping[str, list[str]]):
    """Lists of ids by test id, kept as a file's text and split when asked for: a tenth of the memory of all lists."""

    def __init__(self, cells: dict[str, str]):
        self._cells = cells

    def __getitem__(self, identity: str) -> list[str]:
        return self._cells[identity].split(" ")

    def __iter__(self) -> Iterator[str]:
        return iter(self._cells)

    def __len__(self) -> int:
        return len(self._cells)


class Solution(NamedTuple):
    """The landmarks (int) or index ids (str) that each test image shows, by its `Usage`."""

    public: Mapping[str, list]
    private: Mapping[str, list]
    ignored: set[str]  # test images that are not scored

    def without(self, ids: Collection[str]) -> "Solution":
        """The same with these test images ignored."""
        unscored = set(ids)
        public, private = (
            {identity: shown for identity, shown in half.items() if identity not in unscored}
            for half in (self.public, self.private)
        )
        return Solution(public, private, self.ignored | unscored)


def read_recognition_solution(path: Path) -> Solution:
    """Read `id,landmarks,Usage`: the landmarks of each test image, none for an image without landmark.

    Raises InputError if the file cannot be read, or a row is malformed, repeated, or of an unknown `Usage`.
    """

    def parse(cell: str) -> list[int]:
        try:
            return [int(token) for token in cell.split(" ")] if cell else []
        except ValueError as error:
            raise ValueError(f"{cell[:100]!r} is not landmark ids, whole numbers between single spaces") from error

    return Solution(*_read_solution(path, "recognition", parse))


def read_retrieval_solution(path: Path) -> Solution:
    """Read `id,images,Usage`: the index ids that show the landmark of each query.

    Raises InputError as `read_recognition_solution`, and for a query without images that is not ignored.
    """

    def parse(cell: str) -> str:
        if not cell:
            raise ValueError("a query without images has no average precision; its Usage must be Ignored")
        return cell

    public, private, ignored = _read_solution(path, "retrieval", parse)
    return Solution(IdLists(public), IdLists(private), ignored)


def task_of(path: Path) -> str:
    """The task that a solution is of, by its header. Raises InputError if it is of none."""
    found = next(rows_of(path), (1, []))[1]
    for task, header in HEADERS.items():
        if found == [*header, "Usage"]:
            return task
    raise InputError(f"{path} begins with {','.join(found)[:80]!a}: it is no solution of recognition or retrieval")


def _read_solution(
    path: Path, task: str, parse: Callable[[str], Cell]
) -> tuple[dict[str, Cell], dict[str, Cell], set[str]]:
    parts: dict[str, dict[str, Any]] = {"Public": {}, "Private": {}, "Ignored": {}}

    def take(identity: str, cell: str, usage: str) -> None:
        if any(identity in part for part in parts.values()):
            raise ValueError(f"test image {identity[:40]!a} is repeated")
        if usage not in parts:
            raise ValueError(f"Usage is {usage[:40]!a}, not Public, Private or Ignored")
        parts[usage][identity] = None if usage == "Ignored" else parse(cell)

    read(path, [*HEADERS[task], "Usage"], take)
    return parts["Public"], parts["Private"], set(parts["Ignored"])


def read(path: Path, header: list[str], take: Callable[..., None]) -> None:
    """Call `take` with the cells of each row below the header; its ValueError is an InputError with file and line."""
    rows = rows_of(path)
    found = next(rows, (1, []))[1]
    if found != header:
        raise InputError(f"{path} begins with {','.join(found)[:80]!a}; its header must be {','.join(header)!a}")
    for line, row in rows:
        try:
            if len(row) != len(header):
                raise ValueError(f"{len(row)} columns, not the {len(header)} of {','.join(header)}")
            take(*row)
        except ValueError as error:
            raise InputError(f"{path} line {line}: {str(error)[:200]}; correct the file") from error


def rows_of(path: Path) -> Iterator[tuple[int, list[str]]]:
    """All rows that are not blank, with their line numbers, of a .csv or .csv.gz file.

    Raises InputError if it cannot be read as CSV, or is longer than any submission to such a challenge.
    """
    csv.field_size_limit(MAX_CELL)
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig", newline="")
            if path.suffix == ".gz"
            else open(path, encoding="utf-8-sig", newline="")
        ) as file:
            lines, number = _lines(file, path), 0
            try:
                for line in lines:
                    if '"' in line or "\0" in line or len(line) > MAX_CELL:
                        rows = csv.reader(chain([line], lines), strict=True)
                        try:
                            row = next(rows)
                        finally:
                            number += rows.line_num
                    else:  # which csv takes three times as long for
                        cells, number = line.rstrip("\r\n"), number + 1
                        row = cells.split(",") if cells else []
                    if row:
                        yield number, row
            except (csv.Error, UnicodeDecodeError) as error:
                raise InputError(f"{path} is no CSV file in UTF-8 after line {number}: {error}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} is no whole gzip file: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; give the path of a CSV file") from error


def _lines(file: IO[str], path: Path) -> Iterator[str]:
    letters = 0
    while line := file.readline(MAX_LINE):
        letters += len(line) + LINE
        if letters > MAX_LETTERS:  # some KB of gzip may stand for more than a disk holds, or for hours of blank lines
            raise InputError(
                f"{path} has more than {MAX_LETTERS:,} letters or {MAX_LETTERS // LINE:,} lines: it is no submission "
                "or solution"
            )
        yield line
