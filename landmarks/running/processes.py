"""Worker processes, for work that holds Python's lock: threads stop to gain where there are many cores."""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from typing import Any

from landmarks.running import command, threads
from landmarks.running.command import InputError
from landmarks.running.threads import cores, in_order

FROM_CORES = 6  # threads on 16 cores decode 2,000 photos a second, as many as on five (benchmarks/accelerator.py)
TOLD = 5  # seconds in which this process is told to stop too, where a signal went to all


def worth_it() -> bool:
    """Whether this machine has more cores than threads of Python keep busy; within an actor of Ray threads it is."""
    return math.isinf(threads.share) and cores() >= FROM_CORES


def in_processes(function: Callable, items: Iterable, ahead: int) -> Iterator[Any]:
    """As `threads.in_threads`, in the worker processes.

    Raises InputError if the system has ended one of them, and Stopped where this one is asked to end too.
    """
    try:
        yield from in_order(pool(), function, items, ahead)
    except BrokenProcessPool as error:
        command.stop_event.wait(TOLD)  # a batch system signals all, and the main thread may be within a step
        command.check_stop()
        raise InputError(
            "the system has ended a process that decodes photos, as where memory is short: run the same command again"
        ) from error


@cache
def pool() -> ProcessPoolExecutor:
    """One process a core, for as long as this one lives; spawned, as a fork is no copy of a device's state."""
    return ProcessPoolExecutor(cores(), multiprocessing.get_context("spawn"), begin_worker)


def begin_worker() -> None:
    """What a spawned worker does first, so that it ends with its pool, or its parent, and not before."""
    for name in {"SIGINT", "SIGHUP"} & set(dir(signal)):  # Ctrl-C and a closed terminal are the parent's to heed
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed closes no pool, and its workers would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
