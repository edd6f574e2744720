"""Approximate search against exact: recall, queries/s, memory and what the lists cost, at a million photos and at ten.

    python recognition.py --recipe small-frozen --mirror MIRROR --work WORK
    python benchmarks/approximate.py WORK MIRROR [--photos 1000000 10000000] [--folder FOLDER]

Noise would be no test, since in it all photos are equally far, and real photos we have only thousands of. So photos are
made of the real embeddings in WORK: a landmark is the mean of three of them, weighted at random, and a photo is that
and what two pairs of real photos of one landmark (of the MIRROR's train.csv) differ by. So it lies about its landmark
as far off as real ones do, and in the same directions. There are a twentieth as many landmarks as photos, some of them
with thousands; every tenth photo is Gaussian noise. Queries are photos made in the same way, of any landmark.

Ten million photos of 512 dimensions take 10.3 GB of disk; `--folder` keeps them. Each search is a process of its own,
for its peak memory, and reads its files on the clock. The exact search answers `--compared` queries, by which recall@k
is told: which part of the exact k nearest is among the approximate k. It answers twice, before and after the
approximate one, since a shared machine's speed swings. There seconds of a core compare better, if threads sleep while
they wait: OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0.
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
from typing import NamedTuple

import numpy as np
import pandas as pd

os.environ.setdefault("TQDM_DISABLE", "1")
sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project

from landmarks.neighbours import approximate, search
from landmarks.running.features_file import Features, concatenate, load_features, save_features

K = 100
SHARD = 100_000
PAIRS = 20  # that a real photo is in, with others of its landmark, for what they differ by


class Maker:
    """Photos of so many made landmarks, from real embeddings (N, D), and the rows of these that show the same one."""

    def __init__(self, embeddings: np.ndarray, same: list[np.ndarray], landmarks: int):
        rng = np.random.default_rng(0)
        self.embeddings, self.landmarks = embeddings, landmarks
        self.parts = rng.integers(0, len(embeddings), (landmarks, 3))
        self.weights = rng.dirichlet(np.ones(3), landmarks).astype(np.float32)
        self.differences = np.empty((0, embeddings.shape[1]), np.float32)
        for rows in same:
            pairs = np.stack([rng.permutation(np.repeat(rows, PAIRS)) for _ in range(2)])
            first, second = embeddings[pairs[:, pairs[0] != pairs[1]]]
            self.differences = np.concatenate([self.differences, first - second])

    def photos(self, of: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(n, D) float16: a photo of each of these landmarks."""
        made = np.empty((len(of), self.embeddings.shape[1]), np.float16)
        for first in range(0, len(of), 10_000):
            some = of[first : first + 10_000]
            centres = np.einsum("nk,nkd->nd", self.weights[some], self.embeddings[self.parts[some]])
            centres /= np.linalg.norm(centres, axis=1, keepdims=True)
            one, other = self.differences[rng.integers(0, len(self.differences), (2, len(some)))]
            sign = rng.choice([-1, 1], (len(some), 1)).astype(np.float32)
            made[first : first + 10_000] = normalised(centres + (one + sign * other) / 2)
        return made

    def index(self, count: int, number: int) -> np.ndarray:
        """(count, D) float16: a file of the index."""
        rng = np.random.default_rng((1, number))
        photos = self.photos((self.landmarks * rng.random(count) ** 3).astype(int), rng)
        noise = rng.random(count) < 0.1
        photos[noise] = normalised(rng.standard_normal((noise.sum(), photos.shape[1]), np.float32))
        return photos


