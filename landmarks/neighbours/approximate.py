"""Neighbours among tens of millions of photos: candidates by IVF-PQ, their similarities exact, from the features files.

The photos are in lists, by the nearest of some thousand centroids; a query looks through the lists of the centroids
that are nearest to it. Of a photo a list has a code, half a byte for every 4 dimensions of what its embedding and the
centroid differ by. Of the photos that seem nearest by their codes the features files tell the similarities, as the
exact search has them. Sources: Jegou, Douze and Schmid, "Product quantization for nearest neighbor search", PAMI 2011;
and, for codes of 4 bits, as faiss scans them, Andre, Kermarrec and Le Scouarnec, "Cache locality is not enough", VLDB
2015.
"""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd

from landmarks.neighbours import distributed
from landmarks.neighbours import search as exact
from landmarks.neighbours.search import BATCH, Neighbours, Part, Query, Search, embeddings_of, outlines_of
from landmarks.running.arrays import open_npz
from landmarks.running.command import check_stop
from landmarks.running.digest import digest
from landmarks.running.files import whole
from landmarks.running.progress import Progress
from landmarks.running.settings import RunSettings
from landmarks.running.threads import in_threads

inner_products = faiss.pairwise_indexed_inner_product  # type: ignore[attr-defined]  # its stubs lack it
LISTS = "lists"  # in a work folder
FEWEST = 50_000  # index photos: among fewer the exact search is as fast
BITS = 4  # of a code's number: the 16 sums that it selects among lie in a processor's registers
WIDTH = 4  # dimensions that such a number stands for
LISTED = 40  # photos that k-means has for each centroid
PROBED = 16  # lists that a query looks through
CANDIDATES = 5  # photos whose similarities are told, for each one that is asked for
LEAST = 500  # of these
PAIRS = 2**25  # of queries and candidates at once: 0.7 GB of positions, similarities and their order


def chosen(run: RunSettings) -> Search:
    """The search that the settings `search` and `cluster` name; the approximate one is this process' alone."""
    return distributed.chosen(run.cluster) if run.search == "exact" else partial(search, codes=run.work / LISTS)


def search(
    query_files: list[Path],
    index_files: list[Path],
    k: int,
    parts: int = 1,
    wanted: pd.Index | None = None,
    keep: Path | None = None,
    *,
    codes: Path,
) -> Neighbours:
    """As `search.search`, but that it may miss some of the nearest photos; those that it finds have their similarities.

    The lists are on disk, a file of codes for each of the index, and in memory one part at a time: as many files as
    take no more memory than a part of the exact search does, 14 times as many photos of 512 dimensions. Features files
    are read twice to make the codes, and then once for every 67,000 queries of 500 candidates, one in memory at a time.

    Args:
        codes: the folder of the lists, whatever is `wanted` of them: 66 bytes a photo of 512 dimensions. What is there
            of the same embeddings is not made again, so that a search which was stopped goes on.
    """
    files = dict(zip(index_files, outlines_of(index_files), strict=True))
    dimension = files[index_files[0]].dimension if files else 0
    if sum(len(one.ids) for one in files.values()) < FEWEST:
        return exact.search(query_files, index_files, k, parts, wanted, keep)
    folder = codes / "-".join(index_files[0].parent.parts[-2:])  # features-index
    lists = Lists({path: (one.crc32, len(one.ids)) for path, one in files.items()}, dimension, folder)
    lists.train()
    lists.fill()
    memory = 2 * (lists.index.sa_code_size() + 8) / (4 * dimension)  # as codes come, and as they are scanned
    scan = partial(_scan, lists, max(CANDIDATES * k, LEAST))
    return exact.search(
        query_files, index_files, k, math.ceil(parts * memory), wanted, keep, scan, f"{lists.made_from} {PROBED}"
    )


def lists_of(photos: int) -> int:
    """How many lists so many photos are in: 512 for a million, 2,048 for ten."""
    return 2 ** round(math.log2(0.65 * math.sqrt(photos)))


