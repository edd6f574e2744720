from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from command import InputError
from features import Features, load_features, save_features
from metrics import gap
from search import Neighbours, search
from submission import Solution
from voting import (
    blend,
    class_centres,
    frequent_as_nonlandmark,
    nonlandmark_features,
    nonlandmark_similarity,
    penalise,
    reference_halves,
    vote,
    without_references,
)


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


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_centres_equal_a_loop(tmp_path, dtype):
    rng = np.random.default_rng(0)
    embeddings = [unit(rng, count, 16).astype(dtype) for count in (40, 0, 25, 1)]
    files = [features(tmp_path, f"train{n}", part, dtype=dtype) for n, part in enumerate(embeddings)]
    train_landmark = rng.choice([5, 203092, 17, 8], 66)
    found = class_centres(files, train_landmark, tmp_path / "centres.npz")
    assert found.tolist() == [5, 8, 17, 203092]
    written = load_features(tmp_path / "centres.npz")
    assert written.ids.tolist() == ["5", "8", "17", "203092"] and written.landmark is None
    assert written.embeddings.dtype == dtype
    everything = np.concatenate(embeddings).astype(np.float64)
    for landmark, centre in zip(found, written.embeddings, strict=True):
        mean = everything[train_landmark == landmark].mean(axis=0)
        np.testing.assert_allclose(centre, mean / np.linalg.norm(mean), atol=1e-3 if dtype == np.float16 else 1e-6)


@pytest.mark.parametrize("labelled", [False, True])
def test_nearest_centre_is_not_nearest_photo(tmp_path, labelled):
    # The query lies by one stray photo of landmark 2, whose others are far away; the centre of landmark 1 is nearer.
    angles = np.radians([40, 50, 10, 100, 110])
    labels = np.zeros(5, np.int64) if labelled else None
    train = features(tmp_path, "train", np.stack([np.cos(angles), np.sin(angles)], 1), landmark=labels)
    query = features(tmp_path, "query", [[1, 0]], landmark=labels[:1] if labelled else None)
    train_landmark = np.array([1, 1, 2, 2, 2])
    assert vote(search([query], [train], 1), train_landmark, 1)[0].tolist() == [2]
    centres = class_centres([train], train_landmark, tmp_path / "centres.npz")
    landmark, score = vote(search([query], [tmp_path / "centres.npz"], 1), centres, 1)
    assert landmark.tolist() == [1]
    assert score[0] == pytest.approx(np.cos(np.radians(45)), abs=1e-6)


def test_centres_of_no_or_other_photos(tmp_path):
    with pytest.raises(InputError, match="no train photos"):
        class_centres([features(tmp_path, "none", np.empty((0, 2)))], np.array([], np.int64), tmp_path / "centres.npz")
    train = features(tmp_path, "train", np.eye(3))
    for count in (2, 4):
        with pytest.raises(ValueError, match=f"{count} landmarks for the 3 train photos"):
            class_centres([train], np.arange(count), tmp_path / "centres.npz")
    assert not (tmp_path / "centres.npz").exists()


def test_blend_by_hand():
    landmark, score = np.array([1, 1, 1, 1]), np.array([0.5, 0.5, 0.5, -0.2])
    head_landmark, head_score = np.array([1, 2, 1, 1]), np.array([0.8, 0.9, -0.3, 0.9], np.float32)
    blended = blend(landmark, score, head_landmark, head_score, power=2, otherwise=0.1)
    np.testing.assert_allclose(blended, [0.5 * 0.64, 0.5 * 0.01, 0.5 * 0.01, -0.2], rtol=1e-6)


def test_blend_puts_what_the_head_denies_last_and_keeps_order_there():
    landmark, score = np.array([1, 2, 3, 4]), np.array([1e-6, 0.9, 0.8, 0.3]) ** 9
    blended = blend(landmark, score, np.array([1, 9, 9, 9]), np.array([0.05, 1, 1, 1], np.float32))
    assert np.argsort(-blended).tolist() == [0, 1, 2, 3]
    assert np.all(blended > 0)


def test_nonlandmark_similarity_by_hand():
    found = neighbours([[0.5, 0.25, -0.25], [0.5, 0.25, -np.inf]], [[4, 2, 0], [1, 0, -1]], 5)
    assert nonlandmark_similarity(found, 1).tolist() == [0.5, 0.5]
    assert nonlandmark_similarity(found, 2).tolist() == [0.375, 0.375]
    assert nonlandmark_similarity(found, 3).tolist() == [0.5 / 3, 0.375]
    assert nonlandmark_similarity(found, 10).tolist() == [0.5 / 3, 0.375]
    assert nonlandmark_similarity(neighbours([[-np.inf]], [[-1]], 0), 5).tolist() == [0]


