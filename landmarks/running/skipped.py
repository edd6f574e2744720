"""What was passed over, photos and members of shards: named once, in a file of the work folder."""

from collections.abc import Iterable
from pathlib import Path

from landmarks.running.command import warn
from landmarks.running.files import append_rows, read_rows

HEADER = ["split", "shard", "name", "reason"]
MAX_NAME = 200  # characters; a member of a tar may have 65,536, which as a cell are too many to be read back


def record_skipped(work: Path, split: str, shard: str, passed_over: Iterable[tuple[str, str]]) -> None:
    """Add what was passed over in a shard, photos and members, and why, to `work/skipped.csv`, and warn of it."""
    rows = [(split, shard, ascii(name[:MAX_NAME])[1:-1], " ".join(reason.split())) for name, reason in passed_over]
    record_rows(work, rows)


def record_rows(work: Path, rows: Iterable[tuple[str, ...]]) -> None:
    """As `record_skipped`, of rows of such a file."""
    path, rows = work / "skipped.csv", list(dict.fromkeys(rows))
    there = path.read_bytes() if path.exists() else b""
    begins = {f"\n{','.join(row[:2])},".encode() for row in rows}
    # A shard that is new has none: where millions are passed over, to parse all for each of them takes half an hour.
    known = set(read_rows(path)) if any(begin in there for begin in begins) else set()
    new = [row for row in rows if row not in known]
    if new:
        append_rows(path, HEADER, new)
        for row in new:
            warn(f"photos or members of shards were passed over, as {path} says", ",".join(row))


def skipped_photos(work: Path, split: str, shard: str = "") -> set[str]:
    """What `record_skipped` has noted of a shard, or of all of a split: photos and members."""
    return {row[2] for row in read_rows(work / "skipped.csv") if row[0] == split and shard in ("", row[1])}
