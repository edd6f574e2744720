import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from unittest import mock

import faiss
import numpy as np
import pandas as pd
import pytest
import scripts
import tiny  # noqa: F401
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from landmarks.neighbours import search
from landmarks.running import command
from landmarks.running.features_file import Features, load_features, save_features, take
from landmarks.running.settings import ModelSettings


def write(folder: Path, name: str, embeddings: np.ndarray, landmark: np.ndarray | None = None) -> Path:
    path = folder / f"{name}.npz"
    ids = np.array([f"{name}-{row}" for row in range(len(embeddings))], dtype="U20")
    save_features(path, Features(ids, embeddings.astype(np.float16), landmark))
    return path


def random_embeddings(rng: np.random.Generator, count: int, dimension: int) -> np.ndarray:
    embeddings = rng.standard_normal((count, dimension)).astype(np.float32)
    return (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float16)


@st.composite
def searches(draw):
    """Files of queries and of the index, small whole numbers: sums of products are exact in any order, and many tie."""
    dimension = draw(st.integers(1, 5))
    photos = st.integers(0, 8).flatmap(lambda n: arrays(np.float16, (n, dimension), elements=st.integers(-2, 2)))
    files = st.lists(photos, min_size=1, max_size=5)
    return draw(files), draw(files), draw(st.integers(1, 12)), draw(st.integers(1, 7))


@settings(deadline=None, max_examples=80)
@given(searches(), st.integers(1, 4))
def test_equals_a_sort_of_the_whole_similarity_matrix(tmp_path_factory, case, batch):
    query_arrays, index_arrays, k, parts = case
    folder = tmp_path_factory.mktemp("features")
    query_files = [write(folder, f"query{n}", file) for n, file in enumerate(query_arrays)]
    index_files = [write(folder, f"index{n}", file) for n, file in enumerate(index_arrays)]
    with mock.patch.object(search, "BATCH", batch):
        found = search.search(query_files, index_files, k, parts)

    everything = np.concatenate(query_arrays).astype(np.float32) @ np.concatenate(index_arrays).astype(np.float32).T
    width = min(k, everything.shape[1])
    assert found.similarities.shape == found.positions.shape == (len(everything), k)
    assert found.similarities.dtype == np.float32 and found.positions.dtype == np.int32
    assert list(found.query_ids) == [f"query{n}-{row}" for n, f in enumerate(query_arrays) for row in range(len(f))]
    assert list(found.index_ids) == [f"index{n}-{row}" for n, f in enumerate(index_arrays) for row in range(len(f))]
    np.testing.assert_array_equal(found.similarities[:, :width], -np.sort(-everything, axis=1)[:, :width])
    assert np.all(found.similarities[:, width:] == -np.inf) and np.all(found.positions[:, width:] == -1)
    for row, positions, similarities in zip(everything, found.positions[:, :width], found.similarities, strict=True):
        assert len(set(positions)) == width
        np.testing.assert_array_equal(row[positions], similarities[:width])
        assert sorted(positions, key=lambda position: (-row[position], position)) == list(positions)


@pytest.mark.parametrize("parts", [1, 2, 3, 6, 20])
def test_real_embeddings_give_the_neighbours_of_numpy_whatever_the_parts(tmp_path, parts):
    rng = np.random.default_rng(0)
    index = [random_embeddings(rng, count, 64) for count in (700, 1, 300, 0, 450, 40)]
    queries = [random_embeddings(rng, count, 64) for count in (1100, 3)]
    index_files = [write(tmp_path, f"index{n}", file) for n, file in enumerate(index)]
    query_files = [write(tmp_path, f"query{n}", file) for n, file in enumerate(queries)]
    found = search.search(query_files, index_files, 100, parts)
    everything = np.concatenate(queries).astype(np.float64) @ np.concatenate(index).astype(np.float64).T
    best = np.argsort(-everything, axis=1)[:, :100]
    np.testing.assert_allclose(found.similarities, np.take_along_axis(everything, best, axis=1), atol=1e-6)
    # Two similarities closer than float32 tells apart may change places: one in a few thousand.
    assert np.mean(found.positions == best) > 0.99
    np.testing.assert_allclose(found.similarities, np.take_along_axis(everything, found.positions, axis=1), atol=1e-6)


