"""Shards on a Ray cluster: what a second worker brings, what Ray costs a shard, and what failures cost.

    python benchmarks/cluster.py scaling [--shards 6 --photos 256 --backbone EfficientNetLite0 --image-size 256]
    python benchmarks/cluster.py overhead [--shards 40 --megabytes 22]
    python benchmarks/cluster.py failures [--shards 500]
    python benchmarks/cluster.py search [--photos 200000 --dimensions 512 --queries 16384]

Nodes of one core each on this machine, by `ray.cluster_utils`; with `scaling` and `search` each is pinned to a core of
its own. Each worker notes when it begins and ends a shard, so that the start of its process does not count.

`scaling` embeds random JPEGs with one worker, with two, and without Ray on one core, in turns. `overhead` makes files
as large as a GLDv2 shard's features (8,192 photos x 1,280 x float16) by doing nothing, here and on one worker.
`failures` embeds tiny shards from a loopback web server on three workers: of the tasks 5 % fail, and one node is killed
midway. `search` finds the 100 nearest of random embeddings in features files: in this process on one core and on all,
by one worker and by two, in turns. What a search of next to nothing takes, the start of the actors, is told apart.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import faiss
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
os.environ["TF_NUM_INTRAOP_THREADS"] = "1"  # as each worker has
from landmarks.running import command

command.prepare_backend()
import model as models
from benchmarks.streaming import Quiet, make_mirror
from landmarks.cluster import tasks
from landmarks.cluster.worker import Worker
from landmarks.mirrors.open import open_mirror
from landmarks.neighbours import distributed, ensemble
from landmarks.neighbours import search as exact
from landmarks.running import threads
from landmarks.running.features_file import Features, save_features
from landmarks.running.recipe import from_flat

FAILING = 0.05
SHARD_PHOTOS = 8192  # of a GLDv2 train shard


class Noting(Worker):
    """Notes in a file of its own, `LOG/PID`, when it begins and ends each shard; may fail before it begins."""

    log = Path()
    failing = 0.0

    def _make(self, name, job, folder):
        if random.random() < self.failing:
            with open(self.log / "failed", "a") as file:
                file.write(f"{name}\n")
            raise RuntimeError("as 5 % of them do")

        def noted(mirror, shard, path, work):
            tars = len(list(self.folder.glob("*/mirror/*/*.tar*")))
            begin = time.time()
            job(mirror, shard, path, work)
            with open(self.log / f"{os.getpid()}.log", "a") as file:
                file.write(f"{name} {begin} {time.time()} {tars}\n")

        return super()._make(name, noted, folder)


def load() -> str:
    return f"load {os.getloadavg()[0]:.1f}"


def read_log(log: Path) -> dict[str, list[tuple[str, float, float, int]]]:
    """(shard, begin, end, tars on the worker's disk) of each shard that was done, by process."""
    lines = {path.stem: path.read_text().splitlines() for path in log.glob("*.log")}
    return {
        pid: [(name, float(begin), float(end), int(tars)) for name, begin, end, tars in map(str.split, those)]
        for pid, those in lines.items()
    }


@contextmanager
def cluster_of(nodes: int, pinned: bool, log: Path, failing: float = 0.0):
    import ray
    from ray.cluster_utils import Cluster

    noting = type("Noting", (Noting,), {"log": log, "failing": failing, "__module__": "__main__"})
    tasks.Worker = noting  # type: ignore
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cores = sorted(os.sched_getaffinity(0))
    try:
        for number in range(nodes):
            if pinned:  # which its processes inherit
                os.sched_setaffinity(0, {cores[number % len(cores)]})
            cluster.add_node(num_cpus=1)
            os.sched_setaffinity(0, cores)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def prepare(folder: Path, mirror: str, **settings):
    """A work folder with an untrained model, and its recipe."""
    recipe = from_flat({"work": folder / "work", "mirror": mirror, "crop": 1, **settings}, Path("benchmark"))
    recipe.run.work.mkdir(parents=True)
    recipe.keep()
    models.save(models.build_model(2, recipe.model), recipe.run.work / "model.keras")
    (recipe.run.work / "labels.csv").write_text("class,landmark_id\n0,0\n1,1\n")
    return recipe


def embed(recipe, address: str, split: str = "train") -> float:
    """Embed all shards of a split anew, on a cluster or here; seconds."""
    shutil.rmtree(recipe.run.work / "features", ignore_errors=True)
    run = recipe.run.model_copy(update={"cluster": address})
    mirror = open_mirror(recipe.source.mirror, recipe.run.work / "mirror", settings=recipe.source)
    began = time.monotonic()
    assert ensemble.embed(run, recipe.embedding, mirror, [split])
    return time.monotonic() - began


@contextmanager
def on_cores(count: int):
    """This process on so many cores, faiss too."""
    cores = sorted(os.sched_getaffinity(0))

    def pin(to: list[int]) -> None:
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(thread.name), to)

    pin(cores[:count])
    threads.share = count
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        pin(cores)


