"""How fast and how large the search is: batches through features files against faiss asked one query at a time.

    python benchmarks/search.py [--photos 100000 --dimension 512 --queries 4000]

Top 100 by inner product of random L2-normalised embeddings. The loop's float32 index is in memory before the clock
starts; the search reads its files on the clock, in 1 part and in 6. The loop runs twice: as a script would have it, and
with faiss held to one thread, since faiss 1.15 shares even one query out among its threads and is the slower for it.
A shared machine's speed swings, so all take turns: compare within a turn, not between turns.
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

from landmarks.neighbours.search import search
from landmarks.running import history
from landmarks.running.features_file import Features, save_features

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
    print(history.stamp(), flush=True)

    rng = np.random.default_rng(0)
    embeddings = np.empty((settings.photos + settings.queries, settings.dimension), np.float16)
    for rows in np.array_split(embeddings, 100):
        normal = rng.standard_normal(rows.shape, np.float32)
        rows[:] = normal / np.linalg.norm(normal, axis=1, keepdims=True)
    queries, index = embeddings[: settings.queries], embeddings[settings.queries :]

    flat = faiss.IndexFlatIP(settings.dimension)
    flat.add(index.astype(np.float32))
    single = queries[: settings.loop].astype(np.float32)
    threads = faiss.omp_get_max_threads()
    print(f"faiss {faiss.__version__}, {threads} threads; {settings.photos} photos x {settings.dimension}, top {K}")
    print("queries/s: loop  loop, 1 thread      1 part     6 parts   1 part / loop  1 part / loop, 1 thread")

    results, peaks, rates = {}, {}, []
    with tempfile.TemporaryDirectory() as folder:
        query_files = write_files(Path(folder), "query", queries, 4)
        index_files = write_files(Path(folder), "index", index, 24)
        for _ in range(settings.turns):
            seconds = []
            for loop_threads in (threads, 1):
                faiss.omp_set_num_threads(loop_threads)
                start = time.perf_counter()
                looped = np.concatenate([flat.search(query[None], K)[1] for query in single])
                seconds.append((time.perf_counter() - start) / len(single))
            faiss.omp_set_num_threads(threads)
            for parts in (1, 6):
                tracemalloc.start()
                start = time.perf_counter()
                results[parts] = search(query_files, index_files, K, parts)
                seconds.append((time.perf_counter() - start) / len(queries))
                peaks[parts] = tracemalloc.get_traced_memory()[1] / 2**20
                tracemalloc.stop()
            loop, loop_one_thread, one_part, six_parts = 1 / np.array(seconds)
            rates.append((loop, loop_one_thread, one_part, six_parts, one_part / loop, one_part / loop_one_thread))
            print("{:15.1f} {:15.1f} {:11.1f} {:11.1f} {:15.1f} {:24.1f}".format(*rates[-1]))

    one, six = results[1], results[6]
    print("ratios, median turn: {:.1f} and {:.1f}".format(*np.median(rates, axis=0)[4:]))
    print(f"peak of arrays: {peaks[1]:.0f} MiB in 1 part, {peaks[6]:.0f} MiB in 6 (float32 index: {index.size >> 18})")
    print(f"rows alike in 1 part and 6: {np.mean(np.all(one.positions == six.positions, axis=1)):.2%}")
    print(f"largest difference of a similarity: {np.abs(one.similarities - six.similarities).max():.1e}")
    print(f"neighbours alike in the loop and 1 part: {np.mean(looped == one.positions[: len(looped)]):.2%}")


if __name__ == "__main__":
    main()
