"""The stages after the embedding, on features made by hand."""

import numpy as np
import pytest
from conftest import mirror_of, recipe_with, write_features

from landmarks.neighbours.nonlandmarks import References, reference_halves
from landmarks.scoring.measures import gap
from landmarks.scoring.solutions import Solution
from recognition import predict


def unit(rng, *shape):
    embeddings = rng.standard_normal(shape)
    return embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)


@pytest.fixture
def by_hand(tmp_path):
    """Train photo 0 looks like the references 0 and 1; it is the test photo's nearest, but not after the penalty."""
    files = {
        "test": write_features(tmp_path, "test", [[0.6, 0.8, 0, 0]]),
        "train": write_features(tmp_path, "train", [[0, 1, 0, 0], [0.6, 0, 0.8, 0], [0.8, 0, 0, 0.6]]),
        "index": write_features(tmp_path, "index", [[0, 1, 0, 0], [0, 0, 0, 1], [0, 0.8, 0.6, 0]]),
    }
    references = [References({"index0", "index2"}, ["index"], {"test0"})]
    return recipe_with(work=tmp_path, non_landmarks="file", penalty="winners"), mirror_of([1, 2, 2]), files, references


def test_without_penalty(by_hand):
    recipe, mirror, files, _ = by_hand
    recipe = recipe_with(recipe, penalty="none", non_landmarks="")
    found = predict(recipe, mirror, files, [])  # similarities 0.8, 0.36, 0.48
    assert found["landmark"].to_dict() == {"test0": 1}
    np.testing.assert_allclose(found["score"], [0.8], atol=1e-6)


def test_the_published_penalty_by_hand(by_hand):
    recipe, mirror, files, references = by_hand
    found = predict(recipe_with(recipe, penalty="published"), mirror, files, references)
    assert found["landmark"].to_dict() == {"test0": 1}
    np.testing.assert_allclose(found["score"], [0.8 - (0.8 + 0.64) / 2], atol=1e-6)


def test_the_winners_penalty_by_hand(by_hand):
    recipe, mirror, files, references = by_hand
    # The train photos' own: 0.9, 0.24, 0; what is left: -0.1, 0.36 - 0.24, 0.48.
    found = predict(recipe_with(recipe, votes=1, vote_power=5), mirror, files, references)
    assert found["landmark"].to_dict() == {"test0": 2}
    np.testing.assert_allclose(found["score"], [0.48 + 0.12 - 0.72], atol=1e-6)
    # A train photo that does not vote is not there.
    found = predict(recipe_with(recipe, exclude=[2]), mirror, files, references)
    assert found["landmark"].to_dict() == {"test0": 1}
    np.testing.assert_allclose(found["score"], [0.8 - 0.9 - 0.72], atol=1e-6)


def test_a_part_of_the_penalty_by_hand(by_hand):
    recipe, mirror, files, references = by_hand
    # Half of the train photos' own: 0.45, 0.12, 0; what is left: 0.35, 0.36 - 0.12, 0.48.
    for penalty, landmark, score in (("published", 1, 0.8 - 0.72 / 2), ("winners", 2, 0.24 + 0.48 - 0.72 / 2)):
        half = recipe_with(recipe, penalty=penalty, penalty_weight=0.5)
        found = predict(half, mirror, files, references)
        assert found["landmark"].to_dict() == {"test0": landmark}
        np.testing.assert_allclose(found["score"], [score], atol=1e-6)


def test_the_published_penalty_counts_5_and_the_winners_10_of_many_references(tmp_path):
    angles = np.radians(np.arange(12) * 5)
    files = {
        "test": write_features(tmp_path, "test", [[1, 0]]),
        "train": write_features(tmp_path, "train", [[1, 0], [0, 1]]),
        "index": write_features(tmp_path, "index", np.stack([np.cos(angles), np.sin(angles)], axis=1)),
    }
    references = [References({f"index{n}" for n in range(12)}, ["index"], {"test0"})]
    mirror, nearest = mirror_of([1, 2]), np.cos(angles)
    for penalty, expected in (
        ("published", 1 - nearest[:5].mean()),
        ("winners", 1 - nearest[:5].mean() - nearest[:10].mean()),
    ):
        found = predict(recipe_with(work=tmp_path, non_landmarks="file", penalty=penalty), mirror, files, references)
        np.testing.assert_allclose(found["score"], [expected], atol=1e-6)


def test_centres_by_hand(by_hand):
    recipe, mirror, files, references = by_hand
    # The centres: train photo 0, and (1.4, 0, 0.8, 0.6) / sqrt(2.96).
    recipe = recipe_with(recipe, recognizer="centres", penalty="published")
    found = predict(recipe, mirror, files, references)
    assert found["landmark"].to_dict() == {"test0": 1}
    found = predict(recipe_with(recipe, exclude=[1]), mirror, files, references)
    assert found["landmark"].to_dict() == {"test0": 2}
    np.testing.assert_allclose(found["score"], [0.6 * 1.4 / np.sqrt(2.96) - 0.72], atol=1e-6)


