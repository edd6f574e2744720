"""Neighbours to better neighbours: nearer where photos agree on the landmark; and landmarks predicted too often."""

from collections.abc import Callable

import numpy as np

from landmarks.neighbours.search import BATCH, Neighbours
from landmarks.running.command import InputError, check_stop
from landmarks.running.progress import Progress


def same_landmark(neighbours: Neighbours, factor: float = 1.5, depth: int = 300, top: int = 100) -> Neighbours:
    """Bring neighbours of the query's own predicted landmark nearer, then keep the best `top`.

    The Euclidean distance of the L2-normalised embeddings, sqrt(2 - 2 similarity), is divided by `factor` for those of
    the best `depth` neighbours whose predicted landmark is the query's; equal distances stay in their order. The
    similarities returned are those of the new distances. Source: the 38th place of Google Landmark Retrieval 2019,
    github.com/mayukh18/Google-Landmark-Recognition-Retrieval-2019, which does not say whether its distance was squared,
    as faiss gives it; the factor on that one would be `factor` squared.

    Raises:
        InputError: the features have no predicted landmarks.
    """

    def distance(rows: slice, same: np.ndarray) -> np.ndarray:
        distances = np.sqrt(np.maximum(2 - 2 * neighbours.similarities[rows], 0))
        same[:, depth:] = False
        distances[same] /= factor
        return distances

    distances, positions = _sort(neighbours, distance, top)
    return neighbours._replace(similarities=1 - distances**2 / 2, positions=positions)


def soft_same_landmark(
    neighbours: Neighbours, index_score: np.ndarray, agree: float = 1.0, differ: float = 0.1, top: int = 100
) -> Neighbours:
    """Raise the similarity by `agree` * s where query and index photo have the same landmark, else take `differ` * s.

    s is `index_score`, (N,): how sure the index photo's landmark is. The best `top` are kept, equal ones in their
    order. Source: the first place of Google Landmark Retrieval 2021 (Henkel, arXiv 2110.03786, section 2.4.1), where a
    photo's landmark is that of the nearest train photo, s their cosine, and the best 750 are re-ranked.

    Raises:
        InputError: the features have no predicted landmarks.
    """
    sure = np.append(index_score, 0).astype(np.float32)  # position -1 reads the 0

    def distance(rows: slice, same: np.ndarray) -> np.ndarray:
        s = sure[neighbours.positions[rows]]
        return -(neighbours.similarities[rows] + np.where(same, agree * s, -differ * s))

    distances, positions = _sort(neighbours, distance, top)
    return neighbours._replace(similarities=-distances, positions=positions)


def sort_and_insert(
    neighbours: Neighbours, query_score: np.ndarray, index_score: np.ndarray, least: float = 0.6, top: int = 100
) -> Neighbours:
    """Neighbours of the query's landmark first, then the index photos of it that the search missed, then the others.

    Neighbours stay in their order; the missed ones come in by falling `index_score`, (N,), how sure the index photo's
    landmark is, and only where that plus the query's, `query_score` (Q,), is above `least`. The best `top` are kept.
    The similarities returned are 1 / place, as an inserted photo has none. Memory: the index sorted by landmark, never
    queries x index. Source: the first place of Google Landmark Retrieval 2019 (Yokoo et al., "Two-stage Discriminative
    Re-ranking for Large-scale Landmark Retrieval", CVPR Workshops 2020), whose code has 0.6, and for scores the sum of
    the vote of 3, divided by 3.

    Raises:
        InputError: the features have no predicted landmarks.
    """
    query_landmark, index_landmark = _landmarks(neighbours)
    by_landmark = np.lexsort((-index_score, index_landmark))
    ordered = index_landmark[by_landmark]
    begins, ends = np.searchsorted(ordered, query_landmark), np.searchsorted(ordered, query_landmark, "right")
    positions = np.full((len(neighbours.query_ids), top), -1, np.int32)
    for query, places in enumerate(Progress(neighbours.positions, "sort and insert", unit=" queries")):
        check_stop()
        found = places[places >= 0]
        same = index_landmark[found] == query_landmark[query]
        candidates = by_landmark[begins[query] : ends[query]][:top]
        sure = query_score[query] + index_score[candidates] > least
        missed = candidates[sure & ~np.isin(candidates, found)]
        row = np.concatenate([found[same], missed, found[~same]])[:top]
        positions[query, : len(row)] = row
    similarities = np.where(positions >= 0, 1 / np.arange(1, top + 1), -np.inf).astype(np.float32)
    return neighbours._replace(similarities=similarities, positions=positions)


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


def _sort(
    neighbours: Neighbours, distance: Callable[[slice, np.ndarray], np.ndarray], top: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `top` least distances of each query, float32, and their positions, int32; equal ones stay in their order.

    `distance` gives those of some rows from which of their neighbours have the query's landmark, (n, k) bool.
    """
    query_landmark, index_landmark = _landmarks(neighbours)
    index_landmark = np.append(index_landmark, -1)  # what position -1 reads, even of an empty index
    width = min(top, neighbours.positions.shape[1])
    distances = np.empty((len(neighbours.query_ids), width), np.float32)
    positions = np.empty((len(neighbours.query_ids), width), np.int32)
    for first in range(0, len(neighbours.query_ids), BATCH):
        rows = slice(first, first + BATCH)
        places = neighbours.positions[rows]
        found = distance(rows, index_landmark[places] == query_landmark[rows, None])
        order = np.argsort(found, axis=1, kind="stable")[:, :width]
        distances[rows] = np.take_along_axis(found, order, axis=1)
        positions[rows] = np.take_along_axis(places, order, axis=1)
    return distances, positions


def _landmarks(neighbours: Neighbours) -> tuple[np.ndarray, np.ndarray]:
    if neighbours.query_landmark is None or neighbours.index_landmark is None:
        raise InputError("re-ranking by landmark needs a model with a softmax head; turn re-ranking off")
    return neighbours.query_landmark, neighbours.index_landmark