@given(st.data(), random_neighbours())
def test_penalise_equals_a_loop(data, given):
    penalty = data.draw(arrays(np.float64, len(given.index_ids), elements=st.integers(-8, 8).map(lambda n: n / 8)))
    result = penalise(given, penalty)
    assert result.similarities.dtype == np.float32 and result.positions.dtype == np.int32
    for query, (similarities, positions) in enumerate(zip(given.similarities, given.positions, strict=True)):
        left = [(s - penalty[p] if p >= 0 else -np.inf, p) for s, p in zip(similarities, positions, strict=True)]
        left.sort(key=lambda pair: -pair[0])
        assert list(zip(result.similarities[query], result.positions[query], strict=True)) == left


def test_the_winners_penalty_by_hand(tmp_path):
    # Train photo 0 looks like the non-landmark reference; it is the test photo's nearest, but not after the penalty.
    test = features(tmp_path, "test", [[0.6, 0.8, 0, 0]])
    train = features(tmp_path, "train", [[0, 1, 0, 0], [0.6, 0, 0.8, 0], [0.8, 0, 0, 0.6]])
    references = features(tmp_path, "reference", [[0, 1, 0, 0], [0, 0.8, 0.6, 0]])
    train_landmark = np.array([1, 2, 2])
    found = search([test], [train], 3)  # 0.8, 0.48, 0.36 for photos 0, 2, 1
    assert vote(found, train_landmark, 1)[0].tolist() == [1]
    train_penalty = nonlandmark_similarity(search([train], [references], 5), 5)
    np.testing.assert_allclose(train_penalty, [0.9, 0.24, 0], atol=1e-6)
    landmark, score = vote(penalise(found, train_penalty), train_landmark, 3)  # -0.1, 0.48, 0.12
    score -= nonlandmark_similarity(search([test], [references], 10), 10)  # the mean of 0.8 and 0.64
    assert landmark.tolist() == [2]
    np.testing.assert_allclose(score, [0.48 + 0.12 - 0.72], atol=1e-6)


def test_frequent_landmarks_come_last_in_their_order():
    landmark = np.array([7, 5, 7, 5, 7, 6, 7])
    score = np.array([0.9, 0.2, 1e-80, 0.1, 0.9, -0.3, 1e-70])
    result = frequent_as_nonlandmark(landmark, score, most=2)
    assert np.argsort(-result, kind="stable").tolist() == [1, 3, 5, 0, 4, 6, 2]
    assert result[0] == result[4]
    np.testing.assert_array_equal(result[landmark != 7], score[landmark != 7])
    np.testing.assert_array_equal(frequent_as_nonlandmark(landmark, score, most=4), score)
    assert score[0] == 0.9


@given(st.data(), st.integers(0, 12), st.integers(0, 3))
def test_frequent_landmarks_equal_a_loop(data, photos, most):
    landmark = data.draw(arrays(np.int64, photos, elements=st.integers(0, 3)))
    score = data.draw(arrays(np.float64, photos, elements=st.floats(-1e6, 1e6)))
    result = frequent_as_nonlandmark(landmark, score, most)
    frequent = [list(landmark).count(one) > most for one in landmark]
    for a in range(photos):
        for b in range(photos):
            if frequent[a] == frequent[b]:
                assert (result[a] < result[b]) == (score[a] < score[b])
            elif frequent[a]:
                assert result[a] < result[b]


@st.composite
def solutions(draw):
    usage = draw(st.lists(st.tuples(st.sampled_from("public private ignored".split()), st.booleans()), max_size=20))
    halves = {"public": {}, "private": {}}
    ignored = set()
    for number, (half, shows) in enumerate(usage):
        if half == "ignored":
            ignored.add(f"test{number}")
        else:
            halves[half][f"test{number}"] = [number, number + 1] if shows else []
    return Solution(halves["public"], halves["private"], ignored)


def assert_no_scored_photo_is_a_reference(solution, references):
    for half in ("public", "private"):
        assert not set(getattr(solution, half)) & set(references[half])


@given(solutions())
def test_references_are_the_other_halfs_photos_of_no_landmark(solution):
    references = reference_halves(solution)
    assert references["public"] == {i for i in solution.private if solution.private[i] == []}
    assert references["private"] == {i for i in solution.public if solution.public[i] == []}
    assert_no_scored_photo_is_a_reference(solution, references)
    assert without_references(solution, references) == solution


