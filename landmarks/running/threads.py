"""How many threads are worth their while, and what they are given."""

import math
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

share = math.inf  # of this machine's cores, where others of a cluster work beside this process


def cores() -> int:
    """The cores that this process may use: by its affinity, the CPU quota of its container and `share`; at least 1.

    `os.cpu_count()` tells the machine's: 64 threads on the 2 cores of a container wait for each other.
    """
    if hasattr(os, "process_cpu_count"):  # Python 3.13, which also heeds -X cpu_count
        count = os.process_cpu_count()
    else:
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, math.ceil(min(count or 1, quota(), share)))


def quota(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """The cores' worth of time that control groups of Linux, version 2 or 1, leave this process; else infinity.

    A group's limit holds for the groups in it. Inside a container its own group is often seen as the root.
    """
    limits = [math.inf]
    for line in own.read_text().splitlines() if own.exists() else []:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = groups / "cpu" if controllers else groups
        inside = root / group.lstrip("/")
        for folder in [inside, *inside.parents]:
            if not folder.is_relative_to(root):
                break
            limits.append(_limit(folder))
    return min(limits)


def _limit(folder: Path) -> float:
    try:
        if (folder / "cpu.max").exists():
            limit, period = (folder / "cpu.max").read_text().split()
        else:
            limit, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(limit) / int(period) if int(limit) > 0 and int(period) > 0 else math.inf
    except (OSError, ValueError):  # no such file, or no limit, which version 2 calls "max"
        return math.inf


def in_threads(function: Callable, items: Iterable, ahead: int, threads: int | None = None) -> Iterator[Any]:
    """`map(function, items)` in threads, in order, with at most `ahead` results waiting."""
    pool = ThreadPoolExecutor(threads or cores())
    try:
        yield from in_order(pool, function, items, ahead)
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(pool: Executor, function: Callable, items: Iterable, ahead: int) -> Iterator[Any]:
    """`map(function, items)` by a pool, in order, with at most `ahead` results waiting; what waits at an end goes."""
    waiting = iter(items)
    results = deque(pool.submit(function, item) for item in islice(waiting, ahead))
    try:
        while results:
            yield results.popleft().result()
            results.extend(pool.submit(function, item) for item in islice(waiting, 1))
    finally:
        for result in results:
            result.cancel()


def in_background(items: Iterable, ahead: int) -> Generator[Any]:
    """The items in order, made by a thread of their own, with at most `ahead` of them waiting.

    What making one raises is raised where it would have come. Its thread ends when the iterator is closed.
    """
    waiting: queue.Queue = queue.Queue(ahead)
    closed = threading.Event()

    def make() -> None:
        try:
            for item in items:
                waiting.put((item, None))
                if closed.is_set():
                    return
            waiting.put((None, StopIteration()))
        except BaseException as error:
            waiting.put((None, error))

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        closed.set()
        while thread.is_alive():  # it may be about to put one more
            try:
                waiting.get(timeout=0.01)
            except queue.Empty:
                thread.join(0.01)
