import os
import tracemalloc

import faiss
import numpy as np
import pytest

from landmarks.neighbours.expansion import expand
from landmarks.neighbours.search import search
from landmarks.running import command
from landmarks.running.features_file import Features, load_features, save_features


def write(folder, name, embeddings, dtype=np.float32):
    ids = np.array([f"{name}{row}" for row in range(len(embeddings))], dtype="U20")
    scores = np.linspace(0, 1, len(ids), dtype=np.float32)
    save_features(folder / f"{name}.npz", Features(ids, embeddings.astype(dtype), np.arange(len(ids)), scores))
    return folder / f"{name}.npz"


def unit(rng, count, dimension):
    embeddings = rng.standard_normal((count, dimension)) + 0.5
    return (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32)


def naive_expand(queries, index, count, alpha, own=False):
    """The definition, on whole matrices."""
    similarities = queries @ index.T
    if own:
        np.fill_diagonal(similarities, -np.inf)
    expanded = []
    for query, row in zip(queries, similarities, strict=True):
        nearest = [place for place in np.argsort(-row)[:count] if row[place] > -np.inf]
        total = query + sum(max(row[place], 0) ** alpha * index[place] for place in nearest)
        expanded.append(total / np.linalg.norm(total))
    return np.array(expanded)


@pytest.mark.parametrize("parts", [1, 2, 9])
@pytest.mark.parametrize("count, alpha", [(1, 3.0), (4, 3.0), (5, 0.0), (60, 1.0)])
def test_query_expansion_equals_a_loop(tmp_path, parts, count, alpha):
    rng = np.random.default_rng(0)
    queries, index = ([unit(rng, n, 8) for n in counts] for counts in ((13, 0, 20, 1), (9, 17, 0, 14)))
    query_files = [write(tmp_path, f"query{n}-", part) for n, part in enumerate(queries)]
    index_files = [write(tmp_path, f"index{n}-", part) for n, part in enumerate(index)]
    files = expand(query_files, index_files, tmp_path / "expanded", count, alpha, parts)
    assert files == [tmp_path / "expanded" / path.name for path in query_files]
    new = [load_features(path) for path in files]
    for before, after in zip(map(load_features, query_files), new, strict=True):
        for name in ("ids", "landmark", "score"):
            np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
        assert after.embeddings.dtype == np.float32
    expected = naive_expand(np.concatenate(queries), np.concatenate(index), count, alpha)
    np.testing.assert_allclose(np.concatenate([features.embeddings for features in new]), expected, atol=1e-5)


@pytest.mark.parametrize("parts", [1, 3])
def test_database_augmentation_equals_a_loop(tmp_path, parts):
    rng = np.random.default_rng(1)
    index = [unit(rng, n, 8) for n in (9, 17, 14)]
    files = [write(tmp_path, f"index{n}-", part) for n, part in enumerate(index)]
    new = expand(files, files, tmp_path / "augmented", 3, 2.0, parts)
    everything = np.concatenate(index)
    found = np.concatenate([load_features(path).embeddings for path in new])
    np.testing.assert_allclose(found, naive_expand(everything, everything, 3, 2.0, own=True), atol=1e-5)
    assert search(new, new, 3).positions[:, 0].tolist() == list(range(40))  # a second search runs


def test_a_photo_is_not_its_own_neighbour_even_among_copies(tmp_path):
    # Photos 0 to 2 are one: each is its copies' neighbour, whatever the order in which the search names them.
    embeddings = np.array([[1, 0]] * 3 + [[0.6, 0.8]], np.float32)
    files = [write(tmp_path, "index", embeddings)]
    new = load_features(expand(files, files, tmp_path / "augmented", 2, 1.0)[0])
    np.testing.assert_allclose(new.embeddings[:3], [[1, 0]] * 3, atol=1e-6)
    expected = np.array([0.6, 0.8]) + 0.6 * np.array([2, 0])
    np.testing.assert_allclose(new.embeddings[3], expected / np.linalg.norm(expected), atol=1e-6)


def test_expansion_by_hand_in_half_precision(tmp_path):
    # The query and 0.8**2 of photo 1; photo 0 is on the other side and counts 0.
    query = write(tmp_path, "query", np.array([[1, 0]]), np.float16)
    index = write(tmp_path, "index", np.array([[-0.6, 0.8], [0.8, 0.6]]), np.float16)
    new = load_features(expand([query], [index], tmp_path / "new", 2, 2.0)[0])
    assert new.embeddings.dtype == np.float16
    expected = np.array([1 + 0.64 * 0.8, 0.64 * 0.6])
    np.testing.assert_allclose(new.embeddings, [expected / np.linalg.norm(expected)], atol=1e-3)


