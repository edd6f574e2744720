"""Processor seconds and memory of re-ranking by neighbours, beside those of the search.

    python benchmarks/rerank.py [--photos 60000 --dimension 512 --queries 1000 --depth 300 --parts 6]

Random L2-normalised float16 embeddings around 3,000 centres, in files as large as the public mirror's shards. Each step
has a process of its own, for its peak memory, and finds what the ones before it have kept; a first one does nothing,
which is what the imports take. Processor seconds of one thread do not count what else the machine does. The last lines
state what follows for the 761,757 index and 117,577 test photos of the public mirror: searches grow with index times
queries, re-ranking with the queries, and its reading of the index with the index and how often it is read.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

os.environ.setdefault("TQDM_DISABLE", "1")
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # threads that wait for a busy core would count, too
    os.environ[name] = "1"
sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project

from landmarks.neighbours import neighbourhood
from landmarks.neighbours.search import search
from landmarks.running import history
from landmarks.running.features_file import Features, load_features, save_features

SHARD = 7618  # photos in a shard of the public index
INDEX, TEST, CENTRES = 761_757, 117_577, 3_000
STEPS = ("imports", "search", "read the index", "superglobal", "search the index for itself", "reciprocal")


def write_files(folder: Path, name: str, photos: int, dimension: int) -> None:
    centres = np.random.default_rng(0).standard_normal((CENTRES, dimension), np.float32)
    rng = np.random.default_rng(len(name))
    for number, begin in enumerate(range(0, photos, SHARD)):
        count = min(SHARD, photos - begin)
        embeddings = centres[rng.integers(CENTRES, size=count)] + rng.standard_normal((count, dimension), np.float32)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        ids = np.array([f"{number:08x}{row:08x}" for row in range(count)])
        save_features(folder / f"{name}_{number:03}.npz", Features(ids, embeddings.astype(np.float16)))


def measure(folder: Path, step: str, depth: int, parts: int) -> tuple[float, float]:
    """Processor seconds, and the peak memory of this process in MiB."""
    queries, index = (sorted(folder.glob(f"{name}_*.npz")) for name in ("test", "index"))
    found = None
    if step in ("superglobal", "reciprocal"):
        found = search(queries, index, depth, parts, keep=folder / "work/test-in-index")
    began = time.process_time()
    if step == "search":
        search(queries, index, depth, parts, keep=folder / "work/test-in-index")
    if step == "search the index for itself":
        search(index, index, 11, parts, keep=folder / "work/index-in-index")  # as `reciprocal` does
    if step == "read the index":
        for path in index:
            load_features(path)
    if found:
        method = getattr(neighbourhood, step)
        method(queries, index, found, depth, folder / "work/by-neighbours", parts=parts)
    return time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=60_000, help="of the index (default: %(default)s)")
    parser.add_argument("--dimension", type=int, default=512, help="of an embedding (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=1_000, help="(default: %(default)s)")
    parser.add_argument("--depth", type=int, default=300, help="neighbours of each (default: %(default)s)")
    parser.add_argument("--parts", type=int, default=6, help="of the index (default: %(default)s)")
    arguments = parser.parse_args()
    print(history.stamp(), flush=True)
    photos, queries = arguments.photos, arguments.queries
    found: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        write_files(Path(name), "index", photos, arguments.dimension)
        write_files(Path(name), "test", queries, arguments.dimension)
        print(f"{queries:,} queries, {photos:,} x {arguments.dimension}, the best {arguments.depth}")
        for step in STEPS:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                found[step] = pool.submit(measure, Path(name), step, arguments.depth, arguments.parts).result()
            print(f"{step}: {found[step][0]:.1f} s, peak {found[step][1]:.0f} MiB", flush=True)

    def passes(photos: int, queries: int) -> int:
        return -(-queries // max(1, max(photos // arguments.parts, neighbourhood.FEWEST) // arguments.depth))

    seconds = {step: spent for step, (spent, _) in found.items()}
    reading = seconds["read the index"]
    large = {
        "search": seconds["search"] * INDEX / photos * TEST / queries,
        "search the index for itself": seconds["search the index for itself"] * (INDEX / photos) ** 2,
    }
    for method in ("superglobal", "reciprocal"):
        own = seconds[method] - reading * passes(photos, queries)
        large[method] = own * TEST / queries + reading * INDEX / photos * passes(INDEX, TEST)
    print(f"so for {TEST:,} queries and {INDEX:,} index photos, in processor hours:")
    print(", ".join(f"{step} {spent / 3600:.1f}" for step, spent in large.items()))


if __name__ == "__main__":
    main()
