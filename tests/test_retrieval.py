"""The stages after the embedding, on features made by hand."""

import csv
from types import SimpleNamespace

import faiss
import numpy as np
import pandas as pd
import pytest
from conftest import mirror_of, recipe_with, write_features

from landmarks.neighbours import neighbourhood
from landmarks.neighbours.expansion import expand
from landmarks.neighbours.nonlandmarks import References
from landmarks.neighbours.search import Neighbours, search
from landmarks.running.answer_settings import RetrievalSettings
from landmarks.running.settings import RunSettings
from recognition import predict
from retrieval import bring_nearer, find, labels, write_submission


def at(*degrees):
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)


def unit(embeddings):
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def cosine(degrees):
    return np.cos(np.radians(degrees))


def test_labels_and_how_sure_they_are(tmp_path):
    files = {
        "test": write_features(tmp_path, "test", at(0, 180)),
        "index": write_features(tmp_path, "index", at(60)),
        "train": write_features(tmp_path, "train", at(10, 20, 80)),
    }
    mirror = mirror_of([5, 5, 6])
    query, index = labels(recipe_with(work=tmp_path), mirror, files)
    assert query["landmark"].to_dict() == {"test0": 5, "test1": 6} and index["landmark"].to_dict() == {"index0": 6}
    np.testing.assert_allclose(query["score"], [cosine(10), 0], atol=1e-6)  # cos(100) says nothing
    np.testing.assert_allclose(index["score"], [cosine(20)], atol=1e-6)
    # The sum of the votes of 3, divided by 3, and its power mean.
    query, _ = labels(recipe_with(work=tmp_path, votes=3), mirror, files)
    np.testing.assert_allclose(query["score"]["test0"], (cosine(10) + cosine(20)) / 3, atol=1e-6)
    query, _ = labels(recipe_with(work=tmp_path, votes=3, vote_power=2), mirror, files)
    np.testing.assert_allclose(query["score"]["test0"], np.sqrt((cosine(10) ** 2 + cosine(20) ** 2) / 3), atol=1e-6)
    published = recipe_with(work=tmp_path, votes=3, vote_power=2, rerank_by="soft")  # the nearest one's cosine
    query, index = labels(published, mirror, files)
    np.testing.assert_allclose([query["score"]["test0"], *index["score"]], [cosine(10), cosine(20)], atol=1e-6)
    recipe = recipe_with(work=tmp_path, recognizer="centres", votes=3, exclude=[6])
    _, index = labels(recipe, mirror, files)
    assert index["landmark"].to_dict() == {"index0": 5}
    np.testing.assert_allclose(index["score"], [cosine(45)], atol=1e-6)


def test_labels_of_the_head(tmp_path):
    files = {
        name: write_features(tmp_path, name, at(0, 90), np.array(landmark), np.array(score, np.float32))
        for name, landmark, score in (("test", [5, 6], [0.5, 0.25]), ("index", [6, 6], [1, 0.125]))
    }
    query, index = labels(recipe_with(work=tmp_path, recognizer="head", votes=3), mirror_of([]), files)
    assert query["landmark"].tolist() == [5, 6] and query["score"].tolist() == [0.5, 0.25]
    assert index["landmark"].tolist() == [6, 6] and index["score"].tolist() == [1, 0.125]


@pytest.mark.parametrize("settings", [{}, {"votes": 3, "penalty": "winners"}, {"recognizer": "centres"}])
def test_what_recognition_has_searched_is_not_searched_again(tmp_path, monkeypatch, settings):
    rng = np.random.default_rng(0)
    files = {
        name: write_features(tmp_path, name, unit(rng.standard_normal((count, 6))))
        for name, count in (("test", 5), ("index", 7), ("train", 40))
    }
    mirror = mirror_of(rng.integers(0, 9, 40))
    recipe = recipe_with(work=tmp_path / "work", non_landmarks="file" if "penalty" in settings else "", **settings)
    expected = labels(recipe_with(recipe, work=tmp_path / "other"), mirror, files)
    references = [References({"index0", "index2"}, ["index"], {"test0"}), References({"index5"}, ["index"], {"test1"})]
    references = references if "penalty" in settings else []
    recognised = predict(recipe, mirror, files, references)
    searched, knn = [], faiss.knn

    def counted(queries, *arguments, **settings):
        searched.append(len(queries))
        return knn(queries, *arguments, **settings)

    monkeypatch.setattr(faiss, "knn", counted)
    found = labels(recipe, mirror, files)
    assert searched == [7]  # the index photos alone
    for one, other in zip(found, expected, strict=True):
        pd.testing.assert_frame_equal(one, other)
    pd.testing.assert_frame_equal(predict(recipe, mirror, files, references), recognised)
    neighbours = find(recipe.run, recipe.retrieval, files)
    searched.clear()
    for again in (find(recipe.run, recipe.retrieval, files), find(recipe.run, RetrievalSettings(rerank=False), files)):
        np.testing.assert_array_equal(again.positions, neighbours.positions[:, : again.positions.shape[1]])
    assert searched == []


