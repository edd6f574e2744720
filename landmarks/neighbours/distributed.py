"""The exact search on a Ray cluster: each device holds a part of the index, and all queries are sent to all of them.

The parts are read here and sent out, as many at a time as there are devices, and then the queries, a file at a time.
What is found is brought together here in the order of the parts, as one machine does with as many parts. Ray starts the
actors, one a device, and starts them again where their node was lost; the part of such a one is sent to whichever
device is free, for the queries that it has not answered.
"""

import itertools
import math
import time
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd

from landmarks.cluster import tasks
from landmarks.neighbours import search as exact
from landmarks.neighbours.search import Neighbours, Part, Query, Search, embeddings_of, outlines_of
from landmarks.running import threads
from landmarks.running.command import InputError, check_stop
from landmarks.running.progress import Progress

WORTH = 10.0  # seconds of this machine alone, below which a search is not shared out: the actors start in 2 to 3
CORE, ACCELERATOR = 35e9, 30e12  # multiply-adds a second of the search by one (landmarks/training/rates.toml)
AHEAD = 2  # query files in the hands of a device, and files of the index on the way to it
READY = -1  # in place of a query's number: a device is asked whether it is there
KEPT = 8  # query files in Ray's store for devices that have not had them yet; later ones are read again


def chosen(address: str) -> Search:
    """The exact search, on the cluster that the setting `cluster` names, or here where that is empty."""
    return partial(search, address=address) if address else exact.search


def search(
    query_files: list[Path],
    index_files: list[Path],
    k: int,
    parts: int = 1,
    wanted: pd.Index | None = None,
    keep: Path | None = None,
    *,
    address: str,
) -> Neighbours:
    """As `search.search`, on the devices of a cluster; here, if that takes no longer than to have them start.

    There are at least `parts` parts, and as many for each device. So each device has one in memory at a time, and this
    machine two files of the index for each device, some of the queries, and the result; what is found in a part waits
    here, 8 k bytes a query, while an earlier part is searched anew whose node was lost. A search that is stopped goes
    on, here or on a cluster, and costs what was being searched at a time: as many parts as there are devices.

    Args:
        address: as in `tasks.share`.

    Raises:
        InputError: also if there is no such cluster, or the search of a part failed `tasks.RETRIES` times again.
    """
    outlines, speed = outlines_of(index_files), ACCELERATOR if exact.accelerated() else CORE * threads.cores()
    counts = {
        path: len(one.ids) if wanted is None else int((wanted.get_indexer(one.ids) >= 0).sum())
        for path, one in zip(index_files, outlines, strict=True)
    }
    products = sum(counts.values()) * max((one.dimension for one in outlines), default=0)
    if products * sum(len(one.ids) for one in outlines_of(query_files)) / speed < WORTH:
        return exact.search(query_files, index_files, k, parts, wanted, keep)
    ray = tasks.connect(address)
    device, count = tasks.devices(ray.nodes())
    rounds = math.ceil(parts / (count := min(count, sum(map(bool, counts.values())))))
    devices = Devices(ray, device, count)
    scan = partial(_scan, devices, rounds, counts)
    try:
        return exact.search(query_files, index_files, k, rounds, wanted, keep, scan)
    finally:
        devices.close()


