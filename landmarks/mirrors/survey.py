"""A folder of photos per landmark, looked through before anything is written: what is taken, and why not the rest."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from landmarks.mirrors import images
from landmarks.mirrors.images import UnreadablePhoto
from landmarks.mirrors.shards import MAX_PHOTO_BYTES
from landmarks.mirrors.summary import kinds
from landmarks.running.command import InputError, check_stop
from landmarks.running.threads import in_threads

HEIF_SUFFIXES = {".heic", ".heif", ".hif"}
SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp"} | HEIF_SUFFIXES
FOLDERS_NAMED = 3


@dataclass
class Survey:
    """What is found in a folder of photos per landmark.

    `photos` has `id` (str), `url` (str: the path) and `landmark_id` (Int64, NA for a photo of no landmark),
    `categories` the landmarks' names, and `passed_over` an (id, path, reason) for all else.
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
    _require(found, folder, none)
    return found


def require_enough(photos: pd.DataFrame, source: str) -> None:
    """Raise InputError unless there are two landmarks to tell apart, and train, index and test photos come out."""
    counts = photos["landmark_id"].value_counts()
    if len(counts) < 2:
        raise InputError(f"{source}: fewer than two landmarks have photos; give photos of two landmarks or more")
    if counts.max() < 3:
        raise InputError(
            f"{source}: no landmark has 3 photos, so no index or no test photo would come out; give 4 or more of each: "
            "3 make one each of train, index and test, and training takes 2 train photos"
        )


def _require(found: Survey, folder: Path, none: Path | None) -> None:
    reasons = ", ".join(f"{count:,} {kind}" for kind, count in kinds(reason for _, _, reason in found.passed_over))
    left_out = f" without what is passed over ({reasons})" if reasons else ""
    require_enough(found.photos, f"{folder}{left_out}")
    if none and not found.photos["landmark_id"].isna().any():
        raise InputError(
            f"--non-landmarks {none}{left_out}: no photo is there; give a folder of photos that show no landmark, "
            "or leave the option out"
        )


def _list_files(folder: Path, none: Path | None, nested: bool) -> Survey:
    files = [
        (path, path.relative_to(folder).as_posix())
        for path in _files_below(folder)
        if not (none and path.is_relative_to(none))
    ]
    if none:  # the slash keeps their ids, which follow from these names, apart from those of a landmark of that name
        files += [(path, f"/{path.relative_to(none).as_posix()}") for path in _files_below(none)]
    passed_over, photos = [], []
    for path, name in files:
        landmark = None if name.startswith("/") else path.parent
        if reason := _reason_to_pass_over(path) or ("in no landmark's folder" if landmark == folder else None):
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
    categories = {number: landmark.relative_to(folder).as_posix() for landmark, number in numbers.items()}
    return Survey(table, categories, passed_over)


def _files_below(folder: Path) -> Iterator[Path]:
    """Files and links, sorted. Of the links to folders only those in `folder` itself are followed."""
    for place in sorted(folder.iterdir()):
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_symlink() or not path.is_dir():
                yield path


def _reason_to_pass_over(path: Path) -> str | None:
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


def _leave_out_unreadable(found: Survey) -> None:
    photos, faults = found.photos, []
    for fault in tqdm(in_threads(_fault, photos["url"], ahead=256), "looking through", len(photos), unit=" photos"):
        check_stop()
        faults.append(fault)
    found.passed_over += [row for row in zip(photos["id"], photos["url"], faults, strict=True) if row[2]]
    found.photos = photos[[fault is None for fault in faults]]


def _fault(path: str) -> str | None:
    try:
        if Path(path).stat().st_size > MAX_PHOTO_BYTES:
            return f"larger than {MAX_PHOTO_BYTES >> 20} MiB"
        images.open_photo(Path(path).read_bytes(), 64)
    except OSError as error:
        return error.strerror or str(error)
    except UnreadablePhoto as error:
        return str(error)
    return None
