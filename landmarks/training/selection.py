"""Which train photos are learnt from, and which vote on the landmark of others."""

from pathlib import Path

import numpy as np
import pandas as pd

from landmarks.mirrors.base import Mirror
from landmarks.running.command import InputError
from landmarks.running.settings import PhotoSettings
from landmarks.training.cleaning import clean, read_clean
from landmarks.training.scenes import Classifier, read_categories
from model import load_labels


def train_photos(settings: PhotoSettings, mirror: Mirror, work: Path) -> pd.DataFrame:
    """`id` and `landmark_id` of the photos to learn from: all, or the clean ones, which a `classifier` chooses."""
    if settings.classifier:
        path = work / "train_clean.csv"
        if not path.exists():
            clean(mirror.name, path, classifier=Path(settings.classifier), categories=Path(settings.categories))
        return read_clean(path)
    if not settings.clean:
        return mirror.train()
    own = settings.clean == "true"
    listing = mirror.path("metadata/train_clean.csv") if own else Path(settings.clean)
    if listing is None:
        raise InputError(
            f"--clean true: {mirror.name} has no metadata/train_clean.csv; make one with "
            "cleaning.py, or give --clean false"
        )
    return read_clean(listing)


def check(settings: PhotoSettings, work: Path) -> None:
    """Raise InputError if a file that chooses the train photos is not there or is not what it should be."""
    if settings.classifier and not (work / "train_clean.csv").exists():
        outdoor = read_categories(Path(settings.categories))
        Classifier(Path(settings.classifier), len(outdoor))
    if settings.clean not in ("", "true"):
        read_clean(Path(settings.clean))


def voters(vote_all: bool, settings: PhotoSettings, mirror: Mirror, work: Path) -> pd.DataFrame:
    """`id` and `landmark_id` of the train photos that vote.

    With `vote_all` those of every landmark that is not excluded, else the photos that the model in the folder `work`
    has learnt from.
    """
    if vote_all:
        photos = mirror.train()
        return photos[~photos["landmark_id"].isin(settings.exclude)]
    photos = train_photos(settings, mirror, work)
    return photos[photos["landmark_id"].isin(load_labels(work / "labels.csv"))]


def learnt(settings: PhotoSettings, mirror: Mirror, work: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """`id` and `landmark_id` of the train photos that may be learnt from, and the landmarks that are, (classes,)."""
    photos = train_photos(settings, mirror, work)
    return photos, select_classes(photos, settings.min_images, settings.exclude)


def select_classes(train: pd.DataFrame, min_images: int, exclude: list[int]) -> np.ndarray:
    """The landmark ids to learn, ascending: (classes,) int64. A landmark's place is its class.

    Raises InputError if there are fewer than two.
    """
    counts = train["landmark_id"].value_counts()
    landmarks = np.sort(counts.index[(counts >= min_images) & ~counts.index.isin(exclude)].to_numpy())
    if len(landmarks) < 2:
        raise InputError(
            f"{len(landmarks)} of {len(counts)} landmarks have {min_images} train photos or more; "
            "training needs two at least: lower --min-images"
        )
    return landmarks