def test_each_way_to_re_rank(tmp_path):
    neighbours = Neighbours(
        np.array(["test0"]), np.array([f"index{n}" for n in range(4)]),
        np.array([[0.9, 0.8, 0.7]], np.float32), np.array([[0, 1, 2]], np.int32), None, None,
    )  # fmt: skip
    of_queries = pd.DataFrame({"landmark": [1, 2], "score": [0.3, 1]}, index=["test0", "unseen"])
    of_index = pd.DataFrame(
        {"landmark": [1, 1, 2, 2], "score": [0.4, 0.3, 0.5, 0.0]}, index=[f"index{n}" for n in (3, 2, 1, 0)]
    )

    def order(**settings):
        found = bring_nearer(RetrievalSettings(**settings), neighbours, of_queries, of_index)
        return [int(place) for place in found.positions[0] if place >= 0]

    # Distances: sqrt(0.2) = 0.447, sqrt(0.4) = 0.632, sqrt(0.6) / 1.5 = 0.516.
    assert order() == [0, 2, 1]
    assert order(rerank_factor=2) == [2, 0, 1]
    assert order(rerank_depth=2) == [0, 1, 2]
    assert order(rerank_by="soft") == [2, 0, 1]  # 0.9 - 0, 0.8 - 0.05, 0.7 + 0.3
    assert order(rerank_by="insert") == [2, 3, 0, 1]  # 0.3 + 0.4 is above 0.6
    assert order(rerank_by="insert", rerank_least=0.75) == [2, 0, 1]


def expanded(queries, index, count, own=False):
    """Query expansion with alpha 3, on whole matrices."""
    similarities = queries @ index.T
    if own:
        np.fill_diagonal(similarities, -1)
    for row in similarities:
        row[np.argsort(-row)[count:]] = 0
    return unit(queries + np.maximum(similarities, 0) ** 3 @ index)


@pytest.mark.parametrize(("augmentation", "expansion"), [(0, 0), (0, 2), (3, 0), (3, 2)])
def test_the_index_is_augmented_before_queries_are_expanded_with_it(tmp_path, augmentation, expansion):
    rng = np.random.default_rng(0)
    queries, index = (unit(rng.standard_normal((count, 6))) for count in (5, 40))
    files = {"test": write_features(tmp_path, "test", queries), "index": write_features(tmp_path, "index", index)}
    recipe = recipe_with(work=tmp_path, database_augmentation=augmentation, query_expansion=expansion)
    if augmentation:
        index = expanded(index, index, augmentation, own=True)
    if expansion:
        queries = expanded(queries, index, expansion)
    expected = queries @ index.T
    found = find(recipe.run, recipe.retrieval, files)
    np.testing.assert_allclose(found.similarities[:, :40], -np.sort(-expected, axis=1), atol=1e-5)
    np.testing.assert_array_equal(found.positions[:, :40], np.argsort(-expected, axis=1))


def test_as_many_are_searched_as_re_ranking_needs(tmp_path):
    files = {name: write_features(tmp_path, name, at(0, 30)) for name in ("test", "index")}
    for settings, depth in (
        ({}, 300),
        ({"rerank": False}, 100),
        ({"rerank_depth": 750}, 750),
        ({"rerank_depth": 9}, 100),
        ({"neighbours_depth": 400}, 300),
        ({"rerank_neighbours": "superglobal", "neighbours_depth": 400}, 400),
        ({"rerank_neighbours": "reciprocal", "neighbours_depth": 9, "rerank": False}, 100),
    ):
        assert find(RunSettings(work=tmp_path), RetrievalSettings(**settings), files).positions.shape == (2, depth)


@pytest.mark.parametrize(
    ("method", "settings", "chosen"),
    [
        (neighbourhood.superglobal, {"superglobal_count": 3, "superglobal_weight": 0.7}, (3, 0.7)),
        (
            neighbourhood.reciprocal,
            {"reciprocal_count": 6, "reciprocal_expansion": 2, "reciprocal_weight": 0.1},
            (6, 2, 0.1),
        ),
    ],
)
def test_re_ranking_by_neighbours_takes_its_settings_and_the_expanded_queries(tmp_path, method, settings, chosen):
    rng = np.random.default_rng(0)
    files = {
        name: write_features(tmp_path, name, unit(rng.standard_normal((count, 6))))
        for name, count in (("test", 5), ("index", 40))
    }
    name = method.__name__
    settings = RetrievalSettings(rerank_neighbours=name, neighbours_depth=20, query_expansion=2, **settings)
    found = find(RunSettings(work=tmp_path / "work"), settings, files)
    queries = expand(files["test"], files["index"], tmp_path / "expanded", 2)
    plain = search(queries, files["index"], 300)
    expected = method(queries, files["index"], plain, 20, tmp_path / "other/kept", *chosen)
    np.testing.assert_array_equal(found.positions, expected.positions)
    np.testing.assert_allclose(found.similarities, expected.similarities, atol=1e-6)
    assert (found.positions != plain.positions).any()


def test_the_submission_has_a_row_for_each_test_photo(tmp_path):
    neighbours = Neighbours(
        np.array(["test1", "test0"]), np.array(["index0", "index1"]),
        np.zeros((2, 3), np.float32), np.array([[1, 0, -1], [0, -1, -1]], np.int32), None, None,
    )  # fmt: skip
    mirror = SimpleNamespace(ids=lambda split: ["test0", "unreadable", "test1"])
    write_submission(mirror, neighbours, tmp_path / "retrieval.csv")
    with open(tmp_path / "retrieval.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["id", "images"], ["test0", "index0"], ["unreadable", ""], ["test1", "index1 index0"]]


def test_the_best_100_of_more_are_written(tmp_path):
    positions = np.arange(300, dtype=np.int32)[None, ::-1]
    index = np.array([f"index{n}" for n in range(300)])
    neighbours = Neighbours(np.array(["test0"]), index, np.zeros((1, 300), np.float32), positions, None, None)
    write_submission(SimpleNamespace(ids=lambda split: ["test0"]), neighbours, tmp_path / "retrieval.csv")
    _, row = (tmp_path / "retrieval.csv").read_text().splitlines()
    assert row == "test0," + " ".join(f"index{n}" for n in range(299, 199, -1))
