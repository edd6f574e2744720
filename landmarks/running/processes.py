"""Worker processes, for work that holds Python's lock: threads stop to gain where there are many cores."""

import math
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from functools import cache

from landmarks.running import threads
from landmarks.running.threads import cores

FROM_CORES = 6  # threads on 16 cores decode 2,000 photos a second, as many as on five (benchmarks/accelerator.py)


def worth_it() -> bool:
    """Whether this machine has more cores than threads of Python keep busy; within an actor of Ray threads it is."""
    return math.isinf(threads.share) and cores() >= FROM_CORES


@cache
def pool() -> ProcessPoolExecutor:
    """One process a core, for as long as this one lives; spawned, as a fork is no copy of a device's state."""
    return ProcessPoolExecutor(cores(), multiprocessing.get_context("spawn"), _begin)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to heed
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed closes no pool, and its workers would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
