import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from landmarks.neighbours.rerank import frequent_as_nonlandmark, same_landmark, soft_same_landmark, sort_and_insert
from landmarks.neighbours.search import Neighbours
from landmarks.running.command import InputError


def neighbours(similarities, positions, query_landmark, index_landmark) -> Neighbours:
    return Neighbours(
        np.array([f"query{n}" for n in range(len(positions))], dtype="U10"),
        np.array([f"index{n}" for n in range(len(index_landmark))], dtype="U10"),
        np.array(similarities, np.float32),
        np.array(positions, np.int32),
        np.array(query_landmark, np.int64),
        np.array(index_landmark, np.int64),
    )


@st.composite
def random_neighbours(draw, max_queries=4):
    queries, k, photos = draw(st.integers(0, max_queries)), draw(st.integers(1, 8)), draw(st.integers(0, 10))
    found = min(k, photos)
    similarities = np.full((queries, k), -np.inf, np.float32)
    positions = np.full((queries, k), -1, np.int32)
    for row in range(queries):
        values = draw(arrays(np.float32, found, elements=st.floats(-1, 1.0009765625, width=32)))
        similarities[row, :found] = -np.sort(-values)
        positions[row, :found] = draw(st.permutations(range(photos)))[:found]
    landmark = st.integers(0, 2)
    return neighbours(
        similarities, positions, draw(arrays(np.int64, queries, elements=landmark)),
        draw(arrays(np.int64, photos, elements=landmark)),
    )  # fmt: skip


def naive(given, factor, depth, top):
    rows = []
    for query, (similarities, positions) in enumerate(zip(given.similarities, given.positions, strict=True)):
        distances = []
        for rank, (similarity, position) in enumerate(zip(similarities, positions, strict=True)):
            distance = np.sqrt(np.maximum(np.float32(2) - 2 * similarity, np.float32(0)))
            if position >= 0 and rank < depth and given.index_landmark[position] == given.query_landmark[query]:
                distance = distance / np.float32(factor)
            distances.append((distance, rank, int(position)))
        rows.append([position for _, _, position in sorted(distances)][:top])
    return rows


@given(random_neighbours(), st.sampled_from([1.0, 1.5, 2.0, 7.5]), st.integers(0, 9), st.integers(1, 9))
def test_equals_a_loop(given, factor, depth, top):
    result = same_landmark(given, factor, depth, top)
    assert result.positions.tolist() == naive(given, factor, depth, top)
    assert result.positions.dtype == np.int32 and result.similarities.dtype == np.float32
    assert result.similarities.shape == result.positions.shape
    assert np.all(result.similarities[:, :-1] >= result.similarities[:, 1:])
    assert np.all((result.similarities == -np.inf) == (result.positions == -1))


@given(random_neighbours(), st.integers(0, 9), st.integers(1, 9))
def test_factor_one_keeps_the_order(given, depth, top):
    result = same_landmark(given, 1, depth, top)
    np.testing.assert_array_equal(result.positions, given.positions[:, :top])
    np.testing.assert_allclose(result.similarities, np.minimum(given.similarities, 1)[:, :top], atol=1e-6)


def test_by_hand():
    # Distances: 0.2 -> 1.2649; 0.18 -> 1.2806; -0.125 -> 1.5, a match: 1.0; -0.62 -> 1.8, a match: 1.2; -0.28 -> 1.6.
    given = neighbours([[0.2, 0.18, -0.125, -0.28, -0.62]], [[4, 0, 2, 1, 3]], [7], [5, 6, 7, 7, 8])
    result = same_landmark(given, 1.5)
    assert result.positions.tolist() == [[2, 3, 4, 0, 1]]
    np.testing.assert_allclose(result.similarities, [[0.5, 0.28, 0.2, 0.18, -0.28]], atol=1e-6)
    assert result.query_ids is given.query_ids and result.index_ids is given.index_ids


def test_a_match_is_not_put_before_everything():
    # sqrt(0.6) / 1.5 = 0.516 lies between sqrt(0.2) = 0.447 and sqrt(0.4) = 0.632.
    given = neighbours([[0.9, 0.8, 0.7]], [[0, 1, 2]], [1], [0, 0, 1])
    assert same_landmark(given).positions.tolist() == [[0, 2, 1]]


def test_depth_bounds_what_moves_and_top_what_is_kept():
    given = neighbours([[0.9, 0.8, 0.79, 0.78]], [[0, 1, 2, 3]], [1], [0, 0, 1, 1])
    assert same_landmark(given, 10, depth=4, top=4).positions.tolist() == [[2, 3, 0, 1]]
    assert same_landmark(given, 10, depth=3, top=4).positions.tolist() == [[2, 0, 1, 3]]
    assert same_landmark(given, 10, depth=2, top=4).positions.tolist() == [[0, 1, 2, 3]]
    assert same_landmark(given, 10, depth=4, top=2).positions.tolist() == [[2, 3]]