@given(solutions(), st.sets(st.integers(0, 25).map(lambda n: f"test{n}")))
def test_given_references_are_not_scored(solution, ids):
    references = {"public": ids, "private": ids}
    scored = without_references(solution, references)
    assert_no_scored_photo_is_a_reference(scored, references)
    everything = {*solution.public, *solution.private, *solution.ignored}
    assert {*scored.public, *scored.private, *scored.ignored} == everything
    assert scored.ignored == solution.ignored | (ids & {*solution.public, *solution.private})
    for half in ("public", "private"):
        before, after = getattr(solution, half), getattr(scored, half)
        assert after == {i: before[i] for i in before if i not in ids}


def test_each_half_may_have_references_of_its_own():
    solution = Solution({"a": [1], "b": []}, {"c": [], "d": [2]}, {"e"})
    scored = without_references(solution, {"public": {"b", "c"}, "private": {"a"}})
    assert scored == Solution({"a": [1]}, {"c": [], "d": [2]}, {"b", "e"})


def scores_of_halves(folder, test, train, train_landmark, solution):
    """Each half's predictions with the winners' penalty from the other half, strung together as recognition is."""
    predictions = {}
    for half, ids in reference_halves(solution).items():
        references = folder / f"{half}.npz"
        nonlandmark_features([test], ids, references)
        train_penalty = nonlandmark_similarity(search([train], [references], 5), 5)
        found = search([test], [train], 10)
        landmark, score = vote(penalise(found, train_penalty), train_landmark, 3)
        score -= nonlandmark_similarity(search([test], [references], 10), 10)
        rows = dict(zip(found.query_ids.tolist(), zip(landmark.tolist(), score.tolist(), strict=True), strict=True))
        predictions[half] = {i: rows[i] for i in getattr(solution, half)}
    return predictions


def test_a_halfs_scores_do_not_depend_on_its_own_solution(tmp_path):
    rng = np.random.default_rng(0)
    test = features(tmp_path, "test", unit(rng, 40, 8))
    train = features(tmp_path, "train", unit(rng, 30, 8))
    train_landmark = rng.integers(0, 5, 30)
    ids = [f"test{n}" for n in range(40)]
    truth = {i: [1] if rng.random() < 0.5 else [] for i in ids}
    solution = Solution({i: truth[i] for i in ids[:20]}, {i: truth[i] for i in ids[20:]}, set())
    turned = solution._replace(public={i: [] if truth[i] else [1] for i in ids[:20]})
    before = scores_of_halves(tmp_path, test, train, train_landmark, solution)
    after = scores_of_halves(tmp_path, test, train, train_landmark, turned)
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
    test, train = (
        features(tmp_path, name, photos[name] / np.linalg.norm(photos[name], axis=1, keepdims=True))
        for name in ("test", "train")
    )
    cells = {f"test{n}": [int(truth[n])] if shows[n] else [] for n in range(400)}
    solution = Solution(dict(list(cells.items())[:200]), dict(list(cells.items())[200:]), set())
    landmark, score = vote(search([test], [train], 3), train_landmark, 3)
    plain = {f"test{n}": (int(landmark[n]), float(score[n])) for n in range(400)}
    penalised = scores_of_halves(tmp_path, test, train, train_landmark, solution)
    for half in ("public", "private"):
        scored = getattr(solution, half)
        assert gap({i: plain[i] for i in scored}, scored) + 0.1 < gap(penalised[half], scored)


def test_features_of_the_references(tmp_path):
    rng = np.random.default_rng(0)
    parts = [unit(rng, count, 4).astype(np.float32) for count in (3, 0, 4)]
    labels = [np.arange(3), np.arange(0), np.arange(4) + 10]
    files = [features(tmp_path, f"test{n}-", part, landmark=labels[n]) for n, part in enumerate(parts)]
    found = nonlandmark_features(files, {"test0-1", "test2-0", "test2-3", "unreadable"}, tmp_path / "references.npz")
    assert found == 3
    written = load_features(tmp_path / "references.npz")
    assert written.ids.tolist() == ["test0-1", "test2-0", "test2-3"]
    np.testing.assert_array_equal(written.embeddings, np.stack([parts[0][1], parts[2][0], parts[2][3]]))
    assert written.landmark.tolist() == [1, 10, 13] and written.score is None
    assert search([tmp_path / "references.npz"], files, 1).positions.tolist() == [[1], [3], [6]]


@pytest.mark.parametrize("ids", [set(), {"elsewhere"}])
def test_no_references(tmp_path, ids):
    with pytest.raises(InputError, match=f"none of the {len(ids)} photos"):
        nonlandmark_features([features(tmp_path, "test", np.eye(3))], ids, tmp_path / "references.npz")
    assert not (tmp_path / "references.npz").exists()
