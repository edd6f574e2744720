"""Which photos are shown: surest and least sure answers with their nearest train photos, queries, verified ones."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from landmarks.neighbours.gallery import Gallery
from landmarks.running.features_file import load_features, outline

COUNT = 9  # photos in a gallery, as the published triplet solution has it
QUERIES = 3  # best, as many median and worst ones


class TrainPhoto(NamedTuple):
    """The train photo that is most like a test photo."""

    id: str
    landmark: int
    similarity: float


def galleries(photos: pd.DataFrame, has_solution: bool) -> dict[str, list[str]]:
    """The ids of the photos in each gallery, by its title; `photos` as `judged.ranked` has them, surest first."""
    if not has_solution:
        return {"Surest": photos.index[:COUNT].tolist(), "Least sure": photos.index[COUNT:][::-1][:COUNT].tolist()}
    right, wrong = photos.index[photos["right"]], photos.index[~photos["right"]]
    return {
        "Right, and surest of it": right[:COUNT].tolist(),
        "Right, and least sure of it": right[COUNT:][::-1][:COUNT].tolist(),
        "Wrong, and surest of it": wrong[:COUNT].tolist(),
    }


def queries(photos: pd.DataFrame, has_solution: bool) -> dict[str, list[str]]:
    """The ids of the queries that are shown, by their title; `photos` as `judged.retrieved` has them.

    Of equal precisions those with more relevant photos come first, as they were the harder ones.
    """
    if not has_solution:
        places = np.unique(np.linspace(0, len(photos) - 1, min(3 * QUERIES, len(photos))).astype(int))
        return {"Some queries": photos.index[places].tolist()}
    order = photos.rename_axis("id").sort_values(["precision", "relevant", "id"], ascending=[False, False, True]).index
    count = min(QUERIES, -(-len(order) // 3))
    middle = (len(order) - count) // 2
    best, median, worst = order[:count], order[middle : middle + count], order[len(order) - count :]
    median, worst = median.difference(best, sort=False), worst.difference(best.union(median), sort=False)
    return {"Best queries": best.tolist(), "Median queries": median.tolist(), "Worst queries": worst.tolist()}


def nearest_train_photos(ids: Collection[str], test_files: list[Path], kept: Gallery | None) -> dict[str, TrainPhoto]:
    """Of the train photos that vote the one most like each of some test photos, by id; those without features lack.

    Every features file of the train split is read once: 10 s for 1.58 million photos. Raises ValueError or OSError if
    one is damaged, gone, or of others than those that were searched.
    """
    found: list[np.ndarray] = []
    queries: list[str] = []
    for path in test_files:
        wanted = np.isin(outline(path).ids, list(ids))
        if wanted.any():
            features = load_features(path)
            queries += features.ids[wanted].tolist()
            found.append(features.embeddings[wanted].astype(np.float32))
    best: dict[str, TrainPhoto] = {}
    if kept is None or not queries:
        return best
    embeddings, begin = np.concatenate(found), 0
    for path in kept.files:
        features = load_features(path)
        landmark = kept.landmark[begin : (begin := begin + len(features.ids))]
        if len(landmark) != len(features.ids) or features.embeddings.shape[1] != embeddings.shape[1]:
            raise ValueError(f"{path} holds others than the train photos that were searched")
        votes = landmark >= 0
        if not votes.any():
            continue
        similarity = embeddings @ features.embeddings[votes].astype(np.float32).T
        place = similarity.argmax(axis=1)
        for query, row, column in zip(queries, similarity, place, strict=True):
            if query not in best or row[column] > best[query].similarity:
                best[query] = TrainPhoto(
                    str(features.ids[votes][column]), int(landmark[votes][column]), float(row[column])
                )
    return best


def shards_of(ids: Iterable[str], files: list[Path]) -> dict[str, str]:
    """The shard that each of some photos of a split is in, as its features files tell it."""
    wanted, found = list(ids), dict[str, str]()
    for path in files:
        there = outline(path).ids
        found |= dict.fromkeys(there[np.isin(there, wanted)].tolist(), path.stem)
    return found


def verified(work: Path) -> list[tuple[str, int, Path]]:
    """The id, landmark and picture of each photo whose matches a run has drawn; those of most inliers first."""
    table_csv, folder = work / "verification.csv", work / "report/verification"
    if not table_csv.exists():
        return []
    table = pd.read_csv(table_csv, dtype={"id": str}).sort_values("inliers", ascending=False, kind="stable")
    drawn = [(one.id, int(one.landmark), folder / f"{one.id}.png") for one in table.itertuples()]
    return [(*one, path) for *one, path in drawn if path.exists()]
