"""From a shard to batches, photos a second, beside other loaders and the bare decoders that are installed.

    python benchmarks/decode.py [--photos 1000 --width 640 --size 192]

`ours` is what training and embedding take photos from, by threads or by processes as it chooses; `published` extracts
the tar and reads its files in one thread with OpenCV, as the published streaming solution does; `tf.data` reads them
from an extracted tree; `webdataset` streams the tar; `cv2 in threads` and `simplejpeg in threads` decode what the shard
holds to the nearest larger scale and resize it, without batches: the limit. All of these resize bilinearly, without
regard to what lies between the points that they take; `ours`, `bicubic in threads` (simplejpeg, then Pillow) and
`tf.data, bicubic` take bicubic means of all pixels, which frozen features are better for (GAP 0.859, else 0.840, as
landmarks/mirrors/images.py has it). What is not installed is left out.
"""

import argparse
import os
import sys
import tarfile
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from PIL import Image

from benchmarks import timing
from benchmarks.training import write_shard
from generators import Batches
from landmarks.mirrors.shards import TarShard, member_name
from landmarks.running import processes
from landmarks.running.threads import cores, in_threads

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--width", type=int, nargs="+", default=[640, 1600], help="of the photos, in pixels")
    parser.add_argument("--size", type=int, default=192, help="to decode to")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--busy", action="store_true", help="measure on a busy machine too")
    parser.add_argument("--json", type=Path, help="add a line to this file")
    given = parser.parse_args()
    timing.require_idle(given.busy)
    for width in given.width:
        with tempfile.TemporaryDirectory() as folder:
            shard = write_shard(Path(folder, "images_000.tar"), given.photos, width, width * 3 // 4)
            ways = ways_of(shard, Path(folder), given.size)
            rates = timing.in_turns(ways, given.turns)
        beside = {"bicubic in threads": 0.9, "simplejpeg in threads": 0.9, "published": 2.0, "webdataset": 1.0}
        beside |= {"tf.data, bicubic": 1.0, "tf.data": 1.0, "ours, threads": 1.0}
        pairs = [("ours", name, least) for name, least in beside.items() if name in rates]
        question = f"decoding, photos of {width} px to {given.size} px, {cores()} cores"
        timing.report(question, rates, "photos/s", pairs, given.json)


def ways_of(shard: TarShard, folder: Path, size: int) -> dict[str, Callable[[], float]]:
    count = len(shard.ids)

    def ours() -> float:
        for _ in Batches(shard, shard.ids, size, BATCH):
            pass
        return count

    def by(worth_it: bool) -> float:
        chosen, processes.worth_it = processes.worth_it, lambda: worth_it
        try:
            return ours()
        finally:
            processes.worth_it = chosen

    ways: dict[str, Callable[[], float]] = {
        "ours": ours, "ours, threads": lambda: by(False), "ours, processes": lambda: by(True)
    }  # fmt: skip
    if find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)
        flag = _reduced(shard, size)

        def published() -> float:
            with tempfile.TemporaryDirectory(dir=folder) as out, tarfile.open(shard.path) as tar:
                tar.extractall(out, filter="data")
                for first in range(0, count, BATCH):
                    paths = (f"{out}/{member_name(one)}" for one in shard.ids[first : first + BATCH])
                    np.stack([cv2.resize(np.asarray(cv2.imread(path)), (size, size)) for path in paths])
            return count

        def with_cv2(identity: str) -> np.ndarray:
            data = np.frombuffer(shard.read(identity), np.uint8)
            return cv2.resize(np.asarray(cv2.imdecode(data, flag)), (size, size))

        ways["published"] = published
        ways["cv2 in threads"] = lambda: sum(1 for _ in in_threads(with_cv2, shard.ids, 3 * BATCH))
        if find_spec("simplejpeg"):
            import simplejpeg

            def with_simplejpeg(identity: str) -> np.ndarray:
                image = simplejpeg.decode_jpeg(shard.read(identity), min_height=size, min_width=size, min_factor=1)
                return cv2.resize(image, (size, size))

            def bicubic(identity: str) -> Image.Image:
                image = simplejpeg.decode_jpeg(shard.read(identity), min_height=size, min_width=size, min_factor=1)
                return Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)

            ways["bicubic in threads"] = lambda: sum(1 for _ in in_threads(bicubic, shard.ids, 3 * BATCH))
            ways["simplejpeg in threads"] = lambda: sum(1 for _ in in_threads(with_simplejpeg, shard.ids, 3 * BATCH))
    if find_spec("tensorflow"):
        ways["tf.data"] = _tf_data(shard, folder, size, "bilinear")
        ways["tf.data, bicubic"] = _tf_data(shard, folder, size, "bicubic")
    if find_spec("webdataset") and find_spec("cv2"):
        ways["webdataset"] = _webdataset(shard, size)
    return ways


def _reduced(shard: TarShard, size: int) -> int:
    """OpenCV's flag for the smallest scale that is no smaller than `size`."""
    import cv2

    height = Image.open(BytesIO(shard.read(shard.ids[0]))).height
    scales = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
    return next((flag for scale, flag in scales.items() if height >= scale * size), cv2.IMREAD_COLOR)


def _tf_data(shard: TarShard, folder: Path, size: int, method: str) -> Callable[[], float]:
    import tensorflow as tf

    tree = folder / "tree"
    with tarfile.open(shard.path) as tar:
        tar.extractall(tree, filter="data")
    paths = [f"{tree}/{member_name(identity)}" for identity in shard.ids]
    width = tf.io.decode_jpeg(tf.io.read_file(paths[0])).shape[0]
    ratio = next((scale for scale in (8, 4, 2) if width >= scale * size), 1)

    def load(path):
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3, ratio=ratio)
        resized = tf.image.resize(image, (size, size), method, antialias=method == "bicubic")
        return tf.cast(tf.clip_by_value(resized, 0, 255), tf.uint8)

    batches = tf.data.Dataset.from_tensor_slices(paths).map(load, tf.data.AUTOTUNE).batch(BATCH).prefetch(2)

    def run() -> float:
        for _ in batches:
            pass
        return len(paths)

    return run


def _webdataset(shard: TarShard, size: int) -> Callable[[], float]:
    import cv2
    import webdataset

    def load(sample: dict) -> np.ndarray:
        image = cv2.imdecode(np.frombuffer(sample["jpg"], np.uint8), cv2.IMREAD_COLOR)
        return cv2.resize(np.asarray(image), (size, size))

    def run() -> float:
        photos = webdataset.WebDataset(str(shard.path), shardshuffle=False, empty_check=False).map(load)
        loader = webdataset.WebLoader(photos, batch_size=BATCH, num_workers=min(cores(), 1))
        return sum(len(batch) for batch in loader)

    return run


if __name__ == "__main__":
    main()
