"""A search that was stopped or killed goes on, and what was searched is kept."""

import os
import shutil
import signal
import subprocess
import sys
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import scripts
import tiny  # noqa: F401
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from searches import random_embeddings, searches, write

from landmarks.neighbours import search
from landmarks.running import command
from landmarks.running.features_file import load_features, save_features
from landmarks.running.settings import ModelSettings


def same(found, expected) -> bool:
    """Bit for bit."""
    return all(np.array_equal(a, b) if a is not None else b is None for a, b in zip(found, expected, strict=True))


def knn_calls(monkeypatch, stop_at: int | None = None) -> list:
    """Count the calls of faiss, each one a batch of queries in a part; the run is asked to end at one of them."""
    calls, knn = [], search.faiss.knn

    def counted(*arguments, **settings):
        calls.append(len(arguments[0]))
        if len(calls) == stop_at:
            raise command.Stopped
        return knn(*arguments, **settings)

    monkeypatch.setattr(search.faiss, "knn", counted)
    return calls


@pytest.fixture
def files(tmp_path):
    """3 files of queries and 4 of the index: in 4 parts, 12 pairs."""
    rng = np.random.default_rng(0)
    queries = [write(tmp_path, f"query{n}", random_embeddings(rng, 30, 64), np.arange(30)) for n in range(3)]
    return queries, [write(tmp_path, f"index{n}", random_embeddings(rng, 50, 64), np.arange(50)) for n in range(4)]


@settings(deadline=None, max_examples=40)
@given(searches(), st.data())
def test_a_search_that_was_stopped_goes_on_and_finds_the_same(tmp_path_factory, case, data):
    query_arrays, index_arrays, k, parts = case
    folder = tmp_path_factory.mktemp("features")
    query_files = [write(folder, f"query{n}", file) for n, file in enumerate(query_arrays)]
    index_files = [write(folder, f"index{n}", file) for n, file in enumerate(index_arrays)]
    wanted = [f"index{n}-{row}" for n, file in enumerate(index_arrays) for row in range(0, len(file), 2)]
    arguments = query_files, index_files, k, parts, data.draw(st.sampled_from([None, pd.Index(wanted)]))
    with pytest.MonkeyPatch.context() as patch:
        calls = knn_calls(patch)
        expected = search.search(*arguments)
    at_once = len(calls)
    with pytest.MonkeyPatch.context() as patch:
        calls = knn_calls(patch, stop_at := data.draw(st.integers(1, at_once + 1)))
        try:
            found = search.search(*arguments, folder / "kept")
        except command.Stopped:
            found = search.search(*arguments, folder / "kept")
    assert same(found, expected)
    assert len(calls) == at_once + (stop_at <= at_once)  # a batch is a pair here: one pair is searched twice