class Lists:
    """The inverted lists of some features files, on disk.

    Args:
        files: of each the checksum of its embeddings, and how many they are.
        folder: where the lists are kept: `quantizer.npz`, and the codes in a file of the name of each features file.
    """

    def __init__(self, files: dict[Path, tuple[int, int]], dimension: int, folder: Path):
        self.files, self.folder = files, folder
        self.photos = sum(count for _, count in files.values())
        count = lists_of(self.photos)
        self.made_from = digest(list(files.values()), count, BITS, WIDTH, LISTED)
        numbers = math.ceil(dimension / WIDTH)
        # A rotation keeps inner products, and lets the numbers of a code tell about as much each.
        self.rotation = faiss.RandomRotationMatrix(dimension, numbers * WIDTH)
        self.rotation.init(0)
        self.centroids = faiss.IndexFlatIP(numbers * WIDTH)
        self.index = faiss.IndexIVFPQ(self.centroids, numbers * WIDTH, count, numbers, BITS, faiss.METRIC_INNER_PRODUCT)

    def train(self) -> None:
        """Find the centroids, by spherical k-means of a sample, and what codes stand for; or read them."""
        path, index = self.folder / "quantizer.npz", self.index
        kept = _read(path, self.made_from)
        if kept is None:
            print(f"{self.folder}: {index.nlist:,} lists of {self.photos:,} photos")
            rng, share, sample = np.random.default_rng(0), index.nlist * LISTED / self.photos, []
            for file in Progress(self.files, "sample of the index", unit=" files", leave=False):
                check_stop()
                embeddings = embeddings_of(file)
                sample.append(self.rotated(embeddings[rng.random(len(embeddings)) < share]))
            index.cp.niter, index.cp.seed = 10, 0
            index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, 2 * LISTED
            index.train(np.concatenate(sample))
            kept = {"centroids": self.centroids.reconstruct_n(), "numbers": faiss.vector_to_array(index.pq.centroids)}
            _keep(path, self.made_from, **kept)
        else:
            self.centroids.add(kept["centroids"])
            faiss.copy_array_to_vector(kept["numbers"], index.pq.centroids)
            index.is_trained = True

    def fill(self) -> None:
        """Write the codes that are not there yet."""
        for file in Progress(self.files, "lists", unit=" files"):
            check_stop()
            if self.codes(file) is None:
                codes = self.index.sa_encode(self.rotated(embeddings_of(file)))
                _keep(self.folder / file.name, self._stamp(file), codes=codes)

    def rotated(self, embeddings: np.ndarray) -> np.ndarray:
        return self.rotation.apply(embeddings.astype(np.float32))

    def codes(self, file: Path) -> np.ndarray | None:
        """(n, bytes) uint8: the list that each photo of a features file is in, and its code; None if not there yet."""
        kept = _read(self.folder / file.name, self._stamp(file))
        return None if kept is None else kept["codes"]

    def of(self, part: Part) -> faiss.IndexIVFPQFastScan:
        """The lists of a part, in memory; a photo is named by its place in the part."""
        start = 0
        for file, rows in part.files:
            check_stop()
            codes = self.codes(file)
            assert codes is not None  # `fill` has written them
            codes = np.ascontiguousarray(codes[rows])
            self.index.add_sa_codes(codes, np.arange(start, start := start + len(codes)))
        packed = faiss.IndexIVFPQFastScan(self.index)
        self.index.reset()
        packed.nprobe = PROBED
        return packed

    def _stamp(self, file: Path) -> str:
        return f"{self.made_from} {self.files[file][0]}"


def _scan(lists: Lists, count: int, part: Part, queries: list[Query], bar: Progress) -> Iterator[int]:
    """As `search.Scan`: the similarities of `count` candidates for each query, and of no other photo."""
    index = lists.of(part)
    at_once = max(1, PAIRS // count)
    places = list(range(len(queries)))
    while places:
        sizes = np.cumsum([len(queries[place].positions) for place in places])
        these = places[: max(1, int((sizes <= at_once).sum()))]
        places = places[len(these) :]
        embeddings = np.concatenate([embeddings_of(queries[place].path) for place in these])
        candidates = np.empty((len(embeddings), count), np.int32)
        for first in range(0, len(embeddings), BATCH):
            check_stop()
            rows = slice(first, first + BATCH)
            candidates[rows] = index.search(lists.rotated(embeddings[rows]), count)[1]
            bar.update(len(embeddings[rows]) * part.photos)
        similarities = _similarities(embeddings.astype(np.float32), candidates, part)
        begin = 0
        for place in these:
            query = queries[place]
            rows = slice(begin, begin := begin + len(query.positions))
            _bring_in(query, similarities[rows], candidates[rows], part.start)
            yield place


def _similarities(queries: np.ndarray, candidates: np.ndarray, part: Part) -> np.ndarray:
    """The inner products of each query with its candidates, (Q, count) float32; -inf where there is none, at -1."""
    count, places = candidates.shape[1], candidates.ravel()
    similarities = np.full(len(places), -np.inf, np.float32)
    order = places.argsort()
    end, first = np.count_nonzero(places < 0), 0
    read = in_threads(embeddings_of, [file for file, _ in part.files], ahead=2)
    for (_, rows), embeddings in zip(part.files, read, strict=True):
        check_stop()
        embeddings = embeddings[rows]
        begin, end = end, np.searchsorted(places, first + len(embeddings), sorter=order)
        pairs = order[begin:end]
        seen, to = np.unique(places[pairs], return_inverse=True)
        these, of, found = embeddings[seen - first].astype(np.float32), pairs // count, np.empty(len(pairs), np.float32)
        inner_products(queries.shape[1], len(pairs), *map(faiss.swig_ptr, (queries, of, these, to, found)))
        similarities[pairs] = found
        first += len(embeddings)
    return similarities.reshape(candidates.shape)


def _bring_in(query: Query, similarities: np.ndarray, candidates: np.ndarray, start: int) -> None:
    """Take the k nearest of the candidates, which are counted from the position `start`, into those so far."""
    k = query.positions.shape[1]
    for first in range(0, len(similarities), BATCH):
        rows = slice(first, first + BATCH)
        best = np.argsort(-similarities[rows], axis=1)[:, :k]
        found, places = (np.take_along_axis(all_[rows], best, axis=1) for all_ in (similarities, candidates))
        exact.bring_in(query, rows, found, places, start)


def _read(path: Path, made_from: str) -> dict[str, np.ndarray] | None:
    """The arrays of a file that `_keep` wrote; None if there is none, or one that was made from anything else."""
    try:
        with open_npz(path) as (arrays, _):
            return dict(arrays) if str(arrays["made_from"]) == made_from else None
    except (FileNotFoundError, KeyError, ValueError):
        return None


def _keep(path: Path, made_from: str, **arrays: np.ndarray) -> None:
    everything: dict[str, Any] = {"made_from": made_from, **arrays}
    with whole(path) as part:
        np.savez(part, **everything)
