"""Neighbours among the train photos, or class centres, to a landmark and a confidence for every photo.

`train` is everywhere a table of `id` and `landmark_id`: the photos, or centres, that vote. What else is in the features
files is not searched.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from landmarks.neighbours.search import BATCH, Neighbours, Search
from landmarks.neighbours.search import search as exact_search
from landmarks.running.command import InputError, check_stop
from landmarks.running.features_file import Features, is_whole, load_features, save_features
from landmarks.running.files import prepare_folder
from landmarks.running.progress import Progress

CENTRES = "class_centres/centres.npz"  # in a work folder
UNKNOWN_TO_HEAD = 1e-8  # what a landmark has that the head does not name among its best


def gallery(
    recognizer: str, train_files: list[Path], voters: pd.DataFrame, work: Path
) -> tuple[list[Path], pd.DataFrame]:
    """The features files that photos are recognised by, and `train`: the photos that vote, or centres made of them.

    Args:
        recognizer: as the setting; with "centres" these are written to `work/class_centres/`.
        voters: `id` and `landmark_id` of the photos that vote.
    """
    if recognizer == "centres":
        path = work / CENTRES
        prepare_folder(path.parent, train_files, voters=_digest(voters))
        if not is_whole(path):
            class_centres(train_files, voters, path)
        ids = load_features(path).ids
        return [path], pd.DataFrame({"id": ids, "landmark_id": ids.astype(np.int64)})
    return train_files, voters


def recognise(
    files: list[Path],
    train_files: list[Path],
    train: pd.DataFrame,
    votes: int,
    power: float,
    parts: int,
    keep: Path | None = None,
    search: Search = exact_search,
) -> pd.DataFrame:
    """The voted `landmark` and its `score` of every photo in some features files, by id.

    Args:
        train: `id` and `landmark_id` of the photos that vote.
        parts: the train photos are searched in so many parts, one in memory at a time.
        keep: the folder in which `search` keeps what it finds.
        search: the exact one, or as `approximate.chosen` has it.
    """
    neighbours, train_landmark = nearest(files, train_files, train, votes, parts, keep, search)
    landmark, score = vote(neighbours, train_landmark, votes, power)
    return pd.DataFrame({"landmark": landmark, "score": score}, index=neighbours.query_ids)


def nearest(
    files: list[Path],
    train_files: list[Path],
    train: pd.DataFrame,
    k: int,
    parts: int,
    keep: Path | None = None,
    search: Search = exact_search,
) -> tuple[Neighbours, np.ndarray]:
    """The k nearest of the photos that vote, and the landmark of each of these photos, (N,) int64."""
    landmark = train.set_index("id")["landmark_id"]
    neighbours = search(files, train_files, k, parts, landmark.index, keep)
    return neighbours, landmark.loc[neighbours.index_ids].to_numpy()


def head(files: list[Path]) -> pd.DataFrame:
    """What the model's head says of every photo in some features files: `landmark` and `score`, by id.

    Raises InputError if the model has no head.
    """
    parts = []
    for path in files:  # one in memory at a time: all embeddings would be half a GB
        features = load_features(path)
        landmark, score = _of_head(features, path)
        parts.append(pd.DataFrame({"landmark": landmark, "score": score}, index=features.ids))
    return pd.concat(parts)


class HeadScores(NamedTuple):
    """What the model's head says of Q photos: their best landmarks and how sure it is of each, best first."""

    landmark: np.ndarray  # (Q, H) int64
    score: np.ndarray  # (Q, H) float32: probabilities or cosines


def head_scores(files: list[Path]) -> HeadScores:
    """The head's best landmarks of the photos in some features files: ten, or one from files of earlier releases.

    Raises InputError if the model has no head.
    """
    parts = []
    for path in files:
        features = load_features(path)
        landmark, score = _of_head(features, path)
        if features.top_landmark is None or features.top_score is None:
            parts.append(HeadScores(landmark[:, None], score[:, None]))
        else:
            parts.append(HeadScores(features.top_landmark, features.top_score))
    width = min(part.landmark.shape[1] for part in parts)
    return HeadScores(*(np.concatenate([part[i][:, :width] for part in parts]) for i in range(2)))