def test_blending_comes_before_the_penalty(tmp_path):
    files = {
        "test": write_features(
            tmp_path, "test", [[1, 0], [0.8, 0.6]], np.array([7, 7]), np.array([0.5, 0.25], np.float32)
        ),
        "train": write_features(tmp_path, "train", [[1, 0], [0, 1]], np.array([7, 9]), np.ones(2, np.float32)),
    }
    mirror, recipe = mirror_of([7, 9]), recipe_with(work=tmp_path, blend=2)
    np.testing.assert_allclose(predict(recipe, mirror, files, [])["score"], [0.25, 0.8 * 0.0625], rtol=1e-5)
    references = [References({"train1"}, ["train"], {"test0", "test1"})]
    recipe = recipe_with(work=tmp_path, blend=2, penalty="published", non_landmarks="file")
    found = predict(recipe, mirror, files, references)["score"]
    np.testing.assert_allclose(found, [0.25, 0.8 * 0.0625 - 0.6], rtol=1e-5)


@pytest.mark.parametrize("recognizer", ["head", "neighbours"])
def test_a_landmark_predicted_too_often_comes_last(tmp_path, recognizer):
    landmark, score = np.array([1, 1, 2, 1]), np.array([0.9, 0.8, 0.1, 0.7], np.float32)
    angles = np.arccos(score)
    test = np.stack([np.cos(angles), np.sin(angles) * (landmark == 1), np.sin(angles) * (landmark == 2)], axis=1)
    test[2] = [0, 0.1, np.sqrt(0.99)]
    files = {
        "test": write_features(tmp_path, "test", test, landmark, score),
        "train": write_features(tmp_path, "train", [[1, 0, 0], [0, 0, 1]], np.array([1, 2]), np.ones(2, np.float32)),
    }
    recipe = recipe_with(work=tmp_path, recognizer=recognizer, most_predicted=2)
    found = predict(recipe, mirror_of([1, 2]), files, [])
    assert found["landmark"].tolist() == landmark.tolist()
    assert found.sort_values("score", ascending=False).index.tolist() == ["test2", "test0", "test1", "test3"]
    kept = predict(recipe_with(recipe, most_predicted=3), mirror_of([1, 2]), files, [])
    assert kept["score"]["test0"] == pytest.approx(0.9)


def by_halves(recipe, mirror, files, solution):
    """(landmark, score) by id of the photos of each half, with the other half's photos of no landmark as references."""
    ids = [*solution.public, *solution.private]
    found = predict(recipe, mirror, files, reference_halves(solution, ids))
    rows = dict(zip(found.index, zip(found["landmark"].tolist(), found["score"].tolist(), strict=True), strict=True))
    return {half: {i: rows[i] for i in getattr(solution, half)} for half in ("public", "private")}


@pytest.mark.parametrize("penalty", ["published", "winners"])
def test_a_halfs_scores_do_not_depend_on_its_own_solution(tmp_path, penalty):
    rng = np.random.default_rng(0)
    files = {name: write_features(tmp_path, name, unit(rng, count, 8)) for name, count in (("test", 40), ("train", 30))}
    mirror = mirror_of(rng.integers(0, 5, 30))
    ids = [f"test{n}" for n in range(40)]
    truth = {i: [1] if rng.random() < 0.5 else [] for i in ids}
    solution = Solution({i: truth[i] for i in ids[:20]}, {i: truth[i] for i in ids[20:]}, set())
    turned = solution._replace(public={i: [] if truth[i] else [1] for i in ids[:20]})
    recipe = recipe_with(work=tmp_path, penalty=penalty, non_landmarks="other-half")
    before, after = (by_halves(recipe, mirror, files, one) for one in (solution, turned))
    assert before["public"] == after["public"]
    assert before["private"] != after["private"]  # the public half's photos of no landmark are its references


def test_the_penalty_raises_gap_among_non_landmarks(tmp_path):
    """19 of 20 test photos show no landmark and crowd together, near 4 of the 10 train photos of each landmark."""
    rng = np.random.default_rng(0)
    centres, crowd = unit(rng, 12, 32), unit(rng, 32)
    train_landmark = np.repeat(np.arange(12), 10)
    stray = np.tile(np.arange(10) < 4, 12)[:, None]
    shows = np.arange(400) % 20 == 0
    truth = rng.integers(0, 12, 400)
    photos = {
        "train": centres[train_landmark] + 1.5 * stray * crowd + 0.15 * rng.standard_normal((120, 32)),
        "test": np.where(shows[:, None], centres[truth], crowd) + 0.15 * rng.standard_normal((400, 32)),
    }
    files = {
        name: write_features(tmp_path, name, array / np.linalg.norm(array, axis=1, keepdims=True))
        for name, array in photos.items()
    }
    cells = {f"test{n}": [int(truth[n])] if shows[n] else [] for n in range(400)}
    solution = Solution(dict(list(cells.items())[:200]), dict(list(cells.items())[200:]), set())
    mirror = mirror_of(train_landmark)
    plain = predict(recipe_with(work=tmp_path, votes=3), mirror, files, [])
    plain = dict(zip(plain.index, zip(plain["landmark"], plain["score"], strict=True), strict=True))
    recipe = recipe_with(work=tmp_path, penalty="winners", non_landmarks="other-half")
    penalised = by_halves(recipe, mirror, files, solution)
    for half in ("public", "private"):
        scored = getattr(solution, half)
        assert gap({i: plain[i] for i in scored}, scored) + 0.1 < gap(penalised[half], scored)
