"""Seconds that --help of each command takes, beside those of a Python that does nothing.

    python benchmarks/startup.py [--turns 9] [--json FILE]

All commands take turns, and their bytecode is there. What a command takes more than `python -c pass` in the same turn
is to be below 0.3 s. A busy machine stretches the seconds of a core less than those of a clock.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)

from benchmarks import timing

MOST = 0.3  # seconds
NOTHING = "python -c pass"
DOORS = sorted(path.name for path in ROOT.glob("*.py") if "__main__" in path.read_text())


def started(arguments: list[str]) -> tuple[float, float]:
    """Seconds from start to end, and of the processor."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{arguments} ended with {process.returncode}")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--busy", action="store_true", help="measure on a busy machine all the same")
    parser.add_argument("--json", type=Path, help="add a line with the figures")
    given = parser.parse_args()
    timing.require_idle(given.busy)
    print(timing.machine())
    ways = {NOTHING: ["-c", "pass"]} | {door: [door, "--help"] for door in DOORS}
    for way in ways.values():
        started(way)  # writes the bytecode
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(given.turns):
        for name, way in ways.items():
            taken[name].append(started(way))
    rates = {name: [1 / (seconds - nothing[0]) for (seconds, _), nothing in zip(each, taken[NOTHING], strict=True)]
             for name, each in taken.items() if name != NOTHING}  # fmt: skip
    for name, each in taken.items():
        print(f"  {name:24}{statistics.median(seconds for seconds, _ in each):6.2f} s, "
              f"{statistics.median(cores for _, cores in each):5.2f} of a core")  # fmt: skip
    aim = f"{MOST} s more than {NOTHING}"
    rates[aim] = [1 / MOST] * given.turns
    timing.report(
        "--help, after what Python itself takes", rates, "/s", [(door, aim, 1.0) for door in DOORS], given.json
    )


if __name__ == "__main__":
    main()
