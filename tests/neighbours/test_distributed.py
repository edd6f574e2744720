"""On a cluster of several nodes, all on this machine: what is found is what one machine finds."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import recipe_with
from searches import random_embeddings, write

from landmarks.cluster import tasks
from landmarks.neighbours import approximate, distributed
from landmarks.neighbours import search as exact
from landmarks.running import command
from landmarks.running.command import InputError, Stopped

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray and what it takes, in its own processes and threads

K = 100


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[list[Path], list[Path]]:
    """Queries and an index of several files, one of them empty, with a photo that is there five times."""
    folder, rng = tmp_path_factory.mktemp("features"), np.random.default_rng(0)
    index = [random_embeddings(rng, count, 64) for count in (700, 1, 300, 0, 450, 40, 500)]
    for file in (0, 2, 4, 5, 6):
        index[file][7] = index[0][7]
    queries = [random_embeddings(rng, count, 64) for count in (1100, 3, 0, 200, 90)]
    queries[3][5] = index[0][7]
    return (
        [write(folder, f"query{n}", file) for n, file in enumerate(queries)],
        [write(folder, f"index{n}", file) for n, file in enumerate(index)],
    )


@pytest.fixture(autouse=True)
def all_are_worth_it(monkeypatch):
    monkeypatch.setattr(distributed, "WORTH", 0)


def require_same(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def sent(monkeypatch) -> list[list[Path]]:
    """The files of the parts that were sent, in their order."""
    parts, fill = [], distributed.Round._fill

    def noting(self, device):
        parts.append([path for path, _ in self.parts[device.part].files])
        return fill(self, device)

    monkeypatch.setattr(distributed.Round, "_fill", noting)
    return parts


def test_finds_what_one_machine_finds_and_sends_each_part_once(cluster, files, sent):
    found = distributed.search(*files, K, 6, address=cluster.address)
    require_same(found, exact.search(*files, K, 6))
    assert len(sent) > 2  # that is, in rounds of two
    assert sorted(path for part in sent for path in part) == sorted(path for path in files[1] if path.stem != "index3")


def test_parts_are_as_many_for_each_device_and_hold_what_is_wanted(cluster, files, sent):
    wanted = pd.Index([f"index{n}-{row}" for n in range(7) for row in range(500) if (n + row) % 3])
    found = distributed.search(*files, 1200, 1, wanted, address=cluster.address)
    require_same(found, exact.search(*files, 1200, 2, wanted))
    assert len(sent) == 2
    assert (found.positions[:, len(found.index_ids) :] == -1).all() and len(found.index_ids) < 1200


def test_what_a_stopped_search_has_found_is_kept_for_a_cluster_and_for_one_machine(
    cluster, files, tmp_path, monkeypatch
):
    expected = exact.search(*files, K, 6)
    finished = []

    def keep_result(path, *found):
        before(path, *found)
        finished.append(path)
        if len(finished) in (3, 7):
            command.stop_event.set()

    before = exact.keep_result
    monkeypatch.setattr(exact, "keep_result", keep_result)
    for by in (distributed.chosen(cluster.address), distributed.chosen(cluster.address), exact.search):
        try:
            require_same(by(*files, K, 6, keep=tmp_path), expected)
            break
        except Stopped:
            command.stop_event.clear()
    assert by is exact.search
    assert len(finished) <= 7 + 5 * 4  # the last round, of two parts for one machine, is all that may be left


def test_a_node_that_is_lost_leaves_its_part_to_the_others(cluster, files, sent, monkeypatch):
    lost, killed = cluster.add_node(num_cpus=1), []

    def bring_in(*arguments):
        if not killed:
            killed.append(lost)
            cluster.remove_node(lost, allow_graceful=False)
        before(*arguments)

    expected, before = exact.search(*files, K, 3), exact.bring_in
    monkeypatch.setattr(exact, "bring_in", bring_in)
    monkeypatch.setattr(distributed, "AHEAD", 1)
    require_same(distributed.search(*files, K, 3, address=cluster.address), expected)
    assert killed and len(sent) in (3, 3 + 1)  # a busy machine's may have answered all before it went


class Dying(distributed.Worker):
    mark = Path()

    def nearest(self, name, queries, k):
        if not self.mark.exists():
            self.mark.touch()
            os._exit(1)
        return super().nearest(name, queries, k)


class Failing(distributed.Worker):
    mark, always = Path(), False

    def nearest(self, name, queries, k):
        if self.always or not self.mark.exists():
            self.mark.touch()
            raise RuntimeError("no such luck")
        return super().nearest(name, queries, k)


@pytest.mark.parametrize("kind", [Dying, Failing])
def test_a_part_that_was_lost_is_sent_again(cluster, files, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(distributed, "Worker", type("Once", (kind,), {"mark": tmp_path / "mark"}))
    require_same(distributed.search(*files, K, 2, address=cluster.address), exact.search(*files, K, 2))
    assert (tmp_path / "mark").exists()


def test_a_part_that_always_fails_ends_the_run_in_a_line(cluster, files, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "Worker", type("Never", (Failing,), {"always": True, "mark": tmp_path / "mark"}))
    with pytest.raises(InputError, match="could not be searched on the cluster: .*no such luck; run the same command"):
        distributed.search(*files, K, 2, address=cluster.address)


def test_a_stop_ends_the_actors(cluster, files, tmp_path, monkeypatch):
    def nearest(self, *_):
        (tmp_path / "began").touch()
        time.sleep(600)

    def stop():
        while not (tmp_path / "began").exists():
            time.sleep(0.1)
        command.stop_event.set()

    monkeypatch.setattr(distributed, "Worker", type("Slow", (distributed.Worker,), {"nearest": nearest}))
    threading.Thread(target=stop).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        distributed.search(*files, K, 2, address=cluster.address)
    assert time.monotonic() - began < 300


def test_small_searches_and_those_without_a_cluster_stay_here(files, monkeypatch):
    monkeypatch.setattr(distributed, "WORTH", 1)
    monkeypatch.setattr(tasks, "connect", None)
    require_same(distributed.search(*files, K, 6, address="auto"), exact.search(*files, K, 6))
    with pytest.raises(InputError, match="no features files to search"):
        distributed.search([], [], 1, address="auto")
    assert approximate.chosen(recipe_with().run) is exact.search
    assert approximate.chosen(recipe_with(cluster="auto").run).func is distributed.search
    assert approximate.chosen(recipe_with(cluster="auto", search="ivfpq").run).func is approximate.search
