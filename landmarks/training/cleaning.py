"""The photos that cleaning keeps: landmarks with enough of them, and what a classifier takes for outdoor scenes."""

import re
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from landmarks.mirrors.open import open_mirror
from landmarks.mirrors.shards import PHOTO_ID
from landmarks.running.command import InputError
from landmarks.running.files import md5, whole
from landmarks.training.scenes import Classifier, classify, read_categories

IMAGES_CELL = re.compile(rf"{PHOTO_ID.pattern}( {PHOTO_ID.pattern})*", re.ASCII)


def read_clean(path: Path) -> pd.DataFrame:
    """`id` (str) and `landmark_id` (int64) of the photos in a file `landmark_id,images`, the data set's or one of ours.

    Raises InputError unless each row is a landmark of its own with its ids between single spaces, every id there once.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)[["landmark_id", "images"]]
        if not isinstance(table.index, pd.RangeIndex):  # pandas takes the first cells of longer rows for one
            raise ValueError("its rows have more cells than its first line")
        landmarks = table["landmark_id"].astype("int64")
        faulty = [not IMAGES_CELL.fullmatch(cell) for cell in table["images"]]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; give the path of a CSV file") from error
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(f"{path} is not a CSV with the columns landmark_id,images: {error}") from error
    if table.empty or any(faulty):
        where = f"landmark {landmarks[faulty.index(True)]} has others" if any(faulty) else "it has no row"
        raise InputError(f"{path} must list photo ids between single spaces for each landmark: {where}")
    images = [cell.split(" ") for cell in table["images"]]
    photos = pd.DataFrame({"id": list(chain(*images)), "landmark_id": np.repeat(landmarks, list(map(len, images)))})
    for twice, what in ((photos["id"], "photo"), (landmarks, "landmark")):
        if twice.duplicated().any():
            raise InputError(f"{path} lists {what} {twice[twice.duplicated()].iloc[0]} twice; it must be there once")
    return photos.reset_index(drop=True)


def clean(
    mirror: str,
    out: Path,
    min_photos: int = 10,
    classifier: Path | None = None,
    categories: Path | None = None,
    votes: int = 3,
    top: int = 5,
    image_size: int | None = None,
    cluster: str = "",
) -> None:
    """Write `out`; the arguments are those of the command. Raises InputError for what the user can mend."""
    if (classifier is None) != (categories is None):
        raise InputError("give --classifier and --categories together, or neither")
    if min(min_photos, votes, 1 if image_size is None else image_size) < 1 or votes > top:
        raise InputError("--min-photos, --votes and --image-size must be at least 1, and --votes at most --top")
    if out.is_dir():
        raise InputError(f"{out} is a folder; name a file to write")
    parts = out.with_name(f"{out.name}.parts")
    if classifier and categories:
        outdoor = read_categories(categories)
        if top > len(outdoor):
            raise InputError(f"--top {top} is more than the {len(outdoor)} categories in {categories}")
        scenes = Classifier(classifier, len(outdoor), image_size)
    source = open_mirror(mirror, parts / "mirror" if classifier else None)
    source.require("train")
    train = source.train()
    if classifier and categories:
        made_with = (
            f"mirror {source.digest('train')}, classifier {md5(classifier)}, "
            f"categories {md5(categories)}, top {top}, image-size {scenes.image_size}, min-photos {min_photos}"
        )
        note = parts / "settings.txt"
        if note.exists() and (before := note.read_text(errors="replace")) != made_with:
            raise InputError(f"{parts} was begun with {before}, now it is {made_with}; delete it or give another file")
    photos = train[train.groupby("landmark_id")["id"].transform("size") >= min_photos]
    if photos.empty:
        raise InputError(f"no landmark of {mirror} has {min_photos} train photos; lower --min-photos")
    unread = ""
    if classifier:
        with whole(note) as part:
            part.write_text(made_with)
        voted = photos.merge(classify(scenes, outdoor, top, source, set(photos["id"]), parts, cluster), on="id")
        unread = f"; {len(photos) - len(voted):,} could not be read or are in no shard"
        photos = voted[voted["votes"] >= votes]
        if photos.empty:
            raise InputError(f"no photo has {votes} outdoor scenes among its top {top}{unread}; lower --votes")
        shutil.rmtree(parts / "mirror", ignore_errors=True)
    with whole(out) as part:
        photos.groupby("landmark_id")["id"].agg(" ".join).rename("images").to_csv(part)
    print(
        f"{out}: {len(photos):,} of {len(train):,} photos and {photos['landmark_id'].nunique():,} of "
        f"{train['landmark_id'].nunique():,} landmarks kept{unread}"
    )
