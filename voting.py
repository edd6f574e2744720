"""Neighbours among the train photos to a landmark and a confidence, lowered by likeness to photos of no landmark.

The published triplet solution (the nearest train photo, less the mean similarity to the 5 nearest non-landmarks):

    landmark, score = vote(search(test, train, 1), train_landmark, k=1)
    score -= nonlandmark_similarity(search(test, references, 5), k=5)

The winners' of 2020 (Henkel and Singer, "Supporting large-scale image recognition with out-of-domain samples", arXiv
2010.01650), which has to search more than the 3 neighbours that vote, since the penalty changes their order:

    neighbours = penalise(search(test, train, 100), nonlandmark_similarity(search(train, references, 5), k=5))
    landmark, score = vote(neighbours, train_landmark, k=3)
    score -= nonlandmark_similarity(search(test, references, 10), k=10)

`train_landmark` is (N,) int64: the true landmark of each photo in the train features files, in their order.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from command import InputError, check_stop
from features import Features, load_features, save_features
from search import BATCH, Neighbours, search
from submission import Solution

OTHER = {"public": "private", "private": "public"}  # half of a solution


def recognise(
    files: list[Path], train_files: list[Path], train: pd.DataFrame, votes: int, power: float, parts: int
) -> pd.DataFrame:
    """The voted `landmark` and its `score` of every photo in some features files, by id.

    Args:
        train: `id` and `landmark_id` of the train photos.
        parts: the train photos are searched in so many parts, one in memory at a time.
    """
    neighbours = search(files, train_files, votes, parts)
    train_landmark = train.set_index("id")["landmark_id"].loc[neighbours.index_ids].to_numpy()
    landmark, score = vote(neighbours, train_landmark, votes, power)
    return pd.DataFrame({"landmark": landmark, "score": score}, index=neighbours.query_ids)


def vote(neighbours: Neighbours, train_landmark: np.ndarray, k: int, power: float = 1) -> tuple[np.ndarray, np.ndarray]:
    """The landmark with the largest sum of similarity**power over the k nearest train photos, and that sum.

    A similarity below 0 counts 0. Of equal sums, that with the nearest photo wins. Where no similarity is above 0, the
    nearest photo gives the landmark and, with its similarity, the score, so that such queries keep an order. With k = 1
    and power 1 the score is the similarity of the nearest photo, bit for bit.

    Returns:
        landmark (Q,) int64 and score (Q,) float64: a power of 9 and more leaves the range of float32.

    Raises:
        InputError: there are no train photos.
    """
    _require_photos(train_landmark, len(neighbours.index_ids))
    landmark = np.empty(len(neighbours.query_ids), np.int64)
    score = np.empty(len(neighbours.query_ids), np.float64)
    for first in range(0, len(neighbours.query_ids), BATCH):
        rows = slice(first, first + BATCH)
        similarities = neighbours.similarities[rows, :k].astype(np.float64)
        voted = train_landmark[neighbours.positions[rows, :k]]  # position -1 has similarity -inf: it counts 0
        weights = np.maximum(similarities, 0) ** power
        same = voted[:, :, None] == voted[:, None, :]
        sums = np.where(same, weights[:, :, None], 0).sum(axis=1)
        best = sums.argmax(axis=1)[:, None]
        landmark[rows] = np.take_along_axis(voted, best, axis=1)[:, 0]
        nearest = similarities[:, 0]
        score[rows] = np.where(nearest > 0, np.take_along_axis(sums, best, axis=1)[:, 0], nearest)
    return landmark, score


def class_centres(files: list[Path], train_landmark: np.ndarray, path: Path) -> np.ndarray:
    """Write the L2-normalised mean embedding of each landmark as a features file, whose ids are the landmark ids.

    Nearest-centre recognition is a search in that file, and `vote` with k = 1 and the landmarks returned here. Memory:
    the sums in float32 (203,094 landmarks x 512: 416 MB, as much again while it is written) and one file.

    Returns:
        (C,) int64: the landmark of each centre, ascending.

    Raises:
        InputError: there are no train photos.
    """
    landmarks, classes = np.unique(train_landmark, return_inverse=True)
    sums, stop = np.empty((0, 0), np.float32), 0
    for file in tqdm(files, "class centres", unit=" files"):
        check_stop()
        features = load_features(file)
        if not sums.size:
            sums = np.zeros((len(landmarks), features.embeddings.shape[1]), np.float32)
        these = classes[stop : (stop := stop + len(features.ids))]
        if len(these) == len(features.ids) > 0:
            order = np.argsort(these, kind="stable")
            present, starts = np.unique(these[order], return_index=True)
            sums[present] += np.add.reduceat(features.embeddings[order].astype(np.float32), starts)
    _require_photos(train_landmark, stop)
    sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    labels = None if features.landmark is None else landmarks  # search refuses files with and without labels together
    save_features(path, Features(landmarks.astype(str), sums.astype(features.embeddings.dtype), labels))
    return landmarks


def blend(
    landmark: np.ndarray,
    score: np.ndarray,
    head_landmark: np.ndarray,
    head_score: np.ndarray,
    power: float = 10,
    otherwise: float = 1e-8,
) -> np.ndarray:
    """Multiply each score by what the model's head gives the voted landmark, to a `power`: (Q,) float64.

    That is `head_score`, probability or cosine, where the head's best landmark is the voted one, and `otherwise`, the
    least that it can be, where it is another: such photos come after the rest, unless `otherwise` is raised. A
    landmark that the head has not learned never agrees. Scores of 0 and below stay; so blend before any penalty.

    Source: the third place of Google Landmark Recognition 2020 (Ha et al., arXiv 2010.05350), whose code has power 9
    for the similarities, 10 for the head and 1e-8 for landmarks not among the head's best 5. There the head takes part
    in choosing the landmark; here, where only its best is known, in ranking the photos.
    """
    head = np.where(landmark == head_landmark, np.maximum(head_score, otherwise), otherwise).astype(np.float64)
    return np.where(score > 0, score * head**power, score)


def nonlandmark_similarity(neighbours: Neighbours, k: int) -> np.ndarray:
    """The mean similarity of each photo to its k nearest non-landmarks, (Q,) float64; of all if there are fewer than k.

    `neighbours` are those of test or train photos in the features of `nonlandmark_features`.
    """
    found = neighbours.positions[:, :k] >= 0
    total = np.where(found, neighbours.similarities[:, :k], 0).sum(axis=1, dtype=np.float64)
    return total / np.maximum(found.sum(axis=1), 1)


def penalise(neighbours: Neighbours, penalty: np.ndarray) -> Neighbours:
    """Take each index photo's penalty, (N,), from its similarities, and put the neighbours in the order of the rest."""
    less = np.append(penalty, 0).astype(np.float32)  # position -1 reads the 0
    similarities = neighbours.similarities - less[neighbours.positions]
    order = np.argsort(-similarities, axis=1, kind="stable")
    return neighbours._replace(
        similarities=np.take_along_axis(similarities, order, axis=1),
        positions=np.take_along_axis(neighbours.positions, order, axis=1),
    )


