"""Several models: the embeddings that each has of a photo, side by side, are one longer embedding."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

import features
import model as models
from features import Features, is_whole, load_features, save_features
from landmarks.mirrors.base import Mirror
from landmarks.running import recipe as recipes
from landmarks.running.command import InputError, check_stop
from landmarks.running.settings import RunSettings


def embed(run: RunSettings, mirror: Mirror, splits: list[str]) -> dict[str, list[Path]] | None:
    """The features files of some splits, by the model in the work folder, or by several models side by side.

    Each model embeds with the settings that its work folder keeps, into it; what they say together goes to `run.work`.

    Returns:
        A file a shard for each split, in the mirror's order; None while some are missing that `run.shards` leaves to
        other runs.

    Raises InputError if a model has learnt none of the first one's landmarks.
    """
    known = models.load_labels(run.folders[0] / "labels.csv")
    by_model: list[dict[str, list[Path]]] = []
    for folder in run.folders:
        own = recipes.of(folder)
        landmarks = models.load_labels(folder / "labels.csv")
        if not np.isin(landmarks, known).any():
            raise InputError(f"{folder} and {run.folders[0]} were trained on other landmarks: they have none in common")
        predictor = models.predictor(models.load(folder / "model.keras"), own.embedding.mirrored)
        embed_split = partial(
            features.embed, predictor, landmarks, mirror, work=folder, settings=own.embedding,
            image_size=own.model.image_size, batch_size=own.training.batch_size, shards=run.shards,
        )  # fmt: skip
        by_model.append({split: files for split in splits if (files := embed_split(split)) is not None})
    if any(len(files) < len(splits) for files in by_model):
        return None
    if not run.models:
        return by_model[0]
    weights = run.model_weights or [1.0] * len(by_model)
    return {
        split: join([files[split] for files in by_model], weights, run.work / "features" / split) for split in splits
    }


def join(files: list[list[Path]], weights: list[float], folder: Path) -> list[Path]:
    """Write features files with the embeddings of several models side by side, of photos that all models could read.

    Each embedding is L2-normalised and multiplied by its model's weight w, the whole is L2-normalised again: so two
    photos have the similarity sum(w**2 s) / sum(w**2), where s are those that the models see. There is no head. Files
    that are there already stay, unless they were made from others or with other weights.

    Args:
        files: of each model, a file a shard, in the same order.
        folder: where the new files go, under their old names.
    """
    features.prepare_folder(folder, [path for of_model in files for path in of_model], weights=weights)
    written = []
    for paths in tqdm(list(zip(*files, strict=True)), f"join into {folder}", unit=" shards"):
        check_stop()
        written.append(folder / paths[0].name)
        if not is_whole(written[-1]):
            save_features(written[-1], _side_by_side([load_features(path) for path in paths], weights))
    return written


def _side_by_side(parts: list[Features], weights: list[float]) -> Features:
    ids = parts[0].ids
    for part in parts[1:]:
        ids = ids[np.isin(ids, part.ids)]
    rows = [pd.Index(part.ids).get_indexer(ids) for part in parts]
    embeddings = [
        weight * _unit(part.embeddings[some].astype(np.float32))
        for part, some, weight in zip(parts, rows, weights, strict=True)
    ]
    return Features(ids, _unit(np.concatenate(embeddings, axis=1)).astype(np.float16))


def _unit(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), np.finfo(np.float32).tiny)
