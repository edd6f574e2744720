import tracemalloc

import numpy as np
import pytest
from conftest import write_features

from landmarks.neighbours import neighbourhood
from landmarks.neighbours.neighbourhood import jaccard, reciprocal, refine, superglobal
from landmarks.neighbours.search import search
from landmarks.running import command


def unit(embeddings):
    return embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)


def random_files(folder, counts, name, dimension=6, seed=0):
    rng = np.random.default_rng([seed, len(name)])
    parts = [unit(rng.standard_normal((count, dimension)) + 0.5) for count in counts]
    return [write_features(folder, f"{name}{number}-", part)[0] for number, part in enumerate(parts)]


def embeddings_of(files):
    return np.concatenate([np.load(path)["embeddings"] for path in files]).astype(np.float32)


def naive_superglobal(query, photos, count, weight):
    """The paper's, one photo at a time, with unit embeddings."""
    refined = []
    for own, photo in enumerate(photos):
        others = sorted(
            (place for place in range(len(photos)) if place != own), key=lambda place: -photo @ photos[place]
        )
        total, weights = photo.copy(), 1.0
        for other in others[:count]:
            similarity = max(photo @ photos[other], 0)
            total, weights = total + weight * similarity * photos[other], weights + weight * similarity
        refined.append(total / weights / np.linalg.norm(total / weights))
    nearest = sorted(refined, key=lambda photo: -photo @ query)[: count + 1]
    expanded = unit(np.max(nearest, axis=0))
    return [(photo @ query + photo @ expanded) / 2 for photo in refined]


