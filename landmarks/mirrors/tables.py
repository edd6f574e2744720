"""The CSVs of a mirror, read strictly."""

import csv
from array import array
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landmarks.mirrors.shards import PHOTO_ID
from landmarks.running.command import InputError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

MAX_LINE = 2**20  # characters; a longer one is read in pieces, lest it fills the memory


def read_table(path: Path, columns: list[str]) -> "pd.DataFrame":
    """These columns of a CSV, landmark ids as int64 and all else as str; InputError names the file, line and fault.

    Not by pandas, which takes the first cells for an index when the first row has one too many, and does not mind
    how long a row is when it is to read some columns only.
    """
    import pandas as pd  # half a second, which --help need not wait for

    from landmarks.mirrors.plain_table import NotPlain, read_plain

    try:
        if not {"id", "landmark_id"}.issuperset(columns):
            raise NotPlain
        table, hashes = read_plain(path, columns)
    except (NotPlain, OSError):
        table, hashes = _read_any(path, columns)
    # As objects: pandas' own strings take a second to make, and another one each time that they become a list.
    frame = pd.DataFrame(
        {name: pd.Series(table.pop(name), dtype="int64" if name == "landmark_id" else object) for name in columns},
        copy=False,
    )
    hashes.sort()  # pandas' is_unique takes 10 times as long
    if (hashes[1:] == hashes[:-1]).any() and not frame["id"].is_unique:
        twice = frame.loc[frame["id"].duplicated(), "id"].iloc[0]
        raise InputError(f"{path} lists the photo {twice!r} twice; every id must be there once")
    return frame


def _read_any(path: Path, columns: list[str]) -> tuple[dict[str, Any], "np.ndarray"]:
    """The columns of any CSV, cell by cell, and numbers (rows,) that are alike for ids that are."""
    import numpy as np

    table: dict[str, Any] = {name: array("q") if name == "landmark_id" else [] for name in columns}
    parsers: dict[str, Callable[[str], Any]] = {"id": _parse_id, "landmark_id": _parse_landmark}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(iter(partial(file.readline, MAX_LINE), ""))
            header = next(rows, [])
            if missing := [name for name in columns if name not in header]:
                raise ValueError(f"its first line does not name {missing[0]}")
            cells = [(header.index(name), parsers.get(name, str), column.append) for name, column in table.items()]
            try:
                for row in filter(None, rows):  # an empty line is an empty list
                    if len(row) != len(header):
                        raise ValueError(f"{len(row)} cells, the first line has {len(header)}")
                    for place, parse, append in cells:
                        append(parse(row[place]))
            except (ValueError, OverflowError, csv.Error) as error:
                raise ValueError(f"line {rows.line_num}: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; give the path of a CSV file") from error
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV with the columns {','.join(columns)}: {error}") from error
    return table, np.fromiter(map(hash, table.get("id", [])), np.int64)


def _parse_id(cell: str) -> str:
    if not PHOTO_ID.fullmatch(cell):
        raise ValueError(f"{cell[:100]!a} cannot be a photo's id")
    return cell


def _parse_landmark(cell: str) -> int:
    if not (cell.isascii() and cell.isdigit()):
        raise ValueError(f"{cell[:100]!a} is no landmark id, a whole number")
    return int(cell)