class Worker:
    """An actor: a part of the index, in memory as float32, and what of it is nearest to the photos of a file."""

    def __init__(self, cores: int, has_gpu: bool):
        threads.share = cores
        faiss.omp_set_num_threads(threads.cores())
        if has_gpu:
            import keras  # noqa: F401  # by which the search knows that there is one
        self.name, self.there, self.part = -1, 0, np.empty((0, 0), np.float32)

    def ready(self) -> bool:
        return True

    def hold(self, name: int, photos: int, first: int, embeddings: np.ndarray) -> bool:
        """Take a file of a part, whose first photo is the part's `first`; the part of before goes.

        Args:
            name: which differs each time that a part is sent.
        """
        if name != self.name:
            del self.part  # before there is another
            self.name, self.there, self.part = name, 0, np.empty((photos, embeddings.shape[1]), np.float32)
        self.part[first : first + len(embeddings)] = embeddings
        self.there += len(embeddings)
        return True

    def nearest(self, name: int, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Similarities and places, (n, k); None if this process does not have the whole part: it has started anew."""
        if (name, len(self.part)) != (self.name, self.there):
            return None
        similarities, places = zip(*exact.nearest(queries, self.part, k), strict=True)
        return np.concatenate(similarities), np.concatenate(places).astype(np.int32)


class Device:
    """An actor, seen from here: which part it was sent, and under which name."""

    def __init__(self, actor: Any):
        self.actor, self.part, self.name = actor, -1, -1


class Devices:
    """Actors, one a device, which start when they are first asked for.

    Args:
        kind, count: of the devices, as `tasks.devices` says them.
    """

    def __init__(self, ray: Any, kind: dict[str, float], count: int):
        self.ray, self.kind, self.count = ray, kind, count
        self.names = itertools.count()  # of parts that are sent
        self._all: list[Device] = []

    def all(self) -> list[Device]:
        if not self._all:
            actor = self.ray.remote(Worker).options(**tasks.options(self.kind, 1))
            cores, has_gpu = tasks.cores_of(self.kind), "num_gpus" in self.kind
            self._all = [Device(actor.remote(cores, has_gpu)) for _ in range(self.count)]
        return self._all

    def close(self) -> None:
        for device in self._all:
            self.ray.kill(device.actor)

    def answer(self, task: Any) -> Any:
        """What a task that is done has returned; the error if it has failed, or its node is lost."""
        try:
            return self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            return error


def _scan(
    devices: Devices, rounds: int, counts: dict[Path, int], whole: Part, queries: list[Query], bar: Progress
) -> Iterator[int]:
    """As `search.Scan`, of what all devices hold together, a part each: those that one machine makes of the index."""
    files: list[list[tuple[Path, np.ndarray | slice]]] = [[] for _ in range(devices.count)]
    photos, start = [0] * devices.count, whole.start
    for path, rows in whole.files:  # as `search.split_evenly` has it
        part = (2 * start + counts[path]) * rounds * devices.count // (2 * sum(counts.values())) % devices.count
        files[part].append((path, rows))
        photos[part] += counts[path]
        start += counts[path]
    starts = itertools.accumulate(photos, initial=whole.start)
    parts = [Part(*one, whole.dimension) for one in zip(files, starts, photos, strict=False) if one[0]]
    return Round(devices, parts, queries, bar).search()


class Round:
    """Queries, and no more parts of the index than there are devices."""

    def __init__(self, devices: Devices, parts: list[Part], queries: list[Query], bar: Progress):
        self.devices, self.ray, self.parts, self.queries, self.bar = devices, devices.ray, parts, queries, bar
        self.left = [deque(range(len(queries))) for _ in parts]  # queries that no device has in hand
        self.waiting = deque(range(len(parts)))  # that no device holds
        self.lost = [0] * len(parts)  # so many times
        self.found: list[dict[int, tuple[np.ndarray, np.ndarray]]] = [{} for _ in queries]  # by part, if not brought in
        self.brought = [0] * len(queries)  # in so many parts, the first ones
        self.flying: dict[Any, tuple[Device, int]] = {}  # the number of the query that each task searches for
        self.sent: dict[int, Any] = {}  # queries in Ray's store

    def search(self) -> Iterator[int]:
        """Bring in what is found, and yield the number of each query file as it is done."""
        resting, asked = list(self.devices.all()), 0.0  # devices that have not told yet that they are there, or again
        idle: list[Device] = []
        while min(self.brought) < len(self.parts):
            if resting and time.monotonic() > asked + 1:
                self.flying |= {device.actor.ready.remote(): (device, READY) for device in resting}
                resting, asked = [], time.monotonic()
            if not self.flying:
                time.sleep(0.1)
            done = self.ray.wait(list(self.flying), timeout=1)[0] if self.flying else []
            check_stop()
            for task in done:
                if task not in self.flying:  # as its device was lost meanwhile
                    continue
                device, number = self.flying.pop(task)
                answer = self.devices.answer(task)
                if number == READY:
                    if answer is not True and not isinstance(answer, self.ray.exceptions.ActorUnavailableError):
                        raise _failed(answer)
                    (idle if answer is True else resting).append(device)
                elif not isinstance(answer, tuple):
                    self.left[device.part].append(number)
                    self._lose(device, answer)
                    resting.append(device)
                else:
                    self.bar.update(len(answer[0]) * self.parts[device.part].photos)
                    self.found[number][device.part] = (answer[0].copy(), answer[1].copy())  # those are in Ray's store
                    if not self._ask(device):
                        idle.append(device)
                    if self._bring_in(number):
                        yield number
            while self.waiting and idle:
                device = idle.pop()
                device.part = self.waiting.popleft()
                error = self._fill(device)
                if error is None:
                    self._ask(device)
                else:
                    self._lose(device, error)
                    resting.append(device)

    def _fill(self, device: Device) -> Exception | None:
        """Send a device its part, a file after another; the error if it is lost meanwhile."""
        part, device.name, first = self.parts[device.part], next(self.devices.names), 0
        flying: deque[Any] = deque()
        for path, rows in part.files:
            embeddings = embeddings_of(path)[rows]
            flying.append(device.actor.hold.remote(device.name, part.photos, first, embeddings))
            first += len(embeddings)
            while len(flying) > (AHEAD if first < part.photos else 0):
                check_stop()
                if self.ray.wait([flying[0]], timeout=1)[0]:
                    answer = self.devices.answer(flying.popleft())
                    if isinstance(answer, Exception):
                        return answer
        return None

    def _ask(self, device: Device) -> bool:
        """Send a device its next queries; False if it has answered all."""
        left = self.left[device.part]
        in_hand = sum(one is device for one, _ in self.flying.values())
        while left and in_hand < AHEAD:
            number = left.popleft()
            if number not in self.sent:
                if len(self.sent) == KEPT:
                    del self.sent[next(iter(self.sent))]
                self.sent[number] = self.ray.put(embeddings_of(self.queries[number].path))
            k = self.queries[number].positions.shape[1]
            self.flying[device.actor.nearest.remote(device.name, self.sent[number], k)] = device, number
            in_hand += 1
        return in_hand > 0

    def _lose(self, device: Device, error: Exception | None) -> None:
        """Leave a device's part, and what it has not answered, to another. Raises InputError if it was lost before."""
        for task in [task for task, (one, _) in self.flying.items() if one is device]:
            self.left[device.part].append(self.flying.pop(task)[1])
        self.lost[device.part] += 1
        if self.lost[device.part] > tasks.RETRIES:
            raise _failed(error)
        self.waiting.append(device.part)

    def _bring_in(self, number: int) -> bool:
        """Bring what was found for a query file into its result, in the order of the parts; whether it is complete."""
        while self.brought[number] in self.found[number]:
            part = self.brought[number]
            similarities, places = self.found[number].pop(part)
            exact.bring_in(self.queries[number], slice(None), similarities, places, self.parts[part].start)
            self.brought[number] += 1
        return self.brought[number] == len(self.parts)


def _failed(error: Exception | None) -> InputError:
    reason = tasks.reason(error) if error else "its process starts anew again and again"
    return InputError(
        f"a part of the index could not be searched on the cluster: {reason}; run the same command again, what was "
        "found is kept"
    )