def alone(recipe) -> float:
    """Seconds that a shard takes in this process, on one core, after the first."""
    with on_cores(1):
        embed(recipe, "")
    written = sorted(path.stat().st_mtime for path in (recipe.run.work / "features/train").glob("*.npz"))
    return (written[-1] - written[0]) / (len(written) - 1)


def scaling(folder: Path, shards: int, photos: int, backbone: str, image_size: int) -> None:
    make_mirror(folder / "mirror", shards, photos)
    recipe = prepare(
        folder, str(folder / "mirror"), backbone=backbone, weights="none", image_size=image_size, mirrored=False
    )
    rates: dict[int, list[float]] = {0: [], 1: [], 2: []}
    idle: list[float] = []
    for turn in range(2):
        for nodes in (0, 1, 2) if turn % 2 == 0 else (2, 1, 0):
            if nodes == 0:
                rates[0].append(photos / alone(recipe))
                print(f"without Ray, on one core: {rates[0][-1]:.2f} photos/s, {load()}", flush=True)
                continue
            log = folder / f"log-{turn}-{nodes}"
            log.mkdir()
            with cluster_of(nodes, True, log) as cluster:
                seconds = embed(recipe, cluster.address)
            done = read_log(log)
            # From when all workers have a shard behind them, the first one being slower, to when one runs out.
            begin = max(rows[0][2] for rows in done.values())
            end = min(rows[-1][2] for rows in done.values())
            seen = sum(
                photos * max(0, min(b, end) - max(a, begin)) / (b - a) for rows in done.values() for _, a, b, _ in rows
            )
            rates[nodes].append(seen / (end - begin))
            idle += [two[1] - one[2] for rows in done.values() for one, two in zip(rows[1:], rows[2:], strict=False)]
            print(f"{nodes} workers: {rates[nodes][-1]:.2f} photos/s, {seconds:.0f} s in all, {load()}", flush=True)
    none, one, two = (float(np.mean(rates[nodes])) for nodes in range(3))
    print(
        f"2 workers of one core: {two / one:.2f} times one ({one:.1f} and {two:.1f} photos/s; {none:.1f} without Ray)"
    )
    shard_seconds = SHARD_PHOTOS / one
    print(
        f"between two shards a worker waits {np.mean(idle):.3f} s, {100 * np.mean(idle) / shard_seconds:.3f} % of "
        f"the {shard_seconds:.0f} s that {SHARD_PHOTOS:,} photos take here"
    )


def _nothing(size: int):
    def job(_mirror, _shard, path, _work):
        path.write_bytes(bytes(size))

    return job


def overhead(folder: Path, shards: int, megabytes: int) -> None:
    make_mirror(folder / "mirror", shards, 2)
    mirror, size = open_mirror(str(folder / "mirror")), megabytes * 10**6
    files = {name: folder / f"made/{name}.npz" for name in mirror.shard_names("train")}
    (folder / "made").mkdir()
    began = time.monotonic()
    for shard in mirror.stream("train", list(files)):
        _nothing(size)(mirror, shard, folder / "part", folder)
        tasks.write(files[shard.name], np.fromfile(folder / "part", np.uint8))
    here = (time.monotonic() - began) / shards
    log = folder / "log"
    log.mkdir()
    with cluster_of(1, False, log) as cluster:
        tasks.share(cluster.address, partial(_nothing, size), mirror, "train", files, folder, "nothing")
    rows = next(iter(read_log(log).values()))
    there = (rows[-1][2] - rows[0][2]) / (len(rows) - 1)
    print(f"a shard of nothing, {megabytes} MB: {here:.3f} s here, {there:.3f} s on a worker")
    print(f"Ray takes {there - here:.3f} s a shard, which is 2 % of {(there - here) / 0.02:.1f} s; {load()}")


