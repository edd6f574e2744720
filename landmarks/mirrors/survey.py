"""Photos of landmarks, looked through before anything is written: what is taken, and why not the rest."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from landmarks.mirrors import duplicates, images
from landmarks.mirrors.images import UnreadablePhoto
from landmarks.mirrors.shards import read_photo
from landmarks.mirrors.summary import kinds
from landmarks.running.command import InputError, check_stop
from landmarks.running.progress import Progress
from landmarks.running.threads import in_threads

pd.set_option("mode.string_storage", "python")  # Arrow's strings refuse the names of files that are no UTF-8
HEIF_SUFFIXES = {".heic", ".heif", ".hif"}
SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp"} | HEIF_SUFFIXES
FOLDERS_NAMED = 3
NUMBER = re.compile(r"\d{1,18}", re.ASCII)  # that a landmark's id may be


class Listed(NamedTuple):
    """A photo in a list: where it came from, where it lies, its label, None for no landmark; or its fault."""

    name: str
    place: Path | None  # None: it is passed over
    label: str | None
    fault: str = ""


@dataclass
class Survey:
    """What is found in a folder of photos per landmark.

    `photos` has `id` (str), `url` (str: the path), `landmark_id` (Int64, NA for a photo of no landmark), `hash`
    (uint64: the perceptual one) and `group` (int: alike for near-duplicates), `categories` the landmarks' names,
    `passed_over` (id, path, reason) of all else.
    """

    photos: pd.DataFrame
    categories: dict[int, str]
    passed_over: list[tuple[str, str, str]]


def survey(folder: Path, none: Path | None, nested: bool) -> Survey:
    """Look at every file below `folder`, which holds a folder per landmark, and below `none`, of photos of no landmark.

    With `nested` each folder below `folder` that holds photos is a landmark, and its path the name.

    Raises:
        InputError: photos lie deeper than landmarks are looked for, or too few are left for train, index and test.
    """
    found = _list_files(folder, none, nested)
    if found.photos["landmark_id"].isna().all():
        raise InputError(f"{folder} holds no folder of photos ({', '.join(sorted(SUFFIXES))}): one per landmark")
    _require(found, folder, none)  # before the hour that reading may take
    _leave_out_unreadable(found)
    _leave_out_copies(found)
    _require(found, folder, none)
    return found


def survey_listed(source: Path, photos: list[Listed], none: Path | None) -> tuple[Survey, Callable[[str], bytes]]:
    """As `survey`, of photos that are listed with their labels, and what reads one by its `url`.

    Labels are the landmarks' names; where all of them are whole numbers they are their ids, too.

    Raises:
        InputError: too few are left for train, index and test.
    """
    found, places = _of_list(photos, none)

    def read(url: str) -> bytes:
        return read_photo(places[url])

    _require(found, source, none)
    _leave_out_unreadable(found, read)
    _leave_out_copies(found)
    _require(found, source, none)
    return found, read


def survey_more(
    folder: Path, nested: bool, before: pd.DataFrame, number: Callable[[list[str]], dict[str, int]]
) -> Survey:
    """Look at every file below `folder` for photos to be added to those of `before`, which stay whatever is found.

    As `survey`, but that photos in `folder` itself are of no landmark that is known, and one photo is enough.

    Args:
        before: `id`, `url`, `landmark_id` and `hash`; a copy of one of them is passed over.
        number: gives landmarks, by their names, their ids.

    Returns:
        `photos` has `hash`, the perceptual one, too.

    Raises:
        InputError: photos lie deeper than landmarks are looked for, or there are none.
    """
    found = _list_files(folder, None, nested, loose=True)
    if found.photos.empty:
        raise InputError(f"{folder} holds no photo ({', '.join(sorted(SUFFIXES))})")
    numbers = number(list(found.categories.values()))
    own = {old: numbers[name] for old, name in found.categories.items()}
    found.photos["landmark_id"] = found.photos["landmark_id"].map(own).astype("Int64")
    found.categories = {own[old]: name for old, name in found.categories.items()}
    _leave_out_unreadable(found)
    if len(before):
        found.photos = pd.concat([before.assign(bytes=np.iinfo(np.int64).max), found.photos], ignore_index=True)
    _leave_out_copies(found)
    found.photos = found.photos[~found.photos["id"].isin(before["id"])]
    found.passed_over = [one for one in found.passed_over if one[0] not in set(before["id"])]
    return found


def require_enough(landmarks: pd.Series, source: str) -> None:
    """Raise InputError unless photos of these landmarks, one each, are of two and make train, index and test."""
    counts = landmarks.value_counts()
    if len(counts) < 2:
        raise InputError(f"{source}: fewer than two landmarks have photos; give photos of two landmarks or more")
    if counts.max() < 3:
        raise InputError(
            f"{source}: no landmark has 3 photos that differ, so no index or no test photo would come out; give 4 or "
            "more of each: 3 make one each of train, index and test, and training takes 2 train photos"
        )


def _require(found: Survey, folder: Path, none: Path | None) -> None:
    reasons = ", ".join(f"{count:,} {kind}" for kind, count in kinds(reason for _, _, reason in found.passed_over))
    left_out = f" without what is passed over ({reasons})" if reasons else ""
    require_enough(found.photos.drop_duplicates("group")["landmark_id"], f"{folder}{left_out}")
    if none and not found.photos["landmark_id"].isna().any():
        raise InputError(
            f"--non-landmarks {none}{left_out}: no photo is there; give a folder of photos that show no landmark, "
            "or leave the option out"
        )


def _list_files(folder: Path, none: Path | None, nested: bool, loose: bool = False) -> Survey:
    """With `loose` photos in `folder` itself are of no landmark, else they are passed over."""
    files = [
        (path, path.relative_to(folder).as_posix())
        for path in _files_below(folder)
        if not (none and path.is_relative_to(none))
    ]
    if none:  # the slash keeps their ids, which follow from these names, apart from those of a landmark of that name
        files += [(path, f"/{path.relative_to(none).as_posix()}") for path in _files_below(none)]
    passed_over, photos = [], []
    for path, name in files:
        landmark = None if name.startswith("/") or (loose and path.parent == folder) else path.parent
        if reason := reason_to_pass_over(path) or ("in no landmark's folder" if landmark == folder else None):
            passed_over.append((_identity(name), str(path), reason))
        else:
            photos.append((_identity(name), str(path), landmark))
    landmarks = sorted({landmark for _, _, landmark in photos if landmark})
    deep = [place.relative_to(folder).as_posix() for place in landmarks if place.parent != folder]
    if deep and not nested:
        more = f" and {len(deep) - FOLDERS_NAMED:,} more" if len(deep) > FOLDERS_NAMED else ""
        raise InputError(
            f"{folder} has photos below the folder of a landmark, in {', '.join(deep[:FOLDERS_NAMED])}{more}; "
            "give --nested to make each such folder a landmark, or move its photos up into the folder of theirs"
        )
    holding = {landmark.relative_to(folder).parts[0] for landmark in landmarks}
    for place in sorted(folder.iterdir()):
        if place.is_dir() and place != none and place.name not in holding:
            passed_over.append((_identity(place.name), str(place), "a folder without a photo"))
    numbers = {landmark: number for number, landmark in enumerate(landmarks, 1)}
    table = pd.DataFrame(photos, columns=["id", "url", "landmark_id"])
    table["landmark_id"] = table["landmark_id"].map(numbers).astype("Int64")
    table["group"] = range(len(table))
    categories = {number: landmark.relative_to(folder).as_posix() for landmark, number in numbers.items()}
    return Survey(table, categories, passed_over)


def _of_list(photos: list[Listed], none: Path | None) -> tuple[Survey, dict[str, Path]]:
    """What is listed, and the photos below `none`; and where each lies, by its `url`."""
    listed = list(photos)
    for path in _files_below(none) if none else ():
        fault = reason_to_pass_over(path)
        listed.append(
            Listed(f"/{path.relative_to(none or path).as_posix()}", None if fault else path, None, fault or "")
        )
    passed_over = [(_identity(one.name), one.name, one.fault) for one in listed if one.place is None]
    places = {one.name: one.place for one in listed if one.place is not None}
    names = [one.name for one in listed if one.place is not None]
    labels = pd.Series([one.label for one in listed if one.place is not None], dtype=object)
    table = pd.DataFrame({"id": list(map(_identity, names)), "url": names, "label": labels})
    said = table.groupby("id")["label"].transform(lambda some: some.fillna("").nunique())
    again = table.duplicated("id") | (said > 1)
    for row, count in zip(table[again].itertuples(), said[again], strict=True):
        passed_over.append((row.id, row.url, "listed with two labels" if count > 1 else "listed twice"))
    table = table[~again].reset_index(drop=True)
    known = sorted(set(table["label"].dropna()))
    numbered = all(NUMBER.fullmatch(label) for label in known) and len(set(map(int, known))) == len(known)
    numbers = {label: int(label) if numbered else number for number, label in enumerate(known, 1)}
    table["landmark_id"] = table.pop("label").map(numbers).astype("Int64")
    table["group"] = range(len(table))
    return Survey(table, {number: label for label, number in numbers.items()}, passed_over), places


def _files_below(folder: Path) -> Iterator[Path]:
    """Files and links, sorted. Of the links to folders only those in `folder` itself are followed."""
    for place in sorted(folder.iterdir()):
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_symlink() or not path.is_dir():
                yield path


def reason_to_pass_over(path: Path) -> str | None:
    """Why a file cannot be a photo, by its name; None if it may be one."""
    suffix = path.suffix.lower()
    if not path.is_file():
        return "a link to a folder, or to nothing"
    if not suffix:
        return f"no photo's suffix ({path.name})"
    if suffix in HEIF_SUFFIXES and "HEIF" not in images.FORMATS:
        return f"{suffix} needs `pip install pillow-heif`"
    return None if suffix in SUFFIXES else f"no photo's suffix: {suffix}"


def _identity(name: str) -> str:
    return hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()


def read_file(path: str) -> bytes:
    """The encoded photo at a path. Raises OSError if it cannot be read, or is too large."""
    return read_photo(Path(path))


def _leave_out_unreadable(found: Survey, read: Callable[[str], bytes] = read_file) -> None:
    photos = found.photos
    results = Progress(
        in_threads(partial(_look, read), photos["url"], ahead=256), "looking through", len(photos), unit=" photos"
    )
    looks = pd.DataFrame(list(results), photos.index, ["bytes", "hash", "fault"])
    unreadable = looks["fault"].notna()
    found.passed_over += zip(
        photos["id"][unreadable], photos["url"][unreadable], looks["fault"][unreadable], strict=True
    )
    found.photos = photos.join(looks[["bytes", "hash"]])[~unreadable]


def _look(read: Callable[[str], bytes], url: str) -> tuple[int, np.uint64, str | None]:
    """A photo's bytes and perceptual hash, or why it cannot be read."""
    check_stop()
    try:
        data = read(url)
        return len(data), duplicates.perceptual_hash(images.open_photo(data, 64), data), None
    except OSError as error:
        return 0, np.uint64(0), error.strerror or str(error)
    except UnreadablePhoto as error:
        return 0, np.uint64(0), str(error)