@pytest.mark.parametrize("pair", [1, 5, 12])
def test_a_killed_search_costs_one_pair(files, tmp_path, monkeypatch, pair):
    queries, index = files
    script = f"""
import os, signal, pathlib
from landmarks.neighbours import search
calls, knn = [], search.faiss.knn
def killed(*arguments, **settings):
    calls.append(1)
    if len(calls) == {pair}:
        os.kill(os.getpid(), signal.SIGKILL)
    return knn(*arguments, **settings)
search.faiss.knn = killed
folder = pathlib.Path({str(tmp_path)!r})
files = [sorted(folder.glob(name)) for name in ("query*.npz", "index*.npz")]
search.search(*files, 10, 4, None, folder / "kept")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    calls = knn_calls(monkeypatch)
    found = search.search(queries, index, 10, 4, None, tmp_path / "kept")
    assert len(calls) == 12 - (pair - 1)
    assert same(found, search.search(queries, index, 10, 4))


def test_what_was_searched_is_read_whatever_the_parts_by_as_many_or_fewer_neighbours(files, tmp_path, monkeypatch):
    queries, index = files
    kept = tmp_path / "kept"
    search.search(queries, index, 10, 4, None, kept)
    calls = knn_calls(monkeypatch)
    reads = mock.patch.object(search, "load_features", side_effect=AssertionError("embeddings read"))
    with reads:
        ten, three = (search.search(queries, index, k, 2, None, kept) for k in (10, 3))
    assert calls == []
    assert same(ten, search.search(queries, index, 10, 4)) and same(three, search.search(queries, index, 3, 4))
    calls.clear()
    assert same(search.search(queries, index, 11, 4, None, kept), search.search(queries, index, 11, 4))
    assert len(calls) == 12 + 12


def test_a_stopped_search_serves_one_for_fewer_neighbours_too(files, tmp_path, monkeypatch):
    queries, index = files
    calls = knn_calls(monkeypatch, stop_at=6)
    with pytest.raises(command.Stopped):
        search.search(queries, index, 10, 4, None, tmp_path / "kept")
    found = search.search(queries, index, 4, 4, None, tmp_path / "kept")
    assert len(calls) == 13
    assert same(found, search.search(queries, index, 4, 4))


def test_copied_files_with_new_times_are_the_same(files, tmp_path, monkeypatch):
    queries, index = files
    search.search(queries, index, 10, 4, None, tmp_path / "kept")
    for path in queries + index:
        os.utime(path, ns=(0, 0))
    calls = knn_calls(monkeypatch)
    search.search(queries, index, 10, 4, None, tmp_path / "kept")
    assert calls == []


@pytest.mark.parametrize(("change", "pairs"), [("query1", 4), ("index0", 12), ("index2", 12), ("wanted", 12)])
def test_other_embeddings_are_searched_anew(files, tmp_path, monkeypatch, change, pairs):
    queries, index = files
    kept, wanted = tmp_path / "kept", None
    search.search(queries, index, 10, 4, None, kept)
    if change == "wanted":
        wanted = pd.Index([f"index{n}-{row}" for n in range(4) for row in range(49)])
    else:
        write(tmp_path, change, random_embeddings(np.random.default_rng(9), 50 if "index" in change else 30, 64),
              np.arange(50 if "index" in change else 30))  # fmt: skip
    calls = knn_calls(monkeypatch)
    found = search.search(queries, index, 10, 4, wanted, kept)
    assert len(calls) == pairs
    assert same(found, search.search(queries, index, 10, 4, wanted))


def test_other_ids_need_no_new_search(files, tmp_path, monkeypatch):
    queries, index = files
    search.search(queries, index, 10, 4, None, tmp_path / "kept")
    features = load_features(index[0])
    save_features(index[0], features._replace(ids=np.char.add(features.ids, "x")))
    calls = knn_calls(monkeypatch)
    assert search.search(queries, index, 10, 4, None, tmp_path / "kept").index_ids[0] == "index0-0x"
    assert calls == []


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_damaged_results_are_made_anew(files, tmp_path, monkeypatch, damage):
    queries, index = files
    search.search(queries, index, 10, 4, None, kept := tmp_path / "kept")
    path = kept / "query1.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    damaged = {"cut": data[: len(data) // 2], "flipped": data, "empty": b"", "other": queries[1].read_bytes()}
    path.write_bytes(damaged[damage])
    calls = knn_calls(monkeypatch)
    found = search.search(queries, index, 10, 4, None, kept)
    assert len(calls) == 4
    assert same(found, search.search(queries, index, 10, 4))


def test_one_result_is_kept_for_each_query_file_and_no_others(files, tmp_path, monkeypatch):
    queries, index = files
    kept = tmp_path / "kept"
    sizes = set()
    for stop_at in (4, 7, 5, None):
        calls = knn_calls(monkeypatch, stop_at)
        try:
            search.search(queries, index, 10, 4, None, kept)
        except command.Stopped:
            assert len(calls) == stop_at
        sizes |= {path.stat().st_size for path in kept.iterdir()}
        assert sorted(path.name for path in kept.iterdir()) == [path.name for path in queries]
    assert max(sizes) < 30 * 10 * 8 + 1500
    (kept / "part-query0.npz").write_bytes(b"left by a kill")
    search.search(queries[:1], index, 10, 4, None, kept)
    assert [path.name for path in kept.iterdir()] == ["query0.npz"]


def test_a_damaged_file_costs_no_finished_part(files, tmp_path, monkeypatch):
    queries, index = files
    damaged = bytearray(index[2].read_bytes())
    begin = damaged.index(load_features(index[2]).embeddings.tobytes())
    damaged[begin + 5000] ^= 1  # zipfile reads 4,096 bytes at once, for the header too
    index[2].write_bytes(damaged)
    calls = knn_calls(monkeypatch)
    with pytest.raises(command.InputError, match=r"index2\.npz.*delete it and run the command again"):
        search.search(queries, index, 10, 4, None, tmp_path / "kept")
    assert len(calls) == 6
    write(tmp_path, "index2", random_embeddings(np.random.default_rng(9), 40, 64), np.arange(40))  # embedded otherwise
    found = search.search(queries, index, 10, 4, None, tmp_path / "kept")
    assert len(calls) == 12
    assert same(found, search.search(queries, index, 10, 4))


def test_stops_while_a_part_is_read(files, monkeypatch):
    queries, index = files
    read = []

    def stop_at_the_second(path):
        read.append(path)
        if len(read) == 2:
            monkeypatch.setattr(command, "stop_event", mock.Mock(is_set=lambda: True))
        return load_features(path)

    monkeypatch.setattr(search, "load_features", stop_at_the_second)
    with pytest.raises(command.Stopped):
        search.search(queries, index, 3)
    assert read in (index[:2], index[:3])  # the third may be read ahead, the fourth never


BOTH_SCRIPTS = """
import os, runpy, signal, sys
import faiss
mirror, work, kill_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
calls, knn = [], faiss.knn

