import tracemalloc
from unittest import mock

import faiss
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from searches import random_embeddings, searches, write

from landmarks.neighbours import search
from landmarks.running import command
from landmarks.running.features_file import load_features, save_features, take


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
