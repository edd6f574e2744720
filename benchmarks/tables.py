"""How long a train.csv of the full size takes to read, and how much memory, against pandas' checks alone.

    python benchmarks/tables.py [--photos 4132914]

Peaks are of a process of their own for each way, above what it has after its imports. `rows` reads every line and
checks its length, id and landmark, and that no id comes twice; `again` asks the mirror a second and a third time, for
the table and for the ids; `is_unique` reads likewise but asks pandas whether an id comes twice, as it was before.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project; there `tables` is not this file

from landmarks.mirrors.folder import FolderMirror

WAYS = ("rows", "again", "is_unique")


def write_table(path: Path, photos: int) -> None:
    draw = random.Random(0)
    with open(path, "w") as file:
        file.write("id,url,landmark_id\n")
        for number in range(photos):
            url = f"https://upload.wikimedia.org/wikipedia/commons/{number % 256:02x}/Photo_of_a_street_{number}.jpg"
            url = f'"{url},_north"' if number % 7 == 0 else url  # some have commas
            file.write(f"{number * 0x9E3779B97F4A7C15 % 2**64:016x},{url},{draw.randrange(203094)}\n")


def measure(folder: str, way: str) -> None:
    mirror = FolderMirror(Path(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    train = mirror.train()
    if way == "again":
        began = time.perf_counter()
        mirror.train(), mirror.ids("train")
    if way == "is_unique":
        assert pd.Series(train["id"].to_numpy(object)).is_unique
    seconds = time.perf_counter() - began
    gigabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 / 1e9
    print(json.dumps({"seconds": seconds, "gigabytes": gigabytes}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=4_132_914)
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(*arguments.measure)
    with tempfile.TemporaryDirectory() as folder:
        write_table(Path(folder) / "train.csv", arguments.photos)
        for _ in range(3):
            found = {}
            for way in WAYS:
                command = [sys.executable, __file__, "--measure", folder, way]
                found[way] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            print(", ".join(f"{way} {one['seconds']:.1f} s {one['gigabytes']:.2f} GB" for way, one in found.items()),
                  f"(is_unique / rows: {found['is_unique']['seconds'] / found['rows']['seconds']:.2f})")  # fmt: skip


if __name__ == "__main__":
    main()
