"""How fast and how large the search is: batches through features files against faiss asked one query at a time.

    python benchmarks/search.py [--photos 100000 --dimension 512 --queries 4000]

Top 100 by inner product of random L2-normalised embeddings. The loop's float32 index is in memory before the clock
starts; the search reads its files within the time it is given, in 1 part and in 6. A shared machine's speed swings, so
they take turns: compare within a turn, not between turns.
"""

import argparse
import os
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import faiss
import numpy as np

os.environ.setdefault("TQDM_DISABLE", "1")
sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project; there `search` is not this file

from features import Features, save_features  # noqa: E402
from search import search  # noqa: E402

K = 100


def write_files(folder: Path, name: str, embeddings: np.ndarray, count: int) -> list[Path]:
    files = []
    for number, rows in enumerate(np.array_split(embeddings, count)):
        files.append(folder / f"{name}_{number:03}.npz")
        save_features(files[-1], Features(np.array([f"{number:08x}{row:08x}" for row in range(len(rows))]), rows))
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=100_000, help="in the index (default: %(default)s)")
    parser.add_argument("--dimension", type=int, default=512, help="of an embedding (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=4_000, help="of the batched search (default: %(default)s)")
    parser.add_argument("--loop", type=int, default=200, help="queries asked one at a time (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="repetitions (default: %(default)s)")
    settings = parser.parse_args()

    rng = np.random.default_rng(0)
    embeddings = np.empty((settings.photos + settings.queries, settings.dimension), np.float16)
    for rows in np.array_split(embeddings, 100):
        normal = rng.standard_normal(rows.shape, np.float32)
        rows[:] = normal / np.linalg.norm(normal, axis=1, keepdims=True)
    queries, index = embeddings[: settings.queries], embeddings[settings.queries :]

    flat = faiss.IndexFlatIP(settings.dimension)
    flat.add(index.astype(np.float32))
    single = queries[: settings.loop].astype(np.float32)
    print(f"{settings.photos} photos x {settings.dimension}, top {K}, {faiss.omp_get_max_threads()} threads of faiss")
    print("turn   one at a time         1 part         6 parts   (queries/s)      ratio   6 parts")

    with tempfile.TemporaryDirectory() as folder:
        query_files = write_files(Path(folder), "query", queries, 4)
        index_files = write_files(Path(folder), "index", index, 24)
        results, peaks, ratios = {}, {}, []
        for turn in range(settings.turns):
            start = time.perf_counter()
            looped = np.concatenate([flat.search(query[None], K)[1] for query in single])
            rates = [len(single) / (time.perf_counter() - start)]
            for parts in (1, 6):
                tracemalloc.start()
                start = time.perf_counter()
                results[parts] = search(query_files, index_files, K, parts)
                rates.append(len(queries) / (time.perf_counter() - start))
                peaks[parts] = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
            ratios.append(rates[1] / rates[0])
            print(f"{turn + 1:4} {rates[0]:15.1f} {rates[1]:14.1f} {rates[2]:15.1f}"
                  f" {ratios[-1]:22.1f} {rates[2] / rates[0]:9.1f}")  # fmt: skip

    one, six = results[1], results[6]
    print(f"ratio, median turn: {np.median(ratios):.1f}")
    print(f"peak of arrays: {peaks[1] / 2**20:.0f} MiB in 1 part, {peaks[6] / 2**20:.0f} MiB in 6"
          f" (the index as float32: {index.size * 4 / 2**20:.0f} MiB)")  # fmt: skip
    print(f"rows alike in 1 part and 6: {np.mean(np.all(one.positions == six.positions, axis=1)):.2%};"
          f" largest difference of a similarity: {np.abs(one.similarities - six.similarities).max():.1e}")  # fmt: skip
    print(f"neighbours alike in the loop and 1 part: {np.mean(looped == one.positions[: len(looped)]):.2%}")


if __name__ == "__main__":
    main()