def naive_reciprocal(query, index, positions, count, expansion):
    """k-reciprocal encoding by sets, with the query and the index whole; the Jaccard similarities of some photos."""
    photos = np.concatenate([index, query[None]])
    similarities = photos @ photos.T
    everything = range(len(photos))

    def nearest(photo, k):
        """The photo itself, and the k index photos nearest to it; the query where it is as near as these."""
        others = sorted((one for one in range(len(index)) if one != photo), key=lambda one: -similarities[photo, one])
        kth = similarities[photo, others[k - 1]]
        return {photo} | {one for one in everything if one != photo and similarities[photo, one] >= kth}

    def mutual(photo, k):
        return {one for one in nearest(photo, k) if photo in nearest(one, k)}

    def encode(photo):
        members = mutual(photo, count)
        enlarged = set(members)
        for one in members:
            theirs = mutual(one, (count + 1) // 2)
            if len(theirs & members) >= 2 / 3 * len(theirs):
                enlarged |= theirs
        row = np.zeros(len(photos))
        for one in enlarged:
            row[one] = np.exp(similarities[photo, one] - 1)
        return row / row.sum()

    encoded = [encode(photo) for photo in everything]
    averaged = [np.mean([encoded[one] for one in nearest(photo, expansion)], axis=0) for photo in everything]
    own = averaged[-1]
    return [np.minimum(own, averaged[one]).sum() / np.maximum(own, averaged[one]).sum() for one in positions]


def expected_order(queries, index, depth, scores):
    """The positions that re-ranking the best `depth` gives, the others after them."""
    rows = []
    for query in queries:
        order = np.argsort(-(index @ query), kind="stable")
        new = np.array(scores(query, order[:depth]))
        rows.append(np.concatenate([order[:depth][np.argsort(-new, kind="stable")], order[depth:]]))
    return np.array(rows)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("fewest", [0, 2**15])
@pytest.mark.parametrize(("depth", "count", "weight"), [(12, 3, 0.5), (40, 9, 0.15), (5, 9, 0.15), (12, 0, 0.5)])
def test_superglobal_is_the_published_one(tmp_path, monkeypatch, parts, fewest, depth, count, weight):
    monkeypatch.setattr(neighbourhood, "FEWEST", fewest)
    queries, index = random_files(tmp_path, (5, 0, 3), "test"), random_files(tmp_path, (17, 0, 23), "index")
    found = superglobal(queries, index, search(queries, index, 30), depth, tmp_path / "kept", count, weight, parts)
    photos = embeddings_of(index)
    expected = expected_order(
        embeddings_of(queries), photos, min(depth, 30),
        lambda query, places: naive_superglobal(query, photos[places], count, weight),
    )  # fmt: skip
    np.testing.assert_array_equal(found.positions, expected[:, :30])
    assert (np.diff(found.similarities) <= 0).all()
    best = photos[found.positions[0, : min(depth, 30)]]
    similarities = naive_superglobal(embeddings_of(queries)[0], best, count, weight)
    np.testing.assert_allclose(found.similarities[0, : len(best)], similarities, atol=1e-5)


def test_a_copy_is_refined_like_its_original():
    photos = unit(np.array([[1, 0.2, 0], [1, 0.2, 0], [0, 1, 0.1], [0.3, 0, 1]], np.float32))
    similarities = refine(photos[0], photos, 1, 0.5)
    assert similarities[0] == pytest.approx(similarities[1]) and similarities[0] == similarities.max()


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(("count", "expansion", "weight"), [(4, 2, 0.3), (7, 1, 0.0), (3, 3, 1.0)])
def test_reciprocal_is_the_published_one(tmp_path, parts, count, expansion, weight):
    queries, index = random_files(tmp_path, (3, 4), "test"), random_files(tmp_path, (17, 0, 13), "index")
    plain = search(queries, index, 30)  # all of the index, so that no member of a set is unknown
    found = reciprocal(queries, index, plain, 30, tmp_path / "kept", count, expansion, weight, parts)
    photos = embeddings_of(index)
    for row, query in enumerate(embeddings_of(queries)):
        places = found.positions[row]
        common = np.array(naive_reciprocal(query, photos, places, count, expansion))
        expected = (1 - weight) * common + weight * photos[places] @ query
        np.testing.assert_allclose(found.similarities[row], expected, atol=1e-4)
        assert sorted(places) == list(range(30))
    if weight == 1:
        np.testing.assert_array_equal(found.positions, plain.positions)


def test_jaccard_by_hand():
    # Two pairs of photos; the query is of the first. Each knows its one nearest, and the last is no one's neighbour.
    photos = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    found = jaccard(photos[0], photos, np.array([[1, 1, 1]] * 4, np.float32), (1, 1, 1))
    np.testing.assert_allclose(found, [1, 1, 0, 0], atol=1e-6)


@pytest.mark.parametrize("method", [superglobal, reciprocal])
def test_no_neighbours_no_trouble(tmp_path, method):
    queries = random_files(tmp_path, (2, 0), "test")
    for counts in ((1,), (3,)):
        index = random_files(tmp_path / str(counts), counts, "index")
        found = method(queries, index, search(queries, index, 5), 4, tmp_path / f"kept{counts}" / "kept")
        np.testing.assert_array_equal(np.sort(found.positions, axis=1)[:, -counts[0] :], [list(range(*counts))] * 2)
        assert (found.positions[:, counts[0] :] == -1).all() and np.isneginf(found.similarities[:, counts[0] :]).all()
        assert np.isfinite(found.similarities[:, : counts[0]]).all()


@pytest.mark.parametrize("method", [superglobal, reciprocal])
def test_goes_on_after_a_stop_and_believes_no_other_neighbours(tmp_path, monkeypatch, method):
    queries, index = random_files(tmp_path, (4, 5, 6), "test"), random_files(tmp_path, (30, 20), "index")
    neighbours = search(queries, index, 20)
    expected = method(queries, index, neighbours, 8, tmp_path / "whole/kept")
    done, rerank = [], neighbourhood._rerank

    def counted(embeddings, *arguments):
        done.append(len(embeddings))
        if len(done) == 3:
            raise command.Stopped
        rerank(embeddings, *arguments)

    monkeypatch.setattr(neighbourhood, "_rerank", counted)
    keep = tmp_path / "work/kept"
    with pytest.raises(command.Stopped):
        method(queries, index, neighbours, 8, keep)
    done[:] = [0] * 3
    (keep / queries[0].name).write_bytes(b"damaged")
    again = method(queries, index, neighbours, 8, keep)
    assert done[3:] == [4, 6]
    np.testing.assert_array_equal(again.positions, expected.positions)
    np.testing.assert_array_equal(again.similarities, expected.similarities)
    for changed in (
        lambda: method(queries, index, neighbours, 7, keep),
        lambda: method(queries, index, search(queries, index, 19), 7, keep),
        lambda: method(queries, [*random_files(tmp_path, (30, 20), "index", seed=1)], neighbours, 7, keep),
    ):
        done[:] = [0] * 3
        changed()
        assert done[3:] == [4, 5, 6]


def test_memory_is_that_of_one_part(tmp_path, monkeypatch):
    monkeypatch.setattr(neighbourhood, "FEWEST", 0)
    queries, index = random_files(tmp_path, (200,), "test", 256), random_files(tmp_path, (300,) * 20, "index", 256)
    neighbours = search(queries, index, 50)

    def peak(parts):
        tracemalloc.start()
        superglobal(queries, index, neighbours, 50, tmp_path / f"kept{parts}", parts=parts)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    everything = 6000 * 256 * 4  # write_features has float32
    assert peak(12) < everything / 2 < everything < peak(1)
