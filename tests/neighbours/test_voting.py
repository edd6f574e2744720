from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from landmarks.neighbours import voting
from landmarks.neighbours.search import Neighbours
from landmarks.neighbours.voting import HeadScores, class_centres, gallery, head, head_scores, recognise, vote
from landmarks.running.command import InputError
from landmarks.running.features_file import Features, load_features, save_features


def neighbours(similarities, positions, photos) -> Neighbours:
    return Neighbours(
        np.array([f"query{n}" for n in range(len(positions))], dtype="U10"),
        np.array([f"train{n}" for n in range(photos)], dtype="U10"),
        np.array(similarities, np.float32),
        np.array(positions, np.int32),
        None,
        None,
    )


@st.composite
def random_neighbours(draw):
    """Similarities in eighths: their small whole powers and sums are exact in any order, and many tie."""
    queries, k, photos = draw(st.integers(0, 4)), draw(st.integers(1, 8)), draw(st.integers(1, 10))
    found = min(k, photos)
    similarities = np.full((queries, k), -np.inf, np.float32)
    positions = np.full((queries, k), -1, np.int32)
    for row in range(queries):
        values = draw(arrays(np.float32, found, elements=st.integers(-8, 8).map(lambda n: n / 8)))
        similarities[row, :found] = -np.sort(-values)
        positions[row, :found] = draw(st.permutations(range(photos)))[:found]
    return neighbours(similarities, positions, photos)


def landmarks(photos):
    return arrays(np.int64, photos, elements=st.sampled_from([3, 70, 203093]))


def features(folder, name, embeddings, ids=None, landmark=None, dtype=np.float32):
    embeddings = np.array(embeddings, dtype)
    ids = np.array(ids or [f"{name}{row}" for row in range(len(embeddings))], dtype=str)
    save_features(folder / f"{name}.npz", Features(ids, embeddings, landmark))
    return folder / f"{name}.npz"


def unit(rng, *shape):
    embeddings = rng.standard_normal(shape)
    return embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)


@given(st.data(), random_neighbours(), st.integers(1, 9), st.integers(1, 3))
def test_vote_equals_a_loop(data, given, k, power):
    train_landmark = data.draw(landmarks(len(given.index_ids)))
    landmark, score = vote(given, train_landmark, k, power)
    assert landmark.dtype == np.int64 and score.dtype == np.float64
    assert len(landmark) == len(score) == len(given.query_ids)
    for query, (similarities, positions) in enumerate(zip(given.similarities, given.positions, strict=True)):
        sums = defaultdict(float)  # in the order of the neighbours, so that max gives the first of equal ones
        for similarity, position in zip(similarities[:k], positions[:k], strict=True):
            if position >= 0:
                sums[int(train_landmark[position])] += max(float(similarity), 0) ** power
        best = max(sums, key=sums.get)
        assert landmark[query] == best
        assert score[query] == (sums[best] if similarities[0] > 0 else similarities[0])


def test_vote_by_hand():
    # 0.6 alone beats 0.5 + 0.09; with power 3: 0.216 against 0.125 + 0.125.
    given = neighbours([[0.6, 0.5, 0.09], [0.6, 0.5, 0.5]], [[2, 0, 1], [2, 0, 1]], 3)
    train_landmark = np.array([7, 7, 5])
    assert vote(given, train_landmark, 3)[0].tolist() == [5, 7]
    landmark, score = vote(given, train_landmark, 3, power=3)
    assert landmark.tolist() == [5, 7]
    np.testing.assert_allclose(score, [0.216, 0.25], rtol=1e-6)
    assert vote(given, train_landmark, 2)[0].tolist() == [5, 5]


def test_of_equal_sums_that_with_the_nearest_photo_wins():
    given = neighbours([[0.5, 0.25, 0.25], [0.5, 0.5, 0.5], [-0.25, -0.25, -0.5]], [[0, 1, 2]] * 3, 3)
    assert vote(given, np.array([9, 4, 4]), 3)[0].tolist() == [9, 4, 9]
    assert vote(given, np.array([4, 9, 9]), 3)[0].tolist() == [4, 9, 4]
    assert vote(given, np.array([9, 4, 8]), 3)[0].tolist() == [9, 9, 9]


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=20))
def test_one_neighbour_is_the_triplet_solution(similarities):
    given = neighbours(np.array(similarities)[:, None], np.arange(len(similarities))[:, None], len(similarities))
    landmark, score = vote(given, np.arange(len(similarities)) * 10, k=1)
    assert landmark.tolist() == [10 * n for n in range(len(similarities))]
    assert np.array_equal(score, np.array(similarities, np.float32))


def test_many_queries_make_several_batches():
    queries = 2500
    photos = np.random.default_rng(0).permutation(queries)
    given = neighbours(np.full((queries, 1), 0.5), photos[:, None], queries)
    assert np.array_equal(vote(given, np.arange(queries) + 100, 1)[0], photos + 100)


