"""Whether training waits for a mirror whose link is faster than it learns: beside the same shards on this disk.

    python benchmarks/throttled.py [--faster 2 --shards 4 --photos 96] [--json FILE]

A server of this machine sends no more than `--faster` times as many bytes a second as training from the disk takes in,
over all connections. The clock starts when the first shard has come, since nothing can be learnt before that.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import pandas as pd

from benchmarks import timing
from benchmarks.training import write_shard
from landmarks.mirrors.base import Mirror
from landmarks.mirrors.folder import FolderMirror
from landmarks.mirrors.web import WebMirror
from landmarks.running import command
from landmarks.running import recipe as recipes

PIECE = 2**16  # bytes


class Throttled(SimpleHTTPRequestHandler):
    """Files, at so many bytes a second over all connections."""

    rate = float("inf")
    lock, free = threading.Lock(), 0.0  # when the link has sent what it was given

    def copyfile(self, source, outputfile) -> None:
        while piece := source.read(PIECE):
            with Throttled.lock:
                Throttled.free = max(Throttled.free, time.monotonic()) + len(piece) / Throttled.rate
                wait = Throttled.free - time.monotonic()
            time.sleep(max(wait, 0))
            outputfile.write(piece)

    def log_message(self, *_) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faster", type=float, default=2, help="times as fast as training is the link")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--photos", type=int, default=96, help="in each shard")
    parser.add_argument("--backbone", default="EfficientNetLite0")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--busy", action="store_true", help="measure on a busy machine too")
    parser.add_argument("--json", type=Path, help="add a line to this file")
    given = parser.parse_args()
    timing.require_idle(given.busy)
    print(timing.machine())
    command.prepare_backend()
    from landmarks.training.trainer import Trainer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "mirror/train").mkdir(parents=True)
        ids = [write_shard(folder / f"mirror/train/images_{n:03}.tar", given.photos).ids for n in range(given.shards)][
            0
        ]
        (folder / "mirror/metadata").mkdir()
        classes = pd.Series(np.arange(given.photos) % 10, index=ids)
        classes.rename("landmark_id").rename_axis("id").to_csv(folder / "mirror/metadata/train.csv")
        recipe = recipes.load(
            [f"--work={folder}/work", "--recipe=softmax", f"--backbone={given.backbone}", "--weights=none", "--crop=1"]
        )
        trainer = Trainer(recipe.run, recipe.model, recipe.training, classes, 10**9, None)

        def learn(mirror: Mirror) -> float:
            """Photos a second, from when the first shard is there."""
            began, count = None, 0
            for shard in mirror.stream("train", mirror.shard_names("train")):
                began = began or time.perf_counter()
                trainer.mini_epoch(shard, shard.ids)
                trainer.step = 0
                count += len(shard.ids)
            assert began is not None
            return count / (time.perf_counter() - began)

        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Throttled, directory=str(folder / "mirror")))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        of_disk = FolderMirror(folder / "mirror")
        learn(of_disk)  # compiles the step
        size = (folder / "mirror/train/images_000.tar").stat().st_size / given.photos  # bytes of a photo
        link = f"a link {given.faster:g} times as fast"
        rates: dict[str, list[float]] = {"from disk": [], link: []}
        for turn in range(given.turns):
            rates["from disk"].append(learn(of_disk))
            Throttled.rate = given.faster * rates["from disk"][-1] * size
            rates[link].append(learn(WebMirror(f"http://127.0.0.1:{server.server_port}", folder / f"cache-{turn}")))
        server.shutdown()
    pairs = [(link, "from disk", 0.95)]
    timing.report(f"training behind a throttled mirror, {given.backbone}", rates, "photos/s", pairs, given.json)


if __name__ == "__main__":
    main()
