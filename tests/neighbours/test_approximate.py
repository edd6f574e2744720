from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import pytest
from conftest import recipe_with

from landmarks.neighbours import approximate
from landmarks.neighbours.search import search
from landmarks.running import command
from landmarks.running.features_file import Features, save_features

LANDMARKS, DIMENSION = 150, 30  # which is no multiple of a code's 4


def write(path: Path, photos: int, seed: int) -> Path:
    """Photos of landmarks, as they lie in embeddings: near to their landmark's, which are all about."""
    centres = np.random.default_rng(0).standard_normal((LANDMARKS, DIMENSION))
    rng = np.random.default_rng(seed)
    embeddings = centres[rng.integers(0, LANDMARKS, photos)] + 0.5 * rng.standard_normal((photos, DIMENSION))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    ids = np.array([f"{path.stem}-{row}" for row in range(photos)])
    save_features(path, Features(ids, embeddings.astype(np.float16)))
    return path


@pytest.fixture
def files(tmp_path, monkeypatch) -> tuple[list[Path], list[Path]]:
    monkeypatch.setattr(approximate, "FEWEST", 0)
    monkeypatch.setattr(approximate, "LEAST", 200)
    index = [write(tmp_path / f"index/images_{n}.npz", count, n) for n, count in enumerate((1500, 0, 900, 1600))]
    return [write(tmp_path / f"test/images_{n}.npz", count, 9 + n) for n, count in enumerate((130, 1, 0, 70))], index


def recall(found, exact) -> float:
    return float(np.mean([len(np.intersect1d(*rows)) for rows in zip(found.positions, exact.positions, strict=True)]))


@pytest.mark.parametrize("parts", [1, 40])
def test_finds_nearly_all_of_the_nearest_with_their_exact_similarities(files, tmp_path, parts):
    found = approximate.search(*files, 20, parts, codes=tmp_path / "lists")
    exact = search(*files, 20)
    assert recall(found, exact) / 20 > 0.97
    for name in ("query_ids", "index_ids"):
        np.testing.assert_array_equal(getattr(found, name), getattr(exact, name))
    embeddings = [np.concatenate([np.load(path)["embeddings"] for path in group]).astype(np.float64) for group in files]
    similarities = np.einsum("qd,qkd->qk", embeddings[0], embeddings[1][found.positions])
    np.testing.assert_allclose(found.similarities, similarities, atol=1e-6)
    assert (np.diff(found.similarities) <= 0).all()


def test_candidates_alone_would_miss_many(files, tmp_path, monkeypatch):
    """That is, the test above sees it if their similarities are not told, or no more candidates than neighbours are."""
    for name in ("CANDIDATES", "LEAST"):
        monkeypatch.setattr(approximate, name, 1)
    assert recall(approximate.search(*files, 20, codes=tmp_path / "lists"), search(*files, 20)) / 20 < 0.9


def test_finds_only_what_is_wanted(files, tmp_path):
    wanted = pd.Index([f"images_{n}-{row}" for n in range(4) for row in range(0, 1600, 3)])
    found = approximate.search(*files, 20, 40, wanted, codes=tmp_path / "lists")
    exact = search(*files, 20, 3, wanted)
    np.testing.assert_array_equal(found.index_ids, exact.index_ids)
    assert recall(found, exact) / 20 > 0.97


def test_places_are_left_over_where_there_are_too_few(files, tmp_path):
    wanted = pd.Index([f"images_0-{row}" for row in range(15)])
    found = approximate.search(*files, 20, 1, wanted, codes=tmp_path / "lists")
    there = found.positions >= 0
    assert there.any(axis=1).all() and not there[:, 15:].any()
    np.testing.assert_array_equal(np.isneginf(found.similarities), ~there)


def test_among_few_photos_the_search_is_exact(files, tmp_path, monkeypatch):
    monkeypatch.setattr(approximate, "FEWEST", 5000)
    found = approximate.search(*files, 20, codes=tmp_path / "lists")
    for one, other in zip(found, search(*files, 20), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not (tmp_path / "lists").exists()


def encodings(monkeypatch) -> list[int]:
    """How many photos are encoded, by call."""
    calls, sa_encode = [], faiss.IndexIVFPQ.sa_encode

    def counted(index, embeddings):
        calls.append(len(embeddings))
        return sa_encode(index, embeddings)

    monkeypatch.setattr(faiss.IndexIVFPQ, "sa_encode", counted)
    return calls


def test_who_is_stopped_goes_on_and_finds_the_same(files, tmp_path, monkeypatch):
    expected = approximate.search(*files, 20, 40, codes=tmp_path / "whole")
    calls = encodings(monkeypatch)
    for stop_at in range(1, 60):
        checks = iter(range(stop_at))

        def stop(checks=checks):
            if next(checks, None) is None:
                raise command.Stopped()

        monkeypatch.setattr(approximate, "check_stop", stop)
        try:
            found = approximate.search(*files, 20, 40, None, tmp_path / "kept", codes=tmp_path / "lists")
            break
        except command.Stopped:
            continue
    assert stop_at > 5
    assert calls == [1500, 0, 900, 1600]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("damaged", ["quantizer", "images_2"])
def test_damaged_lists_are_made_anew(files, tmp_path, damaged):
    expected = approximate.search(*files, 20, codes=tmp_path)
    path = next(path for path in tmp_path.glob(f"*-index/{damaged}.npz"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    for one, other in zip(approximate.search(*files, 20, codes=tmp_path), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_other_embeddings_have_other_lists(files, tmp_path, monkeypatch):
    approximate.search(*files, 20, codes=tmp_path / "lists")
    write(files[1][2], 900, seed=77)
    calls = encodings(monkeypatch)
    found = approximate.search(*files, 20, codes=tmp_path / "lists")
    assert calls == [1500, 0, 900, 1600]
    assert recall(found, search(*files, 20)) / 20 > 0.97


def test_results_of_one_search_are_none_of_the_other(files, tmp_path):
    exact = search(*files, 20, 2, None, tmp_path / "kept")
    approximate.search(*files, 20, 2, None, tmp_path / "kept", codes=tmp_path / "lists")
    again = search(*files, 20, 2, None, tmp_path / "kept")
    np.testing.assert_array_equal(again.positions, exact.positions)


def test_queries_that_need_more_memory_are_asked_in_turn(files, tmp_path, monkeypatch):
    expected = approximate.search(*files, 20, codes=tmp_path / "lists")
    monkeypatch.setattr(approximate, "PAIRS", 131 * 200)
    for one, other in zip(approximate.search(*files, 20, codes=tmp_path / "lists"), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_setting_chooses(tmp_path):
    assert approximate.chosen(recipe_with().run) is search
    by = approximate.chosen(recipe_with(search="ivfpq", work=tmp_path).run)
    assert by.func is approximate.search and by.keywords == {"codes": tmp_path / "lists"}