def frequent_as_nonlandmark(landmark: np.ndarray, score: np.ndarray, most: int) -> np.ndarray:
    """Rank predictions of a landmark that is predicted more than `most` times below all others: scores (Q,) float64.

    The test set shows a real landmark a few times only; one predicted often draws photos of no landmark. Such
    predictions stay in their own order, at whole steps below the least score, since a shift of all by one number would
    lose the order of tiny scores. Source: the third place of Google Landmark Recognition 2019 (more than 30 times),
    arXiv 1906.04087; the second of 2020 has 20.
    """
    _, classes, counts = np.unique(landmark, return_inverse=True, return_counts=True)
    frequent = counts[classes] > most
    score = score.astype(np.float64)
    _, place = np.unique(-score[frequent], return_inverse=True)
    score[frequent] = np.floor(score.min(initial=0)) - 1 - place
    return score


def reference_halves(solution: Solution) -> dict[str, set[str]]:
    """For each half of a recognition solution, the photos of no landmark in the *other* half: its non-landmarks.

    Keys are "public" and "private". No photo of a half is among the references that its scores are made with, and
    nothing of the half's own part of the solution is used.
    """
    none = {half: {i for i, landmarks in getattr(solution, half).items() if not landmarks} for half in OTHER}
    return {half: none[other] for half, other in OTHER.items()}


def without_references(solution: Solution, references: Mapping[str, set[str]]) -> Solution:
    """The solution with every photo ignored, in each half, that served that half as a non-landmark.

    `references` are those of `reference_halves`, of which it ignores none, or the same ids for "public" and "private".
    """
    kept = {
        half: {i: landmarks for i, landmarks in getattr(solution, half).items() if i not in references[half]}
        for half in OTHER
    }
    served = {i for half in OTHER for i in getattr(solution, half) if i in references[half]}
    return Solution(kept["public"], kept["private"], solution.ignored | served)


def nonlandmark_features(files: list[Path], ids: Collection[str], path: Path) -> int:
    """Write the features of the photos in `ids`, wherever in `files` they are, as one features file.

    Returns how many were found: photos that could not be read have no features. Raises InputError if none was.
    """
    wanted, picked = np.array(sorted(ids), dtype=str), []
    for file in files:
        check_stop()
        features = load_features(file)
        rows = np.isin(features.ids, wanted)
        picked.append(Features(*(None if field is None else field[rows] for field in features)))
    found = sum(len(features.ids) for features in picked)
    if not found:
        raise InputError(f"none of the {len(wanted)} photos of no landmark has features; name some of the mirror's")
    fields = zip(*picked, strict=True)
    save_features(path, Features(*(None if field[0] is None else np.concatenate(field) for field in fields)))
    return found


def _require_photos(train_landmark: np.ndarray, photos: int) -> None:
    if not photos:
        raise InputError("there are no train photos to recognise by: embed the train photos first")
    if len(train_landmark) != photos:
        raise ValueError(f"{len(train_landmark)} landmarks for the {photos} train photos in the features files")