def normalised(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def write(folder: Path, work: Path, mirror: Path, photos: int, queries: int) -> None:
    """What is not there yet."""
    real = concatenate([load_features(path) for path in sorted(work.glob("features/*/*.npz"))])
    landmark = pd.read_csv(mirror / "metadata/train.csv").set_index("id")["landmark_id"]
    of = landmark.reindex(real.ids).to_numpy()
    same = [rows for one in landmark.unique() if len(rows := np.flatnonzero(of == one)) > 1]
    maker = Maker(real.embeddings.astype(np.float32), same, photos // 20)
    files = {f"index/images_{number:03}": SHARD for number in range(photos // SHARD)}
    for number, (name, count) in enumerate([*files.items(), ("test/images_000", queries)]):
        if not (folder / f"{name}.npz").exists():
            rng = np.random.default_rng(2)
            ids = np.array([f"{number:04x}{row:012x}" for row in range(count)])
            made = maker.photos(rng.integers(0, maker.landmarks, count), rng) if "test" in name else None
            save_features(folder / f"{name}.npz", Features(ids, maker.index(count, number) if made is None else made))
    few = load_features(folder / "test/images_000.npz")
    save_features(folder / "few/images_000.npz", Features(few.ids[:10_000], few.embeddings[:10_000]))


class Measured(NamedTuple):
    seconds: float
    core_seconds: float  # of the processor, all cores together
    peak: float  # memory in GB
    found: np.ndarray  # positions


def measure(folder: Path, how: str, queries: str, parts: int) -> Measured:
    """Of this process."""
    began, worked = time.perf_counter(), time.process_time()
    index, files = sorted(folder.glob("index/*.npz")), [folder / f"{queries}/images_000.npz"]
    if how == "exact":
        found = search.search(files, index, K, parts).positions
    else:
        found = approximate.search(files, index, K, parts, codes=folder / "codes").positions
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return Measured(time.perf_counter() - began, time.process_time() - worked, peak, found)


def in_own_process(folder: Path, how: str, queries: str, parts: int) -> Measured:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure, folder, how, queries, parts).result()


def recall(found: np.ndarray, exact: np.ndarray, k: int) -> float:
    return float(np.mean([len(np.intersect1d(*rows)) for rows in zip(found[:, :k], exact[:, :k], strict=True)])) / k


def compare(folder: Path, photos: int, queries: int, compared: int, parts: int) -> None:
    few = load_features(folder / "test/images_000.npz")
    save_features(folder / "one/images_000.npz", Features(few.ids[:1], few.embeddings[:1]))
    save_features(folder / "compared/images_000.npz", Features(few.ids[:compared], few.embeddings[:compared]))
    print(f"{photos:,} photos, {compared:,} queries compared, index in {parts} parts for the exact search", flush=True)
    exact = ask(folder, "exact", "compared", parts)
    made = in_own_process(folder, "ivfpq", "one", parts)
    disk = sum(path.stat().st_size for path in (folder / "codes").glob("*/*.npz"))
    print(f"lists: {made.seconds / 60:.1f} minutes, {made.core_seconds / 60:.1f} of a core, "
          f"peak {made.peak:.2f} GB, {disk / 1e9:.2f} GB of disk", flush=True)  # fmt: skip
    for name in ("few", "test"):
        found = ask(folder, "ivfpq", name, parts)
        told = [f"@{k} {recall(found.found[:compared], exact.found, k):.3f}" for k in (1, 10, K)]
        print(f"    recall {', '.join(told)}", flush=True)
    again = ask(folder, "exact", "compared", parts)
    for name in ("seconds", "core_seconds"):
        exactly = (getattr(exact, name) + getattr(again, name)) / 2 / compared
        print(f"in {name} {exactly / (getattr(found, name) / queries):.0f} times the exact search", flush=True)


def ask(folder: Path, how: str, queries: str, parts: int) -> Measured:
    found = in_own_process(folder, how, queries, parts)
    count = len(found.found)
    rates = f"{count / found.seconds:.1f} a second, {count / found.core_seconds:.1f} a second of a core"
    print(f"{how}, {count:,} queries: {rates}, peak {found.peak:.2f} GB", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("mirror", type=Path)
    parser.add_argument("--photos", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--queries", type=int, default=100_000, help="of the approximate search")
    parser.add_argument("--compared", type=int, default=1_000, help="of the exact search too")
    parser.add_argument("--parts", type=int, default=24, help="of the index, for the exact search")
    parser.add_argument("--folder", type=Path, help="where the photos are made, and stay")
    arguments = parser.parse_args()
    for photos in arguments.photos:
        with tempfile.TemporaryDirectory() as temporary:
            folder = (arguments.folder or Path(temporary)) / str(photos)
            write(folder, arguments.work, arguments.mirror, photos, arguments.queries)
            compare(folder, photos, arguments.queries, arguments.compared, arguments.parts)


if __name__ == "__main__":
    main()
