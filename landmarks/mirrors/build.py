"""Photos to a mirror: shards, tables and solutions, written so that a stopped run goes on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from landmarks.mirrors.base import NON_LANDMARKS, SOLUTIONS, SPLITS
from landmarks.mirrors.folder import FolderMirror
from landmarks.mirrors.images import UnreadablePhoto
from landmarks.mirrors.shards import write_tar
from landmarks.running.command import InputError, check_stop
from landmarks.running.files import append_rows, md5, read_rows, whole
from landmarks.running.progress import Progress
from landmarks.running.threads import in_threads

PHOTOS_PER_SHARD = 5000
FEWEST_SHARDS = {"train": 6, "index": 2, "test": 2}  # enough to hold some out and to share the work
FAILED, FAILURE = "failed.csv", ["id", "url", "reason"]
PHOTOS_AHEAD = 64  # in memory; a phone's have 5 MB


def build_mirror(
    photos: pd.DataFrame,
    load: Callable[[str], bytes],
    out: Path,
    categories: dict[int, str] | None = None,
    threads: int | None = None,
) -> pd.DataFrame:
    """Write photos as a mirror, shard by shard; a second call with the same photos goes on after the last whole shard.

    Returns the photos that are in it: all but those that could not be loaded.

    Where there are test and index photos, the solutions are written too: a third of the test photos is Public.

    Args:
        photos: `id` (str), `url` (str: where it came from, also what `load` is given), `landmark_id` (Int64, NA for a
            photo of no landmark) and `split` ("train", "index" or "test").
        load: the JPEG of a url. A photo for which it raises OSError or UnreadablePhoto is left out and listed in
            `out/failed.csv`.
        categories: landmark ids to names.

    Raises:
        InputError: not one photo could be loaded.
    """
    photos = photos.sort_values("id")  # ids are hashes, so every shard is a random draw
    for split, rows in photos.groupby("split"):
        count = max(min(FEWEST_SHARDS[split], len(rows)), -(-len(rows) // PHOTOS_PER_SHARD))
        for number in range(count):
            part = rows.iloc[number * len(rows) // count : (number + 1) * len(rows) // count]
            write_shard(
                out, split, f"images_{number:03d}", list(zip(part["id"], part["url"], strict=True)), load, threads
            )
    written = FolderMirror(out)
    present = {
        identity
        for split in photos["split"].unique()
        for shard in written.stream(split, written.shard_names(split))
        for identity in shard.ids
    }
    if not present:
        raise InputError(f"not one photo could be read; {out / FAILED} says why of each")
    photos = photos[photos["id"].isin(present)]
    _write_tables(photos, out, categories or {})
    return photos


def write_shard(
    out: Path,
    split: str,
    name: str,
    photos: list[tuple[str, str]],
    load: Callable[[str], bytes],
    threads: int | None = None,
) -> None:
    """Write one shard of (id, source) photos and its md5, unless it is there already; its md5 file marks it as done."""
    listing = out / "md5sum" / split / f"md5.{name}.txt"
    if listing.exists():
        return
    failures: list[tuple[str, str, str]] = []

    def try_load(photo: tuple[str, str]) -> tuple[str, str, bytes | Exception]:
        try:
            return *photo, load(photo[1])
        except (OSError, UnreadablePhoto) as error:
            return *photo, error

    def loaded():
        results = in_threads(try_load, photos, ahead=PHOTOS_AHEAD, threads=threads)
        for identity, source, data in Progress(results, f"{split} {name}", len(photos), unit=" photos", leave=False):
            check_stop()
            if isinstance(data, bytes):
                yield identity, data
            else:
                failures.append((identity, source, str(data)))

    write_tar(out / split / f"{name}.tar", loaded())
    record_failures(out, failures)
    with whole(listing) as part:
        part.write_text(f"{md5(out / split / f'{name}.tar')}  {name}.tar\n")


def _write_tables(photos: pd.DataFrame, out: Path, categories: dict[int, str]) -> None:
    splits = {split: photos[photos["split"] == split] for split in SPLITS}
    train, index, test = (splits[split] for split in SPLITS)
    if len(train):
        urls = train["url"].map(printable)
        write_csv(out / "metadata/train.csv", train[["id", "url", "landmark_id"]].assign(url=urls))
        rows = [(landmark, printable(name)) for landmark, name in sorted(categories.items())]
        names = pd.DataFrame(rows, columns=["landmark_id", "category"])
        write_csv(out / "metadata/train_label_to_category.csv", names)
    if len(index):
        write_csv(out / "metadata/index.csv", index[["id"]])
        write_csv(out / "metadata/index_image_to_landmark.csv", index.dropna()[["id", "landmark_id"]])
        if len(none := index[index["landmark_id"].isna()]):  # those of test are to be judged
            write_csv(out / NON_LANDMARKS, none[["id"]])
    if len(test):
        write_csv(out / "metadata/test.csv", test[["id"]])
    if len(index) and len(test):
        _write_solutions(index, test, out)


def _write_solutions(index: pd.DataFrame, test: pd.DataFrame, out: Path) -> None:
    # Every third of the landmark photos and of the others, so that both parts have both, however small the test set.
    place = test.groupby(test["landmark_id"].isna()).cumcount()
    usage = pd.Series(np.where(place % 3 == 0, "Public", "Private"), index=test.index)
    recognition = pd.DataFrame({"id": test["id"], "landmarks": test["landmark_id"], "Usage": usage})
    write_csv(out / SOLUTIONS["recognition"], recognition)
    of_landmark = index.groupby("landmark_id")["id"].agg(" ".join)
    relevant = test["landmark_id"].map(of_landmark)
    retrieval = pd.DataFrame(
        {"id": test["id"], "images": relevant.fillna("None"), "Usage": usage.mask(relevant.isna(), "Ignored")}
    )
    write_csv(out / SOLUTIONS["retrieval"], retrieval)


def write_csv(path: Path, table: pd.DataFrame) -> None:
    with whole(path) as part:
        table.to_csv(part, index=False)


def record_failures(out: Path, failures: list[tuple[str, str, str]]) -> None:
    """Add each (id, url, reason) to `out/failed.csv`, unless its id and url are in there."""
    if not failures:
        return
    path = out / FAILED
    known = {row[:2] for row in read_rows(path)}
    rows = [[printable(cell) for cell in row] for row in failures]
    append_rows(path, FAILURE, [row for row in rows if tuple(row[:2]) not in known])


def read_failures(out: Path) -> pd.DataFrame:
    """All that `record_failures` has noted: `id`, `url` and `reason`."""
    return pd.DataFrame(read_rows(out / FAILED)[1:], columns=FAILURE)


def printable(text: str) -> str:
    """One line of bounded length that any encoding and any reader of CSVs takes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:1000])
