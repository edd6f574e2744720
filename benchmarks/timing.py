"""Ways of doing one thing, timed in turns on a machine that has nothing else to do: medians, spreads and ratios.

A shared machine's speed swings by a factor of two for minutes, so that two runs tell nothing of each other. Here all
ways take turns, a ratio is the median of those within a turn, and the load is noted before and after.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

BUSY = 0.5  # load, beyond which somebody else is at work; per core


def require_idle(force: bool = False) -> float:
    """The load of this machine per core over the last minute; ends the program where that is too much."""
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    if load > BUSY and not force:
        raise SystemExit(f"the load is {load:.2f} a core: wait for an idle machine, or --busy to measure all the same")
    return load


def in_turns(ways: dict[str, Callable[[], float]], turns: int, warm_up: int = 1) -> dict[str, list[float]]:
    """How much each way did a second, in each turn; it returns how much it did."""
    for _ in range(warm_up):
        for way in ways.values():
            way()
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            began = time.perf_counter()
            done = way()
            rates[name].append(done / (time.perf_counter() - began))
    return rates


def ratio(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """The median, least and largest ratio within a turn."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def machine() -> str:
    """This machine and the versions that matter."""
    model = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    names = ("keras", "tensorflow", "jax", "torch", "openvino", "numpy", "pillow", "faiss-cpu")
    versions = ", ".join(f"{name} {found}" for name in names if (found := _version(name)))
    return f"{os.cpu_count()} cores ({model or platform.processor()}), Python {platform.python_version()}, {versions}"


def report(
    question: str, rates: dict[str, list[float]], unit: str, pairs: list[tuple[str, str, float]], file: Path | None
) -> None:
    """Print each way's rate, and each pair's ratio with what it is to reach; add a line of JSON to `file`."""
    print(f"\n{question}")
    for name, values in rates.items():
        print(f"  {name:32}{statistics.median(values):12,.1f} {unit}  ({min(values):,.1f} to {max(values):,.1f})")
    rows = []
    for ours, theirs, least in pairs:
        median, low, high = ratio(rates[ours], rates[theirs])
        reached = "reached" if median >= least else "missed"
        print(f"  {ours} / {theirs}: {median:.2f} ({low:.2f} to {high:.2f}), to reach {least:g}: {reached}")
        rows.append([ours, theirs, median, low, high, least])
    if file:
        line = {
            "question": question, "unit": unit, "rates": rates, "pairs": rows, "load": os.getloadavg()[0],
            "date": str(date.today()), "machine": machine(),
        }  # fmt: skip
        with open(file, "a") as lines:
            print(json.dumps(line), file=lines)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