def test_one_query_does_not_touch_another_and_many_make_several_blocks():
    queries = 3000
    given = neighbours([[0.9, 0.8]] * queries, [[0, 1]] * queries, np.arange(queries) % 3, [0, 1])
    result = same_landmark(given, 2)
    assert result.positions.tolist() == [[0, 1], [1, 0], [0, 1]] * (queries // 3)
    np.testing.assert_allclose(result.similarities[0], [1 - 0.1 / 4, 0.8], atol=1e-6)


def test_the_gain_is_that_of_the_distance():
    similarity, factor = 0.3, 1.5
    result = same_landmark(neighbours([[similarity]], [[0]], [1], [1]), factor)
    assert math.sqrt(2 - 2 * result.similarities[0, 0]) == pytest.approx(math.sqrt(2 - 2 * similarity) / factor)


def test_equal_distances_keep_their_order():
    order = np.random.default_rng(0).permutation(1000)
    given = neighbours([[0.5] * 1000], [order], [1], np.zeros(1000))
    assert same_landmark(given, 2, depth=1000, top=1000).positions[0].tolist() == order.tolist()


def test_padding_stays_last():
    given = neighbours([[0.5, 0.4, -np.inf]], [[0, 1, -1]], [3], [9, 3])
    result = same_landmark(given)
    assert result.positions.tolist() == [[1, 0, -1]]
    assert result.similarities[0, 2] == -np.inf


def test_without_predicted_landmarks():
    given = neighbours([[0.5]], [[0]], [3], [9])
    without = given._replace(query_landmark=None, index_landmark=None)
    score = np.ones(10)
    for rerank in (
        lambda: same_landmark(without),
        lambda: soft_same_landmark(without, score),
        lambda: sort_and_insert(without, score, score),
    ):
        with pytest.raises(InputError, match="turn re-ranking off"):
            rerank()


def eighths(count, least=0):
    return arrays(np.float64, count, elements=st.integers(least, 8).map(lambda n: n / 8))


def assert_in_order(result, top):
    assert result.positions.dtype == np.int32 and result.similarities.dtype == np.float32
    assert result.similarities.shape == result.positions.shape and result.positions.shape[1] <= top
    assert np.all(result.similarities[:, :-1] >= result.similarities[:, 1:])
    assert np.all((result.similarities == -np.inf) == (result.positions == -1))


@given(st.data(), random_neighbours(), st.sampled_from([(1.0, 0.1), (0.5, 0.25), (0.0, 0.0)]), st.integers(1, 9))
def test_soft_equals_a_loop(data, given, weights, top):
    agree, differ = weights
    index_score = data.draw(eighths(len(given.index_ids)))
    result = soft_same_landmark(given, index_score, agree, differ, top)
    assert_in_order(result, top)
    for query, (similarities, positions) in enumerate(zip(given.similarities, given.positions, strict=True)):
        rows = []
        for similarity, position in zip(similarities, positions, strict=True):
            if position >= 0:
                same = given.index_landmark[position] == given.query_landmark[query]
                s = np.float32(index_score[position])
                similarity = similarity + (np.float32(agree) * s if same else -np.float32(differ) * s)
            rows.append((similarity, position))
        rows.sort(key=lambda row: -row[0])
        assert list(zip(result.similarities[query], result.positions[query], strict=True)) == rows[:top]


def test_soft_by_hand():
    # 0.9 - 0.05; 0.8 - 0.1; 0.3 + 0.45; 0.2 + 0.9
    given = neighbours([[0.9, 0.8, 0.3, 0.2]], [[0, 1, 2, 3]], [7], [5, 6, 7, 7])
    result = soft_same_landmark(given, np.array([0.5, 1, 0.45, 0.9]))
    assert result.positions.tolist() == [[3, 0, 2, 1]]
    np.testing.assert_allclose(result.similarities, [[1.1, 0.85, 0.75, 0.7]], atol=1e-6)
    assert soft_same_landmark(given, np.zeros(4), top=2).positions.tolist() == [[0, 1]]


@given(st.data(), random_neighbours(), st.sampled_from([-1.0, 0.5, 1.0]), st.integers(1, 12))
def test_sort_and_insert_equals_a_loop(data, given, least, top):
    query_score, index_score = (
        data.draw(eighths(len(given.query_ids), -8)),
        data.draw(eighths(len(given.index_ids), -8)),
    )
    result = sort_and_insert(given, query_score, index_score, least, top)
    assert_in_order(result, top)
    for query, places in enumerate(given.positions):
        found = [int(place) for place in places if place >= 0]
        label = given.query_landmark[query]
        missed = [place for place in range(len(given.index_ids)) if place not in found]
        missed = [place for place in missed if query_score[query] + index_score[place] > least]
        expected = [place for place in found if given.index_landmark[place] == label]
        expected += sorted((m for m in missed if given.index_landmark[m] == label), key=lambda m: -index_score[m])
        expected += [place for place in found if given.index_landmark[place] != label]
        assert result.positions[query].tolist() == (expected + [-1] * top)[:top]


def test_sort_and_insert_by_hand():
    given = neighbours([[0.9, 0.8, 0.7], [0.9, 0.8, 0.7]], [[4, 0, 2], [1, 3, 5]], [7, 9], [7, 7, 5, 7, 6, 7, 7])
    index_score = np.array([0.1, 0.3, 0.9, 0.5, 0.9, 0.2, 0.5])
    result = sort_and_insert(given, np.array([0.2, 0.9]), index_score, least=0.45)
    assert result.positions.shape == (2, 100)
    # Photo 0 matches; 3 and 6 (0.7), then 1 (0.5) come in, 5 (0.4) does not; the second query's landmark has no photo.
    assert result.positions[:, :7].tolist() == [[0, 3, 6, 1, 4, 2, -1], [1, 3, 5, -1, -1, -1, -1]]
    np.testing.assert_allclose(result.similarities[0, :3], [1, 1 / 2, 1 / 3])
    assert sort_and_insert(given, np.array([0.2, 0.9]), index_score, 0.45, 3).positions[0].tolist() == [0, 3, 6]


def test_sort_and_insert_of_a_landmark_with_many_photos_found():
    # All 50 neighbours are the surest photos of the landmark: those after them still come in.
    photos = 300
    given = neighbours([np.linspace(1, 0, 50)], [np.arange(50)], [1], np.ones(photos))
    result = sort_and_insert(given, np.ones(1), np.linspace(1, 0, photos))
    assert result.positions[0].tolist() == list(range(100))


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
