"""Likeness to photos of no landmark, taken from scores: which photos these are, and how much of it is taken.

Sources: the triplet solution of 2019 (less the mean similarity to the 5 nearest non-landmarks), and Henkel and Singer,
"Supporting large-scale image recognition with out-of-domain samples", arXiv 2010.01650, the winners of 2020.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

import metrics
import rerank
import voting
from features import load_features, outline, save_features, take
from nonlandmarks import References, write_features
from search import Neighbours, search
from voting import HeadScores

FAR_SHARE = 0.1  # of the photos that are looked at, those that count as far from every landmark
MOST_LOOKED_AT = 20_000  # index or train photos; 11 minutes among 4.1 million on two cores
MOST_FAR = 2000
FEWEST = 10  # references with fewer photos tell nothing
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
        neighbours = rerank.penalise(neighbours, weight * of_train.loc[neighbours.index_ids].to_numpy())
    landmark, score = voting.vote(neighbours, train_landmark, how.votes, how.power, head, blend)
    found = pd.DataFrame({"landmark": landmark, "score": score}, index=neighbours.query_ids)
    found["score"] -= weight * of_queries
    return found


def likeness(files: list[Path], references: Path, k: int, keep: Path) -> pd.Series:
    """The mean similarity of every photo in some features files to the k nearest non-landmarks, by id."""
    neighbours = without_itself(search(files, [references], k + 1, keep=keep))
    return pd.Series(rerank.nonlandmark_similarity(neighbours, k), index=neighbours.query_ids)


def without_itself(neighbours: Neighbours) -> Neighbours:
    """The neighbours of each query but itself; a place is left over where it was among them, else at the end."""
    own = np.append(neighbours.index_ids, "")[neighbours.positions] == neighbours.query_ids[:, None]
    order = np.argsort(own, axis=1, kind="stable")
    similarities = np.where(own, -np.inf, neighbours.similarities).astype(np.float32)
    positions = np.where(own, -1, neighbours.positions)
    return neighbours._replace(
        similarities=np.take_along_axis(similarities, order, axis=1),
        positions=np.take_along_axis(positions, order, axis=1),
    )


def find_far(
    group: References, files: dict[str, list[Path]], train: pd.DataFrame, parts: int, folder: Path
) -> References:
    """The photos that stand in for non-landmarks: those of `group.splits` that are least like any train photo.

    They need no labels. Of at most 20,000 photos, drawn evenly, the tenth part whose nearest other train photo is the
    least similar. Of 761 index photos, 348 of no landmark, these were 76, and none of them
    showed one (frozen EfficientNet-Lite0).

    Args:
        train: `id` and `landmark_id` of the train photos.
        folder: for what is found on the way.
    """
    there = [path for split in group.splits for path in files[split]]
    ids = np.concatenate([outline(path).ids for path in there])
    looked_at = ids[np.linspace(0, len(ids) - 1, min(len(ids), MOST_LOOKED_AT)).astype(int)] if len(ids) else ids
    if len(looked_at) * FAR_SHARE < FEWEST:
        return group._replace(ids=set())
    path = folder / "looked_at.npz"
    write_features(there, set(looked_at.tolist()), path)
    neighbours = search([path], files["train"], 2, parts, pd.Index(train["id"]), folder / "looked-at-in-train")
    nearest = without_itself(neighbours).similarities[:, 0]
    far = np.argsort(nearest, kind="stable")[: min(int(len(nearest) * FAR_SHARE), MOST_FAR)]
    return group._replace(ids=set(neighbours.query_ids[far].tolist()))


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
    solution = {identity: [] for identity in load_features(judged).ids.tolist()}
    solution |= {identity: [shown] for identity, shown in zip(chosen["id"], chosen["landmark_id"], strict=True)}
    gaps = {}
    for weight in WEIGHTS:
        found = penalise(neighbours, train_landmark, how, weight, of_queries, of_train)
        predictions = dict(
            zip(found.index, zip(found["landmark"].tolist(), found["score"].tolist(), strict=True), strict=True)
        )
        gaps[weight] = metrics.gap(predictions, solution)
    good = [weight for weight in WEIGHTS if gaps[weight] >= max(gaps.values()) - NOISE]
    best = min(good, key=lambda weight: abs(weight - USUAL))
    print(f"--penalty-weight {best:g}: GAP {gaps[best]:.3f} on train photos, {gaps[0.0]:.3f} without penalty")
    return best