def _leave_out_copies(found: Survey) -> None:
    """Of the copies of a photo the largest file stays, none where two have different labels; near ones are a group."""
    photos = found.photos.sort_values("bytes", ascending=False, kind="stable")
    photos["label"] = photos["landmark_id"].fillna(0).astype(int)
    photos["copy"] = duplicates.groups(photos["hash"].to_numpy(), duplicates.COPY, np.zeros(len(photos), int))
    left_out = []
    for _, copies in photos[photos["copy"].duplicated(keep=False)].groupby("copy"):
        largest = copies.drop_duplicates("label")
        for copy in copies.itertuples():
            others = largest["url"][largest["label"] != copy.label]
            if len(others):
                left_out.append((copy.id, copy.url, f"the same photo has another label ({others.iloc[0]})"))
            elif copy.id != largest["id"].iloc[0]:
                left_out.append((copy.id, copy.url, f"a copy of a photo of its landmark ({largest['url'].iloc[0]})"))
    found.passed_over += left_out
    photos = photos[~photos["id"].isin([identity for identity, _, _ in left_out])]
    group = duplicates.groups(photos["hash"].to_numpy(), duplicates.NEAR_DUPLICATE, photos["label"].to_numpy())
    found.photos = photos[["id", "url", "landmark_id", "hash"]].assign(group=group).sort_index()
