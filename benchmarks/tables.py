"""How fast a train.csv of the full size is read, and in how much memory, beside pandas with pyarrow.

    python benchmarks/tables.py [--photos 4132914] [--json FILE]

Each reading is a process of its own, whose peak of memory is above what its imports take. `mirror` is `Mirror.train()`
and `Mirror.ids("train")`: every line's length, id and landmark are checked, and that no id comes twice. `pandas` reads
the two columns by pyarrow and checks nothing; `pandas, checked` checks the ids' form and that none comes twice, and
makes the list of them too. pandas cannot check how long each line is.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project; there `tables` is not this file

from benchmarks import timing
from landmarks.mirrors import plain_table  # noqa: F401  imported here, as what pandas needs is
from landmarks.mirrors.folder import FolderMirror
from landmarks.mirrors.shards import PHOTO_ID

MIRROR, PANDAS, CHECKED = "mirror", "pandas", "pandas, checked"
MOST = 1.0  # GB


def write_table(path: Path, photos: int) -> None:
    draw = random.Random(0)
    with open(path, "w") as file:
        file.write("id,url,landmark_id\n")
        for number in range(photos):
            url = f"https://upload.wikimedia.org/wikipedia/commons/{number % 256:02x}/Photo_of_a_street_{number}.jpg"
            url = f'"{url},_north"' if number % 7 == 0 else url  # some have commas
            file.write(f"{number * 0x9E3779B97F4A7C15 % 2**64:016x},{url},{draw.randrange(203094)}\n")


def measure(folder: str, way: str) -> None:
    if way != MIRROR:
        import pyarrow.csv  # noqa: F401
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    if way == MIRROR:
        mirror = FolderMirror(Path(folder))
        mirror.train(), mirror.ids("train")
    else:
        columns = ["id", "landmark_id"]
        train = pd.read_csv(f"{folder}/metadata/train.csv", engine="pyarrow", usecols=columns)
        if way == CHECKED:
            assert train["id"].is_unique and train["id"].str.fullmatch(PHOTO_ID.pattern).all() and train["id"].tolist()
    seconds = time.perf_counter() - began
    gigabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 / 1e9
    print(json.dumps([seconds, gigabytes]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=4_132_914)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--busy", action="store_true", help="measure on a busy machine too")
    parser.add_argument("--json", type=Path, help="add a line to this file")
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "WAY"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        return measure(*given.measure)
    timing.require_idle(given.busy)
    print(timing.machine())
    rates: dict[str, list[float]] = {MIRROR: [], PANDAS: [], CHECKED: []}
    peaks: dict[str, list[float]] = {name: [] for name in rates}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "metadata").mkdir()
        write_table(Path(folder) / "metadata/train.csv", given.photos)
        for _ in range(given.turns):
            for way in rates:
                command = [sys.executable, __file__, "--measure", folder, way]
                said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
                seconds, gigabytes = json.loads(said)
                rates[way].append(given.photos / seconds / 1e6)
                peaks[way].append(gigabytes)
    print(", ".join(f"{way}: {statistics.median(peak):.2f} GB" for way, peak in peaks.items()))
    pairs = [(MIRROR, PANDAS, 1.0), (MIRROR, CHECKED, 1.0)]
    timing.report(f"train.csv of {given.photos:,} rows", rates, "million rows/s", pairs, given.json)
    aim = f"within {MOST:g} GB"
    room = {way: [1 / one for one in peak] for way, peak in peaks.items()} | {aim: [1 / MOST] * given.turns}
    timing.report("the same, memory", room, "tables in a GB", [(MIRROR, aim, 1.0)], given.json)


if __name__ == "__main__":
    main()