def counted(*arguments, **settings):
    calls.append(1)
    if len(calls) == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return knn(*arguments, **settings)

faiss.knn = counted
for script in ("recognition.py", "retrieval.py"):
    begun = len(calls)
    sys.argv = [script, f"--work={work}", f"--mirror={mirror}", "--votes=3", "--index-parts=2", "--image-size=32",
                "--backbone=Tiny", "--weights=none", "--no-calibrate", *PLAIN]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code
    print(script, len(calls) - begun, flush=True)
"""


def test_both_scripts_killed_in_their_searches_go_on(tiny_mirror, tmp_path):
    """Searches of test by train, of test in the index, of the index by train; with a model that was not trained."""
    import model as models

    for name in ("killed", "at once"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "labels.csv").write_text("class,landmark_id\n0,10\n1,20\n2,30\n")
        if name == "killed":
            models.save(
                models.build_model(3, ModelSettings(backbone="Tiny", weights="none")),
                tmp_path / name / "model.keras",
            )
        else:
            shutil.copy(tmp_path / "killed/model.keras", tmp_path / name)

    def run(name, kill_at=0):
        done = scripts.run("-c", f"PLAIN = {scripts.PLAIN}\n{BOTH_SCRIPTS}", tiny_mirror, tmp_path / name, kill_at)
        assert done.returncode == (-signal.SIGKILL if kill_at else 0), done.stderr[-3000:]
        calls = [line.split() for line in done.stdout.splitlines() if line.startswith("re") and ".py " in line]
        return {script: int(count) for script, count in calls}

    at_once = run("at once")
    # Test by train in 2 parts; then as many of test in the index, and of the index by train, but not again of test.
    test, index = (len(list((tmp_path / "at once/features").glob(f"{split}/*.npz"))) for split in ("test", "index"))
    assert at_once == {"recognition.py": 2 * test, "retrieval.py": 2 * test + 2 * index}
    assert run("killed", kill_at=2) == {}
    last = 2 * test - 1 + 2 * test + 2 * index
    assert run("killed", kill_at=last) == {"recognition.py": 2 * test - 1}
    assert run("killed") == {"recognition.py": 0, "retrieval.py": 1}
    for name in ("recognition.csv", "retrieval.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "at once" / name).read_bytes()