def failures(folder: Path, shards: int) -> None:
    make_mirror(folder / "mirror", shards, 3)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder / "mirror")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    recipe = prepare(
        folder, f"http://127.0.0.1:{server.server_port}", backbone="MobileNet", weights="none", image_size=32
    )
    log, ends = folder / "log", threading.Event()
    peak: Counter[Path] = Counter()
    log.mkdir()

    def watch():
        while not ends.is_set():
            for own in Path(tempfile.gettempdir()).glob("landmarks-cluster-*/*"):
                tars = sum(1 for _ in own.glob("*/mirror/*/*.tar*"))
                peak[own] = max(peak[own], tars)
            time.sleep(0.005)

    with cluster_of(3, False, log, FAILING) as cluster:

        def kill():
            while len(list((recipe.run.work / "features/train").glob("*.npz"))) < shards // 2:
                time.sleep(0.05)
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

        helpers = [threading.Thread(target=one, daemon=True) for one in (watch, kill)]
        for one in helpers:
            one.start()
        seconds = embed(recipe, cluster.address)
        ends.set()
        helpers[1].join()
    done = Counter(name for rows in read_log(log).values() for name, *_ in rows)
    failed = (log / "failed").read_text().split() if (log / "failed").exists() else []
    there = len(list((recipe.run.work / "features/train").glob("*.npz")))
    slots = recipe.source.ahead + 1
    twice = sum(done.values()) - len(done)
    print(
        f"{there} of {shards} shards are there after {seconds:.0f} s; {len(failed)} tasks failed, a node of three was "
        f"killed; {twice} shards were done twice, where {slots} a worker may be in hand; the most tars on a worker's "
        f"disk at once: {max(peak.values())}; {load()}"
    )
    shared = {path.name: path.read_bytes() for path in (recipe.run.work / "features/train").glob("*.npz")}
    embed(recipe, "")
    alone = {path.name: path.read_bytes() for path in (recipe.run.work / "features/train").glob("*.npz")}
    same = sum(alone[name] == shared[name] for name in alone)
    print(f"{same} of {len(alone)} files are the same bytes as without Ray")


def search(folder: Path, photos: int, dimensions: int, queries: int) -> None:
    rng = np.random.default_rng(0)

    def write(name: str, count: int, files: int) -> list[Path]:
        paths = [folder / f"{name}-{number:03}.npz" for number in range(files)]
        for path, rows in zip(paths, np.array_split(np.arange(count), files), strict=True):
            embeddings = rng.standard_normal((len(rows), dimensions), np.float32)
            embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
            save_features(path, Features(np.array([f"{row:016x}" for row in rows]), embeddings.astype(np.float16)))
        return paths

    files, few = (write("query", queries, 4), write("index", photos, 24)), (write("a", 100, 2), write("b", 100, 2))
    found: dict[str, exact.Neighbours] = {}
    rates: dict[str, list[float]] = {}
    distributed.WORTH = 0
    ways = {"1 core": 1, "all cores": len(os.sched_getaffinity(0)), "1 worker": 1, "2 workers": 2}

    def timed(find: Callable, *arguments) -> float:
        began = time.monotonic()
        found[way] = find(*arguments, 100, 6)
        return time.monotonic() - began

    for turn in range(2):
        for way in list(ways)[:: 1 - 2 * turn]:
            start = 0.0
            if "core" in way:
                with on_cores(ways[way]):
                    seconds = timed(exact.search, *files)
            else:
                with cluster_of(ways[way], True, folder) as cluster:
                    find = partial(distributed.search, address=cluster.address)
                    timed(find, *few)  # Ray unpacks the code on the nodes
                    start = timed(find, *few)
                    seconds = timed(find, *files)
            rates.setdefault(way, []).append(queries / (seconds - start))
            print(f"{way}: {seconds:.1f} s, of them {start:.1f} s the start, {load()}", flush=True)
    for way, those in rates.items():
        same = all(map(np.array_equal, found[way][2:4], found["1 core"][2:4]))
        rate = float(np.mean(those))
        print(
            f"{way}: {rate:.0f} queries/s but for the start, {rate * photos * dimensions / 1e9:.1f} billion products a "
            f"second; similarities and positions are {'' if same else 'NOT '}those of 1 core"
        )
    print(f"2 workers of one core: {np.mean(rates['2 workers']) / np.mean(rates['1 worker']):.2f} times one")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    given: dict[str, Any]
    for name, given in (
        ("scaling", {"shards": 6, "photos": 256, "backbone": "EfficientNetLite0", "image_size": 256}),
        ("overhead", {"shards": 40, "megabytes": 22}),
        ("failures", {"shards": 500}),
        ("search", {"photos": 200_000, "dimensions": 512, "queries": 16_384}),
    ):
        one = commands.add_parser(name)
        for argument, default in given.items():
            one.add_argument(f"--{argument.replace('_', '-')}", type=type(default), default=default)
    arguments = vars(parser.parse_args())
    with tempfile.TemporaryDirectory() as folder:
        actions: dict[str, Callable[..., None]] = {
            "scaling": scaling, "overhead": overhead, "failures": failures, "search": search,
        }  # fmt: skip
        actions[arguments.pop("command")](Path(folder), **arguments)


if __name__ == "__main__":
    main()
