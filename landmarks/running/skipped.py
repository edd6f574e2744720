"""What was passed over, photos and members of shards: named once, in a file of the work folder."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from landmarks.running.command import warn

MAX_NAME = 200  # characters; a member of a tar may have 65,536, which as a cell are too many to be read back


def record_skipped(work: Path, split: str, shard: str, passed_over: Iterable[tuple[str, str]]) -> None:
    """Add what was passed over in a shard, photos and members, and why, to `work/skipped.csv`, and warn of it."""
    lines = []
    for name, reason in passed_over:
        row = io.StringIO()
        csv.writer(row, lineterminator="").writerow(
            [split, shard, ascii(name[:MAX_NAME])[1:-1], " ".join(reason.split())]
        )
        lines.append(row.getvalue())
    record_lines(work, lines)


def record_lines(work: Path, lines: Iterable[str]) -> None:
    """As `record_skipped`, of lines of such a file."""
    path = work / "skipped.csv"
    known = set(path.read_text(encoding="utf8").splitlines()) if path.exists() else set()
    new = [line for line in dict.fromkeys(lines) if line not in known]
    if new:
        with open(path, "a", encoding="utf8") as file:
            file.write("".join(line + "\n" for line in ([] if known else ["split,shard,name,reason"]) + new))
        for line in new:
            warn(f"photos or members of shards were passed over, as {path} says", line)


def skipped_photos(work: Path, split: str, shard: str) -> set[str]:
    """What `record_skipped` has noted of a shard: photos and members."""
    path = work / "skipped.csv"
    if not path.exists():
        return set()
    with open(path, newline="", encoding="utf8") as file:
        return {row[2] for row in csv.reader(file) if row[:2] == [split, shard]}