def vote(
    neighbours: Neighbours,
    train_landmark: np.ndarray,
    k: int,
    power: float = 1,
    head: HeadScores | None = None,
    head_power: float = 10,
) -> tuple[np.ndarray, np.ndarray]:
    """The landmark with the largest sum of similarity**power over the k nearest train photos, and that sum.

    A similarity below 0 counts 0. Of equal sums, that with the nearest photo wins. Where no similarity is above 0, the
    nearest photo gives the landmark and, with its similarity, the score, so that such queries keep an order. With k = 1
    and power 1 the score is the similarity of the nearest photo, bit for bit.

    With a `head`, each sum is first multiplied by what it gives the landmark, to `head_power`; it gives 1e-8 to those
    that are not among its best, or less. Source: the third place of Google Landmark Recognition 2020 (Ha et al., arXiv
    2010.05350), whose code has power 9 for the similarities and 10 for the head.

    Returns:
        landmark (Q,) int64 and score (Q,) float64: a power of 9 and more leaves the range of float32.

    Raises:
        InputError: there are no train photos.
    """
    _require_photos(len(neighbours.index_ids))
    if len(train_landmark) != len(neighbours.index_ids):
        raise ValueError(f"{len(train_landmark)} landmarks for the {len(neighbours.index_ids)} train photos searched")
    landmark = np.empty(len(neighbours.query_ids), np.int64)
    score = np.empty(len(neighbours.query_ids), np.float64)
    for first in range(0, len(neighbours.query_ids), BATCH):
        rows = slice(first, first + BATCH)
        similarities = neighbours.similarities[rows, :k].astype(np.float64)
        voted = train_landmark[neighbours.positions[rows, :k]]  # position -1 has similarity -inf: it counts 0
        weights = np.maximum(similarities, 0) ** power
        same = voted[:, :, None] == voted[:, None, :]
        sums = np.where(same, weights[:, :, None], 0).sum(axis=1)
        if head is not None:
            agrees = voted[:, :, None] == head.landmark[rows, None]
            given = np.where(agrees, head.score[rows, None].astype(np.float64), UNKNOWN_TO_HEAD).max(axis=2)
            sums *= given**head_power
        best = sums.argmax(axis=1)[:, None]
        landmark[rows] = np.take_along_axis(voted, best, axis=1)[:, 0]
        nearest = similarities[:, 0]
        score[rows] = np.where(nearest > 0, np.take_along_axis(sums, best, axis=1)[:, 0], nearest)
    return landmark, score


def class_centres(files: list[Path], train: pd.DataFrame, path: Path) -> None:
    """Write the L2-normalised mean embedding of each landmark as a features file, whose ids are the landmark ids.

    They ascend by landmark. Nearest-centre recognition is `recognise` by that file. Memory: the sums in float32
    (203,094 landmarks x 512: 416 MB, as much again while they are written) and one file.

    Raises:
        InputError: there are no train photos that vote.
    """
    landmarks, classes = np.unique(train["landmark_id"], return_inverse=True)
    voters, counts = pd.Index(train["id"]), np.zeros(len(landmarks), np.int64)
    sums = np.empty((0, 0), np.float32)
    for file in Progress(files, "class centres", unit=" files"):
        check_stop()
        features = load_features(file)
        if not sums.size:
            sums = np.zeros((len(landmarks), features.embeddings.shape[1]), np.float32)
        places = voters.get_indexer(features.ids)
        these, embeddings = classes[places[places >= 0]], features.embeddings[places >= 0]
        order = np.argsort(these, kind="stable")
        present, starts, count = np.unique(these[order], return_index=True, return_counts=True)
        counts[present] += count
        sums[present] += np.add.reduceat(embeddings[order], starts, dtype=np.float32)
    _require_photos(counts.sum())
    landmarks, sums = landmarks[counts > 0], sums[counts > 0]
    sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    labels = None if features.landmark is None else landmarks  # search refuses files with and without labels together
    save_features(path, Features(landmarks.astype(str), sums.astype(features.embeddings.dtype), labels))


def _digest(train: pd.DataFrame) -> str:
    digest = hashlib.sha256("\n".join(train["id"]).encode())
    digest.update(train["landmark_id"].to_numpy(np.int64).tobytes())
    return digest.hexdigest()


def _of_head(features: Features, path: Path) -> tuple[np.ndarray, np.ndarray]:
    if features.landmark is None or features.score is None:
        raise InputError(f"{path} has no landmarks of a head: give --recognizer neighbours or centres, and no --blend")
    return features.landmark, features.score


def _require_photos(photos: int) -> None:
    if not photos:
        raise InputError("there are no train photos to recognise by: embed the train photos, and let some of them vote")
