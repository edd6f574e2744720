"""Likeness to photos of no landmark, taken from scores: how much of it, and the landmark that is left.

The published triplet solution of 2019 takes the nearest train photo and subtracts the mean similarity to the 5 nearest
non-landmarks. The winners of 2020 (Henkel and Singer, "Supporting large-scale image recognition with out-of-domain
samples", arXiv 2010.01650) first subtract from each of many train photos its own mean similarity to 5 non-landmarks, so
that their order changes, let the best 3 vote, and then subtract that of the photo to the 10 nearest.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from landmarks.neighbours import approximate, voting
from landmarks.neighbours.nonlandmarks import References, write_features
from landmarks.neighbours.search import Neighbours, search, without_itself
from landmarks.neighbours.voting import HeadScores
from landmarks.running.answer_settings import RecognitionSettings
from landmarks.running.features_file import load_features, save_features, take
from landmarks.running.settings import RunSettings
from landmarks.scoring import measures

NON_LANDMARKS = "non_landmarks.npz"  # in a work folder
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
USUAL = 0.5  # raised GAP in every measurement of ours; what is as good to within NOISE does not displace it
NOISE = 0.01  # of a GAP of some hundred photos: half a standard error
MOST_QUERIES = 5000  # train photos that a weight is judged by


class Penalty(NamedTuple):
    """How many neighbours count."""

    depth: int  # train photos that are searched for
    votes: int  # of them, after the penalty
    power: float
    of_queries: int  # nearest non-landmarks of a photo
    of_train: int  # of a train photo, whose likeness to them moves it away; 0: it does not


def penalty(name: str, votes: int, power: float) -> Penalty:
    """The setting `penalty`: `published` goes with any votes, `winners` has its own."""
    return Penalty(100, 3, 1.0, 10, 5) if name == "winners" else Penalty(votes, votes, power, 5, 0)


def recognise(
    settings: RecognitionSettings,
    run: RunSettings,
    files: dict[str, list[Path]],
    voters: pd.DataFrame,
    references: list[References],
) -> pd.DataFrame:
    """The `landmark` and `score` of every test photo, by id, by the nearest train photos or class centres.

    They vote, the head's scores are blended in, and likeness to the photos of no landmark is taken from the scores.

    Args:
        files: the features of each split that is needed.
        voters: `id` and `landmark_id` of the train photos that vote.
        references: the photos of no landmark; without any no penalty is taken.
    """
    how = penalty(settings.penalty, settings.votes, settings.vote_power)
    train_files, train = voting.gallery(settings.recognizer, files["train"], voters, run.work)
    kept = run.work / "neighbours"
    keep = kept / f"test-by-{settings.recognizer}"
    neighbours, train_landmark = voting.nearest(
        files["test"], train_files, train, how.depth, run.index_parts, keep, approximate.chosen(run)
    )
    head = voting.head_scores(files["test"]) if settings.blend else None
    if not references:
        landmark, score = voting.vote(neighbours, train_landmark, how.votes, how.power, head, settings.blend)
        return pd.DataFrame({"landmark": landmark, "score": score}, index=neighbours.query_ids)
    served = []
    for number, group in enumerate(references):
        path = run.work / NON_LANDMARKS
        there = write_features([file for split in group.splits for file in files[split]], group.ids, path)
        print(f"{there:,} of {len(group.ids):,} photos of no landmark have features")
        weight = settings.penalty_weight or group.weight
        of_train = None
        if how.of_train:
            of_train = likeness(train_files, path, how.of_train, kept / f"train-in-nonlandmarks-{number}")
        of_test = likeness(files["test"], path, how.of_queries, kept / f"test-in-nonlandmarks-{number}")
        found = penalise(neighbours, train_landmark, how, weight, of_test, of_train, head, settings.blend)
        served.append(found[found.index.isin(group.serve)])
    return pd.concat(served)


def weighed(
    settings: RecognitionSettings,
    run: RunSettings,
    files: dict[str, list[Path]],
    voters: pd.DataFrame,
    references: list[References],
) -> list[References]:
    """The references with their `weight`, which train photos choose if the setting `penalty_weight` is 0."""
    if settings.penalty_weight:
        return references
    how = penalty(settings.penalty, settings.votes, settings.vote_power)
    folder, chosen = run.work / "penalty", []
    for group in references:
        path = folder / NON_LANDMARKS
        write_features([file for split in group.splits for file in files[split]], group.ids, path)
        weight = choose_weight(how, files["train"], voters, path, run.index_parts, folder)
        chosen.append(group._replace(weight=weight))
    return chosen


def penalise(
    neighbours: Neighbours,
    train_landmark: np.ndarray,
    how: Penalty,
    weight: float,
    of_queries: pd.Series,
    of_train: pd.Series | None,
    head: HeadScores | None = None,
    blend: float = 0.0,
) -> pd.DataFrame:
    """The `landmark` and `score` of every query after the penalty, by id.

    Args:
        weight: the part of the likeness that is taken.
        of_queries, of_train: the `likeness` of the queries and of the train photos, by id.
        head: what the head says of the queries, to be blended in with this power.
    """
    if of_train is not None:
        neighbours = subtract(neighbours, weight * of_train.loc[neighbours.index_ids].to_numpy())
    landmark, score = voting.vote(neighbours, train_landmark, how.votes, how.power, head, blend)
    found = pd.DataFrame({"landmark": landmark, "score": score}, index=neighbours.query_ids)
    found["score"] -= weight * of_queries
    return found


def likeness(files: list[Path], references: Path, k: int, keep: Path) -> pd.Series:
    """The mean similarity of every photo in some features files to the k nearest non-landmarks, by id."""
    neighbours = without_itself(search(files, [references], k + 1, keep=keep))
    return pd.Series(nonlandmark_similarity(neighbours, k), index=neighbours.query_ids)


def nonlandmark_similarity(neighbours: Neighbours, k: int) -> np.ndarray:
    """The mean similarity of each photo to its k nearest non-landmarks, (Q,) float64; of all if there are fewer than k.

    `neighbours` are those of test or train photos among photos of no landmark.
    """
    found = neighbours.positions[:, :k] >= 0
    total = np.where(found, neighbours.similarities[:, :k], 0).sum(axis=1, dtype=np.float64)
    return total / np.maximum(found.sum(axis=1), 1)


def subtract(neighbours: Neighbours, penalty: np.ndarray) -> Neighbours:
    """Take each index photo's penalty, (N,), from its similarities, and put the neighbours in the order of the rest."""
    less = np.append(penalty, 0).astype(np.float32)  # position -1 reads the 0
    similarities = neighbours.similarities - less[neighbours.positions]
    order = np.argsort(-similarities, axis=1, kind="stable")
    return neighbours._replace(
        similarities=np.take_along_axis(similarities, order, axis=1),
        positions=np.take_along_axis(neighbours.positions, order, axis=1),
    )