def test_high_powers_keep_their_order():
    given = neighbours([[0.01], [0.02], [1e-30]], [[0], [0], [0]], 1)
    score = vote(given, np.array([1]), 1, power=9)[1]
    assert score[1] > score[0] > score[2] > 0


def test_no_or_other_train_photos():
    with pytest.raises(InputError, match="no train photos"):
        vote(neighbours([[-np.inf]], [[-1]], 0), np.array([], np.int64), 1)
    with pytest.raises(ValueError, match="2 landmarks for the 3 train photos"):
        vote(neighbours([[0.5]], [[2]], 3), np.array([1, 2]), 1)


def table(files, landmark, votes=slice(None)):
    """The photos in some files with their landmarks, those of them that vote, in another order than the files'."""
    ids = np.concatenate([load_features(path).ids for path in files])
    return pd.DataFrame({"id": ids, "landmark_id": np.array(landmark)})[votes].sample(frac=1, random_state=0)


def test_photos_that_do_not_vote_make_room_for_others(tmp_path):
    # The query's three nearest photos do not vote; the three after them do.
    angles = np.radians([0, 1, 2, 10, 20, 30, 40])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    files = [features(tmp_path, "train0-", embeddings[:2]), features(tmp_path, "train1-", embeddings[2:])]
    query = features(tmp_path, "query", [[1, 0]])
    train = table(files, [7, 7, 7, 8, 9, 9, 8])
    everything = recognise([query], files, train, votes=3, power=1, parts=2)
    assert everything.loc["query0", "landmark"] == 7
    found = recognise([query], files, train[train["landmark_id"] != 7], votes=3, power=1, parts=2)
    assert found.loc["query0", "landmark"] == 9
    assert found.loc["query0", "score"] == pytest.approx(np.cos(angles[4]) + np.cos(angles[5]), abs=1e-6)
    with pytest.raises(InputError, match="no train photos"):
        recognise([query], files, train[train["landmark_id"] == 1], votes=1, power=1, parts=1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_centres_equal_a_loop(tmp_path, dtype):
    rng = np.random.default_rng(0)
    embeddings = [unit(rng, count, 16).astype(dtype) for count in (40, 0, 25, 1)]
    files = [features(tmp_path, f"train{n}-", part, dtype=dtype) for n, part in enumerate(embeddings)]
    train_landmark, votes = rng.choice([5, 203092, 17, 8], 66), rng.random(66) < 0.8
    train = table(files, train_landmark, votes)
    train = pd.concat([train, pd.DataFrame({"id": ["unreadable"], "landmark_id": [4]})])
    class_centres(files, train, tmp_path / "centres.npz")
    written = load_features(tmp_path / "centres.npz")
    assert written.ids.tolist() == ["5", "8", "17", "203092"] and written.landmark is None
    assert written.embeddings.dtype == dtype
    everything = np.concatenate(embeddings).astype(np.float64)
    for landmark, centre in zip(written.ids.astype(int), written.embeddings, strict=True):
        mean = everything[votes & (train_landmark == landmark)].mean(axis=0)
        np.testing.assert_allclose(centre, mean / np.linalg.norm(mean), atol=1e-3 if dtype == np.float16 else 1e-6)


@pytest.mark.parametrize("labelled", [False, True])
def test_nearest_centre_is_not_nearest_photo(tmp_path, labelled):
    # The query lies by one stray photo of landmark 2, whose others are far away; the centre of landmark 1 is nearer.
    angles = np.radians([40, 50, 10, 100, 110])
    labels = np.zeros(5, np.int64) if labelled else None
    train_file = features(tmp_path, "train", np.stack([np.cos(angles), np.sin(angles)], 1), landmark=labels)
    query = features(tmp_path, "query", [[1, 0]], landmark=labels[:1] if labelled else None)
    voters = table([train_file], [1, 1, 2, 2, 2])
    by_photos = recognise([query], *gallery("neighbours", [train_file], voters, tmp_path), 1, 1, 1)
    assert by_photos.loc["query0", "landmark"] == 2
    by_centres = recognise([query], *gallery("centres", [train_file], voters, tmp_path), 1, 1, 1)
    assert by_centres.loc["query0", "landmark"] == 1
    assert by_centres.loc["query0", "score"] == pytest.approx(np.cos(np.radians(45)), abs=1e-6)


def test_centres_are_made_once_for_the_same_photos(tmp_path, monkeypatch):
    made = []

    def counted(*arguments):
        made.append(arguments)
        class_centres(*arguments)

    monkeypatch.setattr(voting, "class_centres", counted)
    rng = np.random.default_rng(0)
    train_file = features(tmp_path, "train", unit(rng, 6, 4))

    def centres(landmark=(9, 9, 3, 3, 9, 3), exclude=()):
        voters = table([train_file], landmark)
        voters = voters[~voters["landmark_id"].isin(exclude)]
        (path,), train = gallery("centres", [train_file], voters, tmp_path)
        assert train["landmark_id"].tolist() == sorted(set(landmark) - set(exclude))
        assert train["id"].tolist() == load_features(path).ids.tolist() == [str(n) for n in train["landmark_id"]]
        return path

    path = centres()
    assert centres() == path and len(made) == 1
    centres((9, 9, 3, 3, 9, 2))
    centres((9, 9, 3, 3, 9, 2), [2])
    assert len(made) == 3
    features(tmp_path, "train", unit(rng, 6, 4))
    centres((9, 9, 3, 3, 9, 2), [2])
    path.write_bytes(b"damaged")
    centres((9, 9, 3, 3, 9, 2), [2])
    assert len(made) == 5


def test_centres_of_no_photos(tmp_path):
    for name, count, train in (("none", 0, [1]), ("other", 2, [])):
        files = [features(tmp_path, name, np.empty((count, 2)))]
        with pytest.raises(InputError, match="no train photos"):
            class_centres(files, pd.DataFrame({"id": ["a"] * len(train), "landmark_id": train}), tmp_path / "c.npz")
    assert not (tmp_path / "c.npz").exists()


def test_what_the_head_says(tmp_path):
    ids = [np.array(["b", "a"]), np.array([], "U1"), np.array(["c"])]
    for number, some in enumerate(ids):
        score = np.arange(len(some), dtype=np.float32) + 0.1 + number
        save_features(tmp_path / f"{number}.npz", Features(some, np.ones((len(some), 2)), np.arange(len(some)), score))
    found = head([tmp_path / f"{number}.npz" for number in range(3)])
    assert found["landmark"].to_dict() == {"b": 0, "a": 1, "c": 0}
    assert found["score"].to_dict() == {i: float(np.float32(s)) for i, s in (("b", 0.1), ("a", 1.1), ("c", 2.1))}
    with pytest.raises(InputError, match="neighbours or centres"):
        head([features(tmp_path, "plain", np.eye(2))])


def among(similarities, landmark):
    """Neighbours of as many queries as `similarities` has rows, each of all the train photos."""
    similarities = np.array(similarities, np.float32)
    positions = np.argsort(-similarities, axis=1, kind="stable")
    queries, photos = (np.array([f"{n}" for n in range(count)]) for count in similarities.shape)
    found = Neighbours(queries, photos, np.take_along_axis(similarities, positions, 1), positions, None, None)
    return found, np.array(landmark)


def test_the_head_takes_part_in_choosing():
    """By similarity 1 wins with 0.81 against 0.64; the head gives 1 a tenth of what it gives 2."""
    neighbours, landmark = among([[0.9, 0.8, 0.3]], [1, 2, 3])
    assert vote(neighbours, landmark, 3, 2)[0].tolist() == [1]
    head = HeadScores(np.array([[2, 1]]), np.array([[0.5, 0.05]], np.float32))
    for power, chosen, score in ((1, 2, 0.64 * 0.5), (2, 2, 0.64 * 0.25), (0.05, 1, 0.81 * 0.05**0.05)):
        found = vote(neighbours, landmark, 3, 2, head, power)
        assert found[0].tolist() == [chosen]
        np.testing.assert_allclose(found[1], [score], rtol=1e-5)


def test_a_landmark_that_the_head_does_not_name_comes_last_and_keeps_its_order():
    neighbours, landmark = among([[0.1, 0, 0, 0], [0, 0.9, 0, 0], [0, 0, 0.8, 0], [0, 0, 0, -0.5]], [1, 2, 3, 4])
    head = HeadScores(np.array([[1, 8], [9, 8], [9, 8], [4, 8]]), np.tile(np.float32([[0.05, 0.01]]), (4, 1)))
    found = vote(neighbours, landmark, 1, 9, head, 10)
    assert found[0].tolist()[:3] == [1, 2, 3]
    assert np.argsort(-found[1]).tolist() == [0, 1, 2, 3] and (found[1][:3] > 0).all()
    np.testing.assert_allclose(found[1][1], 0.9**9 * 1e-80, rtol=1e-4)


def test_the_heads_best_of_new_files_and_the_best_of_old_ones(tmp_path):
    ids, embeddings = np.array(["a", "b"]), np.eye(2, dtype=np.float16)
    landmark, score = np.array([5, 6]), np.array([0.9, 0.8], np.float32)
    save_features(tmp_path / "old.npz", Features(ids, embeddings, landmark, score))
    best, sure = np.array([[5, 7], [6, 7]]), np.array([[0.9, 0.1], [0.8, 0.2]], np.float32)
    save_features(tmp_path / "new.npz", Features(ids, embeddings, landmark, score, best, sure))
    save_features(tmp_path / "none.npz", Features(ids, embeddings))
    np.testing.assert_array_equal(head_scores([tmp_path / "new.npz"]).landmark, best)
    np.testing.assert_array_equal(head_scores([tmp_path / "new.npz"]).score, sure)
    both = head_scores([tmp_path / "old.npz", tmp_path / "new.npz"])
    assert both.landmark.tolist() == [[5], [6], [5], [6]]
    with pytest.raises(InputError, match="no --blend"):
        head_scores([tmp_path / "none.npz"])