def test_the_same_photo_in_several_parts_comes_in_index_order(tmp_path):
    photo, other = np.array([[0.6, 0.8]]), np.array([[-0.6, 0.8]])
    index = [write(tmp_path, f"index{n}", np.concatenate([other, photo])) for n in range(3)]
    found = search.search([write(tmp_path, "query", photo)], index, 3, parts=3)
    assert found.positions.tolist() == [[1, 3, 5]]
    assert len(set(found.similarities[0])) == 1


def test_carries_the_predicted_landmarks(tmp_path):
    index = [write(tmp_path, f"index{n}", np.eye(3), np.arange(3) + 10 * n) for n in range(2)]
    query = write(tmp_path, "query", np.eye(3)[:1], np.array([203093]))
    found = search.search([query], index, 2)
    assert found.query_landmark.tolist() == [203093]
    assert found.index_landmark.tolist() == [0, 1, 2, 10, 11, 12]
    without = search.search([write(tmp_path, "plain", np.eye(3))], [write(tmp_path, "plain_index", np.eye(3))], 2)
    assert without.query_landmark is None and without.index_landmark is None


@settings(deadline=None, max_examples=20)
@given(searches(), st.data())
def test_photos_that_are_not_wanted_are_as_if_not_there(tmp_path_factory, case, data):
    queries, index, k, parts = case
    folder = tmp_path_factory.mktemp("features")
    query_files = [write(folder, f"query{n}", file, np.arange(len(file))) for n, file in enumerate(queries)]
    index_files = [write(folder, f"index{n}", file, np.arange(len(file)) + 10 * n) for n, file in enumerate(index)]
    wanted, kept_files = ["elsewhere"], []
    for path in index_files:
        rows = np.array(
            data.draw(st.lists(st.booleans(), min_size=(n := len(load_features(path).ids)), max_size=n)), bool
        )
        kept = take(load_features(path), rows)
        kept_files.append(path.with_stem(f"kept-{path.stem}"))
        save_features(kept_files[-1], kept)
        wanted += kept.ids.tolist()
    found = search.search(query_files, index_files, k, parts, pd.Index(wanted))
    expected = search.search(query_files, kept_files, k, parts)
    for name, array in found._asdict().items():
        if name != "positions":
            np.testing.assert_array_equal(array, getattr(expected, name))
    # Which of those that tie for the k-th place are kept is left to faiss.
    sure = found.similarities > found.similarities[:, -1:]
    np.testing.assert_array_equal(found.positions[sure], expected.positions[sure])


def test_an_index_in_memory_finds_what_the_search_does(tmp_path):
    rng = np.random.default_rng(0)
    files = [write(tmp_path, f"index{n}", random_embeddings(rng, count, 8)) for n, count in enumerate((5, 0, 7))]
    chosen = rng.random(12) < 0.7
    query = write(tmp_path, "query", random_embeddings(rng, 1, 8))
    index = search.Index(files, chosen)
    wanted = pd.Index(np.concatenate([load_features(path).ids for path in files])[chosen])
    expected = search.search([query], files, 20, wanted=wanted)
    found = index.nearest(load_features(query), 20)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert [f"index{n}" for n in index.file] == [identity.partition("-")[0] for identity in index.ids]
    with pytest.raises(command.InputError, match="11 photos may be found or not, and 12 have features"):
        search.Index(files, chosen[1:])
    more = load_features(write(tmp_path, "index3", random_embeddings(rng, 4, 8)))  # no file of the index has these
    grown = search.Index(files, chosen, more)
    whole = search.search([query], [*files, tmp_path / "index3.npz"], 20, wanted=wanted.append(pd.Index(more.ids)))
    for one, other in zip(grown.nearest(load_features(query), 20), whole, strict=True):
        np.testing.assert_array_equal(one, other)
    assert [f"index{n}" for n in grown.file] == [identity.partition("-")[0] for identity in grown.ids]
    threads = faiss.omp_get_max_threads()
    with pytest.raises(AssertionError):  # of faiss
        index.nearest(load_features(write(tmp_path, "other", random_embeddings(rng, 1, 4))), 20)
    assert faiss.omp_get_max_threads() == threads


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(1, 40))
def test_parts_are_consecutive_and_even(counts, parts):
    groups = search.split_evenly(counts, parts)
    assert len(groups) <= parts
    assert [number for group in groups for number in group] == [number for number, count in enumerate(counts) if count]
    for group in groups:
        assert sum(counts[number] for number in group) <= sum(counts) / parts + max(counts)


