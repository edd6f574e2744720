"""Neighbours re-ranked by how they lie to each other: SuperGlobal and k-reciprocal, in the memory of one part."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from landmarks.neighbours.search import Neighbours, Search, delete_others, keep_result, read_kept
from landmarks.neighbours.search import search as exact_search
from landmarks.running.command import check_stop
from landmarks.running.features_file import load_features, outline
from landmarks.running.progress import Progress

CLOSE = 1e-5  # what products of the same float16 embeddings in float32 may differ by, in another order
FEWEST = 2**15  # photos whose embeddings are held at once, lest a small index in parts be read for every query

# The new similarities (m,) of a query's m nearest photos, from its embedding (D,), theirs (m, D), float32, their
# similarities (m,) and positions (m,).
Method = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def superglobal(
    query_files: list[Path], index_files: list[Path], neighbours: Neighbours, depth: int, keep: Path,
    count: int = 3, weight: float = 0.5, parts: int = 1,
) -> Neighbours:  # fmt: skip
    """Re-rank each query's best `depth` by the global features of SuperGlobal, refined by those near to them.

    The embedding x of each of these becomes (x + w sum s y) / (1 + w sum s), of the `count` others y among them that
    are nearest to it, with their similarities s and the `weight` w; a negative s counts 0. The query becomes the
    maximum, dimension by dimension, of the refined embeddings of the `count` + 1 that are nearest to it then. The new
    similarity is the mean of what the refined photo has to the query as it was and as it is. Refined embeddings are
    L2-normalised, which the published code does not do, so that this is a cosine like those it is compared with, by
    the landmark or among the neighbours that follow.

    Arguments and memory as for `rerank`. Source: Shao et al., "Global Features are All You Need for Image Retrieval and
    Reranking", ICCV 2023, section 4, and its code, github.com/ShihaoShao-GH/SuperGlobal (400, 9 and 0.15).
    """

    def method(query: np.ndarray, photos: np.ndarray, _: np.ndarray, __: np.ndarray) -> np.ndarray:
        return refine(query, photos, count, weight)

    settings = {"superglobal": [depth, count, weight]}
    return rerank(query_files, index_files, neighbours, depth, method, settings, keep, parts)


def refine(query: np.ndarray, photos: np.ndarray, count: int, weight: float) -> np.ndarray:
    """The similarities (m,) of SuperGlobal from the embeddings of a query (D,) and its neighbours (m, D)."""
    weights = np.maximum(photos @ photos.T, 0) * np.float32(weight)
    np.fill_diagonal(weights, np.inf)  # first among the nearest, whatever copies it has
    if len(weights) > count + 1:
        least = -np.partition(-weights, count, axis=1)[:, count, None]
        weights[weights < least] = 0
    np.fill_diagonal(weights, 1)
    refined = _unit(weights @ photos)
    before = refined @ query
    nearest = np.argsort(-before, kind="stable")[: count + 1]
    return (before + refined @ _unit(refined[nearest].max(axis=0))) / 2


def reciprocal(
    query_files: list[Path], index_files: list[Path], neighbours: Neighbours, depth: int, keep: Path,
    count: int = 10, expansion: int = 3, weight: float = 0.3, parts: int = 1, search: Search = exact_search,
) -> Neighbours:  # fmt: skip
    """Re-rank each query's best `depth` by how many neighbours it shares with each: k-reciprocal encoding.

    Two photos are reciprocal neighbours if each is among the `count` nearest of the other in the whole index, to which
    a query belongs as if it were in it alone. Of these sets, enlarged by those of their members that overlap by two
    thirds, and averaged over a photo and its `expansion` nearest, the Jaccard similarity J is taken; the new similarity
    is (1 - w) J + w s, from the old one s and the `weight` w. Members of a set that are not among a query's best
    `depth` are left out, so that should be some times `count`.

    Arguments and memory as for `rerank`, and 8 (`count` + 1) bytes an index photo: the index is searched for its own
    neighbours, once, in index / queries times the time of the search, and what is found is kept beside `keep`, in
    `index-in-index`. Source: Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017
    (20, 6 with the photo itself, and 0.3).
    """
    counts = count, (count + 1) // 2, expansion
    own = search(index_files, index_files, max(counts) + 1, parts, keep=keep.parent / "index-in-index")
    edges = own.similarities[:, list(counts)]  # a photo finds itself first, or a copy, which is as near

    def method(query: np.ndarray, photos: np.ndarray, similarities: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return (1 - weight) * jaccard(query, photos, edges[positions], counts) + weight * similarities

    settings = {"reciprocal": [depth, count, expansion, weight]}
    return rerank(query_files, index_files, neighbours, depth, method, settings, keep, parts)


def jaccard(query: np.ndarray, photos: np.ndarray, edges: np.ndarray, counts: tuple[int, int, int]) -> np.ndarray:
    """The Jaccard similarities (m,) of the k-reciprocal sets of a query and its neighbours.

    Args:
        query: (D,) its embedding.
        photos: (m, D) those of its neighbours.
        edges: (m, 3) how similar each neighbour is to the last of so many index photos, nearest to it, as `counts`.
        counts: nearest photos for the sets, for those that enlarge them, and to average over.
    """
    everything = np.concatenate([query[None], photos])
    similarities = everything @ everything.T
    own = np.sort(similarities[0, 1:])[::-1]
    least = np.concatenate([[[own[min(count, len(own)) - 1] for count in counts]], edges]) - CLOSE
    near, nearer, nearest = (similarities >= least[:, number, None] for number in range(3))
    for among in (near, nearer, nearest):
        np.fill_diagonal(among, True)
    sets, small = (near & near.T), (nearer & nearer.T).astype(np.float32)
    overlap = sets.astype(np.float32) @ small.T  # of each set and the small one of each photo
    joins = sets & (overlap >= 2 / 3 * small.sum(axis=1) - CLOSE)
    sets = sets | (joins.astype(np.float32) @ small > 0)
    encoded = np.where(sets, np.exp(similarities - 1), 0)  # exp(-distance), 1 - cosine
    encoded /= encoded.sum(axis=1, keepdims=True)
    encoded = (nearest / nearest.sum(axis=1, keepdims=True)).astype(np.float32) @ encoded
    members = np.flatnonzero(encoded[0])
    shared = np.minimum(encoded[0, members], encoded[1:, members]).sum(axis=1)
    return shared / (2 - shared)


def rerank(
    query_files: list[Path],
    index_files: list[Path],
    neighbours: Neighbours,
    depth: int,
    method: Method,
    settings: dict,
    keep: Path,
    parts: int = 1,
) -> Neighbours:
    """Sort each query's best `depth` neighbours by the similarities that a method gives them; the others follow.

    The others keep their order, and are lowered together where they would not follow. Memory: beside the neighbours
    one file, and the embeddings as stored of as many neighbours of some queries as one `parts`-th of the index has
    photos, or 32,768; for these queries the index is read once.

    Args:
        query_files, index_files: what `neighbours` are of.
        method: what the new similarities are.
        settings: what else the method depends on.
        keep: a folder for this alone, with a file for each query file that is done, so that a run that is stopped or
            killed goes on. Those of other neighbours, embeddings or settings, and damaged ones, are made anew.

    Raises:
        Stopped: the process was asked to end.
    """
    delete_others(keep, query_files)
    index = " ".join(str(outline(path).crc32) for path in index_files)
    at_once = max(1, max(len(neighbours.index_ids) // parts, FEWEST) // depth)
    similarities, positions = neighbours.similarities.copy(), neighbours.positions.copy()
    end = 0
    for path in Progress(query_files, f"re-rank by {next(iter(settings))}", unit=" files"):
        query = outline(path)
        rows = slice(end, end := end + len(query.ids))
        result = similarities[rows], positions[rows]
        made_of = hashlib.sha256(f"{json.dumps(settings)} {index} {query.crc32}".encode())
        for array in result:
            made_of.update(array.tobytes())
        stamp = made_of.hexdigest()
        if read_kept(keep / path.name, ["", stamp], result):
            continue
        embeddings = load_features(path).embeddings
        for first in range(0, len(embeddings), at_once):
            some = slice(first, first + at_once)
            _rerank(embeddings[some], index_files, result[0][some], result[1][some], depth, method)
        keep_result(keep / path.name, stamp, *result)
    return neighbours._replace(similarities=similarities, positions=positions)


def _rerank(
    queries: np.ndarray, index_files: list[Path], similarities: np.ndarray, positions: np.ndarray, depth: int,
    method: Method,
) -> None:  # fmt: skip
    """Re-rank some queries in place."""
    wanted = np.unique(positions[:, :depth])
    wanted = wanted[wanted >= 0]
    photos = np.concatenate([np.empty((0, queries.shape[1]), queries.dtype), *_read(index_files, wanted)])
    for query, sims, places in zip(queries.astype(np.float32), similarities, positions, strict=True):
        check_stop()
        found = int((places >= 0).sum())
        top = min(depth, found)
        if not top:
            continue
        own = photos[np.searchsorted(wanted, places[:top])].astype(np.float32)
        new = method(query, own, sims[:top], places[:top])
        order = np.argsort(-new, kind="stable")
        places[:top], sims[:top] = places[:top][order], new[order]
        if found > top:
            sims[top:found] += min(0, sims[top - 1] - sims[top])


def _read(files: list[Path], positions: np.ndarray) -> Iterator[np.ndarray]:
    """The embeddings at some positions of all files, ascending, as they are stored."""
    start = 0
    for path in files:
        check_stop()
        embeddings = load_features(path).embeddings
        first, last = np.searchsorted(positions, [start, start + len(embeddings)])
        yield embeddings[positions[first:last] - start]
        start += len(embeddings)


def _unit(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=-1, keepdims=True), np.finfo(np.float32).tiny)
