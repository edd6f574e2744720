import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from command import InputError
from features import Features, load_features, save_features
from rerank import expand, same_landmark, soft_same_landmark, sort_and_insert
from search import Neighbours, search


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


def naive(given: Neighbours, factor: float, depth: int, top: int) -> list[list[int]]:
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
    found = search(query_files, index_files, 60)
    files = expand(found, query_files, index_files, tmp_path / "expanded", count, alpha, parts)
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
    new = expand(search(files, files, 4), files, files, tmp_path / "augmented", 3, 2.0, parts)
    everything = np.concatenate(index)
    found = np.concatenate([load_features(path).embeddings for path in new])
    np.testing.assert_allclose(found, naive_expand(everything, everything, 3, 2.0, own=True), atol=1e-5)
    assert search(new, new, 3).positions[:, 0].tolist() == list(range(40))  # a second search runs


def test_a_photo_is_not_its_own_neighbour_even_among_copies(tmp_path):
    # Photos 0 to 2 are one: each is its copies' neighbour, whatever the order in which the search names them.
    embeddings = np.array([[1, 0]] * 3 + [[0.6, 0.8]], np.float32)
    files = [write(tmp_path, "index", embeddings)]
    new = load_features(expand(search(files, files, 3), files, files, tmp_path / "augmented", 2, 1.0)[0])
    np.testing.assert_allclose(new.embeddings[:3], [[1, 0]] * 3, atol=1e-6)
    expected = np.array([0.6, 0.8]) + 0.6 * np.array([2, 0])
    np.testing.assert_allclose(new.embeddings[3], expected / np.linalg.norm(expected), atol=1e-6)


def test_expansion_by_hand_in_half_precision(tmp_path):
    # The query and 0.8**2 of photo 1; photo 0 is on the other side and counts 0.
    query = write(tmp_path, "query", np.array([[1, 0]]), np.float16)
    index = write(tmp_path, "index", np.array([[-0.6, 0.8], [0.8, 0.6]]), np.float16)
    new = load_features(expand(search([query], [index], 2), [query], [index], tmp_path / "new", 2, 2.0)[0])
    assert new.embeddings.dtype == np.float16
    expected = np.array([1 + 0.64 * 0.8, 0.64 * 0.6])
    np.testing.assert_allclose(new.embeddings, [expected / np.linalg.norm(expected)], atol=1e-3)


def test_memory_of_expansion_is_that_of_one_part(tmp_path):
    rng = np.random.default_rng(0)
    files = [write(tmp_path, f"index{n}-", unit(rng, 300, 256)) for n in range(12)]
    found = search(files, files, 4)

    def peak(parts):
        tracemalloc.start()
        expand(found, files, files, tmp_path / f"new{parts}", 3, parts=parts)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    file = 300 * 256 * 4
    # Reading a file takes a few times its size for a moment.
    assert peak(12) < 10 * file < 30 * file < peak(1)
