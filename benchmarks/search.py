"""How fast the exact search is, and what it needs: beside faiss in three ways, and a matrix product alone.

    python benchmarks/search.py [--photos 100000 --dimensions 512 2048 --queries 4000] [--json FILE]

Top 100 by inner product of random L2-normalised embeddings. `search` reads its features files on the clock, one of
queries, with fewer than a shard of the public test set has; faiss has its float32 index in memory before that. `one at
a time` is a script's loop; it runs with faiss held to one thread too, since faiss 1.15 shares even one query out among
its threads and is the slower for it; `whole faiss index` has all queries at once; `sgemm` is the products alone,
without a top 100. Then an index 10 times as large on disk, in as many more parts: products a second, and the peak of
arrays, in which each photo has its id, 64 bytes.
"""

import argparse
import os
import sys
import tempfile
import tracemalloc
from pathlib import Path

import faiss
import numpy as np

os.environ.setdefault("TQDM_DISABLE", "1")
sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project; there `search` is not this file

from benchmarks import timing
from landmarks.neighbours.search import search
from landmarks.running.features_file import Features, save_features

K = 100
ROWS = 1024  # of a product of sgemm


def write_files(folder: Path, name: str, embeddings: np.ndarray, count: int) -> list[Path]:
    files = []
    for number, rows in enumerate(np.array_split(embeddings, count)):
        files.append(folder / f"{name}_{number:03}.npz")
        save_features(files[-1], Features(np.array([f"{number:08x}{row:08x}" for row in range(len(rows))]), rows))
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=100_000, help="in the index (default: %(default)s)")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[512, 2048], help="of an embedding")
    parser.add_argument("--queries", type=int, default=4_000, help="of the batched search (default: %(default)s)")
    parser.add_argument("--loop", type=int, default=100, help="queries asked one at a time (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="repetitions (default: %(default)s)")
    parser.add_argument("--busy", action="store_true", help="measure on a busy machine too")
    parser.add_argument("--json", type=Path, help="add lines to this file")
    given = parser.parse_args()
    timing.require_idle(given.busy)
    print(timing.machine())
    for dimension in given.dimensions:
        with tempfile.TemporaryDirectory() as folder:
            compare(Path(folder), dimension, given)
            grow(Path(folder), dimension, given)


def compare(folder: Path, dimension: int, given: argparse.Namespace) -> None:
    queries, index = drawn(given.queries, dimension, 0), drawn(given.photos, dimension, 1)
    query_files, index_files = write_files(folder, "query", queries, 1), write_files(folder, "index", index, 20)
    flat = faiss.IndexFlatIP(dimension)
    flat.add(index.astype(np.float32))
    asked, threads = queries.astype(np.float32), faiss.omp_get_max_threads()
    whole = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * dimension).reshape(flat.ntotal, dimension)

    def loop(count: int) -> float:
        faiss.omp_set_num_threads(count)
        for query in asked[: given.loop]:
            flat.search(query[None], K)
        faiss.omp_set_num_threads(threads)
        return given.loop

    def products() -> float:
        for rows in np.array_split(asked, -(-len(asked) // ROWS)):
            rows @ whole.T
        return given.queries

    def ours(parts: int) -> float:
        search(query_files, index_files, K, parts)
        return given.queries

    def all_at_once() -> float:
        flat.search(asked, K)
        return given.queries

    ways = {
        "search": lambda: ours(1), "in 6 parts": lambda: ours(6), "one at a time": lambda: loop(threads),
        "one at a time, 1 thread": lambda: loop(1), "whole faiss index": all_at_once, "sgemm": products,
    }  # fmt: skip
    rates = timing.in_turns(ways, given.turns)
    pairs = [
        ("search", "one at a time", 25.0), ("search", "one at a time, 1 thread", 25.0),
        ("search", "whole faiss index", 1.0), ("search", "sgemm", 0.85 if dimension >= 2048 else 0.75),
    ]  # fmt: skip
    question = f"exact top {K} of {given.photos:,} photos x {dimension}"
    timing.report(question, rates, "queries/s", pairs, given.json)
    one, six = search(query_files, index_files, K, 1), search(query_files, index_files, K, 6)
    print(f"rows alike in 1 part and 6: {np.mean(np.all(one.positions == six.positions, axis=1)):.2%}; largest "
          f"difference of a similarity: {np.abs(one.similarities - six.similarities).max():.1e}")  # fmt: skip


def grow(folder: Path, dimension: int, given: argparse.Namespace) -> None:
    """The files of `compare`, and a tenth of them, with 5,000 photos in memory at a time."""
    queries = write_files(folder, "few", drawn(given.queries // 4, dimension, 0), 1)
    files = sorted(folder.glob("index_*.npz"))
    peaks: dict[str, list[float]] = {}

    def ask(name: str, some: list[Path]) -> float:
        tracemalloc.start()
        search(queries, some, K, len(some))
        peaks.setdefault(name, []).append(tracemalloc.get_traced_memory()[1] / 1e6)
        tracemalloc.stop()
        return len(some) / len(files) * given.photos / 1e6 * (given.queries // 4)

    tenth, full = f"{given.photos // 10:,} photos", f"{given.photos:,} photos"
    ways = {tenth: lambda: ask(tenth, files[: len(files) // 10]), full: lambda: ask(full, files)}
    rates = timing.in_turns(ways, given.turns)
    question = f"an index 10 times as large, {dimension} dimensions"
    timing.report(f"{question}: time", rates, "million products/s", [(full, tenth, 0.95)], given.json)
    timing.report(f"{question}: peak of arrays", peaks, "MB", [(tenth, full, 0.95)], given.json)


def drawn(count: int, dimension: int, seed: int) -> np.ndarray:
    """(count, dimension) float16, L2-normalised."""
    rng = np.random.default_rng(seed)
    embeddings = np.empty((count, dimension), np.float16)
    for rows in np.array_split(embeddings, 100):
        normal = rng.standard_normal(rows.shape, np.float32)
        rows[:] = normal / np.linalg.norm(normal, axis=1, keepdims=True)
    return embeddings


if __name__ == "__main__":
    main()