def test_parts_by_hand():
    assert search.split_evenly([4, 4, 2], 2) == [[0], [1, 2]]
    assert search.split_evenly([7] * 12, 6) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    assert search.split_evenly([7] * 3, 5) == [[0], [1], [2]]


def test_memory_is_one_part_and_an_index_file_is_not_read_for_each_query_file(tmp_path):
    rng = np.random.default_rng(0)
    photos, dimension = 500, 1024
    index = [write(tmp_path, f"index{n}", random_embeddings(rng, photos, dimension)) for n in range(12)]
    queries = [write(tmp_path, f"query{n}", random_embeddings(rng, 50, dimension)) for n in range(4)]
    reads = []

    def counted(path):
        reads.append(path)
        return load_features(path)

    def peak(parts):
        tracemalloc.start()
        search.search(queries, index, 10, parts)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    part = 2 * photos * dimension * 4
    with mock.patch.object(search, "load_features", counted):
        assert peak(parts=6) < 2 * part  # one file is a quarter of it; the ids and results are of 6,200 photos
    assert peak(parts=1) > 6 * part
    assert [reads.count(path) for path in index] == [1] * 12
    assert [reads.count(path) for path in queries] == [6] * 4


def test_no_photos_at_all(tmp_path):
    empty, query = write(tmp_path, "empty", np.empty((0, 4))), write(tmp_path, "query", np.eye(4))
    found = search.search([query], [empty], 3)
    assert found.positions.tolist() == [[-1] * 3] * 4
    assert np.all(found.similarities == -np.inf) and len(found.index_ids) == 0
    assert search.search([empty], [query], 3).positions.shape == (0, 3)


def test_no_files(tmp_path):
    file = write(tmp_path, "file", np.eye(4))
    for query_files, index_files in ([], [file]), ([file], []):
        with pytest.raises(command.InputError, match="no features files"):
            search.search(query_files, index_files, 3)


def test_another_dimension_is_named(tmp_path):
    query, good = write(tmp_path, "query", np.eye(4)), write(tmp_path, "good", np.eye(4))
    bad = write(tmp_path, "bad", np.eye(5))
    with pytest.raises(command.InputError, match=r"bad\.npz has 5 dimensions.*delete the features folder") as error:
        search.search([query], [good, bad], 3)
    assert "query.npz has 4 dimensions" in str(error.value)


def test_landmarks_in_some_files_only_are_named(tmp_path):
    query = write(tmp_path, "query", np.eye(4), np.arange(4))
    with pytest.raises(command.InputError, match=r"plain\.npz has 4 dimensions and no landmark"):
        search.search([query], [write(tmp_path, "plain", np.eye(4))], 3)


@pytest.mark.parametrize("which", ["query", "index"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_named_before_it_is_searched(tmp_path, which, damage):
    rng = np.random.default_rng(0)
    files = {name: write(tmp_path, name, random_embeddings(rng, 50, 16)) for name in ("query", "index", "other")}
    data = bytearray(files[which].read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    files[which].write_bytes({"cut": data[: len(data) // 2], "flipped": data, "empty": b""}[damage])
    with mock.patch.object(search.faiss, "knn", side_effect=AssertionError("searched")):
        with pytest.raises(command.InputError, match=rf"{which}\.npz.*delete it and run the command again"):
            search.search([files["query"]], [files["other"], files["index"]], 3)


def test_stops_between_batches(tmp_path, monkeypatch):
    file = write(tmp_path, "file", np.eye(4))
    monkeypatch.setattr(command, "stop_event", mock.Mock(is_set=lambda: True))
    with pytest.raises(command.Stopped):
        search.search([file], [file], 3)


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
    assert read == index[:2]


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
