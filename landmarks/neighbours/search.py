"""Features files to each query's nearest index photos: exact, in batches, in the memory of one part of the index."""

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import pandas as pd

from landmarks.running.command import InputError, check_stop
from landmarks.running.features_file import Features, Outline, load_features, outline
from landmarks.running.files import whole
from landmarks.running.progress import Progress
from landmarks.running.threads import cores, in_threads

faiss.omp_set_num_threads(min(faiss.omp_get_max_threads(), cores()))  # OpenMP knows no container
BATCH = 1024  # rows at once of what is done to results
QUERIES = 4096  # at once in faiss, whose own tile that is: with 1,024 it takes 1.2 to 1.3 times as long


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


class Part(NamedTuple):
    """Consecutive files of the index, which are searched together."""

    files: list[tuple[Path, np.ndarray | slice]]  # each with the rows that may be found
    start: int  # position of the first photo
    photos: int
    dimension: int


class Query(NamedTuple):
    """A file of queries, and the k nearest in the parts so far, best first."""

    path: Path
    similarities: np.ndarray  # (n, k) float32
    positions: np.ndarray  # (n, k) int32


# Brings the nearest of a part into what some queries have, in place, and yields their numbers as they are done.
Scan = Callable[[Part, list[Query], Progress], Iterator[int]]
Search = Callable[..., Neighbours]  # of the arguments of `search`, but for the scan


def scan_all(part: Part, queries: list[Query], bar: Progress) -> Iterator[int]:
    """The exact scan: all pairs, with the part in memory as float32."""
    _read_part(part.files, embeddings := np.empty((part.photos, part.dimension), np.float32))
    for number, query in enumerate(queries):
        stop = 0
        for found, places in nearest(embeddings_of(query.path), embeddings, query.positions.shape[1]):
            bring_in(query, slice(stop, stop := stop + len(places)), found, places, part.start)
            bar.update(len(places) * part.photos)
        yield number


def search(
    query_files: list[Path],
    index_files: list[Path],
    k: int,
    parts: int = 1,
    wanted: pd.Index | None = None,
    keep: Path | None = None,
    scan: Scan = scan_all,
    scanned_by: str = "",
) -> Neighbours:
    """Find for every query the k index photos with the largest inner product, in float32, over the whole index.

    The index is in memory as float32 one part at a time: consecutive files, as near to one `parts`-th of the photos as
    whole files come. Beside it there are two files, one batch of queries, and the result. Which photos are kept of
    those that tie for the k-th place is left to faiss. Embeddings are read once of each index file and once a part of
    each query file.

    Args:
        wanted: ids of the index photos that may be found, as if the files held no others; all of them when None.
        keep: a folder for this search alone, with a file for each query file: its k nearest in the parts so far (8 k
            bytes a query). So a search that is stopped, or killed, costs one part for one query file, and a finished
            one is read by whoever asks for as many neighbours or fewer, in whatever parts. Results of other embeddings
            or other `wanted` photos, and damaged ones, are made anew; other files there are deleted.
        scan: what searches a part; `scanned_by` tells its results from those of other scans.

    Raises:
        InputError: there are no files, one is damaged, or they are not all of one model.
        Stopped: the process was asked to end.
    """
    if not query_files or not index_files:
        raise InputError("no features files to search: embed the queries and the index first")
    outlines = outlines_of([*query_files, *index_files])
    queries, index = outlines[: len(query_files)], outlines[len(query_files) :]
    del outlines  # so that ids which are not wanted go
    chosen = [slice(None) if wanted is None else wanted.get_indexer(one.ids) >= 0 for one in index]
    index = [
        one._replace(ids=one.ids[rows], landmark=None if one.landmark is None else one.landmark[rows])
        for one, rows in zip(index, chosen, strict=True)
    ]
    counts = [len(one.ids) for one in index]
    groups = split_evenly(counts, parts)
    photos = [sum(counts[number] for number in group) for group in groups]
    ends = np.cumsum([len(one.ids) for one in queries])
    rows_of = [slice(end - len(one.ids), end) for one, end in zip(queries, ends, strict=True)]

    similarities = np.full((ends[-1], k), -np.inf, np.float32)
    positions = np.full((ends[-1], k), -1, np.int32)
    results = [(similarities[rows], positions[rows]) for rows in rows_of]
    stamps = [_stamps(f"{query.crc32}{scanned_by}", index, chosen, groups) for query in queries]
    done = [0] * len(queries)  # in so many parts each query file was searched before
    if keep is not None:
        delete_others(keep, query_files)
        done = list(map(read_kept, (keep / path.name for path in query_files), stamps, results))

    already = sum(len(query.ids) * sum(photos[:searched]) for query, searched in zip(queries, done, strict=True))
    total = len(similarities) * sum(photos)
    with Progress(total=total, initial=already, desc="search", unit="pair", unit_scale=True) as bar:
        for number in range(min(done), len(groups)):
            rows = [(index_files[file], chosen[file]) for file in groups[number]]
            part = Part(rows, sum(photos[:number]), photos[number], queries[0].dimension)
            todo = [place for place, searched in enumerate(done) if searched <= number]
            for finished in scan(part, [Query(query_files[place], *results[place]) for place in todo], bar):
                place = todo[finished]
                if keep is not None:
                    keep_result(keep / query_files[place].name, stamps[place][number + 1], *results[place])
    _order(similarities, positions)
    (query_ids, query_landmark), (index_ids, index_landmark) = _labels(queries), _labels(index)
    return Neighbours(query_ids, index_ids, similarities, positions, query_landmark, index_landmark)


