"""Peak disk and memory of a streamed run over few and many shards: neither may grow with their number.

    python benchmarks/streaming.py [--shards 4 40] [--photos 200] [--json FILE]

Random photos in mirrors of so many train shards behind a loopback HTTP server; recognition.py runs on each with a small
random network. Prints the most shards and bytes seen at once in the folder of downloads, and the peak memory.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import timing
from landmarks.mirrors.shards import write_tar
from landmarks.running import history


def make_mirror(folder: Path, shards: int, photos: int) -> None:
    """`shards` train shards of `photos` noisy photos of 10 landmarks, and one small test shard without solution."""
    generator = np.random.default_rng(0)
    encoded = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (240, 320, 3), dtype=np.uint8)).save(encoded, "JPEG")
    number, rows = 0, []
    for split, count in (("train", shards), ("test", 1)):
        for shard in range(count):
            ids = [f"{number + i:016x}" for i in range(photos)]
            number += photos
            (folder / split).mkdir(parents=True, exist_ok=True)
            write_tar(folder / split / f"images_{shard:03d}.tar", ((i, encoded.getvalue()) for i in ids))
            rows += ids if split == "train" else []
    (folder / "metadata").mkdir()
    table = "".join(f"{photo},,{n % 10}\n" for n, photo in enumerate(rows))
    (folder / "metadata/train.csv").write_text("id,url,landmark_id\n" + table)
    (folder / "metadata/test.csv").write_text("id\n" + "\n".join(ids) + "\n")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def measure(mirror: Path, work: Path) -> tuple[int, int, int]:
    """The most tars and bytes in the folder of downloads at once, and the peak memory of the run in bytes."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(mirror)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = [
        sys.executable, f"{ROOT}/recognition.py", f"--work={work}", f"--mirror=http://127.0.0.1:{server.server_port}",
        "--backbone=MobileNet", "--weights=none", "--image-size=32", "--crop=1", "--epochs=1",
        "--beside=", "--scales=1", "--whitening=none", "--dimensions=0",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    most_tars = most_bytes = 0
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        sizes = []
        for path in work.glob("mirror/*/images_*.tar*"):
            try:
                sizes.append(path.stat().st_size)
            except FileNotFoundError:  # deleted or renamed between the two calls
                continue
        most_tars, most_bytes = max(most_tars, len(sizes)), max(most_bytes, sum(sizes))
        time.sleep(0.005)
    server.shutdown()
    if status:
        raise SystemExit(f"recognition.py failed: {work}")
    return most_tars, most_bytes, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shards", type=int, nargs="+", default=[4, 40])
    parser.add_argument("--photos", type=int, default=200, help="in each shard")
    parser.add_argument("--busy", action="store_true", help="on a busy machine too, which peaks do not mind")
    parser.add_argument("--json", type=Path, help="add lines to this file")
    arguments = parser.parse_args()
    timing.require_idle(arguments.busy)
    peaks: dict[str, dict[str, list[float]]] = {"disk": {}, "memory": {}}
    print(history.stamp(), flush=True)
    for shards in arguments.shards:
        with tempfile.TemporaryDirectory() as folder:
            make_mirror(Path(folder) / "mirror", shards, arguments.photos)
            size = (Path(folder) / "mirror/train/images_000.tar").stat().st_size
            tars, bytes_, memory = measure(Path(folder) / "mirror", Path(folder) / "work")
            print(
                f"{shards} shards of {size / 1e6:.1f} MB: at most {tars} on disk at once, {bytes_ / 1e6:.1f} MB; "
                f"peak memory {memory / 2**20:.0f} MiB"
            )
            peaks["disk"][f"{shards} shards"], peaks["memory"][f"{shards} shards"] = [bytes_ / 1e6], [memory / 1e6]
    few, *more = peaks["disk"]
    for what, found in peaks.items():
        pairs = [(few, many, 0.95) for many in more]
        timing.report(f"peak {what}, by the number of shards", found, "MB", pairs, arguments.json)


if __name__ == "__main__":
    main()