def choose_weight(
    how: Penalty, train_files: list[Path], train: pd.DataFrame, references: Path, parts: int, folder: Path
) -> float:
    """The part of the penalty with the best GAP on train photos, recognised by the others, and non-landmarks.

    Every second one of the references is a photo to be judged, the others are what it is judged by; as many train
    photos of landmarks with more than one are judged beside them. No test photo takes part. Among weights that are as
    good the one nearest to a half is chosen: photos that were found to be far from every landmark are easy to tell.

    Args:
        train_files: features of the train photos, also where class centres recognise.
        train: `id` and `landmark_id` of those that vote.
        references: the features file of the non-landmarks.
        folder: for what is found on the way.
    """
    none = load_features(references)
    judged, others = (folder / name for name in ("none.npz", "references.npz"))
    save_features(judged, take(none, np.arange(len(none.ids)) % 2 == 0))
    save_features(others, take(none, np.arange(len(none.ids)) % 2 == 1))
    count = min(-(-len(none.ids) // 2), MOST_QUERIES)
    several = train[train.groupby("landmark_id")["id"].transform("size") > 1]
    several = several[~several["id"].isin(none.ids)].sort_values("id")
    chosen = several.iloc[np.linspace(0, len(several) - 1, min(count, len(several))).astype(int)]
    if len(none.ids) < 2 or chosen.empty:
        return USUAL
    queries = folder / "train.npz"
    write_features(train_files, set(chosen["id"]), queries)
    files = [queries, judged]

    landmark = train.set_index("id")["landmark_id"]
    neighbours = search(files, train_files, how.depth + 1, parts, landmark.index, folder / "in-train")
    neighbours = without_itself(neighbours)
    train_landmark = landmark.loc[neighbours.index_ids].to_numpy()
    of_queries = likeness(files, others, how.of_queries, folder / "in-references")
    of_train = likeness(train_files, others, how.of_train, folder / "train-in-references") if how.of_train else None
    solution: dict[str, list[int]] = {identity: [] for identity in load_features(judged).ids.tolist()}
    solution |= {identity: [shown] for identity, shown in zip(chosen["id"], chosen["landmark_id"], strict=True)}
    gaps = {}
    for weight in WEIGHTS:
        found = penalise(neighbours, train_landmark, how, weight, of_queries, of_train)
        predictions = dict(
            zip(found.index, zip(found["landmark"].tolist(), found["score"].tolist(), strict=True), strict=True)
        )
        gaps[weight] = measures.gap(predictions, solution)
    good = [weight for weight in WEIGHTS if gaps[weight] >= max(gaps.values()) - NOISE]
    best = min(good, key=lambda weight: abs(weight - USUAL))
    print(f"--penalty-weight {best:g}: GAP {gaps[best]:.3f} on train photos, {gaps[0.0]:.3f} without penalty")
    return best