class Index:
    """Index photos in memory, as float32, for queries that come one at a time; `search` is for thousands at once.

    Args:
        files: features files.
        chosen: which of their photos may be found, (all,) bool, in their order; all of them when None.
        more: photos that come after those of the files, if any do.

    Raises:
        InputError: a file is damaged, or they are not all of one model; or `chosen` is of others.
    """

    def __init__(self, files: list[Path], chosen: np.ndarray | None = None, more: Features | None = None):
        outlines = outlines_of(files)
        ends = np.cumsum([len(one.ids) for one in outlines])
        if chosen is None:
            chosen = np.ones(ends[-1], bool)
        if chosen.shape != (ends[-1],):
            raise InputError(f"{chosen.size:,} photos may be found or not, and {ends[-1]:,} have features")
        rows = np.split(chosen, ends[:-1])
        counts = [some.sum() for some in rows]
        ids = [np.concatenate([one.ids for one in outlines])[chosen]]
        if more is not None:
            ids.append(more.ids)
            counts.append(len(more.ids))
        self.ids = np.concatenate(ids)  # (N,) str
        self.file = np.repeat(np.arange(len(counts)), counts)  # (N,): which one each is in
        self._embeddings = np.empty((len(self.ids), outlines[0].dimension), np.float32)
        _read_part(list(zip(files, rows, strict=True)), self._embeddings[: len(ids[0])])
        if more is not None:
            self._embeddings[len(ids[0]) :] = more.embeddings

    def nearest(self, queries: Features, k: int) -> Neighbours:
        """As `search` finds them, but that there are no predicted landmarks."""
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)  # faiss shares even one query out among its threads, and is the slower for it
        try:
            similarities, places = _faiss_knn(queries.embeddings.astype(np.float32), self._embeddings, k)
        finally:
            faiss.omp_set_num_threads(threads)
        positions = places.astype(np.int32)
        _order(similarities, positions)
        return Neighbours(queries.ids, self.ids, similarities, positions, None, None)


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


def outlines_of(files: list[Path]) -> list[Outline]:
    """Read all but the embeddings, to name a bad file in seconds and not hours into the search."""
    outlines: list[Outline] = []
    for path in files:
        check_stop()
        with _named():
            outlines.append(outline(path))
        first, this = _kind(outlines[0]), _kind(outlines[-1])
        if first != this:
            raise InputError(
                f"features of two models: {files[0]} has {first}, {path} has {this}; "
                "delete the features folder and run the command again"
            )
    return outlines


def embeddings_of(path: Path) -> np.ndarray:
    """(n, D) float16 or float32, as the file has them. Raises InputError if it is damaged."""
    with _named():
        return load_features(path).embeddings


def _read_part(files: list[tuple[Path, np.ndarray | slice]], part: np.ndarray) -> None:
    """Fill `part`, (n, D) float32, with the chosen rows of some files; the next one is read meanwhile."""
    size = 0
    for embeddings in in_threads(lambda file: embeddings_of(file[0])[file[1]], files, ahead=2, threads=1):
        check_stop()
        part[size : (size := size + len(embeddings))] = embeddings
        del embeddings  # before a third one is begun


