"""How long one photo takes: the first one, with all that has to be opened for it, and the others.

    python benchmarks/identify.py WORK PHOTO... [--times 20] [--index 100000 1000000]

WORK is that of a finished run of recognition.py. Cold is `python identify.py PHOTO`, a process of its own, three times;
then, in one process, `Identifier(WORK)`, its first answer, for which Keras traces the model, and the median and the
slowest of the others. `--index` adds what opening and searching so many invented train photos of 512
dimensions takes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # the project; there `identify` is not this file
os.environ.setdefault("TQDM_DISABLE", "1")

from landmarks.running import command, history

command.prepare_backend()

from landmarks.neighbours.identification import DEPTH, Identifier
from landmarks.neighbours.search import Index
from landmarks.running.features_file import Features, save_features, take

DIMENSION = 512


def seconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", help="the work folder")
    parser.add_argument("photos", nargs="+", type=Path, help="files")
    parser.add_argument("--times", type=int, default=20, help="answers after the first (default: %(default)s)")
    parser.add_argument("--index", nargs="*", type=int, default=[], help="sizes of an invented index to search")
    settings = parser.parse_args()
    print(history.stamp(), flush=True)

    cold = [sys.executable, str(ROOT / "identify.py"), str(settings.photos[0]), f"--work={settings.work}", "--json"]
    taken = [seconds(lambda: subprocess.run(cold, check=True, capture_output=True)) for _ in range(3)]
    print(f"cold: {min(taken):.1f} to {max(taken):.1f} s, the whole command")
    start = time.perf_counter()
    identifier = Identifier(settings.work)
    print(f"opening {settings.work}: {time.perf_counter() - start:.2f} s")
    print(f"first photo: {seconds(identifier.identify, settings.photos[0]):.2f} s")
    warm = [seconds(identifier.identify, photo) for photo in islice(cycle(settings.photos), settings.times)]
    print(f"others: median {np.median(warm) * 1000:.0f} ms, slowest {max(warm) * 1000:.0f} ms")
    for count in settings.index:
        embeddings = np.random.default_rng(0).standard_normal((count, DIMENSION), np.float32)
        found = Features(np.arange(count).astype(str), (embeddings / DIMENSION**0.5).astype(np.float16))
        with tempfile.TemporaryDirectory() as folder:
            save_features(Path(folder) / "index.npz", found)
            start = time.perf_counter()
            index = Index([Path(folder) / "index.npz"])
            opened = time.perf_counter() - start
        taken = [seconds(index.nearest, take(found, np.array([row])), DEPTH) for row in range(5)]
        print(f"among {count:,} x {DIMENSION}: opened in {opened:.1f} s, searched in {np.median(taken) * 1000:.0f} ms")


if __name__ == "__main__":
    main()
