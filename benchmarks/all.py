"""All benchmarks of speed, one after another, and their table: benchmarks/RESULTS.md.

    python benchmarks/all.py [--only decode training ...]

Each script is a process of its own and measures what it compares in turns; it begins when the machine has been idle for
a while. Half an hour on two cores. What an accelerator reached stands apart, in accelerator.jsonl, and is measured by
benchmarks/accelerator.py where there is one; here it is only put into the table. NOTES.md, which says where the time
goes, follows it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent)

from benchmarks import timing

SCRIPTS: dict[str, list[str]] = {
    "startup": [],
    "tables": [],
    "scoring": [],
    "decode": [],
    "training": [],
    "throttled": [],
    "embedding": [],
    "onednn": [],
    "search": [],
    "streaming": [],
    "compression": [],
    "verification": [],
}
LINES, NOTES, RESULTS = HERE / "results.jsonl", HERE / "NOTES.md", HERE / "RESULTS.md"
ACCELERATOR = HERE / "accelerator.jsonl"
PATIENCE = 900  # seconds that a benchmark waits for an idle machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="NAME", default=list(SCRIPTS), help="these; of others the last")
    given = parser.parse_args()
    for name in given.only:
        kept = [line for line in _lines(LINES) if line["script"] != name]
        fresh = HERE / f"part-{name}.jsonl"
        fresh.unlink(missing_ok=True)
        _wait_for_idle()
        print(f"\n== {name}", flush=True)
        done = subprocess.run(
            [sys.executable, str(HERE / f"{name}.py"), *SCRIPTS[name], f"--json={fresh}"], check=False
        )
        if done.returncode:
            raise SystemExit(f"benchmarks/{name}.py failed")
        new = [{"script": name, **line} for line in _lines(fresh)]
        fresh.unlink()
        LINES.write_text("".join(json.dumps(line) + "\n" for line in [*kept, *new]))
    order = list(SCRIPTS)
    lines = sorted(_lines(LINES), key=lambda line: order.index(line["script"]))
    parts = ["# What is how fast", "", f"Made by `python benchmarks/all.py`, {date.today()}.", "", *_section(lines)]
    if ACCELERATOR.exists():
        parts += ["## On an accelerator", "", *_section(_lines(ACCELERATOR))]
    RESULTS.write_text("\n".join(parts) + "\n" + (NOTES.read_text() if NOTES.exists() else ""))
    print(RESULTS)


def _section(lines: list[dict]) -> list[str]:
    """A table for each machine: a row for each way, with the ratios that it is to reach."""
    rows: list[str] = []
    for machine in dict.fromkeys(line["machine"] for line in lines):
        rows += [
            f"{machine}.",
            "",
            "| | median | least to most | beside | ratio | to reach | |",
            "|---|---|---|---|---|---|---|",
        ]
        for line in (line for line in lines if line["machine"] == machine):
            rows.append(f"| **{line['question']}**, {line['date']}, load {line['load']:.1f} | | | | | | |")
            for name, values in line["rates"].items():
                rate = f"{statistics.median(values):,.4g} {line['unit']} | {min(values):,.4g} to {max(values):,.4g}"
                pairs = [pair for pair in line["pairs"] if pair[0] == name] or [None]
                for number, pair in enumerate(pairs):
                    told = f"{name} | {rate}" if not number else " | |"
                    rows.append(f"| {told} | {_pair(pair)} |")
        rows.append("")
    return rows


def _pair(pair: list | None) -> str:
    if pair is None:
        return " | | | "
    _, beside, median, low, high, least = pair
    return f"{beside} | {median:.2f} ({low:.2f} to {high:.2f}) | {least:g} | {'yes' if median >= least else 'no'}"


def _wait_for_idle() -> None:
    end = time.monotonic() + PATIENCE
    while os.getloadavg()[0] / (os.cpu_count() or 1) > timing.BUSY:
        if time.monotonic() > end:
            raise SystemExit(f"the machine has been busy for {PATIENCE // 60} minutes")
        time.sleep(5)


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    main()