def nearest(queries: np.ndarray, part: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Similarities (n, k) and places (n, k) of the photos of a part, (N, D) float32, for one batch after another."""
    knn, batches = _faiss_knn, len(queries) // QUERIES + 1  # faiss is slow on a last one of under 20
    if accelerated():
        from landmarks.neighbours.tiles import knn

        batches = 1  # a tile of the index is on the device once
    for batch in np.array_split(queries, batches):
        check_stop()
        yield knn(batch.astype(np.float32), part, k)


def bring_in(query: Query, rows: slice, similarities: np.ndarray, places: np.ndarray, start: int) -> None:
    """Take what was found in a part, which begins at the position `start`, into what some queries have so far."""
    query.similarities[rows], query.positions[rows] = faiss.merge_knn_results(
        np.stack([query.similarities[rows], similarities]),
        np.stack([query.positions[rows], np.where(places < 0, -1, places + start)], dtype=np.int64),
        keep_max=True,
    )


def _faiss_knn(queries: np.ndarray, photos: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    return faiss.knn(queries, photos, k, metric=faiss.METRIC_INNER_PRODUCT)


def accelerated() -> bool:
    """Whether Keras, which is there where photos were embedded, has an accelerator."""
    if "keras" not in sys.modules:
        return False
    from landmarks.networks.devices import accelerated

    return accelerated()


def _order(similarities: np.ndarray, positions: np.ndarray) -> None:
    """Put equal similarities in the order of the index, and -inf where there is no photo, in place."""
    for first in range(0, len(similarities), BATCH):
        rows = slice(first, first + BATCH)
        similarities[rows][positions[rows] < 0] = -np.inf  # faiss puts the least float32 there
        order = np.lexsort((positions[rows], -similarities[rows]))
        similarities[rows] = np.take_along_axis(similarities[rows], order, axis=1)
        positions[rows] = np.take_along_axis(positions[rows], order, axis=1)


def _stamps(query: str, index: list[Outline], chosen: list[np.ndarray | slice], groups: list[list[int]]) -> list[str]:
    """What a query file's result is made of after 0, 1, ... all parts of the index: the embeddings, in their order.

    The digest after some parts has nothing of those that come, so that a file which has to be embedded again spoils
    only the parts from its own on.
    """
    digest = hashlib.sha256(query.encode())
    stamps = [digest.hexdigest()]
    for group in groups:
        for number in group:
            digest.update(f" {index[number].crc32} ".encode())
            if isinstance(rows := chosen[number], np.ndarray):
                digest.update(np.packbits(rows).tobytes())
        stamps.append(digest.hexdigest())
    return stamps


def keep_result(path: Path, made_of: str, similarities: np.ndarray, positions: np.ndarray) -> None:
    with whole(path) as part:
        np.savez(part, made_of=made_of, similarities=similarities, positions=positions)


def read_kept(path: Path, stamps: list[str], result: tuple[np.ndarray, np.ndarray]) -> int:
    """Fill in what was found before, and return in how many parts of the index; 0 if nothing is kept that fits."""
    similarities, positions = result
    k = similarities.shape[1]
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            done = stamps.index(str(arrays["made_of"]))
            found, places = arrays["similarities"], arrays["positions"]
        if found.shape != places.shape or found.shape[1] < k:
            return 0
        similarities[:], positions[:] = found[:, :k], places[:, :k]
    except Exception:  # numpy and zipfile raise almost anything on a damaged file
        return 0
    return done


def delete_others(folder: Path, files: list[Path]) -> None:
    names = {path.name for path in files}
    for path in folder.glob("*.npz"):
        if path.name not in names:
            path.unlink()


@contextmanager
def _named() -> Iterator[None]:
    """Say what to do about a damaged features file."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{error}; delete it and run the command again") from error


def _kind(file: Outline) -> str:
    return f"{file.dimension} dimensions and {'no' if file.landmark is None else 'a'} landmark"


def _labels(files: list[Outline]) -> tuple[np.ndarray, np.ndarray | None]:
    ids = np.concatenate([file.ids for file in files])
    return ids, None if files[0].landmark is None else np.concatenate([file.landmark for file in files])
