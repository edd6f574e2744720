"""Neighbours to better neighbours."""

import numpy as np

from command import InputError
from search import BATCH, Neighbours


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
    if neighbours.query_landmark is None or neighbours.index_landmark is None:
        raise InputError("re-ranking by landmark needs a model with a softmax head; turn re-ranking off")
    index_landmark = np.append(neighbours.index_landmark, -1)  # what position -1 reads, even of an empty index
    width = min(top, neighbours.positions.shape[1])
    similarities = np.empty((len(neighbours.query_ids), width), np.float32)
    positions = np.empty((len(neighbours.query_ids), width), np.int32)
    for first in range(0, len(neighbours.query_ids), BATCH):
        rows = slice(first, first + BATCH)
        places = neighbours.positions[rows]
        distances = np.sqrt(np.maximum(2 - 2 * neighbours.similarities[rows], 0))
        same = index_landmark[places] == neighbours.query_landmark[rows, None]
        same[:, depth:] = False
        distances[same] /= factor
        order = np.argsort(distances, axis=1, kind="stable")[:, :width]
        positions[rows] = np.take_along_axis(places, order, axis=1)
        similarities[rows] = 1 - np.take_along_axis(distances, order, axis=1) ** 2 / 2
    return neighbours._replace(similarities=similarities, positions=positions)
