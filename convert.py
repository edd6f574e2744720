"""Make a mirror out of something else: a folder per landmark, a list of URLs, a larger mirror; and check one."""

import csv
import hashlib
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

import download
import images
from command import InputError, check_stop
from files import md5, whole
from generators import in_threads
from images import UnreadablePhoto
from mirror import SOLUTIONS, SPLITS, FolderMirror, Mirror, open_mirror
from shards import MAX_PHOTO_BYTES, valid_id, write_tar

PHOTOS_PER_SHARD = 5000
FEWEST_SHARDS = {"train": 6, "index": 2, "test": 2}  # enough to hold some out and to share the work
PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}
METADATA = ["train", "train_clean", "train_label_to_category", "index", "index_image_to_landmark", "test"]
FAULTS_LISTED = 20  # of each kind


def build_mirror(
    photos: pd.DataFrame,
    load: Callable[[str], bytes],
    out: Path,
    categories: dict[int, str] | None = None,
    threads: int | None = None,
) -> None:
    """Write photos as a mirror, shard by shard; a second call with the same photos goes on after the last whole shard.

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
        for split in SPLITS
        for shard in written.stream(split, written.shard_names(split))
        for identity in shard.ids
    }
    if not present:
        raise InputError(f"not one photo could be read; {out / 'failed.csv'} says why of each")
    _write_tables(photos[photos["id"].isin(present)], out, categories or {})
    print(f"{out}: {len(present):,} photos written, {len(photos) - len(present):,} failed (listed in failed.csv)")


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
        results = in_threads(try_load, photos, ahead=256, threads=threads)
        for identity, source, data in tqdm(results, f"{split} {name}", len(photos), unit=" photos", leave=False):
            check_stop()
            if isinstance(data, bytes):
                yield identity, data
            else:
                failures.append((identity, source, str(data)))

    write_tar(out / split / f"{name}.tar", loaded())
    _record_failures(out, failures)
    with whole(listing) as part:
        part.write_text(f"{md5(out / split / f'{name}.tar')}  {name}.tar\n")


def import_folder(folder: Path, out: Path, non_landmarks: Path | None, seed: int) -> None:
    """A folder of photos per landmark, and a folder of photos of none, become a mirror in `out` with solutions."""
    for given in filter(None, (folder, non_landmarks)):
        if not given.is_dir():
            raise InputError(f"{given} is no folder")
    landmarks = sorted(path for path in folder.iterdir() if path.is_dir() and path != non_landmarks)
    found = [(path, number) for number, place in enumerate(landmarks, 1) for path in _photos_below(place)]
    others = [(path, pd.NA) for path in _photos_below(non_landmarks)] if non_landmarks else []
    if not found:
        raise InputError(f"{folder} holds no folder of photos ({', '.join(sorted(PHOTO_SUFFIXES))}): one per landmark")
    photos = pd.DataFrame(found + others, columns=["url", "landmark_id"]).astype({"landmark_id": "Int64"})
    places = [path.relative_to(folder if path.is_relative_to(folder) else non_landmarks.parent) for path in photos["url"]]
    photos["id"] = [hashlib.blake2b(place.as_posix().encode(), digest_size=8).hexdigest() for place in places]
    photos["url"] = photos["url"].astype(str)
    _claim(out, f"import {folder.resolve()} seed {seed}")
    names = {number: path.name for number, path in enumerate(landmarks, 1)}
    build_mirror(_divide(photos, seed), _read_as_jpeg, out, names)


def fetch(csv: Path, out: Path, split: str, size: int, threads: int, seed: int) -> None:
    """Download the photos of a CSV `id,url[,landmark_id]`, shrink them on arrival and make a mirror of them."""
    try:
        photos = pd.read_csv(csv, dtype=str, keep_default_na=False)
        photos = photos.reindex(columns=["id", "url", "landmark_id"])
        photos["landmark_id"] = pd.to_numeric(photos["landmark_id"], errors="coerce").astype("Int64")
    except (ValueError, OSError, TypeError) as error:
        raise InputError(f"{csv} is not a CSV with the columns id,url,landmark_id: {error}") from error
    if photos[["id", "url"]].isna().any(axis=None):
        raise InputError(f"{csv} is not a CSV with the columns id,url,landmark_id")
    _claim(out, f"fetch {csv.resolve()} split {split} size {size} seed {seed}", part=split)
    useless = ~photos["id"].map(valid_id) | photos["id"].duplicated()
    if split in ("train", "divide"):
        useless |= photos["landmark_id"].isna() & (split == "train")
    _record_failures(out, [(*row, "id unusable or repeated, or no landmark_id") for row in
                           photos.loc[useless, ["id", "url"]].itertuples(index=False)])  # fmt: skip
    photos = photos[~useless]
    photos = _divide(photos, seed) if split == "divide" else photos.assign(split=split)
    build_mirror(photos, partial(_fetch_photo, size=size), out, threads=threads)


def shrink(mirror: str, out: Path, size: int) -> None:
    """Copy a mirror shard by shard with photos of at most `size` pixels on the longer side; done shards are skipped."""
    _claim(out, f"shrink {mirror} size {size}")
    downloads = out / "download"
    source = open_mirror(mirror, downloads)
    source.require("train")
    for split in SPLITS:
        done = {path.stem.removeprefix("md5.") for path in (out / "md5sum" / split).glob("md5.*.txt")}
        names = [name for name in source.shard_names(split) if name not in done]
        for shard in tqdm(source.stream(split, names), split, len(names), unit=" shards"):
            load = _Shrinking(shard, size)
            write_shard(out, split, shard.name, [(identity, identity) for identity in shard.ids], load)
    for relative in [f"metadata/{name}.csv" for name in METADATA] + list(SOLUTIONS.values()):
        if path := source.path(relative):
            with whole(out / relative) as part:
                shutil.copyfile(path, part)
    shutil.rmtree(downloads, ignore_errors=True)
    print(f"{out}: photos of at most {size} px; those that could not be read are listed in failed.csv")


def check(mirror: str) -> int:
    """Read a whole mirror and print each fault; 1 if there is any, else 0."""
    source = open_mirror(mirror)
    source.require("train")
    faults: list[str] = []
    for split in SPLITS:
        names = source.shard_names(split)
        if names:
            faults += _check_split(source, split, names)
    for fault in faults:
        print(fault)
    print(f"{mirror}: {len(faults)} faults")
    return int(bool(faults))


def _check_split(source: Mirror, split: str, names: list[str]) -> list[str]:
    listed = set(source.ids(split))
    seen: Counter[str] = Counter()
    refused, unreadable, mismatches = [], [], []
    for shard in tqdm(source.stream(split, names), split, len(names), unit=" shards"):
        seen.update(shard.ids)
        refused += [f"{split}/{shard.name}: member {name!a} is passed over: {why}" for name, why in shard.refused]
        readable = in_threads(_Shrinking(shard, 64).fault, shard.ids, ahead=256)
        unreadable += [
            f"{split}/{shard.name}: {identity} cannot be read: {why}"
            for identity, why in zip(shard.ids, readable, strict=True)
            if why
        ]
        expected = source.published_md5(split, shard.name)
        if isinstance(source, FolderMirror) and expected not in (
            None,
            md5(source.folder / split / f"{shard.name}.tar"),
        ):
            mismatches.append(f"{split}/{shard.name}.tar: md5 differs from md5sum/{split}/md5.{shard.name}.txt")
    kinds = [
        mismatches,
        refused,
        unreadable,
        [f"{split}: {identity} is in {count} shards" for identity, count in seen.items() if count > 1],
        [
            f"{split}: {identity} is in a shard but not in metadata/{split}.csv"
            for identity in sorted(set(seen) - listed)
        ],
        [f"{split}: {identity} is in metadata/{split}.csv but in no shard" for identity in sorted(listed - set(seen))],
    ]
    faults = []
    for kind in kinds:
        faults += kind[:FAULTS_LISTED]
        if len(kind) > FAULTS_LISTED:
            faults.append(f"{split}: and {len(kind) - FAULTS_LISTED:,} more like the last")
    return faults


class _Shrinking:
    """A shard's photos, shrunk."""

    def __init__(self, shard, size: int):
        self.shard = shard
        self.size = size

    def __call__(self, identity: str) -> bytes:
        return images.shrink(self.shard.read(identity), self.size)

    def fault(self, identity: str) -> str | None:
        try:
            images.decode(self.shard.read(identity), self.size)
        except (OSError, UnreadablePhoto) as error:
            return str(error)
        return None


