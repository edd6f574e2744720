"""Seconds and memory to recognise photos by the nearest of many train photos on disk, in 1 part and in 6.

    python benchmarks/neighbours.py [--photos 200000 --dimension 512 --queries 2000]

`voting.recognise` with 3 votes on random L2-normalised float16 embeddings, in files as large as the public mirror's
shards. Each run has a process of its own, for its peak memory; a first one recognises nothing, which is what the
imports take. The last lines state what follows for the 4,132,914 train and 117,577 test photos of the public mirror.
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
import pandas as pd

os.environ.setdefault("TQDM_DISABLE", "1")
sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project

from landmarks.neighbours import voting
from landmarks.running import history
from landmarks.running.features_file import Features, load_features, save_features

SHARD = 8266  # photos in a shard of the public mirror
TRAIN, TEST, LANDMARKS = 4_132_914, 117_577, 203_094
VOTES = 3


def write_files(folder: Path, name: str, photos: int, dimension: int) -> None:
    rng = np.random.default_rng(len(name))
    for number, begin in enumerate(range(0, photos, SHARD)):
        embeddings = rng.standard_normal((min(SHARD, photos - begin), dimension), np.float32)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        ids = np.array([f"{number:08x}{row:08x}" for row in range(len(embeddings))])
        save_features(folder / f"{name}_{number:03}.npz", Features(ids, embeddings.astype(np.float16)))


def measure(folder: Path, parts: int) -> tuple[float, float]:
    """Seconds, and the peak memory of this process in MiB; no search with 0 parts."""
    began = time.perf_counter()
    if parts:
        files, train_files = (sorted(folder.glob(f"{name}_*.npz")) for name in ("test", "train"))
        ids = [identity for path in train_files for identity in load_features(path).ids.tolist()]
        train = pd.DataFrame({"id": ids, "landmark_id": np.random.default_rng(0).integers(0, LANDMARKS, len(ids))})
        del ids
        began = time.perf_counter()
        voting.recognise(files, train_files, train, VOTES, 1.0, parts)
    return time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def in_own_process(folder: Path, parts: int) -> tuple[float, float]:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure, folder, parts).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=200_000, help="train photos (default: %(default)s)")
    parser.add_argument("--dimension", type=int, default=512, help="of an embedding (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=2_000, help="photos to recognise (default: %(default)s)")
    arguments = parser.parse_args()
    print(history.stamp(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder, "train", arguments.photos, arguments.dimension)
        write_files(folder, "test", arguments.queries, arguments.dimension)
        _, imports = in_own_process(folder, 0)
        print(
            f"{arguments.queries:,} photos by {arguments.photos:,} x {arguments.dimension}, imports {imports:.0f} MiB"
        )
        for parts in (1, 6):
            seconds, peak = in_own_process(folder, parts)
            rate = arguments.queries * arguments.photos / seconds
            part = arguments.photos * arguments.dimension * 4 / parts / 2**20
            rest = (peak - imports - part) / arguments.photos  # ids, tables, the result, one file
            print(f"in {parts} part(s): {seconds:.1f} s, {rate / 1e6:.0f} million pairs/s, peak {peak:.0f} MiB, "
                  f"{part:.0f} of them the part")  # fmt: skip
            large = (imports + TRAIN * (arguments.dimension * 4 / parts / 2**20 + rest)) / 2**10
            print(f"  so {TEST:,} photos by {TRAIN:,}: {TEST * TRAIN / rate / 3600:.1f} hours, at most {large:.1f} GiB")


if __name__ == "__main__":
    main()