def test_memory_of_expansion_is_that_of_one_part(tmp_path):
    rng = np.random.default_rng(0)
    files = [write(tmp_path, f"index{n}-", unit(rng, 300, 256)) for n in range(12)]

    def peak(parts):
        tracemalloc.start()
        expand(files, files, tmp_path / f"new{parts}", 3, parts=parts)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    file = 300 * 256 * 4
    # Reading a file takes a few times its size for a moment.
    assert peak(12) < 10 * file < 30 * file < peak(1)


def test_goes_on_after_a_stop_and_keeps_what_is_done(tmp_path):
    rng = np.random.default_rng(0)
    files = [write(tmp_path, f"index{n}-", unit(rng, 10, 8)) for n in range(4)]
    expected = [load_features(path).embeddings for path in expand(files, files, tmp_path / "at once", 3)]
    calls = []

    def search_once(*arguments, **settings):
        calls.append(arguments[0])
        if len(calls) == 3:
            raise command.Stopped
        return search(*arguments, **settings)

    new = tmp_path / "new"
    with pytest.raises(command.Stopped):
        expand(files, files, new, 3, parts=4, search=search_once)
    assert sorted(path.name for path in new.glob("*.npz")) == ["index0-.npz", "index1-.npz"]
    (new / "index0-.npz").write_bytes(b"damaged")
    written = expand(files, files, new, 3, parts=4, search=search_once)
    assert calls[3:] == [files[:1], files[2:3], files[3:]]
    for path, embeddings in zip(written, expected, strict=True):
        np.testing.assert_allclose(load_features(path).embeddings, embeddings, atol=1e-6)
    expand(files, files, new, 3, parts=2, search=search_once)
    assert len(calls) == 6  # nothing is left to do, and how many parts there were is no matter


def test_a_stopped_search_goes_on_and_goes_when_it_is_used(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    files = [write(tmp_path, f"index{n}-", unit(rng, 10, 8)) for n in range(4)]
    expected = [load_features(path).embeddings for path in expand(files, files, tmp_path / "at once", 3, parts=2)]
    calls, knn = [], faiss.knn

    def stopped(*arguments, **settings):
        calls.append(arguments)
        if len(calls) == 7:  # 2 parts of the index by 2 files, twice
            raise command.Stopped
        return knn(*arguments, **settings)

    monkeypatch.setattr(faiss, "knn", stopped)
    with pytest.raises(command.Stopped):
        expand(files, files, tmp_path / "new", 3, parts=2)
    written = expand(files, files, tmp_path / "new", 3, parts=2)
    assert len(calls) == 9
    for path, embeddings in zip(written, expected, strict=True):
        np.testing.assert_array_equal(load_features(path).embeddings, embeddings)
    assert sorted(tmp_path.joinpath("new").iterdir()) == [*written, tmp_path / "new/made_from.json"]


@pytest.mark.parametrize("change", ["count", "alpha", "file"])
def test_made_anew_for_another_setting_or_source(tmp_path, change):
    rng = np.random.default_rng(0)
    query = write(tmp_path, "query", unit(rng, 5, 8))
    index = write(tmp_path, "index", unit(rng, 20, 8))
    settings = {"count": 2, "alpha": 3.0}
    expand([query], [index], tmp_path / "new", **settings)
    if change == "file":
        write(tmp_path, "index", unit(rng, 20, 8))
        os.utime(index, ns=(0, 0))
    else:
        settings[change] = 1
    (found,) = expand([query], [index], tmp_path / "new", **settings)
    (expected,) = expand([query], [index], tmp_path / "expected", **settings)
    np.testing.assert_array_equal(load_features(found).embeddings, load_features(expected).embeddings)


def test_of_no_photos(tmp_path):
    query, none = (
        write(tmp_path, "query", unit(np.random.default_rng(0), 3, 8)),
        write(tmp_path, "none", np.ones((0, 8))),
    )
    (same,) = expand([query], [none], tmp_path / "same", 2)
    np.testing.assert_allclose(load_features(same).embeddings, load_features(query).embeddings, atol=1e-6)
    (empty,) = expand([none], [query], tmp_path / "empty", 2)
    assert load_features(empty).embeddings.shape == (0, 8)