def _divide(photos: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Add `split`: of each landmark a fifth test and a fifth index, at least one each from 3 photos on, the rest train.

    Photos of no landmark are two thirds test, one third index.
    """
    generator = np.random.default_rng(seed)
    photos = photos.sort_values("id").reset_index(drop=True)
    split = pd.Series("train", index=photos.index)
    for landmark, rows in photos.groupby("landmark_id", dropna=False):
        order = generator.permutation(rows.index)
        if pd.isna(landmark):
            split[order] = "test"
            split[order[: len(order) // 3]] = "index"
        else:
            share = max(round(0.2 * len(order)), 1)
            split[order[:share]] = "test" if len(order) > 1 else "train"
            split[order[share : 2 * share]] = "index" if len(order) > 2 else "train"
    return photos.assign(split=split)


def _write_tables(photos: pd.DataFrame, out: Path, categories: dict[int, str]) -> None:
    splits = {split: photos[photos["split"] == split] for split in SPLITS}
    train, index, test = (splits[split] for split in SPLITS)
    if len(train):
        _write_csv(out / "metadata/train.csv", train[["id", "url", "landmark_id"]])
        names = pd.DataFrame(sorted(categories.items()), columns=["landmark_id", "category"])
        _write_csv(out / "metadata/train_label_to_category.csv", names)
    if len(index):
        _write_csv(out / "metadata/index.csv", index[["id"]])
        _write_csv(out / "metadata/index_image_to_landmark.csv", index.dropna()[["id", "landmark_id"]])
    if len(test):
        _write_csv(out / "metadata/test.csv", test[["id"]])
    if len(index) and len(test):
        _write_solutions(index, test, out)


def _write_solutions(index: pd.DataFrame, test: pd.DataFrame, out: Path) -> None:
    # Every third of the landmark photos and of the others, so that both parts have both, however small the test set.
    place = test.groupby(test["landmark_id"].isna()).cumcount()
    usage = pd.Series(np.where(place % 3 == 0, "Public", "Private"), index=test.index)
    recognition = pd.DataFrame({"id": test["id"], "landmarks": test["landmark_id"], "Usage": usage})
    _write_csv(out / SOLUTIONS["recognition"], recognition)
    of_landmark = index.groupby("landmark_id")["id"].agg(" ".join)
    relevant = test["landmark_id"].map(of_landmark)
    retrieval = pd.DataFrame(
        {"id": test["id"], "images": relevant.fillna("None"), "Usage": usage.mask(relevant.isna(), "Ignored")}
    )
    _write_csv(out / SOLUTIONS["retrieval"], retrieval)


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    with whole(path) as part:
        table.to_csv(part, index=False)


def _claim(out: Path, what: str, part: str = "") -> None:
    """Note in `out` what it is made from, so that a mirror is never glued together from two sources."""
    note = out / f"source{'-' * bool(part)}{part}.txt"
    if note.exists() and note.read_text() != what:
        raise InputError(f"{out} was begun by `{note.read_text()}`, now it is `{what}`; give another folder")
    if not note.exists() and any(out.glob("*/images_*.tar")) and not part:
        raise InputError(f"{out} holds shards already; give another folder")
    out.mkdir(parents=True, exist_ok=True)
    note.write_text(what)


def _record_failures(out: Path, failures: list[tuple[str, str, str]]) -> None:
    path = out / "failed.csv"
    known = path.read_text() if path.exists() else ""
    if failures:
        with open(path, "a", newline="") as file:
            writer = csv.writer(file)
            if not known:
                writer.writerow(["id", "url", "reason"])
            writer.writerows(row for row in failures if f"{row[0]},{row[1]}" not in known)


def _photos_below(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in PHOTO_SUFFIXES and p.is_file())


def _read_as_jpeg(path: str) -> bytes:
    if Path(path).stat().st_size > MAX_PHOTO_BYTES:
        raise OSError(f"larger than {MAX_PHOTO_BYTES >> 20} MiB")
    data = Path(path).read_bytes()
    images.decode(data, 64)
    return data if data.startswith(b"\xff\xd8") else images.shrink(data, images.MAX_PIXELS)


def _fetch_photo(url: str, size: int) -> bytes:
    return images.shrink(download.read(url, MAX_PHOTO_BYTES), size)
