"""Features files to each query's nearest index photos: exact, in batches, in the memory of one part of the index."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import pandas as pd
from tqdm import tqdm

from command import InputError, check_stop
from features import Features, load_features, take
from threads import cores

faiss.omp_set_num_threads(min(faiss.omp_get_max_threads(), cores()))  # OpenMP knows no container

BATCH = 1024  # queries at once: a batch is a matrix product, a single query a scan of the part at the memory's speed


class Neighbours(NamedTuple):
    """The k index photos nearest to each of Q queries, most similar first, equal ones in the order of the index.

    Where the index has fewer than k photos, the places left over hold position -1 and similarity -inf. The predicted
    landmarks are None where the model has no head.
    """

    query_ids: np.ndarray  # (Q,) str
    index_ids: np.ndarray  # (N,) str
    similarities: np.ndarray  # (Q, k) float32: inner products of the embeddings
    positions: np.ndarray  # (Q, k) int32: rows of index_ids
    query_landmark: np.ndarray | None  # (Q,) int64
    index_landmark: np.ndarray | None  # (N,) int64


def search(
    query_files: list[Path], index_files: list[Path], k: int, parts: int = 1, wanted: pd.Index | None = None
) -> Neighbours:
    """Find for every query the k index photos with the largest inner product, in float32, over the whole index.

    The index is in memory as float32 one part at a time: consecutive files, as near to one `parts`-th of the photos as
    whole files come. Beside it there are one file, one batch of queries, and the result. Which photos are kept of
    those that tie for the k-th place is left to faiss.

    Args:
        wanted: ids of the index photos that may be found, as if the files held no others; all of them when None.

    Raises:
        InputError: there are no files, one is damaged, or they are not all of one model.
        Stopped: the process was asked to end.
    """
    if not query_files or not index_files:
        raise InputError("no features files to search: embed the queries and the index first")
    checked = _check([(path, None) for path in query_files] + [(path, wanted) for path in index_files])
    dimension = checked[0].embeddings.shape[1]
    query_ids, query_landmark = _labels(checked[: len(query_files)])
    index_ids, index_landmark = _labels(checked[len(query_files) :])
    counts = [len(file.ids) for file in checked[len(query_files) :]]

    similarities = np.full((len(query_ids), k), -np.inf, np.float32)
    positions = np.full((len(query_ids), k), -1, np.int32)
    with tqdm(total=len(query_ids) * len(index_ids), desc="search", unit="pair", unit_scale=True) as bar:
        for start, part in _parts(index_files, wanted, counts, dimension, parts):
            stop = 0
            for batch in (batch for path in query_files for batch in _batches(path)):
                check_stop()
                rows = slice(stop, stop := stop + len(batch))
                found, places = faiss.knn(batch, part, k, metric=faiss.METRIC_INNER_PRODUCT)
                places[places >= 0] += start
                similarities[rows], positions[rows] = faiss.merge_knn_results(
                    np.stack([similarities[rows], found]), np.stack([positions[rows], places]), keep_max=True
                )
                bar.update(len(batch) * len(part))
    for first in range(0, len(query_ids), BATCH):
        rows = slice(first, first + BATCH)
        similarities[rows][positions[rows] < 0] = -np.inf  # faiss puts the least float32 there
        order = np.lexsort((positions[rows], -similarities[rows]))
        similarities[rows] = np.take_along_axis(similarities[rows], order, axis=1)
        positions[rows] = np.take_along_axis(positions[rows], order, axis=1)
    return Neighbours(query_ids, index_ids, similarities, positions, query_landmark, index_landmark)


def split_evenly(counts: list[int], parts: int) -> list[list[int]]:
    """Group consecutive files, given how many photos each has, into at most `parts` groups of file numbers.

    A file goes where its middle photo falls, so no group is larger than an equal share and one file. Files without
    photos are left out.
    """
    groups: list[list[int]] = [[] for _ in range(parts)]
    total, start = sum(counts), 0
    for number, count in enumerate(counts):
        if count:
            groups[(2 * start + count) * parts // (2 * total)].append(number)
        start += count
    return [group for group in groups if group]


def _parts(
    files: list[Path], wanted: pd.Index | None, counts: list[int], dimension: int, parts: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Each part's first position and its (n, D) float32 embeddings, all in the same memory: use one before the next."""
    groups = split_evenly(counts, parts)
    largest = max((sum(counts[number] for number in group) for group in groups), default=0)
    memory = np.empty((largest, dimension), np.float32)
    start = 0
    for group in groups:
        size = 0
        for number in group:
            memory[size : size + counts[number]] = _read(files[number], wanted).embeddings
            size += counts[number]
        yield start, memory[:size]
        start += size


def _batches(path: Path) -> Iterator[np.ndarray]:
    """A file's embeddings as float32 in equal batches: faiss is slow on a last one of fewer than 20."""
    embeddings = _read(path).embeddings
    for batch in np.array_split(embeddings, len(embeddings) // BATCH + 1):
        yield batch.astype(np.float32)


def _check(files: list[tuple[Path, pd.Index | None]]) -> list[Features]:
    """Read every file once, to name a bad one in seconds and not hours into the search; embeddings are not kept."""
    checked: list[Features] = []
    for path, wanted in tqdm(files, desc="check features", unit="file"):
        check_stop()
        features = _read(path, wanted)
        checked.append(features._replace(embeddings=features.embeddings[:0].copy()))
        first, this = _kind(checked[0]), _kind(features)
        if first != this:
            raise InputError(
                f"features of two models: {files[0][0]} has {first}, {path} has {this}; "
                "delete the features folder and run the command again"
            )
    return checked


def _read(path: Path, wanted: pd.Index | None = None) -> Features:
    try:
        features = load_features(path)
    except ValueError as error:
        raise InputError(f"{error}; delete it and run the command again") from error
    return features if wanted is None else take(features, wanted.get_indexer(features.ids) >= 0)


def _kind(features: Features) -> str:
    return f"{features.embeddings.shape[1]} dimensions and {'no' if features.landmark is None else 'a'} landmark"


def _labels(files: list[Features]) -> tuple[np.ndarray, np.ndarray | None]:
    ids = np.concatenate([file.ids for file in files])
    return ids, None if files[0].landmark is None else np.concatenate([file.landmark for file in files])
