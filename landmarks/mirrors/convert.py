"""Make a mirror out of something else: a folder per landmark, a list, a data set of others, a larger mirror."""

import hashlib
import shutil
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from landmarks.mirrors import download, images, labelled
from landmarks.mirrors.addresses import require_no_proxy
from landmarks.mirrors.base import SOLUTIONS, SPLITS
from landmarks.mirrors.build import (
    build_mirror,
    printable,
    read_failures,
    record_failures,
    write_csv,
    write_shard,
)
from landmarks.mirrors.labelled import NO_LABEL
from landmarks.mirrors.open import open_mirror
from landmarks.mirrors.shards import MAX_PHOTO_BYTES, Shard, valid_id
from landmarks.mirrors.summary import summary
from landmarks.mirrors.survey import NUMBER, Survey, read_file, require_enough, survey, survey_listed
from landmarks.running.command import InputError
from landmarks.running.files import md5, require_space, whole
from landmarks.running.locks import held
from landmarks.running.progress import Progress

METADATA = [
    "train", "train_clean", "train_label_to_category", "index", "index_image_to_landmark", "non_landmarks", "test",
]  # fmt: skip
MAX_UNANSWERED = 50  # downloads in a row, after which it is the network and not the photos


def import_folder(
    folder: Path, out: Path, non_landmarks: Path | None, seed: int, nested: bool = False, label: str = ""
) -> None:
    """Photos with their landmarks, and a folder of photos of none, become a mirror in `out` with solutions.

    They are a folder per landmark; with `nested` folders at any depth are landmarks, each that holds photos itself. Or
    they are listed as `labelled` has it, by `label`.
    """
    folder, none = folder.resolve(), non_landmarks and non_landmarks.resolve()
    lists = labelled.is_labelled(folder)
    for given in filter(None, (None if folder.is_file() else folder, none)):
        if not given.is_dir():
            raise InputError(f"{given} is no folder")
        if out.resolve().is_relative_to(given):
            raise InputError(f"{out} lies in {given}, where photos are looked for; give another folder for the mirror")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder for the mirror")
    if none and folder.is_relative_to(none):
        raise InputError(f"--non-landmarks {none} holds {folder}; give a folder beside or in it")
    if nested and lists:
        raise InputError(f"--nested is for folders of photos, and {folder} lists them")
    if label and not lists:
        raise InputError(f"--label is for photos that are listed, and {folder} has a folder per landmark")
    if not lists:
        found = survey(folder, none, nested)
        with held(out):
            _write(found, read_file, folder, out, seed)
        return
    unpacked = out / "unpacked"
    with held(out):
        try:
            shutil.rmtree(unpacked, ignore_errors=True)  # of a run that was killed
            found, read = survey_listed(folder, labelled.listed(folder, unpacked, label), none)
            _write(found, read, folder, out, seed)
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)


def _write(found: Survey, read: Callable[[str], bytes], source: Path, out: Path, seed: int) -> None:
    photos = _divide(found.photos, seed)
    digest = hashlib.md5(photos[["id", "landmark_id", "split"]].to_csv().encode(), usedforsecurity=False).hexdigest()
    if read is read_file:  # of photos within other files nobody knows before they are read
        there = sum(path.stat().st_size for path in out.glob("*/images_*.tar"))
        size = sum(Path(url).stat().st_size for url in photos["url"])
        require_space(out, size - there, f"the photos of {source} take")
    _claim(out, f"import {source} seed {seed}, {len(photos)} photos, digest {digest}", SPLITS)
    record_failures(out, found.passed_over)
    near = photos[photos["group"].duplicated(keep=False)].sort_values(["group", "url"])
    if len(near):
        near = near.assign(group=near.groupby("group").ngroup(), url=near["url"].map(printable))
        write_csv(out / "near_duplicates.csv", near[["group", "id", "url", "landmark_id", "split"]])
    written = build_mirror(photos, lambda url: images.as_jpeg(read(url)), out, found.categories)
    print(summary(out.name, written, read_failures(out)["reason"]))


def fetch(csv: Path, out: Path, split: str, size: int, threads: int, seed: int, allow_private: bool = False) -> None:
    """Download the photos of a CSV `id,url[,landmark_id]`, shrink them on arrival and make a mirror of them.

    A URL that leads to a private address, by itself or by a redirect, is a photo that failed unless `allow_private`.

    Raises:
        InputError: it is no such CSV, `out` holds something else, there is no network, or a proxy hides the addresses.
    """
    if not allow_private:
        require_no_proxy()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a cell too many would shift or hide a landmark
            photos = pd.read_csv(csv, dtype=str, keep_default_na=False, index_col=False)
        photos = photos.reindex(columns=["id", "url", "landmark_id"])
    except OSError as error:
        raise InputError(f"{csv} cannot be read: {error.strerror or error}; give the path of a CSV file") from error
    except (ValueError, TypeError, pd.errors.ParserWarning) as error:
        raise InputError(f"{csv} is not a CSV with the columns id,url,landmark_id: {error}") from error
    if photos[["id", "url"]].isna().any(axis=None):
        raise InputError(f"{csv} is not a CSV with the columns id,url,landmark_id")
    # Cell by cell: as a column of floats two large ids may become one. 7.0 is pandas' own way where a cell is empty.
    stated = photos["landmark_id"].astype(object).fillna("").str.strip().str.replace(r"\.0+$", "", regex=True)
    is_none, is_number = stated.isin(NO_LABEL), stated.str.fullmatch(NUMBER).astype(bool)
    numbers = [int(one) if is_one else pd.NA for one, is_one in zip(stated, is_number, strict=True)]
    photos["landmark_id"] = pd.array(numbers, "Int64")
    if photos.empty:
        raise InputError(f"{csv} lists no photo: give a line with id and url for each, and landmark_id if it is known")
    if split == "divide":
        require_enough(photos["landmark_id"], str(csv))
    with held(out):
        _claim(
            out,
            f"fetch {csv.resolve()} (md5 {md5(csv)}) split {split} shorter side {size} seed {seed}"
            + " private addresses allowed" * allow_private,
            SPLITS if split == "divide" else [split],
        )
        listed = photos["id"].map(printable)
        useless = ~photos["id"].map(valid_id) | photos["id"].duplicated() | ~(is_none | is_number)
        if split == "train":
            useless |= is_none
        record_failures(out, [(*row, "id unusable or repeated, or no landmark_id, a whole number") for row in
                               photos.loc[useless, ["id", "url"]].itertuples(index=False)])  # fmt: skip
        photos = photos[~useless]
        photos = _divide(photos, seed) if split == "divide" else photos.assign(split=split)
        written = build_mirror(photos, _Fetching(size, allow_private), out, threads=threads)
        failures = read_failures(out)  # of an index that was fetched into the same mirror, too
        print(summary(out.name, written, failures.loc[failures["id"].isin(listed), "reason"]))


