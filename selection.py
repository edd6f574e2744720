"""Which train photos are learnt from, and which vote on the landmark of others."""

from pathlib import Path

import pandas as pd

from command import InputError
from mirror import Mirror
from settings import Recipe


def train_photos(recipe: Recipe, mirror: Mirror) -> pd.DataFrame:
    """`id` and `landmark_id` of the photos to learn from: all, or the clean ones, which a `classifier` chooses."""
    if not (recipe.clean or recipe.classifier):
        return mirror.train()
    import cleaning

    if recipe.classifier:
        path = recipe.work / "train_clean.csv"
        if not path.exists():
            cleaning.clean(recipe.mirror, path, classifier=Path(recipe.classifier), categories=Path(recipe.categories))
        return cleaning.read_clean(path)
    own = recipe.clean == "true"
    path = mirror.path("metadata/train_clean.csv") if own else Path(recipe.clean)
    if path is None:
        raise InputError(
            f"--clean true: {mirror.name} has no metadata/train_clean.csv; make one with "
            "cleaning.py, or give --clean false"
        )
    return cleaning.read_clean(path)


def voters(recipe: Recipe, mirror: Mirror) -> pd.DataFrame:
    """`id` and `landmark_id` of the train photos that vote.

    With `vote_all` those of every landmark that is not excluded, else the photos that the model has learnt from; of
    several models the first one's.
    """
    if recipe.vote_all:
        photos = mirror.train()
        return photos[~photos["landmark_id"].isin(recipe.exclude)]
    from model import load_labels  # imports Keras, which a command that only reads features need not wait for

    photos = train_photos(recipe, mirror)
    return photos[photos["landmark_id"].isin(load_labels(recipe.folders[0] / "labels.csv"))]