class _Fetching:
    """A URL to its photo, shrunk. Raises InputError when the network seems to be gone, lest every photo fails."""

    def __init__(self, size: int, allow_private: bool):
        self.size = size
        self.allow_private = allow_private
        self.unanswered = 0

    def __call__(self, url: str) -> bytes:
        try:
            data = download.read(url, MAX_PHOTO_BYTES, self.allow_private)
        except ConnectionError as error:
            self.unanswered += 1
            if self.unanswered >= MAX_UNANSWERED:
                raise InputError(
                    f"{self.unanswered} downloads in a row failed, the last of {url}: {error}, then run the same "
                    "command again"
                ) from error
            raise
        except OSError:  # an answer too
            self.unanswered = 0
            raise
        self.unanswered = 0
        return images.shrink(data, self.size)


def shrink(mirror: str, out: Path, size: int) -> None:
    """Copy a mirror shard by shard with photos of at most `size` pixels on the shorter side; done ones are skipped."""
    downloads = out / "download"
    source = open_mirror(mirror, downloads)
    source.require("train")
    with held(out):
        listed = [split for split in SPLITS if source.path(f"metadata/{split}.csv")]
        found = source.digest(*listed)  # so that a malformed table is told before hours of work
        _claim(out, f"shrink a mirror with digest {found}, shorter side {size}", SPLITS)
        for split in SPLITS:
            done = {path.stem.removeprefix("md5.") for path in (out / "md5sum" / split).glob("md5.*.txt")}
            names = [name for name in source.shard_names(split) if name not in done]
            for shard in Progress(source.stream(split, names), split, len(names), unit=" shards"):
                load = partial(_shrink_photo, shard, size)
                write_shard(out, split, shard.name, [(identity, identity) for identity in shard.ids], load)
                record_failures(out, [(member, f"{split}/{shard.name}", reason) for member, reason in shard.refused])
        for relative in [f"metadata/{name}.csv" for name in METADATA] + list(SOLUTIONS.values()):
            if path := source.path(relative):
                with whole(out / relative) as part:
                    shutil.copyfile(path, part)
        for split in ("index", "test"):  # an extracted tree may have no such CSV
            if source.path(f"metadata/{split}.csv") is None:
                with suppress(InputError):
                    write_csv(out / f"metadata/{split}.csv", pd.DataFrame({"id": source.ids(split)}))
        shutil.rmtree(downloads, ignore_errors=True)
        print(
            f"{out}: photos of at most {size} px on the shorter side; those that could not be read are listed in "
            "failed.csv"
        )


def _shrink_photo(shard: Shard, size: int, identity: str) -> bytes:
    return images.shrink(shard.read(identity), size)


def _divide(photos: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Add `split`: of each landmark a fifth test and a fifth index, at least one each from 3 photos on, the rest train.

    Photos of no landmark are two thirds test, one third index. Photos of a `group`, if there are any, count as one and
    stay together, lest the answer to a test photo is learnt; large groups go to train, those of no landmark to test.
    """
    generator = np.random.default_rng(seed)
    photos = photos.sort_values("id").reset_index(drop=True)
    group = photos.get("group", photos["id"])
    splits: dict = {}
    for landmark, rows in group.groupby(photos["landmark_id"], dropna=False):
        sizes = rows.groupby(rows, sort=False).size()
        order = sizes.iloc[generator.permutation(len(sizes))].sort_values(kind="stable").index
        if pd.isna(landmark):
            parts = {"index": len(order) // 3, "test": len(order)}
        else:
            share = max(round(0.2 * len(order)), 1)
            parts = {"test": share * (len(order) > 1), "index": share * (len(order) > 2), "train": len(order)}
        names = [split for split, number in parts.items() for _ in range(number)]
        splits.update(zip(order, names, strict=False))  # the last split takes the rest
    return photos.assign(split=group.map(splits))


def _claim(out: Path, what: str, splits: Iterable[str]) -> None:
    """Note beside a split's shards what they are made from, so that none is ever glued together from two sources."""
    stated = what.encode(errors="backslashreplace")
    notes = [out / split / "source.txt" for split in splits]
    for note in notes:
        before = note.read_bytes() if note.exists() else None
        if before is not None and before != stated:
            raise InputError(
                f"{note.parent} was begun by `{before.decode(errors='replace')}`, now it is `{stated.decode()}`; "
                "give another folder"
            )
        if before is None and any(note.parent.glob("images_*.tar")):
            raise InputError(f"{note.parent} holds shards already; give another folder")
    for note in notes:
        with whole(note) as part:
            part.write_bytes(stated)
